"""Published guided-diffusion checkpoints by file name: what a state dict cannot tell and where each comes from.

Belongs here: facts about published files. Does not: any rule.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from .architecture import Architecture


# the CLIP the released editor guides with
DEFAULT_CLIP = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class Preset:
    """
    A published checkpoint.

    Args:
        architecture ([`Architecture`]): As its authors give it.
        data (`str`): What it was trained on.
        source (`str`): Address of its authors' page.
        license (`str`, *optional*): The Hub's name of its licence, where its authors state one.
    """

    architecture: Architecture
    data: str
    source: str
    license: str | None = None


_OPENAI = "https://github.com/openai/guided-diffusion"
_CROWSON = "https://github.com/crowsonkb/guided-diffusion"
_ILVR = "https://github.com/jychoi118/ilvr_adm"
_KALIYUGA = "https://huggingface.co/KaliYuga"

_256 = Architecture(
    image_size=256,
    num_channels=256,
    num_res_blocks=2,
    channel_mult=(1, 1, 2, 2, 4, 4),
    attention_resolutions=(32, 16, 8),
    num_head_channels=64,
    resblock_updown=True,
    learn_sigma=True,
)
_64 = replace(
    _256,
    image_size=64,
    num_channels=192,
    num_res_blocks=3,
    channel_mult=(1, 2, 3, 4),
    class_cond=True,
    dropout=0.1,
    noise_schedule="cosine",
    use_new_attention_order=True,
)
_128 = replace(_256, image_size=128, channel_mult=(1, 1, 2, 3, 4), num_heads=4, num_head_channels=-1, class_cond=True)
_512 = replace(_256, image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4))
_LSUN = replace(_256, dropout=0.1)
_FACES = replace(_256, num_channels=128, num_res_blocks=1, attention_resolutions=(16,))
_PIXEL_ART = replace(
    _256,
    num_channels=128,
    attention_resolutions=(16,),
    num_heads=1,
    num_head_channels=-1,
    resblock_updown=False,
    use_scale_shift_norm=False,
)

PRESETS: dict[str, Preset] = {
    "64x64_diffusion": Preset(_64, "ImageNet", _OPENAI, "mit"),
    "128x128_diffusion": Preset(_128, "ImageNet", _OPENAI, "mit"),
    "256x256_diffusion": Preset(replace(_256, class_cond=True), "ImageNet", _OPENAI, "mit"),
    "256x256_diffusion_uncond": Preset(_256, "ImageNet", _OPENAI, "mit"),
    "512x512_diffusion": Preset(replace(_512, class_cond=True), "ImageNet", _OPENAI, "mit"),
    "512x512_diffusion_uncond_finetune_008100": Preset(_512, "ImageNet", _CROWSON),
    "lsun_bedroom": Preset(_LSUN, "LSUN bedroom", _OPENAI, "mit"),
    "lsun_cat": Preset(_LSUN, "LSUN cat", _OPENAI, "mit"),
    "lsun_horse": Preset(_LSUN, "LSUN horse", _OPENAI, "mit"),
    "lsun_horse_nodropout": Preset(replace(_LSUN, dropout=0.0), "LSUN horse", _OPENAI, "mit"),
    "ffhq_10m": Preset(_FACES, "FFHQ", _ILVR),
    "afhq_dog_4m": Preset(_FACES, "AFHQ dog", _ILVR),
    "pixel_art_diffusion_hard_256": Preset(_PIXEL_ART, "pixel art", _KALIYUGA),
    "pixel_art_diffusion_soft_256": Preset(_PIXEL_ART, "pixel art", _KALIYUGA),
    "pixelartdiffusion4k": Preset(_PIXEL_ART, "pixel art", _KALIYUGA),
    "PADexpanded": Preset(_PIXEL_ART, "pixel art", _KALIYUGA),
    "watercolordiffusion": Preset(_PIXEL_ART, "watercolours", _KALIYUGA),
    "watercolordiffusion_2": Preset(_PIXEL_ART, "watercolours", _KALIYUGA),
    "PulpSciFiDiffusion": Preset(_PIXEL_ART, "pulp science fiction covers", _KALIYUGA),
}


def find_preset(checkpoint: Path, name: str | None = None) -> str | None:
    """
    The name of the preset of a checkpoint: the one asked for or, by the file's name, a published one.

    Raises:
        `ValueError`: If the preset asked for does not exist.
    """
    if name is not None and name not in PRESETS:
        raise ValueError(f"preset={name!r} is not known; use one of {', '.join(PRESETS)}.")
    return name or (checkpoint.stem if checkpoint.stem in PRESETS else None)
