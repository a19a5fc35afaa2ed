"""One edit of a tiny model, for all that is told of edits, their folders and their candidates."""

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

from blended_diffusion.editing.edit import Edit
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import read_mask, read_photo


PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A 40×30 photo and a mask."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "photo.png", icc_profile=PROFILE)
    mask = PIL.Image.new("L", (40, 30))
    mask.paste(255, (12, 8, 26, 22))
    mask.save(folder / "mask.png")
    return folder


@pytest.fixture
def edit(files, tiny_model_dir, one_thread):
    model = load_model(str(tiny_model_dir))
    model.pipe.set_progress_bar_config(disable=True)
    photo = read_photo(files / "photo.png")
    return Edit.prepare(model, photo, read_mask(files / "mask.png", photo.image.size), EditSettings("a rock"))
