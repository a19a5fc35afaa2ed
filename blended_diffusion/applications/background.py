"""Another background behind a thing: all but the foreground is painted, and the foreground keeps soft edges.

What belongs here decides what of the picture is painted, how much of each pixel at the foreground's edge is foreground
(the matte), and puts the two together. The painting is the editor's.
"""

from dataclasses import replace

import kornia
import numpy as np
import PIL.Image
import PIL.ImageChops
import torch
from scipy.ndimage import distance_transform_edt, uniform_filter

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.masks import grow
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of


# of a soft edge to either side of the mask's, as a share of the photo's shorter side, and at least in pixels
EDGE_SHARE, SMALLEST_EDGE = 0.01, 2.0

# of the guided filter: contrasts whose square is far below this are no edge (colours in [0, 1])
REGULARIZATION = 1e-4

# so much of either end of the matte counts as wholly one or the other
HAZE = 0.1

# side of the squares that the matte is estimated in, in pixels: memory does not grow with the photo
MATTE_TILE = 512


def replace_background(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    foreground: PIL.Image.Image | Mask,
    settings: EditSettings | str,
    edge: float | None = None,
    name: str = "",
) -> Edited:
    """Paints another background behind the foreground.

    The editor paints everything but the foreground's inside, so that nothing of the old background is left under its
    edge; then the foreground is put back by its [`matte`].

    Args:
        editor ([`Editor`]): paints the background. What a [`FolderEditor`] ranks and writes are the pictures before
            the foreground is put back.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        foreground (`PIL.Image.Image` or [`Mask`]): of mode `L` and the photo's size, 255 = keep, 0 = background.
        settings ([`EditSettings`] or `str`): what is wanted, or just the background's prompt.
        edge (`float`, *optional*): how far the soft edge reaches to either side of the mask's, in pixels. Left out, it
            is a hundredth of the photo's shorter side.
        name (`str`): of the edit.

    Returns:
        [`Edited`]: the finished pictures, in the order of the edit. Where the matte is 255 they are the photo, bit for
        bit.

    Raises:
        ValueError: the sizes differ, or there is no foreground or no background.
    """
    photo = picture_of(image)
    keep = picture_of(foreground)
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    if keep.size != photo.size:
        raise ValueError(
            f"foreground is {keep.width}×{keep.height} pixels (width×height) and the photo is"
            f" {photo.width}×{photo.height}; they must be the same size."
        )
    if keep.getextrema() != (0, 255):
        raise ValueError(
            f"foreground is {'black' if keep.getextrema()[1] == 0 else 'white'} all over; paint white what is to stay"
            " and black what is to be replaced."
        )
    alpha = matte(photo, keep, edge)
    # what the model makes of the photo's own pixels bleeds by its own pixel's width: that far too it paints anew
    bleeding = 1.5 * max(photo.size) / editor.painter.size
    inside = grow(keep, -(edge_width(photo, edge) + bleeding))
    painted = editor.edit(image, PIL.ImageChops.invert(inside), replace(settings, enforce_background=False), name)
    return replace(painted, images=[put_back(photo, one, alpha) for one in painted.images])


def edge_width(photo: PIL.Image.Image, edge: float | None) -> float:
    return max(SMALLEST_EDGE, EDGE_SHARE * min(photo.size)) if edge is None else edge


def matte(photo: PIL.Image.Image, foreground: PIL.Image.Image, edge: float | None = None) -> PIL.Image.Image:
    """How much of each pixel is foreground, judged from the photo's colours near the mask's edge.

    Within `edge` of the mask's edge it is the mask smoothed along the photo's own edges by a guided filter (He, Sun
    and Tang, "Guided Image Filtering", 2013); elsewhere it is the mask.

    Args:
        photo (`PIL.Image.Image`): of mode `RGB` or `RGBA`.
        foreground (`PIL.Image.Image`): of mode `L` and the photo's size, 0 or 255.
        edge (`float`, *optional*): in pixels; a hundredth of the photo's shorter side if left out.

    Returns:
        `PIL.Image.Image` of mode `L`: 255 = all foreground.
    """
    reach = edge_width(photo, edge)
    radius = int(np.ceil(reach))
    keep = np.asarray(foreground) > 0
    known = (distance_transform_edt(keep) > reach) | (distance_transform_edt(~keep) > reach)
    alpha = np.where(keep, 255, 0).astype(np.uint8)
    colours = np.asarray(photo.convert("RGB"))
    height, width = keep.shape
    halo = 2 * radius  # the filter smooths twice
    for top in range(0, height, MATTE_TILE):
        for left in range(0, width, MATTE_TILE):
            inner = (slice(top, min(top + MATTE_TILE, height)), slice(left, min(left + MATTE_TILE, width)))
            if known[inner].all():
                continue
            y, x = max(top - halo, 0), max(left - halo, 0)
            outer = (slice(y, min(top + MATTE_TILE + halo, height)), slice(x, min(left + MATTE_TILE + halo, width)))
            guide = torch.from_numpy(colours[outer].astype(np.float32) / 255).permute(2, 0, 1)[None]
            rough = torch.from_numpy(keep[outer].astype(np.float32))[None, None]
            smooth = kornia.filters.guided_blur(
                guide, rough, 2 * radius + 1, REGULARIZATION, border_type="replicate", separable=True
            )
            share = (smooth[0, 0, top - y :, left - x :][:MATTE_TILE, :MATTE_TILE].numpy() - HAZE) / (1 - 2 * HAZE)
            alpha[inner] = np.where(known[inner], alpha[inner], np.rint(255 * np.clip(share, 0, 1)))
    return PIL.Image.fromarray(alpha)


def put_back(photo: PIL.Image.Image, background: PIL.Image.Image, alpha: PIL.Image.Image) -> PIL.Image.Image:
    """The photo's foreground on another background.

    A pixel of the edge shows C = α·F + (1 − α)·B. Of the old background B the mean colour round it is taken for what
    shines through; the new one takes its place. What is left of C then is α·F, in the range that α allows.

    Args:
        photo, background (`PIL.Image.Image`): of one size, of mode `RGB` or `RGBA`.
        alpha (`PIL.Image.Image`): of mode `L`, 255 = all foreground.

    Returns:
        `PIL.Image.Image` of the photo's mode: its own pixels where `alpha` is 255, the background's where it is 0.
    """
    result = PIL.Image.composite(photo, background, alpha.point([0] * 128 + [255] * 128)).convert("RGB")
    weights = np.asarray(alpha)
    edge = (weights > 0) & (weights < 255)
    if edge.any():
        share = weights[edge].astype(np.float32) / 255
        old = weights == 0
        reach = 2 * int(np.ceil(max(distance_transform_edt(~old)[edge].max(), 1))) + 1
        nearby = uniform_filter(old.astype(np.float32), reach)[edge]
        bands = []
        pictures = [image.convert("RGB").split() for image in (photo, background, result)]
        for photo_band, new_band, band in zip(*pictures, strict=True):
            colour = np.asarray(photo_band, np.float32)
            behind = uniform_filter(colour * old, reach)[edge] / np.maximum(nearby, 1e-6)
            foreground = np.clip(colour[edge] - (1 - share) * behind, 0, 255 * share)
            values = np.array(band)
            values[edge] = np.rint(foreground + (1 - share) * np.asarray(new_band)[edge])
            bands.append(PIL.Image.fromarray(values))
        result = PIL.Image.merge("RGB", bands)
    if photo.mode == "RGBA":
        result.putalpha(photo.getchannel("A"))
    return result
