"""Checks what the README's main command left: ranked pictures, edited inside the mask, untouched outside it."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


output, photo, mask, expected = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
before = np.asarray(Image.open(photo).convert("RGB")).astype(int)
inside = np.asarray(Image.open(mask).convert("L")) >= 128
pictures = sorted((output / "ranked").glob("*.png"))
assert len(pictures) == expected, f"{len(pictures)} ranked pictures, expected {expected}"
for picture in pictures:
    difference = np.abs(np.asarray(Image.open(picture).convert("RGB")).astype(int) - before)
    assert difference[~inside].max() == 0, f"{picture} changed the background"
    assert difference[inside].mean() > 1, f"{picture} edited nothing"
    assert picture.with_suffix(".json").is_file(), f"{picture} has no record"
assert (output / "contact_sheet.png").is_file()
print(f"{len(pictures)} edited pictures, background difference 0")
