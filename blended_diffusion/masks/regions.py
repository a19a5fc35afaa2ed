"""Several regions of one photo in one mask: which pixel belongs to which of them.

What belongs here is the picture that says so, made of several masks or read from its file. What is painted into the
regions, and how the network's pixels are shared out among them, does not.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageChops

from blended_diffusion.pictures.inputs import Mask


@dataclass(frozen=True)
class RegionMask(Mask):
    """Which pixels to edit, and to which region each of them belongs.

    Attributes:
        labels (`PIL.Image.Image`): of mode `P`, 0 = keep, 1 = the first region, 2 = the second, …
    """

    labels: PIL.Image.Image


def label(masks: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """The picture that holds several regions: of mode `P`, 0 (black) = keep, 1 = the first, 2 = the second, …

    Where masks overlap, the later one lies on top, as layers do. Every region has a light colour of its own: read as a
    mask, the picture is white in all of them.

    Args:
        masks (`Sequence[PIL.Image.Image]`): of mode `L` and one size, 255 = edit, 0 = keep.

    Raises:
        ValueError: the masks are of different sizes, or later ones cover one of them altogether.
    """
    labels = PIL.Image.new("P", masks[0].size, 0)
    for number, mask in enumerate(masks, start=1):
        if mask.size != labels.size:
            raise ValueError(
                f"The mask of region {number} is {mask.width}×{mask.height} pixels (width×height) and that of region 1"
                f" is {labels.width}×{labels.height}; they must be the same size."
            )
        labels.paste(number, mask=mask.point([0] * 128 + [255] * 128))
    for number, pixels in enumerate(labels.histogram()[1 : len(masks) + 1], start=1):
        if pixels == 0:
            raise ValueError(
                f"Region {number} is empty or covered altogether by later ones; where masks overlap, the"
                " later one lies on top."
            )
    colours = [colorsys.hls_to_rgb(0.05 + 0.381966 * number, 0.75, 1) for number in range(len(masks))]
    labels.putpalette([0, 0, 0] + [round(255 * channel) for colour in colours for channel in colour])
    return labels


def region_labels(mask: Mask | None) -> PIL.Image.Image:
    """What [`label`] made: the labels of a [`RegionMask`], or those in the file that a mask was read from.

    Raises:
        ValueError: there are none.
    """
    if mask is None:
        raise ValueError("`region_prompts` needs a mask that says which pixel belongs to which region; give one.")
    if isinstance(mask, RegionMask):
        return mask.labels
    with PIL.Image.open(mask.path) as picture:
        if picture.mode != "P":
            raise ValueError(
                f"mask {str(mask.path)!r} does not say which pixel belongs to which region; give the one of several"
                " colours that was written with the picture."
            )
        return picture.copy()


def regions_in(labels: PIL.Image.Image) -> list[PIL.Image.Image]:
    """The masks in what [`label`] made, the first region's first: of mode `L`, 255 = edit, none over another."""
    numbers = PIL.Image.fromarray(np.asarray(labels))  # not the colours
    count: int = numbers.getextrema()[1]  # type: ignore[assignment]  # a single number, its mode is L
    return [numbers.point([255 * (level == number) for level in range(256)]) for number in range(1, count + 1)]


def without_what_is_covered(masks: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Masks of mode `L`, each without what later ones cover."""
    parts, covered = [], PIL.Image.new("L", masks[0].size)
    for mask in reversed(masks):
        parts.append(PIL.ImageChops.subtract(mask, covered))
        covered = PIL.ImageChops.lighter(mask, covered)
    return parts[::-1]
