"""Optical flow: how far everything in one frame has moved since the frame before it, and what flickers in spite of it.

What belongs here is arithmetic on pairs of pictures. What is edited does not matter here.
"""

import numpy as np
import PIL.Image


try:
    import cv2
except ImportError as error:
    raise ImportError("Video needs OpenCV: pip install 'blended-diffusion[video]'") from error


# patches are 8 pixels wide, and there have to be several
SMALLEST = 12


def dense_flow(frame: PIL.Image.Image, previous: PIL.Image.Image) -> np.ndarray:
    """Where each pixel of a frame was in the frame before it (Kroeger et al. 2016, https://arxiv.org/abs/1603.03590).

    Args:
        frame, previous (`PIL.Image.Image`): of one size; only their brightness counts.

    Returns:
        `np.ndarray` of shape `(height, width, 2)`, fp32: the way to the right and down, in pixels, that leads from a
        pixel of `frame` to the same point in `previous`.

    Raises:
        ValueError: the frames are too small to follow anything in them.
    """
    if min(frame.size) < SMALLEST:
        raise ValueError(
            f"The frames are {frame.width}×{frame.height} pixels; movement can be followed from"
            f" {SMALLEST}×{SMALLEST} on."
        )
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    now, before = np.asarray(frame.convert("L")), np.asarray(previous.convert("L"))
    return method.calc(now, before, None)  # type: ignore[call-overload]  # without a flow to begin with it makes one


def move_along(picture: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture before, moved to where its points are now.

    Args:
        picture (`np.ndarray` of shape `(height, width[, channels])`, `uint8`): of the frame before.
        flow (`np.ndarray` of shape `(height, width, 2)`): of [`dense_flow`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the moved picture, of the shape of `picture` (Lanczos), and where it is known,
        `bool` of shape `(height, width)`: elsewhere the flow comes from outside the frame.
    """
    height, width = flow.shape[:2]
    x, y = _origins(flow)
    moved = cv2.remap(picture, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
    return moved, (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def follow(flow: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """The flow to an earlier frame, by way of the frame before.

    Args:
        flow (`np.ndarray` of shape `(height, width, 2)`): to the frame before.
        earlier (`np.ndarray` of shape `(height, width, 2)`): from there to the earlier one.
    """
    x, y = _origins(flow)
    return flow + cv2.remap(earlier, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def flicker(
    picture: PIL.Image.Image, previous: PIL.Image.Image, mask: PIL.Image.Image, flow: np.ndarray
) -> float | None:
    """The mean absolute difference inside the mask between a frame and the frame before it, moved along by the flow.

    Args:
        picture, previous (`PIL.Image.Image`): an edited frame and the one before it.
        mask (`PIL.Image.Image`): of mode `L`, the frame's, 255 = inside.
        flow (`np.ndarray` of shape `(height, width, 2)`): of the clip that was edited: see [`dense_flow`].

    Returns:
        `float`, *optional*: in 0…255, over all channels; `None` if all that is inside has just come into the frame.
    """
    moved, known = move_along(np.asarray(previous.convert("RGB")), flow)
    counted = known & (np.asarray(mask) == 255)
    if not counted.any():
        return None
    return float(np.abs(np.asarray(picture.convert("RGB"), np.float32) - moved)[counted].mean())


def _origins(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel was, across and down, as OpenCV wants it."""
    rows, columns = np.mgrid[: len(flow), : flow.shape[1]]
    return (columns + flow[..., 0]).astype(np.float32), (rows + flow[..., 1]).astype(np.float32)
