"""Growing a picture past its border, with words for each side (the paper's text-guided extrapolation).

What belongs here decides which window is painted after which, and what lies in it before it is painted. The painting
is the editor's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageDraw
from scipy.ndimage import maximum_filter

from blended_diffusion.applications.remove import misfit
from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import Box
from blended_diffusion.pictures.canvas import box_of
from blended_diffusion.pictures.inputs import Photo, picture_of, profile_of


SIDES = ("left", "right", "top", "bottom")

# of a window at most this share is new, so that the model always sees as much of the picture as it paints
LARGEST_STEP = 0.5

# of a window, how far it paints over what the one before has painted
OVERLAP = 0.125

PROMPT_AREAS = ("all", "middle")

# of the way to noise where there are no words: the mirrored picture's colours and coarse shapes stay
CONTINUING_STRENGTH = 0.5

# a margin that is larger than any window: all of it is seen
WHOLE_WINDOW = 99.0

# of a thing's region: its longer side over the shorter, and how much of the new part's shorter side it takes
OVAL_ASPECT, OVAL_SHARE = 1.3, 0.85

# below this there is nothing in a window to go on from
SMALLEST_WINDOW = 32

# of the model's pixels: of a side that grows by less the model would see too little, and its windows are smaller
THINNEST_STRIP = 4

# along a side with smaller windows than the picture has room for: more are hours of work for a strip of a few pixels
MOST_WINDOWS = 300


@dataclass(frozen=True)
class GrowingWindow:
    """One window that is painted.

    Attributes:
        side (`str`): on which the picture grows.
        grown (`tuple[int, int, int, int]`): left, top, right, bottom of the picture after all windows of this depth,
            in the final picture's pixels.
        window (`tuple[int, int, int, int]`): the square that the model sees.
    """

    side: str
    grown: Box
    window: Box


def plan(
    size: tuple[int, int], left: int, right: int, top: int, bottom: int, window: int, thinnest: float = 0.0
) -> Iterator[GrowingWindow]:
    """The windows in the order in which they are painted: left and right first, then top and bottom with the corners.

    Each side grows in equal steps of at most half a window. Where the side is longer than the window, several windows
    lie along it, each over half of the one before.

    Args:
        size (`tuple[int, int]`): the picture's width and height.
        left, right, top, bottom (`int`): by how many pixels to grow.
        window (`int`): the side of the windows, at most the picture's shorter side.
        thinnest (`float`): the least share of a window that has to be new, at most a half. The windows of a side that
            grows by less are so much smaller, but never below [`SMALLEST_WINDOW`].

    Raises:
        ValueError: smaller windows would be more than [`MOST_WINDOWS`] along their side.
    """
    box = [left, top, left + size[0], top + size[1]]
    for side, amount in zip(SIDES, (left, right, top, bottom), strict=True):
        axis, outwards = int(side in ("top", "bottom")), -1 if side in ("left", "top") else 1
        edge = axis if outwards < 0 else axis + 2
        if amount == 0:
            continue
        own = window if amount >= thinnest * window else max(SMALLEST_WINDOW, int(amount / thinnest))
        start, count = box[edge], math.ceil(amount / (LARGEST_STEP * own))
        for depth in range(1, count + 1):
            box[edge] = start + outwards * round(amount * depth / count)
            first, last = box[1 - axis], box[3 - axis] - own
            windows = math.ceil((last - first) / (own / 2)) + 1
            if own < window and windows > MOST_WINDOWS:
                length = last + own - first
                enough = math.ceil(thinnest * math.ceil(length / (1 + (MOST_WINDOWS - 1) / 2)))
                raise ValueError(
                    f"{side} {amount}: for the model to see so thin a strip, {length} pixels long, takes {windows}"
                    f" windows of {own} pixels, and {MOST_WINDOWS} are the most; grow by at least {enough}."
                )
            for begin in np.linspace(first, last, windows).round().astype(int).tolist():
                corner = [0, 0]
                corner[axis] = box[edge] if outwards < 0 else box[edge] - own
                corner[1 - axis] = begin
                x, y = corner
                yield GrowingWindow(side, (box[0], box[1], box[2], box[3]), (x, y, x + own, y + own))


def extend(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    settings: EditSettings | str = "",
    prompt_left: str | None = None,
    prompt_right: str | None = None,
    prompt_top: str | None = None,
    prompt_bottom: str | None = None,
    window: int | None = None,
    prompt_area: str = "all",
) -> PIL.Image.Image:
    """Grows a picture on any of its sides.

    Each step is an edit of a square window, a part of which is picture and the rest new; its best candidate is what
    the next step goes on from. The steps' names are `01_left`, `02_left`, `03_right` …

    Args:
        editor ([`Editor`]): makes the steps.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        left, right, top, bottom (`int`): by how many pixels to grow there.
        settings ([`EditSettings`] or `str`): what is wanted, or just its prompt. The empty prompt continues the
            picture without words.
        prompt_left, prompt_right, prompt_top, prompt_bottom (`str`, *optional*): the prompts of single sides. The
            corners belong to top and bottom.
        window (`int`, *optional*): the side of the windows in pixels. Left out, it is the picture's shorter side; a
            side that grows by so little that this would be less than [`THINNEST_STRIP`] of the model's pixels in it
            gets smaller windows, more of them.
        prompt_area (`str`): `"all"`: prompts describe all that is new, as in the paper. `"middle"`: they describe a
            thing in it; the picture goes on without words first (in steps named `01_left_ground`), then an oval in the
            middle of what is new is edited.

    Returns:
        `PIL.Image.Image` of the mode of `image`, grown. Its part `(left, top, left + width, top + height)` is `image`,
        bit for bit; all that is new is opaque.

    Raises:
        ValueError: no side grows, an amount is negative, the window does not fit into the picture, a side would need
            too many windows, or `prompt_area` is something else.
    """
    profile, photo = profile_of(image), picture_of(image)
    prompts = dict(zip(SIDES, (prompt_left, prompt_right, prompt_top, prompt_bottom), strict=True))
    check_growth(left, right, top, bottom)
    thinnest = THINNEST_STRIP / editor.painter.size if window is None else 0.0
    window = find_window(photo.size, window)
    windows = list(plan(photo.size, left, right, top, bottom, window, thinnest))
    if prompt_area not in PROMPT_AREAS:
        raise ValueError(f"prompt_area {prompt_area!r} is unknown; give one of {PROMPT_AREAS}.")
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings

    def edit(image: PIL.Image.Image, mask: PIL.Image.Image, settings: EditSettings, name: str) -> Edited:
        start = editor.keep_photo(image, name, profile)
        return editor.edit(start, mask, settings, name)

    pixels = np.zeros((top + photo.height + bottom, left + photo.width + right, len(photo.getbands())), np.uint8)
    original = np.zeros(pixels.shape[:2], bool)
    inner = (slice(top, top + photo.height), slice(left, left + photo.width))
    pixels[inner], original[inner] = np.asarray(photo), True
    painted = original.copy()
    known = (left, top, left + photo.width, top + photo.height)
    for number, step in enumerate(windows, start=1):
        if step.grown != known:
            mirror(pixels, known, step.grown)
            known, inner_box = step.grown, known
        x, y, right_edge, bottom_edge = step.window
        part = (slice(y, bottom_edge), slice(x, right_edge))
        new = ~painted[part]
        # what was painted before is painted again near what is new: there the seam is hidden, not over a mirror image
        overlap = 2 * round(OVERLAP * (right_edge - x)) + 1
        region = PIL.Image.fromarray((maximum_filter(new, overlap) & ~original[part]).astype(np.uint8) * 255)
        own_prompt = prompts[step.side]
        prompt = settings.prompt if own_prompt is None else own_prompt
        for_window = replace(settings, prompt=prompt)
        name = f"{number:02d}_{step.side}"
        before = PIL.Image.fromarray(pixels[part])
        if prompt and prompt_area == "all":
            result = edit(before, region, replace(for_window, context=WHOLE_WINDOW), name).best
        else:
            strength = settings.strength if settings.strength is not None and not prompt else CONTINUING_STRENGTH
            plain = replace(for_window, prompt="", strength=strength, context=WHOLE_WINDOW)
            grounds = edit(before, region, plain, f"{name}_ground" if prompt else name).images
            # all of this depth that is in the window is judged, also what the window before has painted
            strip = PIL.Image.new("L", before.size, 255)
            strip.paste(0, (inner_box[0] - x, inner_box[1] - y, inner_box[2] - x, inner_box[3] - y))
            result = min(grounds, key=lambda ground: misfit(ground, strip))
            if prompt:
                result = edit(result, oval_in(new), for_window, name).best
        pixels[part] = np.asarray(result)
        painted[part] = True
    return PIL.Image.fromarray(pixels)


def oval_in(new: np.ndarray) -> PIL.Image.Image:
    """A mask of mode `L` with a white ellipse in the middle of the rectangle round what is true in `new` `(H, W)`."""
    mask = PIL.Image.fromarray(new.astype(np.uint8) * 255)
    left, top, right, bottom = box_of(mask)
    shorter = OVAL_SHARE * min(right - left, bottom - top)
    width, height = (min(OVAL_SHARE * extent, OVAL_ASPECT * shorter) for extent in (right - left, bottom - top))
    x, y = (left + right) / 2, (top + bottom) / 2
    oval = PIL.Image.new("L", mask.size)
    PIL.ImageDraw.Draw(oval).ellipse((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=255)
    return PIL.ImageChops.darker(oval, mask)


def check_growth(left: int, right: int, top: int, bottom: int) -> None:
    """Raises a `ValueError` if a picture cannot grow by these numbers of pixels."""
    amounts = dict(zip(SIDES, (left, right, top, bottom), strict=True))
    for side, amount in amounts.items():
        if amount < 0:
            raise ValueError(f"{side} {amount}: a picture grows by at least 0 pixels; give such a number.")
    if not any(amounts.values()):
        raise ValueError("left, right, top and bottom are all 0; give at least one of them a number of pixels.")


def find_window(size: tuple[int, int], window: int | None) -> int:
    """The windows' side for a picture of `size`; raises a `ValueError` if the one that is wanted does not fit in."""
    if min(size) < SMALLEST_WINDOW:
        raise ValueError(
            f"The picture is {size[0]}×{size[1]} pixels; give one of at least {SMALLEST_WINDOW} on both sides."
        )
    if window is None:
        return min(size)
    if not SMALLEST_WINDOW <= window <= min(size):
        raise ValueError(
            f"window {window} does not suit a picture of {size[0]}×{size[1]}; give {SMALLEST_WINDOW} to {min(size)}"
            " pixels."
        )
    return window


def mirror(pixels: np.ndarray, known: Box, grown: Box) -> None:
    """Fills what `grown` has more than `known` with the picture mirrored at its edge, opaque; in place.

    It meets the picture's edge without a step, and at the noise level where edits start its colours are all that is
    left of it.
    """
    left, top, right, bottom = grown
    inside = pixels[known[1] : known[3], known[0] : known[2]]
    across = (known[0] - left, right - known[2])
    down = (known[1] - top, bottom - known[3])
    pixels[top:bottom, left:right] = np.pad(inside, (down, across, (0, 0)), mode="symmetric")
    if pixels.shape[2] == 4:
        opaque = np.pad(inside[..., 3], (down, across), constant_values=255)
        pixels[top:bottom, left:right, 3] = opaque
