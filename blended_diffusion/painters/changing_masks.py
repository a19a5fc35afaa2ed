"""Masks that change over the steps of an edit.

What belongs here is what all of them have in common: a mask for each step, and the callback that hands them to the
pipeline. Which mask a step has is said by `shrinking_masks` and `change_maps`.
"""

from abc import ABC, abstractmethod

import numpy as np
import PIL.Image
import torch

from pipeline_blended_diffusion import BlendedDiffusionPipeline


class ChangingMask(ABC):
    """A mask for each step, and the callback that hands them to the pipeline.

    The first step's mask is the call's `mask_image`; after the last step it is the one at progress 1, with which the
    photo is pasted back. `padding_mask_crop` would cut out the first one: leave it out.

    ```py
    out = pipe(
        "rock",
        image,
        changing.first,
        callback_on_step_end=changing,
        callback_on_step_end_tensor_inputs=["mask"],
    )
    ```
    """

    @abstractmethod
    def at(self, progress: float) -> np.ndarray:
        """The mask `(H, W)`, `bool`, of the step before which `progress` (0…1) of the steps are taken; true = edit."""

    @property
    def first(self) -> PIL.Image.Image:
        """The mask of the first step, of mode `L`, 255 = edit."""
        return PIL.Image.fromarray(np.where(self.at(0), 255, 0).astype(np.uint8))

    def __call__(self, pipe: BlendedDiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        """A `callback_on_step_end`: the next step's mask, the one that pastes after the last."""
        mask = torch.from_numpy(self.at((step + 1) / pipe.num_timesteps))
        return {"mask": mask.to(tensors["mask"]).expand_as(tensors["mask"])}
