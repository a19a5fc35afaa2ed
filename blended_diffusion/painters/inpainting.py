"""Any of diffusers' inpainting pipelines as a painter: from what is wanted of an edit to its call, and back.

What belongs here is which of an edit's settings a pipeline knows, and what it is called with. Networks with four
latent channels are blended at every step by the pipeline itself (Avrahami et al. 2023, "Blended Latent Diffusion");
those with nine see the mask. Loading them belongs to `inpainting_models`.
"""

import copy
import inspect
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import is_bs4_available, is_ftfy_available
from diffusers.utils.torch_utils import randn_tensor
from torchvision.transforms.functional import pil_to_tensor

from blended_diffusion.masks.regions import region_labels
from blended_diffusion.models import Model
from blended_diffusion.painters.change_maps import ChangeMap, refuse_with_change_map
from blended_diffusion.painters.clip_ranking import clip_distances
from blended_diffusion.painters.fitted_decoder import decode_fitted
from blended_diffusion.painters.memory import MemorySaving
from blended_diffusion.painters.painter import PaintedSquare
from blended_diffusion.painters.schedulers import scheduler_named
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.shrinking_masks import ShrinkingMask, growth_of
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask


# the settings of these names are the pipeline's arguments
ARGUMENTS = ("num_inference_steps", "strength", "guidance_scale", "negative_prompt")
# of the prompts' embeddings, pipelines whose `encode_prompt` gives back what their call takes
EMBEDDED = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")


@dataclass(frozen=True)
class InpaintingPainter:
    """Fills regions by one of diffusers' inpainting pipelines: a [`Painter`].

    Attributes:
        model ([`Model`]): on its device.
    """

    model: Model

    @property
    def title(self) -> str:
        return type(self.model.pipe).__name__

    @property
    def size(self) -> int:
        return self.model.size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def size_step(self) -> int:
        """What its pictures' width and height have to be a multiple of."""
        pipe = self.model.pipe
        scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "movq_scale_factor", None) or 8
        unet = getattr(pipe, "unet", None)
        return scale * (2 if unet is None else 2 ** (len(unet.config.block_out_channels) - 1))

    @cached_property
    def call_parameters(self) -> dict[str, inspect.Parameter]:
        """What the pipeline's call takes, by name."""
        return dict(inspect.signature(type(self.model.pipe).__call__).parameters)

    @cached_property
    def callback_tensors(self) -> frozenset[str]:
        """What a `callback_on_step_end` may ask for."""
        if "callback_on_step_end" not in self.call_parameters:
            return frozenset()
        return frozenset(getattr(self.model.pipe, "_callback_tensor_inputs", ["latents"]))

    @property
    def blends(self) -> bool:
        """Whether the pipeline blends by a mask that can be changed from step to step."""
        unet = getattr(self.model.pipe, "unet", None)
        return "mask" in self.callback_tensors and unet is not None and unet.config.in_channels == 4

    @property
    def holds(self) -> bool:
        """Whether the photo, noised to a step's level, can be put among the latents."""
        pipe = self.model.pipe
        plain = isinstance(getattr(pipe, "vae", None), AutoencoderKL) and hasattr(pipe, "unet")
        return plain and "latents" in self.callback_tensors and hasattr(pipe.scheduler, "add_noise")

    @cached_property
    def known_settings(self) -> frozenset[str]:
        pipe = self.model.pipe
        known = {name for name in ARGUMENTS if name in self.call_parameters} | {"region_prompts", "ranking"}
        # those of two guidances take a negative prompt only with the second one on
        true_guidance = self.call_parameters.get("true_cfg_scale")
        if true_guidance is not None and true_guidance.default <= 1:
            known.discard("negative_prompt")
        if self.model.clip is not None:
            known.add("candidate_labels")
        if getattr(pipe.scheduler, "compatibles", None):
            known.add("scheduler")
        if self.blends:
            known.add("initial_mask_growth")
        if self.holds:
            known |= {"fit_decoder", "mask_is_change_map"}
        if "height" in self.call_parameters:
            known.add("size")
        if self.title in EMBEDDED:
            known |= {"prompt_to", "prompt_blend"}
        return frozenset(known)

    @property
    def default_num_inference_steps(self) -> int:
        return self._with_models_defaults(EditSettings("")).num_inference_steps or 1

    def check(self, settings: EditSettings, mask: Mask | None) -> None:
        if settings.size is not None and settings.size % self.size_step:
            raise ValueError(f"`size` is {settings.size}; {self.title} needs a multiple of {self.size_step}.")
        filled = self._with_models_defaults(settings)
        if settings.region_prompts is not None:
            region_labels(mask)
        if settings.ranking == "none" and settings.candidate_labels:
            raise ValueError("`candidate_labels` needs a ranking; leave it out, or give another `ranking`.")
        if settings.scheduler is not None:
            scheduler_named(settings.scheduler, self.model.pipe)
        refuse_with_change_map(settings)
        steps = filled.num_inference_steps or 1
        if filled.strength is not None and int(min(steps * filled.strength, steps)) < 1:
            raise ValueError(
                f"`strength` {filled.strength} of `num_inference_steps` {steps} leaves no step to take; give more of"
                " either."
            )

    def with_defaults(self, settings: EditSettings, canvas: Canvas) -> EditSettings:
        settings = self._with_models_defaults(settings)
        if settings.initial_mask_growth is None:
            grows = self.blends and settings.prompt != "" and not settings.mask_is_change_map
            settings = replace(settings, initial_mask_growth=growth_of(canvas.model_mask) if grows else 0.0)
        return settings

    def _with_models_defaults(self, settings: EditSettings) -> EditSettings:
        recommended = {name: value for name, value in self.model.defaults.items() if name in self.known_settings}
        own = {
            name: self.call_parameters[name].default
            for name in ARGUMENTS
            if name in self.known_settings and self.call_parameters[name].default is not inspect.Parameter.empty
        }
        chosen = {name: value for name, value in asdict(settings).items() if value is not None}
        if self.model.clip is None:
            chosen["ranking"] = "none"
        return replace(settings, **{**own, **recommended, **chosen})

    def for_edit(self, settings: EditSettings) -> "InpaintingPainter":
        if settings.scheduler is None:
            return self
        pipe = copy.copy(self.model.pipe)
        pipe.scheduler = scheduler_named(settings.scheduler, pipe)
        if hasattr(pipe, "decoder_pipe"):  # of two pipelines in one, that takes the steps
            pipe.decoder_pipe = copy.copy(pipe.decoder_pipe)
            pipe.decoder_pipe.scheduler = pipe.scheduler
        return replace(self, model=replace(self.model, pipe=pipe))

    def make(
        self, canvas: Canvas, mask: Mask | None, settings: EditSettings, seeds: list[int], watch: bool
    ) -> list[PaintedSquare]:
        steps: list[list[PIL.Image.Image]] = [[] for _ in seeds]
        # on the CPU, so that a picture depends neither on the device nor, but for rounding, on the others
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        images = [canvas.model_image] * len(seeds)
        regions = self._regions(canvas, mask, settings)
        distances = [0.0] * len(seeds)
        # one after another: each is painted into what those before have left
        for prompt, region in regions:
            stroke = Stroke(self, canvas, region, settings, prompt, seeds, steps if watch else None)
            painted = stroke.paint(images, generators)
            if settings.enforce_background or len(regions) > 1:
                painted = [PIL.Image.composite(new, old, region) for new, old in zip(painted, images, strict=True)]
            images = painted
        if self.model.clip is not None and settings.ranking != "none":
            found = [
                clip_distances(self.model.clip, images, region, prompt, settings.ranking, settings.candidate_labels)
                for prompt, region in regions
            ]
            distances = [sum(row) / len(row) for row in zip(*found, strict=True)]
        return [PaintedSquare(*row) for row in zip(images, distances, steps, strict=True)]

    def _regions(self, canvas: Canvas, mask: Mask | None, settings: EditSettings) -> list[tuple[str, PIL.Image.Image]]:
        """What to paint, and where in the square: in white of mode `L`."""
        if settings.region_prompts is None:
            return [(settings.prompt, canvas.model_mask)]
        labels = region_labels(mask)
        regions = []
        for number, prompt in enumerate(settings.region_prompts, start=1):
            own = labels.point([255 * (level == number) for level in range(256)], "L")
            region = replace(canvas, mask=own).model_mask
            if region.getbbox() is None:
                raise ValueError(
                    f"Region {number} ({prompt!r}) has nothing left at the model's size of {canvas.size}×{canvas.size}"
                    " pixels; paint a larger region, and not under a later one."
                )
            regions.append((prompt, region))
        return regions

    def make_room(self, settings: EditSettings, batch_size: int) -> str | None:
        return None  # what saves memory here is chosen when the model is loaded

    def memory_saving(self) -> MemorySaving:
        vae = getattr(self.model.pipe, "vae", None)
        return MemorySaving(
            vae_tiling=bool(getattr(vae, "use_tiling", False)), vae_slicing=bool(getattr(vae, "use_slicing", False))
        )

    def save_memory(self, saving: MemorySaving) -> None:
        if saving.gradient_checkpointing:
            raise ValueError(f"Gradient checkpointing means nothing to {self.title}: it takes no gradient.")
        for wanted, switch in ((saving.vae_tiling, "enable_tiling"), (saving.vae_slicing, "enable_slicing")):
            if not wanted:
                continue
            vae = getattr(self.model.pipe, "vae", None)
            if not hasattr(vae, switch):
                raise ValueError(f"{self.title} has no autoencoder to save memory in; leave VAE {switch[7:]} out.")
            getattr(vae, switch)()


@dataclass(frozen=True)
class Stroke:
    """One call of the pipeline: one region painted, once for each seed.

    Attributes:
        painter ([`InpaintingPainter`]): of this edit.
        canvas ([`Canvas`]), settings ([`EditSettings`]): as in [`Painter.make`].
        region (`PIL.Image.Image`): of mode `L`, the square's size, 255 = paint.
        prompt (`str`): what.
        seeds (`list[int]`): of the pictures.
        steps (`list[list[PIL.Image.Image]]`, *optional*): where to keep what the pictures look like after each step.
    """

    painter: InpaintingPainter
    canvas: Canvas
    region: PIL.Image.Image
    settings: EditSettings
    prompt: str
    seeds: list[int]
    steps: list[list[PIL.Image.Image]] | None

    @property
    def pipe(self) -> DiffusionPipeline:
        return self.painter.model.pipe

    def paint(self, images: list[PIL.Image.Image], generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The pictures of the square's size, all that is in them the network's."""
        upscaler, size = self.painter.model.upscaler, self.canvas.size
        first = self._resized(images, self.pipe) if upscaler is not None else images
        arguments = self.arguments(self.pipe, first, generators) | self._words(len(images))
        if self.settings.fit_decoder:
            latents = self.pipe(**arguments, output_type="latent").images
            return self._decode_fitted(latents, images)
        painted = self.pipe(**arguments).images
        if upscaler is not None:
            own = self.arguments(upscaler, images, generators) | {"original_image": images, "image": painted}
            del own["strength"]  # its own leaves noise enough for detail, and too little for other things
            own["num_inference_steps"] = max(2, own["num_inference_steps"])
            painted = upscaler(**own, prompt=[self.prompt] * len(images)).images
        return [picture.convert("RGB").resize((size, size), PIL.Image.Resampling.LANCZOS) for picture in painted]

    def _resized(self, images: list[PIL.Image.Image], pipe: DiffusionPipeline) -> list[PIL.Image.Image]:
        size = pipe.unet.config.sample_size
        return [image.resize((size, size), PIL.Image.Resampling.LANCZOS) for image in images]

    def arguments(
        self, pipe: DiffusionPipeline, images: list[PIL.Image.Image], generators: list[torch.Generator]
    ) -> dict[str, Any]:
        """What a pipeline is called with besides words: pictures, one for each seed, and what its call knows."""
        known = inspect.signature(type(pipe).__call__).parameters
        width, height = images[0].size
        mask = self.shrinking.first.resize(images[0].size, PIL.Image.Resampling.NEAREST)
        given = {name: getattr(self.settings, name) for name in ARGUMENTS}
        if given["negative_prompt"] is not None:
            given["negative_prompt"] = [given["negative_prompt"]] * len(images)
            if hasattr(pipe, "prior_pipe"):  # which takes negative words for further pictures, with noise of their own
                generators = [*generators, *(torch.Generator("cpu").manual_seed(seed) for seed in self.seeds)]
        given |= {"image": images, "mask_image": [mask] * len(images), "height": height, "width": width}
        given |= {"generator": generators, **self._callbacks(known)}
        if not (is_bs4_available() and is_ftfy_available()):
            given["clean_caption"] = False  # as it falls back to itself, with a warning each time
        return {name: value for name, value in given.items() if name in known and value is not None}

    def _words(self, count: int) -> dict[str, Any]:
        if self.settings.prompt_to is None:
            return {"prompt": [self.prompt] * count}
        device = self.pipe._execution_device
        ends = [
            self.pipe.encode_prompt(
                prompt=text, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            for text in (self.prompt, self.settings.prompt_to)
        ]
        names = ["prompt_embeds", None, "pooled_prompt_embeds", None][: len(ends[0])]
        return {
            name: torch.lerp(one, other, self.settings.prompt_blend).repeat(count, *[1] * (one.ndim - 1))
            for name, one, other in zip(names, *ends, strict=True)
            if name is not None
        }

    # --- What happens between steps ----------------------------------------------------------------------------------

    @cached_property
    def shrinking(self) -> ShrinkingMask:
        return ShrinkingMask(self.region, self.settings.initial_mask_growth or 0.0)

    def _callbacks(self, known: Any) -> dict[str, Any]:
        """A callback for the kind of callback that the call has, if one is needed."""
        if "callback_on_step_end" in known:
            wanted = ["latents"]
            if self.settings.initial_mask_growth:
                wanted.append("mask")
            return {"callback_on_step_end": self._after_step, "callback_on_step_end_tensor_inputs": wanted}
        if "callback" in known and self.steps is not None:
            return {"callback": lambda step, timestep, pixels: self._watch(pixels)}
        return {}

    def _after_step(self, pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        latents = tensors["latents"]
        if not torch.isfinite(latents).all():
            dtype = str(self.painter.dtype).removeprefix("torch.")
            raise ArithmeticError(f"The pictures came out as NaN in {dtype}; use float32 or a smaller guidance scale.")
        changed = {}
        if "mask" in tensors:  # of the next step
            wanted = among_latents(self.shrinking.at((step + 1) / pipe.num_timesteps), latents)
            changed["mask"] = wanted.to(tensors["mask"]).expand_as(tensors["mask"])
        if self.settings.mask_is_change_map:
            change = ChangeMap(self.canvas.model_greys)
            # black is the pipeline's own business
            held = among_latents(change.at(1) & ~change.at(step / pipe.num_timesteps), latents)
            photo, noise = self._photo_and_noise
            if step + 1 < pipe.num_timesteps:
                next_timestep = pipe.scheduler.timesteps[-pipe.num_timesteps :][step + 1]
                photo = pipe.scheduler.add_noise(photo, noise, next_timestep[None])
            changed["latents"] = latents = torch.lerp(latents, photo.to(latents), held)
        if self.steps is not None:
            self._watch(self.decoded(latents))
        return changed

    @cached_property
    def _photo_and_noise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The photo's latents, and for each picture the noise by which they are held: the first of its seed."""
        image = self.pipe.image_processor.preprocess(self.canvas.model_image).to(self.pipe._execution_device)
        again = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        latents = self.pipe._encode_vae_image(image, generator=again[0])
        shape = (len(again), *latents.shape[1:])
        return latents, randn_tensor(shape, generator=again, device=latents.device, dtype=latents.dtype)

    def _watch(self, pixels: torch.Tensor) -> None:
        size = (self.canvas.size, self.canvas.size)
        values = (pixels.detach().float().clamp(-1, 1) + 1).mul(127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
        for kept, picture in zip(self.steps or [], values, strict=True):
            kept.append(PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BICUBIC))

    @torch.no_grad()
    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as pixels `(B, 3, H, W)`, about in [-1, 1]."""
        pipe, size = self.pipe, self.canvas.size
        if hasattr(pipe, "movq") or hasattr(pipe, "decoder_pipe"):
            return pipe.movq.decode(latents, force_not_quantize=True)["sample"]
        if hasattr(pipe, "_unpack_latents"):
            latents = pipe._unpack_latents(latents, size, size, pipe.vae_scale_factor)
        return pipe.vae.decode(self._for_decoder(latents), return_dict=False)[0]

    def _for_decoder(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipe.vae.config
        return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def _decode_fitted(self, latents: torch.Tensor, images: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
        mask = (pil_to_tensor(self.region).float() / 255).to(latents.device)
        pictures = []
        for latent, image in zip(self._for_decoder(latents), images, strict=True):
            photo = (pil_to_tensor(image).float() / 127.5 - 1).to(latents.device)
            pixels = decode_fitted(self.pipe.vae, latent[None], photo, mask)
            pictures += self.pipe.image_processor.postprocess(pixels)
        return pictures


def among_latents(mask: np.ndarray, latents: torch.Tensor) -> torch.Tensor:
    """A mask `(H, W)` as `(1, 1, h, w)`, of the latents' size, kind and place."""
    return torch.nn.functional.interpolate(torch.from_numpy(mask).to(latents)[None, None], latents.shape[-2:])
