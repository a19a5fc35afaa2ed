"""What `torch.compile` costs once and saves at every step, with the bundled model.

python -m benchmarks.compiling
python -m benchmarks.compiling --full-size --dtype bfloat16

The same edits are made by the plain and by compiled networks, in turn in one process. What compiling takes is the
first edit's time less a later one's. `--full-size` times the 256×256 network's own forward and backward pass instead.
"""

import argparse
import operator
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from PIL import Image

from benchmarks import results
from blended_diffusion import machine
from blended_diffusion.checkpoints import PRESETS
from blended_diffusion.checkpoints.stock_unet import unet_config
from blended_diffusion.models import load_model
from pipeline_blended_diffusion import BlendedDiffusionPipeline


EXAMPLES = Path(__file__).parents[1] / "examples"
WAYS = {"plain": (), "UNet compiled": ("unet",), "UNet and CLIP compiled": ("unet", "clip_model.vision_model")}


def compiled_pipeline(compiled: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> BlendedDiffusionPipeline:
    pipe = load_model(dtype=dtype).pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    for name in compiled:
        operator.attrgetter(name)(pipe).compile()
    return pipe


def seconds_of_edit(pipe: BlendedDiffusionPipeline, gradient: str, candidates: int, steps: int) -> float:
    """Of one edit of so many steps."""
    photo, mask = Image.open(EXAMPLES / "coffee.jpg"), Image.open(EXAMPLES / "coffee_mask.png")
    generators = [torch.Generator().manual_seed(seed) for seed in range(candidates)]
    begun = time.perf_counter()
    pipe(
        "tangerine",
        photo,
        mask,
        num_inference_steps=steps,
        strength=1.0,
        padding_mask_crop=65,
        num_images_per_prompt=candidates,
        generator=generators,
        guidance_gradient=gradient,
    )
    return time.perf_counter() - begun


def time_in_turn(calls: dict[str, Callable[[], float]], rounds: int, passes: int) -> dict[str, Any]:
    """Times calls in turn, each of which makes so many `passes` and says how long it took; the first one is plain."""
    first = {name: call() for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(call())
    medians = {name: statistics.median(times) for name, times in taken.items()}
    plain = medians["plain"]
    figures = {}
    for name in calls:
        figures[name] = {
            "seconds": taken[name],
            "times_faster": plain / medians[name],
            "compiling_in_plain_passes": (first[name] - medians[name]) / (plain / passes),
        }
        print(
            f"  {figures[name]['times_faster']:.2f} × as fast, after compiling for as long as"
            f" {figures[name]['compiling_in_plain_passes']:.0f} plain passes: {name}",
            flush=True,
        )
    return figures


def edits(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Whole edits with the bundled model; a pass is a step."""
    figures = {}
    for gradient in ("estimate", "sample"):
        print(f"a step of {options.candidates} candidates, guidance_gradient={gradient!r}:")
        pipes = {
            name: compiled_pipeline(compiled, device, machine.DTYPES[options.dtype]) for name, compiled in WAYS.items()
        }
        calls = {
            name: partial(seconds_of_edit, pipe, gradient, options.candidates, options.steps)
            for name, pipe in pipes.items()
        }
        figures[gradient] = time_in_turn(calls, options.rounds, options.steps)
    return figures


def passes_of_full_size(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The 256×256 network's forward pass, and forward and backward pass, with random weights."""
    dtype = machine.DTYPES[options.dtype]

    def network() -> UNet2DModel:
        unet = UNet2DModel.from_config(unet_config(PRESETS["256x256_diffusion_uncond"].architecture)).eval()
        return unet.to(device, dtype, memory_format=torch.channels_last).requires_grad_(False)

    def passing(unet: UNet2DModel, backward: bool) -> float:
        sample = torch.randn(1, 3, 256, 256, device=device, dtype=dtype).requires_grad_(backward)
        begun = time.perf_counter()
        with torch.set_grad_enabled(backward):
            out = unet(sample, torch.tensor(500)).sample
            (torch.autograd.grad(out.square().mean(), sample)[0] if backward else out).sum().item()
        return time.perf_counter() - begun

    unets = {"plain": network(), "UNet compiled": network()}
    unets["UNet compiled"].compile()
    figures = {}
    for name, backward in (("forward", False), ("forward and backward", True)):
        print(f"full-size network, {name}:")
        calls = {way: partial(passing, unet, backward) for way, unet in unets.items()}
        figures[name] = time_in_turn(calls, options.rounds, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Time edits with and without torch.compile.")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-size", action="store_true", help="the 256×256 network alone")
    parser.add_argument("--dtype", default="float32", choices=machine.DTYPES, help="of the networks")
    parser.add_argument("--device", help="cpu, cuda, … (default: what there is)")
    options = parser.parse_args()
    machine.keep_freed_memory()
    device = machine.find_device(options.device)
    if options.full_size:
        figures = {"dtype": options.dtype, "passes": passes_of_full_size(options, device)}
        results.write("compiling_full_size", figures)
    else:
        figures = edits(options, device)
        about = {"candidates": options.candidates, "steps": options.steps, "dtype": options.dtype}
        results.write("compiling", {**about, "gradients": figures})


if __name__ == "__main__":
    main()
