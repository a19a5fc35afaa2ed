"""How far pictures in half precision are from those in fp32, and whether any of them is NaN.

python -m benchmarks.precision
python -m benchmarks.precision --short

Edits drawn by lot from the evaluation's (photo, mask, word) are made in fp32, bf16 and fp16 from the same seed: whole
ones with the bundled model's default settings, to compare the model's pictures and the judge's verdicts, or `--short`
ones with every other setting drawn by lot too, to look for NaN.
"""

import argparse
import contextlib
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks import results
from blended_diffusion import machine
from blended_diffusion.editing.edit import Candidate, Edit
from blended_diffusion.evaluation.benchmark import BenchmarkEdit, load_benchmark
from blended_diffusion.evaluation.judge import Judge
from blended_diffusion.evaluation.methods import METHODS
from blended_diffusion.models import Model, load_model
from blended_diffusion.painters.settings import EditSettings


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WANTED = 2.0  # levels of 255, the mean over a picture
WAYS = {
    "gradient at the estimate": METHODS["default"].settings,
    "gradient through the UNet": METHODS["gradient-through-network"].settings,
}


class RoundedOnCPU(TorchDispatchMode):
    """fp16 convolutions and matrix products on the CPU, computed in fp32 and rounded, as GPUs do.

    PyTorch's own take a hundred times as long there.
    """

    slow = {
        getattr(torch.ops.aten, name).default for name in ("convolution", "convolution_backward", "mm", "addmm", "bmm")
    }

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        first = args[0] if args else None
        if function not in self.slow or first.dtype != torch.float16 or first.device.type != "cpu":
            return function(*args, **(kwargs or {}))
        out = function(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, torch.Tensor.half, out)


def make(model: Model, task: BenchmarkEdit, seed: int, settings: EditSettings) -> tuple[Edit, Candidate | None]:
    """The candidate of this seed, `None` where it is NaN."""
    edit = Edit.prepare(model, task.photo, task.mask, settings)
    fp16 = model.pipe.unet.dtype == torch.float16
    try:
        with RoundedOnCPU() if fp16 else contextlib.nullcontext():
            return edit, edit.make([seed])[0]
    except ArithmeticError:
        return edit, None


def short_settings(draw: random.Random, word: str) -> EditSettings:
    """Few steps, and all else that strains a number format."""
    return EditSettings(
        prompt=word,
        num_inference_steps=draw.randint(2, 4),
        strength=draw.choice([0.6, 1.0]),
        clip_guidance_scale=draw.choice([0.01, 10.0, 160.0, 1000.0, 10000.0]),
        range_guidance_scale=draw.choice([0.0, 50.0, 500.0]),
        guidance_gradient=draw.choice(["sample", "estimate"]),
        num_augmentations=draw.randint(1, 4),
        ddim=draw.random() < 0.5,
    )


def levels_of(candidate: Candidate) -> np.ndarray:
    return np.asarray(candidate.image, dtype=np.float32)


def compare_formats(models: dict[str, Model], judge: Judge, number: int, way: dict[str, Any]) -> dict[str, Any]:
    """Differences to fp32 and verdicts of so many whole edits."""
    draw = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for task in draw.sample(load_benchmark(), number):
        seed = draw.randrange(2**31)
        settings = EditSettings(prompt=task.word, **way)
        exact = None
        for name, model in models.items():
            edit, candidate = make(model, task, seed, settings)
            if candidate is None:
                rows[name].append({"task": task.number, "seed": seed, "nan": True})
                continue
            exact = candidate if exact is None else exact
            difference = np.abs(levels_of(candidate) - levels_of(exact))
            inside = np.asarray(edit.canvas.model_mask) > 0
            verdict = judge.verdicts([edit.finish(candidate).crop(task.square)])[0]
            rows[name].append(
                {
                    "task": task.number,
                    "seed": seed,
                    "difference": float(difference.mean()),
                    "difference_inside_mask": float(difference[inside].mean()),
                    "clip_distance": candidate.clip_distance,
                    "right": verdict == task.word,
                }
            )
    return {name: {**summary(found), "edits": found} for name, found in rows.items()}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    made = [row for row in found if not row.get("nan")]
    differences = [row["difference"] for row in made]
    return {
        "nan": len(found) - len(made),
        "mean": statistics.mean(differences),
        "median": statistics.median(differences),
        "largest": max(differences),
        "mean_inside_mask": statistics.mean(row["difference_inside_mask"] for row in made),
        "share_within_wanted": sum(difference <= WANTED for difference in differences) / len(found),
        "judged_right": sum(row["right"] for row in made) / len(found),
    }


def count_nan(models: dict[str, Model], number: int) -> dict[str, int]:
    """How many of so many short edits are NaN."""
    draw, tasks = random.Random(1), load_benchmark()
    counts = dict.fromkeys(models, 0)
    for _ in range(number):
        task = draw.choice(tasks)
        settings, seed = short_settings(draw, task.word), draw.randrange(2**31)
        for name, model in models.items():
            counts[name] += make(model, task, seed, settings)[1] is None
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare pictures in half precision with those in fp32.")
    parser.add_argument("--short", action="store_true", help="short edits, to look for NaN")
    parser.add_argument("--edits", type=int, help="how many (default: 24 of each way to guide, 200 short ones)")
    parser.add_argument("--device", help="cpu, cuda, … (default: what there is)")
    options = parser.parse_args()
    machine.keep_freed_memory()
    device = machine.find_device(options.device)
    models = {name: load_model(dtype=dtype) for name, dtype in FORMATS.items()}
    for model in models.values():
        model.pipe.to(device).set_progress_bar_config(disable=True)
    if options.short:
        number = options.edits or 200
        found = count_nan(models, number)
        print(f"NaN in {number} short edits: {found}")
        results.write("precision_short", {"edits": number, "nan": found})
        return

    judge, figures = Judge.load(device=device), {}
    for way, settings in WAYS.items():
        figures[way] = compare_formats(models, judge, options.edits or 24, settings)
        for name, row in figures[way].items():
            print(
                f"{way}, {name}: mean {row['mean']:.2f}/255 (largest {row['largest']:.2f}, inside the mask"
                f" {row['mean_inside_mask']:.2f}), within {WANTED:g}: {row['share_within_wanted']:.0%}, judged right:"
                f" {row['judged_right']:.0%}, NaN: {row['nan']}",
                flush=True,
            )
        results.write("precision", figures)


if __name__ == "__main__":
    main()
