import numpy as np
import pytest
from PIL import Image, ImageDraw

from blended_diffusion import cli
from blended_diffusion.applications.remove import REMOVING_STRENGTH, membrane, misfit, remove, smooth_fill
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.records import read_record
from blended_diffusion.painters.settings import EditSettings


BOX = (40, 30, 80, 60)


@pytest.fixture
def slope() -> Image.Image:
    """A 120×90 picture whose colours rise evenly across and down."""
    rows, columns = np.mgrid[:90, :120]
    return Image.fromarray(np.stack([40 + columns, 60 + rows, 200 - columns], axis=-1).astype(np.uint8))


@pytest.fixture
def with_thing(slope) -> Image.Image:
    picture = slope.copy()
    ImageDraw.Draw(picture).ellipse((BOX[0] + 3, BOX[1] + 3, BOX[2] - 4, BOX[3] - 4), fill=(255, 255, 0))
    return picture


@pytest.fixture
def region(slope) -> Image.Image:
    region = Image.new("L", slope.size)
    region.paste(255, BOX)
    return region


class TestSmoothFill:
    def test_a_slope_goes_on_through_the_hole(self, slope, with_thing, region):
        filled = smooth_fill(with_thing, region)
        assert np.abs(np.asarray(filled, int) - np.asarray(slope, int)).max() <= 3

    def test_outside_nothing_changes(self, with_thing, region):
        outside = np.asarray(region) == 0
        filled = smooth_fill(with_thing, region)
        assert (np.asarray(filled)[outside] == np.asarray(with_thing)[outside]).all()

    def test_at_the_border_it_is_filled_from_what_there_is(self, slope):
        region = Image.new("L", slope.size)
        region.paste(255, (0, 0, 30, 90))
        filled = np.asarray(smooth_fill(slope, region), int)
        assert np.abs(filled[:, :30] - filled[:, 31:32]).mean() < 6

    def test_transparency_stays(self, with_thing, region):
        with_thing.putalpha(Image.linear_gradient("L").resize(with_thing.size))
        filled = smooth_fill(with_thing, region)
        assert (np.asarray(filled)[..., 3] == np.asarray(with_thing)[..., 3]).all()

    def test_every_colour_is_its_neighbours_mean(self):
        colours = np.random.default_rng(0).uniform(0, 255, (9, 11, 3))
        hole = np.zeros((9, 11), bool)
        hole[2:7, 3:8] = True
        filled = membrane(colours, hole)
        mean = (filled[:-2, 1:-1] + filled[2:, 1:-1] + filled[1:-1, :-2] + filled[1:-1, 2:]) / 4
        np.testing.assert_allclose(filled[1:-1, 1:-1][hole[1:-1, 1:-1]], mean[hole[1:-1, 1:-1]])
        np.testing.assert_array_equal(filled[~hole], colours[~hole])

    @pytest.mark.parametrize(
        ("fill", "size", "complaint"),
        [
            (0, (120, 90), "mask is black all over"),
            (255, (120, 90), "mask leaves nothing of the picture"),
            (255, (60, 90), "mask is 60×90 pixels"),
        ],
    )
    def test_a_mask_that_cannot_be_filled_is_said(self, slope, fill, size, complaint):
        with pytest.raises(ValueError, match=complaint):
            smooth_fill(slope, Image.new("L", size, fill))


class TestMisfit:
    @pytest.fixture
    def grass(self) -> Image.Image:
        rows, columns = np.mgrid[:90, :120]
        texture = 40 * np.sin(columns / 2) * np.cos(rows / 3)
        return Image.fromarray(np.stack([60 + texture, 120 + texture, 40 + texture], axis=-1).astype(np.uint8))

    def test_what_goes_on_fits_better_than_a_blur_and_that_than_a_thing(self, grass, region):
        blurred, thing = smooth_fill(grass, region), grass.copy()
        ImageDraw.Draw(thing).ellipse(BOX, fill=(250, 40, 40))
        misfits = [misfit(picture, region) for picture in (grass, blurred, thing)]
        assert misfits[0] < misfits[1] < misfits[2]

    def test_a_seam_counts(self, slope, region):
        shifted = slope.copy()
        shifted.paste(slope.crop((70, 30, 110, 60)), BOX)
        assert misfit(shifted, region) > 2 * misfit(slope, region)

    def test_what_is_further_away_does_not(self, grass, region):
        changed = grass.copy()
        changed.paste((255, 0, 255), (0, 0, 15, 90))
        assert misfit(changed, region) == misfit(grass, region)


class TestRemove:
    def test_outside_the_photo_stays_and_inside_the_thing_goes(self, tiny_pipe, with_thing, region):
        edited = remove(Editor(tiny_pipe, num_images=2), with_thing, region)
        outside = np.asarray(region) == 0
        for image in edited.images:
            assert (np.asarray(image)[outside] == np.asarray(with_thing)[outside]).all()
            assert (np.asarray(image)[45, 60] != (255, 255, 0)).any()

    def test_the_best_fit_comes_first_with_its_own_seed(self, tiny_pipe, with_thing, region):
        editor = Editor(tiny_pipe, num_images=6)
        edited = remove(editor, with_thing, region)
        misfits = [misfit(image, region) for image in edited.images]
        assert misfits == sorted(misfits) and len(set(misfits)) > 1
        settings = EditSettings(prompt="", strength=REMOVING_STRENGTH)
        as_edited = editor.edit(smooth_fill(with_thing, region), region, settings)
        assert edited.seeds != as_edited.seeds
        for image, distance, seed in zip(edited.images, edited.clip_distances, edited.seeds, strict=True):
            place = as_edited.seeds.index(seed)
            assert as_edited.clip_distances[place] == distance
            assert (np.asarray(as_edited.images[place]) == np.asarray(image)).all()

    def test_the_thing_itself_does_not_matter(self, tiny_pipe, slope, with_thing, region):
        editor = Editor(tiny_pipe, num_images=1)
        one, other = (remove(editor, picture, region).best for picture in (slope, with_thing))
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1

    def test_without_surroundings_it_is_said_before_anything_is_made(self, tiny_pipe, slope):
        mask = Image.new("L", slope.size, 255)
        mask.paste(0, (0, 0, 3, 90))
        with pytest.raises(ValueError, match="mask leaves nothing of the picture"):
            remove(Editor(tiny_pipe), slope, mask)


class TestCommand:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch, with_thing, region):
        monkeypatch.chdir(tmp_path)
        with_thing.save("photo.png")
        region.save("mask.png")
        Image.new("L", region.size, 255).save("white.png")
        return tmp_path

    @pytest.fixture
    def run(self, tiny_model_dir):
        def run(*arguments: str) -> int:
            given = ["-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--output_path", "out"]
            return cli.main(["remove", *given, *arguments])

        return run

    def test_it_writes_the_fills_best_first(self, run, files, capsys):
        assert run("--mask", "mask.png", "--num-images", "3") == 0
        results = sorted(files.glob("out/results/*.png"))
        assert [path.name[0] for path in results] == ["1", "2", "3"]
        region = Image.open("mask.png")
        misfits = [misfit(Image.open(path), region) for path in results]
        assert misfits == sorted(misfits)
        assert (files / "out" / "before_after.png").exists()
        assert "before_after.png" in capsys.readouterr().out

    def test_what_is_ranked_can_be_made_again(self, run, files):
        assert run("--mask", "mask.png", "--num-images", "1", "--quiet") == 0
        picture = next(files.glob("out/edit/ranked/*.png"))
        assert read_record(picture).settings.prompt == ""
        assert cli.main(["replay", str(picture), "--device", "cpu", "--quiet"]) == 0
        again = next(files.glob("out/edit/ranked/*_replay.png"))
        assert (np.asarray(Image.open(again)) == np.asarray(Image.open(picture))).all()

    def test_a_run_can_be_resumed(self, run, files):
        assert run("--mask", "mask.png", "--num-images", "2", "--quiet") == 0
        before = [path.read_bytes() for path in sorted(files.glob("out/results/*.png"))]
        next(files.glob("out/edit/ranked/*.json")).unlink()
        assert run("--mask", "mask.png", "--num-images", "2", "--quiet", "--resume") == 0
        assert [path.read_bytes() for path in sorted(files.glob("out/results/*.png"))] == before

    def test_the_making_can_be_filmed(self, run, files):
        flags = ["--vid", "--vid-format", "gif", "--strip", "2"]
        assert run("--mask", "mask.png", "--num-images", "1", "--quiet", *flags) == 0
        assert [path.suffix for path in sorted(files.glob("out/edit/films/*"))] == [".gif", ".png"]

    def test_a_box_will_do(self, run, files):
        flags = ["--num-images", "1", "--quiet"]
        assert run("--mask", "mask.png", *flags, "--output_path", "one") == 0
        assert run("--box", ",".join(map(str, BOX)), *flags, "--output_path", "two") == 0
        one, two = (next(files.glob(f"{folder}/results/*.png")).read_bytes() for folder in ("one", "two"))
        assert one == two

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ("--mask white.png", "mask leaves nothing of the picture"),
            ("", "--mask is missing; say with it, with --box"),
            ("--mask mask.png --box 1,1,9,9", "--mask and --box both say where to edit"),
        ],
    )
    def test_bad_input_is_one_sentence(self, run, files, capsys, arguments, complaint):
        assert run(*arguments.split(), "--quiet") == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and complaint in error
        assert not (files / "out").exists()
