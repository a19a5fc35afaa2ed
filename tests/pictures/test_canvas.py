"""The way from the photo to the model's square and back: nothing outside the mask may change, nothing be distorted."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from blended_diffusion.pictures.canvas import Canvas, feather, settle, square_around


EXAMPLES = Path(__file__).parents[2] / "examples"


def noise(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    channels = len(mode)
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


def ramps(width: int, height: int) -> PIL.Image.Image:
    """Smooth in both directions, so that resizing does little to it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.stack([x, y, 255 - x], axis=-1).round().astype(np.uint8))


def ellipse(width: int, height: int, box: tuple[int, int, int, int]) -> PIL.Image.Image:
    mask = PIL.Image.new("L", (width, height))
    PIL.ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def soft(width: int, height: int, sigma: float, level: float = 255) -> PIL.Image.Image:
    """Grey blotches of about `sigma` pixels."""
    field = gaussian_filter(np.random.default_rng(1).normal(size=(height, width)), sigma)
    return PIL.Image.fromarray(
        np.stack([(128 + level / 4 * field / field.std()).clip(0, 255)] * 3, -1).astype(np.uint8)
    )


class TestSquare:
    @pytest.mark.parametrize(
        ("box", "photo", "context", "square"),
        [
            ((40, 40, 60, 60), (100, 100), 0.5, (30, 30, 70, 70)),  # the margin all round
            ((40, 45, 60, 55), (100, 100), 0.5, (30, 30, 70, 70)),  # the longer side counts
            ((0, 0, 20, 20), (100, 100), 0.5, (0, 0, 40, 40)),  # moved from the corner, not cut
            ((90, 80, 100, 100), (100, 100), 0.5, (60, 60, 100, 100)),
            ((10, 10, 60, 60), (100, 80), 0.5, (0, 0, 80, 80)),  # the margin gives way first
            ((0, 10, 90, 40), (100, 50), 0.5, (0, -25, 100, 75)),  # longer than the photo is high
            ((0, 0, 30, 90), (50, 100), 0.0, (-20, 0, 70, 90)),
            ((7, 8, 8, 9), (100, 100), 0.5, (6, 7, 8, 9)),  # a single pixel
        ],
    )
    def test_it_is_moved_before_it_is_cut(self, box, photo, context, square):
        assert square_around(box, photo, context) == square

    def test_it_is_square_and_holds_the_mask_wherever_that_is(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            width, height = rng.integers(1, 200, 2).tolist()
            left, top = rng.integers(0, width), rng.integers(0, height)
            box = (left, top, rng.integers(left, width) + 1, rng.integers(top, height) + 1)
            x1, y1, x2, y2 = square_around(box, (width, height), rng.uniform(0, 2))
            assert x2 - x1 == y2 - y1
            assert x1 <= box[0] and y1 <= box[1] and x2 >= box[2] and y2 >= box[3]
            # it leaves the photo only where it is larger than it
            assert (x1 >= 0 and x2 <= width) or x2 - x1 > width
            assert (y1 >= 0 and y2 <= height) or y2 - y1 > height


class TestFeather:
    def test_it_rises_inside_the_mask_alone(self):
        mask = ellipse(120, 90, (20, 20, 100, 80))
        weights, inside = np.asarray(feather(mask, 9.0)), np.asarray(mask) > 0
        assert (weights[~inside] == 0).all()
        assert (weights[inside] > 0).all()
        depth = distance_transform_edt(inside)
        np.testing.assert_array_equal(weights, np.rint(255 * np.minimum(depth / 9, 1)))

    def test_bands_do_not_show(self):
        """Taller than a band, with edges near where bands meet."""
        inside = np.zeros((1400, 40), bool)
        inside[3:505, 2:] = inside[515:1030, :-1] = inside[1040:, 10:30] = True
        weights = np.asarray(feather(PIL.Image.fromarray(inside.astype(np.uint8) * 255), 7.5))
        np.testing.assert_array_equal(weights, np.rint(255 * np.minimum(distance_transform_edt(inside) / 7.5, 1)))

    def test_the_deepest_place_counts_wherever_it_is(self):
        inside = np.zeros((900, 80), bool)
        inside[3:6] = inside[500:890, 5:75] = True
        weights = np.asarray(feather(PIL.Image.fromarray(inside.astype(np.uint8) * 255), 12.0))
        np.testing.assert_array_equal(weights, np.rint(255 * np.minimum(distance_transform_edt(inside) / 12, 1)))

    def test_a_wide_rise_is_nearly_the_same(self):
        """It is computed on a coarser grid."""
        mask = ellipse(1001, 903, (100, 90, 900, 850))
        weights, inside = np.asarray(feather(mask, 100.0), int), np.asarray(mask) > 0
        assert (weights[~inside] == 0).all()
        exact = 255 * np.minimum(distance_transform_edt(inside) / 100, 1)
        assert np.abs(weights - exact).max() < 20

    def test_the_border_of_the_photo_is_no_edge(self):
        assert np.asarray(feather(PIL.Image.new("L", (30, 30), 255), 8.0)).min() == 255

    @pytest.mark.parametrize("width", [0.2, 1.0])
    def test_it_is_hard_at_the_models_own_size(self, width):
        mask = ellipse(40, 40, (5, 5, 30, 30))
        np.testing.assert_array_equal(feather(mask, width), mask)

    def test_a_small_mask_is_edited_in_full(self):
        weights = np.asarray(feather(ellipse(200, 200, (100, 100, 106, 106)), 50.0))
        assert weights.max() == 255


class TestCanvas:
    @pytest.mark.parametrize("grain_seed", [None, 3])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    @pytest.mark.parametrize("size", [(90, 70), (70, 90), (20, 60), (33, 33)])
    def test_nothing_outside_the_mask_changes(self, mode, size, grain_seed):
        photo = noise(*size, mode=mode)
        mask = ellipse(*size, (5, 10, size[0] - 2, size[1] - 15))
        result = Canvas.around(photo, mask, 16, 0.3).paste(noise(16, 16), grain_seed=grain_seed)
        assert (result.mode, result.size) == (photo.mode, photo.size)
        before, after, inside = np.asarray(photo), np.asarray(result), np.asarray(mask) > 0
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert (after[inside] != before[inside]).any()
        if mode == "RGBA":
            np.testing.assert_array_equal(after[..., 3], before[..., 3])

    def test_at_the_models_own_size_its_picture_is_taken_as_it_is(self):
        photo, edited = noise(16, 16), PIL.Image.fromarray(255 - np.asarray(noise(16, 16)))
        mask = ellipse(16, 16, (2, 0, 12, 15))
        result = Canvas.around(photo, mask, 16, 0.5).paste(edited)
        np.testing.assert_array_equal(result, PIL.Image.composite(edited, photo, mask))

    @pytest.mark.parametrize("size", [(200, 150), (300, 80), (80, 300)])
    def test_there_and_back_is_where_it_was(self, size):
        """What the model sees, put back unchanged, lies on the photo again, also where the square leaves it."""
        photo, mask = ramps(*size), PIL.Image.new("L", size, 255)
        canvas = Canvas.around(photo, mask, 128, 0.2)
        result = canvas.paste(canvas.model_image)
        difference = np.abs(np.asarray(result, int) - np.asarray(photo, int))
        # mirrored, the ramps have a kink at the border
        assert difference.max() <= 6 and difference.mean() < 0.5

    def test_past_the_border_the_model_sees_the_photo_mirrored_and_edits_nothing(self):
        canvas = Canvas(noise(8, 4), PIL.Image.new("L", (8, 4), 255), (0, -2, 8, 6), 8)
        seen, photo = np.asarray(canvas.model_image), np.asarray(canvas.photo)
        np.testing.assert_array_equal(seen, np.concatenate([photo[1::-1], photo, photo[:1:-1]]))
        covered = np.asarray(canvas.model_mask) > 0
        assert covered[2:6].all() and not covered[:2].any() and not covered[6:].any()

    def test_the_models_mask_is_white_where_half_is_covered(self):
        mask = PIL.Image.fromarray(np.repeat([[0, 0, 0, 255, 255, 0, 255, 255]], 8, axis=0).astype(np.uint8))
        canvas = Canvas(PIL.Image.new("RGB", (8, 8)), mask, (0, 0, 8, 8), 4)
        assert (np.asarray(canvas.model_mask) == [[0, 255, 255, 255]] * 4).all()

    def test_a_mask_of_lines_is_refused(self):
        mask = PIL.Image.new("L", (400, 400))
        PIL.ImageDraw.Draw(mask).rectangle((10, 10, 390, 390), outline=255)
        with pytest.raises(ValueError, match="too thin.*16×16"):
            Canvas.around(noise(400, 400), mask, 16, 0.5)

    def test_without_keeping_the_background_the_whole_square_is_the_models(self):
        canvas = Canvas.around(noise(40, 40), ellipse(40, 40, (18, 18, 22, 22)), 16, 0.5)
        result = np.asarray(canvas.paste(PIL.Image.new("RGB", (16, 16), "red"), keep_background=False))
        left, top, right, bottom = canvas.square
        assert (result[top:bottom, left:right] == (255, 0, 0)).all()
        outside = np.ones((40, 40), bool)
        outside[top:bottom, left:right] = False
        np.testing.assert_array_equal(result[outside], np.asarray(canvas.photo)[outside])

    @pytest.mark.parametrize("size", [(200, 150), (300, 80)])
    def test_the_close_up_shows_what_the_square_shows(self, size):
        photo, mask = ramps(*size), ellipse(*size, (30, 20, size[0] - 30, 70))
        canvas = Canvas.around(photo, mask, 64, 0.2)
        near = canvas.close_up(128)
        assert max(near.photo.size) == 128 and all(extent % 2 == 0 for extent in near.photo.size)
        edited = PIL.Image.new("RGB", (64, 64), "red")
        expected = canvas.paste(edited).crop(canvas.visible).resize(near.photo.size, PIL.Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(near.paste(edited), int) - np.asarray(expected, int))
        assert difference.mean() < 3

    @pytest.mark.parametrize(("side", "from_near"), [(20, True), (90, False)])
    def test_the_view_is_the_square_if_that_is_a_small_part(self, side, from_near):
        canvas = Canvas.around(noise(100, 100), ellipse(100, 100, (2, 2, side, side)), 8, 0.2)
        assert canvas.view == (canvas.visible if from_near else (0, 0, 100, 100))

    @pytest.mark.slow
    def test_a_large_photo_is_never_held_as_floating_point(self):
        size = (700, 8000)
        canvas = Canvas.around(noise(*size), ellipse(*size, (10, 10, 690, 7990)), 512, 0.5)
        edited = noise(512, 512)
        tracemalloc.start()
        canvas.paste(edited, grain_seed=3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # one channel of it in double precision would be this much
        assert peak < 8 * size[0] * size[1]

    @pytest.mark.slow
    def test_memory_grows_with_the_region_not_the_photo(self):
        edited, peaks = noise(16, 16), []
        for side in (400, 2000):
            canvas = Canvas.around(
                PIL.Image.new("RGB", (side, side), "grey"), ellipse(side, side, (50, 50, 250, 250)), 16, 0.2
            )
            tracemalloc.start()
            canvas.paste(edited, grain_seed=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.1 * peaks[0]

    def test_a_square_far_larger_than_the_photo_is_seen_as_it_would_be_in_full(self):
        """It is made small before it is mirrored."""
        photo = ramps(60, 4000)
        whole = PIL.Image.fromarray(np.pad(np.asarray(photo), ((0, 0), (1970, 1970), (0, 0)), mode="symmetric"))
        seen = Canvas(photo, PIL.Image.new("L", photo.size, 255), (-1970, 0, 2030, 4000), 16).model_image
        expected = whole.resize((16, 16), PIL.Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(seen, int) - np.asarray(expected, int)).max() <= 5


class TestGreys:
    """How much of the way each pixel may change."""

    def scene(self, level: int, mask: PIL.Image.Image | None = None) -> tuple[Canvas, Canvas]:
        """A canvas whose mask is this grey all over, and the one without greys."""
        mask = ellipse(256, 256, (60, 80, 170, 190)) if mask is None else mask
        plain = Canvas(noise(256, 256), mask, (0, 0, 256, 256), 32)
        return replace(plain, greys=mask.point([0] + [level] * 255)), plain

    def test_the_models_are_the_mean_of_what_is_edited(self):
        greys = PIL.Image.fromarray(np.repeat([[0, 0, 0, 90, 90, 0, 30, 80]], 8, axis=0).astype(np.uint8))
        canvas = Canvas(noise(8, 8), greys.point([0] + [255] * 255), (0, 0, 8, 8), 4, greys=greys)
        assert (np.asarray(canvas.model_greys) == [[0, 90, 90, 55]] * 4).all()

    def test_white_ones_make_no_difference(self):
        canvas, plain = self.scene(255)
        assert canvas.model_greys.tobytes() == plain.model_greys.tobytes() == plain.model_mask.tobytes()
        for keep_background in (True, False):
            mapped, edited = (one.paste(noise(32, 32), keep_background, grain_seed=3) for one in (canvas, plain))
            np.testing.assert_array_equal(mapped, edited)

    def test_what_hardly_changes_is_as_sharp_as_the_photo(self):
        """A square made small and put back, where the greys are dark: only white loses what is too fine."""
        lost = []
        for level in (1, 128, 255):
            canvas, _ = self.scene(level, PIL.Image.new("L", (256, 256), 255))
            result = canvas.paste(canvas.model_image)
            lost.append(np.abs(np.asarray(result, int) - np.asarray(canvas.photo, int)).mean())
        assert lost[0] < 1 and lost[1] == pytest.approx(lost[2] / 2, rel=0.05)

    def test_the_close_up_has_them_too(self):
        canvas, _ = self.scene(77)
        near = canvas.close_up(128)
        assert near.greys.getextrema() == (0, 77) and near.greys.size == near.mask.size


class TestSeam:
    """Eight of the photo's pixels to one of the model's; the mask is a disc of 24 of these."""

    @pytest.fixture
    def mask(self):
        return ellipse(512, 512, (160, 160, 352, 352))

    @pytest.fixture
    def depth(self, mask):
        """How many of the model's pixels it is to the mask's edge."""
        return distance_transform_edt(np.asarray(mask)) / 8

    def canvas(self, photo: PIL.Image.Image, mask: PIL.Image.Image) -> Canvas:
        return Canvas(photo, mask, (0, 0, 512, 512), 64)

    def test_a_small_step_of_colour_is_taken_out_at_the_edge_and_stays_inside(self, mask, depth):
        photo = ramps(512, 512)
        canvas = self.canvas(photo, mask)
        off = PIL.Image.fromarray((np.asarray(canvas.model_image, int) + (12, -8, 10)).clip(0, 255).astype(np.uint8))
        difference = np.abs(np.asarray(canvas.paste(off), int) - np.asarray(photo, int)).mean(-1)
        assert difference[(depth > 0) & (depth < 1.5)].mean() < 1.5
        assert difference[depth > 6].mean() == pytest.approx(10, abs=1)
        # and nowhere between does it jump
        levels = [difference[(depth >= low) & (depth < low + 0.5)].mean() for low in np.arange(0.5, 6, 0.5)]
        assert np.diff(levels).max() < 2.5

    def test_an_edge_of_the_edits_own_stays(self, mask, depth):
        photo = PIL.Image.new("RGB", (512, 512), (40, 90, 40))
        canvas = self.canvas(photo, mask)
        result = np.asarray(canvas.paste(PIL.Image.new("RGB", (64, 64), (200, 30, 60))), int)
        assert np.abs(result[depth > 1.2] - (200, 30, 60)).max() <= 1

    def test_where_the_edit_shows_what_was_there_the_photo_is_as_sharp_as_outside(self, mask, depth):
        photo = noise(512, 512)
        canvas = self.canvas(photo, mask)
        result = np.asarray(canvas.paste(canvas.model_image), int)
        detail = np.abs(result - np.asarray(photo, int)).mean(-1)
        assert detail[(depth > 0) & (depth < 1.2)].mean() < 10 < 40 < detail[depth > 6].mean()

    def test_at_the_models_own_size_nothing_is_settled(self):
        photo, mask = noise(64, 64), ellipse(64, 64, (24, 24, 40, 40))
        off = PIL.Image.fromarray((np.asarray(photo, int) + 9).clip(0, 255).astype(np.uint8))
        result = Canvas(photo, mask, (0, 0, 64, 64), 64).paste(off, grain_seed=1)
        np.testing.assert_array_equal(result, PIL.Image.composite(off, photo, mask))

    def test_without_an_edge_there_is_nothing_to_settle(self):
        edited = soft(16, 16, 2)
        corrected, share = settle(noise(16, 16), edited, PIL.Image.new("L", (16, 16), 255))
        assert corrected is edited and share.getextrema() == (255, 255)

    def test_a_small_mask_is_edited_in_its_middle(self):
        photo, mask = PIL.Image.new("RGB", (512, 512), (100, 100, 100)), ellipse(512, 512, (248, 248, 272, 272))
        result = self.canvas(photo, mask).paste(PIL.Image.new("RGB", (64, 64), (116, 116, 116)))
        assert result.getpixel((260, 260))[0] > 105

    def test_the_seam_is_no_steeper_than_at_the_models_own_size(self):
        """The edited photo made small beside the same edit of the small photo."""
        pytest.importorskip("torchmetrics")
        from blended_diffusion.evaluation.figures import seam

        with PIL.Image.open(EXAMPLES / "coffee.jpg") as file:
            photo = file.convert("RGB").crop((0, 144, 256, 400))
        mask = ellipse(256, 256, (60, 80, 170, 190))
        canvas = Canvas(photo, mask, (0, 0, 256, 256), 64)
        for shift in (10, 60, 160):
            colours = np.asarray(soft(64, 64, 6), int) * (100, 60, 40) // 128 + shift // 2
            edited = PIL.Image.fromarray(colours.clip(0, 255).astype(np.uint8))
            edited = PIL.Image.composite(edited, canvas.model_image, canvas.model_mask)
            own_size = Canvas(canvas.model_image, canvas.model_mask, (0, 0, 64, 64), 64).paste(edited)
            reference = seam(canvas.model_image, own_size, canvas.model_mask)
            made_small = canvas.paste(edited, grain_seed=3).resize((64, 64), PIL.Image.Resampling.LANCZOS)
            assert seam(canvas.model_image, made_small, canvas.model_mask) <= reference

    @pytest.mark.slow
    def test_grain_goes_on_inside(self, mask, depth):
        """The variance from pixel to pixel is that of the photo with it, and next to none without."""
        grain = np.random.default_rng(0).normal(0, 7, (512, 512, 3))
        photo = PIL.Image.fromarray((np.asarray(ramps(512, 512)) * 0.5 + 60 + grain).clip(0, 255).astype(np.uint8))
        canvas = self.canvas(photo, mask)
        edited = PIL.Image.new("RGB", (64, 64), (90, 160, 60))

        def ratio(result: PIL.Image.Image, where: np.ndarray) -> float:
            variance = np.square(np.diff(np.asarray(result, float), axis=1)).mean(-1)
            return variance[where[:, 1:]].mean() / variance[depth[:, 1:] == 0].mean()

        with_grain = canvas.paste(edited, grain_seed=3)
        assert ratio(with_grain, depth > 2) == pytest.approx(1, abs=0.15)
        assert ratio(canvas.paste(edited), depth > 2) < 0.01
        np.testing.assert_array_equal(canvas.paste(edited, grain_seed=3), with_grain)
        assert (np.asarray(canvas.paste(edited, grain_seed=4)) != np.asarray(with_grain)).any()

    def test_an_edit_that_has_grain_of_its_own_gets_none(self, mask):
        grain = np.random.default_rng(0).normal(0, 2, (512, 512, 3))
        photo = PIL.Image.fromarray((np.asarray(ramps(512, 512)) * 0.5 + 60 + grain).clip(0, 255).astype(np.uint8))
        canvas = Canvas(photo, mask, (96, 96, 416, 416), 128)
        edited = noise(128, 128)
        np.testing.assert_array_equal(canvas.paste(edited, grain_seed=3), canvas.paste(edited))

    @pytest.mark.slow
    def test_a_picture_of_another_size_than_the_canvas_says_goes_back_too(self, mask):
        photo = ramps(512, 512)
        canvas = self.canvas(photo, mask)
        edited = soft(32, 32, 3)
        np.testing.assert_array_equal(
            canvas.paste(edited, grain_seed=1), Canvas(photo, mask, canvas.square, 32).paste(edited, grain_seed=1)
        )
