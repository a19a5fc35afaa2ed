import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt

from blended_diffusion import cli
from blended_diffusion.applications import background
from blended_diffusion.applications.background import matte, put_back, replace_background
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.records import read_record


RED, GREEN = (220, 40, 30), (20, 160, 60)


@pytest.fixture
def truth() -> Image.Image:
    """The matte of a disc with soft edges, 160×120."""
    large = Image.new("L", (640, 480))
    ImageDraw.Draw(large).ellipse((200, 120, 440, 360), fill=255)
    return large.resize((160, 120), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.5))


@pytest.fixture
def photo(truth) -> Image.Image:
    """A red disc before green, each a little uneven."""
    rows, columns = np.mgrid[:120, :160]
    uneven = 8 * np.sin(columns / 9) * np.cos(rows / 11)
    red, green = (np.asarray(colour) + uneven[..., None] for colour in (RED, GREEN))
    share = np.asarray(truth)[..., None] / 255
    return Image.fromarray((share * red + (1 - share) * green).clip(0, 255).astype(np.uint8))


@pytest.fixture
def foreground(truth) -> Image.Image:
    return truth.point([0] * 128 + [255] * 128)


def off_by(image: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(image, float) - np.asarray(other, float))


class TestMatte:
    def test_it_is_closer_to_the_truth_than_the_mask(self, photo, truth, foreground):
        found = matte(photo, foreground, edge=5)
        edge = (np.asarray(truth) > 0) & (np.asarray(truth) < 255)
        assert off_by(found, truth)[edge].mean() < 0.6 * off_by(foreground, truth)[edge].mean()

    def test_away_from_the_edge_it_is_the_mask(self, photo, foreground):
        far = np.asarray(foreground.filter(ImageFilter.MaxFilter(13))) == np.asarray(
            foreground.filter(ImageFilter.MinFilter(13))
        )
        found = np.asarray(matte(photo, foreground, edge=5))
        assert (found[far] == np.asarray(foreground)[far]).all()
        assert set(np.unique(found)) > {0, 255}

    def test_a_mask_that_is_a_little_off_is_put_right(self, photo, truth, foreground):
        shifted = Image.new("L", foreground.size)
        shifted.paste(foreground, (3, 0))
        found = matte(photo, shifted, edge=6)
        assert off_by(found, truth).mean() < 0.75 * off_by(shifted, truth).mean()

    def test_tiles_do_not_show(self, photo, foreground, monkeypatch):
        whole = matte(photo, foreground, edge=5)
        monkeypatch.setattr(background, "MATTE_TILE", 32)
        assert off_by(matte(photo, foreground, edge=5), whole).max() <= 1


class TestPutBack:
    def test_it_is_what_the_foreground_would_have_looked_like_there(self, photo, truth):
        blue = Image.new("RGB", photo.size, (30, 60, 230))
        share = np.asarray(truth)[..., None] / 255
        rows, columns = np.mgrid[:120, :160]
        red = np.asarray(RED) + (8 * np.sin(columns / 9) * np.cos(rows / 11))[..., None]
        wanted = share * red + (1 - share) * (30, 60, 230)
        edge = (np.asarray(truth) > 0) & (np.asarray(truth) < 255)
        found = np.abs(np.asarray(put_back(photo, blue, truth), float) - wanted)[edge]
        naive = np.abs(np.asarray(Image.composite(photo, blue, truth), float) - wanted)[edge]
        assert found.mean() < 0.25 * naive.mean()
        assert found.max() < 20

    def test_all_foreground_is_the_photo_and_none_the_background(self, photo, truth):
        blue = Image.new("RGB", photo.size, (30, 60, 230))
        result, share = np.asarray(put_back(photo, blue, truth)), np.asarray(truth)
        assert (result[share == 255] == np.asarray(photo)[share == 255]).all()
        assert (result[share == 0] == (30, 60, 230)).all()

    def test_a_hard_matte_is_a_hard_cut(self, photo, foreground):
        blue = Image.new("RGB", photo.size, (30, 60, 230))
        cut = Image.composite(photo, blue, foreground)
        assert (np.asarray(put_back(photo, blue, foreground)) == np.asarray(cut)).all()

    def test_transparency_stays(self, photo, truth):
        see_through = photo.copy()
        see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
        result = put_back(see_through, photo, truth)
        assert (np.asarray(result)[..., 3] == np.asarray(see_through)[..., 3]).all()


class TestReplaceBackground:
    def test_the_foreground_stays_bit_for_bit_and_all_else_is_new(self, tiny_pipe, photo, foreground):
        edited = replace_background(Editor(tiny_pipe, num_images=2), photo, foreground, "rock", edge=4)
        alpha = np.asarray(matte(photo, foreground, 4))
        for image in edited.images:
            assert (np.asarray(image)[alpha == 255] == np.asarray(photo)[alpha == 255]).all()
            changed = (np.asarray(image) != np.asarray(photo)).any(axis=-1)
            assert changed[alpha == 0].mean() > 0.95

    def test_it_is_painted_to_well_within_the_soft_edge(self, tiny_pipe, photo, foreground):
        """Or else the model's picture would carry the old background's colours under the new edge."""
        masks = []

        class Watched(Editor):
            def edit(self, image, mask, settings, name=""):
                masks.append(np.asarray(mask) > 0)
                return super().edit(image, mask, settings, name)

        replace_background(Watched(tiny_pipe, num_images=1), photo, foreground, "rock", edge=4)
        soft = np.asarray(matte(photo, foreground, 4)) < 255
        pixel = photo.width / 16  # of the model's
        assert masks[0][distance_transform_edt(~soft) <= pixel].all()
        assert not masks[0][60, 80]

    @pytest.mark.parametrize(
        ("mask", "complaint"),
        [
            (Image.new("L", (160, 120)), "foreground is black all over"),
            (Image.new("L", (160, 120), 255), "foreground is white all over"),
            (Image.new("L", (120, 160), 255), "foreground is 120×160 pixels"),
        ],
    )
    def test_a_mask_without_foreground_or_background_is_said(self, tiny_pipe, photo, mask, complaint):
        with pytest.raises(ValueError, match=complaint):
            replace_background(Editor(tiny_pipe), photo, mask, "rock")


class TestCommand:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch, photo, foreground):
        monkeypatch.chdir(tmp_path)
        photo.save("photo.png")
        foreground.save("mask.png")
        Image.eval(foreground, lambda value: 255 - value).save("inverted.png")
        return tmp_path

    @pytest.fixture
    def run(self, tiny_model_dir):
        def run(*arguments: str) -> int:
            given = ["-p", "rock", "-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--quiet"]
            return cli.main(["background", *given, "--num-images", "2", *arguments])

        return run

    def test_it_writes_pictures_with_the_foreground_and_the_matte(self, run, files):
        assert run("--mask", "mask.png", "--output_path", "out") == 0
        alpha = np.asarray(Image.open("out/matte.png"))
        results = sorted(files.glob("out/results/*.png"))
        assert len(results) == 2 and (files / "out" / "before_after.png").exists()
        photo = np.asarray(Image.open("photo.png"))
        for path in results:
            assert (np.asarray(Image.open(path))[alpha == 255] == photo[alpha == 255]).all()

    def test_the_mask_can_be_the_other_way_round(self, run):
        assert run("--mask", "mask.png", "--output_path", "one") == 0
        assert run("--mask", "inverted.png", "--invert_mask", "--output_path", "two") == 0
        one, two = (np.asarray(Image.open(f"{folder}/matte.png")) for folder in ("one", "two"))
        assert (one == two).all()

    def test_what_is_ranked_can_be_made_again(self, run, files):
        assert run("--mask", "mask.png", "--output_path", "out") == 0
        picture = sorted(files.glob("out/edit/ranked/*.png"))[0]
        assert read_record(picture).settings.enforce_background is False
        assert cli.main(["replay", str(picture), "--device", "cpu", "--quiet"]) == 0
        again = next(files.glob("out/edit/ranked/*_replay.png"))
        assert (np.asarray(Image.open(again)) == np.asarray(Image.open(picture))).all()

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ("--mask mask.png -i nothing.png", "nothing.png' does not exist"),
            ("--mask white.png", "foreground is white all over"),
            ("", "--mask is missing; say with it or with --mask-prompt what the foreground is"),
        ],
    )
    def test_bad_input_is_one_sentence(self, run, files, capsys, arguments, complaint):
        Image.new("L", (160, 120), 255).save("white.png")
        assert run(*arguments.split(), "--output_path", "out") == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and complaint in error
        assert not (files / "out").exists()
