"""diffusers' own inpainting pipelines from a folder or the Hub, and the CLIP that ranks what they paint.

What belongs here finds the class for a model, loads it with its LoRAs and upscaler, and says what can be known of it
without painting. How it is called belongs to `painters/inpainting`.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, IFInpaintingSuperResolutionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_INPAINT_PIPELINES_MAPPING, SUPPORTED_TASKS_MAPPINGS
from packaging.version import Version
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from blended_diffusion import machine
from blended_diffusion.model_files import (
    HUB_ERRORS,
    IN_THE_BOX,
    ModelPart,
    find_folder,
    first_line,
    hash_files,
    not_given,
    read_index,
    weights_of,
)


NO_CLIP = "none"
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # renamed then
CLIP_PARTS = ("clip_model", "tokenizer", "feature_extractor")
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers saves them
DEFAULTS_FILE = "edit_defaults.json"
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class RankingClip:
    """A CLIP that looks at pictures which another network has painted.

    Attributes:
        model (`CLIPModel` or `SiglipModel`), tokenizer (`PreTrainedTokenizerBase`), feature_extractor
        (`CLIPImageProcessor` or `SiglipImageProcessor`): stock components.
    """

    model: PreTrainedModel
    tokenizer: Any
    feature_extractor: Any


@dataclass(frozen=True)
class InpaintingPipeline:
    """One of diffusers' inpainting pipelines, and where it came from.

    Attributes:
        pipe (`DiffusionPipeline`), upscaler (`DiffusionPipeline`, *optional*): on the CPU.
        folder (`Path`): of its files.
        sha256 (`str`): of the hashes of all networks of both.
        parts (`tuple[ModelPart, ...]`): each network, and the LoRAs.
        dtype (`torch.dtype`): of the networks.
    """

    pipe: DiffusionPipeline
    upscaler: DiffusionPipeline | None
    folder: Path
    sha256: str
    parts: tuple[ModelPart, ...]
    dtype: torch.dtype


def inpainting_class(index: Any) -> type[DiffusionPipeline] | None:
    """diffusers' inpainting pipeline for what a `model_index.json` says; `None` if there is none.

    A class that [`paints_by_words`] stands for itself; for others it is that of the same family, if that one does.
    """
    name = index.get("_class_name") if isinstance(index, dict) else None
    name = name[-1] if isinstance(name, list) and name else name
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
        return None
    families = [key for mapping in SUPPORTED_TASKS_MAPPINGS for key, kind in mapping.items() if kind is found]
    others = [AUTO_INPAINT_PIPELINES_MAPPING[key] for key in families if key in AUTO_INPAINT_PIPELINES_MAPPING]
    return next((kind for kind in (found, *others) if paints_by_words(kind)), None)


def paints_by_words(kind: type) -> bool:
    """Whether a pipeline of this class needs words, a photo and a mask, and nothing else."""
    known = inspect.signature(kind.__call__).parameters.keys()
    return {"prompt", "image", "mask_image"} <= known and "control_image" not in known


def load_inpainting_pipeline(
    kind: type[DiffusionPipeline],
    name: str,
    argument: str,
    dtype: torch.dtype | None,
    device: torch.device,
    loras: Sequence[tuple[str, float]],
    upscaler: str | None,
    trust_remote_code: bool,
    large: float,
) -> InpaintingPipeline:
    """Loads a pipeline of class `kind` with its LoRAs and its upscaler.

    Args:
        kind (`type`): as [`inpainting_class`] found it.
        name, argument, dtype, device, loras, upscaler, trust_remote_code: as in
            [`~blended_diffusion.models.load_model`].
        large (`float`): from how many bytes of weights on half precision is taken where the device is quick in it.

    Raises:
        ValueError: a part is missing or damaged, or needs code of its own.
    """
    folder = download(name, argument, trust_remote_code)
    networks = networks_of(folder, name, argument)
    if dtype is None:
        size = sum(path.stat().st_size for paths in networks.values() for path in paths)
        dtype = machine.half_precision(device) if size > large else None
    dtype = dtype or torch.float32
    options = {DTYPE: dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    pipe = _from_folder(kind, folder, name, argument, **options)
    for part, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and part not in networks:
            raise ValueError(
                f"{argument} {name!r} has its {part} from elsewhere, where it may change; save the whole"
                f" {kind.__name__} into one folder with `save_pretrained`, and give that."
            )
    parts = [ModelPart("network", part, hash_files(paths, name, argument)) for part, paths in networks.items()]
    larger = None
    if upscaler is not None:
        if not kind.__name__.startswith("IF"):
            raise ValueError(
                f"upscaler {upscaler!r} is for DeepFloyd IF, and {argument} {name!r} is a {kind.__name__}."
            )
        place = download(upscaler, "upscaler", trust_remote_code)
        # it reads words as the first stage does
        shared = {"text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
        larger = _from_folder(IFInpaintingSuperResolutionPipeline, place, upscaler, "upscaler", **shared, **options)
        called = str(place) if Path(upscaler).is_dir() else upscaler
        parts.append(ModelPart("upscaler", called, hash_files(weights_of(place, "unet"), upscaler, "upscaler")))
    # of their hashes: large weights are not read twice
    sha256 = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    parts += load_loras(pipe, loras)
    return InpaintingPipeline(pipe, larger, folder, sha256, tuple(parts), dtype)


def download(name: str, argument: str, trust_remote_code: bool) -> Path:
    """The folder of a pipeline; from the Hub comes what diffusers needs of it, and never a pickle."""
    if name in IN_THE_BOX or Path(name).exists():
        return find_folder(name, argument, [])
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True, trust_remote_code=trust_remote_code))
    except (*HUB_ERRORS, ValueError) as error:
        raise not_given(name, argument, error) from None


def networks_of(folder: Path, name: str, argument: str) -> dict[str, list[Path]]:
    """The weights of each network that a saved pipeline's `model_index.json` names."""
    index = read_index(folder, name, argument)
    named = [part for part, entry in index.items() if isinstance(entry, list) and any(entry)]
    found = {part: weights_of(folder, part) for part in sorted(named)}
    return {part: paths for part, paths in found.items() if paths}


def _from_folder(
    kind: type[DiffusionPipeline], folder: Path, name: str, argument: str, **options: Any
) -> DiffusionPipeline:
    known = inspect.signature(kind.__init__).parameters
    if "requires_safety_checker" in known and not _has(folder, "safety_checker"):
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipe = kind.from_pretrained(folder, **options)
    except LOADING_ERRORS as error:
        raise ValueError(
            f"{argument} {name!r} cannot be loaded as a {kind.__name__} ({first_line(error)})."
        ) from error
    vae = getattr(pipe, "vae", None)
    if vae is not None and vae.dtype == torch.float32 and vae.config.get("force_upcast"):
        vae.register_to_config(force_upcast=False)  # it is: pipelines would cast it again at each call, with a warning
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _has(folder: Path, part: str) -> bool:
    entry = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get(part)
    return bool(entry and entry[0])


def load_loras(pipe: DiffusionPipeline, loras: Sequence[tuple[str, float]]) -> list[ModelPart]:
    """Adds LoRAs to a pipeline, each with its weight.

    Raises:
        ValueError: the pipeline takes none, or a file is missing or does not suit it.
    """
    parts = []
    for number, (name, weight) in enumerate(loras):
        if not hasattr(pipe, "load_lora_weights"):
            raise ValueError(f"lora {name!r}: {type(pipe).__name__} takes no LoRA; leave it out.")
        path = _lora_file(name)
        try:
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"lora_{number}")
        except LOADING_ERRORS as error:
            raise ValueError(f"lora {name!r} does not suit {type(pipe).__name__} ({first_line(error)}).") from error
        own = str(path.parent.resolve() / path.name) if Path(name).exists() else name
        parts.append(ModelPart("lora", own, hash_files([path], name, "lora"), weight))
    if loras:
        pipe.set_adapters([f"lora_{number}" for number in range(len(loras))], [weight for _, weight in loras])
    return parts


def _lora_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    folder = find_folder(name, "lora", ["*.safetensors"])
    files = sorted(folder.glob("*.safetensors"))
    if folder / LORA_FILE in files:
        return folder / LORA_FILE
    if len(files) != 1:
        raise ValueError(
            f"lora {name!r} holds {len(files)} safetensors files; give the one that is meant, or a folder of one."
        )
    return files[0]


def load_clip(name: str, dtype: torch.dtype) -> tuple[RankingClip, ModelPart]:
    """A CLIP or SigLIP as transformers saves it, or the one of a saved [`BlendedDiffusionPipeline`].

    Raises:
        ValueError: there is none, or a part of it is missing or damaged.
    """
    folder = IN_THE_BOX.get(name, Path(name))
    places = [str(folder / part) if (folder / part).is_dir() else name for part in CLIP_PARTS]
    try:
        model = AutoModel.from_pretrained(places[0], dtype=dtype).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(places[1])
        feature_extractor = AutoImageProcessor.from_pretrained(places[2])
    except LOADING_ERRORS as error:
        raise ValueError(
            f"clip {name!r} cannot be loaded ({first_line(error)}); give a folder or a Hub id, or {NO_CLIP!r} for no"
            " ranking."
        ) from error
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"clip {name!r} is a {type(model).__name__}; give a CLIP or a SigLIP, or {NO_CLIP!r}.")
    called = str(folder.resolve()) if Path(name).is_dir() else name
    return RankingClip(model, tokenizer, feature_extractor), ModelPart("clip", called, hash_weights(model))


def hash_weights(network: torch.nn.Module) -> str:
    """The sha256 of a network's weights as they were loaded, in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_defaults(folder: Path, name: str, argument: str) -> dict[str, Any]:
    """The settings that a model's folder recommends, in `edit_defaults.json`; none without that file.

    Raises:
        ValueError: it is no JSON object.
    """
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{argument} {name!r} has an unreadable {DEFAULTS_FILE} ({first_line(error)}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{argument} {name!r} has a {DEFAULTS_FILE} that is no JSON object; give settings by name.")
    return found


def native_size(pipe: DiffusionPipeline) -> int:
    """The width and height of the pictures that an inpainting pipeline was trained to make."""
    scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "movq_scale_factor", None)
    if scale is None and hasattr(pipe, "movq"):
        scale = 2 ** (len(pipe.movq.config.block_out_channels) - 1)
    if (transformer_size := getattr(pipe, "default_sample_size", None)) is not None:
        return transformer_size * (scale or 1)
    size = pipe.unet.config.sample_size
    return (size if isinstance(size, int) else size[0]) * (scale or 1)
