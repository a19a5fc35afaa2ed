"""Imagic: one photo, a sentence that describes it as it should be, and the same thing comes out in another way.

The method of "Imagic: Text-Based Real Image Editing with Diffusion Models" (Kawar et al., CVPR 2023,
https://arxiv.org/abs/2210.09276) as one self-contained diffusers pipeline of Stable Diffusion's parts: 1.x, 2.x and
XL. The file reads like the paper: first the formulas as small pure functions, then what is kept of a fit, then
[`ImagicPipeline`], whose `fit` is the paper's steps 1 and 2 and whose `__call__` is step 3. Below them stand what they
take, in that order, then preparation, checks and saving.

1. The embedding e_tgt of the sentence is moved, the network being frozen, until that gives the photo back: e_opt.
2. With e_opt frozen the network is tuned until it gives the photo back well.
3. The tuned network is sampled at η·e_tgt + (1 − η)·e_opt.

The paper has no mask. Here one may be given: the photo is then blended in outside it after every step (Blended Latent
Diffusion, arXiv:2206.02779) and pasted back exactly, so that neither background nor camera can move.

What belongs here is the method and nothing else: no command line, no gallery.
"""

import contextlib
import hashlib
import importlib
import inspect
import json
import math
import numbers
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)


logger = logging.get_logger(__name__)

# of one sentence: `prompt_embeds` `(1, L, D)` and, with SDXL, `pooled_prompt_embeds` `(1, P)`
TextEmbeds = dict[str, torch.Tensor]
Box = tuple[int, int, int, int]  # left, top, right, bottom
PictureInput = PIL.Image.Image | np.ndarray | torch.Tensor

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers.utils import load_image

        >>> pipe = DiffusionPipeline.from_pretrained(
        ...     "stable-diffusion-v1-5/stable-diffusion-v1-5", custom_pipeline="pipeline_imagic.py"
        ... )
        >>> photo = load_image("bird.png")
        >>> edit = pipe.fit(photo, "a photo of a bird spreading its wings", generator=torch.Generator().manual_seed(0))
        >>> edit.save("spreading-wings")  # later: pipe("spreading-wings", …)
        >>> out = pipe(edit, eta=[0.5, 0.6, 0.7, 0.8], num_images_per_prompt=4)
        >>> out.images[2][0].save("edited.png")  # η = 0.7, the first seed
        ```
"""


# --- The method ------------------------------------------------------------------------------------------------------


def noised(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε (DDPM, arXiv:2006.11239, eq. 4); `alpha_bar` broadcasts to `(B, C, H, W)`."""
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def prediction_target(
    prediction_type: str, latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """What a network of this `prediction_type` is to say of x_t: ε, √ᾱ_t·ε − √(1−ᾱ_t)·x_0 (velocity), or x_0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    return latents


def velocity_weight(prediction_type: str, alpha_bar: torch.Tensor) -> torch.Tensor:
    """By what the squared error of a prediction is to be multiplied to be that of the velocity it implies.

    An error δv of the velocity is one of √ᾱ_t·δv of ε and of −√(1−ᾱ_t)·δv of x_0.
    """
    if prediction_type == "epsilon":
        return 1 / alpha_bar
    if prediction_type == "sample":
        return 1 / (1 - alpha_bar)
    return torch.ones_like(alpha_bar)


def interpolate_text(e_tgt: TextEmbeds, e_opt: TextEmbeds, eta: float) -> TextEmbeds:
    """ē = η·e_tgt + (1 − η)·e_opt (eq. 3)."""
    return {name: eta * e_tgt[name] + (1 - eta) * e_opt[name] for name in e_tgt}


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


def peak_signal_to_noise(one: torch.Tensor, other: torch.Tensor) -> float:
    """The PSNR in dB of two pictures in [0, 1]."""
    return -10 * math.log10(max((one - other).square().mean().item(), 1e-10))


@dataclass
class EtaPoint:
    """What pictures of one η are like, on average over the seeds.

    Attributes:
        eta (`float`): the η.
        text_likeness (`float`): cosine of CLIP's embeddings of the picture and of the sentence; higher is better.
        photo_distance (`float`): LPIPS to the photo; lower is better.
    """

    eta: float
    text_likeness: float
    photo_distance: float


def find_knee(curve: Sequence[EtaPoint]) -> int | None:
    """The index at which the most likeness to the text is won for the least of that to the photo lost.

    Both are brought to [0, 1] over the curve; the knee is where their sum is largest, which is the point farthest
    above the straight line between the curve's ends. `None` if no point is above it: likeness to the text then costs
    everywhere what it is worth, or more.
    """

    def over_the_curve(values: list[float]) -> np.ndarray:
        low, high = min(values), max(values)
        return (np.array(values) - low) / (high - low) if high > low else np.zeros(len(values))

    text = over_the_curve([point.text_likeness for point in curve])
    photo = over_the_curve([-point.photo_distance for point in curve])
    gain = text + photo
    best = int(gain.argmax())
    return best if gain[best] > max(gain[0], gain[-1]) + 1e-6 else None


def explain_choice(curve: Sequence[EtaPoint], knee: int | None, chosen: int) -> str:
    """One or two sentences about the η chosen from a measured curve."""
    first, point, last = curve[0], curve[chosen], curve[-1]
    if knee is None:
        return (
            f"η = {point.eta:g}, the nearest to the default: between {first.eta:g} and {last.eta:g} no η wins more"
            " likeness to the text than it loses of that to the photo."
        )
    return (
        f"η = {point.eta:g}: from {first.eta:g} on the likeness to the text rises from {first.text_likeness:.3f} to"
        f" {point.text_likeness:.3f} ({last.text_likeness:.3f} at {last.eta:g}), while the distance to the photo grows"
        f" from {first.photo_distance:.3f} to {point.photo_distance:.3f} ({last.photo_distance:.3f} at {last.eta:g});"
        " at no other η measured is the gain over the loss as large."
    )


# --- What is kept of a fit -------------------------------------------------------------------------------------------


@dataclass
class FitSettings:
    """What [`ImagicPipeline.fit`] is asked for, under the names of its arguments, which say what they mean."""

    height: int
    width: int
    embedding_steps: int
    embedding_learning_rate: float
    steps: int
    learning_rate: float
    tuning: str
    lora_rank: int
    lora_targets: list[str]
    batch_size: int
    loss_weighting: str
    optimizer: str
    mixed_precision: str | None
    gradient_checkpointing: bool
    target_psnr: float | None
    psnr_every: int


EDIT_FILE, EMBEDDINGS_FILE, PHOTO_FILE = "imagic_edit.json", "embeddings.safetensors", "photo.png"
# of LoRA under the name and with the keys that `load_lora_weights` of Stable Diffusion's pipelines looks for
WEIGHTS_FILES = {"lora": "pytorch_lora_weights.safetensors", "full": "unet.safetensors"}


@dataclass
class ImagicEdit:
    """
    What [`ImagicPipeline.fit`] has learned of one photo and one sentence: all that the pipeline needs besides its own
    networks to make the edit. Whoever has it has the photo.

    Attributes:
        prompt (`str`): the sentence.
        e_tgt, e_opt (`dict[str, torch.Tensor]`): its embeddings and those that give the photo back: `prompt_embeds`
            of shape `(1, L, D)` and, with SDXL, `pooled_prompt_embeds` of shape `(1, P)`; fp32, on the CPU.
        weights (`dict[str, torch.Tensor]`): the adapter's or, with `tuning="full"`, the network's; likewise.
        settings ([`FitSettings`]): how it was fitted.
        photo (`PIL.Image.Image`): the photo at its own size.
        region (`tuple[int, int, int, int]`): left, top, right, bottom of what the network has seen of it.
        losses (`dict[str, list[float]]`): the loss of every step of `"embedding"` and of `"network"`.
        psnr (`float`): how well the photo is given back at η = 0 without guidance, in dB.
    """

    prompt: str
    e_tgt: TextEmbeds
    e_opt: TextEmbeds
    weights: dict[str, torch.Tensor]
    settings: FitSettings
    photo: PIL.Image.Image
    region: Box
    losses: dict[str, list[float]]
    psnr: float

    @property
    def photo_hash(self) -> str:
        """The sha256 of the photo's size and pixels."""
        return hash_of(self.photo)

    def save(self, folder: str | Path) -> None:
        """Writes the edit into `folder`: tensors as safetensors, the photo as PNG, and the rest as JSON.

        The adapter's file is one that `load_lora_weights` of a [`StableDiffusionPipeline`] loads too.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        embeds = {f"e_tgt.{name}": tensor for name, tensor in self.e_tgt.items()}
        embeds |= {f"e_opt.{name}": tensor for name, tensor in self.e_opt.items()}
        save_file(embeds, folder / EMBEDDINGS_FILE)
        prefix = "unet." if self.settings.tuning == "lora" else ""
        weights = {f"{prefix}{name}": tensor.contiguous() for name, tensor in self.weights.items()}
        save_file(weights, folder / WEIGHTS_FILES[self.settings.tuning])
        self.photo.save(folder / PHOTO_FILE)
        about = {
            "prompt": self.prompt,
            "photo_hash": self.photo_hash,
            "region": self.region,
            "psnr": self.psnr,
            "settings": asdict(self.settings),
            "losses": self.losses,
        }
        (folder / EDIT_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "ImagicEdit":
        """The edit that was saved into `folder`.

        Raises:
            ValueError: there is none, or its photo is another one.
        """
        folder = Path(folder)
        if not (folder / EDIT_FILE).is_file():
            raise ValueError(f"`{folder}` holds no {EDIT_FILE}; expected a folder that an ImagicEdit was saved to.")
        about = json.loads((folder / EDIT_FILE).read_text(encoding="utf-8"))
        settings = FitSettings(**about["settings"])
        embeds = load_file(folder / EMBEDDINGS_FILE)

        def named(which: str) -> TextEmbeds:
            return {name.removeprefix(which): embeds[name] for name in embeds if name.startswith(which)}

        weights = load_file(folder / WEIGHTS_FILES[settings.tuning])
        with PIL.Image.open(folder / PHOTO_FILE) as file:
            photo = file.convert("RGB")
        if hash_of(photo) != about["photo_hash"]:
            raise ValueError(f"`{folder / PHOTO_FILE}` is not the photo that the edit was fitted to; put it back.")
        return cls(
            prompt=about["prompt"],
            e_tgt=named("e_tgt."),
            e_opt=named("e_opt."),
            weights={name.removeprefix("unet."): tensor for name, tensor in weights.items()},
            settings=settings,
            photo=photo,
            region=tuple(about["region"]),
            losses=about["losses"],
            psnr=about["psnr"],
        )


def hash_of(photo: PIL.Image.Image) -> str:
    return hashlib.sha256(f"{photo.width}x{photo.height} ".encode() + photo.tobytes()).hexdigest()


@dataclass
class ImagicPipelineOutput(BaseOutput):
    """
    Output of [`ImagicPipeline`].

    Args:
        images (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`):
            The pictures, for every η those of all seeds: `images[i][n]`. As an array of shape `(E, N, H, W, 3)` or a
            tensor of shape `(E, N, 3, H, W)` they are in [0, 1].
        etas (`list[float]`):
            The E values of η.
        seeds (`list[int]`):
            What the N generators were seeded with: the same for every η.
        chosen (`int`, *optional*):
            With `eta="auto"` the index of the η that was chosen.
        curve (`list[EtaPoint]`, *optional*):
            With `eta="auto"` what was measured at every η.
        explanation (`str`, *optional*):
            With `eta="auto"` why that η was chosen.
    """

    images: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
    etas: list[float]
    seeds: list[int]
    chosen: int | None = None
    curve: list[EtaPoint] | None = None
    explanation: str | None = None


@dataclass
class FitRun:
    """A fit that is under way: what both of its steps share.

    Attributes:
        latents (`torch.Tensor` of shape `(1, C, H, W)`): the photo's.
        pixels (`torch.Tensor` of shape `(1, 3, H, W)`): the photo at the network's size, in [0, 1].
        e_opt (`dict[str, torch.Tensor]`): the embeddings so far.
        identity (`dict`): what has to be the same for a checkpoint to be gone on from.
        saved (`dict`, *optional*): the checkpoint to go on from.
    """

    settings: FitSettings
    latents: torch.Tensor
    pixels: torch.Tensor
    e_opt: TextEmbeds
    generator: torch.Generator
    identity: dict[str, Any]
    checkpoint: Path | None
    checkpoint_every: int
    saved: dict[str, Any] | None
    callback: Callable[["ImagicPipeline", str, int, float], None] | None
    losses: dict[str, list[float]] = field(default_factory=lambda: {"embedding": [], "network": []})
    psnr: float | None = None


@dataclass
class EditRequest:
    """What a call asks for, under the names of [`ImagicPipeline.__call__`], which says what they mean."""

    edit: ImagicEdit
    etas: list[float]
    auto: bool
    num_images_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    strength: float
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | None
    output_type: str
    callback_on_step_end_tensor_inputs: list[str]


ADAPTER = "imagic"
AUTO_ETAS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LOSS_WEIGHTINGS = ("none", "velocity")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamw_8bit": None}  # the last by bitsandbytes
MIXED_PRECISIONS = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_RATES = {"lora": 5e-4, "full": 5e-7}
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class ImagicPipeline(DiffusionPipeline):
    r"""
    Pipeline that edits a photo as a whole by a sentence: Imagic (https://arxiv.org/abs/2210.09276).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all pipelines (downloading, saving, running on a particular device, …).

    It is made of the parts of any Stable Diffusion checkpoint for text-to-image, 1.x, 2.x or XL, and leaves them as
    they were: what it learns of a photo is in the [`ImagicEdit`] that [`ImagicPipeline.fit`] returns. Safety checkers
    are not used.

    Args:
        vae ([`AutoencoderKL`]):
            Between pictures and latents.
        text_encoder ([`~transformers.CLIPTextModel`]):
            The (first) text encoder, frozen.
        tokenizer ([`~transformers.CLIPTokenizer`]):
            Its tokenizer.
        unet ([`UNet2DConditionModel`]):
            The network that denoises latents.
        scheduler ([`SchedulerMixin`]):
            One with `alphas_cumprod`; its `prediction_type` says what the network is tuned to predict. The paper finds
            DDIM a little better than DDPM.
        text_encoder_2 ([`~transformers.CLIPTextModelWithProjection`], *optional*):
            SDXL's second text encoder.
        tokenizer_2 ([`~transformers.CLIPTokenizer`], *optional*):
            Its tokenizer.
        clip_model ([`~transformers.CLIPModel`], *optional*):
            Says for `eta="auto"` how well a picture fits the sentence.
        clip_tokenizer ([`~transformers.CLIPTokenizer`], *optional*):
            Its tokenizer.
        feature_extractor ([`~transformers.CLIPImageProcessor`], *optional*):
            Its image processor.
        force_zeros_for_empty_prompt (`bool`, defaults to `False`):
            Whether guidance without a negative prompt is away from zeros rather than from the empty prompt's
            embeddings; SDXL's checkpoints say so themselves.
        default_num_inference_steps (`int`, defaults to 50):
            What a call uses that leaves `num_inference_steps` out. Like the following it is saved with the pipeline.
        default_guidance_scale (`float`, defaults to 3): The same for `guidance_scale`.
        default_eta (`float`, defaults to 0.7): The same for `eta`.

    Raises:
        ValueError: a component cannot work here, for example an inpainting network.
    """

    _optional_components = ["text_encoder_2", "tokenizer_2", "clip_model", "clip_tokenizer", "feature_extractor"]
    _callback_tensor_inputs = ["latents"]
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    # looks at the results in the end by methods that offloading does not see
    _exclude_from_cpu_offload = ["clip_model"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        clip_model: CLIPModel | None = None,
        clip_tokenizer: CLIPTokenizer | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = False,
        default_num_inference_steps: int = 50,
        default_guidance_scale: float = 3.0,
        default_eta: float = 0.7,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            clip_model=clip_model,
            clip_tokenizer=clip_tokenizer,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_eta=default_eta,
        )
        self.check_components()
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._lpips: torch.nn.Module | None = None
        self._interrupt = False
        self._num_timesteps = 0
        self._guidance_scale = default_guidance_scale

    # --- Steps 1 and 2 -----------------------------------------------------------------------------------------------

    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def fit(
        self,
        image: PictureInput,
        prompt: str,
        mask_image: PictureInput | None = None,
        padding_mask_crop: int | None = None,
        height: int | None = None,
        width: int | None = None,
        embedding_steps: int = 1000,
        embedding_learning_rate: float = 2e-3,
        steps: int = 1500,
        learning_rate: float | None = None,
        tuning: str = "lora",
        lora_rank: int = 16,
        lora_targets: Sequence[str] = LORA_TARGETS,
        batch_size: int = 1,
        loss_weighting: str = "none",
        optimizer: str = "adam",
        mixed_precision: str | None = None,
        gradient_checkpointing: bool = False,
        target_psnr: float | None = None,
        psnr_every: int = 100,
        generator: torch.Generator | None = None,
        checkpoint_folder: str | Path | None = None,
        checkpoint_every: int = 100,
        resume: bool = False,
        callback_on_step_end: Callable[["ImagicPipeline", str, int, float], None] | None = None,
    ) -> ImagicEdit:
        """
        Learns one photo: first the embedding that gives it back, then the network that does so well.

        The pipeline's networks are afterwards what they were before, to the bit.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                The photo: PIL, NumPy `(H, W, 3)` or torch `(3, H, W)`; arrays in [0, 1], or `uint8`. It is kept with
                eight bits a colour.
            prompt (`str`):
                What it should show: the whole picture, not the change.
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                With `padding_mask_crop`: white is what will be edited; of the photo's size.
            padding_mask_crop (`int`, *optional*):
                Learn the crop round the mask, with this margin in pixels, instead of the whole photo. Calls then
                return the photo at its own size.
            height, width (`int`, *optional*):
                The size that the photo is brought to for the network, multiples of its latents' cells. Left out, it is
                the size that the network was trained at, and a photo of another shape is squeezed.
            embedding_steps (`int`, defaults to 1000):
                Steps on the embedding. Few enough that e_opt stays near e_tgt.
            embedding_learning_rate (`float`, defaults to 2e-3):
                Their rate.
            steps (`int`, defaults to 1500):
                Steps on the network; with 0 it stays as it is, the paper's ablation.
            learning_rate (`float`, *optional*):
                Their rate; left out, it is 5e-4 for LoRA and the paper's 5e-7 for the full network.
            tuning (`str`, defaults to `"lora"`):
                `"lora"` trains small matrices beside the network's own by PEFT; `"full"` all of the network, which
                takes four times its memory in fp32 besides.
            lora_rank (`int`, defaults to 16):
                The rank of those matrices.
            lora_targets (`list[str]`, defaults to the attention's `to_q`, `to_k`, `to_v`, `to_out.0`):
                How the names of the layers end that get some.
            batch_size (`int`, defaults to 1):
                How many timesteps and noises a step looks at.
            loss_weighting (`str`, defaults to `"none"`):
                `"none"` is the paper's loss: the error of what the network predicts. `"velocity"` weights it as that
                of the velocity, which is more at high noise, where colours and layout are decided, of a network that
                predicts noise.
            optimizer (`str`, defaults to `"adam"`):
                `"adam"`, `"adamw"`, or `"adamw_8bit"` by the package bitsandbytes.
            mixed_precision (`str`, *optional*):
                `"bf16"` or `"fp16"`: compute in it what torch's autocast deems safe.
            gradient_checkpointing (`bool`, defaults to `False`):
                Compute parts of the network twice rather than to keep them for the gradient.
            target_psnr (`float`, *optional*):
                Stop early when the photo is given back at η = 0 with this many dB.
            psnr_every (`int`, defaults to 100):
                After how many steps on the network that is measured.
            generator (`torch.Generator`, *optional*):
                Draws all noise, timesteps and first weights.
            checkpoint_folder (`str` or `Path`, *optional*):
                Where the fit is written down every `checkpoint_every` steps, to go on from after an interruption.
            checkpoint_every (`int`, defaults to 100):
                After how many steps.
            resume (`bool`, defaults to `False`):
                Go on from what `checkpoint_folder` holds, or begin if it holds nothing yet. What comes out is what
                would have without the interruption; `steps` may be more than it was.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipe, phase, step, loss)`, the phase being `"embedding"` or
                `"network"`. Setting `pipe.interrupt = True` ends the fit; what it has come to is returned.

        Examples:

        Returns:
            [`ImagicEdit`]: what was learned.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it and says what would be right.
            ImportError: a package is missing that the arguments ask for.
        """
        # check
        size = self.default_size
        settings = FitSettings(
            height=size[0] if height is None else height,
            width=size[1] if width is None else width,
            embedding_steps=embedding_steps,
            embedding_learning_rate=embedding_learning_rate,
            steps=steps,
            learning_rate=LEARNING_RATES.get(tuning, 0.0) if learning_rate is None else learning_rate,
            tuning=tuning,
            lora_rank=lora_rank,
            lora_targets=list(lora_targets),
            batch_size=batch_size,
            loss_weighting=loss_weighting,
            optimizer=optimizer,
            mixed_precision=mixed_precision,
            gradient_checkpointing=gradient_checkpointing,
            target_psnr=target_psnr,
            psnr_every=psnr_every,
        )
        self.check_components()
        self.check_network()
        self.check_prompt(prompt)
        self.check_fit(settings)
        check_whole("checkpoint_every", checkpoint_every, 1)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator, not {type(generator).__name__}.")
        photo = picture_from(image, "image", 3)
        region = self.find_region(photo, mask_image, padding_mask_crop, settings)
        identity = {"prompt": prompt, "photo": hash_of(photo), "region": list(region), **asdict(settings)}
        checkpoint, saved = self.find_checkpoint(checkpoint_folder, resume, identity)
        self._interrupt = False

        # encode the photo and the sentence
        e_tgt = {name: tensor.float() for name, tensor in self.encode_prompt(prompt).items()}
        pixels = self.image_processor.preprocess(photo.crop(region), settings.height, settings.width)
        pixels = pixels.to(self._execution_device)
        run = FitRun(
            settings=settings,
            latents=self.encode_photo(pixels),
            pixels=self.image_processor.denormalize(pixels),
            e_opt={name: tensor.clone() for name, tensor in e_tgt.items()},
            generator=unpredictable_generator() if generator is None else generator,
            identity=identity,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            saved=saved,
            callback=callback_on_step_end,
        )

        with self.borrowed_network(gradient_checkpointing):
            # step 1: the embedding, near e_tgt, that gives the photo back
            for tensor in run.e_opt.values():
                tensor.requires_grad_()
            self.descend("embedding", list(run.e_opt.values()), run)
            for tensor in run.e_opt.values():
                tensor.requires_grad_(False)

            # step 2: the network that does so well
            with self.trained_weights(settings, run.generator) as parameters:
                self.descend("network", parameters, run)
                weights = self.read_weights(settings)
                psnr = self.measure_psnr(run)
        self.maybe_free_model_hooks()

        return ImagicEdit(
            prompt=prompt,
            e_tgt=on_cpu(e_tgt),
            e_opt=on_cpu(run.e_opt),
            weights=on_cpu(weights),
            settings=settings,
            photo=photo,
            region=region,
            losses=run.losses,
            psnr=psnr,
        )

    # --- Step 3 ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        edit: ImagicEdit | str | Path,
        eta: float | Sequence[float] | str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        mask_image: PictureInput | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ImagicPipeline", int, int, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own signature)
    ) -> ImagicPipelineOutput | tuple:
        """
        Makes the pictures of an edit that was fitted, at one η or several, all in one batch.

        Args:
            edit ([`ImagicEdit`], `str` or `Path`):
                What [`ImagicPipeline.fit`] returned, or the folder it was saved to.
            eta (`float`, `list[float]` or `"auto"`, *optional*):
                How much of the sentence: at 0 the photo is given back, at 1 the sentence alone counts. Below 0.4 there
                is next to no change; 0.6 to 0.8 is the useful range and differs from photo to photo. `"auto"` makes
                pictures at 0.4, 0.5, …, 1.0 and chooses by CLIP and LPIPS: see [`find_knee`].
            num_images_per_prompt (`int`, defaults to 1):
                How many pictures, of as many seeds, to make at each η.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes the result deterministic: one for each seed, the same for every η. Each picture depends on its
                own generator alone. With a single one, the first seed uses it and the others are drawn from it.
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                White may change, black is kept to the last bit; of the photo's size, black or white at 0.5. The result
                then has the photo's own size.
            strength (`float`, defaults to 1):
                The share of the way from noise to picture that is gone, in (0, 1]; below 1 it begins with the noised
                photo.
            num_inference_steps (`int`, *optional*):
                How many timesteps the whole way has.
            guidance_scale (`float`, *optional*):
                Weight of classifier-free guidance; 1 is none.
            negative_prompt (`str`, *optional*):
                What guidance leads away from, in the place of the empty prompt.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or, for the last latents of shape `(E, N, C, h, w)`, `"latent"`.
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`ImagicPipelineOutput`] or a plain tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipe, step, timestep, callback_kwargs)`; returns a dictionary whose
                `latents` replace the pipeline's. Setting `pipe.interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                What `callback_kwargs` holds: `latents`, the pictures of the first η first.

        Examples:

        Returns:
            [`ImagicPipelineOutput`] or `tuple`: `(images, etas, seeds, chosen, curve, explanation)`.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it and says what would be right.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # check
        eta = self.config.default_eta if eta is None else eta
        auto = isinstance(eta, str) and eta == "auto"
        request = EditRequest(
            edit=ImagicEdit.load(edit) if isinstance(edit, (str, Path)) else edit,
            etas=AUTO_ETAS if auto else read_etas(eta),
            auto=auto,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            strength=strength,
            num_inference_steps=self.setting("num_inference_steps", num_inference_steps),
            guidance_scale=self.setting("guidance_scale", guidance_scale),
            negative_prompt=negative_prompt,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self.check_components()
        self.check_network()
        self.check_request(request)
        edit, etas, settings = request.edit, request.etas, request.edit.settings
        mask = None if mask_image is None else read_mask_of(mask_image, edit)
        self._guidance_scale, self._interrupt = request.guidance_scale, False

        # encode: ē for every picture, and what guidance leads away from
        embeds = repeated([interpolate_text(edit.e_tgt, edit.e_opt, one) for one in etas], num_images_per_prompt)
        device = self._execution_device
        embeds = {name: tensor.to(device) for name, tensor in embeds.items()}
        negative = self.encode_negative(negative_prompt) if self.do_classifier_free_guidance else None

        # prepare: the photo's latents, the mask at their size, and a generator for every picture
        pixels = self.image_processor.preprocess(edit.photo.crop(edit.region), settings.height, settings.width)
        source = self.encode_photo(pixels.to(device))
        latent_mask = None if mask is None else self.prepare_latent_mask(mask, edit.region, source)
        seeds = generators_of_seeds(generator, num_images_per_prompt)
        generators = seeds + [same_again(one) for _ in etas[1:] for one in seeds]
        timesteps = self.get_timesteps(request.num_inference_steps, strength)
        self._num_timesteps = len(timesteps)
        noise = randn_tensor((len(generators), *source.shape[1:]), generator=generators, device=source.device)
        source = source.expand(len(generators), -1, -1, -1)
        latents = self.prepare_latents(source, noise, timesteps[0], strength)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generators)

        with self.progress_bar(total=len(timesteps)) as progress_bar, self.tuned_network(edit):
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                sample = self.scheduler.scale_model_input(latents, t)
                prediction = self.predict(sample, t, embeds)
                if negative is not None:
                    prediction = guided(prediction, self.predict(sample, t, negative), self.guidance_scale)
                latents = self.scheduler.step(prediction, t, latents, **extra_step_kwargs).prev_sample

                # blend: the photo, noised to the same level, outside the mask
                if latent_mask is not None:
                    background = source
                    if i + 1 < len(timesteps):
                        background = self.scheduler.add_noise(source, noise, timesteps[i + 1].expand(len(source)))
                    latents = latents * latent_mask + background * (1 - latent_mask)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                progress_bar.update()

        # return the pictures, with a mask or of a crop in the photo; with `eta="auto"` say which
        chosen, curve, explanation = None, None, None
        if output_type == "latent":
            images = latents.unflatten(0, (len(etas), -1))
        else:
            pictures = self.decode_latents(latents)
            if auto:
                curve = self.measure_curve(pictures, etas, edit)
                chosen, explanation = self.choose(curve)
            images = self.finish(pictures, edit, mask, len(etas), output_type)
        self.maybe_free_model_hooks()

        result = (images, list(etas), [one.initial_seed() for one in seeds], chosen, curve, explanation)
        return ImagicPipelineOutput(*result) if return_dict else result

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the call takes that runs or ran last; 0 before the first."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The weight of guidance in the call that runs."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def interrupt(self) -> bool:
        """Set to `True` by a callback it ends the loop."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    # --- The parts of the fit ----------------------------------------------------------------------------------------

    def descend(self, phase: str, parameters: list[torch.nn.Parameter] | list[torch.Tensor], run: FitRun) -> None:
        """Moves `parameters` down the loss E‖target − f_θ(x_t, t, e)‖² (eq. 2), or on from the run's checkpoint."""
        settings = run.settings
        num_steps = settings.embedding_steps if phase == "embedding" else settings.steps
        rate = settings.embedding_learning_rate if phase == "embedding" else settings.learning_rate
        optimizer = make_optimizer(settings.optimizer, parameters, rate)
        loses_small_gradients = torch.float16 in (self.unet.dtype, MIXED_PRECISIONS[settings.mixed_precision])
        scaler = torch.amp.GradScaler(run.latents.device.type, enabled=loses_small_gradients)
        start = 0
        if run.saved is not None:
            if run.saved["phase"] != phase and phase == "embedding":
                restore(list(run.e_opt.values()), list(run.saved["e_opt"].values()))
                run.losses[phase] = run.saved["losses"][phase]
                return
            if run.saved["phase"] == phase:
                start = self.go_on(run, parameters, optimizer, scaler)
        if self.interrupt:
            return
        with self.progress_bar(total=num_steps) as progress_bar:
            progress_bar.set_description(phase)
            progress_bar.update(start)
            for step in range(start, num_steps):
                if self.interrupt or self.is_good_enough(phase, run):
                    break
                loss = self.photo_loss(run)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                run.losses[phase].append(loss.item())
                done = step + 1
                if phase == "network" and settings.target_psnr is not None and done % settings.psnr_every == 0:
                    run.psnr = self.measure_psnr(run)
                progress_bar.update()
                progress_bar.set_postfix({"loss": loss.item()} | ({} if run.psnr is None else {"PSNR": run.psnr}))
                if run.callback is not None:
                    run.callback(self, phase, step, loss.item())
                if done % run.checkpoint_every == 0 or done == num_steps or self.interrupt:
                    self.write_checkpoint(phase, run, parameters, optimizer, scaler)

    def photo_loss(self, run: FitRun) -> torch.Tensor:
        """The loss of eq. 2 at as many random timesteps and noises as the batch has."""
        scheduler, generator, number = self.scheduler, run.generator, run.settings.batch_size
        device, prediction_type = run.latents.device, scheduler.config.prediction_type
        timesteps = torch.randint(
            scheduler.config.num_train_timesteps, (number,), generator=generator, device=generator.device
        ).to(device)
        noise = randn_tensor((number, *run.latents.shape[1:]), generator=generator, device=device)
        alpha_bar = scheduler.alphas_cumprod.to(device)[timesteps].view(-1, 1, 1, 1)
        target = prediction_target(prediction_type, run.latents, noise, alpha_bar)
        dtype = MIXED_PRECISIONS[run.settings.mixed_precision]
        with torch.enable_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            prediction = self.predict(noised(run.latents, noise, alpha_bar), timesteps, run.e_opt)
            error = (prediction - target).square()
            if run.settings.loss_weighting == "velocity":
                error = error * velocity_weight(prediction_type, alpha_bar)
            return error.mean()

    def is_good_enough(self, phase: str, run: FitRun) -> bool:
        """Whether step 2 can stop early."""
        target = run.settings.target_psnr
        return phase == "network" and target is not None and run.psnr is not None and run.psnr >= target

    @torch.no_grad()
    def measure_psnr(self, run: FitRun) -> float:
        """How well the network as it is now gives the photo back from noise at e_opt, without guidance, in dB."""
        scheduler, generator = self.scheduler, torch.Generator().manual_seed(0)
        timesteps = self.get_timesteps(self.config.default_num_inference_steps, 1.0)
        latents = randn_tensor(run.latents.shape, generator=generator, device=run.latents.device)
        latents = latents * scheduler.init_noise_sigma
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)
        for t in timesteps:
            prediction = self.predict(scheduler.scale_model_input(latents, t), t, run.e_opt)
            latents = scheduler.step(prediction, t, latents, **extra_step_kwargs).prev_sample
        return peak_signal_to_noise(self.decode_latents(latents), run.pixels)

    def predict(self, sample: torch.Tensor, timestep: torch.Tensor, embeds: TextEmbeds) -> torch.Tensor:
        """f_θ(x_t, t, e), fp32, of the shape of `sample`; one row of `embeds` serves all of them."""
        number, dtype = len(sample), self.unet.dtype
        rows = {name: tensor.to(dtype).expand(number, *tensor.shape[1:]) for name, tensor in embeds.items()}
        added = None
        if "pooled_prompt_embeds" in rows:
            height, width = (size * self.vae_scale_factor for size in sample.shape[-2:])
            # SDXL is told of the original size, of where it was cropped, and of the size wanted
            time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=dtype, device=sample.device)
            added = {"text_embeds": rows["pooled_prompt_embeds"], "time_ids": time_ids.expand(number, -1)}
        output = self.unet(
            sample.to(dtype), timestep, encoder_hidden_states=rows["prompt_embeds"], added_cond_kwargs=added
        )
        return output.sample.float()

    # --- The network, borrowed ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def borrowed_network(self, gradient_checkpointing: bool) -> Iterator[None]:
        """No gradients for weights, and the network's flags afterwards as they were."""
        required = [(parameter, parameter.requires_grad) for parameter in self.unet.parameters()]
        switch_on = gradient_checkpointing and not self.unet.is_gradient_checkpointing
        self.unet.requires_grad_(False)
        if switch_on:
            self.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if switch_on:
                self.unet.disable_gradient_checkpointing()
            for parameter, flag in required:
                parameter.requires_grad_(flag)

    @contextlib.contextmanager
    def trained_weights(
        self, settings: FitSettings, generator: torch.Generator | None
    ) -> Iterator[list[torch.nn.Parameter]]:
        """The parameters that step 2 trains: in fp32, and gone afterwards.

        Args:
            settings ([`FitSettings`]): say which.
            generator (`torch.Generator`, *optional*): draws an adapter's first weights.
        """
        if settings.tuning == "full":
            with self.other_weights([parameter.data.float().clone() for parameter in self.unet.parameters()]):
                self.unet.requires_grad_(True)
                yield list(self.unet.parameters())
            return
        peft = import_package("peft", '`tuning="lora"`')
        config = peft.LoraConfig(
            r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules=settings.lora_targets
        )
        own = set(self.unet.parameters())
        try:
            with torch.random.fork_rng(devices=[]):
                if generator is not None:
                    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
                    torch.default_generator.manual_seed(int(seed))
                self.unet.add_adapter(config, ADAPTER)
            parameters = [parameter for parameter in self.unet.parameters() if parameter not in own]
            for parameter in parameters:
                parameter.data = parameter.data.float()
            yield parameters
        finally:
            self.unet.unload_lora()

    @contextlib.contextmanager
    def other_weights(self, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        """The network with others in the places of all its weights, which are afterwards there again."""
        own = [(parameter, parameter.data) for parameter in self.unet.parameters()]
        try:
            for (parameter, _), other in zip(own, weights, strict=True):
                parameter.data = other
            yield
        finally:
            for parameter, data in own:
                parameter.grad = None
                parameter.data = data

    @contextlib.contextmanager
    def tuned_network(self, edit: ImagicEdit) -> Iterator[None]:
        """The network as the edit has tuned it; afterwards it is what it was."""
        with self.borrowed_network(False):
            if edit.settings.tuning == "full":
                with self.other_weights([edit.weights[name].to(own) for name, own in self.unet.named_parameters()]):
                    yield
            else:
                with self.trained_weights(edit.settings, None):
                    peft = import_package("peft", "an edit that was fitted with LoRA")
                    peft.set_peft_model_state_dict(self.unet, edit.weights, adapter_name=ADAPTER)
                    yield

    def read_weights(self, settings: FitSettings) -> dict[str, torch.Tensor]:
        """What step 2 has made: the adapter, or all weights of the network."""
        if settings.tuning == "lora":
            peft = import_package("peft", '`tuning="lora"`')
            return peft.get_peft_model_state_dict(self.unet, adapter_name=ADAPTER)
        return {name: parameter.detach() for name, parameter in self.unet.named_parameters()}

    # --- Interruption ------------------------------------------------------------------------------------------------

    def find_checkpoint(
        self, folder: str | Path | None, resume: bool, identity: dict[str, Any]
    ) -> tuple[Path | None, dict[str, Any] | None]:
        """Where to write the fit down, and what is there to go on from.

        Raises:
            ValueError: what is there is of another fit, or was not to be gone on from.
        """
        if folder is None:
            if resume:
                raise ValueError("`resume=True` needs the `checkpoint_folder` to go on from.")
            return None, None
        path = Path(folder) / "imagic_fit.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return path, None
        if not resume:
            raise ValueError(
                f"`checkpoint_folder` {path.parent} holds a fit already; pass `resume=True` to go on with it, or"
                " another folder."
            )
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in identity.items():
            before = saved["identity"][name]
            more_steps = name == "steps" and saved["phase"] == "network" and value >= len(saved["losses"]["network"])
            if before != value and not (more_steps or (name == "steps" and saved["phase"] == "embedding")):
                argument = {"photo": "image", "region": "padding_mask_crop"}.get(name, name)
                values = "another photo" if name == "photo" else f"{value!r}, and was {before!r}"
                raise ValueError(f"`{argument}` is {values} in the fit that `checkpoint_folder` {path.parent} holds.")
        return path, saved

    def write_checkpoint(
        self,
        phase: str,
        run: FitRun,
        parameters: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Writes down all that the fit needs to go on as if nothing had happened, in one stroke."""
        if run.checkpoint is None:
            return
        state = {
            "identity": run.identity,
            "phase": phase,
            "losses": run.losses,
            "psnr": run.psnr,
            "e_opt": on_cpu(run.e_opt),
            "parameters": [parameter.detach().cpu() for parameter in parameters],
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "generator": run.generator.get_state(),
        }
        unfinished = run.checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, run.checkpoint)

    def go_on(
        self,
        run: FitRun,
        parameters: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> int:
        """Puts back what [`ImagicPipeline.write_checkpoint`] wrote, and says how many steps were done."""
        saved = run.saved
        assert saved is not None  # the caller has looked
        restore(parameters, saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        run.generator.set_state(saved["generator"])
        run.losses, run.psnr = saved["losses"], saved["psnr"]
        return len(run.losses[saved["phase"]])

    # --- The parts of the call ---------------------------------------------------------------------------------------

    @property
    def default_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels that the network was trained at."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def setting(self, name: str, value: Any) -> Any:
        """A call's setting, or the checkpoint's own where the call leaves it out (`None`)."""
        return self.config[f"default_{name}"] if value is None else value

    @property
    def text_encoders(self) -> list[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]:
        first, second = (self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)
        return [first] if self.text_encoder_2 is None else [first, second]

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> TextEmbeds:
        """The embeddings of one sentence; what is beyond the encoders' length is cut with a warning."""
        parts, embeds, device = [], {}, self._execution_device
        for tokenizer, encoder in self.text_encoders:
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            untruncated = tokenizer(prompt, return_tensors="pt").input_ids
            if untruncated.shape[-1] > length:
                removed = tokenizer.batch_decode(untruncated[:, length - 1 : -1], skip_special_tokens=True)
                logger.warning(f"CLIP can only handle {length} tokens; this part of the prompt was cut off: {removed}")
            attends = getattr(encoder.config, "use_attention_mask", False)
            output = encoder(
                tokens.input_ids.to(device),
                attention_mask=tokens.attention_mask.to(device) if attends else None,
                output_hidden_states=True,
            )
            # SDXL reads the layer before the last of both encoders, and the second one's pooled embedding
            is_xl = self.text_encoder_2 is not None
            parts.append(output.hidden_states[-2] if is_xl else output.last_hidden_state)
            if is_xl and encoder is self.text_encoder_2:
                embeds["pooled_prompt_embeds"] = output.text_embeds
        return {"prompt_embeds": torch.cat(parts, dim=-1), **embeds}

    def encode_negative(self, negative_prompt: str | None) -> TextEmbeds:
        embeds = self.encode_prompt(negative_prompt or "")
        if negative_prompt is None and self.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(tensor) for name, tensor in embeds.items()}
        return embeds

    @torch.no_grad()
    def encode_photo(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of pictures `(B, 3, H, W)` in [−1, 1], fp32, at the scale that the network knows."""
        with self.vae_in_full_precision():
            latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1], fp32."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        with self.vae_in_full_precision():
            pictures = self.vae.decode(latents.to(self.vae.dtype)).sample.float()
        return self.image_processor.denormalize(pictures)

    @contextlib.contextmanager
    def vae_in_full_precision(self) -> Iterator[None]:
        """SDXL's autoencoder gives NaN in fp16, and its config says so, which by default it does of any other too."""
        is_xl = self.text_encoder_2 is not None
        upcast = is_xl and self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(torch.float16)

    def get_timesteps(self, num_inference_steps: int, strength: float) -> torch.Tensor:
        """The timesteps that are left after skipping the first `1 − strength` of them, first to last."""
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        start = (num_inference_steps - steps_left(num_inference_steps, strength)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        return scheduler.timesteps[start:]

    def prepare_latents(
        self, source: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor, strength: float
    ) -> torch.Tensor:
        """What the loop begins with: noise, or with a `strength` below 1 the noised photo."""
        if strength == 1:
            return noise * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(source, noise, timestep.expand(len(source)))

    def prepare_latent_mask(self, mask: torch.Tensor, region: Box, latents: torch.Tensor) -> torch.Tensor:
        """The mask `(1, 1, H, W)` of the region at the latents' size: white where anything of a cell is."""
        left, top, right, bottom = region
        return F.adaptive_max_pool2d(mask[..., top:bottom, left:right], latents.shape[-2:]).to(latents)

    def prepare_extra_step_kwargs(self, generator: torch.Generator | list[torch.Generator]) -> dict:
        accepts_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if accepts_generator else {}

    def finish(
        self, pictures: torch.Tensor, edit: ImagicEdit, mask: torch.Tensor | None, num_etas: int, output_type: str
    ) -> list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor:
        """The pictures for every η: at the network's size or, with a mask or of a crop, in the photo at its own."""
        photo = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(edit.photo)).to(pictures.device)
        left, top, right, bottom = edit.region
        if mask is not None or edit.region != (0, 0, edit.photo.width, edit.photo.height):
            size = (bottom - top, right - left)
            window = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
            pictures = photo.repeat(len(window), 1, 1, 1)
            pictures[..., top:bottom, left:right] = window
            if mask is not None:
                pictures = torch.where(mask.to(pictures.device) > 0, pictures, photo)
        if output_type == "pt":
            return pictures.unflatten(0, (num_etas, -1))
        flat = self.image_processor.postprocess(pictures, output_type, do_denormalize=[False] * len(pictures))
        if output_type == "np":
            return flat.reshape(num_etas, -1, *flat.shape[1:])
        number = len(flat) // num_etas
        return [flat[start : start + number] for start in range(0, len(flat), number)]

    # --- Choosing η --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure_curve(self, pictures: torch.Tensor, etas: Sequence[float], edit: ImagicEdit) -> list[EtaPoint]:
        """How like the sentence and how far from the photo pictures `(E·N, 3, H, W)` in [0, 1] are, for every η."""
        photo = self.image_processor.preprocess(edit.photo.crop(edit.region), *pictures.shape[-2:]).to(pictures)
        likeness = self.text_likeness(pictures, edit.prompt).view(len(etas), -1).mean(dim=1).tolist()
        distances = [self.lpips(2 * one[None] - 1, photo).item() for one in pictures]
        by_eta = torch.tensor(distances).view(len(etas), -1).mean(dim=1).tolist()
        return [EtaPoint(*values) for values in zip(etas, likeness, by_eta, strict=True)]

    def text_likeness(self, pictures: torch.Tensor, prompt: str) -> torch.Tensor:
        """The cosine of CLIP's embeddings of pictures `(B, 3, H, W)` in [0, 1] and of a sentence. Shape `(B,)`."""
        model, device = self.clip_model, self.clip_model.device
        length = model.config.text_config.max_position_embeddings
        tokens = self.clip_tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        size = model.config.vision_config.image_size
        resized = F.interpolate(pictures.to(device), (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean = resized.new_tensor(self.feature_extractor.image_mean).view(1, 3, 1, 1)
        std = resized.new_tensor(self.feature_extractor.image_std).view(1, 3, 1, 1)
        image = model.get_image_features(pixel_values=((resized - mean) / std).to(model.dtype)).pooler_output
        text = model.get_text_features(input_ids=tokens).pooler_output
        return F.cosine_similarity(image.float(), text.float())

    def choose(self, curve: list[EtaPoint]) -> tuple[int, str]:
        """The index of the η to take, and why."""
        knee = find_knee(curve)
        nearest = min(range(len(curve)), key=lambda index: abs(curve[index].eta - self.config.default_eta))
        chosen = nearest if knee is None else knee
        return chosen, explain_choice(curve, knee, chosen)

    @property
    def lpips(self) -> torch.nn.Module:
        """The perceptual distance of Zhang et al. 2018 on AlexNet, made at first use unless it was set.

        Raises:
            ImportError: the package `lpips` is not installed.
            OSError: its backbone is neither in torch's cache nor can it be downloaded.
        """
        if self._lpips is None:
            lpips = import_package("lpips", '`eta="auto"`')
            try:
                self._lpips = lpips.LPIPS(net="alex", verbose=False).eval()
            except OSError as error:
                raise OSError(
                    '`eta="auto"` needs torchvision\'s AlexNet, which could not be downloaded: put'
                    f" alexnet-owt-7be5be79.pth into {torch.hub.get_dir()}/checkpoints, or pass an `eta`."
                ) from error
        return self._lpips.to(self._execution_device)

    @lpips.setter
    def lpips(self, module: torch.nn.Module) -> None:
        self._lpips = module

    # --- Checks ------------------------------------------------------------------------------------------------------

    def check_components(self) -> None:
        """Raises a `ValueError` if the components cannot do this job."""
        for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is not loaded; set `pipe.{name}`.")
        config = self.unet.config
        if "cross_attention_dim" not in config:
            raise ValueError(f"`unet` is {type(self.unet).__name__}; expected a UNet2DConditionModel.")
        channels = self.vae.config.latent_channels
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise ValueError(
                f"`unet` takes {config.in_channels} and gives {config.out_channels} channels where `vae` has"
                f" {channels}; expected a network for text-to-image, not one for inpainting or upscaling."
            )
        is_xl = config.get("addition_embed_type") == "text_time"
        for name in ("text_encoder_2", "tokenizer_2"):
            if is_xl != (getattr(self, name) is not None):
                what = "needs" if is_xl else "knows no"
                raise ValueError(f"`unet` {what} `{name}`; expected all of Stable Diffusion XL's parts, or none.")
        scheduler, name = self.scheduler, type(self.scheduler).__name__
        if not isinstance(scheduler, SchedulerMixin) or not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"`scheduler` is {name}, which has no `alphas_cumprod`; use for example DDIMScheduler, PNDMScheduler"
                " or EulerDiscreteScheduler."
            )
        if scheduler.config.get("prediction_type") not in PREDICTION_TYPES:
            raise ValueError(
                f"`scheduler` has prediction_type={scheduler.config.get('prediction_type')!r}; expected one of"
                f" {PREDICTION_TYPES}."
            )

    def check_network(self) -> None:
        """Raises a `ValueError` if the network cannot be tuned as it is now."""
        if getattr(self.unet, "peft_config", None):
            raise ValueError(
                "`unet` has adapters; make them part of it first: `pipe.unet.fuse_lora()`, `pipe.unet.unload_lora()`."
            )
        if any(parameter.is_meta for parameter in self.unet.parameters()):
            raise ValueError(
                "`unet` is offloaded layer by layer, where it cannot be tuned; use `enable_model_cpu_offload()`."
            )

    def check_prompt(self, prompt: str) -> None:
        """Raises a `ValueError` or `TypeError` unless it is one sentence."""
        if not isinstance(prompt, str):
            raise TypeError(f"`prompt` must be one string, not {prompt!r}.")
        if not prompt.strip():
            raise ValueError("`prompt` is empty; describe the photo as it should be.")

    def check_fit(self, settings: FitSettings) -> None:
        """Raises a `ValueError` or `TypeError` of one sentence for the first thing that is wrong."""
        cell = self.vae_scale_factor
        for name in ("height", "width"):
            size = getattr(settings, name)
            if not isinstance(size, numbers.Integral) or size < cell or size % cell:
                raise ValueError(f"`{name}` is {size!r}; expected a multiple of {cell} pixels.")
        for name in ("embedding_steps", "steps"):
            check_whole(name, getattr(settings, name), 0)
        for name in ("lora_rank", "batch_size", "psnr_every"):
            check_whole(name, getattr(settings, name), 1)
        check_choice("tuning", settings.tuning, tuple(WEIGHTS_FILES))
        check_choice("loss_weighting", settings.loss_weighting, LOSS_WEIGHTINGS)
        check_choice("optimizer", settings.optimizer, tuple(OPTIMIZERS))
        check_choice("mixed_precision", settings.mixed_precision, tuple(MIXED_PRECISIONS))
        for name in ("embedding_learning_rate", "learning_rate"):
            check_number(name, getattr(settings, name), "above 0", lambda value: value > 0)
        if settings.target_psnr is not None:
            check_number("target_psnr", settings.target_psnr, "of dB above 0", lambda value: value > 0)
        if settings.tuning == "lora":
            self.check_targets(settings.lora_targets)

    def check_targets(self, targets: list[str]) -> None:
        """Raises a `ValueError` unless each of them is the end of a layer's name."""
        layers = [name for name, module in self.unet.named_modules() if isinstance(module, LORA_LAYERS)]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                raise ValueError(
                    f"`lora_targets` has {target!r}, which no linear or convolutional layer's name ends with; expected"
                    f" some as {LORA_TARGETS}."
                )
        if not targets:
            raise ValueError(f"`lora_targets` is empty; expected ends of layers' names, as {LORA_TARGETS}.")

    def check_request(self, request: EditRequest) -> None:
        """Raises a `ValueError` or `TypeError` of one sentence for the first thing that is wrong."""
        edit = request.edit
        if not hasattr(edit, "e_opt"):  # of whichever copy of this file
            raise TypeError(
                f"`edit` must be what `fit()` returned or the folder it was saved to, not {type(edit).__name__}."
            )
        if not self.knows(edit):
            raise ValueError("`edit` was fitted with another network; load the checkpoint that it was fitted with.")
        check_whole("num_images_per_prompt", request.num_images_per_prompt, 1)
        check_whole("num_inference_steps", request.num_inference_steps, 1)
        known = self.scheduler.config.num_train_timesteps
        if request.num_inference_steps > known:
            raise ValueError(
                f"`num_inference_steps` is {request.num_inference_steps}; the network knows {known} timesteps."
            )
        check_number("strength", request.strength, "above 0 and at most 1", lambda value: 0 < value <= 1)
        if steps_left(request.num_inference_steps, request.strength) == 0:
            raise ValueError(
                f"`strength` {request.strength} of `num_inference_steps` {request.num_inference_steps} leaves no step"
                " to take; raise one of them."
            )
        check_number("guidance_scale", request.guidance_scale, "of at least 0", lambda value: value >= 0)
        if request.negative_prompt is not None and not isinstance(request.negative_prompt, str):
            raise TypeError(f"`negative_prompt` must be a string, not {request.negative_prompt!r}.")
        check_choice("output_type", request.output_type, ("pil", "np", "pt", "latent"))
        unknown = set(request.callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {sorted(unknown)}; expected some of"
                f" {self._callback_tensor_inputs}."
            )
        self.check_generator(request)
        if request.auto:
            self.check_auto(request)

    def knows(self, edit: ImagicEdit) -> bool:
        """Whether the edit's embeddings and weights are of the shapes that the network's are."""
        dims = {"prompt_embeds": self.unet.config.cross_attention_dim}
        if self.text_encoder_2 is not None:
            dims["pooled_prompt_embeds"] = self.text_encoder_2.config.projection_dim
        if {name: tensor.shape[-1] for name, tensor in edit.e_opt.items()} != dims:
            return False
        own = {name: weights.shape for name, weights in self.unet.named_parameters()}
        if edit.settings.tuning == "full":
            return {name: weights.shape for name, weights in edit.weights.items()} == own
        for name, weights in edit.weights.items():
            layer, _, which = name.partition(".lora_")
            # A is of shape `(rank, in, …)` and B of shape `(out, rank, …)`
            axis = 1 if which.startswith("A") else 0
            shape = own.get(f"{layer}.weight")
            if shape is None or weights.shape[axis] != shape[axis]:
                return False
        return True

    def check_generator(self, request: EditRequest) -> None:
        generator, number = request.generator, request.num_images_per_prompt
        if isinstance(generator, list):
            if len(generator) != number or not all(isinstance(one, torch.Generator) for one in generator):
                raise ValueError(
                    f"`generator` is a list of {len(generator)}; expected {number} torch generators, one for each of"
                    " `num_images_per_prompt`."
                )
        elif generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator or a list of them, not {type(generator).__name__}."
            )

    def check_auto(self, request: EditRequest) -> None:
        """What `eta="auto"` needs."""
        for name in ("clip_model", "clip_tokenizer", "feature_extractor"):
            if getattr(self, name) is None:
                raise ValueError(f'`eta="auto"` measures by CLIP, of which `{name}` is not loaded; set `pipe.{name}`.')
        if request.output_type == "latent":
            raise ValueError('`eta="auto"` looks at pictures; `output_type` cannot be "latent" with it.')
        self.lpips  # noqa: B018 (says now what is missing, and not after all pictures were made)

    def find_region(
        self,
        photo: PIL.Image.Image,
        mask_image: PictureInput | None,
        padding: int | None,
        settings: FitSettings,
    ) -> Box:
        """What the network is to see of the photo: all, or with `padding` the crop round the mask."""
        if padding is None:
            if mask_image is not None:
                raise ValueError("`mask_image` is for `padding_mask_crop` here; without it, pass it to the call.")
            return (0, 0, photo.width, photo.height)
        check_whole("padding_mask_crop", padding, 0)
        if mask_image is None:
            raise ValueError("`padding_mask_crop` needs a `mask_image` to crop to.")
        mask = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(read_mask_for(mask_image, photo)))[0]
        return self.image_processor.get_crop_region(mask, settings.width, settings.height, pad=padding)

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

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `model_index.json` and beside it what makes a saved folder complete: this source file.

        The file is there twice: under the name that `_class_name` in `model_index.json` gives, and as the
        `pipeline.py` that diffusers looks for where `custom_pipeline` is a folder or a Hub id.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("pipeline_imagic.py", "pipeline.py"):
            (folder / name).unlink(missing_ok=True)  # a link leads to somebody's source
            (folder / name).write_bytes(self._source)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes `model_index.json`, with `_class_name` as `[module, class]`."""
        config = json.loads(self.to_json_string())
        config["_class_name"] = ["pipeline_imagic", ImagicPipeline.__name__]
        config.pop("_name_or_path", None)
        Path(json_file_path).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- Settings --------------------------------------------------------------------------------------------------------

LORA_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def check_whole(name: str, value: int, least: int) -> None:
    """Raises a `ValueError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least {least}.")


def check_number(name: str, value: float, expected: str, is_right: Callable[[float], bool]) -> None:
    """Raises a `ValueError` unless `value` is a finite number that `is_right`."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or not is_right(float(value)):
        raise ValueError(f"`{name}` is {value!r}; expected a number {expected}.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {choices}.")


def read_etas(eta: float | Sequence[float] | str) -> list[float]:
    """One or several η as a list.

    Raises:
        ValueError: there is none, or one of them is no finite number of at least 0.
    """
    etas: list[Any] = list(eta) if isinstance(eta, Sequence) and not isinstance(eta, str) else [eta]
    right = [isinstance(one, numbers.Real) and 0 <= float(one) < math.inf for one in etas]
    if not etas or not all(right):
        raise ValueError(f"`eta` is {eta!r}; expected a number from 0 (photo) to 1 (text), a list of some, or 'auto'.")
    return [float(one) for one in etas]


def steps_left(num_inference_steps: int, strength: float) -> int:
    # the tolerance keeps 0.29 · 100 = 28.999999999999996 from losing a step
    return min(int(num_inference_steps * strength + 1e-6), num_inference_steps)


def import_package(name: str, needed_for: str) -> types.ModuleType:
    """A package that not everybody needs: not by a statement, of which diffusers would say at loading that it must be.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{needed_for} needs the package {name}: `pip install {name}`.") from error


def make_optimizer(name: str, parameters: Sequence[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS[name]
    if optimizer is None:
        optimizer = import_package("bitsandbytes", f'`optimizer="{name}"`').optim.AdamW8bit
    return optimizer(parameters, lr=rate)


# --- Tensors ---------------------------------------------------------------------------------------------------------


def on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU that nothing else changes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def restore(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def repeated(embeds: list[TextEmbeds], number: int) -> TextEmbeds:
    """Embeddings in rows: `number` times those of the first, then of the second, …"""
    rows = {name: torch.cat([one[name] for one in embeds]) for name in embeds[0]}
    return {name: tensor.repeat_interleave(number, dim=0) for name, tensor in rows.items()}


# --- Randomness ------------------------------------------------------------------------------------------------------


def unpredictable_generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))


def generators_of_seeds(
    generator: torch.Generator | list[torch.Generator] | None, number: int
) -> list[torch.Generator]:
    """One generator for each of `number` seeds.

    A list is taken as it is. A single generator serves the first seed; the others are drawn from a copy of it, so that
    picture *n* is the same for every `number > n`. `None` draws the seeds from torch's global generator.
    """
    if isinstance(generator, list):
        return generator
    if generator is None:
        return [unpredictable_generator() for _ in range(number)]
    device, copy = generator.device, same_again(generator)
    drawn = torch.randint(2**62, (number - 1,), generator=copy, device=device).tolist()
    return [generator] + [torch.Generator(device).manual_seed(seed) for seed in drawn]


def same_again(generator: torch.Generator) -> torch.Generator:
    """Another one that draws the same from here on."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


# --- Pictures in -----------------------------------------------------------------------------------------------------


def read_mask_for(mask_image: PictureInput, photo: PIL.Image.Image) -> torch.Tensor:
    """A mask for the photo: shape `(1, 1, H, W)`, 0 or 1.

    Raises:
        ValueError: it is of another size, or has nothing white in it.
    """
    mask = picture_from(mask_image, "mask_image", 1)
    if mask.size != photo.size:
        raise ValueError(
            f"`mask_image` is {mask.width}×{mask.height} and the photo {photo.width}×{photo.height} pixels"
            " (width×height); they must be the same size."
        )
    white = (torch.from_numpy(np.array(mask)) >= 128).float()[None, None]
    if not white.any():
        raise ValueError("`mask_image` has nothing white in it; paint white what is to be edited.")
    return white


def read_mask_of(mask_image: PictureInput, edit: ImagicEdit) -> torch.Tensor:
    """A mask for the edit's photo: shape `(1, 1, H, W)`, 0 or 1.

    Raises:
        ValueError: besides the above, what is white is outside the region that the edit was fitted to.
    """
    mask = read_mask_for(mask_image, edit.photo)
    left, top, right, bottom = edit.region
    if not mask[..., top:bottom, left:right].any():
        raise ValueError(
            f"`mask_image` has nothing white within {edit.region}, the part of the photo (left, top, right, bottom)"
            " that the edit was fitted to."
        )
    return mask


def picture_from(image: PictureInput, argument: str, channels: int) -> PIL.Image.Image:
    """A picture or, with one channel, a mask as PIL.

    Raises:
        TypeError: it is neither PIL, NumPy nor torch.
        ValueError: wrong shape, NaN, or numbers outside [0, 1].
    """
    mode = "RGB" if channels == 3 else "L"
    if isinstance(image, PIL.Image.Image):
        return image.convert(mode)
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"`{argument}` must be one PIL picture, NumPy array or torch tensor, not {type(image).__name__}."
        )
    array = image.permute(1, 2, 0).cpu().numpy() if torch.is_tensor(image) and image.ndim == 3 else np.asarray(image)
    if channels == 1 and array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        order = f"({channels}, height, width)" if torch.is_tensor(image) else f"(height, width, {channels})"
        raise ValueError(f"`{argument}` has the shape {tuple(image.shape)}; expected {order}.")
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(f"`{argument}` holds values outside [0, 1]; expected floating point in it, or uint8.")
        array = (array * 255).round().astype(np.uint8)
    return PIL.Image.fromarray(array if channels == 3 else array[..., 0])


# diffusers runs every version of this file that it loads in the module of one name, where functions would find the
# names of the latest: give it a copy, so that the pipelines of an earlier version keep theirs
if __name__.startswith("diffusers_modules."):
    _copy = types.ModuleType(__name__)
    vars(_copy).update(globals())
    sys.modules[__name__] = _copy
