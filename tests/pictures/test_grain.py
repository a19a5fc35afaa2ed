"""Grain made anew is that of the photo: its level, spectrum and colours, and nothing of what the photo shows."""

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

from blended_diffusion.pictures.grain import GRAIN_TILE, add_grain, find_grain, make_grain


SIZE = 256
SQUARE = (64, 64, 192, 192)


def grainy(blur: float = 0.0, level: float = 8.0, colour=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Grain of one sheet, `(256, 256, 3)`: blurred noise whose channels go together, scaled by `colour`."""
    noise = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    noise = gaussian_filter(noise, blur) if blur else noise
    return level * (noise / noise.std())[..., None] * np.asarray(colour)


def picture(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


@pytest.fixture
def mask() -> PIL.Image.Image:
    mask = PIL.Image.new("L", (SIZE, SIZE))
    mask.paste(255, (100, 100, 156, 156))
    return mask


def lag(grain: np.ndarray) -> float:
    """How alike neighbouring pixels are, −1…1."""
    return float(np.corrcoef(grain[:, 1:].ravel(), grain[:, :-1].ravel())[0, 1])


@pytest.mark.parametrize("blur", [0.0, 0.6, 1.0])
def test_level_and_spectrum_are_the_photos(mask, blur):
    photo = grainy(blur)
    grain = make_grain(find_grain(picture(120 + photo), mask, SQUARE, scale=8.0), seed=1)
    fine = photo - gaussian_filter(photo, (4, 4, 0))
    assert grain.shape == (GRAIN_TILE, GRAIN_TILE, 3)
    assert grain.std() == pytest.approx(fine.std(), rel=0.15)
    assert lag(grain) == pytest.approx(lag(fine), abs=0.1)
    assert abs(grain.mean()) < 0.3


def test_colours_go_together_as_the_photos(mask):
    grain = make_grain(find_grain(picture(120 + grainy(colour=(1, 0.5, -0.5))), mask, SQUARE, 8.0), seed=1)
    red, green, blue = (grain[..., channel].ravel() for channel in range(3))
    assert np.std(green) == pytest.approx(np.std(red) / 2, rel=0.1)
    assert np.corrcoef(red, green)[0, 1] > 0.9 and np.corrcoef(red, blue)[0, 1] < -0.9


def test_only_what_the_models_size_cannot_hold_counts(mask):
    """Of coarse blotches next to nothing is lost, and so next to nothing is added."""
    patches = find_grain(picture(120 + grainy(blur=6.0, level=20)), mask, SQUARE, scale=3.0)
    assert patches.std() < 2


def test_texture_is_not_taken_for_grain(mask):
    pixels = 120 + grainy(level=3)
    pixels[:, 80:] += 60 * np.sign(np.sin(np.arange(SIZE) * 1.3))[None, 80:, None]
    assert make_grain(find_grain(picture(pixels), mask, SQUARE, 3.0), 1).std() == pytest.approx(3, rel=0.2)


def test_black_and_white_hide_their_grain_and_do_not_count(mask):
    pixels = 120 + grainy(level=5)
    pixels[:, :100], pixels[:, 200:] = 0, 255
    assert make_grain(find_grain(picture(pixels), mask, SQUARE, 3.0), 1).std() == pytest.approx(5, rel=0.2)


def test_nothing_under_the_mask_is_looked_at(mask):
    pixels = 120 + grainy()
    other = pixels.copy()
    other[np.asarray(mask) > 0] = 7
    for one, two in zip(*(find_grain(picture(each), mask, SQUARE, 4.0) for each in (pixels, other)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("size", [(20, 20), (256, 256)])
def test_where_there_is_nothing_to_look_at_there_is_none(size):
    photo = picture(120 + grainy()).resize(size)
    assert len(find_grain(photo, PIL.Image.new("L", size, 255), (0, 0, *size), 4.0)) == 0


def test_a_flat_photo_has_none(mask):
    flat = PIL.Image.new("RGB", (SIZE, SIZE), (90, 120, 30))
    assert np.abs(make_grain(find_grain(flat, mask, SQUARE, 4.0), 1)).max() < 1e-3


def test_the_seed_decides(mask):
    patches = find_grain(picture(120 + grainy()), mask, SQUARE, 8.0)
    np.testing.assert_array_equal(make_grain(patches, 1), make_grain(patches, 1))
    one, other = make_grain(patches, 1), make_grain(patches, 2)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


def test_it_is_the_photos_in_nothing_but_its_statistics(mask):
    """No copy of a patch is to be seen in it."""
    patches = find_grain(picture(120 + grainy()), mask, SQUARE, 8.0)
    grain = make_grain(patches, 1)[..., 0]
    patch = patches[0, ..., 0]
    spectrum = np.fft.rfft2(grain) * np.conj(np.fft.rfft2(patch, grain.shape))
    likeness = np.fft.irfft2(spectrum, grain.shape) / np.linalg.norm(patch) ** 2
    assert np.abs(likeness).max() < 0.3


def test_added_to_a_large_picture_it_goes_on(mask):
    grain = make_grain(find_grain(picture(120 + grainy(blur=1.0)), mask, SQUARE, 8.0), 1)
    large = PIL.Image.new("RGB", (700, 1200), (100, 100, 100))
    add_grain(large, grain)
    added = np.asarray(large, float) - 100
    assert added.std() == pytest.approx(grain.std(), rel=0.1)
    # across the borders of the tile neighbours are as alike as elsewhere
    for one, two in ((added[GRAIN_TILE - 1], added[GRAIN_TILE]), (added[:, GRAIN_TILE - 1], added[:, GRAIN_TILE])):
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] == pytest.approx(lag(added), abs=0.15)
