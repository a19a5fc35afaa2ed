"""What one guided step of the full-size 256×256 network costs: ours against the released editor's.

python -m benchmarks.step

All ways have the same random weights (of the UNet and of a CLIP ViT-B/16) and the same edit of one photo; their steps
are taken in turn in one process. Memory is the peak of a process of its own for each way, weights included, on the
CPU, or what torch allocated at most, on a GPU.
"""

import argparse
import contextlib
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from benchmarks import results
from blended_diffusion import machine
from blended_diffusion.checkpoints import PRESETS
from blended_diffusion.checkpoints.stock_unet import key_map, scheduler_config, unet_config
from blended_diffusion.demo import MODEL_FOLDER
from pipeline_blended_diffusion import BlendedDiffusionPipeline


PRESET = "256x256_diffusion_uncond"
RELEASED = "released editor"


@dataclass(frozen=True)
class Way:
    """How a step is taken.

    Attributes:
        title (`str`): for people.
        gradient (`str`, *optional*): the pipeline's `guidance_gradient`; `None` for the released editor's step.
        dtype (`torch.dtype`): of the networks.
    """

    title: str
    gradient: str | None
    dtype: torch.dtype = torch.float32


WAYS = {
    RELEASED: Way("released editor: two forward passes", None),
    "sample": Way("gradient through the UNet", "sample"),
    "estimate": Way("gradient at the estimate", "estimate"),
    "sample, bf16": Way("gradient through the UNet, bf16", "sample", torch.bfloat16),
    "estimate, bf16": Way("gradient at the estimate, bf16", "estimate", torch.bfloat16),
}


@cache
def weights() -> tuple[dict[str, torch.Tensor], CLIPModel]:
    """Random weights of guided-diffusion's network, and a random CLIP."""
    from benchmarks.reference import reference_network

    torch.manual_seed(0)
    network = reference_network(PRESETS[PRESET].architecture)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:  # the layers that training starts at zero too
                parameter.normal_(0, 0.7 / parameter[0].numel() ** 0.5)
    clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval().requires_grad_(False)
    return network.state_dict(), clip


@cache
def timed_pipeline(dtype: torch.dtype) -> BlendedDiffusionPipeline:
    """Our pipeline with these weights."""
    state, clip = weights()
    architecture = PRESETS[PRESET].architecture
    with torch.device("meta"):
        unet = UNet2DModel.from_config(unet_config(architecture)).eval()
    entries = key_map(architecture)
    tensors = {key: entry.to_unet(key, state[entry.name]).to(dtype) for entry in entries for key in entry.parts}
    unet.load_state_dict(tensors, assign=True)
    pipe = BlendedDiffusionPipeline(
        unet,
        DDPMScheduler(**scheduler_config(architecture)),
        clip if dtype == torch.float32 else copy.deepcopy(clip).to(dtype),
        CLIPTokenizer.from_pretrained(MODEL_FOLDER, subfolder="tokenizer"),
        CLIPImageProcessor(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Steps:
    """Takes steps of one way.

    Args:
        name (`str`): of [`WAYS`].
        device (`torch.device`): where.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.way, self.device = WAYS[name], device
        self.pipe = timed_pipeline(self.way.dtype)
        self.image = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
        self.mask = torch.zeros(1, 256, 256)
        self.mask[:, 64:192, 64:192] = 1
        if self.way.gradient is None:
            from benchmarks.reference import ReleasedStep, reference_network

            with torch.device("meta"):
                network = reference_network(PRESETS[PRESET].architecture)
            network.load_state_dict(weights()[0], assign=True)
            self.pipe.clip_model.to(device)
            edit = (2 * self.image[None].to(device) - 1, self.mask[None].to(device))
            self.released = ReleasedStep(network.to(device), self.pipe, "rock", *edit)
            self.x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)).to(device)
        else:
            self.pipe.to(device)
            self.pipe.unet.to(memory_format=torch.channels_last)  # as `load_model` does

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self) -> float:
        """Of one step, the blending of the background included."""
        if self.way.gradient is None:
            begun = self.now()
            self.released(self.x, 70)
            return self.now() - begun
        ends: list[float] = []

        def after_step(*_) -> dict:
            ends.append(self.now())
            return {}

        self.edit(2, after_step)
        return ends[1] - ends[0]

    def edit(self, steps: int, after_step: Callable | None = None) -> None:
        """A whole edit of so many steps."""
        self.pipe(
            "rock",
            self.image,
            self.mask,
            num_inference_steps=100,
            strength=steps / 100,
            ranking="region",
            guidance_gradient=self.way.gradient,
            num_augmentations=8,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=after_step,
        )

    def flops(self) -> int:
        """Floating-point operations of one step."""
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = Everywhere()
        totals: list[int] = []

        def after_step(*_) -> dict:
            totals.append(counter.get_total_flops())
            return {}

        with counter:
            if self.way.gradient is None:
                self.released(self.x, 70)
                return counter.get_total_flops()
            self.edit(2, after_step)
        return totals[1] - totals[0]


class Everywhere(contextlib.nullcontext):
    """In place of torch's tracker of modules, which does not bear `torch.autograd.grad`: the total is enough."""

    parents = ("Global",)


def peak_in_use(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of five."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds)


def alone(name: str, device: torch.device) -> dict[str, float]:
    """Peak memory and floating-point operations of a step, in a process of its own."""
    steps = Steps(name, device)
    if steps.way.gradient is not None:
        weights.cache_clear()  # the pipeline has them in its own layout
    flops = steps.flops()
    return {"flops": flops, "peak_bytes": peak_in_use(device)}


def plot_steps(figures: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    ways = figures["ways"]
    shown, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    titles = [WAYS[name].title for name in ways]
    for axis, key, label in (
        (axes[0], "times_faster", "times as fast as the released editor's step"),
        (axes[1], "peak_gib", "peak memory (GiB)"),
    ):
        bars = axis.barh(titles, [ways[name][key] for name in ways], color="#4477aa")
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel(label)
    axes[1].set_yticks([])
    shown.savefig(results.RESULTS / "step.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a guided step of the full-size network.")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each way, taken in turn")
    parser.add_argument("--device", help="cpu, cuda, … (default: what there is)")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = machine.find_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    if options.alone:
        print(json.dumps(alone(options.alone, device)))
        return

    alone_figures = {}
    for name in WAYS:  # first, while this process is small
        command = [sys.executable, "-m", "benchmarks.step", "--alone", name, "--device", str(device)]
        command += [] if options.threads is None else ["--threads", str(options.threads)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        alone_figures[name] = json.loads(output.splitlines()[-1])

    ways = {name: Steps(name, device) for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(options.rounds + 1):
        for name, steps in ways.items():
            taken = steps.seconds()
            if number:  # the first round warms up
                seconds[name].append(taken)
    rates = {dtype: matmul_rate(device, dtype) for dtype in {way.dtype for way in WAYS.values()}}
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    measured = {}
    for name, way in WAYS.items():
        flops = alone_figures[name]["flops"]
        measured[name] = figures = {
            "seconds": seconds[name],
            "times_faster": medians[RELEASED] / medians[name],
            "peak_gib": alone_figures[name]["peak_bytes"] / 2**30,
            "tera_flops": flops / 1e12,
            "share_of_matmul_rate": flops / medians[name] / rates[way.dtype],
        }
        print(
            f"{figures['times_faster']:5.2f} × as fast, {figures['peak_gib']:4.1f} GiB, {figures['tera_flops']:5.2f}"
            f" TFLOP at {figures['share_of_matmul_rate']:.0%} of the rate of a matrix product: {way.title}",
            flush=True,
        )
    figures = {"ways": measured, "matmul_flops": {str(dtype): rate for dtype, rate in rates.items()}}
    results.write("step", figures)
    plot_steps(figures)


if __name__ == "__main__":
    main()
