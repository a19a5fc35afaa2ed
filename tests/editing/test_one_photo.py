"""One photo in one call: files or pictures in, pictures out, the best one first."""

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny import make_tiny_pipe

import blended_diffusion
from blended_diffusion import Editor, EditSettings
from blended_diffusion.editing.one_photo import edit_photo
from blended_diffusion.models import load_model
from blended_diffusion.pictures.inputs import read_mask, read_photo


@pytest.fixture
def scene(photo, mask):
    return photo.resize((40, 30)), mask.resize((40, 30), Image.Resampling.NEAREST)


@pytest.fixture
def files(scene, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene[0].save(tmp_path / "photo.png", icc_profile=profile)
    scene[1].save(tmp_path / "mask.png")
    return tmp_path / "photo.png", tmp_path / "mask.png"


def arrays(edited) -> list[np.ndarray]:
    return [np.asarray(image) for image in edited.images]


def test_three_lines(tiny_model_dir, files, scene):
    """From files and a model's name; outside the mask the photo is as it was."""
    photo, mask = files
    edited = blended_diffusion.edit(str(photo), mask, "rock", str(tiny_model_dir), num_images=2, device="cpu")
    assert edited.clip_distances == sorted(edited.clip_distances) and sorted(edited.seeds) == [404, 405]
    outside = np.asarray(scene[1]) == 0
    np.testing.assert_array_equal(np.asarray(edited.best)[outside], np.asarray(scene[0])[outside])
    assert (np.asarray(edited.best) != np.asarray(scene[0])).any()


@pytest.mark.slow
def test_however_it_is_given_it_is_the_editors_edit(files, scene):
    pipe = make_tiny_pipe()
    wanted = EditSettings("rock", strength=0.4)
    expected = arrays(Editor(pipe, seed=3, num_images=2).edit(*scene, wanted))
    read = read_photo(files[0]), read_mask(files[1], (40, 30))
    for photo, mask in (files, scene, read, (scene[0].convert("RGB"), scene[1].convert("RGB"))):
        edited = edit_photo(photo, mask, "rock", painter_of(pipe), seed=3, num_images=2, strength=0.4)
        np.testing.assert_array_equal(arrays(edited), expected)
    assert len(edit_photo(scene[0], None, wanted, painter_of(pipe), num_images=1).images) == 1


def painter_of(pipe):
    return Editor(pipe).model


def test_a_mask_may_be_inverted(files, scene):
    model = painter_of(make_tiny_pipe())
    by_file, by_picture = (
        edit_photo(photo, mask, "rock", model, num_images=1, invert_mask=True) for photo, mask in (files, scene)
    )
    np.testing.assert_array_equal(arrays(by_file), arrays(by_picture))
    kept = np.asarray(scene[1]) > 0
    np.testing.assert_array_equal(arrays(by_file)[0][kept], np.asarray(scene[0])[kept])


@pytest.mark.parametrize(
    ("region", "settings", "complaint"),
    [
        (Image.new("L", (30, 40), 255), {}, "`mask` is 30×40 pixels .* and the photo is 40×30; they must be the same"),
        (Image.new("L", (40, 30)), {}, "`mask` leaves nothing to edit; paint white"),
        (Image.new("L", (40, 30), 255), {"invert_mask": True}, "`mask` leaves nothing to edit; paint black"),
        (None, {"model": "no such/../thing"}, "neither a folder nor a Hub id"),
    ],
)
def test_what_cannot_be_edited_is_one_sentence(scene, region, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        edit_photo(scene[0], region, "rock", **settings)


def test_a_setting_that_there_is_not_is_named(scene):
    with pytest.raises(TypeError, match="strenght"):
        edit_photo(*scene, "rock", strenght=0.5)


def test_a_model_is_used_where_it_is(tiny_model_dir, scene):
    model = load_model(str(tiny_model_dir))
    assert edit_photo(*scene, "rock", model, num_images=1).seeds == [404]
    assert next(model.pipe.unet.parameters()).device.type == "cpu"
