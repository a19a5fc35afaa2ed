"""Tensors in files: reading a checkpoint without trusting it, writing one tensor at a time, all or nothing.

Belongs here: formats, memory, atomic replacement. Does not: what the tensors mean.
"""

import json
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a `.pt` or `.safetensors` file, mapped from it, so that they take memory only while they are used.

    Raises:
        `ValueError`: If it is no such file, is damaged, holds anything but tensors or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a .pt or .safetensors checkpoint.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole .safetensors file ({error}); download it again.") from None
    if path.suffix not in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(f"{path} ends in {path.suffix!r}; expected a .pt or .safetensors checkpoint.")

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # as torch has saved since 1.6; older files cannot be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"asks for {asked[1]}" if asked else "torch has not written"
        raise ValueError(
            f"{path} holds a pickle that {found}; nothing of it was executed, and only a state dict of tensors is"
            " accepted."
        ) from None
    except Exception as error:  # damaged bytes can break the reader anywhere
        told = isinstance(error, (RuntimeError, OSError))
        reason = str(error).partition("\n")[0].partition(". ")[0] if told else "it is cut short or of another kind"
        raise ValueError(f"{path} is not a whole .pt file ({reason}); download it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict, tensors by name.")
    others = [
        str(key) for key, value in content.items() if not isinstance(value, torch.Tensor) or not isinstance(key, str)
    ]
    if others:
        raise ValueError(
            f"{path} holds {', '.join(others[:3])} that {'is' if len(others) == 1 else 'are'} not tensors; expected a"
            " plain state dict, so save the model's own state dict out of a training checkpoint first."
        )
    return content


# names as in the safetensors format
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(path: Path, layout: Mapping[str, torch.Tensor], tensor: Callable[[str], torch.Tensor]) -> None:
    """
    Writes a safetensors file tensor by tensor; `safetensors.torch.save_file` wants all of them in memory.

    Args:
        path (`Path`): The file.
        layout (`Mapping[str, torch.Tensor]`): Names, shapes and dtypes, on the meta device.
        tensor (`Callable[[str], torch.Tensor]`): Gives the tensor of a name.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, meta in layout.items():
        end = offset + meta.numel() * meta.element_size()
        header[name] = {"dtype": FLOATS[meta.dtype], "shape": list(meta.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in layout:
            file.write(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_sharded(
    folder: Path, layout: Mapping[str, torch.Tensor], tensor: Callable[[str], torch.Tensor], max_shard_size: int | str
) -> None:
    """Writes a model's weights into `folder` under diffusers' names, in shards of at most `max_shard_size`."""
    from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME

    split = split_torch_state_dict_into_shards(
        dict(layout),
        max_shard_size=max_shard_size,
        filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
    )
    for filename, names in split.filename_to_tensors.items():
        write_safetensors(folder / filename, {name: layout[name] for name in names}, tensor)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def read_sharded(folder: Path) -> dict[str, torch.Tensor]:
    """
    The weights of a model's folder, mapped from its safetensors files.

    Raises:
        `ValueError`: If there are none or one is damaged.
    """
    files = [folder / "diffusion_pytorch_model.safetensors"]
    if not files[0].exists():
        files = sorted(folder.glob("diffusion_pytorch_model-*-of-*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} holds no diffusion_pytorch_model.safetensors; expected a converted folder's unet/."
        )
    return {name: value for file in files for name, value in read_tensors(file).items()}


@contextmanager
def replacing(output: str | Path, overwrite: bool) -> Iterator[Path]:
    """
    A path beside `output` that takes its place when the block ends well and leaves nothing behind when it does not.

    Raises:
        `ValueError`: If `output` exists (an empty folder does not count) and is not to be overwritten.
    """
    output = Path(output).resolve()
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ValueError(f"output={str(output)!r} is a folder with files in it; name another or set overwrite.")
        if not (output / "model_index.json").exists():
            raise ValueError(
                f"output={str(output)!r} is a folder without a model_index.json; only a pipeline's folder is"
                " overwritten."
            )
    elif output.is_file() and not overwrite:
        raise ValueError(f"output={str(output)!r} exists; name another or set overwrite.")
    mark = uuid.uuid4().hex[:8]
    partial = output.with_name(f".{output.name}.{mark}.partial")
    replaced = output.with_name(f".{output.name}.{mark}.replaced")
    try:
        yield partial
        if output.exists():
            output.rename(replaced)
        partial.rename(output)
    except BaseException:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        _remove(partial)
        raise
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
