"""Whether dropping candidates half-way, by the CLIP distance of what they are then, beats making fewer.

python -m benchmarks.dropping

All candidates of an edit are made whole and looked at half-way. Dropping all but the `k` best of `n` there costs
`(n + k) / 2n` of making them all. For the same cost so many whole candidates are drawn by lot instead. Compared are
the distance of the best that is left, and how often the judge sees the word in it; both are exact means over all
draws, so that making fewer is not judged by one draw's luck.
"""

import argparse
import math
import statistics
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from blended_diffusion import machine
from blended_diffusion.editing.edit import Edit
from blended_diffusion.editing.presets import preset_settings
from blended_diffusion.evaluation.benchmark import BenchmarkEdit, load_benchmark
from blended_diffusion.evaluation.judge import Judge
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings


def looked_at_half_way(edit: Edit, seeds: list[int]) -> tuple[list[float], list[float], list[Any]]:
    """The candidates' distances half-way and at the end, and their pictures."""
    made = edit.make(seeds, watch=True)
    pipe = edit.model.pipe
    middle = [candidate.steps[len(candidate.steps) // 2 - 1] for candidate in made]
    pictures = torch.cat([pipe.prepare_image(picture) for picture in middle])
    mask = pipe.prepare_mask(edit.canvas.model_mask, 0.5, False)
    words = pipe.encode_prompt([edit.settings.prompt]).expand(len(made), -1)
    labels = pipe.encode_prompt(pipe.config.default_candidate_labels)
    with torch.no_grad():
        half_way = pipe.surroundings_distance(pictures, mask, words, labels).tolist()
    return half_way, [candidate.clip_distance for candidate in made], [edit.finish(candidate) for candidate in made]


def best_of_a_draw(values: list[float], ranks: list[float], size: float) -> float:
    """The mean of `values` at the lowest of `size` `ranks`, over all draws; between two whole sizes by proportion."""
    low = math.floor(size)
    ordered = [value for _, value in sorted(zip(ranks, values, strict=True))]
    number = len(ordered)

    def mean(count: int) -> float:
        chances = [math.comb(number - 1 - place, count - 1) / math.comb(number, count) for place in range(number)]
        return sum(chance * value for chance, value in zip(chances, ordered, strict=True))

    return mean(low) if low == size else (low + 1 - size) * mean(low) + (size - low) * mean(low + 1)


def compare_with_fewer(rows: list[dict[str, list[float]]], kept: int) -> dict[str, float]:
    """Keeping so many half-way against making fewer for the same cost."""
    found: dict[str, list[float]] = {name: [] for name in ("distance", "distance_of_fewer", "right", "right_of_fewer")}
    for row in rows:
        number, end = len(row["end"]), row["end"]
        left = sorted(range(number), key=row["half_way"].__getitem__)[:kept]
        best = min(left, key=end.__getitem__)
        found["distance"].append(end[best])
        found["right"].append(row["right"][best])
        for name, values in (("distance_of_fewer", end), ("right_of_fewer", row["right"])):
            found[name].append(best_of_a_draw(values, end, (number + kept) / 2))
    return {name: statistics.mean(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Drop candidates half-way, or make fewer?")
    parser.add_argument("--edits", type=int, default=16, help="so many, spread over the benchmark")
    parser.add_argument("--num-images", type=int, default=16, help="candidates of each edit")
    parser.add_argument("--preset", default="balanced")
    options = parser.parse_args()
    machine.keep_freed_memory()
    model = load_model()
    model.pipe.set_progress_bar_config(disable=True)
    settings = preset_settings(options.preset, model.pipe.config.default_num_inference_steps)
    judge, tasks = Judge.load(), load_benchmark()
    rows = []
    for number in tqdm(range(options.edits), unit="edit"):
        task: BenchmarkEdit = tasks[number * len(tasks) // options.edits]
        edit = Edit.prepare(model, task.photo, task.mask, EditSettings(task.word, **settings))
        half_way, end, pictures = looked_at_half_way(edit, list(range(options.num_images)))
        verdicts = judge.verdicts([picture.crop(task.square) for picture in pictures])
        rows.append({"half_way": half_way, "end": end, "right": [float(word == task.word) for word in verdicts]})
    figures = {}
    for share in (0.5, 0.25, 0.125):
        kept = max(1, round(share * options.num_images))
        cost = (options.num_images + kept) / (2 * options.num_images)
        figures[f"{kept} of {options.num_images}"] = found = {"cost": cost, **compare_with_fewer(rows, kept)}
        print(
            f"{kept} of {options.num_images} kept half-way ({cost:.2f} of the cost): distance {found['distance']:.4f},"
            f" right {found['right']:.0%}; {cost * options.num_images:g} whole ones:"
            f" {found['distance_of_fewer']:.4f}, {found['right_of_fewer']:.0%}",
            flush=True,
        )
    results.write("dropping", {"edits": options.edits, "preset": options.preset, "kept": figures})


if __name__ == "__main__":
    main()
