"""The README.md of a converted folder.

Belongs here: what a reader of the model's page needs. Does not: anything computed.
"""

from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCardData

from .architecture import ASSUMED, Architecture
from .presets import PRESETS


def model_card(architecture: Architecture, preset: str | None, file_name: str, clip: str, half: bool) -> str:
    """
    The model card, Hub metadata first.

    Args:
        architecture ([`Architecture`]): Of the checkpoint.
        preset (`str`, *optional*): Its preset.
        file_name (`str`): Of the checkpoint.
        clip (`str`): The CLIP it is paired with, Hub id or folder.
        half (`bool`): Whether the weights are in half precision.

    Returns:
        `str`: Markdown.
    """
    published = PRESETS[preset] if preset else None
    is_hub_id = not Path(clip).exists()
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=published.license if published else None,
        base_model=clip if is_hub_id else None,
        tags=[
            "blended-diffusion",
            "guided-diffusion",
            "clip",
            "image-editing",
            "arxiv:2111.14818",
            "arxiv:2105.05233",
        ],
    )
    origin = f"converted from `{file_name}`"
    if published:
        origin += f" ([{preset}]({published.source}), trained on {published.data})"
    values = asdict(architecture)
    if not architecture.class_cond:
        del values["num_classes"]
    flags = "\n".join(f"| `{name}` | `{value}` |" for name, value in values.items())
    rights = (
        f"The licence of the weights is that of [their authors]({published.source})."
        if published
        else "The licence of the weights is that of the checkpoint."
    )
    untold = ", ".join(f"`{name}`" for name in ASSUMED)
    assumed = "" if published else f"\nA checkpoint does not tell {untold}; they are as given or assumed.\n"
    clip_link = f"[{clip}](https://huggingface.co/{clip})" if is_hub_id else "the one in `clip_model/`"
    dtype = ", dtype=torch.float16" if half else ""
    return f"""---
{metadata.to_yaml()}
---

# {preset or Path(file_name).stem} for Blended Diffusion

Text-driven editing of a region of a photo, [Blended Diffusion](https://arxiv.org/abs/2111.14818), at
{architecture.image_size}×{architecture.image_size} pixels. The UNet is {origin}; CLIP is {clip_link}.

```py
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image

folder = "path/to/this/folder"
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True{dtype})
result = pipe(
    "a red rose",
    image=load_image("photo.png"),
    mask_image=load_image("mask.png"),  # white = edit here
    num_images_per_prompt=4,
    generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
)
result.images[result.ranking[0]].save("edited.png")
```

The network computes what guided-diffusion's does, with diffusers' own `UNet2DModel`.

| guided-diffusion flag | value |
|---|---|
{flags}
{assumed}
{rights}
"""
