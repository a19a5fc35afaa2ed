"""The software and the machine that a picture was made with, on which its last bits depend.

What belongs here is what pictures remember of them. Asking for devices and number formats belongs to `machine`.
"""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from blended_diffusion import __version__


if TYPE_CHECKING:
    from torch import device as TorchDevice
    from torch import dtype as TorchDtype


@dataclass(frozen=True)
class MadeWith:
    """The software and the machine, on which the rounding of a picture depends.

    Attributes:
        blended_diffusion, torch, diffusers, transformers, python (`str`): versions.
        device (`str`), device_name (`str`): the kind, such as `"cuda"`, and the model.
        dtype (`str`): the number format of the networks.
        threads (`int`): of torch on the CPU.
        gradient_checkpointing (`bool`), clip_chunk_size (`int`, *optional*): how memory was saved, which may change
            the order of sums.
        vae_tiling (`bool`), vae_slicing (`bool`): likewise, in an autoencoder.
    """

    blended_diffusion: str
    torch: str
    diffusers: str
    transformers: str
    python: str
    device: str
    device_name: str
    dtype: str
    threads: int
    gradient_checkpointing: bool = False
    clip_chunk_size: int | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False

    @classmethod
    def on(cls, device: "TorchDevice", dtype: "TorchDtype") -> "MadeWith":
        """What the pictures made on this machine have to remember of it."""
        import torch

        return cls(
            blended_diffusion=__version__,
            torch=version("torch"),
            diffusers=version("diffusers"),
            transformers=version("transformers"),
            python=platform.python_version(),
            device=device.type,
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )

    def differences(self, other: "MadeWith") -> list[str]:
        """The names of what `other` has otherwise."""
        return [name for name, value in asdict(self).items() if getattr(other, name) != value]
