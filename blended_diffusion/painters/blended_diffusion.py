"""Blended Diffusion as a painter: from what is wanted of an edit to calls of its pipelines, and back to pictures.

What belongs here is which pipeline an edit needs and what it is called with. What each of them does otherwise is its
own file's: `regions`, `windows`, `shrinking_masks`, `words`, `object_scale`.
"""

import inspect
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import PIL.Image
import torch
from diffusers import DDIMScheduler

from blended_diffusion.masks.regions import region_labels
from blended_diffusion.models import Model
from blended_diffusion.painters import memory
from blended_diffusion.painters.change_maps import ChangeMap, refuse_with_change_map
from blended_diffusion.painters.changing_masks import ChangingMask
from blended_diffusion.painters.memory import MemorySaving
from blended_diffusion.painters.object_scale import scale_penalties
from blended_diffusion.painters.painter import PaintedSquare
from blended_diffusion.painters.regions import RegionsPipeline, region_arguments
from blended_diffusion.painters.schedulers import scheduler_named
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.shrinking_masks import ShrinkingMask, growth_of
from blended_diffusion.painters.variants import variant_of
from blended_diffusion.painters.windows import REFINING_STRENGTH, WindowedPipeline, enlarged
from blended_diffusion.painters.words import blended_embeds, prompt_arguments
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask
from pipeline_blended_diffusion import BlendedDiffusionPipeline


# the settings of these names are the pipeline's business, the others ours
PIPELINE_ARGUMENTS = frozenset(inspect.signature(BlendedDiffusionPipeline.__call__).parameters)
# what networks that understand words have, and those that CLIP guides have not
OF_TEXT_NETWORKS = {"guidance_scale", "fit_decoder", "size"}


@dataclass(frozen=True)
class BlendedDiffusionPainter:
    """Fills regions by [`BlendedDiffusionPipeline`] and what is made of it: a [`Painter`].

    Attributes:
        model ([`Model`]): on its device.
    """

    model: Model

    title = "Blended Diffusion"
    known_settings = frozenset(field.name for field in fields(EditSettings)) - OF_TEXT_NETWORKS

    @property
    def size(self) -> int:
        return self.model.size

    @property
    def default_num_inference_steps(self) -> int:
        return self.model.pipe.config.default_num_inference_steps

    def check(self, settings: EditSettings, mask: Mask | None) -> None:
        if settings.ranking == "none":
            raise ValueError("`ranking` 'none' is for models without a CLIP; give 'surroundings' or 'region'.")
        if settings.scheduler is not None:
            if settings.ddim:
                raise ValueError(f"`scheduler` {settings.scheduler!r} does not go with `ddim`; give one of them.")
            scheduler_named(settings.scheduler, self.model.pipe)
        if settings.detail < 1:
            raise ValueError(f"`detail` is {settings.detail}; expected a whole number of at least 1.")
        if settings.detail > 1 and (settings.region_prompts is not None or not settings.blend):
            what = "several regions at once" if settings.blend else "local CLIP-guided diffusion"
            raise ValueError(f"`detail` {settings.detail} does not go with {what}; give 1.")
        if settings.object_scale and (settings.region_prompts is not None or settings.prompt == ""):
            what = "several regions at once" if settings.region_prompts is not None else "no words"
            raise ValueError(f"`object_scale` {settings.object_scale} does not go with {what}; give 0.")
        refuse_with_change_map(settings)
        if settings.region_prompts is not None:
            region_labels(mask)
        filled = self._with_models_defaults(settings)
        self.model.pipe.check_steps(filled.num_inference_steps, filled.strength)

    def with_defaults(self, settings: EditSettings, canvas: Canvas) -> EditSettings:
        settings = self._with_models_defaults(settings)
        if settings.initial_mask_growth is None:
            # the released editor has none, without words there is no object to make room for, and a map says itself
            # where each step edits
            grows = settings.prompt != "" and not settings.match_release and not settings.mask_is_change_map
            settings = replace(settings, initial_mask_growth=growth_of(canvas.model_mask) if grows else 0.0)
        if settings.mask_is_change_map:
            self._refuse_a_dark_map(settings, canvas)
        return settings

    def _refuse_a_dark_map(self, settings: EditSettings, canvas: Canvas) -> None:
        """Raises a `ValueError` if a map of change has no grey that is free in any step."""
        count, (_, strength) = settings.num_inference_steps or 0, changing_mask(canvas, settings)
        if self.model.pipe.num_steps_left(count, strength) == 0:
            steps = self.model.pipe.num_steps_left(count, settings.strength or 0.0)
            raise ValueError(
                "The map of change is too dark: at the model's size its brightest grey is"
                f" {ChangeMap(canvas.model_greys).reach:.3f} of white, which leaves none of {steps} steps; paint it"
                " brighter."
            )

    def _with_models_defaults(self, settings: EditSettings) -> EditSettings:
        pipe = self.model.pipe
        defaults = {
            key.removeprefix("default_"): value for key, value in pipe.config.items() if key.startswith("default_")
        }
        defaults["guidance_gradient"] = pipe.gradient_left_out(settings.match_release)
        chosen = {key: value for key, value in asdict(settings).items() if value is not None}
        return replace(settings, **{**defaults, **chosen})

    def for_edit(self, settings: EditSettings) -> "BlendedDiffusionPainter":
        pipe = self.model.pipe
        if settings.ddim:
            pipe = variant_of(pipe, type(pipe))
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        if settings.scheduler is not None:
            pipe = variant_of(pipe, type(pipe))
            pipe.scheduler = scheduler_named(settings.scheduler, pipe)
        if settings.region_prompts is not None:
            pipe = RegionsPipeline.of(pipe)
        return replace(self, model=replace(self.model, pipe=pipe))

    def make(
        self, canvas: Canvas, mask: Mask | None, settings: EditSettings, seeds: list[int], watch: bool
    ) -> list[PaintedSquare]:
        pipe = self.model.pipe
        steps: list[list[PIL.Image.Image]] = [[] for _ in seeds]
        changing, strength = changing_mask(canvas, settings)

        def keep_estimate(pipe: BlendedDiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
            if watch:
                estimate = tensors["pred_original_sample"].float()
                pictures = pipe.image_processor.postprocess(estimate, do_denormalize=[True] * len(estimate))
                for kept, picture in zip(steps, pictures, strict=True):
                    kept.append(picture)
            return {}

        def after_step(*arguments: Any) -> dict:
            return keep_estimate(*arguments) | changing(*arguments)

        arguments = self._arguments(canvas, mask, settings)
        # on the CPU, so that a picture depends neither on the device nor, but for rounding, on the others
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        out = pipe(
            image=canvas.model_image,
            mask_image=changing.first,
            num_images_per_prompt=len(seeds),
            generator=generators,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["pred_original_sample", "mask"],
            **{**arguments, "strength": strength},
        )
        if settings.detail > 1:
            windowed = WindowedPipeline.of(pipe, settings.detail)
            canvas = replace(canvas, size=windowed.sample_size[0])
            refining = replace(settings, strength=REFINING_STRENGTH, initial_mask_growth=0.0)
            changing, strength = changing_mask(canvas, refining)
            out = windowed(
                image=[enlarged(image, canvas) for image in out.images],
                mask_image=changing.first,
                generator=generators,
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["pred_original_sample", "mask"],
                **{**arguments, "strength": max(strength, 1 / (settings.num_inference_steps or 1))},
            )
        distances = out.clip_distances
        if not all(math.isfinite(distance) for distance in distances):
            dtype = str(pipe.unet.dtype).removeprefix("torch.")
            raise ArithmeticError(f"The pictures came out as NaN in {dtype}; use float32 or a smaller guidance scale.")
        if weight := settings.object_scale:
            penalties = scale_penalties(pipe, out.images, canvas.model_mask, settings.prompt)
            distances = [distance + weight * penalty for distance, penalty in zip(distances, penalties, strict=True)]
        return [PaintedSquare(*row) for row in zip(out.images, distances, steps, strict=True)]

    def _arguments(self, canvas: Canvas, mask: Mask | None, settings: EditSettings) -> dict[str, Any]:
        """What the pipeline is called with besides pictures, seeds and callbacks."""
        pipe = self.model.pipe
        arguments = {key: value for key, value in asdict(settings).items() if key in PIPELINE_ARGUMENTS}
        arguments |= prompt_arguments(pipe, settings.prompt, settings.prompt_templates, settings.typographic_defence)
        if settings.prompt_to is not None:
            between = blended_embeds(pipe, settings.prompt, settings.prompt_to, settings.prompt_blend)
            arguments |= {"prompt": None, "prompt_embeds": between}
        if settings.region_prompts is not None:
            arguments |= region_arguments(pipe, canvas, region_labels(mask), settings)
        return arguments

    def make_room(self, settings: EditSettings, batch_size: int) -> str | None:
        return memory.make_room(self.model.pipe, settings, batch_size)

    def memory_saving(self) -> MemorySaving:
        return MemorySaving.of(self.model.pipe)

    def save_memory(self, saving: MemorySaving) -> None:
        if saving.vae_tiling or saving.vae_slicing:
            raise ValueError(f"{self.title} has no autoencoder to save memory in; leave VAE tiling and slicing out.")
        saving.apply(self.model.pipe)


def changing_mask(canvas: Canvas, settings: EditSettings) -> tuple[ChangingMask, float]:
    """The mask of each step, and the strength with which those steps are taken in which anything is free."""
    strength = settings.strength or 0.0
    if not settings.mask_is_change_map:
        return ShrinkingMask(canvas.model_mask, settings.initial_mask_growth or 0.0), strength
    change = ChangeMap(canvas.model_greys)
    return change.brightened(), strength * change.reach
