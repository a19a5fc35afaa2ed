"""Where a mask comes from: a file, another picture, a shape, a click, words; and the mask that it makes of a photo.

What belongs here is one description for all who write one: flags, job files and steps. What they may write, and where
a mask is kept, does not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from blended_diffusion.masks.networks import CLICK_MODEL, THRESHOLD, WORDS_MODEL, from_click, from_words
from blended_diffusion.masks.shapes import Point, from_alpha, from_box, from_difference, from_polygon, grow
from blended_diffusion.pictures.inputs import Mask, black_and_white, read_mask, read_photo


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MaskSource:
    """What a mask is made of. Exactly one of the first seven, [`MASK_KINDS`], is given.

    Attributes:
        file (`Path` or `PIL.Image.Image`): of a white-on-black picture.
        alpha (`Path` or `PIL.Image.Image`): white where this picture is opaque.
        difference (`Path` or `PIL.Image.Image`): white where this picture differs from the photo.
        box (`tuple[float, float, float, float]`): left, top, right, bottom in pixels.
        polygon, click (`Sequence[tuple[float, float]]`): corners, or points on an object that SAM 2 finds, in pixels.
        words (`str`): what CLIPSeg finds.
        model (`str`): other weights for `click` or `words`.
        threshold (`float`): for `words`.
        grow (`float`): by how many pixels.
    """

    file: Path | PIL.Image.Image | None = None
    alpha: Path | PIL.Image.Image | None = None
    difference: Path | PIL.Image.Image | None = None
    box: tuple[float, float, float, float] | None = None
    polygon: Sequence[Point] | None = None
    click: Sequence[Point] | None = None
    words: str | None = None
    model: str | None = None
    threshold: float | None = None
    grow: float = 0.0

    @property
    def kind(self) -> str:
        """The name of what is given."""
        return next(kind for kind in MASK_KINDS if getattr(self, kind) is not None)

    @property
    def needs_network(self) -> bool:
        """Whether a network has to find the mask."""
        return self.kind in NETWORK_KINDS

    @property
    def files(self) -> list[Path]:
        """The files that it reads."""
        return [value for value in (self.file, self.alpha, self.difference) if isinstance(value, Path)]


MASK_KINDS = tuple(field.name for field in fields(MaskSource))[:7]
NETWORK_KINDS = ("click", "words")

# what to call things in error messages, if not by the source's own names
KEY_NAMES = {"file": "mask"}


def make_mask(
    source: MaskSource,
    photo: PIL.Image.Image,
    device: "torch.device | str" = "cpu",
    names: Mapping[str, str] = KEY_NAMES,
) -> PIL.Image.Image:
    """The mask that a source makes of a photo.

    Args:
        source ([`MaskSource`]): what to make it of.
        photo (`PIL.Image.Image`): of mode `RGB` or `RGBA`.
        device (`torch.device` or `str`): where networks compute that find it.
        names (`Mapping[str, str]`): what to call `file`, `alpha`, `difference` and `model` in error messages.

    Returns:
        `PIL.Image.Image` of mode `L` and the photo's size, 255 = edit, 0 = keep. Where it was made smaller, nothing
        may be left of it.

    Raises:
        ValueError: it cannot be made.
    """
    size, kind = photo.size, source.kind
    value = getattr(source, kind)
    if kind in ("alpha", "difference") and isinstance(value, Path):
        value = read_photo(value, names.get(kind, kind), size).image
    model_name = names.get("model", "model")
    threshold = THRESHOLD if source.threshold is None else source.threshold
    makers = {
        "file": lambda: look_at_mask(value, photo, argument=names.get("file", "file")).image,
        "alpha": lambda: from_alpha(value),
        "difference": lambda: from_difference(photo, value),
        "box": lambda: from_box(size, value),
        "polygon": lambda: from_polygon(size, value),
        "click": lambda: from_click(photo, value, source.model or CLICK_MODEL, device, model_name),
        "words": lambda: from_words(photo, value, source.model or WORDS_MODEL, threshold, device, model_name),
    }
    return grow(makers[kind](), source.grow)


def look_at_mask(
    value: Path | PIL.Image.Image | MaskSource,
    photo: PIL.Image.Image,
    invert: bool = False,
    argument: str = "mask",
    keep_greys: bool = False,
) -> Mask:
    """The mask of a file, a picture or a description, in memory.

    Args:
        value (`Path`, `PIL.Image.Image` or [`MaskSource`]): what it is made of.
        photo (`PIL.Image.Image`): what it is a mask of.
        invert (`bool`): edit what would be kept.
        argument (`str`): what to call it in error messages.
        keep_greys (`bool`): leave the greys of a file or a picture as they are, or inverted.

    Raises:
        ValueError: it cannot be used.
    """
    if isinstance(value, Path):
        return read_mask(value, photo.size, invert, argument, keep_greys)
    image = make_mask(value, photo) if isinstance(value, MaskSource) else value
    image = black_and_white(image, invert, keep_greys)
    if image.size != photo.size:
        raise ValueError(
            f"{argument} is {image.width}×{image.height} pixels (width×height) and the picture is"
            f" {photo.width}×{photo.height}; they must be the same size."
        )
    if image.getbbox() is None:
        raise ValueError(f"{argument} leaves nothing to edit; paint {'black' if invert else 'white'} what is to be.")
    return Mask(image, Path("in memory"), hashlib.sha256(image.tobytes()).hexdigest())
