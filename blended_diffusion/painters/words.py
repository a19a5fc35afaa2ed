"""What CLIP is given for the words: several phrasings averaged, and the written word as something to be told from.

What belongs here makes text embeddings for the pipeline's `…_embeds` arguments. How they guide is the pipeline's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from scipy.spatial import geometric_slerp

from pipeline_blended_diffusion import BlendedDiffusionPipeline


# without articles, so that they fit names of one thing, of several, and of what cannot be counted
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture that shows {}",
    "{} in a photo",
    "a clear close view of {}",
    "{} in its surroundings",
    "a well lit photo of {}",
    "a snapshot of {}",
)

# what a region shows that fools CLIP with letters
WRITTEN = (
    'the word "{}" written as text',
    'a sign that says "{}"',
    'the letters of "{}" printed in a row',
    'a handwritten note that reads "{}"',
)


def averaged_embeds(
    pipe: BlendedDiffusionPipeline, prompt: str, templates: tuple[str, ...] = TEMPLATES
) -> torch.Tensor:
    """The mean direction of a prompt's phrasings: of unit embeddings, itself a unit vector, as CLIP's authors do.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4.

    Args:
        pipe ([`BlendedDiffusionPipeline`]): whose CLIP reads them.
        prompt (`str`): what the region should show, as a name: "rock", not "a photo of a rock".
        templates (`tuple[str, …]`): phrasings with `{}` where the prompt goes.

    Returns:
        `torch.Tensor` of shape `(1, D)`, fp32. With two CLIPs each one's part is a unit vector.
    """
    with torch.no_grad():
        embeds = pipe.encode_prompt([template.format(prompt) for template in templates])
    means = [F.normalize(part, dim=-1).mean(dim=0, keepdim=True) for part in embeds.split(pipe.embed_dims, dim=-1)]
    return torch.cat([F.normalize(mean, dim=-1) for mean in means], dim=-1)


def prompt_arguments(
    pipe: BlendedDiffusionPipeline, prompt: str, prompt_templates: bool, typographic_defence: float
) -> dict[str, Any]:
    """The pipeline's arguments for a prompt.

    Args:
        pipe ([`BlendedDiffusionPipeline`]): whose CLIP reads it.
        prompt (`str`): the empty one stays what it is: no guidance.
        prompt_templates (`bool`): average over [`TEMPLATES`].
        typographic_defence (`float`): weight of the loss for looking more like the word in letters than like what it
            names; 0 is none.
    """
    if prompt == "":
        return {"prompt": prompt}
    arguments: dict[str, Any] = {"prompt": prompt}
    if prompt_templates:
        arguments = {"prompt": None, "prompt_embeds": averaged_embeds(pipe, prompt)}
    if typographic_defence:
        arguments["rival_prompt_embeds"] = averaged_embeds(pipe, prompt, WRITTEN)
        arguments["rival_guidance_scale"] = typographic_defence
    return arguments


def blended_embeds(pipe: BlendedDiffusionPipeline, prompt: str, prompt_to: str, blend: float) -> torch.Tensor:
    """The direction that lies the share `blend` of the way from one prompt's to another's, on the great circle.

    Args:
        pipe ([`BlendedDiffusionPipeline`]): whose CLIP reads them.
        prompt, prompt_to (`str`): what the region should show at 0 and at 1.
        blend (`float`): in [0, 1].

    Returns:
        `torch.Tensor` of shape `(1, D)`, fp32. With two CLIPs each one's part is a unit vector.
    """
    with torch.no_grad():
        embeds = pipe.encode_prompt([prompt, prompt_to]).double()
    ends = [F.normalize(part, dim=-1).cpu().numpy() for part in embeds.split(pipe.embed_dims, dim=-1)]
    parts = [torch.from_numpy(geometric_slerp(start, end, blend)).flatten() for start, end in ends]
    return torch.cat(parts)[None].float()
