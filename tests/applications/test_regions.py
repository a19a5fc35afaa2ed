"""Regions too far apart for one square: one after another, each in its own, and one folder with one ranked list."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blended_diffusion.applications.regions import Region, edit_regions
from blended_diffusion.applications.steps import run_steps
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery


SIZE = (300, 200)
QUICK = EditSettings("", num_inference_steps=2, strength=1.0, num_augmentations=0)


def box(*edges: int, size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, edges)
    return mask


# four and five pixels wide, of which nothing is left in a square of 300 pixels that the model sees as 16
LEFT, RIGHT = (3, 4, 7, 8), (290, 190, 295, 195)


@pytest.fixture
def far(photo) -> tuple[Image.Image, list[Region]]:
    return photo.resize(SIZE), [Region(box(*LEFT), "rock"), Region(box(*RIGHT), "cat")]


class Recorder(Editor):
    """Keeps what it was asked for; the edit itself is the real one."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.asked = []

    def edit(self, image, mask, settings, name="") -> Edited:
        edited = super().edit(image, mask, settings, name)
        self.asked.append((name, settings, edited))
        return edited


def changed(image: Image.Image, photo: Image.Image) -> np.ndarray:
    return (np.asarray(image) != np.asarray(photo)).any(axis=-1)


class TestInTurn:
    def test_all_regions_change_and_nothing_else(self, tiny_pipe, far):
        photo, regions = far
        outside = (np.asarray(box(*LEFT)) == 0) & (np.asarray(box(*RIGHT)) == 0)
        edited = edit_regions(Editor(tiny_pipe, num_images=2), photo, regions, QUICK)
        assert edited.clip_distances == sorted(edited.clip_distances) and len(edited.images) == 2
        for image in edited.images:
            assert not changed(image, photo)[outside].any()
            for edges in (LEFT, RIGHT):
                assert changed(image, photo)[np.asarray(box(*edges)) > 0].any()

    def test_each_is_the_edit_of_the_best_picture_before(self, tiny_pipe, far):
        photo, regions = far
        editor = Recorder(tiny_pipe, num_images=2)
        edited = edit_regions(editor, photo, regions, QUICK, name="both")
        assert [name for name, *_ in editor.asked] == ["both/region_01", "both"]
        one = Editor(tiny_pipe, num_images=2).edit(photo, regions[0].mask, replace(QUICK, prompt="rock"))
        two = Editor(tiny_pipe, num_images=2).edit(one.best, regions[1].mask, replace(QUICK, prompt="cat"))
        assert edited.clip_distances == two.clip_distances
        np.testing.assert_array_equal(edited.best, two.best)

    def test_the_later_region_lies_on_top(self, tiny_pipe, far):
        photo, regions = far
        over = [*regions, Region(box(5, 4, 15, 14), "frog")]
        editor = Recorder(tiny_pipe, num_images=1)
        edit_regions(editor, photo, over, QUICK)
        first = editor.asked[0][2].best
        assert changed(first, photo)[4:8, 3:5].any() and not changed(first, photo)[:, 5:].any()

    def test_regions_that_go_together_stay_together(self, tiny_pipe, far, caplog):
        photo, _ = far
        editor = Recorder(tiny_pipe, num_images=1)
        edit_regions(editor, photo, [Region(box(0, 0, 90, 90), "rock"), Region(box(150, 0, 290, 90), "cat")], QUICK)
        ((_, settings, _),) = editor.asked
        assert settings.region_prompts == ["rock", "cat"] and "too far apart" not in caplog.text

    def test_it_is_said_why(self, tiny_pipe, far, caplog):
        edit_regions(Editor(tiny_pipe, num_images=1), *far, QUICK)
        assert "nothing is left of region 1 at the model's size of 16×16 pixels; they are edited one" in caplog.text

    def test_one_that_is_too_thin_by_itself_is_named_before_anything_is_painted(self, tiny_pipe, far):
        photo, regions = far
        editor = Recorder(tiny_pipe, num_images=1)
        with pytest.raises(ValueError, match=r"^Region 3 \('line'\): The mask is too thin"):
            edit_regions(editor, photo, [*regions, Region(box(20, 100, 280, 101), "line")], QUICK)
        assert editor.asked == []

    def test_maps_of_change_do_not_go_with_regions(self, tiny_pipe, far):
        with pytest.raises(ValueError, match="`mask_is_change_map` does not go with several regions"):
            edit_regions(Editor(tiny_pipe), *far, replace(QUICK, mask_is_change_map=True))

    def test_a_step_of_such_regions_has_one_result(self, tiny_pipe, far):
        photo, regions = far
        settings = {"num_inference_steps": 2, "strength": 1.0, "num_augmentations": 0}
        step = {"regions": [{"mask": one.mask, "prompt": one.prompt} for one in regions], **settings}
        (done,) = run_steps(Editor(tiny_pipe, num_images=1), photo, [step])
        np.testing.assert_array_equal(done, edit_regions(Editor(tiny_pipe, num_images=1), photo, regions, QUICK).best)


class TestCommand:
    @pytest.fixture
    def command(self, far, tiny_model_dir, as_in_a_new_process):
        photo, regions = far
        gallery.write_png(photo, Path("photo.png"))
        for region in regions:
            region.mask.save(f"{region.prompt}.png")

        def run(*flags: str) -> int:
            given = [f"--region={region.prompt}={region.prompt}.png" for region in regions]
            few = ["--num-images", "2", "--num-inference-steps", "2", "--strength", "1", "--quiet"]
            return main(["regions", "-i", "photo.png", "--model", str(tiny_model_dir), *given, *few, *flags])

        yield run
        torch.use_deterministic_algorithms(False)

    def test_one_folder_holds_it_all_and_resumes_and_replays(self, command, capsys):
        assert command() == 0
        folders = {path.name for path in Path("output").iterdir() if path.is_dir()}
        assert folders == {"inputs", "ranked", "region_01"}
        whole = {path: path.read_bytes() for path in Path("output").glob("**/ranked/*.png")}
        assert len(whole) == 4
        photo = Image.open("photo.png")
        for path in Path("output/ranked").glob("*.png"):
            with Image.open(path) as image:
                for edges in (LEFT, RIGHT):
                    assert changed(image, photo)[np.asarray(box(*edges)) > 0].any()
        for folder in ("output", "output/region_01"):
            min(Path(folder, "ranked").glob("*.json")).unlink()
        assert command("--resume") == 0
        assert {path: path.read_bytes() for path in Path("output").glob("**/ranked/*.png")} == whole
        capsys.readouterr()
        for folder in ("output", "output/region_01"):
            assert main(["replay", str(min(Path(folder, "ranked").glob("*.png")))]) == 0
            assert "pixel for pixel the same" in capsys.readouterr().out
