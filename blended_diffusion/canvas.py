"""The picture's own resolution: the square round the mask that the model sees, and the way back into the photo.

What belongs here is geometry on eight-bit pictures. What the model does in its square does not.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import PIL.ImageChops
from scipy.ndimage import distance_transform_edt


Box = tuple[int, int, int, int]

# rows of the mask whose distances are held as floating point at a time
BAND = 256

# a square that fills less of the photo than this is worth looking at by itself
CLOSE_UP_BELOW = 0.45


@dataclass(frozen=True)
class Canvas:
    """A photo, the mask on it, and the square in which a model of `size`×`size` pixels works.

    Attributes:
        photo (`PIL.Image.Image`): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image`): of mode `L` and the photo's size, 255 = edit, 0 = keep.
        square (`tuple[int, int, int, int]`): left, top, right, bottom in the photo's pixels. It reaches past the
            border of a photo that is smaller; the model then sees the photo mirrored there.
        size (`int`): the width and height of the model's pictures.
    """

    photo: PIL.Image.Image
    mask: PIL.Image.Image
    square: Box
    size: int

    @classmethod
    def around(cls, photo: PIL.Image.Image, mask: PIL.Image.Image, size: int, context: float) -> "Canvas":
        """The canvas whose square holds the mask with a margin of `context` times its longer side all round.

        Raises:
            ValueError: the mask is so thin that nothing of it is left at the model's size.
        """
        canvas = cls(photo, mask, square_around(mask.getbbox(), photo.size, context), size)
        if canvas.model_mask.getbbox() is None:
            raise ValueError(
                f"The mask is too thin: nothing of it is left at the model's size of {size}×{size} pixels; paint with"
                " a broader brush."
            )
        return canvas

    @property
    def visible(self) -> Box:
        """The part of the square that lies on the photo."""
        left, top, right, bottom = self.square
        return max(left, 0), max(top, 0), min(right, self.photo.width), min(bottom, self.photo.height)

    @property
    def view(self) -> Box:
        """The part of the photo in which the edit can be judged: the visible square, or all if that is much of it."""
        left, top, right, bottom = self.visible
        share = (right - left) * (bottom - top) / (self.photo.width * self.photo.height)
        return self.visible if share < CLOSE_UP_BELOW else (0, 0, *self.photo.size)

    @cached_property
    def model_image(self) -> PIL.Image.Image:
        """The square at the model's size, of mode `RGB`."""
        left, top, right, bottom = self.square
        seen = self.photo.crop(self.visible).convert("RGB")
        if self.visible != self.square:
            down = (max(-top, 0), max(bottom - self.photo.height, 0))
            across = (max(-left, 0), max(right - self.photo.width, 0))
            seen = PIL.Image.fromarray(np.pad(np.asarray(seen), (down, across, (0, 0)), mode="symmetric"))
        return seen.resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)

    @cached_property
    def model_mask(self) -> PIL.Image.Image:
        """The mask at the model's size: white where at least half of a pixel's area is to be edited."""
        # PIL's crop is black past the border: nothing is edited there
        coverage = self.mask.crop(self.square).resize((self.size, self.size), PIL.Image.Resampling.BOX)
        return coverage.point([0] * 128 + [255] * 128)

    @cached_property
    def weights(self) -> PIL.Image.Image:
        """How much of the edit to take in the visible part, of mode `L`: 0 outside the mask, rising inside it.

        The rise is as wide as one of the model's pixels, which cannot know where in it the edge lies, and at most half
        way into the mask.
        """
        side = self.square[2] - self.square[0]
        return feather(self.mask.crop(self.visible), side / self.size)

    def paste(self, edited: PIL.Image.Image, keep_background: bool = True) -> PIL.Image.Image:
        """The photo with the model's picture put back.

        Args:
            edited (`PIL.Image.Image`): of mode `RGB` and the model's size.
            keep_background (`bool`): take the photo's own pixels outside the mask, bit for bit; otherwise the whole
                square is the model's.

        Returns:
            `PIL.Image.Image` of the photo's mode and size. An alpha channel is the photo's own.
        """
        left, top, right, bottom = self.visible
        scale = edited.width / (self.square[2] - self.square[0])
        part = (
            (left - self.square[0]) * scale,
            (top - self.square[1]) * scale,
            (right - self.square[0]) * scale,
            (bottom - self.square[1]) * scale,
        )
        patch = edited.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC, box=part)
        # for RGBA this drops the alpha channel and leaves the colours alone, also under transparent pixels
        result = self.photo.convert("RGB") if self.photo.mode == "RGBA" else self.photo.copy()
        result.paste(patch, (left, top), self.weights if keep_background else None)
        if self.photo.mode == "RGBA":
            result.putalpha(self.photo.getchannel("A"))
        return result

    def close_up(self, longest: int) -> "Canvas":
        """The visible part of the square as a canvas of its own, its longer side `longest` pixels, both sides even."""
        left, top, right, bottom = self.visible
        scale = longest / max(right - left, bottom - top)
        width, height = (max(2, 2 * round(extent * scale / 2)) for extent in (right - left, bottom - top))
        x, y = round((self.square[0] - left) * scale), round((self.square[1] - top) * scale)
        side = round((self.square[2] - self.square[0]) * scale)
        return Canvas(
            photo=self.photo.crop(self.visible).resize((width, height), PIL.Image.Resampling.LANCZOS),
            mask=self.mask.crop(self.visible).resize((width, height), PIL.Image.Resampling.NEAREST),
            square=(x, y, x + side, y + side),
            size=self.size,
        )


def square_around(box: Box, photo_size: tuple[int, int], context: float) -> Box:
    """The square round `box` with a margin of `context` times its longer side, moved rather than cut at the border.

    A square that is larger than the photo's shorter side gives up its margin first. If the box itself is longer than
    that side, the square reaches past the photo, evenly on both sides.
    """
    width, height = photo_size
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    side = round(longer * (1 + 2 * context))
    if side > min(width, height):
        side = min(width, height) if longer <= min(width, height) else min(side, max(width, height))

    def place(low: int, high: int, extent: int) -> int:
        if side > extent:
            return (extent - side) // 2
        return min(max((low + high - side) // 2, 0), extent - side)

    x, y = place(left, right, width), place(top, bottom, height)
    return x, y, x + side, y + side


def feather(mask: PIL.Image.Image, width: float) -> PIL.Image.Image:
    """Weights of mode `L`: 0 where the mask is 0, rising inside it with the distance from its edge to 255.

    Args:
        mask (`PIL.Image.Image`): of mode `L`, 0 or 255. Its border is no edge: what lies past it is not known.
        width (`float`): how far inside the weights reach 255, in pixels; with 1 or less the edge is hard. At most half
            of the mask's greatest depth, so that a small mask is edited too.
    """
    # a grid of a sixteenth of the width is fine enough for the rise
    step = max(1, int(width / 16))
    inside = np.asarray(mask.reduce(step)) >= 128
    width = width / step
    # distances up to 2·width need no more than the rows within the halo: whole photos go through in bands
    halo = int(np.ceil(width)) * 2 + 1
    bands = [(top, max(top - halo, 0), min(top + BAND + halo, len(inside))) for top in range(0, len(inside), BAND)]

    def distances(top: int, first: int, last: int) -> np.ndarray:
        rows = inside[first:last]
        if rows.all():
            return np.full(rows.shape, np.inf)[top - first :][:BAND]
        return distance_transform_edt(rows)[top - first :][:BAND]

    depth = 0.0
    for band in bands:
        depth = max(depth, distances(*band).max())
        if depth >= 2 * width:
            break
    width = max(1.0, min(width, depth / 2))
    weights = np.empty(inside.shape, np.uint8)
    for band in bands:
        weights[band[0] : band[0] + BAND] = np.rint(255 * np.minimum(distances(*band) / width, 1))
    part = (0, 0, mask.width / step, mask.height / step)
    large = PIL.Image.fromarray(weights).resize(mask.size, PIL.Image.Resampling.BILINEAR, box=part)
    return PIL.ImageChops.darker(large, mask)
