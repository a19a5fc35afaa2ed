"""A pipeline from a name: the bundled model, a folder, or a model on the Hugging Face Hub.

What belongs here finds and loads weights. No code from a model's folder or repository is ever executed: its
`model_index.json` is read as data, and every part is loaded by its stock class.
"""

import hashlib
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from blended_diffusion import machine
from blended_diffusion.demo import MODEL_FOLDER
from pipeline_blended_diffusion import BlendedDiffusionPipeline


logger = diffusers.utils.logging.get_logger(__name__)

BUNDLED = "bundled"
CLIP = {"clip_model": CLIPModel, "tokenizer": CLIPTokenizer, "feature_extractor": CLIPImageProcessor}
PARTS = {"unet": UNet2DModel, **CLIP, "scheduler": SchedulerMixin}
SECOND_CLIP = {f"{part}_2": stock_class for part, stock_class in CLIP.items()}  # not every model has one
SIGLIP = {
    "clip_model": ["SiglipModel"],
    "tokenizer": ["SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer"],
    "feature_extractor": ["SiglipImageProcessor"],
}
NETWORKS = ("unet", "clip_model", "clip_model_2")
LARGE = 200e6  # bytes of a UNet's weights: there half precision saves more than the rounding costs
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class Model:
    """A pipeline and where it came from.

    Attributes:
        pipe (`DiffusionPipeline`): as it was loaded, a [`BlendedDiffusionPipeline`] on the CPU.
        name (`str`): `"bundled"`, a folder's absolute path, or a Hub id.
        sha256 (`str`): of the weights of its UNet and CLIP.
    """

    pipe: DiffusionPipeline
    name: str
    sha256: str

    @property
    def size(self) -> int:
        """The width and height of its pictures."""
        return self.pipe.sample_size[0]


def load_model(
    name: str = BUNDLED,
    dtype: torch.dtype | None = None,
    argument: str = "model",
    device: torch.device | str = "cpu",
) -> Model:
    """Loads a pipeline that was saved by [`BlendedDiffusionPipeline.save_pretrained`].

    Args:
        name (`str`): `"bundled"`, a folder, or a Hub id such as `"somebody/some-model"`.
        dtype (`torch.dtype`, *optional*): of the UNet and CLIP. If left out, that is float32, and for a large UNet
            (more than 200 MB of weights) half precision where `device` is quick in it.
        argument (`str`): what to call `name` in error messages.
        device (`torch.device` or `str`): where the model is going to be; it comes on the CPU.

    Raises:
        ValueError: there is no such model, it is not one for this pipeline, or a part of it is missing or damaged.
    """
    folder = _find_folder(name, argument)
    index = _read_index(folder, name, argument)
    sha256 = _hash(folder, name, argument)
    if dtype is None:
        size = sum(path.stat().st_size for path in (folder / "unet").glob("*.safetensors"))
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
                f"{argument} {name!r} has a part {part!r} that cannot be loaded ({_first_line(error)})."
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
        name = BUNDLED
        _say_if_links_are_missing()
    elif Path(name).is_dir():
        name = str(folder)
    return Model(pipe, name, sha256)


def _find_folder(name: str, argument: str) -> Path:
    if name == BUNDLED:
        return MODEL_FOLDER
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ValueError(
            f"{argument} {name!r} is a file; give a model's folder (`blended-diffusion convert` makes one of a"
            " guided-diffusion checkpoint)."
        )
    try:
        parts = [
            f"{part}/*.{ending}"
            for part in (*PARTS, *SECOND_CLIP)
            for ending in ("json", "safetensors", "txt", "model")
        ]
        return Path(snapshot_download(name, allow_patterns=["model_index.json", *parts]))
    except HFValidationError:
        raise ValueError(f"{argument} {name!r} is neither a folder nor a Hub id such as 'owner/name'.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.TransportError) as error:
        raise ValueError(
            f"{argument} {name!r} is no folder here, and the Hugging Face Hub did not give it"
            f" ({_first_line(error)}); give {BUNDLED!r}, a folder or a Hub id."
        ) from None


def _read_index(folder: Path, name: str, argument: str) -> dict:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{argument} {name!r} has no model_index.json; give the folder of a saved pipeline."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument} {name!r} has an unreadable model_index.json ({_first_line(error)}).") from None
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
                f" {stock_class.__name__} is needed."
            )
    return index


def _parts_of(index: dict) -> dict[str, type]:
    """The parts that a pipeline of this `model_index.json` has to have; `[null, null]` there means none."""
    has_second = isinstance(index, dict) and any((index.get(part) or [None])[0] for part in SECOND_CLIP)
    return {**PARTS, **SECOND_CLIP} if has_second else PARTS


def _hash(folder: Path, name: str, argument: str) -> str:
    """The sha256 of all weights; those from the Hub are compared with what the Hub said of them.

    Over plain HTTP a download is checked for its size alone. In the cache it is a link to a file that is called by the
    sha256 which the Hub announced.
    """
    digest = hashlib.sha256()
    for path in sorted(path for part in NETWORKS for path in (folder / part).glob("*.safetensors")):
        announced = path.readlink().name if path.is_symlink() else ""
        of_file = hashlib.sha256()
        checked = re.fullmatch("[0-9a-f]{64}", announced)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                if checked:
                    of_file.update(block)
        if checked and of_file.hexdigest() != announced:
            raise ValueError(
                f"{argument} {name!r} has a damaged file {path.parent.name}/{path.name}: its sha256 is not the one"
                f" that the Hub gave; delete {path.resolve()} and it is downloaded again."
            )
    return digest.hexdigest()


def _say_if_links_are_missing() -> None:
    """Where git cannot make links, it writes text files that say where each would lead."""
    broken = [path.name for path in sorted(MODEL_FOLDER.glob("*.py")) if path.read_bytes().startswith(b"../")]
    if broken:
        logger.warning(
            f"In {MODEL_FOLDER} git wrote {' and '.join(broken)} as text files, not as links, so that diffusers"
            " cannot load the bundled model by itself and an installation of this checkout lacks its pipeline; run"
            " `git config core.symlinks true` and check out anew."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
