"""What a picture remembers of its making: everything needed to make it again, and none of the photo's pixels.

What belongs here is plain data and its JSON. Making pictures does not.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.model_files import ModelPart
from blended_diffusion.painters.settings import EditSettings


@dataclass(frozen=True)
class Origin:
    """A file or a model that was used.

    Attributes:
        name (`str`): its absolute path, or a model's name.
        sha256 (`str`): of the file, or of a model's weights.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Record:
    """How one picture was made.

    Attributes:
        settings (`EditSettings`): with the model's defaults filled in.
        photo, mask, model (`Origin`): what it was made from; without a mask all of the photo was edited.
        seed (`int`): the picture's own.
        batch (`list[int]`): the seeds of all pictures computed together with it, in their order: rounding depends on
            how many they are.
        clip_distance (`float`): lower is better.
        made_with (`MadeWith`): on what.
        parts (`list[ModelPart]`): the model's networks by themselves, and what was loaded beside them.
    """

    settings: EditSettings
    photo: Origin
    mask: Origin | None
    model: Origin
    seed: int
    batch: list[int]
    clip_distance: float
    made_with: MadeWith
    parts: list[ModelPart] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What one folder of results is about.

    Attributes:
        settings, photo, mask, model, made_with, parts: as in [`Record`].
        seed (`int`): of the first picture; the following count on.
        batch_size (`int`): how many pictures were to be computed together.
        stem (`str`): part of the pictures' names.
        film (`str`, *optional*): the format of each picture's film.
        strip (`int`, *optional*): how many steps of its making to show side by side.
        assets (`bool`): whether to write what the model saw and made.
        batches (`list[list[int]]`): the seeds of the pictures that are computed together, smaller than `batch_size`
            where memory ran out.
    """

    settings: EditSettings
    photo: Origin
    mask: Origin | None
    model: Origin
    seed: int
    batch_size: int
    stem: str
    film: str | None
    assets: bool
    batches: list[list[int]]
    made_with: MadeWith
    strip: int | None = None
    parts: list[ModelPart] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        return [seed for batch in self.batches for seed in batch]

    def differences(self, other: "Run | Record") -> list[str]:
        """The names of what `other` wants otherwise.

        Of files and models the contents count, not where they are. Machines and the number of pictures may differ.
        """
        ours, theirs = _what_is_wanted(self), _what_is_wanted(other)
        return [name for name, value in ours.items() if name in theirs and theirs[name] != value]


def _what_is_wanted(thing: Run | Record) -> dict[str, Any]:
    wanted = asdict(thing)
    for name in ("photo", "mask", "model"):
        wanted[name] = wanted[name] and wanted[name]["sha256"]
    wanted["parts"] = [(part["kind"], part["sha256"], part["weight"]) for part in wanted["parts"]]
    per_picture = ("seed", "batch", "clip_distance") if isinstance(thing, Record) else ("batches",)
    for name in ("made_with", *per_picture):
        del wanted[name]
    return {**wanted.pop("settings"), **wanted}


def in_batches(seeds: list[int], size: int) -> list[list[int]]:
    """`seeds` in batches of at most `size`."""
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def to_json(record: object, indent: int | None = None) -> str:
    """ASCII JSON of a dataclass, such as a [`Record`]; reading it back gives an equal object."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(record)).dump_json(record, indent=indent, ensure_ascii=True).decode()


def from_json(kind: type, text: str | bytes) -> Any:
    """The [`Record`] or [`Run`] that `text` describes.

    Raises:
        ValueError: `text` is not JSON, or something is missing or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field}: {first['msg']}" if field else first["msg"]) from None


def read_record(path: str | Path, argument: str = "picture") -> Record:
    """How a picture was made, from the PNG's text chunk.

    Args:
        path (`str` or `Path`): a PNG that this program wrote.
        argument (`str`): what to call it in error messages.

    Raises:
        ValueError: there is no such file, it is not a picture, or it holds no intact record.
    """
    from blended_diffusion.pictures import TEXT_KEY
    from blended_diffusion.pictures.inputs import decode, open_picture

    image, path, _ = open_picture(path, argument)
    decode(image, path, argument)  # a PNG's text may follow its pixels
    text = getattr(image, "text", {}).get(TEXT_KEY)
    if text is None:
        raise ValueError(
            f"{argument} {str(path)!r} holds no record of how it was made; give a PNG from `ranked/`, not a copy that"
            " another program saved."
        )
    try:
        return from_json(Record, text)
    except ValueError as error:
        raise ValueError(f"{argument} {str(path)!r} has a damaged record ({error}); give an intact copy.") from None
