"""A clip's frames edited one after another, the later ones from what was painted in the first.

What belongs here decides what each frame starts from, where the square lies that the model sees, and with which seed.
Reading and writing do not belong here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import PIL.Image
from scipy.ndimage import distance_transform_edt, gaussian_filter1d

from blended_diffusion.applications.video.flow import dense_flow, flicker, follow, move_along
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import Box
from blended_diffusion.pictures.canvas import square_around


# of the frames after the first: enough to sharpen what was moved, too little to paint another thing
FRAME_STRENGTH = 0.25

# over how many frames the way of the square is smoothed, as a standard deviation
SMOOTHING = 2.0

# how much of a mask has to have been edited in an earlier frame to start from that
LEAST_COVERED = 0.5

Flow = Callable[[PIL.Image.Image, PIL.Image.Image], np.ndarray]


class Frames(Protocol):
    """Pictures that can be counted, and walked through time and again: a list, or a clip that is read each time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[PIL.Image.Image]: ...


@dataclass(frozen=True)
class EditedFrame:
    """One frame of the result.

    Attributes:
        image (`PIL.Image.Image`): of the frame's size and mode.
        painted (`PIL.Image.Image`, *optional*): what the model painted in its square, for later frames to start from;
            `None` for a frame with nothing to edit, which is the clip's.
        seed (`int`, *optional*): its own.
        clip_distance (`float`, *optional*): lower is better.
        strength (`float`, *optional*): what it was edited with; `None` for the model's own default.
        flicker (`float`, *optional*): of [`~blended_diffusion.applications.video.flow.flicker`]; `None` if this frame
            or the one before it is the clip's.
    """

    image: PIL.Image.Image
    painted: PIL.Image.Image | None
    seed: int | None
    clip_distance: float | None
    strength: float | None
    flicker: float | None


@dataclass(frozen=True)
class PaintedFrame:
    """A frame that was edited.

    Attributes:
        frame, mask (`PIL.Image.Image`): the clip's.
        square (`tuple[int, int, int, int]`): what of it the model saw.
        made ([`EditedFrame`]): what became of it.
        flow (`np.ndarray` of shape `(height, width, 2)`): the flow that leads to it from the frame that is made now.
    """

    frame: PIL.Image.Image
    mask: PIL.Image.Image
    square: Box
    made: EditedFrame
    flow: np.ndarray


def edit_video(
    editor: Editor,
    frames: Frames,
    masks: Frames | PIL.Image.Image,
    settings: EditSettings | str,
    frame_strength: float = FRAME_STRENGTH,
    flow: Flow = dense_flow,
    name: str = "first_frame",
    finished: Callable[[int], EditedFrame | None] = lambda index: None,
) -> Iterator[EditedFrame]:
    """Edits a clip so that what is painted moves with the picture.

    The first frame with something to edit is edited as any picture: `editor` makes its candidates, the best one's seed
    is taken for all frames. Each later frame starts from what was painted in the first one, moved along by the optical
    flow of the clip, and goes back only `frame_strength` of the way to noise; made from one another they would drift
    away. The model's square has one size and follows the mask smoothly; because the noise belongs to the square, the
    same place has the same noise over the frames.

    Where less than half of a mask was edited in the first frame, the frame before takes its place from there on, and
    where that does not reach either, as after frames without anything to edit, the frame starts from the clip again.
    Outside its mask every frame is the clip's, bit for bit.

    Args:
        editor ([`Editor`]): what to edit with.
        frames ([`Frames`]): the clip, of one size, of mode `RGB` or `RGBA`: a list, or a
            [`~blended_diffusion.applications.video.clips.Clip`], which is read frame by frame.
        masks ([`Frames`] or `PIL.Image.Image`): one for each frame, or one for all: of mode `L` and
            the frames' size, 255 = edit, 0 = keep. A frame whose mask is black, or too thin for the model,
            comes back unchanged.
        settings ([`EditSettings`] or `str`): what is wanted of the first frame, or just its prompt.
        frame_strength (`float`): the `strength` of the later frames, above 0 and at most 1.
        flow (`Callable`): gives the flow of a frame and the one before it, as
            [`~blended_diffusion.applications.video.flow.dense_flow`] does; the place for a better one.
        name (`str`): of the first frame's edit, where the editor writes things.
        finished (`Callable`): gives the frame of an index if there is no need to make it.

    Yields:
        [`EditedFrame`]: one for each frame of the clip, as soon as it is made.

    Raises:
        ValueError: there are neither one mask nor as many as frames, the sizes differ, or the masks leave nothing to
            edit in any frame, at least not at the model's size.
    """
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    masks = [masks] * len(frames) if isinstance(masks, PIL.Image.Image) else masks
    if len(masks) != len(frames):
        raise ValueError(f"`masks` are {len(masks)} for {len(frames)} `frames`; give one, or one for each frame.")
    model_size, size = editor.painter.size, next(iter(frames)).size
    squares = steady_squares([mask.getbbox() for mask in masks], size, settings.context)
    seen = [is_seen(mask, square, model_size) for mask, square in zip(masks, squares, strict=True)]
    if not any(seen):
        raise ValueError(
            f"`masks` leave nothing to edit at the model's size of {model_size}×{model_size} pixels in any frame;"
            " paint white, with a broad brush, what is to be edited."
        )
    # what is painted is there already and needs no larger mask to come into being
    later = replace(settings, strength=frame_strength, initial_mask_growth=0.0)
    seed: int | None = None
    key: PaintedFrame | None = None  # what later frames start from
    last: PaintedFrame | None = None  # the frame before
    for index, (frame, mask, square) in enumerate(zip(frames, masks, squares, strict=True)):
        if not frame.size == mask.size == size:
            raise ValueError(
                f"Frame {index + 1} is {frame.width}×{frame.height} pixels (width×height), its mask"
                f" {mask.width}×{mask.height} and the first frame {size[0]}×{size[1]}; they must be the same size."
            )
        made = finished(index)
        if not seen[index]:
            key = last = None
            yield made or EditedFrame(frame, None, None, None, None, None)
            continue
        start, motion = None, None
        if last is not None and key is not None:
            motion = flow(frame, last.frame)
            key = replace(key, flow=follow(motion, key.flow))
            start = carry_over(frame, mask, key)
            if start is None:
                key = replace(last, flow=motion)
                start = carry_over(frame, mask, key)
        if made is None:
            if seed is None:
                made = edit_frame(editor, frame, mask, square, settings, name)
            else:
                single = Editor(editor.painter, seed, num_images=1)
                frame_settings = settings if start is None else later
                made = edit_frame(single, frame, mask, square, frame_settings, start=start or frame)
            if last is not None and motion is not None:
                made = replace(made, flicker=flicker(made.image, last.made.image, mask, motion))
        seed = made.seed
        last = PaintedFrame(frame, mask, square, made, np.zeros((*size[::-1], 2), np.float32))
        key = last if start is None else key
        yield made


def carry_over(frame: PIL.Image.Image, mask: PIL.Image.Image, key: PaintedFrame) -> PIL.Image.Image | None:
    """What a frame starts from: inside its mask what was painted in an earlier one, moved, elsewhere the frame.

    It is the model's own picture that is carried over, not what became of it in the frame, whose soft edges and grain
    come anew. At the mask's edge, where the model's pixels show the background too, and where the mask has grown,
    there is more of what lies next to it inside.

    Args:
        frame, mask (`PIL.Image.Image`): the clip's, the mask of mode `L`, 255 = edit, 0 = keep.
        key ([`PaintedFrame`]): the earlier frame.

    Returns:
        `PIL.Image.Image` of mode `RGB`; `None` if less than half of the mask was edited in the earlier frame.
    """
    edited, known = move_along(np.asarray(key.mask), key.flow)
    inside, painted = np.asarray(mask) == 255, key.made.painted
    if painted is None or (known & (edited >= 128))[inside].mean() < LEAST_COVERED:
        return None
    left, top, right, bottom = key.square
    small = key.mask.crop(key.square).resize(painted.size, PIL.Image.Resampling.BOX)
    coverage = np.asarray(small)
    nearest = distance_transform_edt(coverage < coverage.max(), return_distances=False, return_indices=True)
    spread = PIL.Image.fromarray(np.asarray(painted)[tuple(nearest)])
    whole = key.frame.convert("RGB")
    whole.paste(spread.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC), (left, top))
    moved, _ = move_along(np.asarray(whole), key.flow)
    return PIL.Image.fromarray(np.where(inside[..., None], moved, np.asarray(frame.convert("RGB"))))


def edit_frame(
    editor: Editor,
    frame: PIL.Image.Image,
    mask: PIL.Image.Image,
    square: Box,
    settings: EditSettings,
    name: str = "",
    start: PIL.Image.Image | None = None,
) -> EditedFrame:
    """Edits a frame in just this square, whatever the mask.

    Args:
        editor ([`Editor`]), settings ([`EditSettings`]), name (`str`): as in [`edit_video`].
        frame, mask (`PIL.Image.Image`): as in [`edit_video`].
        square (`tuple[int, int, int, int]`): left, top, right, bottom; past the frame's border it is mirrored.
        start (`PIL.Image.Image`, *optional*): what the model is to start from: the frame, or what differs from it in
            the mask alone. `editor` then only lends its model and its first seed: it neither chooses nor writes.

    Returns:
        [`EditedFrame`]: the best candidate's, without its flicker.
    """
    # a margin as large as the picture: the model sees all of it; and the mask is as it is to be
    whole = replace(settings, context=float(square[2] - square[0]), invert_mask=False)
    window, region = cut(frame, square), mask.crop(square)
    if start is None:
        edited = editor.edit(window, region, whole, name)
        image, seed, distance = edited.best, edited.seeds[0], edited.clip_distances[0]
        (painted,) = Editor(editor.painter).prepare(window, region, whole, name).make([seed])
    else:
        (painted,) = editor.prepare(cut(start, square), region, whole, name).make(editor.seeds[:1])
        image = editor.prepare(window, region, whole, name).finish(painted)
        seed, distance = painted.seed, painted.clip_distance
    # for RGBA this drops the alpha channel and leaves the colours alone, also under transparent pixels
    result = frame.convert("RGB")
    result.paste(image, square[:2])
    if frame.mode == "RGBA":
        result.putalpha(frame.getchannel("A"))
    return EditedFrame(result, painted.image, seed, distance, settings.strength, None)


def cut(frame: PIL.Image.Image, square: Box) -> PIL.Image.Image:
    """A square of a frame, of mode `RGB`, mirrored past the frame's border."""
    left, top, right, bottom = square
    within = max(left, 0), max(top, 0), min(right, frame.width), min(bottom, frame.height)
    outside = ((within[1] - top, bottom - within[3]), (within[0] - left, right - within[2]), (0, 0))
    return PIL.Image.fromarray(np.pad(np.asarray(frame.crop(within).convert("RGB")), outside, mode="symmetric"))


def steady_squares(boxes: Sequence[Box | None], size: tuple[int, int], context: float) -> list[Box]:
    """Squares of one size that follow the masks smoothly and hold each of them.

    Args:
        boxes (`Sequence`): left, top, right, bottom of each frame's mask, or `None` where it is black.
        size (`tuple[int, int]`): the frames' width and height.
        context (`float`): margin round the largest mask, as a share of its longer side.

    Returns:
        `list[tuple[int, int, int, int]]`: one for each box. Only a square that is larger than the frame reaches past
        its border.

    Raises:
        ValueError: all masks are black.
    """
    found = {index: box for index, box in enumerate(boxes) if box is not None}
    if not found:
        raise ValueError("`masks` are black in every frame; paint white what is to be edited.")
    longest = max(max(right - left, bottom - top) for left, top, right, bottom in found.values())
    left, _, right, _ = square_around((0, 0, longest, longest), size, context)
    side = right - left
    starts = []
    for axis in (0, 1):
        edges = [(box[axis], box[axis + 2]) for box in found.values()]
        middles = np.interp(range(len(boxes)), list(found), [(low + high) / 2 for low, high in edges])
        start = np.rint(gaussian_filter1d(middles, SMOOTHING, mode="nearest") - side / 2).astype(int)
        for index, (low, high) in zip(found, edges, strict=True):
            start[index] = np.clip(start[index], high - side, low)
        starts.append(start.tolist())
    return [square_around((x, y, x + side, y + side), size, 0) for x, y in zip(*starts, strict=True)]


def is_seen(mask: PIL.Image.Image, square: Box, model_size: int) -> bool:
    """Whether anything of a mask is left in the square at the model's size."""
    small = mask.crop(square).resize((model_size, model_size), PIL.Image.Resampling.BOX)
    return small.point([0] * 128 + [255] * 128).getbbox() is not None
