"""Taking things out of a picture: the hole is filled from what surrounds it, and the best fill is kept.

What belongs here decides what a fill starts from and which of several fits best. The painting is the editor's.
"""

from dataclasses import replace

import numpy as np
import PIL.Image
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import coo_array
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import spsolve
from scipy.spatial.distance import cdist

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import Box
from blended_diffusion.pictures.canvas import box_of
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of, profile_of


# enough noise for grain and texture, too little for a new object
REMOVING_STRENGTH = 0.3

# pixels along the longer side of the grid that a smooth fill is computed on: it has no detail that needs more
FILL_GRID = 96

# what fills are compared with their surroundings by: patches of so many pixels in a view of so many
PATCH_SIDE, VIEW_SIDE = 5, 64

NOTHING_LEFT = "mask leaves nothing of the picture to fill the region from; leave more of it black."


def remove(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask,
    settings: EditSettings | str = "",
    name: str = "",
) -> Edited:
    """Fills a region as if nothing had been there.

    The edit starts from the region filled smoothly from its edge ([`smooth_fill`]), at a noise level from which the
    model adds texture and no new things. Fills are ranked by [`misfit`], because CLIP has nothing to say about them.

    Args:
        editor ([`Editor`]): makes the fills. What a [`FolderEditor`] ranks and writes is in the order of CLIP
            distances, which means nothing here if there is no prompt.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image` or [`Mask`]): of mode `L` and the picture's size, 255 = remove, 0 = keep.
        settings ([`EditSettings`] or `str`): of the fill, or just a prompt that describes the background; the empty
            one fills without guidance. A strength that is left out is [`REMOVING_STRENGTH`].
        name (`str`): of the edit.

    Returns:
        [`Edited`]: the best fit first; outside the mask the photo's own pixels.

    Raises:
        ValueError: the sizes differ, or the mask leaves nothing to fill from.
    """
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    settings = settings if settings.strength is not None else replace(settings, strength=REMOVING_STRENGTH)
    photo = picture_of(image)
    region = picture_of(mask)
    filled = smooth_fill(photo, region)
    misfit(filled, region)  # says at once if there are no surroundings to compare with
    start = editor.keep_photo(filled, name, profile_of(image))
    edited = editor.edit(start, mask, settings, name)
    misfits = [misfit(one, region) for one in edited.images]
    order = sorted(range(len(misfits)), key=lambda index: misfits[index])
    return Edited(
        [edited.images[index] for index in order],
        [edited.clip_distances[index] for index in order],
        [edited.seeds[index] for index in order],
    )


def smooth_fill(image: PIL.Image.Image, mask: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with a region filled as a membrane stretched over its edge: no corner, no texture, no thing.

    In the region every colour is the mean of its neighbours' (Laplace's equation); at its edge it is the picture's.

    Args:
        image (`PIL.Image.Image`): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image`): of mode `L` and the picture's size, 255 = fill.

    Returns:
        `PIL.Image.Image` of the size and mode of `image`. An alpha channel stays as it is.

    Raises:
        ValueError: the sizes differ, there is nothing to fill, or nothing to fill it from.
    """
    if mask.size != image.size:
        raise ValueError(
            f"mask is {mask.width}×{mask.height} pixels (width×height) and the picture is"
            f" {image.width}×{image.height}; they must be the same size."
        )
    if (masked := mask.getbbox()) is None:
        raise ValueError("mask is black all over; paint white what is to be removed.")
    left, top, right, bottom = box = around(masked, image.size)
    scale = max(1.0, max(right - left, bottom - top) / FILL_GRID)
    size = (round((right - left) / scale), round((bottom - top) / scale))
    hole = np.asarray(mask.crop(box).resize(size, PIL.Image.Resampling.BOX)) > 0
    if hole.all():
        raise ValueError(NOTHING_LEFT)
    colours = np.asarray(image.convert("RGB").crop(box).resize(size, PIL.Image.Resampling.BOX), np.float64)
    filled = PIL.Image.fromarray(np.rint(membrane(colours, hole)).astype(np.uint8))
    result = image.convert("RGB")
    result.paste(filled.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC), box, mask.crop(box))
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    return result


def around(box: Box, size: tuple[int, int]) -> Box:
    """`box` with a quarter of its longer side all round, as far as the picture goes."""
    left, top, right, bottom = box
    margin = max(1, max(right - left, bottom - top) // 4)
    return max(left - margin, 0), max(top - margin, 0), min(right + margin, size[0]), min(bottom + margin, size[1])


def membrane(colours: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Colours `(H, W, C)` with Laplace's equation solved where `hole` `(H, W)` is true."""
    pixels = np.arange(hole.size).reshape(hole.shape)
    pairs = [(pixels[:, :-1], pixels[:, 1:]), (pixels[:-1], pixels[1:])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    ones = np.ones(2 * len(one))
    neighbours = (ones, (np.concatenate([one, other]), np.concatenate([other, one])))
    system = laplacian(coo_array(neighbours, shape=(hole.size, hole.size)).tocsr()).tocsr()
    inside, values = hole.ravel(), colours.reshape(hole.size, -1).copy()
    outside = system[inside][:, ~inside] @ values[~inside]
    values[inside] = spsolve(system[inside][:, inside].tocsc(), -outside).reshape(-1, values.shape[1])
    return values.reshape(colours.shape)


def misfit(image: PIL.Image.Image, mask: PIL.Image.Image) -> float:
    """How unlike its surroundings a filled region looks: lower is better.

    The mean squared distance of the region's patches, those across its edge among them, to the most similar patch of
    its surroundings: the coherence of Simakov and others, "Summarizing Visual Data Using Bidirectional Similarity"
    (CVPR 2008). What is found nowhere round the region, a new thing or a seam, counts; what goes on there does not.

    Args:
        image (`PIL.Image.Image`): the filled picture.
        mask (`PIL.Image.Image`): of mode `L` and its size, 255 = filled. A quarter of its longer side round it are the
            surroundings.

    Returns:
        `float`: in squared steps of colour (of 255), for one channel of one pixel.

    Raises:
        ValueError: there are no surroundings as large as a patch.
    """
    left, top, right, bottom = box = around(box_of(mask), image.size)
    scale = max(1.0, max(right - left, bottom - top) / VIEW_SIDE)
    size = (max(PATCH_SIDE, round((right - left) / scale)), max(PATCH_SIDE, round((bottom - top) / scale)))
    seen = np.asarray(image.convert("RGB").crop(box).resize(size, PIL.Image.Resampling.BOX), np.float32)
    hole = np.asarray(mask.crop(box).resize(size, PIL.Image.Resampling.BOX)) > 0
    patches = sliding_window_view(seen, (PATCH_SIDE, PATCH_SIDE), axis=(0, 1)).reshape(-1, 3 * PATCH_SIDE**2)
    filled = sliding_window_view(hole, (PATCH_SIDE, PATCH_SIDE)).any(axis=(-1, -2)).ravel()
    if filled.all():
        raise ValueError(NOTHING_LEFT)
    nearest = cdist(patches[filled], patches[~filled], "sqeuclidean").min(axis=1)
    return float(nearest.mean() / patches.shape[1])
