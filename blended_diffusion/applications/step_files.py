"""The steps of an edit as people write them down: read, and checked beforehand.

What belongs here turns a file or plain data into [`Step`]s, and says in one sentence what is wrong with them. Taking
the steps belongs to `steps`, which keys there are to `keys`. Nothing here needs torch, unless an application is named.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from blended_diffusion.applications.keys import application_keys, check_keys, edit_keys, regions_keys, shortened
from blended_diffusion.applications.registry import APPLICATIONS
from blended_diffusion.masks.source import MaskSource
from blended_diffusion.painters.settings import EditSettings


@dataclass(frozen=True)
class Step:
    """One edit of several.

    Attributes:
        settings (`dict[str, Any]`): of [`EditSettings`], only what is said.
        mask (`Path`, `PIL.Image.Image` or [`MaskSource`], *optional*): which pixels; without it all are edited.
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


def _files_of(value: Any) -> list[Path]:
    if isinstance(value, MaskSource):
        return value.files
    return [value] if isinstance(value, Path) else []


def read_steps(path: str | Path, argument: str = "steps") -> list[Step]:
    """Reads a YAML or JSON file that holds a list of steps. Files in it are looked for beside it.

    Raises:
        ValueError: it cannot be read, or one of its steps is wrong: see [`parse_steps`].
    """
    path = Path(path)
    return parse_steps(
        read_list(path, read_text(path, argument), argument), path.parent, f"{argument} {str(path)!r}, "
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
        raise ValueError(f"{where}the steps are {shortened(data)}; give a list of one or more steps.")
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
        raise ValueError(f"{where} is {shortened(data)}; give keys and values, such as `prompt: rock`.")
    application = data.get("application")
    if "application" in data and application not in APPLICATIONS:
        raise ValueError(f"{where}: application is {shortened(application)}; give one of {', '.join(APPLICATIONS)}.")
    keys = application_keys(application) if application else regions_keys() if "regions" in data else edit_keys()
    filled = {key: value for key, value in (defaults or {}).items() if key in keys.model_fields} | dict(data)
    values = check_keys(keys, filled, folder, where)
    settings = {one.name: values.pop(one.name) for one in fields(EditSettings) if one.name in values}
    of_steps = ["application", "num_images", "seed", "regions"]
    if settings.get("mask_is_change_map") and isinstance(values.get("mask"), MaskSource):
        raise ValueError(
            f"{where}: mask is {shortened(data.get('mask'))}, which knows no greys; with mask_is_change_map give the"
            " name of a grey picture."
        )
    if application is None:
        of_steps.append("mask")  # of an application it is one of the parameters
    step = {key: values.pop(key) for key in of_steps if key in values}
    return Step(settings=settings, arguments=values, **step)


def read_text(path: Path, argument: str) -> str:
    """The text of a file; raises a `ValueError` that calls it `argument` if there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{argument} {str(path)!r} does not exist.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{argument} {str(path)!r} is not text; give a file in UTF-8.") from None
    except OSError as error:
        raise ValueError(f"{argument} {str(path)!r} cannot be read ({error.strerror}).") from None


def read_list(path: Path, text: str, argument: str) -> list[Any]:
    """The list in the text of a YAML or JSON file; raises a `ValueError` that calls it `argument` if it is none."""
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{argument} {str(path)!r} ends in {path.suffix!r}; this program reads .yaml and .json.")
    try:
        data = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{argument} {str(path)!r} cannot be understood ({reason}).") from None
    if not isinstance(data, list):
        raise ValueError(
            f"{argument} {str(path)!r} holds {shortened(data)}; give a list, each part beginning with a dash."
        )
    return data
