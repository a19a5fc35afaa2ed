"""The benchmark is what it claims to be, outcomes are kept, and the report's figures are those of the outcomes."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lpips import LPIPS
from PIL import Image
from tiny import make_tiny_pipe, tiny_clip

from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.evaluation import __main__ as command
from blended_diffusion.evaluation import report
from blended_diffusion.evaluation.benchmark import SIZES, load_benchmark, real_composites
from blended_diffusion.evaluation.judge import Judge
from blended_diffusion.evaluation.methods import METHODS, Method
from blended_diffusion.evaluation.runs import Bench, MeasuredEdit, squares_of
from blended_diffusion.models import Model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas
from training import make_benchmark


TASKS = load_benchmark()


class TestBenchmark:
    def test_it_is_96_edits_of_24_photos_with_all_sizes_and_words(self):
        assert len(TASKS) == 96 and len({task.photo_path for task in TASKS}) == 24
        assert all(sum(task.size == size for task in TASKS) == 32 for size in SIZES)
        judged = set(Judge.load().words)
        assert {task.word for task in TASKS} == judged
        counts = [sum(task.word == word for task in TASKS) for word in judged]
        assert max(counts) - min(counts) <= 1

    def test_its_edits_are_those_that_the_lot_draws(self):
        photos = {task.photo_path.stem: task.photo.image for task in TASKS}
        words = (Path(__file__).parents[2] / "blended_diffusion" / "demo" / "words.txt").read_text().splitlines()
        drawn = make_benchmark.draw_edits(np.random.default_rng(make_benchmark.SEED), photos, words)
        keys = ("left", "top", "right", "bottom")
        assert [(edit["photo"], edit["size"], edit["shape"], edit["word"]) for edit in drawn] == [
            (task.photo_path.stem, task.size, task.shape, task.word) for task in TASKS
        ]
        assert [tuple(edit[key] for key in keys) for edit in drawn] == [task.box for task in TASKS]

    def test_the_bundled_model_knows_its_words(self):
        assert {task.word for task in TASKS} <= set(KNOWN_WORDS)

    def test_no_photo_was_trained_on_and_all_may_be_passed_on(self):
        with open(Path(__file__).parents[2] / "training" / "photos.csv", encoding="utf-8", newline="") as file:
            photos = {row["name"]: row for row in csv.DictReader(file)}
        for name in {task.photo_path.stem for task in TASKS}:
            assert photos[name]["split"] == "evaluation"
            assert "SA" not in photos[name]["licence"] and "NC" not in photos[name]["licence"]
            assert name in (TASKS[0].photo_path.parents[1] / "CREDITS.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("task", TASKS[::7], ids=lambda task: task.name)
    def test_masks_are_as_large_as_their_size_says_and_lie_in_the_square(self, task):
        shorter = min(task.photo.image.size)
        low, high = {"small": (0.14, 0.2), "medium": (0.28, 0.4), "large": (0.5, 0.75)}[task.size]
        left, top, right, bottom = task.mask.image.getbbox()
        longer = max(right - left, bottom - top)
        assert low * shorter - 1 <= longer <= high * shorter + 1
        assert task.square[0] <= left and task.square[1] <= top
        assert task.square[2] >= right and task.square[3] >= bottom
        assert 0 <= task.square[0] and task.square[2] <= task.photo.image.width
        assert Canvas.around(task.photo.image, task.mask.image, 64, 0.5).square == task.square

    def test_the_judge_is_right_about_its_real_composites(self):
        composites = real_composites()
        words = [task.word for task in TASKS for _ in range(2)]
        assert len(composites) == len(words)
        right = [seen == word for seen, word in zip(Judge.load().verdicts(composites), words, strict=True)]
        assert np.mean(right) > 0.95


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_of_settings(name):
    EditSettings(prompt="rock", **METHODS[name].settings)


@pytest.fixture(scope="module")
def networks():
    """LPIPS with random networks under it: no weights are needed to see that everything is called and kept."""
    torch.manual_seed(0)
    return [LPIPS(net="alex", pnet_rand=True, spatial=spatial, verbose=False).eval() for spatial in (False, True)]


@pytest.fixture
def bench(tmp_path, networks):
    pipe = make_tiny_pipe(clip_model=tiny_clip())
    pipe.set_progress_bar_config(disable=True)
    return Bench(tmp_path, Model(pipe, "tiny", "0" * 64), Judge.load(), *networks, num_images=2, batch_size=1)


QUICK = {"num_inference_steps": 4, "strength": 0.5}


class TestBench:
    @pytest.mark.slow
    def test_an_outcome_measures_what_was_made(self, bench):
        task = next(task for task in TASKS if task.size == "large")
        outcome = bench.outcome("default", Method("quick", QUICK), task)
        assert outcome.word == task.word and len(outcome.verdicts) == 2
        assert outcome.background_largest == 0 and outcome.background_mean == 0
        assert outcome.diversity > 0 and outcome.seam_lpips > 0 and outcome.gradient_ratio > 0
        assert sorted(outcome.order) == sorted(outcome.order_as_released) == [0, 1]
        squares = squares_of(bench, TASKS, [outcome])
        assert [square.size for square in squares] == [(128, 128)] * 2
        assert squares[0] != squares[1]

    @pytest.mark.slow
    def test_without_enforcing_it_the_background_changes(self, bench):
        loose = Method("loose", {**QUICK, "blend": False, "enforce_background": False})
        outcome = bench.outcome("local-clip-guided", loose, TASKS[0])
        assert outcome.background_largest > 0 and outcome.background_mean > 0

    @pytest.mark.slow
    def test_what_is_finished_is_not_made_again(self, bench):
        first = bench.outcome("default", Method("quick", QUICK), TASKS[0])
        bench.model = None  # nothing can be made any more
        assert bench.outcome("default", Method("quick", QUICK), TASKS[0]) == first


def outcome(task: int = 0, **changes) -> MeasuredEdit:
    """Three candidates; the first-ranked is the last, and the released rank prefers the first."""
    made = MeasuredEdit(
        method="default",
        task=task,
        word="rock",
        size="small",
        clip_distances=[0.3, 0.2, 0.1],
        region_distances=[0.1, 0.2, 0.3],
        verdicts=["apple", "nothing", "rock"],
        probabilities=[0.1, 0.2, 0.9],
        background_largest=0,
        background_mean=0.0,
        gradient_ratio=1.5,
        seam_lpips=0.1,
        diversity=0.2,
        seconds=3.0,
    )
    return replace(made, **changes)


class TestReport:
    def test_the_figures_are_those_of_the_outcomes(self):
        wrong = outcome(1, size="large", word="rose", probabilities=[0.3, 0.2, 0.1], gradient_ratio=math.inf)
        figures = report.summarise([outcome(), wrong])
        top1 = figures["top1"]
        assert (top1["all"]["right"], top1["all"]["of"]) == (1, 2)
        assert (top1["small"]["share"], top1["large"]["share"]) == (1, 0) and "medium" not in top1
        assert top1["all"]["low"] < 0.5 < top1["all"]["high"]
        assert (figures["mean"]["all"]["right"], figures["mean"]["all"]["of"]) == (1, 6)
        assert figures["top1_released_rank"]["all"]["right"] == 0
        assert figures["rank_gain"] == pytest.approx(1 / 2 - 1 / 6)
        assert figures["rank_correlation"] == pytest.approx(0)  # one order is right, the other reversed
        assert figures["clip_distance"] == pytest.approx(0.1)

    def test_the_largest_background_difference_is_the_largest(self):
        assert report.summarise([outcome(), outcome(1, background_largest=9)])["background_largest"] == 9

    def test_everything_is_written(self, tmp_path):
        tasks = [replace(task, word="rock") for task in TASKS]
        outcomes = [outcome(number) for number in range(3)]
        folder = tmp_path / "squares" / "default"
        folder.mkdir(parents=True)
        for own in outcomes:
            for number in range(3):
                Image.new("RGB", (128, 128), (60 * number, 0, 0)).save(folder / f"{tasks[own.task].name}-{number}.png")
        summaries = {
            "default": {**report.summarise(outcomes), "kernel_distance": 0.5, "kernel_distance_deviation": 0.1}
        }
        about = {"command": "python", "model": "Model.", "judge": "Judge.", "machine": "Machine."}
        report.write_report(tmp_path, tasks, {"default": outcomes}, summaries, about)
        assert json.loads((tmp_path / "results.json").read_text())["methods"]["default"]["top1"]["all"]["share"] == 1
        assert "| 100 % (44–100) of 3 |" in (tmp_path / "results.md").read_text(encoding="utf-8")
        assert Image.open(tmp_path / "default.png").size[0] > 3 * 192
        assert Image.open(tmp_path / "accuracy.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output x --methods best", "there is no 'best'"),
        ("--output x --model nowhere/at/all", "--model"),
        ("--output x --num-images 1", "num-images"),
        ("", "output"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluation", *arguments.split()])
    assert command.main() == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
