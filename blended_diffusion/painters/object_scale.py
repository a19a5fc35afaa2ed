"""Whether the object of an edit is of the size its mask asks for, by CLIP's own sense of small and big.

What belongs here looks at finished candidates, after the method has ranked them. It guides nothing.
"""

import PIL.Image
import torch

from pipeline_blended_diffusion import BlendedDiffusionPipeline


# in a photo of its own size the mask is most of what CLIP sees, so that an object which misses it looks small, and one
# of which the mask shows a part looks big
SCALE_TEMPLATES = ("small {}", "big {}")


@torch.no_grad()
def scale_penalties(
    pipe: BlendedDiffusionPipeline, images: list[PIL.Image.Image], mask: PIL.Image.Image, prompt: str
) -> list[float]:
    """How much better than by the prompt itself each picture is described by "small …" or "big …".

    −log p(prompt) among the prompt and [`SCALE_TEMPLATES`], by CLIP's temperature, as in its zero-shot classification
    (Radford et al. 2021): seen over the region and the whole picture, plain and warped
    ([`BlendedDiffusionPipeline.surroundings_distance`]).

    Args:
        pipe ([`BlendedDiffusionPipeline`]): whose CLIP looks.
        images (`list[PIL.Image.Image]`): the squares as the model made them.
        mask (`PIL.Image.Image`): of their size, white where the object should be.
        prompt (`str`): the object, as a name: "rock", not "a photo of a rock".

    Returns:
        `list[float]`: one for each picture, at least 0.
    """
    pictures = torch.cat([pipe.prepare_image(image) for image in images])
    weights = pipe.prepare_mask(mask, 0.5, False).expand(len(images), -1, -1, -1)
    text_embeds = pipe.encode_prompt([prompt]).expand(len(images), -1)
    labels = pipe.encode_prompt([template.format(prompt) for template in SCALE_TEMPLATES])
    return pipe.surroundings_distance(pictures, weights, text_embeds, labels).tolist()
