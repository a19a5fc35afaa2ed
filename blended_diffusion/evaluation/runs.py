"""Making the benchmark's edits by one method and measuring each; what is finished is kept and not made again.

What belongs here is the measurement of single edits. What they amount to together is the report's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from lpips import LPIPS

from blended_diffusion.editing.edit import Candidate, Edit
from blended_diffusion.editing.records import from_json, in_batches, to_json
from blended_diffusion.evaluation.benchmark import BenchmarkEdit
from blended_diffusion.evaluation.figures import background_difference, diversity, seam, seam_lpips
from blended_diffusion.evaluation.judge import Judge
from blended_diffusion.evaluation.methods import Method
from blended_diffusion.inpainting_models import RankingClip
from blended_diffusion.models import Model
from blended_diffusion.painters.clip_ranking import clip_distances
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.gallery import write_png, write_text


SQUARE_SIDE = 128  # pixels of the pictures that are kept
PERCEIVED_SIDE = 64  # pixels at which candidates are compared


@dataclass(frozen=True)
class MeasuredEdit:
    """One task by one method, its candidates in the order of their seeds.

    Attributes:
        method (`str`), task (`int`), word (`str`), size (`str`): what was made.
        clip_distances (`list[float]`): what the candidates are ranked by; lower is better.
        region_distances (`list[float]`): the CLIP distance of the plain region alone, the released editor's ranking.
        verdicts (`list[str]`): what the judge sees in each.
        probabilities (`list[float]`): which it gives the right word.
        background_largest (`int`), background_mean (`float`): difference to the photo outside the mask, in levels of
            255; the largest over all candidates, and the mean.
        gradient_ratio (`float`), seam_lpips (`float`): mean over the candidates, measured on squares of 128 pixels;
            see [`seam`] and [`seam_lpips`].
        diversity (`float`): of the edited regions at 64 pixels; see [`diversity`].
        seconds (`float`): for all candidates.
    """

    method: str
    task: int
    word: str
    size: str
    clip_distances: list[float]
    region_distances: list[float]
    verdicts: list[str]
    probabilities: list[float]
    background_largest: int
    background_mean: float
    gradient_ratio: float
    seam_lpips: float
    diversity: float
    seconds: float

    @property
    def order(self) -> list[int]:
        """The candidates' numbers, best ranked first."""
        return sorted(range(len(self.clip_distances)), key=self.clip_distances.__getitem__)

    @property
    def order_as_released(self) -> list[int]:
        return sorted(range(len(self.region_distances)), key=self.region_distances.__getitem__)

    @property
    def right(self) -> list[bool]:
        """Whether the judge sees the word, best ranked first."""
        return [self.verdicts[number] == self.word for number in self.order]

    @property
    def right_as_released(self) -> list[bool]:
        """Likewise in the released editor's order."""
        return [self.verdicts[number] == self.word for number in self.order_as_released]


@dataclass
class Bench:
    """A folder of outcomes, and what is needed to add to them.

    Args:
        folder (`Path`): gets `outcomes/METHOD/TASK.json` and `squares/METHOD/TASK-N.png`, the squares that are judged.
        model ([`Model`]): on its device.
        judge ([`Judge`]), lpips, spatial_lpips (`LPIPS`): what measures; the last gives a map.
        num_images (`int`): candidates of each edit.
        batch_size (`int`): made together.
        seed (`int`): of the first candidate of the first task.
    """

    folder: Path
    model: Model
    judge: Judge
    lpips: LPIPS
    spatial_lpips: LPIPS
    num_images: int = 8
    batch_size: int = 8
    seed: int = 0

    def outcome(self, name: str, method: Method, task: BenchmarkEdit) -> MeasuredEdit:
        """What came of `task` by `method`, from the folder or made now."""
        path = self.folder / "outcomes" / name / f"{task.name}.json"
        if path.exists():
            return from_json(MeasuredEdit, path.read_bytes())
        outcome = self.measure(name, method, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(to_json(outcome, indent=2) + "\n", path)
        return outcome

    def measure(self, name: str, method: Method, task: BenchmarkEdit) -> MeasuredEdit:
        settings = EditSettings(prompt=task.word, **method.settings)
        edit = Edit.prepare(self.model, task.photo, task.mask, settings)
        # other seeds for other tasks, the same for every method
        first = self.seed + task.number * self.num_images
        begun = time.perf_counter()
        candidates: list[Candidate] = []
        for seeds in in_batches(list(range(first, first + self.num_images)), self.batch_size):
            candidates += edit.make(seeds)
        finished = [edit.finish(candidate) for candidate in candidates]
        seconds = time.perf_counter() - begun

        squares = [picture.crop(task.square) for picture in finished]
        chances = self.judge.probabilities(squares)
        photo, mask = task.photo.image, task.mask.image
        differences = [background_difference(photo, picture, mask) for picture in finished]
        regions = [reduced(picture.crop(task.box), PERCEIVED_SIDE) for picture in finished]
        near = [reduced(picture.crop(task.square), SQUARE_SIDE) for picture in (photo, mask, *finished)]
        seams = [seam_lpips(near[0], picture, near[1], self.spatial_lpips) for picture in near[2:]]
        (self.folder / "squares" / name).mkdir(parents=True, exist_ok=True)
        for number, square in enumerate(squares):
            write_png(reduced(square, SQUARE_SIDE), self.square_path(name, task, number))
        return MeasuredEdit(
            method=name,
            task=task.number,
            word=task.word,
            size=task.size,
            clip_distances=[candidate.clip_distance for candidate in candidates],
            region_distances=self.region_distances(edit, candidates),
            verdicts=self.judge.likeliest(chances),
            probabilities=chances[:, self.judge.words.index(task.word)].tolist(),
            background_largest=max(largest for largest, _ in differences),
            background_mean=float(np.mean([mean for _, mean in differences])),
            gradient_ratio=float(np.mean([seam(near[0], picture, near[1]) for picture in near[2:]])),
            seam_lpips=float(np.mean(seams)),
            diversity=diversity(regions, self.lpips),
            seconds=seconds,
        )

    def region_distances(self, edit: Edit, candidates: list[Candidate]) -> list[float]:
        pipe = self.model.pipe
        clip = self.model.clip or RankingClip(pipe.clip_model, pipe.tokenizer, pipe.feature_extractor)
        images = [candidate.image for candidate in candidates]
        return clip_distances(clip, images, edit.canvas.model_mask, edit.settings.prompt, "region")

    def square_path(self, name: str, task: BenchmarkEdit, number: int) -> Path:
        return self.folder / "squares" / name / f"{task.name}-{number}.png"


def reduced(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    return image.resize((side, side), PIL.Image.Resampling.BICUBIC)


def squares_of(
    bench: Bench, benchmark: Sequence[BenchmarkEdit], outcomes: Sequence[MeasuredEdit]
) -> list[PIL.Image.Image]:
    """The judged squares of all candidates, as they were written."""
    squares = []
    for outcome in outcomes:
        for number in range(len(outcome.verdicts)):
            with PIL.Image.open(bench.square_path(outcome.method, benchmark[outcome.task], number)) as picture:
                squares.append(picture.convert("RGB"))
    return squares
