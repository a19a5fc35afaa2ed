"""The mask flags as people use them: with `mask`, with `edit`, and what replay and a second run make of the files."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from blended_diffusion import masks
from blended_diffusion.cli import main


SIZE = (40, 30)


@pytest.fixture(autouse=True)
def photo_in_the_folder(as_in_a_new_process):
    """A 40×30 one in the folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("photo.png")


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    where = np.zeros((30, 40), bool)
    where[top:bottom, left:right] = True
    return where


def white(path: str | Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        assert picture.mode == "L" and set(picture.get_flattened_data()) <= {0, 255}
        return np.asarray(picture) > 0


def make(*flags: str) -> int:
    return main(["mask", "-i", "photo.png", *flags])


def complaint(capsys, *flags: str) -> str:
    capsys.readouterr()
    assert make(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("blended-diffusion: error: ") and err.count("\n") == 1
    return err


class TestMask:
    def test_it_writes_a_mask_and_its_preview(self, capsys):
        assert make("--box", "12,8,26,22", "-o", "made/here.png") == 0
        np.testing.assert_array_equal(white("made/here.png"), box(12, 8, 26, 22))
        assert "here.png: 16.3% of the photo" in capsys.readouterr().out
        with PIL.Image.open("made/here_preview.png") as preview:
            assert preview.mode == "RGB" and preview.width / preview.height == pytest.approx(4 / 3, abs=0.01)
            # tinted inside, the photo itself outside
            plain = PIL.Image.open("photo.png").resize(preview.size, PIL.Image.Resampling.BICUBIC)
            changed = (np.abs(np.asarray(preview, int) - np.asarray(plain)) > 40).any(-1)
        scale = changed.shape[1] / 40
        inside = changed[int(10 * scale) : int(20 * scale), int(14 * scale) : int(24 * scale)]
        outside = changed[: int(6 * scale)]
        assert inside.mean() > 0.6 and not outside.any()

    @pytest.mark.parametrize("numbers", ["12,8,26,22", "30%,8,65%,22", "12 8 26 22", "12.2,7.9,26,22"])
    def test_boxes_may_be_written_in_several_ways(self, numbers):
        assert make("--box", numbers, "--quiet") == 0
        np.testing.assert_array_equal(white("mask.png"), box(12, 8, 26, 22))

    def test_a_polygon(self):
        assert make("--polygon", "10%,10% 90%,10% 50%,90%", "--quiet") == 0
        expected = masks.from_polygon(SIZE, [(4, 3), (36, 3), (20, 27)])
        np.testing.assert_array_equal(white("mask.png"), np.asarray(expected) > 0)

    def test_an_alpha_channel(self):
        layer = PIL.Image.new("RGBA", SIZE)
        layer.paste((1, 2, 3, 255), (12, 8, 26, 22))
        layer.save("layer.png")
        assert make("--mask-alpha", "layer.png", "--quiet") == 0
        np.testing.assert_array_equal(white("mask.png"), box(12, 8, 26, 22))

    def test_a_difference(self):
        painted = PIL.Image.open("photo.png")
        PIL.ImageDraw.Draw(painted).rectangle((12, 8, 25, 21), fill="white")
        painted.save("painted.png")
        assert make("--mask-difference", "painted.png", "--quiet") == 0
        found = white("mask.png")
        assert found[box(12, 8, 26, 22)].all() and not found[~box(6, 2, 32, 28)].any()

    def test_a_files_mask_is_made_plain(self):
        grey = PIL.Image.fromarray(np.where(box(12, 8, 26, 22), 200, 50).astype(np.uint8))
        grey.save("grey.png")
        assert make("--mask", "grey.png", "--quiet") == 0
        np.testing.assert_array_equal(white("mask.png"), box(12, 8, 26, 22))

    def test_growing_comes_before_inverting(self):
        assert make("--box", "12,8,26,22", "--grow", "-3", "--invert", "--quiet") == 0
        np.testing.assert_array_equal(white("mask.png"), ~box(15, 11, 23, 19))

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ("", "There is nothing to make a mask of"),
            ("--box 1,1,5,5 --mask-prompt dog", "--box and --mask-prompt both say where to edit; give one of them."),
            ("--mask photo.png --click 3,3", "--mask and --click both say where to edit; give one of them."),
            ("--grow 3", "--grow needs a --mask, or another flag that says where to edit, such as --box."),
            ("--box 1,1,5", "'1,1,5' has 3 numbers; give left,top,right,bottom, such as"),
            ("--box 1,1,5,wide", "'1,1,5,wide' is more than numbers and percentages"),
            ("--polygon 1,1,5,5", "'1,1,5,5' has 4 numbers; give three or more corners"),
            ("--box 1,1,50,5", "The box 1,1,50,5 reaches past the photo, which is 40×30 pixels"),
            ("--box 1,1,5,5 --grow -9", "--grow -9 leaves nothing of the mask; give a number nearer to 0."),
            ("--box 0,0,100%,100% --invert_mask", "the mask covers all of the photo"),
            ("--box 1,1,5,5 --grow nan", "nan is out of range; give a number of pixels"),
            ("--mask-alpha photo.png", "The picture has no transparency"),
            ("--mask-difference small.png", "is 20×15 pixels (width×height) and the photo is 40×30"),
            ("--mask-difference photo.png", "The two pictures show the same"),
            ("--box 1,1,5,5 -o mask.jpg", "--output_file 'mask.jpg' is no PNG's name"),
            ("--box 1,1,5,5 -o photo.png", "--output_file 'photo.png' would overwrite 'photo.png'"),
            ("--mask-prompt dog --mask-prompt-model nowhere/", "--mask-prompt-model 'nowhere/' cannot be loaded ("),
            ("--click 3,3 --click-model nowhere/", "--click-model 'nowhere/' cannot be loaded ("),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, capsys, flags, said):
        with PIL.Image.open("photo.png") as photo:
            photo.resize((20, 15)).save("small.png")
        assert said in complaint(capsys, *flags.split())
        assert not Path("mask.png").exists()

    def test_the_help_names_the_networks(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        assert main(["mask", "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert masks.WORDS_MODEL in said and masks.CLICK_MODEL in said and f"[default: {masks.THRESHOLD}]" in said


@pytest.fixture
def edit(tiny_model_dir):
    """Runs `edit` in this process; gives the exit code."""

    def run(*flags: str) -> int:
        given = ["-p", "rock", "-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--quiet"]
        return main(["edit", *given, "--num-images", "1", *flags])

    return run


def best(folder: str = "output") -> Path:
    (picture,) = Path(folder, "ranked").glob("*.png")
    return picture


def changed(folder: str = "output") -> np.ndarray:
    before, after = (np.asarray(PIL.Image.open(path)) for path in ("photo.png", best(folder)))
    return (before != after).any(-1)


class TestEdit:
    def test_nothing_outside_the_mask_changes(self, edit):
        assert edit("--box", "12,8,26,22", "--grow", "3") == 0
        where = white("output/mask.png")
        np.testing.assert_array_equal(where, np.asarray(masks.grow(masks.from_box(SIZE, (12, 8, 26, 22)), 3)) > 0)
        assert not changed()[~where].any() and changed()[where].any()
        assert Path("output/mask_preview.png").exists()

    def test_it_is_the_edit_of_that_mask_as_a_file(self, edit):
        assert edit("--box", "12,8,26,22", "--invert_mask") == 0
        assert edit("--mask", "output/mask.png", "--output_path", "again") == 0
        assert PIL.Image.open(best()).tobytes() == PIL.Image.open(best("again")).tobytes()
        np.testing.assert_array_equal(white("again/mask.png"), ~box(12, 8, 26, 22))

    @pytest.mark.parametrize("flags", ["--box 12,8,26,22 --invert_mask", "--mask drawn.png --invert_mask"])
    def test_replay_finds_its_mask(self, edit, capsys, flags):
        PIL.Image.fromarray(box(12, 8, 26, 22).astype(np.uint8) * 255).save("drawn.png")
        assert edit(*flags.split()) == 0
        run = json.loads(Path("output/run.json").read_text())
        is_file = "drawn" in flags
        assert run["mask"]["name"] == str(Path("drawn.png" if is_file else "output/mask.png").absolute())
        assert run["settings"]["invert_mask"] == is_file
        # whatever it came from, the files show what is edited
        np.testing.assert_array_equal(white("output/mask.png"), ~box(12, 8, 26, 22))
        assert main(["replay", str(best())]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out

    def test_a_mask_that_pictures_were_made_with_is_not_overwritten(self, edit, capsys):
        assert edit("--box", "12,8,26,22") == 0
        before = Path("output/mask.png").read_bytes()
        assert edit("--box", "2,2,20,20") == 2
        assert "--output_path 'output' holds another edit, of which mask.png is the mask" in capsys.readouterr().err
        assert Path("output/mask.png").read_bytes() == before
        assert edit("--box", "12,8,26,22", "--resume") == 0

    def test_the_very_file_that_is_read_is_not_overwritten(self, edit):
        Path("output").mkdir()
        PIL.Image.fromarray(box(12, 8, 26, 22).astype(np.uint8) * 255).save("output/mask.png")
        before = Path("output/mask.png").read_bytes()
        assert edit("--mask", "output/mask.png", "--invert_mask") == 0
        assert Path("output/mask.png").read_bytes() == before

    def test_without_a_mask_there_are_no_mask_files(self, edit):
        assert edit() == 0
        assert not list(Path("output").glob("mask*"))

    def test_two_masks_are_refused(self, edit, capsys):
        assert edit("--box", "1,1,9,9", "--polygon", "1,1 9,1 9,9") == 2
        assert "--box and --polygon both say where to edit" in capsys.readouterr().err

    def test_feathered_it_fades_in_inside_the_mask(self, edit):
        flags = ["--box", "4,4,36,26", "--clip-guidance-scale", "0"]
        assert edit(*flags, "--feather", "0", "--output_path", "hard") == 0
        assert edit(*flags, "--feather", "8", "--output_path", "soft") == 0
        photo, hard, soft = (
            np.asarray(PIL.Image.open(path), int) for path in ("photo.png", best("hard"), best("soft"))
        )
        where = white("soft/mask.png")
        np.testing.assert_array_equal(where, box(4, 4, 36, 26))
        assert not changed("hard")[~where].any() and not changed("soft")[~where].any()
        # a pixel inside the edge it is nearly the photo, eight pixels inside it is all the edit's
        edge, middle = where & ~box(5, 5, 35, 25), box(12, 12, 28, 18)
        np.testing.assert_array_equal(soft[middle], hard[middle])
        assert np.abs(soft - photo)[edge].mean() < 0.3 * np.abs(hard - photo)[edge].mean()
        assert main(["replay", str(best("soft")), "--quiet"]) == 0

    @pytest.mark.parametrize("flag", ["--grow", "--feather"])
    def test_without_a_mask_there_is_no_edge(self, edit, capsys, flag):
        assert edit(flag, "3") == 2
        assert f"{flag} needs a --mask, or another flag that says where to edit" in capsys.readouterr().err
