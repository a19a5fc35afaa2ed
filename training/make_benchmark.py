"""The benchmark of `blended_diffusion.evaluation`, from the data set: photos, masks, words, and real composites.

    python -m training.make_benchmark --data data --words 20 --output blended_diffusion/evaluation/benchmark

The photos are of the split "evaluation", which no training sees, and under licences that let them be passed on without
conditions on derived work (CC0, CC-BY, public domain). Everything drawn by lot comes from one seed.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from diffusers.utils import make_image_grid
from PIL import Image

from blended_diffusion.evaluation.benchmark import COMPOSITE_SIDE, COMPOSITES_PER_EDIT, CONTEXT
from blended_diffusion.pictures.canvas import square_around
from training.pictures import paste_cutout, read_imagefolder
from training.prepare_data import licence_link, read_table


PHOTOS = (
    "picosdeeuropa seeding lake-sherburne perched-osprey singaporean-cityscape kingfisher fish14 great-wall"
    " kutub-minar monument2 opera-house dam3 windmill13 windmill3 crocodile hedgehog lemur pontdu-gard rocamadour"
    " gatewayof-india hawa-mahal machu-picchu coffee china"
).split()
EDITS_PER_PHOTO = 4
SIZES = {"small": (0.14, 0.2), "medium": (0.28, 0.4), "large": (0.5, 0.75)}  # of the photo's shorter side
SEED = 20211129


def draw_edits(rng: np.random.Generator, photos: dict[str, Image.Image], words: list[str]) -> list[dict]:
    """Masks at random places; every word and every size of mask equally often, as far as the numbers allow."""
    count = EDITS_PER_PHOTO * len(photos)
    wanted = rng.permutation([words[number % len(words)] for number in range(count)])
    sizes = rng.permutation([list(SIZES)[number % len(SIZES)] for number in range(count)])
    edits = []
    for number in range(count):
        name = list(photos)[number // EDITS_PER_PHOTO]
        width, height = photos[name].size
        longer = rng.uniform(*SIZES[sizes[number]]) * min(width, height)
        sides = longer * np.array([1.0, rng.uniform(0.8, 1.0)])[:: rng.choice((-1, 1))]
        left, top = (int(rng.uniform(0, extent - side)) for extent, side in zip((width, height), sides, strict=True))
        edits.append(
            {
                "photo": name,
                "size": str(sizes[number]),
                "shape": str(rng.choice(["box", "ellipse"])),
                "left": left,
                "top": top,
                "right": left + round(sides[0]),
                "bottom": top + round(sides[1]),
                "word": str(wanted[number]),
            }
        )
    return edits


def compose(rng: np.random.Generator, photo: Image.Image, edit: dict, cutout: Image.Image) -> Image.Image:
    """What a perfect edit might look like: the square round the mask with a drawing of the word in the mask."""
    box = tuple(edit[side] for side in ("left", "top", "right", "bottom"))
    square = square_around(box, photo.size, CONTEXT)
    scale = COMPOSITE_SIDE / (square[2] - square[0])
    background = photo.resize((COMPOSITE_SIDE,) * 2, Image.Resampling.LANCZOS, box=square)
    left, top, right, bottom = ((edge - square[i % 2]) * scale for i, edge in enumerate(box))
    side = int(min(right - left, bottom - top) * rng.uniform(0.75, 1.0))
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pasted = np.asarray(cutout.convert("RGBa").resize((side, side), Image.Resampling.BICUBIC))
    pasted = np.concatenate([np.minimum(pasted[..., :3], pasted[..., 3:]), pasted[..., 3:]], axis=-1)
    x, y = round(rng.uniform(left, right - side)), round(rng.uniform(top, bottom - side))
    return Image.fromarray(paste_cutout(np.asarray(background), pasted, x, y)[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare_data")
    parser.add_argument("--words", type=int, required=True, help="how many words, the first of the data")
    parser.add_argument("--output", type=Path, required=True, help="folder; what is in it is written over")
    parser.add_argument("--photo-side", type=int, default=384, help="pixels of a photo's shorter side, at most")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(SEED)
    objects = [row for row in read_imagefolder(options.data / "objects") if row["rank"] < options.words]
    drawings = {
        row["word"]: row["file_name"] for row in objects if row["split"] == "training" and row["text"] == row["word"]
    }
    (options.output / "photos").mkdir(parents=True, exist_ok=True)
    photos, credits = {}, {row["name"]: row for row in read_table("photos.csv")}
    lines = ["# Photos of the benchmark", "", "Cropped nowhere, only reduced.", ""]
    lines += ["| photo | author | licence | package |", "| --- | --- | --- | --- |"]
    for name in PHOTOS:
        row = credits[name]
        if row["split"] != "evaluation" or "-SA-" in row["licence"]:
            raise ValueError(f"{name} is trained on, or may not be passed on freely ({row['licence']}).")
        photo = Image.open(options.data / "backgrounds" / f"{name}.webp").convert("RGB")
        scale = min(1, options.photo_side / min(photo.size))
        photo = photo.resize([round(scale * extent) for extent in photo.size], Image.Resampling.LANCZOS)
        path = options.output / "photos" / f"{name}.webp"
        photo.save(path, quality=88, method=6)
        photos[name] = Image.open(path).convert("RGB")
        title = f"[{name}]({row['source']})" if row["source"] else name
        licence = f"[{row['licence']}]({licence_link(row['licence'])})"
        lines.append(f"| {title} | {row['author']} | {licence} | {row['package']} |")
    (options.output / "CREDITS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    edits = draw_edits(rng, photos, list(drawings))
    with open(options.output / "edits.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(edits[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(edits)
    real = []
    for edit in edits:
        cutout = Image.open(options.data / "objects" / drawings[edit["word"]]).convert("RGBA")
        real += [compose(rng, photos[edit["photo"]], edit, cutout) for _ in range(COMPOSITES_PER_EDIT)]
    columns = 4 * COMPOSITES_PER_EDIT * 2
    make_image_grid(real, len(real) // columns, columns).save(options.output / "composites.png")


if __name__ == "__main__":
    main()
