"""Maps of change: which grey is free when; black is the photo, white the ordinary edit, and the rest lies between."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline_blended_diffusion as method
from blended_diffusion.applications.steps import run_steps
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.one_photo import edit_photo
from blended_diffusion.painters.change_maps import ChangeMap
from blended_diffusion.painters.settings import EditSettings


MAPPED = EditSettings("rock", mask_is_change_map=True)
CLOSE = replace(MAPPED, context=99)  # all of the photo, so that its pixels are the network's


def ramp() -> Image.Image:
    """Every grey once."""
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


def plain(level: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("L", size, level)


def bands(*levels: int) -> Image.Image:
    """16×16, in upright bands of these greys."""
    return Image.fromarray(np.repeat(np.array(levels, np.uint8), 16 // len(levels))[None].repeat(16, axis=0))


def arrays(edited) -> list[np.ndarray]:
    return [np.asarray(image, int) for image in edited.images]


class TestRule:
    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 17, 30, 255])
    def test_a_grey_is_free_in_its_share_of_the_last_steps(self, steps):
        change, levels = ChangeMap(ramp()), np.asarray(ramp())
        free = np.zeros((16, 16), int)
        for step in range(steps):
            expected = [level > 0 and Fraction(level, 255) >= 1 - Fraction(step, steps) for level in range(256)]
            np.testing.assert_array_equal(change.at(step / steps), np.reshape(expected, (16, 16)))
            free += change.at(step / steps)
        np.testing.assert_array_equal(free, levels.astype(int) * steps // 255)

    def test_after_the_last_step_all_but_black_is_free(self):
        np.testing.assert_array_equal(ChangeMap(ramp()).at(1), np.asarray(ramp()) > 0)
        np.testing.assert_array_equal(ChangeMap(ramp()).first, np.where(np.asarray(ramp()) == 255, 255, 0))

    def test_brightened_its_brightest_is_white_and_the_proportions_stay(self):
        change = ChangeMap(bands(0, 1, 51, 102))
        assert change.reach == pytest.approx(0.4)
        brightened = change.brightened()
        assert np.asarray(brightened.greys)[0, ::4].tolist() == [0, 2, 128, 255]
        assert brightened.reach == 1 and brightened.brightened() == brightened
        np.testing.assert_array_equal(ChangeMap(ramp()).brightened().greys, ramp())


class TestEdit:
    def test_each_step_blends_with_what_is_free_in_it(self, tiny_pipe, photo, monkeypatch):
        used, composite = [], method.composite

        def note(foreground, background, mask):
            used.append(mask[0, 0].numpy() > 0)
            return composite(foreground, background, mask)

        monkeypatch.setattr(method, "composite", note)
        Editor(tiny_pipe, num_images=2).edit(photo, ramp(), replace(CLOSE, num_inference_steps=5, strength=0.8))
        for mask, progress in zip(used, [0, 0.25, 0.5, 0.75, 1], strict=True):
            np.testing.assert_array_equal(mask, ChangeMap(ramp()).at(progress))

    def test_black_is_the_photo(self, tiny_pipe, photo):
        levels = bands(0, 90, 0, 255)
        size = (40, 30)
        for picture, greys in ((photo, levels), (photo.resize(size), levels.resize(size, Image.Resampling.NEAREST))):
            before, black = np.asarray(picture, int), np.asarray(greys) == 0
            for image in arrays(Editor(tiny_pipe, num_images=2).edit(picture, greys, MAPPED)):
                np.testing.assert_array_equal(image[black], before[black])
                assert (image != before)[~black].any()

    @pytest.mark.parametrize("changes", [{}, {"detail": 2}, {"feather": 3.0}, {"ddim": True}, {"match_release": True}])
    def test_without_greys_it_is_the_ordinary_edit(self, tiny_pipe, photo, mask, changes):
        """Also where the mask's edge covers the model's pixels in part."""
        editor, size = Editor(tiny_pipe, num_images=2), (45, 37)
        scene = photo.resize(size), mask.resize(size, Image.Resampling.NEAREST)
        for picture, where in ((photo, plain(255)), (photo, mask), scene):
            mapped = editor.edit(picture, where, replace(MAPPED, **changes))
            ordinary = editor.edit(picture, where, EditSettings("rock", **changes))
            np.testing.assert_array_equal(arrays(mapped), arrays(ordinary))
            assert mapped.clip_distances == ordinary.clip_distances

    @pytest.mark.parametrize(("level", "strength"), [(255, 0.8), (204, 0.64), (128, 0.4), (60, 0.16)])
    def test_one_grey_all_over_is_the_edit_of_so_much_less_strength(self, tiny_pipe, photo, level, strength):
        """What is held to the photo until then is the photo at that step's level, where such an edit begins."""
        editor = Editor(tiny_pipe, num_images=2)
        wanted = replace(CLOSE, num_inference_steps=25, strength=0.8)
        mapped = editor.edit(photo, plain(level), wanted)
        weaker = editor.edit(photo, None, replace(wanted, strength=strength, mask_is_change_map=False))
        np.testing.assert_array_equal(arrays(mapped), arrays(weaker))

    def test_the_brighter_the_more_it_changes(self, tiny_pipe, photo):
        """Beside a white band, so that all of them take the same steps."""
        editor, before = Editor(tiny_pipe, num_images=4), np.asarray(photo, int)
        wanted = replace(CLOSE, num_inference_steps=20, strength=1.0, clip_guidance_scale=0.0)
        changes = [
            np.abs(arrays(editor.edit(photo, bands(level, 255), wanted)) - before)[:, :, :8].mean()
            for level in (0, 26, 77, 128, 179, 255)
        ]
        assert changes[0] == 0 and np.all(np.diff(changes) > 0)

    def test_inverted_black_is_what_changes_most(self, tiny_pipe, photo, tmp_path):
        photo.save(tmp_path / "photo.png")
        bands(0, 100, 200, 255).save(tmp_path / "map.png")
        model = Editor(tiny_pipe).model
        files = {"photo": tmp_path / "photo.png", "mask": tmp_path / "map.png"}
        pictures = {"photo": photo, "mask": bands(0, 100, 200, 255)}
        turned = edit_photo(photo, bands(255, 155, 55, 0), MAPPED, model, num_images=1)
        for given in (files, pictures):
            edited = edit_photo(prompt=MAPPED, model=model, num_images=1, invert_mask=True, **given)
            np.testing.assert_array_equal(arrays(edited), arrays(turned))
        (plain_edit,) = arrays(edit_photo(photo, bands(255, 155, 55, 0), "rock", model, num_images=1))
        assert (plain_edit != arrays(turned)[0]).any()

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"initial_mask_growth": 0.2}, "does not go with `initial_mask_growth` 0.2"),
            ({"blend": False}, "does not go with local CLIP-guided diffusion"),
            ({"region_prompts": ["rock"]}, "does not go with several regions"),
        ],
    )
    def test_what_it_does_not_go_with_is_one_sentence(self, tiny_pipe, photo, settings, complaint):
        with pytest.raises(ValueError, match=rf"^`mask_is_change_map` {complaint}.*\.$"):
            Editor(tiny_pipe).edit(photo, ramp(), replace(MAPPED, **settings))

    def test_it_needs_a_mask_and_one_that_is_bright_enough(self, tiny_pipe, photo):
        with pytest.raises(ValueError, match="`mask_is_change_map` needs a mask whose greys say how much"):
            Editor(tiny_pipe).edit(photo, None, MAPPED)
        with pytest.raises(ValueError, match=r"its brightest grey is 0\.196 of white, which leaves none of 4 steps"):
            Editor(tiny_pipe).edit(photo, plain(50), MAPPED)
        assert Editor(tiny_pipe, num_images=1).edit(photo, plain(64), MAPPED).images

    def test_left_to_choose_the_mask_does_not_grow(self, tiny_pipe, photo):
        job = Editor(tiny_pipe).prepare(photo, bands(0, 0, 0, 255), replace(CLOSE, initial_mask_growth=None), "")
        assert job.settings.initial_mask_growth == 0


@pytest.fixture
def command(tiny_model_dir, as_in_a_new_process, photo):
    photo.resize((40, 30)).save("photo.png")
    ramp().resize((40, 30)).save("map.png")

    def run(*flags: str) -> int:
        given = ["-p", "rock", "-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--quiet"]
        return main(["edit", *given, "--num-images", "2", "--batch_size", "1", *flags])

    return run


def ranked(folder: str = "output") -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in sorted(Path(folder, "ranked").glob("*.png"))}


class TestCommand:
    @pytest.mark.parametrize("flags", [(), ("--invert_mask",)])
    def test_it_is_recorded_resumed_and_replayed(self, command, capsys, flags):
        flags = ("--mask", "map.png", "--mask-is-change-map", *flags)
        assert command(*flags) == 0
        assert json.loads(Path("output/run.json").read_text())["settings"]["mask_is_change_map"] is True
        whole = ranked()
        first, second = sorted(Path("output/ranked").glob("*.json"))
        first.unlink()
        assert command(*flags, "--resume") == 0
        assert ranked() == whole
        assert main(["replay", str(second.with_suffix(".png")), "--device", "cpu"]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out
        with Image.open("output/mask.png") as kept, Image.open("map.png") as given:
            greys = np.asarray(given)
            np.testing.assert_array_equal(kept, 255 - greys if "--invert_mask" in flags else greys)
        assert command("--mask", "map.png", "--output_path", "thresholded") == 0
        assert set(ranked("thresholded").values()).isdisjoint(whole.values())

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            ("--mask-is-change-map", "--mask-is-change-map needs a --mask"),
            ("--mask-is-change-map --box 1,1,9,9", "--mask-is-change-map needs a --mask"),
            ("--mask-is-change-map --mask map.png --grow 3", "does not go with --grow"),
            ("--mask-is-change-map --mask map.png --initial-mask-growth 0.1", "`initial_mask_growth` 0.1"),
            ("--mask-is-change-map --mask map.png --local_clip_guided_diffusion", "local CLIP-guided diffusion"),
        ],
    )
    def test_what_it_does_not_go_with_is_said_before_anything_is_written(self, command, capsys, flags, complaint):
        assert command(*flags.split()) == 2
        assert complaint in capsys.readouterr().err and not Path("output").exists()


class TestSteps:
    def test_a_step_may_have_a_map(self, tiny_pipe, photo, as_in_a_new_process):
        bands(0, 100, 200, 255).save("map.png")
        editor = Editor(tiny_pipe, num_images=1)
        step = {"prompt": "rock", "mask_is_change_map": True}
        expected = editor.edit(photo, bands(0, 100, 200, 255), MAPPED).best
        for mask, changes in (
            ("map.png", {}),
            (bands(0, 100, 200, 255), {}),
            (bands(255, 155, 55, 0), {"invert_mask": True}),
        ):
            (done,) = run_steps(editor, photo, [{**step, "mask": mask, **changes}])
            np.testing.assert_array_equal(done, expected)

    @pytest.mark.parametrize(
        ("step", "complaint"),
        [
            ({"prompt": "rock", "mask": {"box": [1, 1, 9, 9]}}, "which knows no greys; .* name of a grey picture"),
            ({"application": "remove", "mask": plain(255)}, "mask_is_change_map is no key here"),
            ({"regions": [{"mask": plain(255), "prompt": "rock"}]}, "mask_is_change_map is no key here"),
        ],
    )
    def test_where_no_greys_are_read_none_may_be_meant(self, tiny_pipe, photo, step, complaint):
        with pytest.raises(ValueError, match=complaint):
            run_steps(Editor(tiny_pipe), photo, [{**step, "mask_is_change_map": True}])


def test_the_pipeline_takes_it_as_a_callback(tiny_pipe, photo):
    change = ChangeMap(bands(0, 100, 200, 255))
    edited = tiny_pipe(
        "rock",
        photo,
        change.first,
        generator=torch.Generator().manual_seed(404),
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["mask"],
    ).images[0]
    same = Editor(tiny_pipe, num_images=1).edit(photo, change.greys, CLOSE).best
    np.testing.assert_array_equal(edited, same)
