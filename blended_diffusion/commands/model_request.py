"""Which model a command asks for, in words that can be sent to another process.

What belongs here is plain data. Loading belongs to `running`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRequest:
    """A model, what is loaded beside it, and how it is to save memory.

    Attributes:
        name, clip, loras, upscaler, trust_remote_code: as in [`~blended_diffusion.models.load_model`].
        offload (`str`, *optional*): `"model"` or `"sequential"`, as diffusers' pipelines do it.
        gradient_checkpointing (`bool`), vae_tiling (`bool`), vae_slicing (`bool`): as in
            [`~blended_diffusion.painters.memory.MemorySaving`].
    """

    name: str
    clip: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    upscaler: str | None = None
    trust_remote_code: bool = False
    offload: str | None = None
    gradient_checkpointing: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
