"""Growing pictures: which windows there are, what of them is new, and that the photo stays as it is."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from tiny import make_tiny_pipe, tiny_unet

from blended_diffusion.applications.extend import (
    CONTINUING_STRENGTH,
    MOST_WINDOWS,
    SIDES,
    SMALLEST_WINDOW,
    THINNEST_STRIP,
    extend,
    mirror,
    plan,
)
from blended_diffusion.applications.remove import misfit
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Photo, read_photo


PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def picture(photo) -> PIL.Image.Image:
    """48×32, no two columns alike."""
    return photo.resize((48, 32))


@pytest.fixture
def editor(tiny_pipe) -> Editor:
    return Editor(tiny_pipe, num_images=1)


class Recorder(Editor):
    """Keeps what the steps are asked for and what they give; the edit itself is the real one."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.steps, self.made = [], []

    def edit(self, image, mask, settings, name="") -> Edited:
        self.steps.append((image, mask, settings, name))
        self.made.append(super().edit(image, mask, settings, name))
        return self.made[-1]


class TestPlan:
    @pytest.mark.parametrize("size", [(48, 32), (32, 48), (32, 32), (100, 20)])
    @pytest.mark.parametrize("amounts", [(40, 0, 0, 0), (0, 7, 0, 0), (0, 0, 33, 0), (5, 20, 1, 50)])
    def test_windows_paint_all_that_is_new_and_each_sees_as_much_as_it_paints(self, size, amounts):
        left, right, top, bottom = amounts
        width, height = left + size[0] + right, top + size[1] + bottom
        painted = np.zeros((height, width), bool)
        painted[top : top + size[1], left : left + size[0]] = True
        window = min(size)
        for step in plan(size, left, right, top, bottom, window):
            x, y, x_end, y_end = step.window
            assert (x_end - x, y_end - y) == (window, window)
            assert 0 <= x and 0 <= y and x_end <= width and y_end <= height
            part = painted[y:y_end, x:x_end]
            assert part.mean() >= 0.5
            part[:] = True
        assert painted.all()

    def test_sides_come_before_the_corners(self):
        sides = [step.side for step in plan((32, 32), 16, 16, 16, 16, 32)]
        assert sides == ["left", "right", *["top"] * 3, *["bottom"] * 3]

    def test_steps_are_equal(self):
        edges = [step.grown[0] for step in plan((32, 32), 40, 0, 0, 0, 32)]
        assert edges == [27, 13, 0]

    @pytest.mark.parametrize("amounts", [(0, 3, 0, 0), (40, 1, 0, 100), (2, 0, 5, 3)])
    def test_where_little_is_new_windows_are_so_small_that_it_is_enough_of_them(self, amounts):
        width, height = 3000 + sum(amounts[:2]), 2000 + sum(amounts[2:])
        painted = np.zeros((height, width), bool)
        painted[amounts[2] : amounts[2] + 2000, amounts[0] : amounts[0] + 3000] = True
        for step in plan((3000, 2000), *amounts, 2000, thinnest=THINNEST_STRIP / 64):
            x, y, x_end, y_end = step.window
            amount = amounts[SIDES.index(step.side)]
            assert x_end - x == y_end - y == max(SMALLEST_WINDOW, 16 * amount)
            assert 0 <= x and 0 <= y and x_end <= width and y_end <= height
            assert painted[y:y_end, x:x_end].any()
            painted[y:y_end, x:x_end] = True
        assert painted.all()

    @pytest.mark.parametrize("amounts", [(125, 0, 0, 0), (0, 300, 2000, 1500)])
    def test_where_much_is_new_they_are_as_large_as_there_is_room(self, amounts):
        windows = list(plan((3000, 2000), *amounts, 2000, thinnest=THINNEST_STRIP / 64))
        assert windows == list(plan((3000, 2000), *amounts, 2000))

    def test_too_many_windows_are_refused_with_a_growth_that_would_do(self):
        def count(amount: int) -> int:
            return len(list(plan((20000, 9000), 0, 0, amount, 0, 9000, thinnest=THINNEST_STRIP / 64)))

        with pytest.raises(ValueError, match=r"top 3: .* 20000 pixels long, takes 833 windows of 48 .*at least 9\.$"):
            count(3)
        assert 250 < count(9) <= MOST_WINDOWS


class TestExtend:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_the_photo_stays_to_the_last_bit(self, editor, picture, mode):
        picture = picture.convert(mode)
        if mode == "RGBA":
            picture.putalpha(PIL.Image.linear_gradient("L").resize(picture.size))
        result = extend(editor, picture, 9, 20, 5, 0, "rock")
        assert (result.size, result.mode) == ((48 + 29, 32 + 5), mode)
        assert result.crop((9, 5, 9 + 48, 5 + 32)).tobytes() == picture.tobytes()
        if mode == "RGBA":
            alpha = np.array(result.getchannel("A"))
            alpha[5 : 5 + 32, 9 : 9 + 48] = 255
            assert (alpha == 255).all()

    def test_what_is_new_is_painted_and_not_the_mirrored_photo(self, editor, picture):
        result = np.asarray(extend(editor, picture, right=16, settings="rock"))
        mirrored = np.zeros_like(result)
        mirrored[:, :48] = np.asarray(picture)
        mirror(mirrored, (0, 0, 48, 32), (0, 0, 64, 32))
        # the edit fades in over one of the model's pixels, two of these
        assert (result[:, 52:] != mirrored[:, 52:]).any(axis=-1).mean() > 0.9

    def test_each_side_has_its_words(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=1)
        settings = EditSettings(prompt="rock", clip_guidance_scale=3.0)
        extend(recorder, picture, 8, 8, 0, 8, settings, prompt_left="hell", prompt_right="heaven")
        assert [(name, one.prompt) for _, _, one, name in recorder.steps] == [
            ("01_left", "hell"),
            ("02_right", "heaven"),
            ("03_bottom", "rock"),
            ("04_bottom", "rock"),
            ("05_bottom", "rock"),
        ]
        assert {one.clip_guidance_scale for _, _, one, _ in recorder.steps} == {3.0}

    def test_a_step_goes_on_from_the_best_of_the_one_before(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=2)
        result = extend(recorder, picture, right=32, settings="rock")
        first, second = (np.asarray(image.image) for image, *_ in recorder.steps)
        # the second window lies 16 pixels further to the right: its first half is the first one's second
        mask = np.asarray(recorder.steps[1][1]) > 0
        assert (second[:, :16] != first[:, 16:]).any()
        assert (np.asarray(result)[:, 48:64][~mask[:, :16]] == second[:, :16][~mask[:, :16]]).all()

    def test_seams_between_steps_are_painted_again_but_never_the_photo(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=1)
        extend(recorder, picture, right=32, settings="rock")
        first, second = (np.asarray(mask)[0] > 0 for _, mask, *_ in recorder.steps)
        assert first.tolist() == [False] * 16 + [True] * 16
        assert second.tolist() == [False] * 12 + [True] * 20

    def test_a_picture_without_words_goes_on_unguided(self, editor, picture):
        strong, weak = (
            extend(editor, picture, bottom=8, settings=EditSettings(prompt="", clip_guidance_scale=scale))
            for scale in (1000.0, 0.0)
        )
        assert strong.tobytes() == weak.tobytes()

    def test_without_words_the_best_fit_is_taken(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=4)
        result = extend(recorder, picture, right=16)
        _, mask, settings, _ = recorder.steps[0]
        assert settings.prompt == "" and settings.strength == CONTINUING_STRENGTH
        fits = [misfit(image, mask) for image in recorder.made[0].images]  # one window: the mask is the strip
        assert misfit(result.crop((32, 0, 64, 32)), mask) == min(fits) < max(fits)

    def test_a_thing_is_put_into_what_went_on_without_words(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=1)
        result = extend(recorder, picture, right=16, settings="rock", prompt_area="middle")
        ground, thing = recorder.steps
        assert [(one.prompt, name) for _, _, one, name in (ground, thing)] == [
            ("", "01_right_ground"),
            ("rock", "01_right"),
        ]
        assert ground[2].strength == CONTINUING_STRENGTH and thing[2].strength is None
        oval = np.asarray(thing[1]) > 0
        assert not oval[:, :16].any() and 0.3 < oval[:, 16:].mean() < 0.7
        window = np.asarray(result)[:, 32:]
        assert (window[~oval] == np.asarray(recorder.made[0].best)[~oval]).all()

    def test_a_few_pixels_of_a_large_photo_are_painted(self):
        """In windows of 192 pixels for a network of 256, without attention, so that it is quick."""
        blocks = {
            "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
            "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        }
        pipe = make_tiny_pipe(
            unet=tiny_unet(sample_size=256, block_out_channels=(16, 16), add_attention=False, **blocks)
        )
        photo = PIL.Image.linear_gradient("L").resize((3000, 2000)).convert("RGB")
        quick = {"num_inference_steps": 1, "strength": 1.0, "clip_guidance_scale": 0.0, "range_guidance_scale": 0.0}
        recorder = Recorder(pipe, num_images=1)
        result = extend(recorder, photo, right=3, settings=EditSettings("rock", **quick))
        assert result.size == (3003, 2000)
        assert result.crop((0, 0, 3000, 2000)).tobytes() == photo.tobytes()
        assert len(recorder.steps) == 20 and {image.image.size for image, *_ in recorder.steps} == {(192, 192)}
        mirrored = np.asarray(photo)[:, -1:-4:-1]
        assert (np.asarray(result)[:, 3000:] != mirrored).any(axis=(1, 2)).mean() > 0.5

    @pytest.mark.parametrize("options", [{}, {"settings": "rock", "prompt_area": "middle"}])
    def test_a_few_pixels_may_go_on_without_words(self, editor, photo, options):
        photo = photo.resize((64, 80))
        result = extend(editor, photo, bottom=3, **options)
        assert result.crop((0, 0, 64, 80)).tobytes() == photo.tobytes()
        assert (np.asarray(result)[80:] != np.asarray(photo)[:-4:-1]).any(axis=-1).mean() > 0.5

    def test_a_window_that_is_given_is_taken(self, tiny_pipe, photo):
        recorder = Recorder(tiny_pipe, num_images=1)
        extend(recorder, photo.resize((64, 64)), right=3, settings="rock", window=48)
        assert {image.image.size for image, *_ in recorder.steps} == {(48, 48)}
        with pytest.raises(ValueError, match="too thin"):
            extend(recorder, photo.resize((400, 400)), right=3, settings="rock", window=400)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({}, "all 0"),
            ({"left": -1, "right": 3}, "left -1"),
            ({"left": 3, "window": 33}, "window 33 .* 32 to 32"),
            ({"left": 3, "window": 8}, "window 8"),
            ({"left": 3, "prompt_area": "corner"}, "prompt_area 'corner'"),
        ],
    )
    def test_what_cannot_be_is_said(self, editor, picture, arguments, message):
        with pytest.raises(ValueError, match=message):
            extend(editor, picture, settings="rock", **arguments)

    def test_a_photo_keeps_its_colour_profile(self, tiny_pipe, picture):
        recorder = Recorder(tiny_pipe, num_images=1)
        extend(recorder, Photo(picture, b"profile", Path("photo.png"), ""), left=4)
        assert recorder.steps[0][0].icc_profile == b"profile"


class TestMirror:
    def test_it_meets_the_edge_without_a_step(self):
        pixels = np.zeros((2, 9, 3), np.uint8)
        pixels[:, 3:6] = np.arange(1, 4)[:, None]
        mirror(pixels, (3, 0, 6, 2), (0, 0, 9, 2))
        assert pixels[0, :, 0].tolist() == [3, 2, 1, 1, 2, 3, 3, 2, 1]


@pytest.fixture
def command(tiny_model_dir, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.save("photo.png", icc_profile=PROFILE)

    def run(*arguments: str) -> int:
        given = ["-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--num-images", "1"]
        return main(["extend", *given, *arguments])

    yield run
    torch.use_deterministic_algorithms(False)


class TestCommand:
    def test_it_writes_the_whole_and_every_step(self, command, picture):
        assert command("--left", "16", "--right", "8", "--prompt-left", "hell", "--prompt-right", "heaven") == 0
        result = read_photo("output/extended.png")
        assert result.image.size == (72, 32)
        assert result.image.crop((16, 0, 64, 32)).tobytes() == picture.tobytes()
        assert result.icc_profile == PROFILE
        assert {path.name for path in Path("output").iterdir()} == {
            "01_left",
            "02_right",
            "extended.png",
            "before_after.png",
        }

    def test_resuming_makes_the_same_picture(self, command):
        arguments = ("--right", "32", "-p", "rock", "--quiet")
        assert command(*arguments) == 0
        whole = Path("output/extended.png").read_bytes()
        finished = next(Path("output/01_right/ranked").glob("*.png"))
        before = finished.stat().st_mtime_ns
        for path in Path("output/02_right/ranked").iterdir():
            path.unlink()
        assert command(*arguments, "--resume") == 0
        assert Path("output/extended.png").read_bytes() == whole
        assert finished.stat().st_mtime_ns == before

    def test_a_step_can_be_replayed(self, command, capsys):
        assert command("--top", "8", "-p", "rock") == 0
        picture = next(Path("output/02_top/ranked").glob("*.png"))
        assert main(["replay", str(picture), "--device", "cpu"]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out

    def test_films_and_strips_of_each_step(self, command):
        assert command("--top", "8", "-p", "rock", "--vid", "--strip", "3") == 0
        assert sorted(path.suffix for path in Path("output/01_top/films").iterdir()) == [".mp4", ".png"]

    @pytest.mark.parametrize("arguments", [("--left", "-3"), (), ("--left", "3", "--window", "999")])
    def test_bad_input_ends_with_2(self, command, arguments):
        assert command(*arguments) == 2
        assert not Path("output").exists()
