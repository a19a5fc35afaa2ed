"""What people write down to be done: the steps of an edit, and jobs on many photos; read, and checked beforehand.

What belongs here turns files and plain data into [`Step`]s and [`Job`]s, and says in one sentence what is wrong with
them. Doing them belongs to `applications.steps` and `jobs`. Nothing here needs torch, unless an application is named.
"""

import csv
import difflib
import inspect
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_args, get_type_hints

import PIL.Image
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, create_model

from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo


# A step may be any of these: `function(editor, image, …)`, or where to import it from. It takes the picture and gives
# the edited one (or an `Edited`, whose best is taken); its other parameters are the step's keys. Add your own.
APPLICATIONS: dict[str, str | Callable[..., Any]] = {
    "background": "blended_diffusion.applications.background:replace_background",
    "extend": "blended_diffusion.applications.extend:extend",
    "remove": "blended_diffusion.applications.remove:remove",
    "scribble": "blended_diffusion.applications.scribble:scribble",
}

# what is not an application's to ask for
GIVEN = ("editor", "image", "name")

# of the settings: what their types do not say
LIMITS: dict[str, Any] = {
    "num_inference_steps": Field(ge=1),
    "strength": Field(gt=0, le=1),
    "num_augmentations": Field(ge=0),
    "initial_mask_growth": Field(ge=0, le=1),
    **dict.fromkeys(
        (
            "clip_guidance_scale",
            "range_guidance_scale",
            "background_mse_scale",
            "background_lpips_scale",
            "context",
            "typographic_defence",
            "object_scale",
        ),
        Field(ge=0, allow_inf_nan=False),
    ),
}
CHOICES: dict[str, Any] = {
    "guidance_gradient": Literal["sample", "estimate"] | None,
    "ranking": Literal["surroundings", "region"],
}

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def _existing(value: Any, info: ValidationInfo) -> Any:
    """A picture, or the path of a file that is there."""
    if isinstance(value, PIL.Image.Image):
        return value
    if not isinstance(value, (str, Path)):
        raise ValueError("give the name of a picture file")
    path = (info.context / Path(value).expanduser()).absolute()
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; give the name of a picture file")
    return path


PictureFile = Annotated[Any, AfterValidator(_existing)]


class DrawnMask(BaseModel):
    """A mask that is no picture: the function of this name in [`~blended_diffusion.masks`] makes it of the photo.

    Exactly one of `file`, `alpha`, `difference`, `box`, `polygon`, `click` and `words` is given.

    Attributes:
        file (`Path`): of a white-on-black picture, to be grown.
        alpha (`Path`): white where this picture is opaque.
        difference (`Path`): white where this picture differs from the photo.
        box (`tuple[float, float, float, float]`): left, top, right, bottom in pixels.
        polygon, click (`list[tuple[float, float]]`): corners, or points on an object that SAM 2 finds, in pixels.
        words (`str`): what CLIPSeg finds.
        model (`str`): other weights for `click` or `words`.
        threshold (`float`): for `words`.
        grow (`float`): by how many pixels.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)
    file: PictureFile = None
    alpha: PictureFile = None
    difference: PictureFile = None
    box: tuple[float, float, float, float] | None = None
    polygon: Annotated[list[tuple[float, float]], Field(min_length=3)] | None = None
    click: Annotated[list[tuple[float, float]], Field(min_length=1)] | None = None
    words: str | None = None
    model: str | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    grow: Annotated[float, Field(allow_inf_nan=False)] = 0.0

    @property
    def kind(self) -> str:
        return next(kind for kind in MASK_KINDS if getattr(self, kind) is not None)

    @property
    def needs_network(self) -> bool:
        return self.kind in ("click", "words")


MASK_KINDS = ("file", "alpha", "difference", "box", "polygon", "click", "words")


@dataclass(frozen=True)
class Step:
    """One edit of several.

    Attributes:
        settings (`dict[str, Any]`): of [`EditSettings`], only what is said.
        mask (`Path`, `PIL.Image.Image` or [`DrawnMask`], *optional*): which pixels; without it all are edited.
        regions (`list[tuple[mask, str]]`): masks and prompts of regions that are edited in one pass instead.
        application (`str`, *optional*): a name in [`APPLICATIONS`].
        arguments (`dict[str, Any]`): the application's own.
        num_images (`int`, *optional*), seed (`int`, *optional*): the editor's if left out.
    """

    settings: dict[str, Any]
    mask: Any = None
    regions: list[tuple[Any, str]] = field(default_factory=list)
    application: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    seed: int | None = None

    @property
    def words(self) -> list[str]:
        """All prompts."""
        of_arguments = [value for key, value in self.arguments.items() if key.startswith("prompt") and value]
        return [*(prompt for _, prompt in self.regions), self.settings.get("prompt", ""), *of_arguments]

    @property
    def title(self) -> str:
        words = " + ".join(dict.fromkeys(prompt for prompt in self.words if prompt))
        return ": ".join(part for part in (self.application, words) if part) or "no words"

    @property
    def files(self) -> list[Path]:
        """The files that it reads."""
        values = [self.mask, *(mask for mask, _ in self.regions), *self.arguments.values()]
        return [file for value in values for file in _files_of(value)]


@dataclass(frozen=True)
class Job:
    """One photo and what is to be done with it.

    Attributes:
        name (`str`): of its folder.
        where (`str`): where it was read, for messages.
        image (`Path`, *optional*): the photo; missing if that is what is wrong.
        steps (`list[Step]`): one or several.
        several (`bool`): whether they were given as a list, and so have folders of their own.
        wish (`dict[str, Any]`): all of it as it was written, to be compared with.
        complaint (`str`, *optional*): a sentence about what is wrong with it.
    """

    name: str
    where: str
    image: Path | None
    steps: list[Step]
    several: bool
    wish: dict[str, Any]
    complaint: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def read_steps(path: str | Path, argument: str = "steps") -> list[Step]:
    """Reads a YAML or JSON file that holds a list of steps. Files in it are looked for beside it.

    Raises:
        ValueError: it cannot be read, or one of its steps is wrong: see [`parse_steps`].
    """
    path = Path(path)
    return parse_steps(
        _load_list(path, _read_text(path, argument), argument), path.parent, f"{argument} {str(path)!r}, "
    )


def parse_steps(data: Any, folder: Path = Path(), where: str = "") -> list[Step]:
    """Checks a list of steps, each a mapping.

    Args:
        data (`list[dict]`): the steps.
        folder (`Path`): where to look for files whose names are not absolute.
        where (`str`): what to put before the number of a step in error messages.

    Raises:
        ValueError: there is none, or something is wrong with one: the sentence names number, key and value.
    """
    if isinstance(data, (str, Mapping)) or not isinstance(data, Sequence) or not data:
        raise ValueError(f"{where}the steps are {_short(data)}; give a list of one or more steps.")
    return [parse_step(one, folder, f"{where}step {number}") for number, one in enumerate(data, start=1)]


def parse_step(
    data: Any, folder: Path = Path(), where: str = "step", defaults: Mapping[str, Any] | None = None
) -> Step:
    """Checks one step.

    Args:
        data (`dict`): `prompt`, `mask`, and whatever [`EditSettings`] has; or `regions`, a list of `mask` and
            `prompt`; or `application` and that one's parameters.
        folder (`Path`): where to look for files whose names are not absolute.
        where (`str`): what to call it in error messages.
        defaults (`dict`, *optional*): values of keys that it leaves out, as far as it can have such keys.

    Raises:
        ValueError: something is wrong with it; the sentence names the key and the value.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is {_short(data)}; give keys and values, such as `prompt: rock`.")
    application = data.get("application")
    if "application" in data and application not in APPLICATIONS:
        raise ValueError(f"{where}: application is {_short(application)}; give one of {', '.join(APPLICATIONS)}.")
    kind = _application_keys(application) if application else _region_keys() if "regions" in data else _edit_keys()
    filled = {key: value for key, value in (defaults or {}).items() if key in kind.model_fields} | dict(data)
    given = _checked(kind, filled, folder, where)
    names = [one.name for one in fields(EditSettings)]
    own = {key: given.pop(key) for key in ("application", "num_images", "seed", "mask", "regions") if key in given}
    settings = {key: given.pop(key) for key in names if key in given}
    if application and "mask" in own:
        given["mask"] = own.pop("mask")  # one of its parameters
    return Step(settings=settings, arguments=given, **own)


def application_of(name: str) -> Callable[..., Any]:
    """The function of a name in [`APPLICATIONS`]."""
    found = APPLICATIONS[name]
    return resolve_name(found) if isinstance(found, str) else found


# ---------------------------------------------------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------------------------------------------------


def read_jobs(path: str | Path, defaults: Mapping[str, Any] | None = None, argument: str = "jobs") -> list[Job]:
    """Reads jobs: from a CSV file with a head line, JSON Lines, a YAML or JSON list, or a folder of photos.

    A job has an `image`, a `name` if need be, and the keys of a step, or `steps`. In a folder every photo that has a
    mask beside it is one, `NAME_mask.png`, or every photo if `defaults` has a mask for all; its prompt is in
    `NAME.txt`, unless `defaults` has one. Files in a file are looked for beside it.

    Args:
        path (`str` or `Path`): the file or folder.
        defaults (`dict`, *optional*): values of keys that jobs leave out.
        argument (`str`): what to call `path` in error messages.

    Returns:
        `list[Job]`: those with which something is wrong have a `complaint`.

    Raises:
        ValueError: there is no such file, it is none of these, or it holds no job.
    """
    path = Path(path)
    rows = _folder_rows(path, "mask" in (defaults or {})) if path.is_dir() else _file_rows(path, argument)
    if not rows:
        raise ValueError(
            f"{argument} {str(path)!r} holds no job; give a file with one in each line, or a folder with a"
            " NAME_mask.png beside each photo."
        )
    folder = path if path.is_dir() else path.parent
    return _name_apart([_parse_job(row, folder, where, defaults or {}) for where, row in rows])


def _parse_job(row: Any, folder: Path, where: str, defaults: Mapping[str, Any]) -> Job:
    name, image, steps, several = "", None, [], False
    wish = {"job": row, "defaults": dict(defaults)}
    try:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where} is {_short(row)}; give keys and values, such as an image and a prompt.")
        several = "steps" in row
        rest = {key: value for key, value in row.items() if key not in ("image", "name", "steps")}
        head = _checked(JobHead, {key: row[key] for key in ("image", "name") if key in row}, folder, where)
        image = head["image"]
        name = head.get("name", image.stem)
        if not several:
            steps = [parse_step(rest, folder, where, defaults)]
        elif not isinstance(row["steps"], list) or not row["steps"]:
            raise ValueError(f"{where}: steps is {_short(row['steps'])}; give a list of one or more steps.")
        else:
            shared = {**defaults, **rest}
            steps = [
                parse_step(one, folder, f"{where}, step {number}", shared)
                for number, one in enumerate(row["steps"], start=1)
            ]
    except ValueError as error:
        return Job(name, where, image, steps, several, wish, str(error))
    return Job(name, where, image, steps, several, wish)


def _name_apart(jobs: list[Job]) -> list[Job]:
    """Jobs with a folder each: what was named twice is an error, what takes its photo's name gets a number."""
    taken: dict[str, Job] = {}
    counts: dict[str, int] = defaultdict(lambda: 1)
    named = []
    for job in jobs:
        if job.complaint is None:
            name = job.name
            if "name" in job.wish["job"] and name in taken:
                complaint = f"{job.where}: name is {name!r}, which {taken[name].where} has too; give each its own."
                job = Job(name, job.where, job.image, job.steps, job.several, job.wish, complaint)
            else:
                while name in taken:
                    counts[job.name] += 1
                    name = f"{job.name}_{counts[job.name]}"
                job = Job(name, job.where, job.image, job.steps, job.several, job.wish)
                taken[name] = job
        named.append(job)
    return named


def _file_rows(path: Path, argument: str) -> list[tuple[str, Any]]:
    text, ending = _read_text(path, argument), path.suffix.lower()
    if ending == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""), restkey="more than the head line has")
        rows = []
        for row in table:
            cells = {key: value for key, value in row.items() if value not in (None, "")}
            rows.append((f"line {table.line_num}", cells))
        if table.fieldnames is None or "image" not in table.fieldnames:
            found = ", ".join(table.fieldnames or [])
            raise ValueError(
                f"{argument} {str(path)!r} has the head line {found!r}; give it one such as image,mask,prompt."
            )
        return rows
    if ending == ".jsonl":
        lines = [(f"line {number}", line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        return [(where, _json_line(line)) for where, line in lines]
    return [(f"job {number}", row) for number, row in enumerate(_load_list(path, text, argument), start=1)]


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # refused as what it is, together with all else that is wrong


def _folder_rows(folder: Path, without_masks: bool) -> list[tuple[str, Any]]:
    names = {path.name for path in folder.iterdir()}
    rows = []
    for name in sorted(names):
        stem, ending = Path(name).stem, Path(name).suffix.lower()
        if ending not in PICTURE_ENDINGS or name.endswith("_mask.png"):
            continue
        if without_masks or f"{stem}_mask.png" in names:
            row = {"image": name} | ({"mask": f"{stem}_mask.png"} if f"{stem}_mask.png" in names else {})
            if f"{stem}.txt" in names:
                row["prompt"] = (folder / f"{stem}.txt").read_text(encoding="utf-8").strip()
            rows.append((name, row))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Which keys there are
# ---------------------------------------------------------------------------------------------------------------------

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _plain(value: str) -> str:
    if value in ("", ".", "..") or Path(value).name != value:
        raise ValueError("give a plain name without slashes")
    return value


def _mask(value: Any, info: ValidationInfo) -> Any:
    """A picture, the path of a file that is there, or a mask to be drawn."""
    if isinstance(value, str) and value.startswith("{"):
        value = yaml.safe_load(value)  # in a table
    if not isinstance(value, Mapping):
        return _existing(value, info)
    given = [kind for kind in MASK_KINDS if value.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(MASK_KINDS)}, not {' and '.join(given) or 'none'}")
    try:
        return DrawnMask.model_validate(dict(value), context=info.context)
    except ValidationError as error:
        keys = list(DrawnMask.model_fields)
        raise ValueError(_sentence(error.errors()[0], "in it", keys).rstrip(".")) from None


MaskOf = Annotated[Any, AfterValidator(_mask)]


class JobHead(BaseModel):
    model_config = STRICT
    image: PictureFile
    name: Annotated[str, AfterValidator(_plain)] = ""


class OneRegion(BaseModel):
    model_config = STRICT
    mask: MaskOf
    prompt: str


def _settings_keys(without: Sequence[str] = ()) -> dict[str, Any]:
    hints = get_type_hints(EditSettings)
    keys = {}
    for one in fields(EditSettings):
        if one.name in ("region_prompts", *without):
            continue
        kind = CHOICES.get(one.name, hints[one.name])
        limits = [LIMITS[one.name]] if one.name in LIMITS else []
        keys[one.name] = (
            Annotated[(kind, *limits)] if limits else kind,
            ... if one.default is MISSING else one.default,
        )
    return keys


def _run_keys() -> dict[str, Any]:
    return {
        "num_images": (Annotated[int | None, Field(ge=1)], None),
        "seed": (Annotated[int | None, Field(ge=0, le=2**62)], None),
    }


@cache
def _edit_keys() -> type[BaseModel]:
    return create_model("Edit", __config__=STRICT, mask=(MaskOf, None), **_settings_keys(), **_run_keys())


@cache
def _region_keys() -> type[BaseModel]:
    regions = (Annotated[list[OneRegion], Field(min_length=1)], ...)
    settings = _settings_keys(without=("prompt", "prompt_to", "prompt_blend", "invert_mask"))
    return create_model("Regions", __config__=STRICT, regions=regions, **settings, **_run_keys())


def _application_keys(name: str) -> type[BaseModel]:
    return _keys_of(application_of(name))


@cache
def _keys_of(function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function)
    keys: dict[str, Any] = {"application": (str, ...)}
    for parameter in inspect.signature(function).parameters.values():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        if parameter.name == "settings":
            # its other masks are not to be inverted
            keys |= _settings_keys(without=() if "mask" in hints else ("invert_mask",))
            if default is not ...:
                keys["prompt"] = (str, "")
        elif parameter.name not in GIVEN:
            hint = hints.get(parameter.name, Any)
            kinds = (hint, *get_args(hint))
            kind = MaskOf if Mask in kinds else PictureFile if Photo in kinds else hint
            keys[parameter.name] = (kind, default)
    return create_model(function.__name__, __config__=STRICT, **(keys | _run_keys()))


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong
# ---------------------------------------------------------------------------------------------------------------------


def _checked(kind: type[BaseModel], data: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The values of the keys that are given.

    Raises:
        ValueError: the first thing that is wrong, in one sentence.
    """
    try:
        model = kind.model_validate(dict(data), context=folder)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0], where, list(kind.model_fields))) from None
    values = {key: getattr(model, key) for key in model.model_fields_set}
    if "regions" in values:
        values["regions"] = [(region.mask, region.prompt) for region in values["regions"]]
    return values


def _sentence(error: Mapping[str, Any], where: str, keys: list[str]) -> str:
    place = [part for part in error["loc"] if isinstance(part, int) or part in keys or part in OneRegion.model_fields]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
    if error["type"] == "missing":
        return f"{where}: {key} is missing; give it a value."
    if error["type"] == "extra_forbidden":
        unknown = str(error["loc"][-1])
        known = list(OneRegion.model_fields) if place and place[0] == "regions" else keys
        close = difflib.get_close_matches(unknown, known, n=1)
        right = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
        return f"{where}: {unknown} is no key here; {right}"
    if error["type"] == "too_short":
        return f"{where}: {key} is {_short(error['input'])}; give at least one."
    if error["type"] == "value_error":
        return f"{where}: {key} is {_short(error['input'])}: {error['ctx']['error']}."
    wanted = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {key} is {_short(error['input'])}; {wanted.replace('input should', 'it should', 1)}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _read_text(path: Path, argument: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{argument} {str(path)!r} does not exist.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{argument} {str(path)!r} is not text; give a file in UTF-8.") from None
    except OSError as error:
        raise ValueError(f"{argument} {str(path)!r} cannot be read ({error.strerror}).") from None


def _load_list(path: Path, text: str, argument: str) -> list[Any]:
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{argument} {str(path)!r} ends in {path.suffix!r}; this program reads .yaml and .json.")
    try:
        data = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{argument} {str(path)!r} cannot be understood ({reason}).") from None
    if not isinstance(data, list):
        raise ValueError(
            f"{argument} {str(path)!r} holds {_short(data)}; give a list, each part beginning with a dash."
        )
    return data


def _files_of(value: Any) -> list[Path]:
    values = [value.file, value.alpha, value.difference] if isinstance(value, DrawnMask) else [value]
    return [one for one in values if isinstance(one, Path)]
