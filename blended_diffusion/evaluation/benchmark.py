"""The benchmark: 96 edits of 24 photos that no training has seen, and real composites to hold them against.

What belongs here reads the folder `benchmark`, which `training.make_benchmark` writes.
"""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from blended_diffusion.pictures import Box
from blended_diffusion.pictures.canvas import square_around
from blended_diffusion.pictures.inputs import Mask, Photo, read_photo


BENCHMARK_FOLDER = Path(__file__).parent / "benchmark"
SIZES = ("small", "medium", "large")
COMPOSITES_PER_EDIT = 2
COMPOSITE_SIDE = 64
CONTEXT = 0.5  # of the square that is judged, whatever square the model worked in


@dataclass(frozen=True)
class BenchmarkEdit:
    """One edit that is asked for.

    Attributes:
        number (`int`): its place in the benchmark.
        photo_path (`Path`): a photo of the split "evaluation".
        size (`str`): `"small"`, `"medium"` or `"large"`: the mask's longer side is 0.14–0.2, 0.28–0.4 or 0.5–0.75 of
            the photo's shorter side.
        shape (`str`): `"box"` or `"ellipse"`.
        box (`tuple[int, int, int, int]`): left, top, right and bottom of the mask, in pixels.
        word (`str`): what to put there.
    """

    number: int
    photo_path: Path
    size: str
    shape: str
    box: Box
    word: str

    @property
    def name(self) -> str:
        return f"{self.number:02d}-{self.photo_path.stem}-{self.word.replace(' ', '-')}"

    @cached_property
    def photo(self) -> Photo:
        return read_photo(self.photo_path)

    @cached_property
    def mask(self) -> Mask:
        image = PIL.Image.new("L", self.photo.image.size)
        draw = PIL.ImageDraw.Draw(image)
        left, top, right, bottom = self.box
        paint = draw.rectangle if self.shape == "box" else draw.ellipse
        paint((left, top, right - 1, bottom - 1), fill=255)
        return Mask(image, self.photo_path, self.photo.sha256)

    @cached_property
    def square(self) -> Box:
        """What is judged: the mask with half of its longer side of the photo round it."""
        return square_around(self.box, self.photo.image.size, CONTEXT)


def load_benchmark(folder: Path = BENCHMARK_FOLDER) -> list[BenchmarkEdit]:
    """All edits, in their order."""
    with open(folder / "edits.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        BenchmarkEdit(
            number=number,
            photo_path=folder / "photos" / f"{row['photo']}.webp",
            size=row["size"],
            shape=row["shape"],
            box=(int(row["left"]), int(row["top"]), int(row["right"]), int(row["bottom"])),
            word=row["word"],
        )
        for number, row in enumerate(rows)
    ]


def real_composites(folder: Path = BENCHMARK_FOLDER) -> list[PIL.Image.Image]:
    """What perfect edits look like: for each task two squares with a drawing of its word pasted into its mask."""
    with PIL.Image.open(folder / "composites.png") as file:
        sheet = file.convert("RGB")
    side = COMPOSITE_SIDE
    corners = [(left, top) for top in range(0, sheet.height, side) for left in range(0, sheet.width, side)]
    return [sheet.crop((left, top, left + side, top + side)) for left, top in corners]
