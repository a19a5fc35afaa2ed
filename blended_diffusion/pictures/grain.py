"""What an enlarged picture lacks beside a photo: the photo's fine grain, measured round the mask and made anew.

What belongs here measures and makes texture without content, of eight-bit pictures. Where it is put does not.
"""

import numpy as np
import PIL.Image
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

from blended_diffusion.pictures import Box


# a patch is this many of the model's pixels wide, within these bounds in the photo's pixels
PATCH, SMALLEST_PATCH, LARGEST_PATCH = 12, 24, 64
# patches looked at in each direction, and patches of which the grain is made
GRID, CHOSEN = 16, 8
# the share of the smoothest patches that is taken to be grain; what is rougher has texture of its own
SMOOTHEST = 0.25
# grey levels outside which a patch's grain has been cut off
DARKEST, BRIGHTEST = 5, 250

GRAIN_TILE = 512


def find_grain(photo: PIL.Image.Image, mask: PIL.Image.Image, around: Box, scale: float) -> np.ndarray:
    """What a picture enlarged `scale` times cannot hold of the photo, in smooth patches of it near the mask.

    The smoothest quarter of the patches outside the mask shows the photo's grain with hardly any texture of things
    (weak-textured patches, Liu, Tanaka & Okutomi 2013).

    Args:
        photo (`PIL.Image.Image`): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image`): of mode `L` and the photo's size; nothing but 0 is looked at.
        around (`tuple[int, int, int, int]`): left, top, right, bottom: where to look, and half as far again all round.
        scale (`float`): the photo's pixels to one of the model's.

    Returns:
        `np.ndarray` of shape `(N, P, P, 3)`, `float32`, of mean 0 in levels of 0…255; at most 8 patches, of which each
        stands for the same grain. None if the photo shows nothing smooth there.
    """
    size = int(np.clip(PATCH * scale, SMALLEST_PATCH, LARGEST_PATCH))
    left, top, right, bottom = around
    more_x, more_y = (right - left) // 2, (bottom - top) // 2
    xs = _places(max(left - more_x, 0), min(right + more_x, photo.width), size)
    ys = _places(max(top - more_y, 0), min(bottom + more_y, photo.height), size)
    patches = []
    for y in ys:
        for x in xs:
            box = (x, y, x + size, y + size)
            if mask.crop(box).getbbox() is not None:
                continue
            patch = np.asarray(photo.crop(box).convert("RGB"), np.float32)
            if not DARKEST < patch.mean() < BRIGHTEST:
                continue
            # half a pixel of the model's is the width of what it cannot tell apart
            patch = patch - gaussian_filter(patch, (scale / 2, scale / 2, 0))
            patches.append(patch - patch.mean((0, 1)))
    patches.sort(key=np.var)
    smooth = patches[: max(1, round(SMOOTHEST * len(patches)))][-CHOSEN:]
    return np.stack(smooth) if smooth else np.empty((0, size, size, 3), np.float32)


def make_grain(patches: np.ndarray, seed: int) -> np.ndarray:
    """Grain of the patches' spectrum, level and colours, and nothing else of theirs.

    White noise, filtered by each patch, divided by the root of its number of pixels, is a Gaussian field of the
    patch's own power spectrum (Galerne, Gousseau & Morel 2011, "Random Phase Textures").

    Args:
        patches (`np.ndarray` of shape `(N, P, P, 3)`): what [`find_grain`] found.
        seed (`int`): the same gives the same grain.

    Returns:
        `np.ndarray` of shape `(512, 512, 3)`, `float32`, in levels; it continues past its border from the other side.
    """
    random = np.random.default_rng(seed)
    rise = np.hanning(patches.shape[1] + 2)[1:-1]
    window = np.sqrt(np.outer(rise, rise), dtype=np.float32)[..., None]  # no hard edges to the patch
    spectrum = 0
    for patch in patches:
        spot = window * patch
        spot *= np.linalg.norm(patch) / np.maximum(np.linalg.norm(spot), 1e-6) / patches.shape[1]
        noise = random.standard_normal((GRAIN_TILE, GRAIN_TILE), np.float32)
        spectrum = spectrum + rfft2(noise)[..., None] * rfft2(spot, (GRAIN_TILE, GRAIN_TILE), axes=(0, 1))
    return irfft2(spectrum, (GRAIN_TILE, GRAIN_TILE), axes=(0, 1)) / np.float32(len(patches)) ** 0.5


def lacking(needed: np.ndarray, present: np.ndarray) -> np.float32:
    """The factor of grain of the level of `needed`, in 0…1, that fills up what is `present`: variances add.

    Args:
        needed, present (`np.ndarray` of shape `(N, P, P, 3)`): what [`find_grain`] found; none counts as 0.
    """
    level = np.square(needed).mean()
    there = np.square(present).mean() if len(present) else 0
    return np.sqrt(max(0, 1 - there / max(level, 1e-6)), dtype=np.float32)


def add_grain(picture: PIL.Image.Image, grain: np.ndarray) -> None:
    """Adds grain, repeated as often as need be, to a picture of mode `RGB`, in place and strip by strip."""
    columns = np.arange(picture.width) % GRAIN_TILE
    for top in range(0, picture.height, GRAIN_TILE):
        box = (0, top, picture.width, min(top + GRAIN_TILE, picture.height))
        strip = np.asarray(picture.crop(box)) + grain[: box[3] - top, columns]
        picture.paste(PIL.Image.fromarray(np.rint(strip).clip(0, 255).astype(np.uint8)), (0, top))


def _places(first: int, last: int, size: int) -> list[int]:
    """Where patches of `size` begin between `first` and `last`, evenly, neighbours at least half a patch apart."""
    room = last - first - size
    if room < 0:
        return []
    steps = min(GRID - 1, room // (size // 2))
    return [first + round(index * room / max(steps, 1)) for index in range(steps + 1)]
