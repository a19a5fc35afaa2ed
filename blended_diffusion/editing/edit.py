"""One edit: what all its candidates share, how some of them are made, and how one becomes a finished picture.

What belongs here asks the pipeline for pictures and puts them into the photo. Which pictures are made together and
where they are written belongs to `candidates` and `results`.
"""

import copy
import inspect
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import PIL.Image
import PIL.ImageChops
import torch
from diffusers import DDIMScheduler

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, Record
from blended_diffusion.models import Model
from blended_diffusion.painters.object_scale import scale_penalties
from blended_diffusion.painters.regions import RegionMask, RegionsPipeline, read_regions, region_arguments
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.shrinking_masks import ShrinkingMask, growth_of
from blended_diffusion.painters.windows import REFINING_STRENGTH, WindowedPipeline, enlarged
from blended_diffusion.painters.words import blended_embeds, prompt_arguments
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask, Photo
from pipeline_blended_diffusion import BlendedDiffusionPipeline


# the settings of these names are the pipeline's business, the others ours
PIPELINE_ARGUMENTS = frozenset(inspect.signature(BlendedDiffusionPipeline.__call__).parameters)


@dataclass(frozen=True)
class Candidate:
    """One picture as the model made it.

    Attributes:
        seed (`int`): its own.
        batch (`list[int]`): the seeds of the batch it was computed in.
        clip_distance (`float`): lower is better.
        image (`PIL.Image.Image`): of the model's size, or `detail` times that.
        steps (`list[PIL.Image.Image]`): the clean estimate after each step, if it was watched.
    """

    seed: int
    batch: list[int]
    clip_distance: float
    image: PIL.Image.Image
    steps: list[PIL.Image.Image]


@dataclass(frozen=True)
class Edit:
    """What all candidates of an edit share.

    Attributes:
        model (`Model`): on its device.
        photo (`Photo`), mask (`Mask`, *optional*): without a mask all of the photo is edited.
        settings (`EditSettings`): with the model's defaults filled in.
        canvas (`Canvas`): the photo, the mask and the square round it, for pictures of the model's size.
    """

    model: Model
    photo: Photo
    mask: Mask | None
    settings: EditSettings
    canvas: Canvas

    @classmethod
    def prepare(cls, model: Model, photo: Photo, mask: Mask | None, settings: EditSettings) -> "Edit":
        """Fills in the model's defaults, gives it the scheduler that is wanted, and finds the square.

        Raises:
            ValueError: the mask is too thin for the model, there is no step to take, or windows cannot refine this.
        """
        if settings.detail < 1:
            raise ValueError(f"`detail` is {settings.detail}; expected a whole number of at least 1.")
        if settings.detail > 1 and (settings.region_prompts is not None or not settings.blend):
            what = "several regions at once" if settings.blend else "local CLIP-guided diffusion"
            raise ValueError(f"`detail` {settings.detail} does not go with {what}; give 1.")
        if settings.object_scale and (settings.region_prompts is not None or settings.prompt == ""):
            what = "several regions at once" if settings.region_prompts is not None else "no words"
            raise ValueError(f"`object_scale` {settings.object_scale} does not go with {what}; give 0.")
        pipe = model.pipe
        if settings.ddim:
            # for this edit alone: others take the model's own steps
            pipe = copy.copy(pipe)
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        if settings.region_prompts is not None:
            pipe = RegionsPipeline.of(pipe)
            mask = mask if isinstance(mask, RegionMask) else read_regions(mask)
        model = replace(model, pipe=pipe)
        defaults = {
            key.removeprefix("default_"): value for key, value in pipe.config.items() if key.startswith("default_")
        }
        defaults["guidance_gradient"] = pipe.gradient_left_out(settings.match_release)
        chosen = {key: value for key, value in asdict(settings).items() if value is not None}
        settings = replace(settings, **{**defaults, **chosen})
        pipe.check_steps(settings.num_inference_steps, settings.strength)
        mask_image = PIL.Image.new("L", photo.image.size, 255) if mask is None else mask.image
        canvas = Canvas.around(photo.image, mask_image, model.size, settings.context)
        canvas = replace(canvas, rise=settings.feather)
        if settings.initial_mask_growth is None:
            # the released editor has none, and without words there is no object to make room for
            grows = settings.prompt != "" and not settings.match_release
            settings = replace(settings, initial_mask_growth=growth_of(canvas.model_mask) if grows else 0.0)
        return cls(model, photo, mask, settings, canvas)

    @cached_property
    def fine(self) -> Canvas:
        """The canvas for the pictures as they are made in the end."""
        return self.canvas if self.settings.detail == 1 else replace(self.canvas, size=self.windowed.sample_size[0])

    @cached_property
    def windowed(self) -> WindowedPipeline:
        """The pipeline that refines what the model's own has made."""
        return WindowedPipeline.of(self.model.pipe, self.settings.detail)

    @property
    def keep_background(self) -> bool:
        """Whether the photo's own pixels are put back outside the mask; the released baseline does not."""
        return self.settings.enforce_background and (self.settings.blend or not self.settings.match_release)

    def make(self, seeds: list[int], watch: bool = False) -> list[Candidate]:
        """Makes the pictures of these seeds in one batch.

        Each has a CPU generator of its own, so that it depends neither on the device nor, but for rounding, on the
        others.

        Args:
            seeds (`list[int]`): one for each picture.
            watch (`bool`): keep the clean estimate after each step.

        Raises:
            ValueError: the pipeline does not accept the settings.
            ArithmeticError: the numbers left the range of the model's number format.
        """
        steps: list[list[PIL.Image.Image]] = [[] for _ in seeds]

        shrinking = ShrinkingMask(self.canvas.model_mask, self.settings.initial_mask_growth)

        def keep_estimate(pipe, step: int, timestep, tensors: dict) -> dict:
            if watch:
                estimate = tensors["pred_original_sample"].float()
                pictures = pipe.image_processor.postprocess(estimate, do_denormalize=[True] * len(estimate))
                for own, picture in zip(steps, pictures, strict=True):
                    own.append(picture)
            return {}

        def after_step(*arguments) -> dict:
            return keep_estimate(*arguments) | shrinking(*arguments)

        arguments = {key: value for key, value in asdict(self.settings).items() if key in PIPELINE_ARGUMENTS}
        words = (self.settings.prompt, self.settings.prompt_templates, self.settings.typographic_defence)
        arguments |= prompt_arguments(self.model.pipe, *words)
        if self.settings.prompt_to is not None:
            ends = (self.settings.prompt, self.settings.prompt_to)
            arguments |= {
                "prompt": None,
                "prompt_embeds": blended_embeds(self.model.pipe, *ends, self.settings.prompt_blend),
            }
        if self.settings.region_prompts is not None:
            arguments |= region_arguments(self.model.pipe, self.canvas, self.mask.labels, self.settings)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        out = self.model.pipe(
            image=self.canvas.model_image,
            mask_image=shrinking.first,
            num_images_per_prompt=len(seeds),
            generator=generators,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["pred_original_sample", "mask"],
            **arguments,
        )
        if self.settings.detail > 1:
            out = self.windowed(
                image=[enlarged(image, self.fine) for image in out.images],
                mask_image=self.fine.model_mask,
                generator=generators,
                callback_on_step_end=keep_estimate,
                callback_on_step_end_tensor_inputs=["pred_original_sample"],
                **{**arguments, "strength": max(REFINING_STRENGTH, 1 / self.settings.num_inference_steps)},
            )
        if not all(math.isfinite(distance) for distance in out.clip_distances):
            dtype = str(self.model.pipe.unet.dtype).removeprefix("torch.")
            raise ArithmeticError(f"The pictures came out as NaN in {dtype}; use float32 or a smaller guidance scale.")
        distances = out.clip_distances
        if weight := self.settings.object_scale:
            penalties = scale_penalties(self.model.pipe, out.images, self.fine.model_mask, self.settings.prompt)
            distances = [own + weight * penalty for own, penalty in zip(distances, penalties, strict=True)]
        rows = zip(seeds, distances, out.images, steps, strict=True)
        return [Candidate(seed, seeds, distance, image, own) for seed, distance, image, own in rows]

    def finish(self, candidate: Candidate) -> PIL.Image.Image:
        """The photo at its own size with the candidate put into it."""
        grain_seed = candidate.seed if self.settings.match_grain else None
        return self.fine.paste(candidate.image, self.keep_background, grain_seed)

    def record(self, candidate: Candidate, made_with: MadeWith) -> Record:
        """What the candidate's picture has to remember."""
        return Record(
            settings=self.settings,
            **self.origins,
            seed=candidate.seed,
            batch=candidate.batch,
            clip_distance=candidate.clip_distance,
            made_with=made_with,
        )

    @property
    def origins(self) -> dict[str, Origin | None]:
        photo, mask = self.photo, self.mask
        return {
            "photo": Origin(str(photo.path), photo.sha256),
            "mask": None if mask is None else Origin(str(mask.path), mask.sha256),
            "model": Origin(self.model.name, self.model.sha256),
        }


def make_again(edit: Edit, record: Record) -> Candidate:
    """The picture of `record`, computed in the batch it was born in."""
    return edit.make(record.batch)[record.batch.index(record.seed)]


def largest_difference(image: PIL.Image.Image, other: PIL.Image.Image) -> int | None:
    """The largest difference of any channel of any pixel, in 0…255; `None` for pictures of different size or mode."""
    if (image.mode, image.size) != (other.mode, other.size):
        return None
    extrema = PIL.ImageChops.difference(image, other).getextrema()
    return max(high for _, high in (extrema if image.mode != "L" else [extrema]))
