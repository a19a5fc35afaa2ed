"""What a CLIP says of pictures that a network without one has painted.

What belongs here asks of a CLIP of anybody's choice the question that Blended Diffusion's own pictures are ranked by.
"""

from collections.abc import Sequence

import PIL.Image
import torch
from torchvision.transforms.functional import pil_to_tensor

from blended_diffusion.inpainting_models import RankingClip
from pipeline_blended_diffusion import BlendedDiffusionPipeline


@torch.no_grad()
def clip_distances(
    clip: RankingClip,
    images: Sequence[PIL.Image.Image],
    mask: PIL.Image.Image,
    prompt: str,
    ranking: str,
    candidate_labels: Sequence[str] | None = None,
) -> list[float]:
    """How badly each picture fits its words and its surroundings.

    Args:
        clip ([`RankingClip`]): where it is.
        images (`Sequence[PIL.Image.Image]`): of mode `RGB` and one size.
        mask (`PIL.Image.Image`): of mode `L` and that size, 255 = painted.
        prompt (`str`): what the painted region should show.
        ranking (`str`): `"surroundings"` as [`BlendedDiffusionPipeline.surroundings_distance`] has it, or `"region"`
            as [`BlendedDiffusionPipeline.clip_distance`] does.
        candidate_labels (`Sequence[str]`, *optional*): other things that it could be taken for; not for `"region"`.

    Returns:
        `list[float]`: lower is better.
    """
    looking = BlendedDiffusionPipeline(
        unet=None,
        scheduler=None,
        clip_model=clip.model,
        tokenizer=clip.tokenizer,
        feature_extractor=clip.feature_extractor,
    )
    device = clip.model.device
    pixels = torch.stack([pil_to_tensor(image) for image in images]).to(device).float() / 255
    region = pil_to_tensor(mask).to(device).float()[None].expand(len(images), -1, -1, -1) / 255
    words = looking.encode_prompt([prompt]).expand(len(images), -1)
    if ranking == "region":
        return looking.clip_distance(pixels, region, words).tolist()
    labels = looking.encode_prompt(list(candidate_labels)) if candidate_labels else None
    return looking.surroundings_distance(pixels, region, words, labels).tolist()
