"""Several regions of one photo in one denoising pass, each with its own words.

What belongs here is the pipeline that guides every region towards its own words, and how the network's pixels are
shared out among them. Where the regions are in the photo is said by `masks.regions`; what people ask for, and where it
is written, is `applications.regions`' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageChops
import torch
from diffusers.image_processor import PipelineImageInput
from diffusers.utils import logging
from scipy.ndimage import distance_transform_edt

from blended_diffusion.masks.regions import regions_in, without_what_is_covered
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.variants import variant_of
from blended_diffusion.painters.words import prompt_arguments
from blended_diffusion.pictures.canvas import Canvas
from pipeline_blended_diffusion import (
    BlendedDiffusionPipeline,
    BlendedDiffusionPipelineOutput,
    EditCall,
    Guidance,
    to_image_list,
    to_pil,
)


logger = logging.get_logger(__name__)

# a region that fills less of the square than this will hardly show its words
SMALL_SHARE = 0.03


# ---------------------------------------------------------------------------------------------------------------------
# Which of the network's pixels belongs to which region
# ---------------------------------------------------------------------------------------------------------------------


def territories(coverage: np.ndarray) -> np.ndarray:
    """Shares a square out among regions: a pixel belongs to the one that covers most of it, or else to the nearest.

    Args:
        coverage (`np.ndarray` of shape `(R, H, W)`): how much of each pixel each of the regions covers.

    Returns:
        `np.ndarray` of shape `(H, W)`: the number of the pixel's region, from 0.
    """
    nearest = distance_transform_edt(coverage.max(axis=0) == 0, return_distances=False, return_indices=True)
    return coverage.argmax(axis=0)[tuple(nearest)]


def shared_out(canvas: Canvas, labels: PIL.Image.Image) -> list[np.ndarray]:
    """The model's mask `(H, W)` of each region that [`label`] made, 255 = edit; of a small one nothing may be left."""
    size, near = (canvas.size, canvas.size), [region.crop(canvas.square) for region in regions_in(labels)]
    owner = territories(np.stack([np.asarray(one.resize(size, PIL.Image.Resampling.BOX)) for one in near]))
    whole = np.asarray(canvas.model_mask)
    return [np.where(owner == number, whole, 0).astype(np.uint8) for number in range(len(near))]


def region_masks(canvas: Canvas, labels: PIL.Image.Image, prompts: Sequence[str]) -> list[PIL.Image.Image]:
    """The model's mask shared out among the regions: of mode `L` and the model's size, 255 = edit.

    Args:
        canvas ([`Canvas`]): its mask is the union of the regions.
        labels (`PIL.Image.Image`): what [`label`] made, of the photo's size.
        prompts (`Sequence[str]`): one for each region, for messages.

    Raises:
        ValueError: nothing is left of a region at the model's size, or there are not as many as prompts.
    """
    if labels.getextrema()[1] != len(prompts):
        raise ValueError(f"There are {labels.getextrema()[1]} regions and {len(prompts)} prompts; give each its own.")
    masks = shared_out(canvas, labels)
    for number, (prompt, mask) in enumerate(zip(prompts, masks, strict=True), start=1):
        share = np.count_nonzero(mask) / mask.size
        advice = "edit regions that are far from each other one after another, or paint with a broader brush"
        if share == 0:
            raise ValueError(
                f"Region {number} ({prompt!r}) is too small: in the square round all regions nothing is left of it at"
                f" the model's size of {canvas.size}×{canvas.size} pixels; {advice}."
            )
        if share < SMALL_SHARE:
            logger.warning(
                f"Region {number} ({prompt!r}) is {share:.1%} of the square round all regions, which is hardly enough"
                f" for an object: {advice}."
            )
    return [PIL.Image.fromarray(mask) for mask in masks]


def region_arguments(
    pipe: BlendedDiffusionPipeline, canvas: Canvas, labels: PIL.Image.Image, settings: EditSettings
) -> dict[str, Any]:
    """What [`RegionsPipeline`] is called with: `prompt`, `region_masks` and, if wanted, embeddings.

    Raises:
        ValueError: nothing is left of a region at the model's size, or there are not as many as prompts.
    """
    prompts = settings.region_prompts or []
    arguments: dict[str, Any] = {"prompt": prompts, "region_masks": region_masks(canvas, labels, prompts)}
    words = (settings.prompt_templates, settings.typographic_defence)
    of_regions = [prompt_arguments(pipe, prompt, *words) for prompt in prompts]
    for name in ("prompt_embeds", "rival_prompt_embeds"):
        given = [one[name] for one in of_regions if name in one]
        if given:  # what stands for a region without words is not looked at
            arguments[name] = torch.cat([one.get(name, given[0]) for one in of_regions])
    return arguments | {key: one[key] for one in of_regions for key in ("rival_guidance_scale",) if key in one}


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline
# ---------------------------------------------------------------------------------------------------------------------


def _as_picture(mask: PIL.Image.Image | torch.Tensor) -> PIL.Image.Image:
    return mask if isinstance(mask, PIL.Image.Image) else to_pil(mask)


@dataclass(frozen=True)
class Territory:
    """What the pipeline knows of a region.

    Attributes:
        share (`torch.Tensor` of shape `(1, 1, H, W)`): 1 for the pixels that are its own or nearest to it, else 0.
        text_embeds (`torch.Tensor` of shape `(1, D)`): of what it should show.
        rival_embeds (`torch.Tensor` of shape `(1, D)`, *optional*): of what it must not be taken for.
    """

    share: torch.Tensor
    text_embeds: torch.Tensor
    rival_embeds: torch.Tensor | None


class RegionsPipeline(BlendedDiffusionPipeline):
    r"""
    [`BlendedDiffusionPipeline`] whose prompts belong to regions of one photo instead of to several photos.

    The loss that guides is the sum over the regions of the CLIP distance between the estimate masked by the region and
    the region's words; the photo is blended in outside all of them. Pictures are ranked by the mean over the regions.
    One region gives exactly the picture of [`BlendedDiffusionPipeline`].
    """

    _regions: list[Territory]

    @classmethod
    def of(cls, pipe: BlendedDiffusionPipeline) -> "RegionsPipeline":
        """The same components, defaults and whatever was set on `pipe`; nothing is copied."""
        return variant_of(pipe, cls)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        image: PipelineImageInput,
        region_masks: PipelineImageInput,
        mask_image: PipelineImageInput | None = None,
        prompt_embeds: torch.Tensor | None = None,
        rival_prompt_embeds: torch.Tensor | None = None,
        **arguments: Any,
    ) -> BlendedDiffusionPipelineOutput | tuple:
        """
        Edits all regions of a photo at once.

        Args:
            prompt (`list[str]`):
                What each region should show. A region with the empty one is filled without guidance.
            image (`PipelineImageInput`):
                The photo, or several of them with the same regions.
            region_masks (`PipelineImageInput`):
                A mask for each region, of the photo's size; white is edited. Where they overlap, the later one counts.
            mask_image (`PipelineImageInput`, *optional*):
                What is edited, if not exactly the regions: each pixel of it belongs to the region nearest to it.
            prompt_embeds, rival_prompt_embeds (`torch.Tensor` of shape `(R, D)`, *optional*):
                CLIP's text embeddings to use in place of its reading of `prompt`, and those of what a region must not
                be taken for: one for each region.
            arguments:
                As in [`BlendedDiffusionPipeline`]; `negative_prompt` is one for all regions.

        Returns:
            [`BlendedDiffusionPipelineOutput`] or `tuple`: `(images, clip_distances, ranking)`.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it and says what would be right.
        """
        masks = [_as_picture(mask) for mask in to_image_list(region_masks, "region_masks", 1)]
        self.check_regions(prompt, masks)
        threshold = EditCall.of(arguments).mask_threshold
        union = reduce(PIL.ImageChops.lighter, masks)
        masks = without_what_is_covered(masks)
        if (padding := arguments.get("padding_mask_crop")) is not None:
            window = self.crop_region(union, padding, threshold)
            masks = [mask.crop(window) for mask in masks]
        coverage = torch.cat([self.prepare_image(mask) for mask in masks])[:, 0]
        owner = torch.from_numpy(territories(coverage.cpu().numpy())).to(coverage.device)
        owned = [(owner == number).to(coverage.dtype)[None, None] for number in range(len(masks))]
        for number, (text, territory, covered) in enumerate(zip(prompt, owned, coverage, strict=True), start=1):
            if not (territory * covered).any():
                raise ValueError(
                    f"`region_masks` number {number} ({text!r}) has nothing left at the network's size of"
                    f" {self.sample_size[1]}×{self.sample_size[0]} pixels; paint a larger region, and not under a"
                    " later one."
                )
        embeds = self.encode_prompt(prompt) if prompt_embeds is None else prompt_embeds.to(coverage)
        rivals = None if rival_prompt_embeds is None else rival_prompt_embeds.to(coverage)
        guided = [number for number, text in enumerate(prompt) if text]
        self._regions = [
            Territory(owned[number], embeds[number, None], None if rivals is None else rivals[number, None])
            for number in guided or range(len(masks))
        ]
        # what the first one is to show only says that the pictures are guided; below, each has its own
        first = self._regions[0]
        words = {"prompt_embeds": first.text_embeds} if guided else {"prompt": ""}
        mask_image = union if mask_image is None else mask_image
        return super().__call__(
            image=image, mask_image=mask_image, rival_prompt_embeds=first.rival_embeds, **words, **arguments
        )

    def check_regions(self, prompt: list[str], masks: list[PIL.Image.Image]) -> None:
        """Raises a `ValueError` or `TypeError` of one sentence if these are not regions of one photo."""
        if not isinstance(prompt, list):
            raise TypeError(f"`prompt` must be a list of strings, one for each region, not {prompt!r}.")
        if self.check_prompt("prompt", prompt, None) != len(masks):
            raise ValueError(
                f"`prompt` is a list of {len(prompt)} and `region_masks` of {len(masks)}; give each region its words"
                " and its mask."
            )
        for number, mask in enumerate(masks, start=1):
            if mask.size != masks[0].size:
                raise ValueError(
                    f"`region_masks` number {number} is {mask.width}×{mask.height} pixels (width×height) and the first"
                    f" one {masks[0].width}×{masks[0].height}; they must be the same size."
                )

    def clip_loss(self, estimate: torch.Tensor, guidance: Guidance, warps: torch.Tensor) -> torch.Tensor:
        """The sum over the regions of D_CLIP. Shape `(B,)`."""
        losses = []
        for region in self._regions:
            of_region: dict[str, Any] = {"mask": guidance.mask * region.share, "text_embeds": region.text_embeds}
            if region.rival_embeds is not None:
                of_region["rival_embeds"] = region.rival_embeds
            losses.append(super().clip_loss(estimate, replace(guidance, **of_region), warps))
        return torch.stack(losses).sum(dim=0)

    def clip_distance(
        self, images: torch.Tensor, mask: torch.Tensor, text_embeds: torch.Tensor, match_release: bool = False
    ) -> torch.Tensor:
        """The mean over the regions of the CLIP distance. Shape `(B,)`."""
        of_region = super().clip_distance
        distances = [
            of_region(images, mask * region.share, region.text_embeds, match_release) for region in self._regions
        ]
        return torch.stack(distances).mean(dim=0)

    def surroundings_distance(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        text_embeds: torch.Tensor,
        label_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over the regions of how badly each fits its words and its surroundings. Shape `(B,)`."""
        of_region = super().surroundings_distance
        distances = [
            of_region(images, mask * region.share, region.text_embeds, label_embeds) for region in self._regions
        ]
        return torch.stack(distances).mean(dim=0)
