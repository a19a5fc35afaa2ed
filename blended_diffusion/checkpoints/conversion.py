"""guided-diffusion checkpoint → pipeline folder, and back.

Belongs here: the two conversions from end to end. Does not: what a network looks like, file formats, the command line.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .architecture import ASSUMED, FLAGS, Architecture, infer_architecture
from .model_card import model_card
from .presets import DEFAULT_CLIP, PRESETS, find_preset
from .stock_unet import duplication, key_map, scheduler_config, unet_config
from .tensor_files import FLOATS, read_sharded, read_tensors, replacing, write_safetensors, write_sharded


logger = logging.get_logger(__name__)

# The UNet's config keeps the architecture under this key; diffusers passes over private keys when it loads a config
# and writes them again when it saves one.
RECORD = "_guided_diffusion"


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    clip: str | Path = DEFAULT_CLIP,
    preset: str | None = None,
    half: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = "10GB",
    pipeline_defaults: Mapping[str, Any] | None = None,
    **flags: Any,
) -> Path:
    """
    Writes a guided-diffusion checkpoint as a folder that `DiffusionPipeline.from_pretrained` loads.

    The UNet is written tensor by tensor, so memory stays near the checkpoint's own size, which is mapped, not read.

    Args:
        checkpoint (`str` or `Path`):
            A `.pt` or `.safetensors` file. The architecture of published ones is known by file name.
        output (`str` or `Path`):
            The folder, which must not exist or be empty.
        clip (`str` or `Path`, defaults to `openai/clip-vit-base-patch16`):
            The CLIP that guides: a Hub id or a folder.
        preset (`str`, *optional*):
            Name of a published checkpoint in [`PRESETS`] whose architecture this one has.
        half (`bool`, defaults to `False`):
            Whether weights are written in half precision.
        overwrite (`bool`, defaults to `False`):
            Whether a pipeline folder at `output` is replaced, once the new one is complete.
        max_shard_size (`int` or `str`, defaults to `"10GB"`):
            Largest size of one file of the UNet's weights, as in diffusers.
        pipeline_defaults (`Mapping[str, Any]`, *optional*):
            The pipeline's `default_…` arguments; those left out are the released editor's.
        flags:
            Fields of [`Architecture`] under guided-diffusion's names, for checkpoints without a preset.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If the checkpoint, a flag or the CLIP is not what is needed, or `output` is taken.
        `OSError`: If the CLIP cannot be fetched or the folder not be written.
    """
    checkpoint = Path(checkpoint)
    preset = find_preset(checkpoint, preset)
    with replacing(output, overwrite) as folder:
        tensors = read_tensors(checkpoint)
        architecture = _architecture_of(tensors, flags, preset)
        _check_tensors(tensors, architecture)
        if preset is None:
            assumed = [f"{name}={value}" for name, value in ASSUMED.items() if name not in flags]
            if assumed:
                logger.warning(f"{checkpoint.name} is no published checkpoint; assumed {', '.join(assumed)}.")
        if duplication(architecture) > 1:
            logger.warning(
                "UNet2DModel cannot say these attention heads or this timestep embedding directly, so every channel is"
                f" written {duplication(architecture)} times: the same network, several times as large and slow."
            )

        unet = _write_pipeline(folder, architecture, clip, half, pipeline_defaults or {})
        _write_unet(folder / "unet", unet, architecture, tensors, half, max_shard_size)
        card = model_card(architecture, preset, checkpoint.name, str(clip), half)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(output)


def to_guided_diffusion(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    use_new_attention_order: bool | None = None,
    overwrite: bool = False,
) -> dict[str, torch.Tensor]:
    """
    The way back: the guided-diffusion state dict of a converted folder.

    Args:
        folder (`str` or `Path`):
            What [`convert`] wrote, or the pipeline saved since.
        output (`str` or `Path`, *optional*):
            A `.pt` or `.safetensors` file to write it to.
        use_new_attention_order (`bool`, *optional*):
            The order of the `qkv` rows. Defaults to that of the checkpoint the folder was made from.
        overwrite (`bool`, defaults to `False`):
            Whether `output` is replaced if it exists.

    Returns:
        `dict[str, torch.Tensor]`: guided-diffusion's tensors by name, in its order.

    Raises:
        `ValueError`: If the folder was not made by [`convert`], has been trained into something guided-diffusion does
            not have, or `output` is taken or has another suffix.
    """
    if output is not None and Path(output).suffix not in (".pt", ".safetensors"):
        raise ValueError(f"output={str(output)!r} has no suffix that is known; end it in .pt or .safetensors.")
    architecture = recorded_architecture(folder, use_new_attention_order)
    tensors = read_sharded(Path(folder) / "unet")
    entries = key_map(architecture)
    expected = {key for entry in entries for key in entry.parts}
    if tensors.keys() != expected:
        wrong = sorted(tensors.keys() ^ expected)
        raise ValueError(
            f"{folder}/unet does not hold the network its config records: {', '.join(wrong[:3])} too many or missing."
        )
    state = {entry.name: entry.to_guided_diffusion({key: tensors[key] for key in entry.parts}) for entry in entries}
    if output is not None:
        with replacing(output, overwrite) as partial:
            partial.parent.mkdir(parents=True, exist_ok=True)
            if Path(output).suffix == ".pt":
                torch.save(state, partial)
            else:
                write_safetensors(partial, state, state.__getitem__)
    return state


def recorded_architecture(folder: str | Path, use_new_attention_order: bool | None = None) -> Architecture:
    """
    The architecture of the checkpoint a folder was converted from.

    Raises:
        `ValueError`: If the folder was not made by [`convert`].
    """
    path = Path(folder) / "unet"
    if not (path / "config.json").is_file():
        raise ValueError(f"{folder} holds no unet/config.json; expected a folder made by the conversion.")
    record = UNet2DModel.load_config(path).get(RECORD)
    if record is None:
        raise ValueError(
            f"{path / 'config.json'} has no {RECORD!r} entry; only a folder made by the conversion can be turned back."
        )
    values = {field.name: record[field.name] for field in fields(Architecture)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if use_new_attention_order is not None:
        values["use_new_attention_order"] = use_new_attention_order
    return Architecture(**values)


def _architecture_of(tensors: Mapping[str, torch.Tensor], flags: dict[str, Any], preset: str | None) -> Architecture:
    if preset is None:
        return infer_architecture(tensors, flags)
    published = {name: getattr(PRESETS[preset].architecture, name) for name in FLAGS}
    architecture = infer_architecture(tensors, published, preset)
    wanted = infer_architecture(tensors, {**published, **flags})
    for name in flags:
        if getattr(wanted, name) != getattr(architecture, name):
            raise ValueError(
                f"{name}={flags[name]} contradicts the preset {preset!r}, where it is {getattr(architecture, name)}."
            )
    return architecture


def _check_tensors(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> None:
    expected = {entry.name: entry.shape for entry in key_map(architecture)}
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if missing or extra:
        found = [
            f"{len(names)} {kind} ({', '.join(names[:3])})"
            for kind, names in (("missing", missing), ("extra", extra))
            if names
        ]
        raise ValueError(
            f"the checkpoint has {len(tensors)} tensors where this guided-diffusion network has {len(expected)}:"
            f" {' and '.join(found)}."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}; this network needs {shape}.")
        if tensors[name].dtype not in FLOATS:
            raise ValueError(f"{name} holds {tensors[name].dtype}; floating point weights are needed.")


def _write_pipeline(
    folder: Path, architecture: Architecture, clip: str | Path, half: bool, defaults: Mapping[str, Any]
) -> UNet2DModel:
    """Writes all of the folder but the UNet's weights; returns the UNet, on the meta device."""
    from pipeline_blended_diffusion import BlendedDiffusionPipeline

    config = {**unet_config(architecture), RECORD: asdict(architecture)}
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
    unet.save_pretrained = unet.save_config  # its weights are streamed, never in memory
    scheduler = DDPMScheduler(**scheduler_config(architecture))
    pipeline = BlendedDiffusionPipeline(
        unet, scheduler, **_load_clip(clip, torch.float16 if half else torch.float32), **defaults
    )
    pipeline.save_pretrained(folder)
    load_clip_in_full_precision(folder)
    return unet


def load_clip_in_full_precision(folder: Path) -> None:
    """Makes a saved pipeline come up in one precision, whatever that of its files.

    transformers loads what the config says, diffusers float32: a pipeline loaded from half-precision files would have
    a CLIP in half and a UNet in full precision.
    """
    config = folder / "clip_model" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def _load_clip(clip: str | Path, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    local = Path(clip).is_dir()
    if not local:
        try:
            validate_repo_id(str(clip))
        except HFValidationError:
            raise ValueError(f"clip={str(clip)!r} is neither a folder nor a Hub id; give one of them.") from None
    try:
        model, info = CLIPModel.from_pretrained(clip, dtype=dtype, output_loading_info=True)
        tokenizer = CLIPTokenizer.from_pretrained(clip)
        feature_extractor = CLIPImageProcessor.from_pretrained(clip)
    except Exception as error:  # transformers raises nearly anything
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        if local:
            raise ValueError(
                f"clip={str(clip)!r} holds no CLIP model with its tokenizer and image processor ({reason})."
            ) from None
        raise OSError(
            f"clip={str(clip)!r} is no folder and could not be fetched from the Hub; give the folder of a downloaded"
            f" CLIP ({reason})."
        ) from None
    # transformers fills in what it does not find, silently: random weights, a tokenizer without words
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise ValueError(
            f"clip={str(clip)!r} does not hold a whole CLIPModel ({missing} is missing); give one that does."
        )
    if max(tokenizer.get_vocab().values()) + 1 != model.config.text_config.vocab_size:
        raise ValueError(
            f"clip={str(clip)!r} holds no tokenizer with the words its model knows; add its tokenizer files."
        )
    return {"clip_model": model, "tokenizer": tokenizer, "feature_extractor": feature_extractor}


def _write_unet(
    folder: Path,
    unet: UNet2DModel,
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    half: bool,
    max_shard_size: int | str,
) -> None:
    entry_of = {key: entry for entry in key_map(architecture) for key in entry.parts}

    def dtype(key: str) -> torch.dtype:
        return torch.float16 if half else tensors[entry_of[key].name].dtype

    def tensor(key: str) -> torch.Tensor:
        source = tensors[entry_of[key].name]
        converted = entry_of[key].to_unet(key, source.float() if half else source).to(dtype(key))
        if half and not converted.isfinite().all():
            raise ValueError(f"{entry_of[key].name} has values beyond half precision's range; convert without half.")
        return converted

    layout = {key: meta.to(dtype(key)) for key, meta in unet.state_dict().items()}
    write_sharded(folder, layout, tensor, max_shard_size)
