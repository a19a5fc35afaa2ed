"""guided-diffusion weights ↔ `UNet2DModel`.

Belongs here: everything about checkpoints in OpenAI's guided-diffusion layout. Does not: the method, anything about
pictures, and the command line, which is `commands.convert`.

`architecture` and `presets` say what a network is, `stock_unet` where its weights lie in diffusers' classes,
`tensor_files` reads and writes, `conversion` puts these together.
"""

import importlib
from typing import Any

from .architecture import Architecture, infer_architecture
from .presets import PRESETS, Preset


# these need torch, which the command line's --help should not wait for
_HEAVY = {
    "convert": "conversion",
    "load_clip_in_full_precision": "conversion",
    "recorded_architecture": "conversion",
    "to_guided_diffusion": "conversion",
    "key_map": "stock_unet",
    "scheduler_config": "stock_unet",
    "unet_config": "stock_unet",
}

__all__ = ["PRESETS", "Architecture", "Preset", "infer_architecture", *_HEAVY]


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HEAVY[name]}"), name)
