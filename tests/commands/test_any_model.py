"""`edit` and `replay` with the models that diffusers has inpainting pipelines for, as people call them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_diffusers import FAMILIES, SIZES

from blended_diffusion.cli import main
from blended_diffusion.editing.records import read_record


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def files(as_in_a_new_process):
    write_files(250, 175)


def write_files(width: int, height: int) -> None:
    """A photo and its mask in the folder."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    noise = np.random.default_rng(0).normal(0, 4, across.shape)
    pixels = np.stack([across + noise, down + noise, 255 - across + noise], axis=-1).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((0.3 * width, 0.3 * height, 0.7 * width, 0.8 * height), fill=255)
    mask.save("mask.png")


@pytest.fixture
def arguments(family_folder):
    def arguments(family: str, *more: str, steps: int = 2) -> list[str]:
        given = ["edit", "-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(family_folder(family))]
        given += ["--clip", str(family_folder("clip")), "--num-inference-steps", str(steps), "--device", "cpu"]
        if family == "if":
            given += ["--upscaler", str(family_folder("if-upscaler"))]
        if family in SIZES:
            given += ["--size", str(SIZES[family])]
        return [*given, *more]

    return arguments


def ranked(folder: str = "output") -> dict[int, Path]:
    """The pictures by their seeds."""
    return {read_record(path).seed: path for path in sorted(Path(folder, "ranked").glob("*.png"))}


def outside(path: Path) -> np.ndarray:
    with Image.open(path) as picture, Image.open("mask.png") as mask:
        return np.asarray(picture)[np.asarray(mask) == 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_keeps_the_background_goes_on_and_is_made_again(arguments, family, capsys):
    if family == "sd":
        write_files(1000, 700)  # which takes longer than the tiny networks
    assert main(arguments(family, "--num-images", "2", "--batch_size", "1")) == 0
    first = ranked()
    for path in first.values():
        np.testing.assert_array_equal(outside(path), outside(Path("photo.png")))
    before = first[404].read_bytes()
    for path in Path("output/ranked").glob("*_seed_405.*"):
        path.unlink()
    assert main(arguments(family, "--num-images", "2", "--batch_size", "1", "--resume")) == 0
    assert ranked().keys() == {404, 405} and ranked()[404].read_bytes() == before
    capsys.readouterr()
    assert main(["replay", str(ranked()[405]), "--device", "cpu"]) == 0
    assert "pixel for pixel the same" in capsys.readouterr().out


def test_what_a_killed_edit_has_finished_is_kept(arguments):
    command = [sys.executable, "-m", "blended_diffusion", *arguments("sd", "--num-images", "40", "--batch_size", "1")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(Path("output/ranked").glob("*.png"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = ranked()
    count = str(len(found) + 1)
    # the last one may have been without its JSON file still
    kept = {seed: os.stat(path).st_mtime_ns for seed, path in found.items() if seed < max(found)}
    assert 1 <= len(kept) < 39
    assert main(arguments("sd", "--num-images", count, "--batch_size", "1", "--resume", "--quiet")) == 0
    now = ranked()
    assert len(now) == int(count) and all(os.stat(now[seed]).st_mtime_ns == when for seed, when in kept.items())


def test_a_network_that_has_changed_is_named(arguments, family_folder, tmp_path, capsys):
    folder = shutil.copytree(family_folder("sd"), tmp_path / "own")
    assert main(arguments("sd", "--model", str(folder), "--num-images", "1", "--quiet")) == 0
    path = next((folder / "vae").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert main(["replay", str(ranked()[404]), "--device", "cpu"]) == 2
    assert "The network 'vae' is not what the picture was made with" in capsys.readouterr().err


def test_each_prompt_has_a_folder_and_all_are_on_one_sheet(arguments):
    assert main(arguments("sd", "-p", "Red rose!", "--num-images", "2", "--ranking", "none", "--quiet")) == 0
    assert ranked("output/01_rock").keys() == ranked("output/02_red_rose").keys() == {404, 405}
    assert read_record(ranked("output/02_red_rose")[404]).settings.prompt == "Red rose!"
    with Image.open("output/prompts.png") as sheet:
        assert sheet.width > 2 * 200 and sheet.height > 2 * 200


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--clip-guidance-scale", "3"], "`clip_guidance_scale` is 3.0, which means nothing to StableDiffusion"),
        (["--gradient-checkpointing"], "Gradient checkpointing means nothing to StableDiffusionInpaintPipeline"),
        (["--offload", "model"], "offload 'model' keeps networks off a GPU, and there is none"),
        (["--lora", "x.safetensors=much"], "--lora 'x.safetensors=much': 'much' is not a number"),
        (["--clip", "/no/such"], "clip '/no/such' cannot be loaded"),
        (["-p", "rock"], "prompt 'rock' is given twice"),
        (["-p", "pear", "--strengths", "0.5,1"], "--strengths 0.5,1 is for one prompt, and there are 2"),
        (["--preset", "release"], "which means nothing to StableDiffusionInpaintPipeline"),
    ],
)
def test_what_does_not_go_is_one_sentence(arguments, capsys, more, complaint):
    assert main(arguments("sd", *more)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert complaint in said[-1] and not Path("output/ranked").exists()
