import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blended_diffusion import cli
from blended_diffusion.applications.scribble import SCRIBBLE_STRENGTH, scribble, start_from
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.records import read_record
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import read_photo


BLOB = (60, 40, 100, 80)


@pytest.fixture
def scene() -> Image.Image:
    """160×120 with texture and edges everywhere, as a photo has them."""
    rows, columns = np.mgrid[:120, :160]
    texture = 60 * np.sin(columns / 5) * np.cos(rows / 7) + np.random.default_rng(0).normal(0, 6, (120, 160))
    pixels = np.stack([120 + texture, 90 + rows, 200 - columns + texture], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def painted(scene) -> Image.Image:
    painted = scene.copy()
    ImageDraw.Draw(painted).ellipse(BLOB, fill=(250, 10, 20))
    return painted


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.fixture
def editor(tiny_pipe) -> Editor:
    return Editor(tiny_pipe, num_images=2)


class TestStart:
    @pytest.mark.parametrize("quality", [None, 90, 70])
    def test_the_photo_is_untouched_and_the_paint_is_there(self, editor, scene, painted, quality):
        paint = painted if quality is None else as_jpeg(painted, quality)
        start, mask = start_from(editor, scene, paint)
        before, after, inside = np.asarray(scene), np.asarray(start.image), np.asarray(mask) > 0
        assert (after[~inside] == before[~inside]).all()
        assert (np.abs(after[55:65, 75:85].astype(int) - (250, 10, 20)) < 16).all()
        # the margin, and no more: 6 % of 41 pixels, and the 8×8 block that JPEG smears the edge over
        left, top, right, bottom = mask.getbbox()
        assert 1 <= BLOB[0] - left <= 10 and 1 <= BLOB[1] - top <= 10
        assert 1 <= right - BLOB[2] - 1 <= 10 and 1 <= bottom - BLOB[3] - 1 <= 10

    def test_in_the_margin_the_photo_shows(self, editor, scene, painted):
        start, mask = start_from(editor, scene, painted, margin=0.25)
        ring = np.asarray(mask) > 0
        ring[BLOB[1] : BLOB[3] + 1, BLOB[0] : BLOB[2] + 1] = False
        assert ring.sum() > 500
        assert (np.asarray(start.image)[ring] == np.asarray(scene)[ring]).all()

    def test_paint_on_a_transparent_layer_is_the_same(self, editor, scene, painted):
        layer = Image.new("RGBA", scene.size)
        ImageDraw.Draw(layer).ellipse(BLOB, fill=(250, 10, 20, 255))
        on_layer, on_photo = start_from(editor, scene, layer), start_from(editor, scene, painted)
        assert (np.asarray(on_layer[0].image) == np.asarray(on_photo[0].image)).all()
        assert (np.asarray(on_layer[1]) == np.asarray(on_photo[1])).all()

    def test_a_photos_transparency_stays(self, editor, scene, painted):
        alpha = Image.linear_gradient("L").resize(scene.size)
        see_through = scene.copy()
        see_through.putalpha(alpha)
        start, _ = start_from(editor, see_through, painted)
        assert start.image.mode == "RGBA"
        assert (np.asarray(start.image.getchannel("A")) == np.asarray(alpha)).all()

    def test_nothing_painted_is_said(self, editor, scene):
        with pytest.raises(ValueError, match="painted shows what the photo shows"):
            start_from(editor, scene, as_jpeg(scene, 80))

    def test_another_size_is_said(self, editor, scene, painted):
        with pytest.raises(ValueError, match="painted is 80×60 pixels .* the photo is 160×120"):
            start_from(editor, scene, painted.resize((80, 60)))


class TestScribble:
    def test_the_background_is_the_photos_not_the_painted_files(self, editor, scene, painted):
        edited = scribble(editor, scene, as_jpeg(painted, 60), "rock")
        _, mask = start_from(editor, scene, as_jpeg(painted, 60))
        outside = np.asarray(mask) == 0
        for image in edited.images:
            assert (np.asarray(image)[outside] == np.asarray(scene)[outside]).all()

    def test_it_starts_from_the_paint(self, editor, scene, painted):
        other = scene.copy()
        ImageDraw.Draw(other).ellipse(BLOB, fill=(10, 20, 250))
        red, blue = (
            np.asarray(scribble(editor, scene, paint, EditSettings(prompt="rock", strength=0.2)).best, int)
            for paint in (painted, other)
        )
        inside = (slice(50, 70), slice(70, 90))
        assert red[inside][..., 0].mean() > blue[inside][..., 0].mean() + 50

    def test_the_default_strength_is_a_scribbles(self, editor, scene, painted):
        default = scribble(editor, scene, painted, "rock")
        named = scribble(editor, scene, painted, EditSettings(prompt="rock", strength=SCRIBBLE_STRENGTH))
        other = scribble(editor, scene, painted, EditSettings(prompt="rock", strength=0.8))
        assert (np.asarray(default.best) == np.asarray(named.best)).all()
        assert (np.asarray(default.best) != np.asarray(other.best)).any()


class TestCommand:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch, scene, painted):
        monkeypatch.chdir(tmp_path)
        scene.save("photo.png")
        painted.save("painted.jpg", quality=85)
        return tmp_path

    @pytest.fixture
    def edit(self, tiny_model_dir):
        def run(*arguments: str) -> int:
            given = ["-p", "rock", "-i", "photo.png", "--model", str(tiny_model_dir), "--device", "cpu", "--quiet"]
            return cli.main(["edit", *given, "--num-images", "1", *arguments])

        return run

    def test_it_is_an_edit_of_the_scribble_that_can_be_made_again(self, edit, files):
        assert edit("--scribble", "painted.jpg", "--output_path", "out") == 0
        picture = next(files.glob("out/ranked/*.png"))
        record = read_record(picture)
        assert record.settings.strength == SCRIBBLE_STRENGTH
        assert read_photo(record.photo.name).sha256 == record.photo.sha256
        outside = np.asarray(Image.open(record.mask.name)) == 0
        photo = np.asarray(Image.open("photo.png"))
        assert (np.asarray(Image.open(picture))[outside] == photo[outside]).all()
        assert cli.main(["replay", str(picture), "--device", "cpu", "--quiet"]) == 0
        again = next(files.glob("out/ranked/*_replay.png"))
        assert (np.asarray(Image.open(again)) == np.asarray(Image.open(picture))).all()

    def test_strengths_become_edits_and_a_strip(self, edit, files):
        assert edit("--scribble", "painted.jpg", "--strengths", "0.4,0.8", "--output_path", "out") == 0
        for strength in (0.4, 0.8):
            picture = next(files.glob(f"out/strength_{strength}/ranked/*.png"))
            assert read_record(picture).settings.strength == strength
        with Image.open("out/strengths.png") as strip:
            assert strip.width > 3 * 256

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ("--scribble painted.jpg --mask photo.png", "--mask and --scribble both say where to edit"),
            ("--scribble photo.png", "--scribble 'photo.png' shows what the photo shows"),
            ("--scribble nothing.png", "--scribble .*nothing.png' does not exist"),
            ("--scribble painted.jpg --strength 0.5 --strengths 0.5", "--strength 0.5 and --strengths 0.5"),
            ("--scribble painted.jpg --strengths 0.5,2", "--strengths '0.5,2': give numbers above 0"),
            ("--scribble painted.jpg --strengths half", "--strengths 'half': give numbers above 0"),
        ],
    )
    def test_bad_input_is_one_sentence(self, edit, files, capsys, arguments, complaint):
        assert edit(*arguments.split(), "--output_path", "out") == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert re.search(complaint, error)
        assert not (files / "out").exists()
