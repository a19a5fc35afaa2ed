"""Several edits one after another: each on the best picture of the one before; kept, resumed, checked beforehand."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from plain_painter import PlainPainter
from tiny import tiny_unet

from blended_diffusion import masks
from blended_diffusion.applications.regions import Region, edit_regions
from blended_diffusion.applications.registry import APPLICATIONS
from blended_diffusion.applications.step_files import parse_step
from blended_diffusion.applications.steps import overview, run_steps
from blended_diffusion.cli import main
from blended_diffusion.editing.candidates import make_candidates
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.records import read_record
from blended_diffusion.masks.source import look_at_mask
from blended_diffusion.models import Model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo, read_photo


SIZE = (40, 30)


pytestmark = pytest.mark.usefixtures("as_in_a_new_process")


def box(*edges: int) -> PIL.Image.Image:
    mask = PIL.Image.new("L", SIZE)
    mask.paste(255, edges)
    return mask


LEFT, RIGHT = (4, 8, 16, 22), (22, 8, 34, 22)


@pytest.fixture
def files(photo) -> list[dict]:
    """A photo, two masks, and two steps with them."""
    photo.resize(SIZE).save("photo.png")
    box(*LEFT).save("left.png")
    box(*RIGHT).save("right.png")
    return [{"mask": "left.png", "prompt": "rock"}, {"mask": "right.png", "prompt": "cat", "strength": 0.6}]


@pytest.fixture
def folder_editor(folder_editor):
    return partial(folder_editor, num_images=2, batch_size=2)


def pixels(image) -> np.ndarray:
    if isinstance(image, (str, Path)):
        with PIL.Image.open(image) as picture:
            return np.asarray(picture, int)
    return np.asarray(image, int)


def ranked(step: str) -> list[Path]:
    return sorted(Path("out", step, "ranked").glob("*.png"))


class TestInMemory:
    def test_each_step_edits_the_best_picture_of_the_one_before(self, tiny_pipe, files):
        photo, editor = PIL.Image.open("photo.png"), Editor(tiny_pipe, num_images=3)
        first, second = run_steps(editor, photo, files)
        one = editor.edit(photo, box(*LEFT), "rock").best
        two = editor.edit(one, box(*RIGHT), EditSettings("cat", strength=0.6)).best
        np.testing.assert_array_equal(pixels(first), pixels(one))
        np.testing.assert_array_equal(pixels(second), pixels(two))

    def test_nothing_outside_the_masks_changes(self, tiny_pipe, files):
        photo = PIL.Image.open("photo.png")
        last = pixels(run_steps(Editor(tiny_pipe, num_images=1), photo, files)[-1])
        outside = (pixels(box(*LEFT)) == 0) & (pixels(box(*RIGHT)) == 0)
        np.testing.assert_array_equal(last[outside], pixels(photo)[outside])
        assert (last != pixels(photo))[~outside].any()

    def test_a_step_may_have_regions(self, tiny_pipe, files):
        photo, editor = PIL.Image.open("photo.png"), Editor(tiny_pipe, num_images=2)
        regions = [{"mask": "left.png", "prompt": "rock"}, {"mask": box(*RIGHT), "prompt": "cat"}]
        (done,) = run_steps(editor, photo, [{"regions": regions}])
        same = edit_regions(editor, photo, [Region(box(*LEFT), "rock"), Region(box(*RIGHT), "cat")]).best
        np.testing.assert_array_equal(pixels(done), pixels(same))

    @pytest.mark.parametrize(
        ("described", "expected"),
        [
            ({"box": LEFT}, lambda photo: box(*LEFT)),
            ({"box": LEFT, "grow": -2}, lambda photo: box(6, 10, 14, 20)),
            ({"file": "left.png", "grow": 0}, lambda photo: box(*LEFT)),
            (
                {"polygon": [[4, 8], [30, 8], [4, 21]]},
                lambda photo: masks.from_polygon(SIZE, [(4, 8), (30, 8), (4, 21)]),
            ),
            ({"difference": "other.png"}, lambda photo: masks.from_difference(photo, PIL.Image.open("other.png"))),
            ({"alpha": "cut.png"}, lambda photo: box(*RIGHT)),
        ],
    )
    def test_masks_may_be_described(self, files, described, expected):
        photo = read_photo("photo.png")
        other, cut = photo.image.copy(), photo.image.convert("RGBA")
        other.paste((255, 0, 255), LEFT)
        other.save("other.png")
        cut.putalpha(box(*RIGHT))
        cut.save("cut.png")
        mask = look_at_mask(parse_step({"prompt": "rock", "mask": described}).mask, photo.image).image
        np.testing.assert_array_equal(pixels(mask), pixels(expected(photo.image)))

    def test_a_step_may_say_how_many_pictures_and_which(self, tiny_pipe, files):
        photo = PIL.Image.open("photo.png")
        (done,) = run_steps(Editor(tiny_pipe), photo, [{**files[0], "num_images": 1, "seed": 7}])
        same = Editor(tiny_pipe, seed=7, num_images=1).edit(photo, box(*LEFT), "rock").best
        np.testing.assert_array_equal(pixels(done), pixels(same))

    def test_an_applications_mask_is_checked_and_read(self, tiny_pipe, files, monkeypatch):
        def paint(editor, image: Photo, mask: PIL.Image.Image | Mask, colour: str, settings: EditSettings | str = ""):
            painted = image.image.copy()
            painted.paste(colour, mask=mask.image)
            return painted

        monkeypatch.setitem(APPLICATIONS, "paint", paint)
        photo, editor = PIL.Image.open("photo.png").convert("RGB"), Editor(tiny_pipe)
        step = {"application": "paint", "mask": "left.png", "colour": "red", "invert_mask": True}
        (done,) = run_steps(editor, photo, [step])
        np.testing.assert_array_equal((pixels(done) == (255, 0, 0)).all(axis=-1), pixels("left.png") == 0)
        with pytest.raises(ValueError, match="step 1: mask .*is 8×8 pixels"):
            run_steps(editor, photo, [{**step, "mask": PIL.Image.new("L", (8, 8), 255)}])

    def test_a_step_may_be_an_application(self, tiny_pipe, files, monkeypatch):
        """Its arguments are read, and the next step edits what it gives, of another size or not."""

        def widen(editor, image: PIL.Image.Image | Photo, by: int, like: PIL.Image.Image | Photo):
            assert like.image.size == SIZE
            wide = PIL.Image.new("RGB", (image.image.width + by, image.image.height), "red")
            wide.paste(image.image)
            return wide

        monkeypatch.setitem(APPLICATIONS, "widen", widen)
        wide_mask = PIL.Image.new("L", (50, 30))
        wide_mask.paste(255, (36, 8, 48, 22))
        steps = [{"application": "widen", "by": 10, "like": "photo.png"}, {"mask": wide_mask, "prompt": "rock"}]
        first, second = run_steps(Editor(tiny_pipe, num_images=1), PIL.Image.open("photo.png"), steps)
        assert first.size == second.size == (50, 30)
        np.testing.assert_array_equal(pixels(second)[:, :36], pixels(first)[:, :36])
        assert (pixels(second) != pixels(first)).any()

    @pytest.mark.parametrize(
        ("second", "complaint"),
        [
            ({"prompt": "cat", "mask": PIL.Image.new("L", (8, 8), 255)}, "step 2: mask is 8×8 pixels .* is 40×30"),
            ({"prompt": "cat", "mask": "black.png"}, "step 2: mask '.*black.png' leaves nothing to edit"),
            ({"prompt": "cat", "mask": PIL.Image.new("L", SIZE)}, "step 2: mask leaves nothing to edit"),
            ({"prompt": "cat", "num_inference_steps": 2, "strength": 0.1}, "step 2: .* leaves no step to take"),
            ({"prompt": "cat", "num_inference_steps": 5000}, "step 2: .* the network knows at most 1000"),
            ({"prompt": "cat", "mask": {"box": [0, 0, 99, 9]}}, "step 2: .*box.* reaches past the photo"),
            ({"prompt": "cat", "mask": "thin.png"}, "step 2: The mask is too thin"),
            (
                {"regions": [{"mask": "black.png", "prompt": "r"}]},
                "step 2: mask of region 1 .* leaves nothing to edit",
            ),
        ],
    )
    def test_what_is_wrong_is_said_before_the_first_step(self, tiny_pipe, files, monkeypatch, second, complaint):
        PIL.Image.new("L", SIZE).save("black.png")
        dots = PIL.Image.new("L", SIZE)
        dots.putpixel((0, 0), 255)
        dots.putpixel((39, 29), 255)
        dots.save("thin.png")
        monkeypatch.setattr(Editor, "edit", lambda *_: pytest.fail("a step was taken"))
        with pytest.raises(ValueError, match=complaint):
            run_steps(Editor(tiny_pipe), PIL.Image.open("photo.png"), [files[0], second])

    @pytest.mark.parametrize(
        "of_step", [{}, {"application": "remove"}, {"regions": [{"mask": "left.png", "prompt": "rock"}], "mask": None}]
    )
    @pytest.mark.parametrize(
        ("wanted", "complaint"),
        [
            ({"num_inference_steps": 7}, "step 3: `num_inference_steps` is 7, too many for one colour.$"),
            ({"strength": 0.5}, "step 3: `strength` is 0.5, which means nothing to Hasty; leave it out.$"),
        ],
    )
    def test_any_painter_is_asked_before_the_first_step(self, files, of_step, wanted, complaint):
        class Hasty(PlainPainter):
            def check(self, settings, mask):
                if settings.num_inference_steps == 7:
                    raise ValueError("`num_inference_steps` is 7, too many for one colour.")

            def make(self, *_):
                pytest.fail("a step was taken")

        model = Model(DDPMPipeline(tiny_unet(out_channels=3), DDPMScheduler()), "plain", "0" * 64)
        # what comes after an application has a picture that nobody knows yet
        wrong = {key: value for key, value in {"mask": "left.png", **of_step, **wanted}.items() if value is not None}
        if not of_step:
            wrong["prompt"] = "rock"
        steps = [files[0], {"application": "remove", "mask": "left.png"}, wrong]
        with pytest.raises(ValueError, match=complaint):
            run_steps(Editor(Hasty(model)), PIL.Image.open("photo.png"), steps)


class TestInAFolder:
    def test_all_is_kept_and_can_be_made_again(self, folder_editor, files, capsys):
        photo = read_photo("photo.png")
        in_memory = run_steps(Editor(folder_editor().model, num_images=2, batch_size=2), photo, files)
        done = run_steps(folder_editor(), photo, files, "both")
        for number, (image, same) in enumerate(zip(done, in_memory, strict=True), start=1):
            np.testing.assert_array_equal(pixels(image), pixels(same))
            np.testing.assert_array_equal(pixels(f"out/step_{number:02d}/result.png"), pixels(image))
        assert Path("out/overview.png").exists()
        record = read_record("out/step_02/result.png")
        assert record.photo.name == str(Path("out/step_01/result.png").absolute())
        assert record.mask.name == str(Path("right.png").absolute())
        for picture in [*ranked("step_01"), *ranked("step_02")]:
            assert main(["replay", str(picture), "--device", "cpu"]) == 0
            assert "pixel for pixel the same" in capsys.readouterr().out

    def test_pictures_and_masks_of_no_file_can_be_made_again(self, folder_editor, files, capsys):
        photo = PIL.Image.open("photo.png").convert("RGB")
        steps = [
            {"mask": box(*LEFT), "prompt": "rock"},
            {"mask": box(*LEFT), "prompt": "cat", "invert_mask": True},
            {"regions": [{"mask": box(*LEFT), "prompt": "rock"}, {"mask": box(*RIGHT), "prompt": "cat"}]},
        ]
        done = run_steps(folder_editor(num_images=1), photo, steps)
        inside = pixels(box(*LEFT)) > 0
        np.testing.assert_array_equal(pixels(done[1])[inside], pixels(done[0])[inside])
        for number in (1, 2, 3):
            assert main(["replay", str(ranked(f"step_{number:02d}")[0]), "--device", "cpu"]) == 0
            assert "pixel for pixel the same" in capsys.readouterr().out

    def test_resumed_only_the_missing_is_made(self, folder_editor, files):
        made = []

        def make(job, results, seeds, keep):
            made.append([entry.seed for entry in make_candidates(job, results, seeds, keep)])
            return results.finished()

        photo = read_photo("photo.png")
        whole = run_steps(folder_editor(make=make), photo, files)
        lost = next(path for path in ranked("step_02") if path.stem.endswith("_405"))
        lost.with_suffix(".json").unlink()
        kept = Path("out/step_01/result.png").stat().st_mtime_ns
        again = run_steps(folder_editor(make=make), photo, files)
        assert made == [[404, 405], [404, 405], [], [405]]
        assert Path("out/step_01/result.png").stat().st_mtime_ns == kept
        np.testing.assert_array_equal(pixels(again[-1]), pixels(whole[-1]))

    @pytest.mark.parametrize(
        ("number", "change", "complaint"),
        [
            (1, {"strength": 0.4}, "step 1: .*step_01' holds another edit .*different are: strength"),
            (2, {"prompt": "dog"}, "step 2: .*step_02' holds another edit .*different are: prompt"),
            (2, {"mask": "left.png"}, "step 2: .*step_02' holds another edit .*different are: .*mask"),
            (2, {"mask": box(*LEFT)}, "step 2: .*step_02' holds another edit .*different are: .*mask"),
        ],
    )
    def test_a_step_that_has_changed_is_refused(self, folder_editor, files, number, change, complaint):
        run_steps(folder_editor(num_images=1), read_photo("photo.png"), files)
        before = {path: path.read_bytes() for path in Path("out").rglob("ranked/*")}
        files[number - 1] |= change
        with pytest.raises(ValueError, match=complaint):
            run_steps(folder_editor(num_images=1), read_photo("photo.png"), files)
        assert {path: path.read_bytes() for path in Path("out").rglob("ranked/*")} == before

    def test_a_step_whose_input_has_changed_is_refused_and_its_input_kept(self, folder_editor, files):
        """More candidates of the first step may have another best one."""
        photo = read_photo("photo.png")
        editor = folder_editor(num_images=3)
        prompt = next(
            word
            for word in "abcdefgh"
            if Editor(editor.model, num_images=3).edit(photo, box(*LEFT), word).seeds[0] != 404
        )
        files[0] |= {"prompt": prompt, "num_images": 1}
        run_steps(editor, photo, files)
        kept = Path("out/step_01/result.png").read_bytes()
        files[0]["num_images"] = 3
        with pytest.raises(ValueError, match="step 1: .*step_02' holds pictures that were made from something else"):
            run_steps(editor, photo, files)
        assert Path("out/step_01/result.png").read_bytes() == kept

    def test_an_application_that_edits_nothing_has_a_result_too(self, folder_editor, files, monkeypatch):
        monkeypatch.setitem(APPLICATIONS, "turn", lambda editor, image: image.image.rotate(180))
        (done,) = run_steps(folder_editor(), read_photo("photo.png"), [{"application": "turn"}])
        np.testing.assert_array_equal(pixels("out/step_01/result.png"), pixels(done))
        np.testing.assert_array_equal(pixels(done), pixels("photo.png")[::-1, ::-1])

    def test_another_picture_of_no_file_is_refused_and_the_first_kept(self, folder_editor, files):
        photo = PIL.Image.open("photo.png").convert("RGB")
        run_steps(folder_editor(num_images=1), photo, files[:1])
        kept = Path("out/inputs/photo.png").read_bytes()
        with pytest.raises(
            ValueError, match="holds pictures that were made from something else .photo is another one"
        ):
            run_steps(folder_editor(num_images=1), PIL.Image.new("RGB", SIZE), files[:1])
        assert Path("out/inputs/photo.png").read_bytes() == kept

    def test_the_colour_profile_is_kept(self, folder_editor, files):
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        PIL.Image.open("photo.png").save("photo.png", icc_profile=profile)
        run_steps(folder_editor(num_images=1), read_photo("photo.png"), files)
        for path in [*ranked("step_01"), *ranked("step_02"), Path("out/step_02/result.png"), Path("out/overview.png")]:
            with PIL.Image.open(path) as picture:
                assert picture.info["icc_profile"] == profile


def test_the_overview_shows_pictures_of_any_size():
    pictures = [PIL.Image.new("RGB", SIZE), PIL.Image.new("RGB", (80, 30)), PIL.Image.new("RGBA", (10, 90))]
    few, many = overview(pictures, "abc"), overview(pictures * 3, "abcdefghi", "title")
    assert few.mode == many.mode == "RGB" and many.height > few.height


class TestCommands:
    @pytest.fixture
    def run(self, files, tiny_model_dir):
        def run(command: str, *arguments: str) -> int:
            given = ["-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--output_path", "out"]
            return main([command, *arguments, *given])

        return run

    def test_steps(self, run, files, capsys):
        Path("my.json").write_text(json.dumps(files))
        assert run("steps", "my.json", "--num-images", "2") == 0
        out, err = capsys.readouterr()
        assert "step 1 of 2: rock" in err and "step 2 of 2: cat" in err
        assert "the result: out/step_02/result.png, all steps: out/overview.png" in out
        assert run("steps", "my.json", "--num-images", "2", "--quiet") == 0
        assert capsys.readouterr() == ("", "")

    def test_regions(self, run, capsys):
        assert run("regions", "--region", "rock=left.png", "--region", "a = b=right.png", "--num-images", "1") == 0
        record = read_record(ranked("")[0])
        assert (record.settings.prompt, record.settings.region_prompts) == ("rock + a = b", ["rock", "a = b"])
        outside = (pixels("left.png") == 0) & (pixels("right.png") == 0)
        np.testing.assert_array_equal(pixels(ranked("")[0])[outside], pixels("photo.png")[outside])
        assert main(["replay", str(ranked("")[0]), "--device", "cpu"]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["steps", "nothing.yaml"], "FILE 'nothing.yaml' does not exist"),
            (["steps", "bad.json"], "FILE 'bad.json', step 2: strength is 2; it should be less than or equal to 1"),
            (["steps", "left.png"], "FILE 'left.png' is not text"),
            (["regions", "--region", "rock"], "--region 'rock' does not say where the region is; give WORDS=FILE"),
            (["regions", "--region", "rock=no.png"], "--region rock: '.*no.png' does not exist"),
            (["regions"], "Missing option '--region'"),
        ],
    )
    def test_bad_input_is_one_sentence(self, run, capsys, arguments, complaint):
        Path("bad.json").write_text('[{"prompt": "rock"}, {"prompt": "rock", "strength": 2}]')
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        assert re.search(complaint, err) and not Path("out").exists()
