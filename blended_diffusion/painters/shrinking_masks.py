"""Small masks: a mask that is larger while the noise is high and shrinks to the wanted one over the steps.

What an object will be is decided in the first, noisy steps. A region of a twentieth of the window is then a few
blurred pixels, too few for CLIP to see anything in and for the network to begin an object with. So the first steps
edit the region grown on all sides, and what has begun there shrinks with it. What belongs here is how large the mask
is at which step; drawing masks does not.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
from scipy.ndimage import distance_transform_edt

from blended_diffusion.painters.changing_masks import ChangingMask


# of the window's area: as far a mask grows that is left to choose for itself; a larger one is left alone
ENOUGH = 0.3

# of the steps, after which the mask is the wanted one: what is there later has to fit into it
SHRUNK_AFTER = 0.4


@dataclass(frozen=True)
class ShrinkingMask(ChangingMask):
    """A [`ChangingMask`] that begins larger than the wanted one and is that after the last step.

    ```py
    shrinking = ShrinkingMask(mask_image, growth_of(mask_image))
    out = pipe(
        "rock",
        image,
        shrinking.first,
        callback_on_step_end=shrinking,
        callback_on_step_end_tensor_inputs=["mask"],
    )
    ```

    Attributes:
        mask (`PIL.Image.Image`): the wanted one, of mode `L` and the network's size, white (from 128 on) = edit.
        growth (`float`): how far the first step's mask reaches past it on all sides, as a share of its width.

    Raises:
        ValueError: `growth` is not in 0…1.
    """

    mask: PIL.Image.Image
    growth: float

    def __post_init__(self):
        if not 0 <= self.growth <= 1:
            raise ValueError(f"`initial_mask_growth` is {self.growth}; expected a number from 0 to 1.")

    @cached_property
    def distance(self) -> np.ndarray:
        return distance_outside(self.mask)

    def at(self, progress: float) -> np.ndarray:
        """The mask `(H, W)`, `bool`, when `progress` (0…1) of the steps are taken; the radius falls linearly."""
        radius = self.growth * self.mask.width * max(1 - progress / SHRUNK_AFTER, 0)
        return self.distance <= radius


def growth_of(mask: PIL.Image.Image, share: float = ENOUGH) -> float:
    """How far a mask has to grow to cover `share` of its picture, as a share of its width; 0 if it does already."""
    distance = np.sort(distance_outside(mask), axis=None)
    return float(distance[math.ceil(share * distance.size) - 1]) / mask.width


def distance_outside(mask: PIL.Image.Image) -> np.ndarray:
    """How many pixels it is to the nearest white one, `(H, W)`."""
    return distance_transform_edt(np.asarray(mask) < 128)
