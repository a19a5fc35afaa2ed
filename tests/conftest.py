"""Tiny real components for every test: small enough to run in milliseconds, of the very classes that users load."""

import atexit
import os
import shutil
import socket
import string
import sys
import tempfile
from collections.abc import Iterable
from functools import partialmethod
from pathlib import Path


# Processes of tests side by side must not write into one folder: into this one diffusers copies the pipelines that it
# loads, and reads its name when it is imported. (Tests import this file a second time.)
if "diffusers" not in sys.modules:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
    # those that tests start have one thread too, and find this checkout before what is installed
    os.environ["OMP_NUM_THREADS"] = "1"
    checkout = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image, ImageDraw
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from blended_diffusion.pictures import gallery
from pipeline_blended_diffusion import BlendedDiffusionPipeline


# networks this small are slowed by a second thread, and sums split among threads round otherwise
torch.set_num_threads(1)

# to compress pictures of noise takes longer than to make them
if not isinstance(vars(Image.Image)["save"], partialmethod):
    Image.Image.save = partialmethod(Image.Image.save, compress_level=1)

RECORDED_TRACES = "test_follows_a_recorded_trace"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: one process for each core, 2 GB for each, and no more than eight.

    Every process spends the first seconds on importing, which many do not make shorter.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().total // 2**31, 8))


# a model in a folder is what commands load, and a desk is where documents are run
WHOLE = {"tiny_model_dir", "desk"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what runs whole commands, applications or documents, wherever it is."""
    for item in items:
        applies = "applications" in item.path.parts and "tiny_pipe" in item.fixturenames
        if applies or WHOLE.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """Nobody should take a run without the recorded traces for one that has compared with the released editor."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if RECORDED_TRACES in report.nodeid]
    if skipped:
        terminalreporter.write_sep("!", "NOT TESTED: the released editor's recorded traces", red=True, bold=True)
        terminalreporter.write_line(f"{skipped[0].longrepr[-1]}: no edit was compared with what the released one did.")


# the one table of tolerances, (relative, absolute), for every comparison of numbers
TOLERANCES = {
    torch.float64: (1e-7, 1e-8),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float16: (1e-2, 1e-2),
}


def quick_first(values: Iterable) -> list:
    """The values of a parameter; with all but the first of them a test counts as slow."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def assert_close(actual, expected, dtype: torch.dtype = torch.float32) -> None:
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)


def tiny_unet(**changes) -> UNet2DModel:
    """A 16×16 network of guided-diffusion's kind with learned variance."""
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "attention_head_dim": 16,
    }
    return UNet2DModel(**{**config, **changes}).eval()


def tiny_clip(image_size: int = 16) -> CLIPModel:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}
    vision = {**shape, "image_size": image_size, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def tiny_tokenizer() -> CLIPTokenizer:
    """Letters and digits as tokens, padded to 16."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: index for index, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def tiny_feature_extractor(size: int = 16) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def tiny_scheduler() -> DDPMScheduler:
    """Little noise at the end, so that a network which was never trained does not throw the estimate far away."""
    return DDPMScheduler(beta_end=0.005, variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")


def make_tiny_pipe(**changes) -> BlendedDiffusionPipeline:
    components = {
        "unet": tiny_unet(),
        "scheduler": tiny_scheduler(),
        "clip_model": tiny_clip(),
        "tokenizer": tiny_tokenizer(),
        "feature_extractor": tiny_feature_extractor(),
        "default_num_inference_steps": 5,
        "default_strength": 0.8,
        "default_clip_guidance_scale": 20.0,
        "default_num_augmentations": 3,
    }
    pipe = BlendedDiffusionPipeline(**{**components, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
