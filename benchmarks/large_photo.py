"""What editing a 4K photo costs over the same edit of a small one: a ratio of times taken alternately in one process.

python -m benchmarks.large_photo

The large photo is an example enlarged six times from the small one's size, with fine noise so that its file is as hard
to write as a photo's. Compared are the edit of the large photo, from its file to its folder of results, and the sum of
the edit of the small photo and of reading the large photo and mask and writing the large pictures.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blended_diffusion import machine
from blended_diffusion.editing.editor import FolderEditor
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.inputs import read_mask, read_photo


EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"small": (640, 360), "large": (3840, 2160)}
ROUNDS = 3
CANDIDATES = 4


def write_inputs(folder: Path) -> None:
    """A photo and a mask of each size, as `NAME.jpg` and `NAME.png`."""
    with Image.open(EXAMPLES / "dandelions.jpg") as photo, Image.open(EXAMPLES / "dandelions_mask.png") as mask:
        for name, size in SIZES.items():
            pixels = np.asarray(photo.resize(size, Image.Resampling.LANCZOS), np.int16)
            pixels = pixels + np.random.default_rng(0).integers(-4, 5, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.jpg", quality=92)
            mask.resize(size, Image.Resampling.NEAREST).save(folder / f"{name}.png")


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    machine.be_reproducible()
    model = load_model()
    model.pipe.set_progress_bar_config(disable=True)
    made_with = MadeWith.on(torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)

        def edit(size: str) -> list[Image.Image]:
            photo = read_photo(folder / f"{size}.jpg")
            mask = read_mask(folder / f"{size}.png", photo.image.size)
            editor = FolderEditor(model, folder / size, made_with, num_images=CANDIDATES, batch_size=CANDIDATES)
            return editor.edit(photo, mask, EditSettings("frog")).images

        edited = edit("large")  # warms up, and is what is written below

        def read_and_write() -> None:
            photo = read_photo(folder / "large.jpg")
            read_mask(folder / "large.png", photo.image.size)
            for image in edited:
                gallery.write_png(image, folder / "written.png")

        work = {"large": lambda: edit("large"), "small": lambda: edit("small"), "file": read_and_write}
        times = {name: [] for name in work}
        for _ in range(ROUNDS):
            for name, one in work.items():
                times[name].append(seconds_of(one))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    expected = medians["small"] + medians["file"]
    print(f"{medians['large'] / expected:5.2f}  the 4K edit / (the small edit + reading and writing the 4K files)")
    print(f"{medians['small'] / expected:5.2f}  of which the small edit")


if __name__ == "__main__":
    main()
