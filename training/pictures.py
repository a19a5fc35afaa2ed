"""Training examples: cut-outs pasted on photos as they are asked for, or a folder of captioned pictures.

Example *i* depends on the seed and on *i* alone, so a run that was interrupted goes on with exactly the examples that
it would have seen, whatever the number of worker processes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from training.captions import BIG, NOTHING, ORDINARY, SMALL, Fact, Vocabulary


EMPTY_SHARE = 0.12  # photos with nothing on them: the network must know plain photos too
RECOLOURED_SHARE = 0.35  # of the examples of a word that has recoloured cut-outs
SHADOW_SHARE = 0.5
CROPPED_SHARE = 0.08  # objects cut by the picture's edge
SMALLEST, LARGEST = 0.3, 0.95  # an object's longer side, as a share of the picture's
SMALL_BELOW, BIG_ABOVE = 0.42, 0.8
MAX_ROTATION = 18


def read_imagefolder(folder: Path) -> list[dict]:
    """The lines of an imagefolder's `metadata.jsonl`.

    Raises:
        ValueError: there is no such file, or a line has no `file_name` or `text`.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} has no metadata.jsonl with a line for each picture.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not {"file_name", "text"} <= row.keys():
            raise ValueError(f"Line {number} of {path} needs a file_name and a text.")
    return rows


def paste_cutout(background: np.ndarray, cutout: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out on a background; what lies outside is cut off.

    Args:
        background (`np.ndarray` of shape `(H, W, 3)`): `uint8`.
        cutout (`np.ndarray` of shape `(h, w, 4)`): `uint8`, colours premultiplied by the transparency.
        left, top (`int`): where the cut-out's first pixel goes; may be negative.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the composite `(H, W, 3)` and its mask `(H, W)`, both `uint8`. Where the mask
        is 0 the composite is the background and where it is 255 it is the cut-out, bit for bit.
    """
    height, width = background.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    composite = background.copy()
    y0, y1 = max(top, 0), min(top + len(cutout), height)
    x0, x1 = max(left, 0), min(left + cutout.shape[1], width)
    if y0 < y1 and x0 < x1:
        part = cutout[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.uint16)
        alpha = part[..., 3:]
        under = (background[y0:y1, x0:x1] * (255 - alpha) + 127) // 255
        composite[y0:y1, x0:x1] = np.minimum(under + part[..., :3], 255)
        mask[y0:y1, x0:x1] = alpha[..., 0]
    return composite, mask


@dataclass(frozen=True)
class Cutout:
    image: Image.Image
    word: int
    colour: int
    recoloured: bool


class Composites(Dataset):
    """Cut-outs at random places on random crops of photos.

    Args:
        folder (`Path`): with the imagefolders `objects` and `backgrounds` of [`training.prepare_data`].
        size (`int`): pixels of a side.
        num_words (`int`, *optional*): only the first so many words; all of them by default.
        split (`str`): of the photos, `"training"` or `"evaluation"`; photos of the other are never touched.
        cutouts (`str`): of the cut-outs: those of `"evaluation"` are another artist's.
        seed (`int`): one seed, one endless sequence of examples.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        num_words: int | None = None,
        split: str = "training",
        cutouts: str = "training",
        seed: int = 0,
    ) -> None:
        self.size, self.seed = size, seed
        objects = [row for row in read_imagefolder(folder / "objects") if row["split"] == cutouts]
        if num_words is not None:
            objects = [row for row in objects if row["rank"] < num_words]
        words = list(dict.fromkeys(row["word"] for row in objects))
        colours = sorted({row["colour"] for row in objects} - {""})
        pairs = {(row["word"], row["colour"]) for row in objects if row["colour"]}
        self.vocabulary = Vocabulary(words, colours, sorted(pairs))
        self.cutouts: list[list[Cutout]] = [[] for _ in words]
        for row in objects:
            with Image.open(folder / "objects" / row["file_name"]) as file:
                image = file.convert("RGBA").convert("RGBa")
            word, colour = words.index(row["word"]), colours.index(row["colour"]) if row["colour"] else -1
            # the word alone means the cut-out as it was drawn
            self.cutouts[word].append(Cutout(image, word, colour, recoloured=row["text"] != row["word"]))
        self.photos: list[Image.Image] = []
        for row in read_imagefolder(folder / "backgrounds"):
            if row["split"] == split:
                with Image.open(folder / "backgrounds" / row["file_name"]) as file:
                    self.photos.append(file.convert("RGB"))
        if not self.cutouts or not self.photos:
            raise ValueError(f"{folder} has no photos of the split {split!r} or no cut-outs of {cutouts!r}.")

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, index))
        background = self.draw_background(rng)
        if rng.random() < EMPTY_SHARE:
            return example(background, np.zeros(background.shape[:2], np.uint8), NOTHING)
        cutout = self.draw_cutout(rng)
        share = rng.uniform(SMALLEST, LARGEST)
        pasted = self.prepare_cutout(cutout.image, share, rng)
        left, top = self.draw_place(pasted, rng)
        if rng.random() < SHADOW_SHARE:
            background = cast_shadow(background, pasted, left, top, rng)
        image, mask = paste_cutout(background, pasted, left, top)
        scale = SMALL if share < SMALL_BELOW else BIG if share > BIG_ABOVE else ORDINARY
        return example(image, mask, Fact(cutout.word, cutout.colour, scale))

    def draw_background(self, rng: np.random.Generator) -> np.ndarray:
        """A random square of a random photo."""
        photo = self.photos[rng.integers(len(self.photos))]
        longest = min(photo.size)
        side = rng.uniform(min(self.size, longest), longest)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        box = (left, top, left + side, top + side)
        square = photo.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        pixels = np.asarray(square)[:, :: rng.choice((-1, 1))]
        return (pixels * rng.uniform(0.75, 1.2)).clip(0, 255).astype(np.uint8)

    def draw_cutout(self, rng: np.random.Generator) -> Cutout:
        variants = self.cutouts[rng.integers(len(self.cutouts))]
        recoloured = len(variants) > 1 and rng.random() < RECOLOURED_SHARE
        choices = [cutout for cutout in variants if cutout.recoloured == recoloured]
        return choices[rng.integers(len(choices))]

    def prepare_cutout(self, image: Image.Image, share: float, rng: np.random.Generator) -> np.ndarray:
        """The cut-out at its size, turned, mirrored and lit a little differently; colours premultiplied."""
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.6:  # turned at full size: what is lost to interpolation vanishes in the reduction
            image = image.rotate(rng.uniform(-MAX_ROTATION, MAX_ROTATION), Image.Resampling.BICUBIC, expand=True)
        side = max(2, round(share * self.size))
        stretch = rng.uniform(0.9, 1.0)
        width, height = (side, round(side * stretch)) if rng.random() < 0.5 else (round(side * stretch), side)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        light = rng.uniform(0.8, 1.12) * rng.uniform(0.95, 1.05, size=3)
        # premultiplied colours never exceed their transparency
        colours = np.minimum(pixels[..., :3] * light, pixels[..., 3:])
        return np.concatenate([colours, pixels[..., 3:]], axis=-1).astype(np.uint8)

    def draw_place(self, cutout: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        height, width = cutout.shape[:2]
        # a third of the object may be cut off, if any is
        beyond = 1 / 3 if rng.random() < CROPPED_SHARE else 0
        left = rng.integers(-int(beyond * width), max(self.size - width + int(beyond * width), 0) + 1)
        top = rng.integers(-int(beyond * height), max(self.size - height + int(beyond * height), 0) + 1)
        return int(left), int(top)


def cast_shadow(
    background: np.ndarray, cutout: np.ndarray, left: int, top: int, rng: np.random.Generator
) -> np.ndarray:
    """The background with a soft shadow of the cut-out, a little below it."""
    height, width = cutout.shape[:2]
    margin = max(2, round(0.12 * max(height, width)))
    alpha = np.pad(cutout[..., 3], margin)
    alpha = Image.fromarray(alpha).filter(ImageFilter.BoxBlur(margin / 2))
    black = np.zeros((*alpha.size[::-1], 4), np.uint8)
    black[..., 3] = np.asarray(alpha) * rng.uniform(0.2, 0.6)
    across, down = rng.integers(-margin, margin + 1), rng.integers(0, margin + 1)
    return paste_cutout(background, black, left - margin + int(across), top - margin + int(down))[0]


class CaptionedPictures(Dataset):
    """A folder of pictures with captions, in the layout of Hugging Face's imagefolder.

    Args:
        folder (`Path`): pictures and `metadata.jsonl`; a line's `mask` may name a picture that is white where the
            caption's object is. Without it the caption is about the whole picture.
        size (`int`): pixels of a side.
        seed (`int`): one seed, one endless sequence of crops.
    """

    def __init__(self, folder: Path, size: int, seed: int = 0) -> None:
        self.folder, self.size, self.seed = folder, size, seed
        self.rows = read_imagefolder(folder)
        texts = list(dict.fromkeys(row["text"] for row in self.rows))
        self.vocabulary = Vocabulary(texts, [], [], whole_captions=True)
        self.words = [texts.index(row["text"]) for row in self.rows]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, index))
        number = rng.integers(len(self.rows))
        row = self.rows[number]
        image = Image.open(self.folder / row["file_name"]).convert("RGB")
        mask = Image.open(self.folder / row["mask"]).convert("L") if "mask" in row else Image.new("L", image.size, 255)
        if mask.size != image.size:
            raise ValueError(f"{row['mask']} in {self.folder} is not of the size of {row['file_name']}.")
        side = rng.uniform(0.85, 1.0) * min(image.size)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        box, size = (left, top, left + side, top + side), (self.size, self.size)
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))
        region = np.asarray(mask.resize(size, Image.Resampling.BILINEAR, box=box))
        turn = rng.choice((-1, 1))
        return example(pixels[:, ::turn], region[:, ::turn], Fact(self.words[number], -1, ORDINARY))


def example(image: np.ndarray, mask: np.ndarray, fact: Fact) -> dict[str, np.ndarray]:
    return {
        "image": np.array(image.transpose(2, 0, 1), order="C"),
        "mask": np.array(mask[None], order="C"),
        "fact": np.array(fact, np.int64),
    }


def open_data(
    folder: str | Path, size: int, num_words: int | None = None, seed: int = 0
) -> Composites | CaptionedPictures:
    """The training examples in `folder`, of whichever of the two kinds it holds."""
    folder = Path(folder)
    if (folder / "objects" / "metadata.jsonl").is_file():
        return Composites(folder, size, num_words, seed=seed)
    return CaptionedPictures(folder, size, seed=seed)
