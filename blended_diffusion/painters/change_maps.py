"""Maps of change: a mask whose greys say how much of the way from photo to edit a pixel may go.

What belongs here is which pixels are free at which step, and what such a map does not go with. Reading its greys from
a file belongs to `pictures.inputs`, bringing them to the painter's size to `pictures.canvas`.
"""

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image

from blended_diffusion.painters.changing_masks import ChangingMask
from blended_diffusion.painters.settings import EditSettings


@dataclass(frozen=True)
class ChangeMap(ChangingMask):
    """A [`ChangingMask`] by which a pixel of grey g (0…1) changes in the last g share of the steps alone.

    Before that it is held to the photo, noised to each step's level, as black is all the way (Levin & Fried 2023,
    "Differential Diffusion: Giving Each Pixel Its Strength", https://arxiv.org/abs/2306.00950). A pixel is free in a
    step before which the share p of the steps is taken if g > 0 and g ≥ 1 − p. So of N steps

    - white is free in all of them,
    - a grey g in the last ⌊gN⌋, half of them for 0.5, and in none below 1/N, where the picture is the photo as the
      painter sees it,
    - black is free in none, and alone is the photo itself, bit for bit: what pastes after the last step is all that is
      not black.

    Where nothing is white, nothing is free in the first steps; see [`ChangeMap.reach`].

    Attributes:
        greys (`PIL.Image.Image`): of mode `L` and the painter's size, 255 = change all the way, 0 = keep.
    """

    greys: PIL.Image.Image

    def at(self, progress: float) -> np.ndarray:
        # rounded, so that thirds and fifths of 255 are not missed by a last bit
        return np.asarray(self.greys) >= max(1, math.ceil(round(255 * (1 - progress), 6)))

    @property
    def reach(self) -> float:
        """The brightest grey: the share, at the end of the steps, in which anything is free.

        The steps before need not be taken: an edit with `strength` times this by [`ChangeMap.brightened`] is the same
        edit, but for rounding to whole steps.
        """
        brightest: int = self.greys.getextrema()[1]  # type: ignore[assignment]  # a single number, its mode is L
        return brightest / 255

    def brightened(self) -> "ChangeMap":
        """The map with its brightest grey white and the others in proportion; none becomes black."""
        return ChangeMap(self.greys.point([round(min(level / 255 / self.reach, 1) * 255) for level in range(256)]))


def refuse_with_change_map(settings: EditSettings) -> None:
    """Raises a `ValueError` of one sentence if a map of change and something that it does not go with are wanted."""
    if not settings.mask_is_change_map:
        return
    if settings.region_prompts is not None:
        raise ValueError(
            "`mask_is_change_map` does not go with several regions at once; edit them one after another, each with a"
            " map of its own."
        )
    if settings.initial_mask_growth:
        raise ValueError(
            f"`mask_is_change_map` does not go with `initial_mask_growth` {settings.initial_mask_growth}: both say"
            " where each step edits; give 0."
        )
    if not settings.blend:
        raise ValueError(
            "`mask_is_change_map` does not go with local CLIP-guided diffusion, which holds no pixel to the photo;"
            " leave one of them out."
        )
