"""guided-diffusion's own UNet, from the test-only package that carries it, and the published networks in small."""

import math
from dataclasses import replace

import pytest
import torch

from blended_diffusion.checkpoints import PRESETS, Architecture, key_map


def small(preset: str, **changes) -> Architecture:
    """The architecture of a published checkpoint at an eighth of its width or less."""
    published = PRESETS[preset].architecture
    changes = {
        "num_channels": 32,
        "num_head_channels": 32 if published.num_head_channels > 0 else -1,
        "num_classes": 5 if published.class_cond else 1000,
        **changes,
    }
    return replace(published, **changes)


# the fold only fits the real width, so these are small in depth
_512 = {"num_channels": 256, "channel_mult": (0.5, 0.5), "attention_resolutions": (256,), "num_res_blocks": 1}

SMALL: dict[str, Architecture] = {
    "64": small("64x64_diffusion"),
    "128": small("128x128_diffusion", num_res_blocks=1),
    "256": small("256x256_diffusion"),
    "256 unconditional": small("256x256_diffusion_uncond"),
    "512": small("512x512_diffusion", **_512),
    "512 unconditional": small("512x512_diffusion_uncond_finetune_008100", **_512),
    "LSUN": small("lsun_bedroom"),
    "FFHQ": small("ffhq_10m"),
    "pixel art": small("pixel_art_diffusion_hard_256"),
    "three channels": small("ffhq_10m", learn_sigma=False),
    "plain convolutions": small("64x64_diffusion", resblock_updown=False, num_res_blocks=1),
    "no scale and shift": small("64x64_diffusion", use_scale_shift_norm=False, num_res_blocks=1),
    "wide first level": small("ffhq_10m", channel_mult=(2, 1), attention_resolutions=(128,)),
}


def random_state(architecture: Architecture) -> dict[str, torch.Tensor]:
    """A state dict of the network with nothing but noise in it."""
    torch.manual_seed(0)
    return {entry.name: 0.05 * torch.randn(entry.shape) for entry in key_map(architecture)}


def reference_unet(architecture: Architecture, seed: int = 0, device: str = "cpu") -> torch.nn.Module:
    """The network with random weights everywhere, the layers that training starts at zero included."""
    pytest.importorskip("guided_diffusion", reason="guided-diffusion-sdk carries it")
    from benchmarks.reference import reference_network

    with torch.device(device):
        model = reference_network(architecture)
    if device != "meta":
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.7 / math.sqrt(parameter[0].numel()), generator=generator)
                else:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
