"""Blended Diffusion: edit a region of a photo with words.

The method of "Blended Diffusion for Text-driven Editing of Natural Images" (Avrahami, Lischinski, Fried, CVPR 2022,
https://arxiv.org/abs/2111.14818) as one self-contained diffusers pipeline of stock components. The file reads like the
paper: first the formulas as small pure functions, then [`BlendedDiffusionPipeline`], whose `__call__` is Algorithm 2;
with `blend=False` and a background scale it is Algorithm 1, the paper's baseline. Below it stand the steps, in the
order in which the call takes them, then what prepares, ranks, checks and saves, and helpers. Last come
[`BlendedDiffusionBlocks`], the same steps as blocks of Modular Diffusers.

Equations and algorithms without another name are this paper's. DDPM is arXiv:2006.11239, Improved DDPM
arXiv:2102.09672, DDIM arXiv:2010.02502, Dhariwal & Nichol arXiv:2105.05233.

What belongs here is the method and nothing else: no reading of files, no command line, no gallery.
"""

import contextlib
import functools
import importlib
import inspect
import itertools
import json
import math
import numbers
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.utils import BaseOutput, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import ModelCardData, file_exists
from kornia.geometry.transform import get_affine_matrix2d, get_perspective_transform, warp_affine, warp_perspective
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipModel,
)


logger = logging.get_logger(__name__)

Picture = PIL.Image.Image | torch.Tensor  # of one photo or mask; tensors are `(C, H, W)` in [0, 1]
Crop = tuple[int, int, int, int]  # left, top, right, bottom
Original = tuple[Picture, Picture, Crop]  # photo and mask as they came, and the region cropped from them
Generators = list[torch.Generator] | torch.Generator  # one for each picture, or one for all of them jointly
Prompts = tuple[torch.Tensor, torch.Tensor]  # embeddings `(N, D)` and weights `(N,)`
Clip = tuple[CLIPModel | SiglipModel, PreTrainedTokenizerBase, CLIPImageProcessor | SiglipImageProcessor]

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers.utils import load_image

        >>> pipe = DiffusionPipeline.from_pretrained("path/to/converted-checkpoint", trust_remote_code=True)
        >>> out = pipe(
        ...     "rock",
        ...     load_image("photo.png"),
        ...     mask_image=load_image("mask.png"),  # white = edit here
        ...     num_images_per_prompt=4,
        ...     generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
        ...     padding_mask_crop=32,  # work on the crop round the mask, return the photo at its own size
        ... )
        >>> best = out.images[out.ranking[0]]
        >>> best.save("edited.png")
        ```
"""


# --- The diffusion ---------------------------------------------------------------------------------------------------
# Where a clean picture x_0, a noisy one x_t and the predicted noise ε meet.
# Samples live in the scheduler's own scale, x_t = signal·x_0 + noise·ε: (√ᾱ_t, √(1−ᾱ_t)) for DDPM and its kin,
# (1, σ_t) for the sigma-space schedulers.


def noise_level(scheduler: SchedulerMixin, timestep: torch.Tensor) -> tuple[float, float]:
    """The factors `(signal, noise)` of x_t = signal·x_0 + noise·ε at `timestep` (DDPM, eq. 4)."""
    one = torch.ones(1, dtype=torch.float64)
    timestep = timestep.reshape(1).cpu()
    signal = scheduler.add_noise(one, torch.zeros_like(one), timestep)
    noise = scheduler.add_noise(torch.zeros_like(one), one, timestep)
    return signal.item(), noise.item()


def clean_estimate(sample: torch.Tensor, noise_pred: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    """x̂_0 = (x_t − noise·ε) / signal (eq. 5; DDPM, eq. 15)."""
    return (sample - noise * noise_pred) / signal


def ddpm_posterior(
    sample: torch.Tensor,
    pred_original_sample: torch.Tensor,
    variance_pred: torch.Tensor | None,
    alpha_bar: float,
    alpha_bar_prev: float,
    fixed_large: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of q(x_{t−1} | x_t, x̂_0) (DDPM, eq. 7).

    `variance_pred` is the network's second half, in [−1, 1]: it interpolates the logarithm of the variance between β̃
    and β (Improved DDPM, eq. 15). Without it the variance is β̃, or β with `fixed_large`, and of shape `(1, 1, 1, 1)`.
    """
    beta = 1 - alpha_bar / alpha_bar_prev
    mean = (
        alpha_bar_prev**0.5 * beta / (1 - alpha_bar) * pred_original_sample
        + (alpha_bar / alpha_bar_prev) ** 0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar) * sample
    )
    # β̃ is 0 at the last step; the floor is diffusers' own
    small = max((1 - alpha_bar_prev) / (1 - alpha_bar) * beta, 1e-20)
    if variance_pred is None:
        return mean, sample.new_full((1, 1, 1, 1), beta if fixed_large else small)
    fraction = (variance_pred + 1) / 2
    return mean, torch.exp(fraction * float(np.log(beta)) + (1 - fraction) * float(np.log(small)))


def composite(foreground: torch.Tensor, background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """x_fg ⊙ m + x_bg ⊙ (1 − m) (the blending line of Algorithm 2)."""
    return foreground * mask + background * (1 - mask)


def paste(source: torch.Tensor, result: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last [`composite`], with the pixels of `source` bit for bit wherever the mask is 0."""
    return torch.where(mask > 0, composite(result, source, mask), source)


# --- The losses whose gradient guides the edit -----------------------------------------------------------------------
# Each returns one value per picture, shape (B,).


def spherical_distance(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """2·asin(‖u − v‖ / 2)² of the unit vectors u and v: half the squared angle between them, in [0, π²/2].

    The last dimension holds the vectors; the others broadcast.
    """
    chord = (F.normalize(image_embeds, dim=-1) - F.normalize(text_embeds, dim=-1)).norm(dim=-1)
    # asin has no finite slope at 1: opposite vectors stop just short of it
    return 2 * torch.asin((chord / 2).clamp(max=1 - 1e-6)) ** 2


def range_penalty(pred_original_sample: torch.Tensor) -> torch.Tensor:
    """Mean of (x̂_0 − clamp(x̂_0, −1, 1))²: what the estimate has outside the range of pictures."""
    return (pred_original_sample - pred_original_sample.clamp(-1, 1)).square().mean(dim=(1, 2, 3))


def background_mse(estimate: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two backgrounds (the MSE of D_bg, eq. 7)."""
    return (estimate - source).square().mean(dim=(1, 2, 3))


@dataclass
class Guidance:
    """What the guidance of one call is made of: all that [`BlendedDiffusionPipeline.guide`] needs besides the sample.

    Attributes:
        text_embeds, negative_embeds, rival_embeds (`torch.Tensor` of shape `(B, D)`):
            embeddings of the prompts, of what to stay away from, and of what not to be taken for.
        weights, negative_weights, rival_weights (`torch.Tensor` of shape `(B,)`):
            how much each of them counts: 1, or 0 where there is none; without a prompt a picture is not guided at all.
        image (`torch.Tensor` of shape `(B, 3, H, W)`): the source, in [−1, 1].
        mask (`torch.Tensor` of shape `(B, 1, H, W)`): in [0, 1], 1 = edit.
        gradient (`str`): `"sample"` or `"estimate"`.
        clip_scale, range_scale, mse_scale, lpips_scale (`float`): the weights of the losses.
        match_release (`bool`): the released editor's background terms.
        rival_scale (`float`): by which the rivals' loss is weighted besides.
    """

    text_embeds: torch.Tensor
    weights: torch.Tensor
    negative_embeds: torch.Tensor
    negative_weights: torch.Tensor
    rival_embeds: torch.Tensor
    rival_weights: torch.Tensor
    image: torch.Tensor
    mask: torch.Tensor
    gradient: str
    clip_scale: float
    range_scale: float
    mse_scale: float
    lpips_scale: float
    match_release: bool
    rival_scale: float = 1.0

    @property
    def largest_scale(self) -> float:
        return max(self.clip_scale, self.range_scale, self.mse_scale, self.lpips_scale)

    @functools.cached_property
    def has_words(self) -> bool:
        return bool(self.weights.any())

    @property
    def active(self) -> bool:
        return self.largest_scale > 0 and self.has_words

    @property
    def through_unet(self) -> bool:
        return self.active and self.gradient == "sample"


@dataclass
class BlendedDiffusionPipelineOutput(BaseOutput):
    """
    Output of [`BlendedDiffusionPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The edited pictures in the order they were made: `num_images_per_prompt` for the first prompt, then for the
            second, … As an array of shape `(B, H, W, 3)` or a tensor of shape `(B, 3, H, W)` they are in [0, 1].
        clip_distances (`list[float]`):
            For every picture the distance to its prompt by which it is ranked, lower is better: see
            [`BlendedDiffusionPipeline.surroundings_distance`] and [`BlendedDiffusionPipeline.clip_distance`].
        ranking (`list[int]`):
            Indices into `images`, best first, prompt by prompt: with *n* pictures per prompt the first *n* entries
            rank those of the first prompt, the next *n* those of the second.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    clip_distances: list[float]
    ranking: list[int]


class GuidanceScale:
    """The weight of a loss in the call that runs, in the pipeline's attribute of this name with `_` before it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, pipe: "BlendedDiffusionPipeline | None", owner: type) -> "GuidanceScale | float":
        return self if pipe is None else getattr(pipe, f"_{self.name}")

    def __set__(self, pipe: "BlendedDiffusionPipeline", value: float) -> None:
        check_scale(self.name, value)
        setattr(pipe, f"_{self.name}", value)


@dataclass
class EditCall:
    """What a call asks for, under the names of [`BlendedDiffusionPipeline.__call__`], which says what they mean."""

    prompt: str | list[str] | None
    image: PipelineImageInput | None
    mask_image: PipelineImageInput | None
    negative_prompt: str | list[str] | None
    num_inference_steps: int
    strength: float
    num_images_per_prompt: int
    clip_guidance_scale: float
    range_guidance_scale: float
    num_augmentations: int
    guidance_gradient: str
    blend: bool
    background_mse_scale: float
    background_lpips_scale: float
    enforce_background: bool
    match_release: bool
    padding_mask_crop: int | None
    class_labels: int | list[int] | torch.Tensor | None
    generator: torch.Generator | list[torch.Generator] | None
    latents: torch.Tensor | None
    output_type: str
    callback_on_step_end_tensor_inputs: list[str] | None
    soft_mask: bool
    ranking: str
    prompt_embeds: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    rival_prompt_embeds: torch.Tensor | None
    rival_guidance_scale: float
    candidate_labels: list[str] | None
    timesteps: list[int] | None
    sigmas: list[float] | None
    height: int | None
    width: int | None

    @classmethod
    def of(cls, given: dict[str, Any]) -> "EditCall":
        """The call in which each argument has its value in `given`, or `None`."""
        asked: dict[str, Any] = {field.name: given.get(field.name) for field in fields(cls)}
        return cls(**asked)

    @property
    def mask_threshold(self) -> float | None:
        """From which value on a mask counts as white: as released, anything but black. `None` keeps the greys."""
        return None if self.soft_mask else 1 / 255 if self.match_release else 0.5

    @property
    def pasting(self) -> bool:
        """Whether the photo comes back outside the mask: as released, not in local CLIP-guided diffusion."""
        return self.enforce_background and (self.blend or not self.match_release)


class BlendedDiffusionPipeline(DiffusionPipeline):
    r"""
    Pipeline that edits a region of a photo with words: Blended Diffusion (https://arxiv.org/abs/2111.14818).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all pipelines (downloading, saving, running on a particular device, …).

    Args:
        unet ([`UNet2DModel`]):
            A pixel-space network that predicts the noise of a three-channel picture, with three output channels or,
            with a learned variance, six.
        scheduler ([`SchedulerMixin`]):
            [`DDPMScheduler`] by default; any scheduler with `alphas_cumprod` that predicts `epsilon` and can begin in
            the middle of its timesteps.
        clip_model ([`~transformers.CLIPModel`] or [`~transformers.SiglipModel`]):
            The model that says how well the edited region fits the prompt.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        feature_extractor ([`~transformers.CLIPImageProcessor`] or [`~transformers.SiglipImageProcessor`]):
            Its image processor: the mean and standard deviation of its pictures are used.
        clip_model_2, tokenizer_2, feature_extractor_2 (*optional*):
            A second CLIP or SigLIP that guides and ranks together with the first: distances are the mean of both, so
            that what fools one of them alone pays less. Their embeddings stand side by side, D = D_1 + D_2.
        default_num_inference_steps (`int`, defaults to 100):
            What a call uses that leaves `num_inference_steps` out. Like the following it is saved with the pipeline,
            so that every checkpoint works well without arguments; these values are the released editor's.
        default_strength (`float`, defaults to 0.75): The same for `strength`.
        default_clip_guidance_scale (`float`, defaults to 1000): The same for `clip_guidance_scale`.
        default_range_guidance_scale (`float`, defaults to 50): The same for `range_guidance_scale`.
        default_num_augmentations (`int`, defaults to 8): The same for `num_augmentations`.
        default_guidance_gradient (`str`, defaults to `"sample"`): The same for `guidance_gradient`.
        default_candidate_labels (`list[str]` or `str`, *optional*):
            The same for `candidate_labels`; in a string one a line.

    Attributes:
        clip_chunk_size (`int`, *optional*): how many pictures CLIP looks at together, where memory is short; all if
            left out. The gradient is the same, and each chunk computed twice for it.
        clip_guidance_scale, range_guidance_scale, background_mse_scale, background_lpips_scale, rival_guidance_scale
            (`float`): those of the call that runs; what a callback sets them to counts from the next step on.

    Raises:
        ValueError: a component cannot work here, for example a scheduler that predicts velocity.
    """

    _optional_components = ["clip_model_2", "tokenizer_2", "feature_extractor_2"]
    _callback_tensor_inputs = ["latents", "pred_original_sample", "mask"]
    image_processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False)
    clip_chunk_size: int | None = None
    model_cpu_offload_seq = "unet"
    # CLIP's gradient is needed together with the UNet's at every step: moving it to and fro would only cost time
    _exclude_from_cpu_offload = ["clip_model", "clip_model_2"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        clip_model: CLIPModel | SiglipModel,
        tokenizer: PreTrainedTokenizerBase,
        feature_extractor: CLIPImageProcessor | SiglipImageProcessor,
        default_num_inference_steps: int = 100,
        default_strength: float = 0.75,
        default_clip_guidance_scale: float = 1000.0,
        default_range_guidance_scale: float = 50.0,
        default_num_augmentations: int = 8,
        default_guidance_gradient: str = "sample",
        default_candidate_labels: list[str] | str | None = None,
        clip_model_2: CLIPModel | SiglipModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        feature_extractor_2: CLIPImageProcessor | SiglipImageProcessor | None = None,
    ):
        super().__init__()
        if isinstance(default_candidate_labels, str):  # as `model_index.json` has them, one a line
            default_candidate_labels = default_candidate_labels.splitlines()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            clip_model=clip_model,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            clip_model_2=clip_model_2,
            tokenizer_2=tokenizer_2,
            feature_extractor_2=feature_extractor_2,
        )
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_strength=default_strength,
            default_clip_guidance_scale=default_clip_guidance_scale,
            default_range_guidance_scale=default_range_guidance_scale,
            default_num_augmentations=default_num_augmentations,
            default_guidance_gradient=default_guidance_gradient,
            default_candidate_labels=default_candidate_labels,
        )
        self.check_components()
        self._lpips: torch.nn.Module | None = None
        self._interrupt = False
        self._num_timesteps = 0
        self._clip_guidance_scale = default_clip_guidance_scale
        self._range_guidance_scale = default_range_guidance_scale
        self._background_mse_scale = self._background_lpips_scale = self._rival_guidance_scale = 0.0

    @torch.inference_mode(False)  # there gradients cannot be switched on, and the guidance needs them
    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        num_images_per_prompt: int = 1,
        clip_guidance_scale: float | None = None,
        range_guidance_scale: float | None = None,
        num_augmentations: int | None = None,
        guidance_gradient: str | None = None,
        blend: bool = True,
        background_mse_scale: float = 0.0,
        background_lpips_scale: float = 0.0,
        enforce_background: bool = True,
        match_release: bool = False,
        padding_mask_crop: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["BlendedDiffusionPipeline", int, int, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own signature)
        soft_mask: bool = False,
        ranking: str = "surroundings",
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        rival_prompt_embeds: torch.Tensor | None = None,
        rival_guidance_scale: float = 4.0,
        candidate_labels: list[str] | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> BlendedDiffusionPipelineOutput | tuple:
        """
        Edits the masked region of one or several photos to fit one or several prompts.

        `prompt`, `image`, `mask_image` and `negative_prompt` may each be one or a list; lists have the same length.

        Args:
            prompt (`str` or `list[str]`):
                What the masked region should show. The empty prompt means no guidance at all.
            image (`PipelineImageInput`):
                The photo: PIL, NumPy `(H, W, 3)` or torch `(3, H, W)`; arrays in [0, 1], or `uint8`.
            mask_image (`PipelineImageInput`, *optional*):
                White is edited, black is kept; of the photo's size. NumPy `(H, W[, 1])`, torch `([1, ]H, W)`, or
                `(B, H, W)` of either for a batch.
                Becomes black or white at 0.5 after resizing, unless `soft_mask`. Without it all is edited.
            negative_prompt (`str` or `list[str]`, *optional*):
                What the region should not show: its CLIP distance is raised with the weight of
                `clip_guidance_scale`.
            num_inference_steps (`int`, *optional*):
                How many timesteps the whole way from noise to picture has.
            strength (`float`, *optional*):
                The share of that way which is gone, in (0, 1]: with 0.75 of 100 steps the photo is noised to the 26th
                and 75 steps are taken (the released editor's "skip 25 of 100").
            num_images_per_prompt (`int`, defaults to 1):
                How many pictures to make for each prompt.
            clip_guidance_scale (`float`, *optional*):
                Weight of the CLIP distance.
            range_guidance_scale (`float`, *optional*):
                Weight of the penalty on values outside [−1, 1].
            num_augmentations (`int`, *optional*):
                How many copies of the estimate CLIP sees. The first is plain, the others are warped at random; 0 and 1
                both mean the plain one alone.
            guidance_gradient (`str`, *optional*):
                `"sample"` differentiates with respect to x_t, through the UNet (released code); `"estimate"` with
                respect to x̂_0 (the paper's formula), which needs no backward pass of the UNet. Left out, it is the
                checkpoint's own, and `"sample"` with `match_release`.
            blend (`bool`, defaults to `True`):
                Blend the noised photo in outside the mask after each step. `False`, with a background scale, is local
                CLIP-guided diffusion, the paper's baseline (Algorithm 1).
            background_mse_scale, background_lpips_scale (`float`, defaults to 0):
                Weights of the background's squared and perceptual (LPIPS with VGG16) difference.
            enforce_background (`bool`, defaults to `True`):
                Put the photo's own pixels back outside the mask, exactly.
            match_release (`bool`, defaults to `False`):
                Do as the released editor where it differs from the paper: timesteps spaced as guided-diffusion does,
                a mask white wherever it is not black, the background noised to level t instead of t−1 with one draw
                for the whole batch, its background loss, its random order, its ranking distance, the last clean
                estimate as the result, and no pasting with `blend=False`. A single `generator` then serves the whole
                batch jointly. DDPM and DDIM only.
            padding_mask_crop (`int`, *optional*):
                Work on the crop round the mask, with this margin in pixels, and return the photo at its own size.
                Without it the photo is resized to the UNet's size and returned so.
            class_labels (`int`, `list[int]` or `torch.Tensor`, *optional*):
                For class-conditional networks. Left out, a fresh random class is drawn at every step, as released.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes the result deterministic. Each picture depends on its own generator alone, whatever the batch.
                With a single one, the first picture uses it and the others are seeded from it.
            latents (`torch.Tensor` of shape `(B, 3, H, W)`, *optional*):
                Gaussian noise that carries the photo to the first timestep, drawn from `generator` if left out.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or, for the last sample unpasted and in [−1, 1], `"latent"`.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`BlendedDiffusionPipelineOutput`] or a plain tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipe, step, timestep, callback_kwargs)`; returns a dictionary whose
                `latents`, `pred_original_sample` and `mask` replace the pipeline's. Setting `pipe.interrupt = True`
                ends the loop; the result is then the last clean estimate. A `PipelineCallback` or
                `MultiPipelineCallbacks` says itself which tensors it wants.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                What `callback_kwargs` holds: `latents` (x_{t−1} after blending), `pred_original_sample` (x̂_0) and
                `mask` (at the network's size, 1 = edit; another one counts from the next step on, the last one for
                the pasting).
            soft_mask (`bool`, defaults to `False`):
                Keep the greys of `mask_image` as blending weights.
            ranking (`str`, defaults to `"surroundings"`):
                What results are ranked by: `"surroundings"` looks at the edited region and at the whole picture, plain
                and warped; `"region"` at the plain edited region alone, as the released editor.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(number of prompts, D)`, *optional*):
                CLIP's text embeddings (of any length) in place of `prompt` and `negative_prompt`.
            rival_prompt_embeds (`torch.Tensor` of shape `(number of prompts, D)`, *optional*):
                Embeddings of what the region must not be taken for, such as the word written in letters: where CLIP
                finds a copy of the estimate closer to it than to the prompt, the difference is a loss. Elsewhere it
                does nothing, unlike a negative prompt.
            rival_guidance_scale (`float`, defaults to 4):
                Weight of that loss, relative to `clip_guidance_scale`.
            candidate_labels (`list[str]`, *optional*):
                Other things that a result could be taken for. With `"surroundings"` results are then ranked by how
                much more they look like the prompt than like these; an empty list ranks by the distance alone.
            timesteps (`list[int]`, *optional*):
                The whole way in these timesteps, first to last, in place of `num_inference_steps`; for schedulers
                whose `set_timesteps` takes them.
            sigmas (`list[float]`, *optional*):
                The same in noise levels.
            height, width (`int`, *optional*):
                The size of the network's pictures. It makes no others: `padding_mask_crop` is for larger photos.

        Examples:

        Returns:
            [`BlendedDiffusionPipelineOutput`] or `tuple`: `(images, clip_distances, ranking)`.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it and says what would be right.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # check: what the call says and, where it says nothing, the checkpoint's own settings
        call = self.filled_in(EditCall.of(locals()))
        self.check_components("unet", "scheduler", "clip_model", "feature_extractor")
        self.check_inputs(call)
        self.begin(call)

        # encode the prompts, and the labels that results could be taken for
        prompts = self.prepare_prompt(prompt, prompt_embeds)
        negatives = self.prepare_prompt(negative_prompt, negative_prompt_embeds)
        rivals = self.prepare_prompt(None, rival_prompt_embeds)
        label_embeds = self.encode_prompt(list(call.candidate_labels)) if call.candidate_labels else None

        # prepare: a photo, a mask and a prompt for each picture, and the photo noised to the first timestep
        pictures, originals, guidance = self.prepare_edits(call, prompts, negatives, rivals)
        source, mask = guidance.image, guidance.mask
        schedule = self.get_timesteps(call, source.device)
        self._num_timesteps = len(schedule)
        generators = self.prepare_generators(call, len(source))
        latents = self.prepare_latents(source, schedule[0], generators, latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generators)

        with self.progress_bar(total=len(schedule)) as progress_bar, self.frozen():
            for i, t in enumerate(schedule):
                if self.interrupt:
                    continue
                prev_t = schedule[i + 1] if i + 1 < len(schedule) else None

                # draw: all that is random up to the background
                labels, step_noise, warps = self.draw(call, latents, generators)

                # estimate: x̂_0, the only forward of the UNet in this step
                sample, noise_pred, variance_pred, pred_original_sample = self.estimate(
                    latents, t, labels, differentiable=guidance.through_unet
                )

                # guide: the direction in which the estimate comes closer to the prompt
                gradient = None
                if guidance.active:
                    signal, noise = noise_level(self.scheduler, t)
                    gradient = self.guide(sample, pred_original_sample, signal, noise, guidance, warps)

                # step: x_{t−1} of the foreground
                latents, pred_original_sample = self.step(
                    sample,
                    t,
                    prev_t,
                    noise_pred,
                    variance_pred,
                    pred_original_sample,
                    gradient,
                    step_noise,
                    extra_step_kwargs,
                )

                # blend: the photo, noised to the same level, outside the mask
                if blend:
                    level = t if match_release else prev_t
                    background = self.noised_background(source, level, generators, shared=match_release)
                    latents = composite(latents, background, mask)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    pred_original_sample = callback_outputs.pop("pred_original_sample", pred_original_sample)
                    guidance.mask = mask = callback_outputs.pop("mask", mask)
                    self.follow(guidance)
                progress_bar.update()

        # paste the photo back outside the mask
        result = pred_original_sample if match_release or self.interrupt else latents
        edited = self.paste_back(result, pictures, mask, call.pasting)

        # rank: the best first
        clip_distances, order = self.rank(call, guidance, edited, label_embeds)

        # return the pictures at their own size
        outputs = result if output_type == "latent" else self.finish(call, edited, originals)
        self.maybe_free_model_hooks()

        if not return_dict:
            return outputs, clip_distances, order
        return BlendedDiffusionPipelineOutput(images=outputs, clip_distances=clip_distances, ranking=order)

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the call takes that runs or ran last; 0 before the first."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set to `True` by a callback it ends the loop; the result is then the last clean estimate."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    # also under their names with `_` before them, as callbacks of diffusers set theirs
    clip_guidance_scale = GuidanceScale()
    range_guidance_scale = GuidanceScale()
    background_mse_scale = GuidanceScale()
    background_lpips_scale = GuidanceScale()
    rival_guidance_scale = GuidanceScale()

    # --- The steps, in the order in which the call takes them --------------------------------------------------------

    def draw(
        self, call: EditCall, latents: torch.Tensor, generators: Generators
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """What is random in a step before its background, in the released order: classes `(B,)`, noise, warps.

        Classes and noise, of the shape of `latents`, are `None` where the network or the scheduler needs none.
        """
        labels = self.prepare_class_labels(call.class_labels, generators, latents)
        step_noise = None
        if call.match_release or isinstance(self.scheduler, DDPMScheduler):
            step_noise = self.draw_noise(latents, generators)
        # in any case: what a picture draws must not depend on whether its neighbours are guided
        num_warps = max(call.num_augmentations - 1, 0)
        warps = uniform(generators, (len(latents), num_warps, NUM_WARP_PARAMETERS), latents.device)
        return labels, step_noise, warps

    def draw_noise(self, like: torch.Tensor, generators: Generators) -> torch.Tensor:
        """Gaussian noise of the shape of `like`, fp32; with a list of generators each picture's comes from its own."""
        return randn_tensor(tuple(like.shape), generator=generators, device=like.device)

    def prepare_class_labels(
        self, class_labels: int | list[int] | torch.Tensor | None, generators: Generators, latents: torch.Tensor
    ) -> torch.Tensor | None:
        """The classes of a class-conditional network for `latents`, shape `(B,)`: given ones, or fresh random ones."""
        num_classes = self.unet.config.num_class_embeds
        if num_classes is None:
            return None
        if class_labels is None:
            draws = uniform(generators, (len(latents), 1), latents.device)
            return (draws.flatten() * num_classes).long()
        return torch.as_tensor(class_labels, device=latents.device).flatten().expand(len(latents))

    def estimate(
        self, latents: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None, differentiable: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """x_t, the predicted noise, the raw variance if the network learned one, and the clean estimate x̂_0.

        If `differentiable`, autograd knows how the last one depends on the first.
        """
        with torch.set_grad_enabled(differentiable):
            sample = latents.detach().requires_grad_(differentiable)
            noise_pred, variance_pred = self.predict(sample, timestep, class_labels)
            pred_original_sample = clean_estimate(sample, noise_pred, *noise_level(self.scheduler, timestep))
        # the graph goes when its only holder, the estimate, is replaced
        variance_pred = None if variance_pred is None else variance_pred.detach()
        return sample, noise_pred.detach(), variance_pred, pred_original_sample

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One forward of the UNet: the predicted noise and, if the network learned one, the raw variance, in fp32."""
        model_input = rounded(self.scheduler.scale_model_input(sample, timestep), self.unet.dtype)
        output = self.unet(model_input, timestep, class_labels=class_labels).sample.float()
        noise_pred, variance_pred = output[:, :3], output[:, 3:]
        return noise_pred, variance_pred if variance_pred.shape[1] else None

    def guide(
        self,
        sample: torch.Tensor,
        pred_original_sample: torch.Tensor,
        signal: float,
        noise: float,
        guidance: Guidance,
        warps: torch.Tensor,
    ) -> torch.Tensor:
        """The direction in which the losses fall, −∇ℒ, of the shape of `sample`.

        With `guidance.gradient == "sample"` the gradient is taken with respect to x_t, through the UNet, and CLIP sees
        √(1−ᾱ_t)·x̂_0 + (1 − √(1−ᾱ_t))·x_t as in the released code. With `"estimate"` it is taken at x̂_0, as the paper
        writes it.
        """
        scale = (signal**2 + noise**2) ** 0.5  # 1 for DDPM and its kin: there √(1−ᾱ_t) is `noise` itself
        with torch.enable_grad():
            if guidance.gradient == "estimate":
                pred_original_sample = wrt = pred_original_sample.detach().requires_grad_()
                seen = pred_original_sample
            else:
                wrt = sample
                share = noise / scale
                seen = share * pred_original_sample + (1 - share) * sample / scale
            loss = guidance.range_scale * range_penalty(pred_original_sample)
            if guidance.clip_scale:
                loss = loss + guidance.clip_scale * self.clip_loss(seen, guidance, warps)
            if guidance.mse_scale or guidance.lpips_scale:
                loss = loss + self.background_loss(seen, guidance)
            gradient = self.loss_gradient(loss * guidance.weights, wrt, guidance.largest_scale)
        return -gradient / scale if guidance.gradient == "estimate" else -gradient

    def clip_loss(self, estimate: torch.Tensor, guidance: Guidance, warps: torch.Tensor) -> torch.Tensor:
        """D_CLIP (eq. 6): the distance of the masked estimate to the prompt, averaged over the copies. Shape `(B,)`.

        Less the distance to the negative prompt, plus by how much a copy is closer to its rival than to its prompt.
        """
        plain = F.adaptive_avg_pool2d(estimate * guidance.mask, self.clip_size)
        num_warps = warps.shape[1]
        warped = warp(plain.repeat(num_warps, 1, 1, 1), warps.transpose(0, 1).flatten(0, 1))
        embeds = self.clip_embed(torch.cat([plain, warped]).add(1).div(2)).unflatten(0, (1 + num_warps, -1))
        distance = self.prompt_distance(embeds, guidance.text_embeds)
        to_negative = self.prompt_distance(embeds, guidance.negative_embeds)
        excess = F.relu(distance - self.prompt_distance(embeds, guidance.rival_embeds))
        return (
            distance.mean(dim=0)
            - guidance.negative_weights * to_negative.mean(dim=0)
            + guidance.rival_scale * guidance.rival_weights * excess.mean(dim=0)
        )

    def clip_embed(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """CLIP's embeddings `(N, D)`, fp32, of images `(N, 3, S, S)` in [0, 1], S being `clip_size`.

        With `normalize` the colours are brought to the mean and standard deviation that CLIP expects.
        """
        if self.clip_chunk_size is not None and len(images) > self.clip_chunk_size:
            embed = functools.partial(self.clip_embed, normalize=normalize)
            return torch.cat([recomputed(embed, chunk) for chunk in images.split(self.clip_chunk_size)])
        embeds = []
        for model, _, feature_extractor in self.clips:
            pixel_values = F.adaptive_avg_pool2d(images, model.config.vision_config.image_size)
            if normalize:
                mean = images.new_tensor(feature_extractor.image_mean).view(1, 3, 1, 1)
                std = images.new_tensor(feature_extractor.image_std).view(1, 3, 1, 1)
                pixel_values = (pixel_values - mean) / std
            features = model.get_image_features(pixel_values=rounded(pixel_values, model.dtype)).pooler_output
            embeds.append(features.to(images.device, torch.float32))
        return torch.cat(embeds, dim=1)

    def prompt_distance(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """The [`spherical_distance`] of embeddings `(…, D)`, with two CLIPs the mean of what each of them finds."""
        pairs = zip(image_embeds.split(self.embed_dims, -1), text_embeds.split(self.embed_dims, -1), strict=True)
        return torch.stack([spherical_distance(*pair) for pair in pairs]).mean(dim=0)

    def background_loss(self, estimate: torch.Tensor, guidance: Guidance) -> torch.Tensor:
        """D_bg (eq. 7) of Algorithm 1: how far the estimate has left the source outside the mask. Shape `(B,)`."""
        background = estimate * (1 - guidance.mask)
        # the released code compares with the whole source and takes the MSE's mean over the batch too
        source = guidance.image if guidance.match_release else guidance.image * (1 - guidance.mask)
        shared = len(estimate) if guidance.match_release else 1
        loss = guidance.mse_scale / shared * background_mse(background, source)
        if guidance.lpips_scale:
            loss = loss + guidance.lpips_scale * self.lpips(background, source).flatten()
        return loss

    @property
    def lpips(self) -> torch.nn.Module:
        """The perceptual distance of Zhang et al. 2018 on VGG16, made at first use unless it was set.

        Raises:
            ImportError: the package `lpips` is not installed.
            OSError: its backbone is neither in torch's cache nor can it be downloaded.
        """
        if self._lpips is None:
            try:
                # not by a statement, of which diffusers would say at loading that it needs the package
                self._lpips = importlib.import_module("lpips").LPIPS(net="vgg", verbose=False).eval()
            except ImportError as error:
                raise ImportError("`background_lpips_scale` needs the package lpips: `pip install lpips`.") from error
            except OSError as error:
                raise OSError(
                    "`background_lpips_scale` needs torchvision's VGG16, which could not be downloaded: put"
                    f" vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints."
                ) from error
        return self._lpips.to(self._execution_device)

    @lpips.setter
    def lpips(self, module: torch.nn.Module) -> None:
        self._lpips = module

    def loss_gradient(self, losses: torch.Tensor, wrt: torch.Tensor, largest_scale: float) -> torch.Tensor:
        """∇ℒ with respect to `wrt`, picture by picture, also where it goes through a network in fp16.

        There the losses are scaled before the backward pass, and the gradient is scaled back in fp32 (Mixed Precision
        Training, Micikevicius et al. 2018, §3.2). A picture whose gradient overflows all the same has another pass
        from a smaller loss. `losses` have the shape `(B,)`; `largest_scale` is that of the weights that are in them.
        """
        if torch.float16 not in (self.unet.dtype, *(model.dtype for model, _, _ in self.clips)):
            return torch.autograd.grad(losses.sum(), wrt)[0]
        # powers of two are exact
        scale = torch.full_like(losses, 2.0 ** (FP16_LOSS_EXPONENT - math.frexp(largest_scale)[1]))
        for _ in range(FP16_ATTEMPTS):
            gradient = torch.autograd.grad((losses * scale).sum(), wrt, retain_graph=True)[0]
            gradient = gradient / scale.view(-1, 1, 1, 1)
            overflowed = ~gradient.isfinite().flatten(1).all(dim=1)
            if not overflowed.any():
                break
            scale = torch.where(overflowed, scale / 2**FP16_BACKOFF_EXPONENT, scale)
        return gradient

    def step(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prev_timestep: torch.Tensor | None,
        noise_pred: torch.Tensor,
        variance_pred: torch.Tensor | None,
        pred_original_sample: torch.Tensor,
        gradient: torch.Tensor | None,
        step_noise: torch.Tensor | None,
        extra_step_kwargs: dict,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From x_t to x_{t−1}: the guided reverse step.

        DDPM shifts the mean, x_{t−1} ~ N(μ + Σ·g, Σ) (Algorithm 2; Dhariwal & Nichol, Algorithm 1). Any other
        scheduler steps with ε̂ = ε − √(1−ᾱ_t)·g (Dhariwal & Nichol, Algorithm 2). DDPM and DDIM go to the timestep that
        really comes next, also where timesteps are unevenly spaced, so that blending meets the right level. With it
        comes the clean estimate.
        """
        # here the graph that the gradient came from has done its work
        sample, pred_original_sample = sample.detach(), pred_original_sample.detach()
        scheduler, config = self.scheduler, self.scheduler.config
        signal, noise = noise_level(scheduler, timestep)
        if isinstance(scheduler, DDPMScheduler):
            if config.clip_sample:
                pred_original_sample = pred_original_sample.clamp(-config.clip_sample_range, config.clip_sample_range)
            alpha_bar_prev = 1.0 if prev_timestep is None else noise_level(scheduler, prev_timestep)[0] ** 2
            if config.variance_type != "learned_range":
                variance_pred = None
            fixed_large = config.variance_type.startswith("fixed_large")
            mean, variance = ddpm_posterior(
                sample, pred_original_sample, variance_pred, signal**2, alpha_bar_prev, fixed_large
            )
            if gradient is not None:
                mean = mean + variance * gradient
            if prev_timestep is None:
                return mean, pred_original_sample
            assert step_noise is not None  # `draw` has drawn it for this scheduler
            return mean + variance.sqrt() * step_noise, pred_original_sample

        if gradient is not None:
            noise_pred = noise_pred - noise * gradient
            pred_original_sample = clean_estimate(sample, noise_pred, signal, noise)
        if isinstance(scheduler, DDIMScheduler):
            if config.clip_sample:
                pred_original_sample = pred_original_sample.clamp(-config.clip_sample_range, config.clip_sample_range)
            if prev_timestep is None:
                alpha_bar_prev = scheduler.final_alpha_cumprod.item()
            else:
                alpha_bar_prev = noise_level(scheduler, prev_timestep)[0] ** 2
            # DDIM, eq. 12, with σ = 0
            prev_sample = alpha_bar_prev**0.5 * pred_original_sample + (1 - alpha_bar_prev) ** 0.5 * noise_pred
            return prev_sample, pred_original_sample
        prev_sample = scheduler.step(noise_pred, timestep, sample, **extra_step_kwargs).prev_sample
        return prev_sample, pred_original_sample

    def noised_background(
        self, source: torch.Tensor, level: torch.Tensor | None, generators: Generators, shared: bool
    ) -> torch.Tensor:
        """x_bg ~ q(x_level | x), by one draw for all if `shared`; without a level, after the last step, x itself."""
        if level is None:
            return source
        noise = self.draw_noise(source[:1] if shared else source, generators)
        return self.scheduler.add_noise(source, noise, level.expand(len(source)))

    def paste_back(
        self, result: torch.Tensor, pictures: torch.Tensor, mask: torch.Tensor, pasting: bool
    ) -> torch.Tensor:
        """The result in [0, 1], if `pasting` with the photo's own pixels outside the mask. Shape `(B, 3, H, W)`."""
        edited = self.image_processor.denormalize(result)
        return paste(pictures, edited, mask) if pasting else edited

    # --- Preparation -------------------------------------------------------------------------------------------------

    def filled_in(self, call: EditCall) -> EditCall:
        """The call with the checkpoint's own settings where it leaves them out."""
        left_out = [name for name in (*SETTINGS, "candidate_labels") if getattr(call, name) is None]
        own = {name: self.config[f"default_{name}"] for name in left_out}
        if self.tokenizer is None:
            own.pop("candidate_labels", None)  # there is nothing to read them
        if call.guidance_gradient is None:
            own["guidance_gradient"] = self.gradient_left_out(call.match_release)
        return replace(call, **own)

    def begin(self, call: EditCall) -> None:
        """What callbacks find of the call in the pipeline's properties."""
        self._interrupt = False
        for name in SCALES:
            setattr(self, f"_{name}", getattr(call, name))

    def follow(self, guidance: Guidance) -> None:
        """Has the guidance go on with the scales that a callback may have set."""
        for name, field in SCALES.items():
            setattr(guidance, field, getattr(self, f"_{name}"))

    def gradient_left_out(self, match_release: bool) -> str:
        """The `guidance_gradient` of a call that does not say: the checkpoint's own, or the released editor's."""
        return "sample" if match_release else self.config.default_guidance_gradient

    def encode_prompt(self, prompt: list[str]) -> torch.Tensor:
        """CLIP's text embeddings, shape `(len(prompt), D)`, fp32. Text beyond CLIP's length is cut with a warning.

        Raises:
            ValueError: the CLIP or its tokenizer is not loaded.
        """
        self.check_components("clip_model")
        if self.tokenizer is None:
            raise ValueError(
                "`tokenizer` is not loaded, which words need; pass embeddings (`prompt_embeds`, …) in their place, or"
                " set `pipe.tokenizer`."
            )
        embeds = []
        for model, tokenizer, _ in self.clips:
            max_length = model.config.text_config.max_position_embeddings
            tokens = tokenizer(
                prompt, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
            ).input_ids.to(self._execution_device)
            untruncated = tokenizer(prompt, padding="longest", return_tensors="pt").input_ids
            if untruncated.shape[-1] > max_length:
                removed = tokenizer.batch_decode(untruncated[:, max_length - 1 : -1], skip_special_tokens=True)
                logger.warning(
                    "The following part of your input was truncated because CLIP can only handle sequences up to"
                    f" {max_length} tokens: {removed}"
                )
            # with `device_map="balanced"` a CLIP may have a device of its own
            embeds.append(model.get_text_features(input_ids=tokens).pooler_output.to(tokens.device, torch.float32))
        return torch.cat(embeds, dim=1)

    def prepare_prompt(self, prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> Prompts:
        """The embeddings `(N, D)` of words or those given, and the weights `(N,)`: 0 without words, else 1."""
        device = self._execution_device
        if prompt_embeds is not None:
            return prompt_embeds.to(device, torch.float32), torch.ones(len(prompt_embeds), device=device)
        if prompt is None:
            return torch.zeros(1, sum(self.embed_dims), device=device), torch.zeros(1, device=device)
        prompts = prompt if isinstance(prompt, list) else [prompt]
        return self.encode_prompt(prompts), torch.tensor([float(text != "") for text in prompts], device=device)

    def prepare_edits(
        self, call: EditCall, prompts: Prompts, negatives: Prompts, rivals: Prompts
    ) -> tuple[torch.Tensor, list[Original] | None, Guidance]:
        """Lines up one photo, mask and prompt for each picture, at the UNet's size.

        These are the photos `(B, 3, H, W)` in [0, 1], what they were cropped from if they were, and the guidance.
        """
        images = to_image_list(call.image, "image", 3)
        masks = [] if call.mask_image is None else to_image_list(call.mask_image, "mask_image", 1)
        num_edits = max(len(images), len(masks), *(len(weights) for _, weights in (prompts, negatives, rivals)))

        def per_picture(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor if len(tensor) == num_edits else tensor.expand(num_edits, *tensor.shape[1:])
            return tensor.repeat_interleave(call.num_images_per_prompt, dim=0)

        threshold, originals = call.mask_threshold, None
        if call.padding_mask_crop is not None:
            originals = []
            for i in range(num_edits):
                photo, mask = images[i % len(images)], masks[i % len(masks)]
                originals.append((photo, mask, self.crop_region(mask, call.padding_mask_crop, threshold)))
            images = [to_pil(photo).crop(region) for photo, _, region in originals]
            masks = [to_pil(mask).crop(region) for _, mask, region in originals]
        pictures = per_picture(torch.cat([self.prepare_image(item) for item in images]))
        own_masks: Sequence[Picture | None] = masks or [None]
        mask = per_picture(torch.cat([self.prepare_mask(one, threshold, call.match_release) for one in own_masks]))
        guidance = Guidance(
            text_embeds=per_picture(prompts[0]),
            weights=per_picture(prompts[1]),
            negative_embeds=per_picture(negatives[0]),
            negative_weights=per_picture(negatives[1]),
            rival_embeds=per_picture(rivals[0]),
            rival_weights=per_picture(rivals[1]),
            image=self.image_processor.normalize(pictures),
            mask=mask,
            gradient=call.guidance_gradient,
            match_release=call.match_release,
            **{field: getattr(call, name) for name, field in SCALES.items()},
        )
        return pictures, originals, guidance

    def prepare_image(self, image: Picture) -> torch.Tensor:
        """A picture at the UNet's size: shape `(1, C, H, W)`, in [0, 1], fp32."""
        image = image if isinstance(image, PIL.Image.Image) else image[None]
        return self.image_processor.preprocess(image, *self.sample_size).to(self._execution_device)

    def prepare_mask(self, mask: Picture | None, threshold: float | None, match_release: bool) -> torch.Tensor:
        """A mask at the UNet's size: shape `(1, 1, H, W)`, in [0, 1], binary at `threshold` unless that is `None`.

        It must not be so small that nothing is left of it there.
        """
        if mask is None:
            return torch.ones(1, 1, *self.sample_size, device=self._execution_device)
        if match_release and isinstance(mask, PIL.Image.Image):  # as released, to the nearest pixel
            mask = mask.resize(self.sample_size[::-1], PIL.Image.Resampling.NEAREST)
        mask = binarize(self.prepare_image(mask), threshold)
        if not mask.any():
            raise ValueError(
                f"`mask_image` has nothing white left at the network's size of {self.sample_size[1]}×"
                f"{self.sample_size[0]} pixels; paint a larger region or set `padding_mask_crop`."
            )
        return mask

    def crop_region(self, mask: Picture, padding: int, threshold: float | None) -> Crop:
        """`(left, top, right, bottom)` round the white of a mask, with `padding`, of the UNet's aspect if it fits."""
        height, width = self.sample_size
        return self.image_processor.get_crop_region(
            to_pil(binarize(to_tensor(mask), threshold)), width, height, pad=padding
        )

    def get_timesteps(self, call: EditCall, device: torch.device) -> torch.Tensor:
        """The timesteps that are left after skipping the first `1 − strength` of them, first to last."""
        scheduler, num_inference_steps = self.scheduler, call.num_inference_steps
        if call.timesteps is None and call.sigmas is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            given = {"sigmas": call.sigmas} if call.timesteps is None else {"timesteps": call.timesteps}
            scheduler.set_timesteps(**given, device=device)
            num_inference_steps = math.ceil(len(scheduler.timesteps) / scheduler.order)
            self.check_strength(num_inference_steps, call.strength)
        whole = scheduler.timesteps
        if call.match_release:
            released = released_timesteps(num_inference_steps, scheduler.config.num_train_timesteps)
            whole = torch.tensor(released, device=device)
        start = (num_inference_steps - self.num_steps_left(num_inference_steps, call.strength)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        return whole[start:]

    @staticmethod
    def num_steps_left(num_inference_steps: int, strength: float) -> int:
        # the tolerance keeps 0.29 · 100 = 28.999999999999996 from losing a step
        return min(int(num_inference_steps * strength + 1e-6), num_inference_steps)

    def prepare_generators(self, call: EditCall, batch_size: int) -> Generators:
        """One generator per picture; as released, a single one draws for the whole batch jointly."""
        if call.match_release and isinstance(call.generator, torch.Generator):
            return call.generator
        return generators_per_image(call.generator, batch_size)

    def prepare_latents(
        self, image: torch.Tensor, timestep: torch.Tensor, generators: Generators, latents: torch.Tensor | None
    ) -> torch.Tensor:
        """The source noised to the first timestep: x_k ~ q(x_k | x), by `latents` if given."""
        if latents is None:
            latents = self.draw_noise(image, generators)
        return self.scheduler.add_noise(image, latents.to(image), timestep.expand(len(image)))

    def prepare_extra_step_kwargs(self, generators: Generators) -> dict:
        accepts_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generators} if accepts_generator else {}

    @property
    def sample_size(self) -> tuple[int, int]:
        """`(height, width)` the UNet works at."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def clips(self) -> list[Clip]:
        """The CLIP that guides, or the two that do together, each with its tokenizer and image processor."""
        first = (self.clip_model, self.tokenizer, self.feature_extractor)
        second = (self.clip_model_2, self.tokenizer_2, self.feature_extractor_2)
        return [first] if self.clip_model_2 is None else [first, second]

    @property
    def embed_dims(self) -> list[int]:
        """How long each CLIP's embeddings are."""
        # SigLIP has no projection of its own behind its towers
        configs = [model.config for model, _, _ in self.clips]
        return [getattr(config, "projection_dim", None) or config.text_config.projection_size for config in configs]

    @property
    def clip_size(self) -> int:
        """The width and height of the pictures for CLIP, the largest one's."""
        return max(model.config.vision_config.image_size for model, _, _ in self.clips)

    # --- Ranking -----------------------------------------------------------------------------------------------------

    def rank(
        self, call: EditCall, guidance: Guidance, images: torch.Tensor, label_embeds: torch.Tensor | None
    ) -> tuple[list[float], list[int]]:
        """The distance of each picture to its prompt, and the indices of the pictures, best first, edit by edit."""
        mask, text_embeds = guidance.mask, guidance.text_embeds
        if call.ranking == "region" or call.match_release:
            distances = self.clip_distance(images, mask, text_embeds, call.match_release)
        else:
            distances = self.surroundings_distance(images, mask, text_embeds, label_embeds)
        order = distances.view(-1, call.num_images_per_prompt).argsort(dim=1)
        first = torch.arange(0, len(distances), call.num_images_per_prompt, device=order.device)
        return distances.tolist(), (order + first[:, None]).flatten().tolist()

    def surroundings_distance(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        text_embeds: torch.Tensor,
        label_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """How badly the edit fits its prompt and its surroundings. Shape `(B,)`, lower is better.

        The mean CLIP distance of the masked and of the whole picture, each plain and in eight warped copies (the same
        warps for every picture). With labels the distance is −log p of the prompt among them, by CLIP's own
        temperature, as in its zero-shot classification (Radford et al. 2021): closest to the prompt are often
        pictures that are close to everything alike.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): in [0, 1].
            mask (`torch.Tensor` of shape `(B, 1, H, W)`): in [0, 1].
            text_embeds (`torch.Tensor` of shape `(B, D)`): embeddings of the prompts.
            label_embeds (`torch.Tensor` of shape `(L, D)`, *optional*): of the other things it could be taken for.
        """
        signals = 2 * images - 1
        plain = torch.cat([F.adaptive_avg_pool2d(view, self.clip_size) for view in (signals * mask, signals)])
        warps = uniform(torch.Generator().manual_seed(0), (NUM_RANKING_WARPS, NUM_WARP_PARAMETERS), images.device)
        warped = warp(plain.repeat(len(warps), 1, 1, 1), warps.repeat_interleave(len(plain), dim=0))
        views = torch.cat([plain, warped]).add(1).div(2)
        embeds = self.clip_embed(views).unflatten(0, (-1, len(images)))
        distances = self.prompt_distance(embeds, text_embeds)
        if label_embeds is not None:
            to_labels = self.prompt_distance(embeds[:, :, None], label_embeds)
            # the prompt is no rival of its own
            own = self.prompt_distance(text_embeds[:, None], label_embeds) < 1e-6
            to_labels = to_labels.masked_fill(own, float("inf"))
            # a SigLIP's bias is the same for all of them and makes no difference
            scale = -self.clip_model.logit_scale.exp().to(distances)
            logits = scale * torch.cat([distances[..., None], to_labels], dim=-1)
            distances = -logits.log_softmax(dim=-1)[..., 0]
        return distances.mean(dim=0)

    def clip_distance(
        self, images: torch.Tensor, mask: torch.Tensor, text_embeds: torch.Tensor, match_release: bool = False
    ) -> torch.Tensor:
        """The CLIP distance of the plain masked picture, by which the released editor ranks. Shape `(B,)`.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): in [0, 1].
            mask (`torch.Tensor` of shape `(B, 1, H, W)`): in [0, 1].
            text_embeds (`torch.Tensor` of shape `(B, D)`): embeddings of the prompts.
            match_release (`bool`): as released: black instead of mid-grey outside the mask, and CLIP's
                normalisation left out.
        """
        if not match_release:
            masked = F.adaptive_avg_pool2d((2 * images - 1) * mask, self.clip_size)
            return self.prompt_distance(self.clip_embed(masked.add(1).div(2)), text_embeds)
        masked = F.interpolate(images * mask, (self.clip_size, self.clip_size), mode="bilinear")
        return self.prompt_distance(self.clip_embed(masked, normalize=False), text_embeds)

    def finish(
        self, call: EditCall, edited: torch.Tensor, originals: list[Original] | None
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """The pictures at their own size, crops back in their photos, as `output_type` says."""
        if originals is None:
            return self.image_processor.postprocess(edited, call.output_type)
        outputs = []
        for index, picture in enumerate(edited):
            whole = self.uncrop(call, picture, originals[index // call.num_images_per_prompt])
            outputs.extend(self.image_processor.postprocess(whole, call.output_type))
        together: dict[str, Callable] = {"pil": list, "np": np.stack, "pt": torch.stack}
        return together[call.output_type](outputs)

    def uncrop(self, call: EditCall, picture: torch.Tensor, original: Original) -> torch.Tensor:
        """The edited crop `(3, H, W)` put back into its photo through the mask: `(1, 3, height, width)`, in [0, 1]."""
        photo, mask, (left, top, right, bottom) = original
        photo = to_tensor(photo).to(picture.device, copy=True)
        size = (bottom - top, right - left)
        window = F.interpolate(picture[None], size, mode="bicubic", antialias=True).clamp(0, 1)[0]
        if call.pasting:
            weights = binarize(to_tensor(mask)[:, top:bottom, left:right], call.mask_threshold).to(picture.device)
            window = paste(photo[:, top:bottom, left:right], window, weights)
        photo[:, top:bottom, left:right] = window
        return photo[None]

    # --- Checks ------------------------------------------------------------------------------------------------------

    def check_components(self, *needed: str) -> None:
        """Raises a `ValueError` if the components cannot do this job, or one of the `needed` ones is not there."""
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is not loaded; set `pipe.{name}` to {COMPONENTS[name][0]}.")
        missing = [name for name in self._optional_components if getattr(self, name) is None]
        if 0 < len(missing) < len(self._optional_components):
            raise ValueError(f"`{missing[0]}` is missing; a second CLIP needs all of {self._optional_components}.")
        for name in (*COMPONENTS, "clip_model_2", "tokenizer_2", "feature_extractor_2"):
            part, (expected, suits) = getattr(self, name), COMPONENTS[name.removesuffix("_2")]
            if part is not None and not suits(part):
                raise ValueError(f"`{name}` is {type(part).__name__}; expected {expected}.")
        if self.scheduler is not None:
            self.check_scheduler()
        if self.unet is not None:
            self.check_unet()

    def check_scheduler(self) -> None:
        """Raises a `ValueError` if the scheduler cannot do this job."""
        scheduler, config, name = self.scheduler, self.scheduler.config, type(self.scheduler).__name__
        if not isinstance(scheduler, SchedulerMixin) or not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"`scheduler` is {name}, which has no `alphas_cumprod`; a scheduler of the DDPM family is needed, such"
                " as DDPMScheduler or DDIMScheduler."
            )
        if name.endswith("InverseScheduler"):
            raise ValueError(
                f"`scheduler` is {name}, which goes from picture to noise; one that goes from noise to picture is"
                " needed, such as DDPMScheduler or DDIMScheduler."
            )
        steps_by_itself = not isinstance(scheduler, (DDPMScheduler, DDIMScheduler))
        if name in LEVEL_LOSING_SCHEDULERS or (steps_by_itself and not hasattr(scheduler, "set_begin_index")):
            raise ValueError(
                f"`scheduler` is {name}, which leaves the noise level of the photo outside the mask when it begins in"
                " the middle of its timesteps or between two of them; use for example DDPMScheduler, DDIMScheduler,"
                " DPMSolverMultistepScheduler or EulerDiscreteScheduler."
            )
        for option in ("rescale_betas_zero_snr", "use_flow_sigmas"):
            if config.get(option):
                raise ValueError(
                    f"`scheduler` has {option}=True, which suits no network that predicts noise; set it to False."
                )
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"`scheduler` has prediction_type={config.prediction_type!r}; guidance needs 'epsilon'.")
        if not steps_by_itself and config.thresholding:
            raise ValueError("`scheduler` has thresholding=True, which guidance does not support; set it to False.")

    def check_unet(self) -> None:
        """Raises a `ValueError` if the network cannot do this job, or not with this scheduler."""
        config = self.unet.config
        if "cross_attention_dim" in config:
            raise ValueError(f"`unet` is {type(self.unet).__name__}, which needs text; expected a UNet2DModel.")
        if not isinstance(config.get("sample_size"), (int, list, tuple)):
            raise ValueError(
                f"`unet` has sample_size={config.get('sample_size')}; the size it was trained at is needed."
            )
        if config.in_channels != 3 or config.out_channels not in (3, 6):
            raise ValueError(
                f"`unet` takes {config.in_channels} and gives {config.out_channels} channels; 3 in and 3 or 6 (with a"
                " learned variance) out are needed."
            )
        if config.get("time_embedding_type") == "fourier":
            raise ValueError("`unet` is conditioned on Fourier features of sigma; one that takes timesteps is needed.")
        if isinstance(self.scheduler, DDPMScheduler):
            variance_type = self.scheduler.config.variance_type
            if variance_type == "learned" or (variance_type == "learned_range" and config.out_channels == 3):
                raise ValueError(
                    f"`scheduler` has variance_type={variance_type!r} and `unet` gives {config.out_channels} channels;"
                    " use 'learned_range' with 6 channels, or 'fixed_small' or 'fixed_large'."
                )

    def check_steps(self, num_inference_steps: int, strength: float) -> None:
        """Raises a `ValueError` if these leave no step to take, or more than the network knows."""
        check_whole_number("num_inference_steps", num_inference_steps, 1)
        if num_inference_steps > self.scheduler.config.num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}; the network knows at most"
                f" {self.scheduler.config.num_train_timesteps} timesteps."
            )
        self.check_strength(num_inference_steps, strength)

    def check_strength(self, num_inference_steps: int, strength: float) -> None:
        """Raises a `ValueError` if it leaves no step to take."""
        fits = isinstance(strength, numbers.Real) and 0 < strength <= 1
        expect(fits, "strength", strength, "a number above 0 and at most 1")
        if self.num_steps_left(num_inference_steps, strength) == 0:
            raise ValueError(
                f"`strength` {strength} of `num_inference_steps` {num_inference_steps} leaves no step to take; raise"
                " one of them."
            )

    def check_timesteps(self, call: EditCall) -> None:
        """Raises a `ValueError` or `TypeError` if the timesteps or noise levels given make no way to go."""
        if call.timesteps is not None and call.sigmas is not None:
            raise ValueError("`timesteps` and `sigmas` say the same thing twice; pass one of them.")
        name = "sigmas" if call.timesteps is None else "timesteps"
        if call.match_release:
            raise ValueError(f"`{name}` given with `match_release=True`, which spaces them as released; leave it out.")
        if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"`{name}` given, but {type(self.scheduler).__name__} takes none; pass `num_inference_steps`."
            )
        given, num_train_timesteps = getattr(call, name), self.scheduler.config.num_train_timesteps
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"`{name}` must be a list of numbers, not {given!r}.")
        kind: Any = numbers.Real if name == "sigmas" else numbers.Integral
        falling = all(isinstance(one, kind) and 0 <= one for one in given) and sorted(set(given))[::-1] == list(given)
        expected = "falling noise levels" if name == "sigmas" else f"falling ones of 0…{num_train_timesteps - 1}"
        expect(falling and (name == "sigmas" or given[0] < num_train_timesteps), name, given, expected)
        self.check_strength(len(given), call.strength)

    def check_inputs(self, call: EditCall) -> None:
        """Raises a `ValueError` or `TypeError` of one sentence for the first thing that is wrong."""
        num_edits = self.check_edits(call)
        if call.timesteps is None and call.sigmas is None:
            self.check_steps(call.num_inference_steps, call.strength)
        else:
            self.check_timesteps(call)
        self.check_settings(call)
        if call.padding_mask_crop is not None:
            self.check_crop(call)
        self.check_batch(call, num_edits * call.num_images_per_prompt)
        known = call.output_type in ("pil", "np", "pt", "latent")
        expect(known, "output_type", call.output_type, "'pil', 'np', 'pt' or 'latent'")
        unknown = set(call.callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {sorted(unknown)}; expected some of"
                f" {self._callback_tensor_inputs}."
            )

    def check_edits(self, call: EditCall) -> int:
        """How many edits the prompts, photos and masks make; each is there and goes with the others."""
        if call.prompt is None and call.prompt_embeds is None:
            raise ValueError("`prompt` is missing: pass words, or `prompt_embeds`.")
        texts = {
            "prompt": self.check_prompt("prompt", call.prompt, call.prompt_embeds),
            "negative_prompt": self.check_prompt("negative_prompt", call.negative_prompt, call.negative_prompt_embeds),
            "rival_prompt_embeds": self.check_prompt("rival_prompt", None, call.rival_prompt_embeds),
        }
        if call.image is None:
            raise ValueError("`image` is missing: pass the photo to edit.")
        images = to_image_list(call.image, "image", 3)
        masks = [] if call.mask_image is None else to_image_list(call.mask_image, "mask_image", 1)
        lengths = {"image": len(images), "mask_image": len(masks) or 1, **texts}
        num_edits = max(lengths.values())
        for name, length in lengths.items():
            if length not in (1, num_edits):
                raise ValueError(f"`{name}` is a list of {length}; expected 1 or {num_edits} as in the longest list.")
        for index, mask in enumerate(masks):
            for photo in images if len(masks) == 1 else [images[index % len(images)]]:
                if size_of(mask) != size_of(photo):
                    raise ValueError(
                        f"`mask_image` is {size_of(mask)[1]}×{size_of(mask)[0]} and `image` is"
                        f" {size_of(photo)[1]}×{size_of(photo)[0]} pixels (width×height); they must be the same size."
                    )
            if to_tensor(mask).max() < (call.mask_threshold or 1 / 255):
                raise ValueError("`mask_image` has nothing white in it; paint white what is to be edited.")
        return num_edits

    def check_settings(self, call: EditCall) -> None:
        """The numbers and choices that are the same for all pictures."""
        check_whole_number("num_images_per_prompt", call.num_images_per_prompt, 1)
        check_whole_number("num_augmentations", call.num_augmentations, 0)
        for name in SCALES:
            check_scale(name, getattr(call, name))
        for name, size in zip(("height", "width"), self.sample_size, strict=True):
            if getattr(call, name) not in (None, size):
                raise ValueError(
                    f"`{name}` is {getattr(call, name)!r}; the network's pictures have {size} pixels: leave it out,"
                    " and set `padding_mask_crop` to keep a larger photo's size."
                )
        if call.ranking not in RANKINGS:
            raise ValueError(f"`ranking` is {call.ranking!r}; pass one of {RANKINGS}.")
        labels = call.candidate_labels
        if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
            raise TypeError(f"`candidate_labels` must be a list of strings, not {labels!r}.")
        known = call.guidance_gradient in ("sample", "estimate")
        expect(known, "guidance_gradient", call.guidance_gradient, "'sample' or 'estimate'")
        if call.match_release and not isinstance(self.scheduler, (DDPMScheduler, DDIMScheduler)):
            raise ValueError(
                f"`match_release=True` with {type(self.scheduler).__name__}: the released editor has DDPM and DDIM"
                " only; set `scheduler` to DDPMScheduler or DDIMScheduler."
            )

    def check_crop(self, call: EditCall) -> None:
        """What `padding_mask_crop` needs."""
        padding = call.padding_mask_crop
        fits = isinstance(padding, numbers.Integral) and padding >= 0
        expect(fits, "padding_mask_crop", padding, "a number of pixels ≥ 0")
        if call.mask_image is None:
            raise ValueError("`padding_mask_crop` needs a `mask_image` to crop to.")
        if call.output_type == "latent":
            raise ValueError("`padding_mask_crop` returns the photo; `output_type` cannot be 'latent' with it.")
        if call.output_type != "pil" and len({size_of(photo) for photo in to_image_list(call.image, "image", 3)}) > 1:
            raise ValueError(
                f"`image` holds photos of different sizes, which `output_type` {call.output_type!r} cannot return;"
                " use 'pil' with `padding_mask_crop`."
            )

    def check_batch(self, call: EditCall, batch_size: int) -> None:
        """What there is one of for each picture: generators, noise, classes."""
        generator, latents, shape = call.generator, call.latents, (batch_size, 3, *self.sample_size)
        if isinstance(generator, list):
            if len(generator) != batch_size or not all(isinstance(item, torch.Generator) for item in generator):
                raise ValueError(
                    f"`generator` is a list of {len(generator)}; expected {batch_size} torch generators, one for each"
                    " picture."
                )
        elif generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator or a list of them, not {type(generator).__name__}."
            )
        if latents is not None:
            if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
                found = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
                raise ValueError(f"`latents` is {found}; expected a tensor of shape {shape}.")
            if not torch.isfinite(latents).all():
                raise ValueError("`latents` holds NaN or infinite values; expected Gaussian noise.")
        if call.class_labels is not None:
            num_classes = self.unet.config.num_class_embeds
            if num_classes is None:
                raise ValueError("`class_labels` given, but `unet` is not class-conditional; leave it out.")
            try:
                labels = torch.as_tensor(call.class_labels)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(
                    f"`class_labels` must be a whole number, or a list or tensor of them, not {call.class_labels!r}."
                ) from None
            fits = not labels.is_floating_point() and labels.numel() in (1, batch_size)
            expect(fits, "class_labels", call.class_labels, "one class or one for each picture")
            known = 0 <= labels.min().item() and labels.max().item() < num_classes
            expect(known, "class_labels", call.class_labels, f"classes 0…{num_classes - 1}")

    def check_prompt(self, name: str, text: str | list[str] | None, embeds: torch.Tensor | None) -> int:
        """How many prompts `text` or `embeds` are; raises a `ValueError` or `TypeError` if they cannot be any."""
        if embeds is not None:
            if text is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` say the same thing twice; pass one of them.")
            dim = sum(self.embed_dims)
            if not isinstance(embeds, torch.Tensor) or embeds.ndim != 2 or embeds.shape[1] != dim or not len(embeds):
                found = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
                raise ValueError(f"`{name}_embeds` is {found}; expected a tensor of shape (number of prompts, {dim}).")
            return len(embeds)
        if text is None:
            return 1
        texts = text if isinstance(text, list) else [text]
        if not texts or not all(isinstance(item, str) for item in texts):
            raise TypeError(f"`{name}` must be a string or a non-empty list of strings, not {text!r}.")
        return len(texts)

    # --- Memory ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradients for weights: autograd then keeps and computes only what the pictures' gradient needs.

        It keeps the weights as they were in the forward pass, also where offloading or layerwise casting has taken
        them from the network by the time of the backward pass.
        """
        networks = (self.unet, *(model for model, _, _ in self.clips))
        for network in networks:
            allow_gradients(network)
        trainable = [
            (own, name) for own in networks for name, weight in own.named_parameters() if weight.requires_grad
        ]
        blocks = [module for module in self.unet.modules() if getattr(module, "gradient_checkpointing", False)]
        hooks = [block._diffusers_hook.hooks for block in blocks if hasattr(block, "_diffusers_hook")]
        if any("group_offloading" in own for own in hooks):
            raise ValueError(
                "`unet` is offloaded by whole blocks, of which gradient checkpointing computes parts; use"
                ' `offload_type="leaf_level"`, or `unet.disable_gradient_checkpointing()`.'
            )
        functions = [block._gradient_checkpointing_func for block in blocks]
        # by name: sequential offloading puts others in their place
        for network, name in trainable:
            network.get_parameter(name).requires_grad_(False)
        for block in blocks:
            block._gradient_checkpointing_func = recomputed
        try:
            with keeping_weights():
                yield
        finally:
            for block, function in zip(blocks, functions, strict=True):
                block._gradient_checkpointing_func = function
            for network, name in trainable:
                network.get_parameter(name).requires_grad_(True)

    def enable_group_offload(
        self, onload_device: torch.device, *args: Any, exclude_modules: str | list[str] | None = None, **kwargs: Any
    ) -> None:
        """As in [`DiffusionPipeline`], but CLIP stays on `onload_device` unless `exclude_modules` says otherwise."""
        exclude_modules = self._exclude_from_cpu_offload if exclude_modules is None else exclude_modules
        super().enable_group_offload(onload_device, *args, exclude_modules=exclude_modules, **kwargs)

    # --- Saving ------------------------------------------------------------------------------------------------------

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        """`model_index.json`; a class that was imported is the one to load with, and runs no code from the folder."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        return config

    # read now: diffusers keeps its copies of all versions of this file under one name
    _source = Path(__file__).read_bytes()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in [`DiffusionPipeline`], but what cannot be saved is refused before anything is written.

        Raises:
            ValueError: a network is wrapped, or the class is in no file.
        """
        for name, part in self.components.items():
            part = getattr(part, "_orig_mod", part)  # as torch.compile keeps it
            if isinstance(part, torch.nn.Module) and not isinstance(part, (ModelMixin, PreTrainedModel)):
                remedy = f"`pipe.{name} = pipe.{name}.merge_and_unload()`" if hasattr(part, "merge_and_unload") else ""
                raise ValueError(
                    f"`{name}` is {type(part).__name__}, which cannot be saved with a pipeline;"
                    f" {remedy or 'save the network in it'} first."
                )
        self.source_file()
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `model_index.json` and beside it what makes a saved folder complete: this source file and a card.

        The file is there twice: under the name that `_class_name` in `model_index.json` gives, and as the
        `pipeline.py` that diffusers looks for where `custom_pipeline` is a folder or a Hub id.
        """
        folder, (module, source) = Path(save_directory), self.source_file()
        # a subclass's file may import ours, by `from .pipeline_blended_diffusion import …` wherever the folder is
        files = {"pipeline_blended_diffusion.py": self._source, f"{module}.py": source, "pipeline.py": source}
        for name, content in files.items():
            write_source(folder / name, content)
        for path in folder.glob("*/config.json"):  # a network's says where on this machine it was loaded from
            config = json.loads(path.read_text(encoding="utf-8"))
            if config.pop("_name_or_path", None) is not None:
                write_json(path, config)
        if not (folder / "README.md").exists():
            self.write_model_card(folder)
        self._card = (folder / "README.md").read_bytes()
        if type(self) is BlendedDiffusionPipeline:
            BlendedDiffusionBlocks().save_config(folder)
            write_modular_index(self, folder, None)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes `model_index.json`, with `_class_name` as `[module, class]`."""
        config = json.loads(self.to_json_string())
        config["_class_name"] = [self.source_file()[0], type(self).__name__]
        config.pop("_name_or_path", None)
        if config["default_candidate_labels"] is not None:  # on the Hub diffusers takes any other list for a component
            config["default_candidate_labels"] = "\n".join(config["default_candidate_labels"])
        write_json(Path(json_file_path), config)

    def source_file(self) -> tuple[str, bytes]:
        """The module's name and content that this class is saved as; those of a subclass are its own file's."""
        if type(self) is BlendedDiffusionPipeline:
            return "pipeline_blended_diffusion", self._source
        try:
            path = Path(inspect.getfile(type(self)))
            return path.stem, path.read_bytes()
        except (OSError, TypeError):
            raise ValueError(
                f"{type(self).__name__} is in no file, and cannot be saved with its source: write it into one."
            ) from None

    def write_model_card(self, folder: Path) -> None:
        """Writes `README.md`: the card of the folder this was loaded from, with its pictures, or else a plain one."""
        origin = Path(self.name_or_path or "")
        if self.name_or_path and (origin / "README.md").is_file():
            card = (origin / "README.md").read_text(encoding="utf-8")
            for picture in re.findall(r"(?<![\w./-])(?:\w[\w-]*/)*\w[\w-]*\.(?:jpe?g|png|webp)", card):
                if (origin / picture).is_file():
                    (folder / picture).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(origin / picture, folder / picture)
        else:
            parts = {name: part for name, part in self.components.items() if part is not None}
            networks = [part for name, part in parts.items() if name in ("unet", "clip_model")]
            origins = {str(self.name_or_path or getattr(part.config, "_name_or_path", "")) for part in networks}
            on_hub = [name for name in origins if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()]
            data = ModelCardData(
                base_model=sorted(on_hub) or None,
                library_name="diffusers",
                pipeline_tag="image-to-image",
                tags=["blended-diffusion", "image-editing", "inpainting", "clip", "arxiv:2111.14818"],
            )
            defaults = {name: value for name, value in self.config.items() if name.startswith("default_")}
            card = MODEL_CARD.format(
                metadata=data.to_yaml(),
                size="" if self.unet is None else f" at {'×'.join(map(str, self.sample_size[::-1]))} pixels",
                parts="\n".join(f"| `{name}` | `{type(part).__name__}` |" for name, part in parts.items()),
                defaults="\n".join(f"| `{name}` | `{value}` |" for name, value in sorted(defaults.items())),
            )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _upload_folder(self, working_dir: str | Path, repo_id: str, token: str | None = None, **kwargs: Any) -> str:
        # diffusers has just put the repository's card into the folder or, if it has none, an empty form
        if not file_exists(repo_id, "README.md", token=token):
            (Path(working_dir) / "README.md").write_bytes(self._card)
        if type(self) is BlendedDiffusionPipeline:
            write_modular_index(self, Path(working_dir), repo_id)
        return super()._upload_folder(working_dir, repo_id, token=token, **kwargs)


# --- Settings and components -----------------------------------------------------------------------------------------

# what checkpoints have values of their own for
SETTINGS = ("num_inference_steps", "strength", "num_augmentations", "clip_guidance_scale", "range_guidance_scale")
# the weights of the losses, and what they are called in the [`Guidance`]
SCALES = {
    "clip_guidance_scale": "clip_scale",
    "range_guidance_scale": "range_scale",
    "background_mse_scale": "mse_scale",
    "background_lpips_scale": "lpips_scale",
    "rival_guidance_scale": "rival_scale",
}
# the guidance sees the edited region alone; what also fits with the picture round it is the better edit
RANKINGS = ("surroundings", "region")
NUM_RANKING_WARPS = 8
# what each component has to be: how to say it, and how to tell, by what it can do, since it may be wrapped
COMPONENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "unet": ("a UNet2DModel", lambda part: "time_embedding_type" in getattr(part, "config", {})),
    "scheduler": ("a scheduler such as DDPMScheduler", lambda part: hasattr(part, "set_timesteps")),
    "clip_model": (
        "a CLIPModel or SiglipModel",
        lambda part: hasattr(part, "get_image_features") and hasattr(part, "get_text_features"),
    ),
    "tokenizer": ("a tokenizer such as CLIPTokenizer", lambda part: isinstance(part, PreTrainedTokenizerBase)),
    "feature_extractor": ("a CLIPImageProcessor or SiglipImageProcessor", lambda part: hasattr(part, "image_mean")),
}


def expect(fits: bool, name: str, value: Any, expected: str) -> None:
    """Raises a `ValueError` unless the argument's value `fits`."""
    if not fits:
        raise ValueError(f"`{name}` is {value!r}; expected {expected}.")


def check_whole_number(name: str, value: int, least: int) -> None:
    """Raises a `ValueError` unless `value` is a whole number of at least `least`."""
    fits = isinstance(value, numbers.Integral) and value >= least
    expect(fits, name, value, f"a whole number of at least {least}")


def check_scale(name: str, value: float) -> None:
    """Raises a `ValueError` unless `value` can be the weight of a loss."""
    fits = isinstance(value, numbers.Real) and 0 <= value < float("inf")
    expect(fits, name, value, "a finite number of at least 0")


# --- Extending augmentations -----------------------------------------------------------------------------------------
# CLIP sees warped copies, so that changing a few pixels to fool it stops paying.
# The ranges are the released editor's: rotation ±15°, shift ±10 %, perspective 0.7, each with probability 0.7.

MAX_ROTATION = 15.0
MAX_SHIFT = 0.1
PERSPECTIVE_DISTORTION = 0.7
WARP_PROBABILITY = 0.7
NUM_WARP_PARAMETERS = 13


def warp(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Rotate and shift (edges repeated), then change the perspective (mid-grey outside).

    Args:
        images (`torch.Tensor` of shape `(N, C, H, W)`):
            In [−1, 1]; 0 is mid-grey.
        parameters (`torch.Tensor` of shape `(N, 13)`):
            Uniform random numbers in [0, 1): whether to rotate and shift, the angle, the shift to the right and down,
            whether to change the perspective, and how far each of the four corners comes in, across and down.

    Returns:
        `torch.Tensor` of the shape of `images`, differentiable with respect to them.
    """
    height, width = images.shape[-2:]
    size = images.new_tensor([width, height])
    corners = images.new_tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    corners = corners.expand(len(images), 4, 2)

    angle = (2 * parameters[:, 1] - 1) * MAX_ROTATION
    shift = (2 * parameters[:, 2:4] - 1) * MAX_SHIFT * size
    matrix = get_affine_matrix2d(shift, ((size - 1) / 2).expand_as(shift), torch.ones_like(shift), angle)
    moved = warp_affine(images, matrix[:, :2], (height, width), padding_mode="border", align_corners=True)
    images = torch.where((parameters[:, 0] < WARP_PROBABILITY).view(-1, 1, 1, 1), moved, images)

    inwards = images.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    distance = parameters[:, 5:].view(-1, 4, 2) * PERSPECTIVE_DISTORTION * size / 2
    matrix = get_perspective_transform(corners, corners + inwards * distance)
    tilted = warp_perspective(images, matrix, (height, width), align_corners=True)
    return torch.where((parameters[:, 4] < WARP_PROBABILITY).view(-1, 1, 1, 1), tilted, images)


# --- Timesteps, and the schedulers that keep to them -----------------------------------------------------------------

# Schedulers that are at another level than their own `add_noise` says: LMS begins in the middle as if there were steps
# before, the others go through levels between two timesteps. What has no `set_begin_index` steps by its own stride.
LEVEL_LOSING_SCHEDULERS = ("DPMSolverSDEScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler")


def released_timesteps(num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """The respaced timesteps of guided-diffusion, first to last: evenly spaced from the last one down to 0.

    They equal diffusers' `"linspace"` spacing except where summing the stride in floating point, as guided-diffusion
    does, rounds a half the other way.
    """
    stride = (num_train_timesteps - 1) / (num_inference_steps - 1) if num_inference_steps > 1 else 1
    positions = itertools.accumulate([stride] * (num_inference_steps - 1), initial=0.0)
    return [round(position) for position in positions][::-1]


# --- Randomness ------------------------------------------------------------------------------------------------------
# Every picture draws from its own generator, so that it does not depend on its neighbours in the batch.


def generators_per_image(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One generator per picture.

    A list is taken as it is. A single generator serves the first picture; the others are seeded from a copy of it, so
    picture *i* is the same for every `batch_size > i`. `None` draws the seeds from torch's global generator.
    """
    if isinstance(generator, list):
        return generator
    if generator is None:
        seeds = torch.randint(2**62, (batch_size,)).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    seeds = torch.randint(2**62, (batch_size - 1,), generator=copy, device=copy.device).tolist()
    return [generator] + [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


def uniform(generators: Generators, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Numbers uniform in [0, 1) of `shape`; with a list of generators each row comes from its own."""
    if isinstance(generators, torch.Generator):
        return torch.rand(shape, generator=generators, device=generators.device).to(device)
    return torch.stack([torch.rand(shape[1:], generator=g, device=g.device).to(device) for g in generators])


# --- Pictures in -----------------------------------------------------------------------------------------------------


def to_image_list(images: PipelineImageInput, argument: str, channels: int) -> list[Picture]:
    """One or several pictures, of one channel masks, as PIL pictures or tensors `(channels, H, W)` in [0, 1].

    They come as PIL pictures, NumPy arrays `(H, W[, channels])` or tensors `([channels, ]H, W)`, alone or in a list,
    or as a batch of four dimensions, of masks `(B, H, W)` too; in floating point in [0, 1] (pictures in [−1, 1] are
    taken too, with a warning), as `uint8` or, masks, as `bool`. Anything else is refused in the `argument`'s name.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)):
        is_batch = images.ndim == 4
        if images.ndim == 3 and channels == 1:  # `(B, H, W)`, and no `(1, H, W)`, `(H, W, 1)` or colour picture
            is_batch = images.shape[0] != 1 if isinstance(images, torch.Tensor) else images.shape[-1] > 4
        images = list(images) if is_batch else images
    images = images if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError(f"`{argument}` is an empty list: pass at least one picture.")
    return [_to_image(image, argument, channels) for image in images]


def _to_image(image: Any, argument: str, channels: int) -> Picture:
    if isinstance(image, PIL.Image.Image):
        return image.convert("RGB" if channels == 3 else "L")
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"`{argument}` must be a PIL picture, a NumPy array, a torch tensor or a list of them, not"
            f" {type(image).__name__}."
        )
    expected = f"({channels}, height, width)" if isinstance(image, torch.Tensor) else f"(height, width, {channels})"
    tensor = torch.tensor(image) if isinstance(image, np.ndarray) else image
    if tensor.ndim == 2 and channels == 1:
        tensor = tensor[None]
    elif tensor.ndim == 3 and isinstance(image, np.ndarray):
        tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] != channels or tensor.numel() == 0:
        raise ValueError(f"`{argument}` has the shape {tuple(image.shape)}; expected {expected}.")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if tensor.dtype == torch.bool and channels == 1:
        return tensor.float()
    if not tensor.is_floating_point():
        raise TypeError(f"`{argument}` has the dtype {image.dtype}; expected floating point in [0, 1] or uint8.")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"`{argument}` holds NaN or infinite values; every value must be in [0, 1].")
    low, high = tensor.min().item(), tensor.max().item()
    if channels == 3 and -1 <= low < 0 and high <= 1:
        # as diffusers' image processors do
        logger.warning(f"`{argument}` holds values from {low:.4g}: taken to be in [-1, 1]; [0, 1] is expected.")
        tensor = tensor / 2 + 0.5
    elif low < 0 or high > 1:
        raise ValueError(f"`{argument}` holds values from {low:.4g} to {high:.4g}; expected [0, 1].")
    return tensor.float()


def size_of(image: Picture) -> tuple[int, int]:
    """`(height, width)`."""
    return (image.height, image.width) if isinstance(image, PIL.Image.Image) else (image.shape[-2], image.shape[-1])


def to_pil(image: Picture) -> PIL.Image.Image:
    if isinstance(image, PIL.Image.Image):
        return image
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image[None]))[0]


def to_tensor(image: Picture) -> torch.Tensor:
    """`(C, H, W)` in [0, 1]."""
    if isinstance(image, torch.Tensor):
        return image
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image))[0]


def binarize(mask: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """1 from `threshold` on and 0 below; with `None` the mask itself."""
    return mask if threshold is None else (mask >= threshold).to(mask.dtype)


# --- Half precision --------------------------------------------------------------------------------------------------

# fp16 goes from 2⁻²⁴ to 2¹⁶. Losses that were brought to 2¹² before the backward pass leave gradients room on both
# sides; a gradient that overflows nevertheless is tried again from 2⁴, 2⁻⁴ and 2⁻¹².
FP16_LOSS_EXPONENT = 12
FP16_BACKOFF_EXPONENT = 8
FP16_ATTEMPTS = 4
# no network's input is that large, unless guidance that is much too strong has driven the sample away
FP16_INPUT = 1000.0


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a network of `dtype` gets: rounded, and for fp16 kept where the numbers on its way stay finite."""
    return (tensor.clamp(-FP16_INPUT, FP16_INPUT) if dtype == torch.float16 else tensor).to(dtype)


# --- Memory ----------------------------------------------------------------------------------------------------------
# What a gradient goes through is held until it has; where that is too much, it is computed once more instead.


def recomputed(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """`function(*inputs)`, of which only the inputs are kept for their gradient (Chen et al. 2016, arXiv:1604.06174).

    Weights have no gradient here. Unlike torch's own checkpointing this bears with weights that offloading or
    layerwise casting takes from a network as soon as it has been computed.
    """
    return _Recomputed.apply(function, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *inputs):
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad(), keeping_weights():
            pairs = zip(ctx.saved_tensors, needed, strict=True)
            inputs = [tensor.detach().requires_grad_(wanted) for tensor, wanted in pairs]
            output = ctx.function(*inputs)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradient))
        return None, *(next(found) if one else None for one in needed)


def allow_gradients(network: torch.nn.Module) -> None:
    """Puts copies in the place of weights that were made in `torch.inference_mode`: no gradient may go past those."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.detach().clone()


def keeping_weights() -> torch.autograd.graph.saved_tensors_hooks:
    """Autograd keeps the weights as they are in the forward pass."""
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)


# --- What stands in a saved folder -----------------------------------------------------------------------------------


def write_source(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link leads to somebody's source
    path.write_bytes(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


MODEL_CARD = """---
{metadata}
---

# Blended Diffusion{size}

Edits a region of a photo with words, and leaves the rest of it as it was: the method of
[Blended Diffusion](https://arxiv.org/abs/2111.14818). Made with diffusers; it needs kornia too.

```py
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image

pipe = DiffusionPipeline.from_pretrained("this folder, or its id on the Hub", trust_remote_code=True)
out = pipe(
    "rock",
    load_image("photo.png"),
    mask_image=load_image("mask.png"),  # white = edit here
    num_images_per_prompt=4,
    generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
    padding_mask_crop=32,  # work on the crop round the mask, return the photo at its own size
)
out.images[out.ranking[0]].save("edited.png")
```

| part | class |
|---|---|
{parts}

| what a call uses that does not say | |
|---|---|
{defaults}

Still to be said by whoever shares it: the licence of the weights (`license:` above), what they were trained on, which
words they know, and how well they do.
"""


# --- The same method as blocks of Modular Diffusers ------------------------------------------------------------------
# Each calls the steps above; what is written there is not said again.


def pipeline_of(modular: ModularPipeline, needed: Iterable[str]) -> BlendedDiffusionPipeline:
    """The pipeline whose steps blocks take: on the components and the config of a modular one; copies nothing.

    Raises:
        ValueError: one of the `needed` components was not loaded.
    """
    parts = {name: getattr(modular, name, None) for name in modular.component_names}
    for name in needed:
        if parts[name] is None:
            raise ValueError(f"`{name}` is not loaded: call `load_components()`, or `update_components({name}=…)`.")
    expected, _ = BlendedDiffusionPipeline._get_signature_keys(BlendedDiffusionPipeline)
    arguments: dict[str, Any] = {name: parts.get(name) for name in expected}
    arguments |= {name: value for name, value in modular.config.items() if name.startswith("default_")}
    pipe = BlendedDiffusionPipeline(**arguments)
    pipe.clip_chunk_size = getattr(modular, "clip_chunk_size", None)
    pipe._lpips = getattr(modular, "_lpips", None)
    return pipe


def write_modular_index(pipe: BlendedDiffusionPipeline, folder: Path, repo_id: str | None) -> None:
    """Writes `modular_model_index.json`: what a [`ModularPipeline`] loads, from `repo_id` or its own folder."""
    index = {"_class_name": ModularPipeline.__name__, "_blocks_class_name": BlendedDiffusionBlocks.__name__}
    for name, value in json.loads(pipe.to_json_string()).items():
        if name == "_diffusers_version" or name.startswith("default_"):
            index[name] = value
        elif name in pipe.components and value[0] is not None:
            origin = {"pretrained_model_name_or_path": repo_id, "subfolder": name}
            index[name] = [*value, {"type_hint": value, **origin, "variant": None, "revision": None}]
    write_json(folder / ModularPipeline.config_name, index)


# what blocks hand to each other: the type, and what it is
INTERMEDIATES = {
    "prompt_embeds": (torch.Tensor, "CLIP's embeddings of the prompts, `(N, D)`."),
    "prompt_weights": (torch.Tensor, "0 for an empty prompt, which does not guide, else 1; `(N,)`."),
    "negative_prompt_embeds": (torch.Tensor, "CLIP's embeddings of what to stay away from, `(N, D)`."),
    "negative_prompt_weights": (torch.Tensor, "0 where there is nothing to stay away from, else 1; `(N,)`."),
    "label_embeds": (torch.Tensor, "CLIP's embeddings of the candidate labels, `(L, D)`."),
    "pictures": (torch.Tensor, "The photos at the UNet's size, `(B, 3, H, W)`, in [0, 1]."),
    "source": (torch.Tensor, "The same in [−1, 1]."),
    "mask": (torch.Tensor, "The masks at the UNet's size, `(B, 1, H, W)`, 1 = edit."),
    "originals": (list, "With `padding_mask_crop` for each edit the photo, the mask and the region cropped."),
    "guidance": (Guidance, "What the guidance is made of, one row for each picture."),
    "timesteps": (torch.Tensor, "The timesteps to take, first to last."),
    "generators": (list, "A generator for each picture."),
    "latents": (torch.Tensor, "The sample x_t, `(B, 3, H, W)`."),
    "pred_original_sample": (torch.Tensor, "The clean estimate x̂_0, `(B, 3, H, W)`."),
    "images": (list, "The edited pictures in the order they were made, as `output_type` says."),
    "clip_distances": (list, "For every picture the distance to its prompt by which it is ranked; lower is better."),
    "ranking": (list, "Indices into `images`, best first, prompt by prompt."),
}


class DeclaredBlock(ModularPipelineBlocks):
    """A block of the method, in the loop or outside it; what it declares is named in class attributes.

    Attributes:
        components: names of components; `"clips"` are those of the one or two CLIPs.
        defaults: settings of which it uses the checkpoint's own value.
        arguments: of [`BlendedDiffusionPipeline.__call__`], which says their types, defaults and meaning.
        needs, takes, makes: [`INTERMEDIATES`] that it must have, can have, and makes.
    """

    model_name = "blended-diffusion"
    components: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return component_specs(*self.components)

    @property
    def needed_components(self) -> list[str]:
        # whether a tokenizer is needed depends on whether there are words
        left_out = ("tokenizer", *BlendedDiffusionPipeline._optional_components)
        return [spec.name for spec in self.expected_components if spec.name not in left_out]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        parameters = inspect.signature(BlendedDiffusionPipeline.__init__).parameters
        return [ConfigSpec(f"default_{name}", parameters[f"default_{name}"].default) for name in self.defaults]

    @property
    def inputs(self) -> list[InputParam]:
        inputs = state_inputs(*self.needs) + state_inputs(*self.takes, required=False)
        return inputs + [call_input(name) for name in self.arguments]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return state_outputs(*self.makes)

    def call_of(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, *more: str) -> EditCall:
        """What the call says of this block's `arguments` and, of `more`, the blocks before it."""
        given = {name: block_state[RENAMED.get(name, name)] for name in (*self.arguments, *more)}
        return pipe.filled_in(EditCall.of(given))


class BlendedDiffusionStep(DeclaredBlock):
    """A block outside the loop."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe = pipeline_of(components, self.needed_components)
        self.run(pipe, block_state)
        components._lpips = pipe._lpips  # made at first use
        self.set_block_state(state, block_state)
        return components, state

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState) -> None:
        """Adds what the block makes to `block_state`, which has its inputs."""
        raise NotImplementedError


def state_inputs(*names: str, required: bool = True) -> list[InputParam]:
    return [InputParam(name, hint, None, required, said) for name in names for hint, said in [INTERMEDIATES[name]]]


def state_outputs(*names: str) -> list[OutputParam]:
    return [OutputParam(name, *INTERMEDIATES[name]) for name in names]


@functools.cache
def call_meanings() -> dict[str, str]:
    """What the docstring of [`BlendedDiffusionPipeline.__call__`] says of each argument."""
    text = BlendedDiffusionPipeline.__call__.__doc__
    entries = re.findall(r"^( +)(\w[\w, ]*) \(.*\):\n((?:\1    .*\n)+)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for _, names, said in entries for name in names.split(", ")}


# a state has only one value of a name: here the result's, and the timesteps that are taken in the end
RENAMED = {"ranking": "rank_by", "timesteps": "given_timesteps"}


def call_input(name: str) -> InputParam:
    parameter = inspect.signature(BlendedDiffusionPipeline.__call__).parameters[name]
    return InputParam(
        RENAMED.get(name, name),
        parameter.annotation,
        parameter.default,
        required=name in ("prompt", "image"),
        description=call_meanings()[name],
    )


def component_specs(*names: str) -> list[ComponentSpec]:
    clip = {"clip_model": CLIPModel, "tokenizer": CLIPTokenizer, "feature_extractor": CLIPImageProcessor}
    classes = {"unet": UNet2DModel, "scheduler": DDPMScheduler}
    specs = [ComponentSpec(name, classes[name]) for name in names if name in classes]
    if "clips" in names:
        specs += [ComponentSpec(name + which, hint) for which in ("", "_2") for name, hint in clip.items()]
    return specs


class BlendedDiffusionTextEncoderStep(BlendedDiffusionStep):
    """Words → embeddings."""

    description = "Encodes the prompts, and the labels that results could be taken for, with CLIP."
    components = ("clips",)
    defaults = ("candidate_labels",)
    arguments = ("prompt", "negative_prompt", "candidate_labels")
    makes = ("prompt_embeds", "prompt_weights", "negative_prompt_embeds", "negative_prompt_weights", "label_embeds")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState) -> None:
        for name in ("prompt", "negative_prompt"):
            words = block_state[name]
            pipe.check_prompt(name, words, None)
            block_state[f"{name}_embeds"], block_state[f"{name}_weights"] = pipe.prepare_prompt(words, None)
        labels = self.call_of(pipe, block_state).candidate_labels
        block_state.label_embeds = pipe.encode_prompt(list(labels)) if labels else None


class BlendedDiffusionInputStep(BlendedDiffusionStep):
    """What the call says → one row for each picture."""

    description = (
        "Checks what the call says, fills in the checkpoint's own settings, and lines up one photo, mask and prompt"
        " for each picture at the UNet's size. Where no block before it encodes words, it takes embeddings."
    )
    components = ("unet", "scheduler", "clips")
    defaults = (*SETTINGS, "guidance_gradient")
    needs = ("prompt_embeds",)
    takes = ("prompt_weights", "negative_prompt_embeds", "negative_prompt_weights")
    # all that a call asks for but the words, which the block before it reads, and what a callback sees
    arguments = tuple(
        field.name
        for field in fields(EditCall)
        if field.name not in ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
        and not field.name.startswith("callback")
    )
    makes = ("pictures", "source", "mask", "originals", "guidance")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState) -> None:
        call = self.call_of(pipe, block_state, *self.needs, *self.takes)
        pipe.check_components(*self.needed_components)
        pipe.check_inputs(call)
        for name in (*SETTINGS, "guidance_gradient"):
            block_state[name] = getattr(call, name)

        def prompts(name: str) -> Prompts:
            embeds, weights = pipe.prepare_prompt(None, block_state[f"{name}_embeds"])
            known = block_state[f"{name}_weights"]
            return embeds, weights if known is None else known

        block_state.pictures, block_state.originals, block_state.guidance = pipe.prepare_edits(
            call, prompts("prompt"), prompts("negative_prompt"), prompts("rival_prompt")
        )
        block_state.source, block_state.mask = block_state.guidance.image, block_state.guidance.mask


class BlendedDiffusionPrepareLatentsStep(BlendedDiffusionStep):
    """The photo → the photo noised to the first timestep."""

    description = "Says which timesteps to take, and noises the photo to the first of them."
    components = ("scheduler", "unet")
    defaults = ("num_inference_steps", "strength")
    needs = ("source",)
    arguments = ("num_inference_steps", "strength", "match_release", "generator", "latents", "timesteps", "sigmas")
    makes = ("timesteps", "generators", "latents")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState) -> None:
        call, source = self.call_of(pipe, block_state), block_state.source
        block_state.timesteps = pipe.get_timesteps(call, source.device)
        block_state.generators = pipe.prepare_generators(call, len(source))
        block_state.latents = pipe.prepare_latents(
            source, block_state.timesteps[0], block_state.generators, call.latents
        )


class BlendedDiffusionLoopStep(DeclaredBlock):
    """A block within the loop. What it adds to `block_state` besides what it `makes` is gone when the loop ends."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self, components: ModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[ModularPipeline, BlockState]:
        pipe = pipeline_of(components, self.needed_components)
        self.run(pipe, block_state, t)
        components._lpips = pipe._lpips
        return components, block_state

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        """Adds what the block makes of step t to `block_state`, which has its inputs."""
        raise NotImplementedError


class BlendedDiffusionLoopDraw(BlendedDiffusionLoopStep):
    description = "Draws the step's noise `step_noise`, CLIP's `warps`, and the `labels` of a class-conditional UNet."
    components = ("scheduler", "unet")
    defaults = ("num_augmentations",)
    needs = ("latents", "generators")
    arguments = ("class_labels", "num_augmentations", "match_release")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        block_state.labels, block_state.step_noise, block_state.warps = pipe.draw(
            self.call_of(pipe, block_state), block_state.latents, block_state.generators
        )


class BlendedDiffusionLoopEstimate(BlendedDiffusionLoopStep):
    description = (
        "Runs the UNet on `sample`, x_t, and makes the clean estimate `pred_original_sample` of its `noise_pred`;"
        " `variance_pred` is the variance if it learned one."
    )
    components = ("unet", "scheduler")
    needs = ("latents", "guidance")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        block_state.sample, block_state.noise_pred, block_state.variance_pred, block_state.pred_original_sample = (
            pipe.estimate(block_state.latents, t, block_state.labels, block_state.guidance.through_unet)
        )
        block_state.gradient = None


class BlendedDiffusionLoopGuide(BlendedDiffusionLoopStep):
    description = "Finds the `gradient` along which the estimate comes closer to the prompt."
    components = ("scheduler", "clips")
    needs = ("guidance", "mask")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        guidance = block_state.guidance
        guidance.mask = block_state.mask
        if guidance.active:
            signal, noise = noise_level(pipe.scheduler, t)
            block_state.gradient = pipe.guide(
                block_state.sample, block_state.pred_original_sample, signal, noise, guidance, block_state.warps
            )


class BlendedDiffusionLoopReverse(BlendedDiffusionLoopStep):
    description = "Steps from `sample` to the next timestep's `latents`, along `gradient` unless that is `None`."
    components = ("scheduler",)
    needs = ("generators",)
    makes = ("latents", "pred_original_sample")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        block_state.latents, block_state.pred_original_sample = pipe.step(
            block_state.sample,
            t,
            block_state.prev_t,
            block_state.noise_pred,
            block_state.variance_pred,
            block_state.pred_original_sample,
            block_state.gradient,
            block_state.step_noise,
            pipe.prepare_extra_step_kwargs(block_state.generators),
        )


class BlendedDiffusionLoopBlend(BlendedDiffusionLoopStep):
    description = "Blends the photo, noised to the same level, into `latents` outside the mask."
    components = ("scheduler", "unet")
    needs = ("source", "mask", "generators")
    arguments = ("blend", "match_release")
    makes = ("latents",)

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState, t: torch.Tensor) -> None:
        if block_state.blend:
            shared = block_state.match_release
            level = t if shared else block_state.prev_t
            background = pipe.noised_background(block_state.source, level, block_state.generators, shared)
            block_state.latents = composite(block_state.latents, background, block_state.mask)


class BlendedDiffusionDenoiseStep(LoopSequentialPipelineBlocks):
    """The loop of Algorithm 2."""

    model_name = "blended-diffusion"
    description = (
        "Denoises step by step (Algorithm 2). Its blocks are called as `block(components, block_state, i, t)`;"
        " `block_state.prev_t` is the timestep after t, `None` in the last step."
    )
    block_classes = [
        BlendedDiffusionLoopDraw,
        BlendedDiffusionLoopEstimate,
        BlendedDiffusionLoopGuide,
        BlendedDiffusionLoopReverse,
        BlendedDiffusionLoopBlend,
    ]
    block_names = ["draw", "estimate", "guide", "step", "blend"]

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        return component_specs("unet", "clips")

    @property
    def loop_inputs(self) -> list[InputParam]:
        return state_inputs("timesteps")

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        timesteps = block_state.timesteps
        with (
            self.progress_bar(total=len(timesteps)) as progress_bar,
            pipeline_of(components, ("unet", "clip_model")).frozen(),
        ):
            for i, t in enumerate(timesteps):
                block_state.prev_t = timesteps[i + 1] if i + 1 < len(timesteps) else None
                components, block_state = self.loop_step(components, block_state, i=i, t=t)
                progress_bar.update()
        self.set_block_state(state, block_state)
        return components, state


class BlendedDiffusionDecodeStep(BlendedDiffusionStep):
    """The last sample → ranked pictures."""

    description = "Pastes the photo back outside the mask, ranks the results, and gives them at their own size."
    components = ("clips",)
    needs = ("latents", "pred_original_sample", "pictures", "mask", "guidance")
    takes = ("originals", "label_embeds")
    arguments = (
        "num_images_per_prompt",
        "enforce_background",
        "blend",
        "match_release",
        "soft_mask",
        "ranking",
        "output_type",
    )
    makes = ("images", "clip_distances", "ranking")

    def run(self, pipe: BlendedDiffusionPipeline, block_state: BlockState) -> None:
        call, guidance = self.call_of(pipe, block_state), block_state.guidance
        guidance.mask = block_state.mask
        result = block_state.pred_original_sample if call.match_release else block_state.latents
        edited = pipe.paste_back(result, block_state.pictures, guidance.mask, call.pasting)
        block_state.clip_distances, block_state.ranking = pipe.rank(call, guidance, edited, block_state.label_embeds)
        block_state.images = result
        if call.output_type != "latent":
            block_state.images = pipe.finish(call, edited, block_state.originals)


class BlendedDiffusionBlocks(SequentialPipelineBlocks):
    """[`BlendedDiffusionPipeline`] in blocks, which can be taken out, replaced and added to.

    Arguments and results are the pipeline's, with three exceptions: its arguments `ranking` and `timesteps` are
    `rank_by` and `given_timesteps` here, as results have those names; embeddings take the text encoder's place; a
    block in the loop does what a callback does.
    """

    model_name = "blended-diffusion"
    description = "Edits a region of a photo with words: Blended Diffusion (https://arxiv.org/abs/2111.14818)."
    block_classes = [
        BlendedDiffusionTextEncoderStep,
        BlendedDiffusionInputStep,
        BlendedDiffusionPrepareLatentsStep,
        BlendedDiffusionDenoiseStep,
        BlendedDiffusionDecodeStep,
    ]
    block_names = ["text_encoder", "input", "prepare_latents", "denoise", "decode"]

    @property
    def outputs(self) -> list[OutputParam]:
        return state_outputs("images", "clip_distances", "ranking")

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `modular_config.json` and, unless this is a subclass, the source file that it names."""
        if type(self) is BlendedDiffusionBlocks:
            module, source = "pipeline_blended_diffusion", BlendedDiffusionPipeline._source
            self.register_to_config(auto_map={"ModularPipelineBlocks": f"{module}.{BlendedDiffusionBlocks.__name__}"})
            write_source(Path(save_directory) / f"{module}.py", source)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


# diffusers runs every version of this file that it loads in the module of one name, where functions would find the
# names of the latest: give it a copy, so that the pipelines of an earlier version keep theirs
if __name__.startswith("diffusers_modules."):
    _copy = types.ModuleType(__name__)
    vars(_copy).update(globals())
    sys.modules[__name__] = _copy
