"""Masks that need no network: boxes, polygons, transparency, differences; and masks made larger, smaller, inverted.

What belongs here is geometry on masks. Coordinates are in pixels of the upright photo, from its upper left corner, and
lie between pixels: the box 0, 0, 2, 1 holds the first two pixels of the first row.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
from scipy import ndimage


# of the Gaussian that JPEG's noise does not survive, in pixels
NOISE_GRAIN = 2.0

Point = tuple[float, float]


def from_box(size: tuple[int, int], box: tuple[float, float, float, float]) -> PIL.Image.Image:
    """A rectangle.

    Args:
        size (`tuple[int, int]`): the photo's `(width, height)`.
        box (`tuple[float, float, float, float]`): left, top, right, bottom, rounded to whole pixels.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 inside.

    Raises:
        ValueError: the box is empty or reaches past the photo.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    written = ",".join(f"{edge:g}" for edge in box)
    if left >= right or top >= bottom:
        raise ValueError(f"The box {written} is empty; give left,top,right,bottom with left < right and top < bottom.")
    check_inside([(left, top), (right, bottom)], size, f"box {written}")
    mask = PIL.Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    return mask


def from_polygon(size: tuple[int, int], points: Sequence[Point]) -> PIL.Image.Image:
    """What a line through all points, and back to the first, goes round.

    Args:
        size (`tuple[int, int]`): the photo's `(width, height)`.
        points (`Sequence[tuple[float, float]]`): `(x, y)` of the corners, in their order.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 inside and where the line passes.

    Raises:
        ValueError: there are less than three points, one is outside the photo, or there is nothing between them.
    """
    written = f"polygon {' '.join(f'{x:g},{y:g}' for x, y in points)}"
    if len(points) < 3:
        raise ValueError(f"The {written} has {len(points)} corners; give at least three.")
    check_inside(points, size, written)
    mask = PIL.Image.new("L", size)
    # Pillow's coordinates are those of the pixels' middles
    PIL.ImageDraw.Draw(mask).polygon([(x - 0.5, y - 0.5) for x, y in points], fill=255)
    if mask.getbbox() is None:
        raise ValueError(f"The {written} has nothing inside; give corners that lie apart.")
    return mask


def from_alpha(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Where a picture is opaque: a cut-out object, or what was painted on an empty layer.

    Args:
        picture (`PIL.Image.Image`): of any mode.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 where the picture is at least half opaque.

    Raises:
        ValueError: the picture has no transparency, or is transparent everywhere.
    """
    if not picture.has_transparency_data:
        raise ValueError("The picture has no transparency; give one with an alpha channel, such as a PNG.")
    mask = picture.convert("RGBA").getchannel("A").point([0] * 128 + [255] * 128)
    if mask.getbbox() is None:
        raise ValueError("The picture is transparent everywhere; give one that is opaque where the photo is edited.")
    return mask


def from_difference(
    photo: PIL.Image.Image, other: PIL.Image.Image, tolerance: float = 24, margin: float = 4
) -> PIL.Image.Image:
    """What two pictures of one scene differ in: for instance a photo and what somebody has painted over it.

    Differences count near where they survive smoothing. The noise of JPEG files does not, being as often above as
    below. Specks smaller than a hundredth of the photo's shorter side are dropped, and holes are filled.

    Args:
        photo, other (`PIL.Image.Image`): of one size. Transparency is compared if both have it.
        tolerance (`float`): how much the same place may differ in any channel, of 255.
        margin (`float`): how far to grow what is found, in pixels.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 where they differ.

    Raises:
        ValueError: the sizes differ, or the pictures do not.
    """
    if photo.size != other.size:
        raise ValueError(
            f"The pictures to compare are {photo.width}×{photo.height} and {other.width}×{other.height} pixels"
            " (width×height); they must be the same size."
        )
    mode = "RGBa" if photo.mode == other.mode == "RGBA" else "RGB"  # colours that nobody sees do not count
    largest = np.zeros(photo.size[::-1], np.float32)
    smoothed = np.zeros_like(largest)
    for before, after in zip(photo.convert(mode).split(), other.convert(mode).split(), strict=True):
        change = np.subtract(np.asarray(after), np.asarray(before), dtype=np.float32)
        np.maximum(largest, np.abs(change), out=largest)
        np.maximum(smoothed, np.abs(ndimage.gaussian_filter(change, NOISE_GRAIN)), out=smoothed)
    near = grow(mask_where(smoothed > tolerance), 3 * NOISE_GRAIN)
    found = without_specks(mask_where((largest > tolerance) & (np.asarray(near) > 0)))
    if found.getbbox() is None:
        raise ValueError(
            f"The two pictures show the same: no part of them differs by more than {tolerance:g} of 255; paint more,"
            " or tolerate less."
        )
    return without_holes(grow(found, margin))


def grow(mask: PIL.Image.Image, pixels: float) -> PIL.Image.Image:
    """The mask with everything within `pixels` of it; if that is negative, without what is that near to its edge.

    The photo's border is no edge: a mask that reaches it goes on behind it.

    Args:
        mask (`PIL.Image.Image`): of mode `L`, 0 or 255.
        pixels (`float`): how far the edge moves outwards, rounding what was cornered.
    """
    if pixels == 0 or mask.getextrema()[0] == 255:
        return mask
    if pixels < 0:
        return _changed(mask, 1, lambda inside: ndimage.distance_transform_edt(inside) > -pixels)
    return _changed(mask, math.ceil(pixels), lambda inside: ndimage.distance_transform_edt(~inside) <= pixels)


def invert(mask: PIL.Image.Image) -> PIL.Image.Image:
    """The mask of all that was to be kept."""
    return PIL.ImageOps.invert(mask)


def without_specks(mask: PIL.Image.Image) -> PIL.Image.Image:
    """The mask without parts of less area than a square with a hundredth of the photo's shorter side."""

    def large(inside: np.ndarray) -> np.ndarray:
        parts, _ = ndimage.label(inside)
        is_large = np.bincount(parts.ravel()) >= (min(mask.size) / 100) ** 2
        is_large[0] = False
        return is_large[parts]

    return _changed(mask, 0, large)


def without_holes(mask: PIL.Image.Image) -> PIL.Image.Image:
    """The mask with everything in it that it goes all round."""
    return _changed(mask, 1, ndimage.binary_fill_holes)


def _changed(mask: PIL.Image.Image, margin: int, change: Callable[[np.ndarray], np.ndarray]) -> PIL.Image.Image:
    """The mask after `change` of what is at most `margin` pixels round it; the photo may be much larger."""
    box = mask.getbbox()
    if box is None:
        return mask
    left, top = max(box[0] - margin, 0), max(box[1] - margin, 0)
    near = (left, top, min(box[2] + margin, mask.width), min(box[3] + margin, mask.height))
    result = PIL.Image.new("L", mask.size)
    result.paste(mask_where(change(np.asarray(mask.crop(near)) > 0)), (left, top))
    return result


def mask_where(inside: np.ndarray) -> PIL.Image.Image:
    """A mask of mode `L` that is 255 where `inside` of shape `(H, W)` is true."""
    return PIL.Image.fromarray(inside.astype(np.uint8) * 255)


def check_inside(points: Sequence[Point], size: tuple[int, int], what: str) -> None:
    if not all(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in points):
        raise ValueError(
            f"The {what} reaches past the photo, which is {size[0]}×{size[1]} pixels (width×height); give coordinates"
            " that lie on it."
        )
