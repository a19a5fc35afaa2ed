"""Where a model's files are and whether they are whole: folders, the Hugging Face Hub, hashes.

What belongs here is files. Making pipelines of them belongs to `models` and `inpainting_models`.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx

from blended_diffusion.demo import MODEL_FOLDER


BUNDLED = "bundled"
IN_THE_BOX = {BUNDLED: MODEL_FOLDER}
HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.TransportError)


@dataclass(frozen=True)
class ModelPart:
    """Something that a model is put together from, by which a record knows it again.

    Attributes:
        kind (`str`): `"network"`, `"upscaler"`, `"lora"` or `"clip"` (which ranks).
        name (`str`): of the network in the pipeline; else a folder's or file's path, or a Hub id.
        sha256 (`str`): of its weights.
        weight (`float`, *optional*): how much of a LoRA is added.
    """

    kind: str
    name: str
    sha256: str
    weight: float | None = None


def find_folder(name: str, argument: str, patterns: list[str]) -> Path:
    """The folder that is called `name`, or what the Hub has of these patterns under that name, downloaded if need be.

    Raises:
        ValueError: there is none, or it is a file.
    """
    if name in IN_THE_BOX:
        return IN_THE_BOX[name]
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ValueError(
            f"{argument} {name!r} is a file; give a model's folder (`blended-diffusion convert` makes one of a"
            " guided-diffusion checkpoint)."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError:
        raise ValueError(f"{argument} {name!r} is neither a folder nor a Hub id such as 'owner/name'.") from None
    except HUB_ERRORS as error:
        raise not_given(name, argument, error) from None


def not_given(name: str, argument: str, error: Exception) -> ValueError:
    """What to say when the Hub did not give a model."""
    return ValueError(
        f"{argument} {name!r} is no folder here, and the Hugging Face Hub did not give it ({first_line(error)}); give"
        f" {BUNDLED!r}, a folder or a Hub id."
    )


def read_index(folder: Path, name: str, argument: str) -> Any:
    """What a saved pipeline's `model_index.json` says; nothing of it has been checked.

    Raises:
        ValueError: there is none, or it is no JSON.
    """
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{argument} {name!r} has no model_index.json; give the folder of a saved pipeline."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument} {name!r} has an unreadable model_index.json ({first_line(error)}).") from None


def weights_of(folder: Path, part: str) -> list[Path]:
    """The files that hold the weights of one part of a saved pipeline."""
    return sorted((folder / part).glob("*.safetensors"))


def hash_files(paths: Iterable[Path], name: str, argument: str) -> str:
    """The sha256 of all these files together; those from the Hub are compared with what the Hub said of them.

    Over plain HTTP a download is checked for its size alone. In the cache it is a link to a file that is called by the
    sha256 which the Hub announced.

    Raises:
        ValueError: a file is not what the Hub announced.
    """
    digest = hashlib.sha256()
    for path in paths:
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


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
