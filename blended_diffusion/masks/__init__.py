"""Masks that nobody has to paint: out of boxes, polygons, clicks, words, transparency, or what two pictures differ in.

What belongs here makes a mask of a photo and what people say, or makes a mask larger or smaller. A mask is a picture
of mode `L` and the photo's size, 255 = edit, 0 = keep, nothing between. What the edit does at its edge is `canvas`'
business.

- `shapes`: what needs no network: boxes, polygons, transparency, differences, growing.
- `networks`: what is found by CLIPSeg from words and by SAM 2 from clicks.
- `regions`: several regions in one mask.
- `source`: one description of all of these, for flags, job files and steps.
"""

from blended_diffusion.masks.networks import CLICK_MODEL, THRESHOLD, WORDS_MODEL, from_click, from_words
from blended_diffusion.masks.shapes import from_alpha, from_box, from_difference, from_polygon, grow, invert


__all__ = [
    "CLICK_MODEL",
    "THRESHOLD",
    "WORDS_MODEL",
    "from_alpha",
    "from_box",
    "from_click",
    "from_difference",
    "from_polygon",
    "from_words",
    "grow",
    "invert",
]
