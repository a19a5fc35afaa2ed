"""The figures: what has not changed measures as nothing, what is worse measures as worse, and masks are exact."""

import numpy as np
import pytest
import torch
from lpips import LPIPS
from PIL import Image, ImageDraw, ImageFilter
from scipy.stats import binomtest
from torch import nn

from blended_diffusion.evaluation.figures import (
    background_difference,
    band,
    diversity,
    kernel_distance,
    rank_quality,
    seam,
    seam_lpips,
)


SIZE = 96
BOX = (30, 36, 65, 59)


def smooth_photo(seed: int, size: int = SIZE) -> Image.Image:
    """Something to see at every scale down to a few pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


@pytest.fixture
def photo() -> Image.Image:
    return smooth_photo(0)


@pytest.fixture
def mask() -> Image.Image:
    picture = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(picture).rectangle(BOX, fill=255)
    return picture


@pytest.fixture(scope="module")
def lpips() -> dict[bool, LPIPS]:
    """Untrained: enough for what holds of any network."""
    torch.manual_seed(0)
    return {spatial: LPIPS(net="alex", pnet_rand=True, spatial=spatial, verbose=False) for spatial in (False, True)}


class Colours(nn.Module):
    """Each channel's mean and spread."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        pixels = images.flatten(2).double() / 255
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)


def pasted(photo: Image.Image, mask: Image.Image, feather: float = 0) -> Image.Image:
    """A brighter edit inside the mask, hard-edged or softly blended inwards."""
    result = photo.copy()
    weights = np.asarray(mask)
    if feather:
        weights = np.minimum(weights, np.asarray(mask.filter(ImageFilter.GaussianBlur(feather))))
    brighter = photo.point(lambda level: min(255, level + 90))
    result.paste(brighter, (0, 0), Image.fromarray(weights))
    return result


@pytest.mark.slow
def test_nothing_changed_measures_as_nothing(photo, mask, lpips):
    assert background_difference(photo, photo.copy(), mask) == (0, 0.0)
    assert seam(photo, photo.copy(), mask, width=2) == 1.0
    assert seam_lpips(photo, photo.copy(), mask, lpips[True], width=2) == pytest.approx(0, abs=1e-9)


def test_background_is_what_the_mask_does_not_cover_to_the_pixel(photo, mask):
    left, top, right, bottom = BOX
    for x, y in [(left, top), (right, bottom)]:
        edited = photo.copy()
        edited.putpixel((x, y), (0, 255, 0))
        assert background_difference(photo, edited, mask) == (0, 0.0)
    for x, y in [(left - 1, top), (left, top - 1), (right + 1, bottom), (right, bottom + 1)]:
        edited = photo.copy()
        red, green, blue = photo.getpixel((x, y))
        edited.putpixel((x, y), (red, green - 7, blue + 3))
        greatest, mean = background_difference(photo, edited, mask)
        outside = SIZE * SIZE - (right - left + 1) * (bottom - top + 1)
        assert greatest == 7
        assert mean == pytest.approx(10 / (3 * outside))


def test_a_greater_level_does_not_wrap_round(mask):
    black, white = (Image.new("RGB", mask.size, level) for level in ("black", "white"))
    assert background_difference(black, white, mask) == background_difference(white, black, mask) == (255, 255.0)


def test_a_mask_without_background_or_edge_is_refused(photo, lpips):
    full, empty = (Image.new("L", photo.size, level) for level in (255, 0))
    with pytest.raises(ValueError, match="no background"):
        background_difference(photo, photo, full)
    for mask in (full, empty):
        with pytest.raises(ValueError, match="no edge"):
            seam(photo, photo, mask)
        with pytest.raises(ValueError, match="no edge"):
            seam_lpips(photo, photo, mask, lpips[True])


@pytest.mark.parametrize("width", [1, 3])
def test_the_band_is_as_wide_on_either_side(mask, width):
    left, top, right, bottom = BOX
    expected = np.zeros((SIZE, SIZE), bool)
    expected[top - width : bottom + width + 1, left - width : right + width + 1] = True
    expected[top + width : bottom - width + 1, left + width : right - width + 1] = False
    assert np.array_equal(band(mask, width).numpy(), expected)


def test_the_photos_border_is_no_edge():
    mask = Image.new("L", (20, 20), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 9, 19), fill=255)
    inside = band(mask, 2)
    assert inside[:, 8:12].all()
    assert inside.sum() == 20 * 4


def test_a_hard_edge_shows_more_than_a_soft_one(photo, mask):
    hard, soft = (seam(photo, pasted(photo, mask, feather), mask) for feather in (0, 6))
    assert hard > 1.5
    assert 1 < soft < hard - 0.3


def test_the_seam_is_looked_for_at_the_edge_alone(photo, mask):
    edited = photo.copy()
    left, top, right, bottom = BOX
    # Sobel's filter reaches one pixel further than the band
    ImageDraw.Draw(edited).rectangle((left + 3, top + 3, right - 3, bottom - 3), fill="red")
    ImageDraw.Draw(edited).rectangle((0, 0, 20, SIZE), fill="red")
    assert seam(photo, edited, mask, width=2) == 1.0
    assert seam(photo, edited, mask, width=3) != 1.0


def test_the_gradient_is_in_levels_a_pixel_whatever_its_direction():
    ramp = np.tile(np.arange(SIZE, dtype=np.uint8), (SIZE, 1))
    gentle = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    steep = Image.fromarray(np.stack([2 * ramp.T] * 3, axis=-1))
    mask = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(mask).rectangle((30, 30, 60, 60), fill=255)
    assert seam(gentle, steep, mask) == pytest.approx(2)


def test_seam_lpips_is_the_mean_of_the_map_over_the_band(photo, mask, lpips):
    edited = pasted(photo, mask)
    first, second = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in (photo, edited)
    )
    with torch.no_grad():
        distances = lpips[True](first, second)[0, 0]
    expected = distances[band(mask, 3)].mean().item()
    assert seam_lpips(photo, edited, mask, lpips[True], width=3) == pytest.approx(expected, rel=1e-4)
    assert expected > 1.2 * distances[:, :8].mean().item()


def test_seam_lpips_needs_the_map(photo, mask, lpips):
    with pytest.raises(ValueError, match="spatial=True"):
        seam_lpips(photo, photo, mask, lpips[False])


def test_diversity_is_the_mean_over_pairs(lpips):
    images = [smooth_photo(seed, 64) for seed in range(3)]
    pairs = [diversity([images[i], images[j]], lpips[False]) for i, j in [(0, 1), (0, 2), (1, 2)]]
    assert min(pairs) > 0
    assert diversity(images, lpips[False]) == pytest.approx(np.mean(pairs), rel=1e-4)
    assert diversity(images[::-1], lpips[False]) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_candidates_that_are_alike_have_no_diversity(photo, lpips):
    assert diversity([photo] * 7, lpips[False]) == pytest.approx(0, abs=1e-9)  # 21 pairs, more than one batch


def test_more_different_candidates_are_more_diverse(photo, lpips):
    def changed(amount):
        return [Image.blend(photo, smooth_photo(seed), amount) for seed in (1, 2, 3)]

    assert 0 < diversity(changed(0.1), lpips[False]) < diversity(changed(0.5), lpips[False])


def coloured(count: int, seed: int, brightness: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    pixels = random.normal(brightness, 30, (count, 16, 16, 3)) + random.normal(0, 20, (count, 1, 1, 3))
    return [Image.fromarray(picture) for picture in pixels.clip(0, 255).astype(np.uint8)]


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
class TestKernelDistance:
    def test_halves_of_one_kind_are_near_and_another_kind_is_far(self):
        real = coloured(60, seed=0, brightness=100)
        near, spread = kernel_distance(real[:30], real[30:], Colours(), subset_size=25)
        far, _ = kernel_distance(real[:30], coloured(30, seed=1, brightness=170), Colours(), subset_size=25)
        farther, _ = kernel_distance(real[:30], coloured(30, seed=1, brightness=220), Colours(), subset_size=25)
        assert abs(near) < 0.005
        assert spread > 0
        assert 10 * abs(near) < far < farther

    def test_it_is_the_unbiased_estimate_of_the_squared_mmd(self):
        real, made = coloured(8, seed=0, brightness=100), coloured(8, seed=1, brightness=150)
        x, y = (
            Colours()(torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in s])) for s in (real, made)
        )

        def kernel(a, b):
            return (a @ b.T / a.shape[1] + 1) ** 3

        within = sum((kernel(a, a).sum() - kernel(a, a).diag().sum()) / (8 * 7) for a in (x, y))
        expected = (within - 2 * kernel(x, y).mean()).item()
        mean, spread = kernel_distance(real, made, Colours(), subset_size=8, subsets=3)
        assert mean == pytest.approx(expected, rel=1e-6)
        assert spread == pytest.approx(0, abs=1e-12)

    def test_the_seed_decides_and_the_global_generator_is_left_alone(self):
        real, made = coloured(20, seed=0, brightness=100), coloured(20, seed=1, brightness=110)
        before = torch.random.get_rng_state()
        first = kernel_distance(real, made, Colours(), subset_size=10, subsets=5)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(3)
        assert kernel_distance(real, made, Colours(), subset_size=10, subsets=5) == first
        assert kernel_distance(real, made, Colours(), subset_size=10, subsets=5, seed=1) != first

    def test_a_subset_larger_than_the_set_is_refused(self):
        real = coloured(5, seed=0, brightness=100)
        with pytest.raises(ValueError, match="subset_size"):
            kernel_distance(real, real, Colours(), subset_size=6)


def test_rank_quality_rewards_the_right_order():
    right, wrong = [0.9, 0.5, 0.1], [0.1, 0.5, 0.9]
    assert rank_quality([right, right]).agreement == pytest.approx(1)
    assert rank_quality([wrong]).agreement == pytest.approx(-1)
    both = rank_quality([right, wrong])
    assert both.agreement == pytest.approx(0)
    assert both.first == pytest.approx(0.5)
    assert both.mean == pytest.approx(0.5)


def test_rank_quality_looks_at_the_order_within_an_edit_alone():
    quality = rank_quality([[0.9, 0.8], [0.2, 0.1], [0.3, 0.3, 0.3], [0.4]])
    assert quality.agreement == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert quality.first == pytest.approx((0.9 + 0.2 + 0.3 + 0.4) / 4)
    assert quality.mean == pytest.approx((0.85 + 0.15 + 0.3 + 0.4) / 4)


def test_the_interval_that_the_docstring_names_is_wilsons():
    interval = binomtest(8, 10).proportion_ci(method="wilson")
    z, p, n = 1.959964, 0.8, 10
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    half /= 1 + z * z / n
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
