"""What many measured edits amount to: the table, the plots, the contact sheet.

What belongs here turns outcomes into numbers and pictures for people. Making edits does not.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from diffusers.utils import make_image_grid
from scipy.stats import binomtest

from blended_diffusion.evaluation.benchmark import SIZES, BenchmarkEdit
from blended_diffusion.evaluation.figures import rank_quality
from blended_diffusion.evaluation.methods import METHODS
from blended_diffusion.evaluation.runs import MeasuredEdit
from blended_diffusion.pictures.gallery import tile, titled, write_png, write_text


SHEET_EDITS = 24
SHEET_COLUMNS = 6
SHEET_SIDE = 192


def summarise(outcomes: Sequence[MeasuredEdit]) -> dict:
    """The figures of one method.

    Args:
        outcomes (`Sequence[MeasuredEdit]`): of that method, one for each task; not empty.

    Returns:
        `dict` with `edits`, `candidates` (of each edit), and

        - `top1`, `mean`: judged accuracy of the first-ranked candidates and of all, each a dict of `all` and the
          sizes there are: `share`, `right`, `of`, and `low` and `high`, the ends of Wilson's 95 % interval.
        - `top1_released_rank`: likewise of the candidates that the released editor would rank first.
        - `rank_gain`: `top1 − mean`; `rank_correlation`: mean Spearman correlation of rank and judge.
        - `clip_distance`: mean of the first-ranked; `background_mean`, `seam_lpips`, `diversity`, `seconds` (for all
          candidates): means over the edits; `gradient_ratio`: their median; `background_largest`: the largest.
    """
    accuracies = {}
    for name, flags in {
        "top1": [(outcome.size, outcome.right[:1]) for outcome in outcomes],
        "mean": [(outcome.size, outcome.right) for outcome in outcomes],
        "top1_released_rank": [(outcome.size, outcome.right_as_released[:1]) for outcome in outcomes],
    }.items():
        groups = {"all": sum((right for _, right in flags), [])}
        for size in SIZES:
            if chosen := sum((right for its_size, right in flags if its_size == size), []):
                groups[size] = chosen
        accuracies[name] = {group: _accuracy(chosen) for group, chosen in groups.items()}
    ranked = [[outcome.probabilities[number] for number in outcome.order] for outcome in outcomes]
    means = ("background_mean", "seam_lpips", "diversity", "seconds")
    return {
        "edits": len(outcomes),
        "candidates": len(outcomes[0].verdicts),
        **accuracies,
        "rank_gain": accuracies["top1"]["all"]["share"] - accuracies["mean"]["all"]["share"],
        "rank_correlation": rank_quality(ranked).agreement,
        "clip_distance": float(np.mean([outcome.clip_distances[outcome.order[0]] for outcome in outcomes])),
        "background_largest": max(outcome.background_largest for outcome in outcomes),
        **{name: float(np.mean([getattr(outcome, name) for outcome in outcomes])) for name in means},
        # it has no bound where the photo is flat
        "gradient_ratio": float(np.nanmedian([outcome.gradient_ratio for outcome in outcomes])),
    }


def _accuracy(right: Sequence[bool]) -> dict[str, float]:
    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return {
        "share": sum(right) / len(right),
        "right": sum(right),
        "of": len(right),
        "low": interval.low,
        "high": interval.high,
    }


def markdown(summaries: dict[str, dict], about: dict) -> str:
    """The table, one row for each method.

    Args:
        summaries (`dict[str, dict]`): by method's name; see [`summarise`].
        about (`dict`): what to say above it: `command`, `model`, `judge`, `machine`.
    """
    head = [
        "method",
        "edits × candidates",
        "judged right, rank 1",
        *(f"{size}" for size in SIZES),
        "rank 1 as released",
        "mean over candidates",
        "rank ~ judge",
        "CLIP distance",
        "background difference, largest / mean",
        "gradient ratio at the seam",
        "LPIPS at the seam",
        "kernel distance",
        "diversity",
        "seconds an edit",
    ]
    lines = ["# Evaluation", "", f"`{about['command']}`", ""]
    lines += [f"{about['model']} {about['judge']} {about['machine']}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, figures in summaries.items():
        cells = [
            f"{METHODS[name].title} (`{name}`)",
            f"{figures['edits']} × {figures['candidates']}",
            _percent(figures["top1"]["all"], interval=True),
            *(_percent(figures["top1"].get(size)) for size in SIZES),
            _percent(figures["top1_released_rank"]["all"]),
            _percent(figures["mean"]["all"]),
            f"{figures['rank_correlation']:.2f}",
            f"{figures['clip_distance']:.3f}",
            f"{figures['background_largest']} / {figures['background_mean']:.2f}",
            f"{figures['gradient_ratio']:.2f}",
            f"{figures['seam_lpips']:.3f}",
            f"{figures['kernel_distance']:.2f} ± {figures['kernel_distance_deviation']:.2f}",
            f"{figures['diversity']:.3f}",
            f"{figures['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(accuracy: dict[str, float] | None, interval: bool = False) -> str:
    if accuracy is None:
        return "–"
    text = f"{100 * accuracy['share']:.0f} %"
    if interval:
        text += f" ({100 * accuracy['low']:.0f}–{100 * accuracy['high']:.0f})"
    return f"{text} of {accuracy['of']}"


def plot_accuracy(summaries: dict[str, dict], outcomes: dict[str, list[MeasuredEdit]], path: Path) -> None:
    """Judged accuracy by size of the mask and method, with intervals, and by rank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    groups = ("all", *SIZES)
    width = 0.8 / len(summaries)
    for number, (name, summary) in enumerate(summaries.items()):
        shown = [
            (position, summary["top1"][group]) for position, group in enumerate(groups) if group in summary["top1"]
        ]
        shares = np.array([accuracy["share"] for _, accuracy in shown])
        errors = [
            shares - [accuracy["low"] for _, accuracy in shown],
            np.array([accuracy["high"] for _, accuracy in shown]) - shares,
        ]
        positions = [position - 0.4 + (number + 0.5) * width for position, _ in shown]
        left.bar(positions, shares, width, yerr=np.abs(errors), label=name, capsize=2)
        by_rank = np.mean([outcome.right for outcome in outcomes[name]], axis=0)
        right.plot(range(1, len(by_rank) + 1), by_rank, marker="o", label=name)
    left.set(xticks=range(len(groups)), ylim=(0, 1), ylabel="judged right", title="rank 1, by size of the mask")
    left.set_xticklabels(groups)
    left.legend(fontsize=8)
    right.set(xlabel="rank", ylim=(0, 1), title="by rank")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def sheet_by_lot(
    outcomes: Sequence[MeasuredEdit], benchmark: Sequence[BenchmarkEdit], squares: Path
) -> PIL.Image.Image:
    """The first-ranked candidates of 24 edits drawn by lot, with the words they were made for.

    Args:
        outcomes (`Sequence[MeasuredEdit]`): of one method.
        benchmark (`Sequence[BenchmarkEdit]`): the whole benchmark.
        squares (`Path`): the folder of that method's pictures.
    """
    lot = np.random.default_rng(0).permutation(len(outcomes))[:SHEET_EDITS]
    tiles = []
    for number, chosen in enumerate(lot, start=1):
        outcome = outcomes[chosen]
        with PIL.Image.open(squares / f"{benchmark[outcome.task].name}-{outcome.order[0]}.png") as picture:
            shown = picture.convert("RGB").resize((SHEET_SIDE,) * 2, PIL.Image.Resampling.BICUBIC)
        tiles.append(tile(shown, shown.size, f"{number}  {outcome.word}"))
    columns = min(SHEET_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    tiles += [PIL.Image.new("RGB", tiles[0].size, "white")] * (rows * columns - len(tiles))
    return titled(make_image_grid(tiles, rows, columns), f"{len(lot)} edits drawn by lot, first-ranked candidates")


def write_report(
    folder: Path,
    benchmark: Sequence[BenchmarkEdit],
    outcomes: dict[str, list[MeasuredEdit]],
    summaries: dict[str, dict],
    about: dict,
) -> None:
    """Writes `results.md`, `results.json`, `accuracy.png` and a `METHOD.png` of 24 edits for each method."""
    write_text(json.dumps({**about, "methods": summaries}, indent=2) + "\n", folder / "results.json")
    write_text(markdown(summaries, about), folder / "results.md")
    plot_accuracy(summaries, outcomes, folder / "accuracy.png")
    for name, measured in outcomes.items():
        write_png(sheet_by_lot(measured, benchmark, folder / "squares" / name), folder / f"{name}.png")
