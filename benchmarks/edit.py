"""What a whole edit costs and how good it is, for every preset, with the bundled model and the evaluation's judge.

python -m benchmarks.edit

Times are of making the candidates, without start-up; the presets take turns, edit by edit, in one process.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import results
from blended_diffusion import machine
from blended_diffusion.evaluation.benchmark import load_benchmark
from blended_diffusion.evaluation.judge import Judge
from blended_diffusion.evaluation.methods import METHODS
from blended_diffusion.evaluation.perceptual import load_lpips
from blended_diffusion.evaluation.report import summarise
from blended_diffusion.evaluation.runs import Bench, MeasuredEdit
from blended_diffusion.models import load_model


# the presets, under the names of the evaluation's methods
WAYS = {"release": "release", "best": "default", "balanced": "balanced", "fast": "fast"}


def plot_ways(ways: dict[str, dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    shown, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, figures in ways.items():
        accuracy = figures["mean"]["all"]
        spread = [[accuracy["share"] - accuracy["low"]], [accuracy["high"] - accuracy["share"]]]
        axis.errorbar(figures["share_of_release"], accuracy["share"], yerr=spread, fmt="o", capsize=3)
        axis.annotate(name, (figures["share_of_release"], accuracy["share"]), (6, 6), textcoords="offset points")
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_xlabel("time, as a share of --preset release")
    axis.set_ylabel("candidates judged right")
    axis.set_ylim(0, 1)
    shown.savefig(results.RESULTS / "edit.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality against time for every preset.")
    parser.add_argument("--edits", type=int, default=16, help="so many, spread over the benchmark")
    parser.add_argument("--num-images", type=int, default=4, help="candidates of each edit, made together")
    options = parser.parse_args()
    machine.keep_freed_memory()
    model = load_model()
    model.pipe.set_progress_bar_config(disable=True)
    tasks = load_benchmark()
    chosen = [tasks[number * len(tasks) // options.edits] for number in range(options.edits)]
    networks = [load_lpips("alex", None, spatial=spatial) for spatial in (False, True)]
    outcomes: dict[str, list[MeasuredEdit]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), model, Judge.load(), *networks, options.num_images, options.num_images)
        bench.outcome("warm-up", METHODS["fast"], chosen[0])
        for task in tqdm(chosen, unit="edit"):
            for name, method in WAYS.items():
                outcomes[name].append(bench.outcome(name, METHODS[method], task))
    ways = {}
    release = statistics.median(outcome.seconds for outcome in outcomes["release"])
    for name, own in outcomes.items():
        figures = summarise(own)
        seconds = [outcome.seconds for outcome in own]
        figures["share_of_release"] = statistics.median(seconds) / release
        ways[name] = figures
        print(
            f"{name:9} {1 / figures['share_of_release']:5.1f} × as fast as release; judged right"
            f" {figures['mean']['all']['right']} of {figures['mean']['all']['of']}, first-ranked"
            f" {figures['top1']['all']['right']} of {figures['top1']['all']['of']}; background difference"
            f" {figures['background_largest']}",
            flush=True,
        )
    results.write("edit", {"edits": options.edits, "candidates": options.num_images, "presets": ways})
    plot_ways(ways)


if __name__ == "__main__":
    main()
