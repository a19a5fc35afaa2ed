"""Which keys people may write in steps and jobs, and what is said about wrong ones.

What belongs here turns plain data into checked values, or into one sentence that names the key and the value. Which
keys make a step or a job belongs to `step_files` and `job_files`.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import PIL.Image
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, create_model
from pydantic.fields import FieldInfo

from blended_diffusion.applications.registry import GIVEN_PARAMETERS, application_of
from blended_diffusion.masks.shapes import Point
from blended_diffusion.masks.source import MASK_KINDS, MaskSource
from blended_diffusion.painters.limits import CHOICES, LIMITS, Limit
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo


STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

# settings whose numbers are refused when the edit is prepared, in its own words
CHECKED_LATER = ("detail", "feather")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and masks
# ---------------------------------------------------------------------------------------------------------------------


def _existing(value: Any, info: ValidationInfo[Path]) -> Any:
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

# of a mask's source: what its types do not say
_MASK_LIMITS: dict[str, Any] = {
    "file": PictureFile,
    "alpha": PictureFile,
    "difference": PictureFile,
    "polygon": Annotated[list[Point], Field(min_length=3)] | None,
    "click": Annotated[list[Point], Field(min_length=1)] | None,
    "threshold": Annotated[float, Field(ge=0, le=1)] | None,
    "grow": Annotated[float, Field(allow_inf_nan=False)],
}


@cache
def mask_keys() -> type[BaseModel]:
    """The keys of a mask that is described: the fields of [`MaskSource`]."""
    hints = get_type_hints(MaskSource)
    keys: dict[str, Any] = {
        one.name: (_MASK_LIMITS.get(one.name, hints[one.name]), one.default) for one in fields(MaskSource)
    }
    return create_model("MaskKeys", __config__=STRICT, **keys)


def _mask(value: Any, info: ValidationInfo[Path]) -> Any:
    """A picture, the path of a file that is there, or a [`MaskSource`]."""
    if isinstance(value, str) and value.startswith("{"):
        value = yaml.safe_load(value)  # in a table
    if not isinstance(value, Mapping):
        return _existing(value, info)
    given = [kind for kind in MASK_KINDS if value.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(MASK_KINDS)}, not {' and '.join(given) or 'none'}")
    try:
        return MaskSource(**dict(mask_keys().model_validate(dict(value), context=info.context)))
    except ValidationError as error:
        keys = list(mask_keys().model_fields)
        raise ValueError(complaint_about(error.errors()[0], "in it", keys).rstrip(".")) from None


MaskOf = Annotated[Any, AfterValidator(_mask)]


# ---------------------------------------------------------------------------------------------------------------------
# Which keys there are
# ---------------------------------------------------------------------------------------------------------------------


class RegionKeys(BaseModel):
    model_config = STRICT
    mask: MaskOf
    prompt: str


def as_field(limit: Limit) -> FieldInfo:
    """A limit as pydantic says it."""
    ends: dict[str, Any] = {"gt" if limit.above_minimum else "ge": limit.minimum}
    if limit.maximum < float("inf"):
        ends["le"] = limit.maximum
    elif not limit.whole:
        ends["allow_inf_nan"] = False
    return Field(**ends)


def setting_keys(without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of [`EditSettings`] but for some."""
    hints = get_type_hints(EditSettings)
    keys: dict[str, Any] = {}
    for one in fields(EditSettings):
        if one.name in ("region_prompts", *without):
            continue
        kind = hints[one.name]
        if one.name in CHOICES:
            kind = Literal[CHOICES[one.name]] | (None if NoneType in get_args(kind) else Literal[CHOICES[one.name]])
        if one.name in LIMITS and one.name not in CHECKED_LATER:
            kind = Annotated[kind, as_field(LIMITS[one.name])]
        keys[one.name] = (kind, ... if one.default is MISSING else one.default)
    return keys


def candidate_keys() -> dict[str, Any]:
    """Which candidates are made."""
    return {name: (Annotated[int | None, as_field(LIMITS[name])], None) for name in ("num_images", "seed")}


@cache
def edit_keys() -> type[BaseModel]:
    """The keys of a step that edits one region."""
    return create_model("Edit", __config__=STRICT, mask=(MaskOf, None), **setting_keys(), **candidate_keys())


@cache
def regions_keys() -> type[BaseModel]:
    """The keys of a step that edits several regions in one pass."""
    keys: dict[str, Any] = {"regions": (Annotated[list[RegionKeys], Field(min_length=1)], ...)}
    keys |= setting_keys(without=("prompt", "prompt_to", "prompt_blend", "invert_mask", "mask_is_change_map"))
    return create_model("Regions", __config__=STRICT, **keys, **candidate_keys())


def application_keys(name: str) -> type[BaseModel]:
    """The keys of a step that is the application `name`: its parameters, and the settings if it takes some."""
    return _parameter_keys(application_of(name))


@cache
def _parameter_keys(function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function)
    keys: dict[str, Any] = {"application": (str, ...)}
    for parameter in inspect.signature(function).parameters.values():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        if parameter.name == "settings":
            # its other masks are not to be inverted, and none says how much
            without = ("mask_is_change_map",) + (() if "mask" in hints else ("invert_mask",))
            keys |= setting_keys(without)
            if default is not ...:
                keys["prompt"] = (str, "")
        elif parameter.name not in GIVEN_PARAMETERS:
            hint = hints.get(parameter.name, Any)
            kinds = (hint, *get_args(hint))
            kind = MaskOf if Mask in kinds else PictureFile if Photo in kinds else hint
            keys[parameter.name] = (kind, default)
    return create_model(function.__name__, __config__=STRICT, **(keys | candidate_keys()))


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong
# ---------------------------------------------------------------------------------------------------------------------


def check_keys(keys: type[BaseModel], data: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The values of the keys that are given.

    Args:
        keys (`type[BaseModel]`): the keys there are.
        data (`dict`): what was written.
        folder (`Path`): where to look for files whose names are not absolute.
        where (`str`): what to call it in error messages.

    Raises:
        ValueError: the first thing that is wrong, in one sentence.
    """
    try:
        model = keys.model_validate(dict(data), context=folder)
    except ValidationError as error:
        raise ValueError(complaint_about(error.errors()[0], where, list(keys.model_fields))) from None
    values = {key: getattr(model, key) for key in model.model_fields_set}
    if "regions" in values:
        values["regions"] = [(region.mask, region.prompt) for region in values["regions"]]
    return values


def complaint_about(error: Mapping[str, Any], where: str, keys: list[str]) -> str:
    """What pydantic found, in one sentence that names the key and the value."""
    in_region = RegionKeys.model_fields
    location = [part for part in error["loc"] if isinstance(part, int) or part in keys or part in in_region]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in location)
    if error["type"] == "missing":
        return f"{where}: {key} is missing; give it a value."
    if error["type"] == "extra_forbidden":
        unknown = str(error["loc"][-1])
        known = list(in_region) if location and location[0] == "regions" else keys
        close = difflib.get_close_matches(unknown, known, n=1)
        right = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
        return f"{where}: {unknown} is no key here; {right}"
    if error["type"] == "too_short":
        return f"{where}: {key} is {shortened(error['input'])}; give at least one."
    if error["type"] == "value_error":
        return f"{where}: {key} is {shortened(error['input'])}: {error['ctx']['error']}."
    expected = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {key} is {shortened(error['input'])}; {expected.replace('input should', 'it should', 1)}."


def shortened(value: Any) -> str:
    """A value as it is shown in messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
