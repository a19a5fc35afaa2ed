"""The picture's own resolution: the square round the mask that the model sees, and the way back into the photo.

What belongs here is geometry on eight-bit pictures, and what hides the seam. What the model does in its square does
not.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import PIL.Image
import PIL.ImageChops
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_filter

from blended_diffusion.pictures import Box
from blended_diffusion.pictures.grain import add_grain, find_grain, lacking, make_grain


# rows of the mask whose distances are held as floating point at a time
BAND = 256

# how far inside the mask the seam is hidden, and the width over which its colours are averaged, in the model's pixels
SEAM_REACH, SEAM_WIDTH = 4.0, 2.0
# differences of colour well above this (of 0…255, over all channels) are the edit's own and stay
SEAM_TOLERANCE = 30.0

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
        rise (`float`, *optional*): how far inside the mask the edit fades in, in the photo's pixels. Left out, as far
            as one of the model's pixels.
        greys (`PIL.Image.Image`, *optional*): how much of the way each pixel may change, of mode `L` and the photo's
            size, 255 = all of it; 0 where the mask is 0 and nowhere else.
    """

    photo: PIL.Image.Image
    mask: PIL.Image.Image
    square: Box
    size: int
    rise: float | None = None
    greys: PIL.Image.Image | None = None

    @classmethod
    def around(cls, photo: PIL.Image.Image, mask: PIL.Image.Image, size: int, context: float) -> "Canvas":
        """The canvas whose square holds the mask with a margin of `context` times its longer side all round.

        Raises:
            ValueError: the mask is black all over, or so thin that nothing of it is left at the model's size.
        """
        canvas = cls(photo, mask, square_around(box_of(mask), photo.size, context), size)
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
        size = (self.size, self.size)
        seen = self.photo.crop(self.visible).convert("RGB")
        if self.visible == self.square:
            return seen.resize(size, PIL.Image.Resampling.LANCZOS)
        # what is mirrored is made small first: the square may be much larger than the photo
        left, top, right, bottom = self.square
        step = max(1, (right - left) // (4 * self.size))
        down = (max(-top, 0) / step, max(bottom - self.photo.height, 0) / step)
        across = (max(-left, 0) / step, max(right - self.photo.width, 0) / step)
        widths = [tuple(math.ceil(width) for width in pair) for pair in (down, across)]
        pixels = np.pad(np.asarray(seen.reduce(step)), (*widths, (0, 0)), mode="symmetric")
        x, y, side = widths[1][0] - across[0], widths[0][0] - down[0], (right - left) / step
        return PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))

    @cached_property
    def model_mask(self) -> PIL.Image.Image:
        """The mask at the model's size: white where at least half of a pixel's area is to be edited."""
        # PIL's crop is black past the border: nothing is edited there
        coverage = self.mask.crop(self.square).resize((self.size, self.size), PIL.Image.Resampling.BOX)
        return coverage.point([0] * 128 + [255] * 128)

    @cached_property
    def model_greys(self) -> PIL.Image.Image:
        """How much each of the model's pixels may change, of mode `L`: black where [`Canvas.model_mask`] is.

        Elsewhere it is the mean grey of what of the pixel is to be edited at all, so that the mask's edge, where a
        pixel is covered in part, makes no greys of its own; without greys it is white.
        """
        if self.greys is None:
            return self.model_mask
        size = (self.size, self.size)
        grey, coverage = (
            np.asarray(one.crop(self.square).resize(size, PIL.Image.Resampling.BOX), np.float32)
            for one in (self.greys, self.mask)
        )
        mean = np.rint(255 * grey / np.maximum(coverage, 1)).clip(1, 255)
        return PIL.Image.fromarray(np.where(np.asarray(self.model_mask) > 0, mean, 0).astype(np.uint8))

    @cached_property
    def weights(self) -> PIL.Image.Image:
        """How much of the edit to take in the visible part, of mode `L`: 0 outside the mask, rising inside it.

        Unless `rise` says otherwise, they rise over the width of one of the model's pixels, which cannot know where in
        it the edge lies; and at most half way into the mask.
        """
        side = self.square[2] - self.square[0]
        return feather(self.mask.crop(self.visible), side / self.size if self.rise is None else self.rise)

    @cached_property
    def grain(self) -> np.ndarray:
        """The photo's grain near the mask that the model's size cannot hold: see [`find_grain`]."""
        return find_grain(self.photo, self.mask, self.visible, (self.square[2] - self.square[0]) / self.size)

    def paste(
        self, edited: PIL.Image.Image, keep_background: bool = True, grain_seed: int | None = None
    ) -> PIL.Image.Image:
        """The photo with the model's picture put back.

        Where the square is larger than the model's picture, [`settle`] hides the seam, and what that is too small to
        show of the photo stays with what is kept of it: by 1 − g where the greys say g.

        Args:
            edited (`PIL.Image.Image`): of mode `RGB`, square; of the model's size or another.
            keep_background (`bool`): take the photo's own pixels outside the mask, bit for bit; otherwise the whole
                square is the model's.
            grain_seed (`int`, *optional*): give what is enlarged the grain that the photo has round the mask, of this
                seed.

        Returns:
            `PIL.Image.Image` of the photo's mode and size. An alpha channel is the photo's own.
        """
        if edited.width != self.size:
            return replace(self, size=edited.width).paste(edited, keep_background, grain_seed)
        left, top, right, bottom = self.visible
        scale = self.size / (self.square[2] - self.square[0])
        part = (
            (left - self.square[0]) * scale,
            (top - self.square[1]) * scale,
            (right - self.square[0]) * scale,
            (bottom - self.square[1]) * scale,
        )

        def enlarged(picture: PIL.Image.Image) -> PIL.Image.Image:
            return picture.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC, box=part)

        weights = self.weights if keep_background else None
        if weights is not None and scale < 1:
            edited, share = settle(self.model_image, edited, self.model_mask)
            weights = PIL.ImageChops.multiply(weights, enlarged(share))
        patch = enlarged(edited)
        greys = None if self.greys is None else self.greys.crop(self.visible)
        if keep_background and scale < 1 and grain_seed is not None and len(self.grain):
            outside = PIL.ImageChops.invert(self.mask.crop(self.visible))
            present = find_grain(patch, outside, (0, 0, *patch.size), 1 / scale)
            plain = patch if greys is None else patch.copy()
            add_grain(patch, make_grain(self.grain, grain_seed) * lacking(self.grain, present))
            patch = patch if greys is None else PIL.Image.composite(patch, plain, greys)
        if keep_background and scale < 1 and greys is not None:
            add_lost_detail(patch, self.photo.crop(self.visible), enlarged(self.model_image), greys)
        # for RGBA this drops the alpha channel and leaves the colours alone, also under transparent pixels
        result = self.photo.convert("RGB") if self.photo.mode == "RGBA" else self.photo.copy()
        result.paste(patch, (left, top), weights)
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
            rise=None if self.rise is None else self.rise * scale,
            greys=None
            if self.greys is None
            else self.greys.crop(self.visible).resize((width, height), PIL.Image.Resampling.NEAREST),
        )


def from_near(
    photo: PIL.Image.Image, mask: PIL.Image.Image | None, context: float, longest: int
) -> tuple[Box, tuple[int, int]]:
    """The part of a photo to look at, all of it without a mask, and its width and height for sheets.

    Args:
        photo, mask (`PIL.Image.Image`): of one size, the mask *optional*.
        context (`float`): margin round the mask, as a share of its longer side.
        longest (`int`): of the longer side on the sheet.
    """
    view = (0, 0, *photo.size)
    if mask is not None:
        view = Canvas(photo, mask, square_around(box_of(mask), photo.size, context), 1).visible
    width, height = view[2] - view[0], view[3] - view[1]
    scale = longest / max(width, height)
    return view, (max(1, round(width * scale)), max(1, round(height * scale)))


def box_of(mask: PIL.Image.Image) -> Box:
    """The box of all in a mask that is not 0.

    Raises:
        ValueError: it is 0 all over.
    """
    box = mask.getbbox()
    if box is None:
        raise ValueError("The mask is black all over; paint white what is to be edited.")
    return box


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


def settle(
    source: PIL.Image.Image, edited: PIL.Image.Image, mask: PIL.Image.Image
) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Hides the seam inside the mask, where the edit goes on with what lies outside; an edge of its own stays.

    A small step of colour across the mask's edge is taken out, the correction fading away inside. Where the edit then
    shows near the edge what was there before, the photo itself may be taken, as sharp as it is. Both let go where the
    colours differ by more than [`SEAM_TOLERANCE`]: they are weighted by exp(−d²/T²).

    Args:
        source, edited (`PIL.Image.Image`): of mode `RGB` and one size.
        mask (`PIL.Image.Image`): of mode `L` and that size, 255 = edit, 0 = keep.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: the edit with its colours corrected inside the mask, of mode `RGB`,
        and how much of it to take, of mode `L`.
    """
    inside = np.asarray(mask) > 0
    if inside.all():
        return edited, PIL.Image.new("L", edited.size, 255)
    before, after = np.asarray(source, np.float32), np.asarray(edited, np.float32)
    # two pixels on either side of the edge; the picture's border is none
    within = inside & ~binary_erosion(inside, iterations=2, border_value=1)
    without = ~inside & binary_dilation(inside, iterations=2)

    def along_the_edge(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
        # normalised convolution (Knutsson & Westin 1993)
        weight = gaussian_filter(where.astype(np.float32), SEAM_WIDTH)[..., None]
        sums = gaussian_filter(pixels * where[..., None], (SEAM_WIDTH, SEAM_WIDTH, 0))
        return sums / np.maximum(weight, 1e-6)

    def likeness(difference: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(difference).sum(-1, keepdims=True) / SEAM_TOLERANCE**2)

    depth = distance_transform_edt(inside)
    rest = np.clip(1 - (depth - 1) / min(SEAM_REACH, depth.max()), 0, 1)[..., None]
    step = along_the_edge(before, without) - along_the_edge(after, within)
    step = along_the_edge(step * likeness(step), within)
    after = after + np.where(inside[..., None], step * rest**2 * (3 - 2 * rest), 0)

    share = 1 - rest * likeness(gaussian_filter(after - before, (0.7, 0.7, 0)))
    return (
        PIL.Image.fromarray(np.rint(after).clip(0, 255).astype(np.uint8)),
        PIL.Image.fromarray(np.rint(255 * share[..., 0]).astype(np.uint8)),
    )


def add_lost_detail(
    patch: PIL.Image.Image, photo: PIL.Image.Image, seen: PIL.Image.Image, greys: PIL.Image.Image
) -> None:
    """Adds to `patch` what the model did not see of the photo, by 1 − g, in place and band by band.

    What has hardly changed is then as sharp as the photo, and exactly the photo where the model's picture is what it
    saw and g is 0.

    Args:
        patch (`PIL.Image.Image`): the edit, of mode `RGB`.
        photo (`PIL.Image.Image`), seen (`PIL.Image.Image`): the same part of the photo, as it is and as the model saw
            it, enlarged.
        greys (`PIL.Image.Image`): of mode `L`: g, 255 = 1.
    """
    for top in range(0, patch.height, BAND):
        box = (0, top, patch.width, min(top + BAND, patch.height))
        edit, whole, part = (np.asarray(one.crop(box).convert("RGB"), np.float32) for one in (patch, photo, seen))
        kept = 1 - np.asarray(greys.crop(box), np.float32)[..., None] / 255
        edited = np.rint(edit + kept * (whole - part)).clip(0, 255).astype(np.uint8)
        patch.paste(PIL.Image.fromarray(edited), (0, top))
