"""A short clip out of one photo: a camera that pans and zooms over it, and the masks that follow.

python examples/make_clip.py clip
"""

import sys
from pathlib import Path

from PIL import Image


EXAMPLES = Path(__file__).parent
FRAMES = 24
SIZE = (480, 270)


def main(folder: Path) -> None:
    photo, mask = (Image.open(EXAMPLES / f"dandelions{end}") for end in (".jpg", "_mask.png"))
    for name in ("frames", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(FRAMES):
        done = index / (FRAMES - 1)
        left, top, width = 330 * done, 270 * done, 1152 - 448 * done
        box = (left, top, left + width, top + width * SIZE[1] / SIZE[0])
        photo.resize(SIZE, Image.Resampling.LANCZOS, box).save(folder / "frames" / f"{index + 1:04}.png")
        mask.resize(SIZE, Image.Resampling.BILINEAR, box).save(folder / "masks" / f"{index + 1:04}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
