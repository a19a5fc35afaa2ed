import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from blended_diffusion.editing.candidates import make_candidates
from blended_diffusion.editing.edit import make_again
from blended_diffusion.editing.editor import Editor, FolderEditor
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import read_record
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import read_mask, read_photo


@pytest.fixture
def scene(photo, mask):
    return photo.resize((40, 30)), mask.resize((40, 30), Image.Resampling.NEAREST)


@pytest.fixture
def folder_editor(tiny_model_dir, tmp_path):
    def make(**options):
        model = load_model(str(tiny_model_dir))
        model.pipe.set_progress_bar_config(disable=True)
        made_with = MadeWith.on(torch.device("cpu"), torch.float32)
        return FolderEditor(model, tmp_path / "out", made_with, num_images=3, batch_size=2, **options)

    return make


def test_pictures_come_best_first_and_keep_the_background(tiny_pipe, scene):
    photo, mask = scene
    edited = Editor(tiny_pipe, seed=5, num_images=3).edit(photo, mask, "rock")
    assert edited.clip_distances == sorted(edited.clip_distances)
    assert sorted(edited.seeds) == [5, 6, 7]
    assert edited.best is edited.images[0]
    outside = np.asarray(mask) == 0
    for image in edited.images:
        assert image.size == photo.size
        assert (np.asarray(image)[outside] == np.asarray(photo)[outside]).all()
        assert (np.asarray(image) != np.asarray(photo)).any()


@pytest.mark.slow
def test_batches_do_not_matter(tiny_pipe, scene):
    together = Editor(tiny_pipe, num_images=3, batch_size=3).edit(*scene, "rock")
    apart = Editor(tiny_pipe, num_images=3, batch_size=1).edit(*scene, "rock")
    assert together.seeds == apart.seeds
    assert np.abs(np.asarray(together.best, int) - np.asarray(apart.best, int)).max() <= 1


def test_memory_and_folder_give_the_same_pictures(folder_editor, scene):
    editor = folder_editor()
    edited = editor.edit(*scene, EditSettings(prompt="rock"), "first")
    in_memory = Editor(editor.model, num_images=3, batch_size=2).edit(*scene, EditSettings(prompt="rock"))
    assert edited.seeds == in_memory.seeds
    assert edited.clip_distances == in_memory.clip_distances
    for one, other in zip(edited.images, in_memory.images, strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()
    assert (editor.folder / "first" / "contact_sheet.png").exists()


def test_a_picture_that_came_from_no_file_can_be_made_again(folder_editor, scene):
    editor = folder_editor()
    edited = editor.edit(*scene, "rock", "first")
    best = gallery_pictures(editor, "first")[0]
    record = read_record(best)
    photo = read_photo(record.photo.name)
    region = read_mask(record.mask.name, photo.image.size)
    assert (photo.sha256, region.sha256) == (record.photo.sha256, record.mask.sha256)
    job = editor.prepare(photo, region, record.settings, "first")
    again = job.finish(make_again(job, record))
    assert (np.asarray(again) == np.asarray(edited.best)).all()


def gallery_pictures(editor, name):
    return sorted((editor.folder / name / "ranked").glob("*.png"))


def test_resuming_makes_only_what_is_missing(folder_editor, scene):
    made = []

    def make(job, results, seeds, keep):
        before = {entry.seed for entry in results.finished()}
        made.append([entry.seed for entry in make_candidates(job, results, seeds, keep)])
        assert not before.intersection(made[-1])
        return results.write_sheets(job)

    first = folder_editor(make=make)
    whole = first.edit(*scene, "rock", "a")
    lost = next(path for path in gallery_pictures(first, "a") if path.stem.endswith("_405"))
    lost.with_suffix(".json").unlink()
    again = folder_editor(make=make, resume=True).edit(*scene, "rock", "a")
    assert made == [[404, 405, 406], [405]]
    assert again.seeds == whole.seeds
    assert (np.asarray(again.best) == np.asarray(whole.best)).all()


def test_a_folder_that_cannot_be_written_to_is_named(folder_editor, scene, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="folder .*out' cannot be written to"):
        folder_editor().edit(*scene, "rock", "a")


def test_another_picture_does_not_overwrite_what_the_first_was_made_from(folder_editor, scene):
    editor = folder_editor()
    photo, mask = scene
    editor.edit(photo, mask, "rock", "a")
    record = read_record(gallery_pictures(editor, "a")[0])
    with pytest.raises(ValueError, match="holds another edit"):
        editor.edit(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask, "rock", "a")
    assert read_photo(record.photo.name).sha256 == record.photo.sha256


def test_what_is_written_stays_whole(folder_editor, scene, monkeypatch):
    editor = folder_editor()
    photo = editor.keep_photo(scene[0], "a")
    kept = photo.path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ValueError, match="full"):
        editor.keep_photo(scene[0], "a")
    assert photo.path.read_bytes() == kept


def test_a_colour_profile_is_kept(folder_editor, scene):
    editor = folder_editor()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, profiled = (editor.keep_photo(scene[0], "a", profile) for profile in (None, srgb))
    assert plain.path != profiled.path
    assert read_photo(str(plain.path)).icc_profile is None
    assert read_photo(str(profiled.path)).icc_profile == profiled.icc_profile == srgb
