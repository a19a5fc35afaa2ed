"""What tests ask for by name."""

import socket
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw
from tiny import make_tiny_pipe

from blended_diffusion.pictures import gallery
from pipeline_blended_diffusion import BlendedDiffusionPipeline


# networks this small are slowed by a second thread, and sums split among threads round otherwise
torch.set_num_threads(1)

# to compress pictures of noise takes longer than to make them
Image.Image.save = partialmethod(Image.Image.save, compress_level=1)


@pytest.fixture(autouse=True)
def small_sheets(request, monkeypatch):
    """The sheets and previews beside an edit are a quarter as wide and high: else they take longer than the edit."""
    fit = gallery._fit
    if request.node.get_closest_marker("full_sheets") is None:
        monkeypatch.setattr(gallery, "_fit", lambda image, width, height: fit(image, width // 4, height // 4))


@pytest.fixture
def as_in_a_new_process(tmp_path, monkeypatch):
    """In a folder of its own; what a command sets in torch is set back."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compressed_as_ever(monkeypatch):
    """For files that are compared byte by byte with those of other processes."""
    monkeypatch.setattr(Image.Image, "save", vars(Image.Image)["save"].func)


@pytest.fixture
def tiny_pipe() -> BlendedDiffusionPipeline:
    return make_tiny_pipe()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """A function: what `tiny_diffusers.save` knows by name as a saved folder, made when it is asked for first."""
    import tiny_diffusers

    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            tiny_diffusers.save(name, root / name)
        return root / name

    return folder


@pytest.fixture
def photo() -> Image.Image:
    """A 16×16 picture with something in every channel."""
    ramp = torch.linspace(0, 255, 16)
    pixels = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16), ramp.flip(0).expand(16, 16)], dim=-1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture
def mask() -> Image.Image:
    """White in the middle of 16×16."""
    picture = Image.new("L", (16, 16), 0)
    ImageDraw.Draw(picture).rectangle((4, 5, 10, 11), fill=255)
    return picture


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps its settings for the whole process; every test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("this must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
