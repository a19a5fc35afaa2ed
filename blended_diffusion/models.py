"""A pipeline from a name: the bundled model, a folder, or a model on the Hugging Face Hub.

What belongs here finds models and their hashes, and loads those of Blended Diffusion; diffusers' own inpainting
pipelines are loaded by `inpainting_models`. No code from a model's folder or repository is executed unless it is asked
for: its `model_index.json` is read as data, and every part is loaded by its stock class.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from blended_diffusion import machine
from blended_diffusion.checkpoints.presets import DEFAULT_CLIP
from blended_diffusion.demo import MODEL_FOLDER
from blended_diffusion.inpainting_models import (
    NO_CLIP,
    RankingClip,
    inpainting_class,
    load_clip,
    load_inpainting_pipeline,
    native_size,
    read_defaults,
)
from blended_diffusion.model_files import (
    BUNDLED,
    IN_THE_BOX,
    ModelPart,
    find_folder,
    first_line,
    hash_files,
    read_index,
    weights_of,
)
from pipeline_blended_diffusion import BlendedDiffusionPipeline


logger = diffusers.utils.logging.get_logger(__name__)

CLIP = {"clip_model": CLIPModel, "tokenizer": CLIPTokenizer, "feature_extractor": CLIPImageProcessor}
PARTS = {"unet": UNet2DModel, **CLIP, "scheduler": SchedulerMixin}
SECOND_CLIP = {f"{part}_2": stock_class for part, stock_class in CLIP.items()}  # not every model has one
SIGLIP = {
    "clip_model": ["SiglipModel"],
    "tokenizer": ["SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer"],
    "feature_extractor": ["SiglipImageProcessor"],
}
NETWORKS = ("unet", "clip_model", "clip_model_2")
LARGE = 200e6  # bytes of weights: there half precision saves more than the rounding costs
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
FILES = ["model_index.json"] + [
    f"{part}/*.{ending}" for part in (*PARTS, *SECOND_CLIP) for ending in ("json", "safetensors", "txt", "model")
]


@dataclass(frozen=True)
class Model:
    """A pipeline and where it came from.

    Attributes:
        pipe (`DiffusionPipeline`): as it was loaded, on the CPU: a [`BlendedDiffusionPipeline`], or one of diffusers'
            own inpainting pipelines.
        name (`str`): `"bundled"`, a folder's absolute path, or a Hub id.
        sha256 (`str`): of the weights of all its networks; where there are parts, of the networks' own hashes.
        parts (`tuple[ModelPart, ...]`): the networks by themselves, and what was loaded from elsewhere: LoRAs, the
            CLIP that ranks. Of a [`BlendedDiffusionPipeline`] there are none.
        clip ([`RankingClip`], *optional*): what ranks the pictures of a pipeline that has no CLIP to do so.
        upscaler (`DiffusionPipeline`, *optional*): what makes the pictures of `pipe` larger.
        defaults (`Mapping[str, Any]`): settings that somebody who leaves them out gets, other than the pipeline's own.
    """

    pipe: DiffusionPipeline
    name: str
    sha256: str
    parts: tuple[ModelPart, ...] = ()
    clip: RankingClip | None = None
    upscaler: DiffusionPipeline | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The width and height of its pictures."""
        if isinstance(self.pipe, BlendedDiffusionPipeline):
            return self.pipe.sample_size[0]
        return native_size(self.pipe if self.upscaler is None else self.upscaler)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the network that paints."""
        return self.pipe.unet.dtype if hasattr(self.pipe, "unet") else self.pipe.dtype

    def to(self, device: torch.device | str) -> None:
        """Moves all of it to a device."""
        for part in (self.pipe, self.upscaler, None if self.clip is None else self.clip.model):
            if part is not None:
                part.to(device)

    def offload(self, device: torch.device, how: str) -> None:
        """Keeps on a GPU only what computes there: whole networks (`"model"`), or layer by layer (`"sequential"`).

        Raises:
            ValueError: `device` is no GPU.
        """
        if device.type == "cpu":
            raise ValueError(f"offload {how!r} keeps networks off a GPU, and there is none; leave it out.")
        for pipe in (self.pipe, self.upscaler):
            if pipe is not None:
                switch = pipe.enable_model_cpu_offload if how == "model" else pipe.enable_sequential_cpu_offload
                switch(device=device)
        if self.clip is not None:
            self.clip.model.to(device)


def load_model(
    name: str = BUNDLED,
    dtype: torch.dtype | None = None,
    argument: str = "model",
    device: torch.device | str = "cpu",
    clip: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    upscaler: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Loads a [`BlendedDiffusionPipeline`], or the inpainting pipeline that diffusers has for a model.

    Args:
        name (`str`): `"bundled"`, a folder, or a Hub id such as `"somebody/some-model"`. A folder or
            repository of any pipeline that [`~diffusers.AutoPipelineForInpainting`] knows, or whose own class takes
            `mask_image`.
        dtype (`torch.dtype`, *optional*): of the networks. If left out, that is float32, and for large ones (more than
            200 MB of weights in a [`BlendedDiffusionPipeline`]'s UNet, or in all networks of another) half precision
            where `device` is quick in it.
        argument (`str`): what to call `name` in error messages.
        device (`torch.device` or `str`): where the model is going to be; it comes on the CPU.
        clip (`str`, *optional*): the CLIP that ranks the pictures of a pipeline without one, a folder or a Hub id;
            `"none"` for no ranking. If left out, `"openai/clip-vit-base-patch16"`.
        loras (`Sequence[tuple[str, float]]`): files, folders or Hub ids of LoRAs and how much of each is added.
        upscaler (`str`, *optional*): the super-resolution stage of a DeepFloyd IF model, a folder or a Hub id.
        trust_remote_code (`bool`): run code that comes with the model where it is not of stock classes.

    Raises:
        ValueError: there is no such model, it is not one to paint with, or a part of it is missing or damaged.
    """
    folder = find_folder(name, argument, ["model_index.json"])
    index = read_index(folder, name, argument)
    kind = inpainting_class(index)
    if kind is None:
        check_index(index, name, argument)
        # ranking by nothing is for the painter to refuse, by its own name
        given = {"clip": None if clip == NO_CLIP else clip, "loras": list(loras), "upscaler": upscaler}
        for option, value in given.items():
            if value:
                raise ValueError(f"`{option}` is {value!r}, which means nothing to {argument} {name!r}; leave it out.")
        return _load_blended_diffusion(find_folder(name, argument, FILES), index, name, dtype, argument, device)
    loaded = load_inpainting_pipeline(
        kind, name, argument, dtype, torch.device(device), tuple(loras), upscaler, trust_remote_code, LARGE
    )
    clip = clip or DEFAULT_CLIP
    ranking, parts = None, loaded.parts
    if clip != NO_CLIP:
        ranking, part = load_clip(clip, loaded.dtype)
        parts = (*parts, part)
    return Model(
        loaded.pipe,
        known_name(name, loaded.folder),
        loaded.sha256,
        parts,
        ranking,
        loaded.upscaler,
        read_defaults(loaded.folder, name, argument),
    )


def known_name(name: str, folder: Path) -> str:
    """What records call a model: whatever it was called, one in the box by its own name, a folder by its path."""
    for own, place in IN_THE_BOX.items():
        if folder == place:
            return own
    return str(folder) if Path(name).is_dir() else name


def _load_blended_diffusion(
    folder: Path, index: Any, name: str, dtype: torch.dtype | None, argument: str, device: torch.device | str
) -> Model:
    sha256 = hash_files(sorted(path for part in NETWORKS for path in weights_of(folder, part)), name, argument)
    if dtype is None:
        size = sum(path.stat().st_size for path in weights_of(folder, "unet"))
        dtype = machine.half_precision(torch.device(device)) if size > LARGE else None
    dtype = dtype or torch.float32
    parts = {}
    for part in _parts_of(index):
        library = transformers if part.removesuffix("_2") in CLIP else diffusers
        stock_class = getattr(library, index[part][1])
        options: dict[str, Any] = {"torch_dtype" if part == "unet" else "dtype": dtype} if part in NETWORKS else {}
        if part in NETWORKS:
            options["use_safetensors"] = True  # never a pickle
        try:
            # transformers would make an empty tokenizer of an empty folder
            if part.startswith("tokenizer") and not any((folder / part / name).is_file() for name in VOCABULARIES):
                raise FileNotFoundError("it has no vocabulary")
            parts[part] = stock_class.from_pretrained(folder, subfolder=part, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{argument} {name!r} has a part {part!r} that cannot be loaded ({first_line(error)})."
            ) from error
    known = inspect.signature(BlendedDiffusionPipeline.__init__).parameters
    defaults = {key: value for key, value in index.items() if key.startswith("default_") and key in known}
    # the layout that convolutions are fastest with, on CPUs and GPUs
    parts["unet"].to(memory_format=torch.channels_last)
    pipe = BlendedDiffusionPipeline(**parts, **defaults)
    height, width = pipe.sample_size
    if height != width:
        raise ValueError(f"{argument} {name!r} makes pictures of {width}×{height} pixels; square ones are needed.")
    if folder == MODEL_FOLDER:
        _say_if_links_are_missing()
    return Model(pipe, known_name(name, folder), sha256)


def check_index(index: Any, name: str, argument: str) -> None:
    """Raises a `ValueError` if a `model_index.json` does not say what a [`BlendedDiffusionPipeline`] is made of."""
    for part, stock_class in _parts_of(index).items():
        entry = index.get(part) if isinstance(index, dict) else None
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        suits = found in [stock_class.__name__, *SIGLIP.get(part.removesuffix("_2"), [])]
        if part == "scheduler":
            found_class = getattr(diffusers, str(found), None)
            suits = isinstance(found_class, type) and issubclass(found_class, SchedulerMixin)
        if not suits:
            raise ValueError(
                f"{argument} {name!r} is not made for Blended Diffusion: its {part} is {found}, and a"
                f" {stock_class.__name__} is needed; nor has diffusers an inpainting pipeline for it that needs"
                " words, a photo and a mask, and nothing else."
            )


def _parts_of(index: dict) -> dict[str, type]:
    """The parts that a pipeline of this `model_index.json` has to have; `[null, null]` there means none."""
    has_second = isinstance(index, dict) and any((index.get(part) or [None])[0] for part in SECOND_CLIP)
    return {**PARTS, **SECOND_CLIP} if has_second else PARTS


def _say_if_links_are_missing() -> None:
    """Where git cannot make links, it writes text files that say where each would lead."""
    broken = [path.name for path in sorted(MODEL_FOLDER.glob("*.py")) if path.read_bytes().startswith(b"../")]
    if broken:
        logger.warning(
            f"In {MODEL_FOLDER} git wrote {' and '.join(broken)} as text files, not as links, so that diffusers"
            " cannot load the bundled model by itself and an installation of this checkout lacks its pipeline; run"
            " `git config core.symlinks true` and check out anew."
        )
