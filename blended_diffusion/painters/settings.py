"""What can be wanted of an edit.

What belongs here is plain data. Making pictures does not.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EditSettings:
    """What is wanted of an edit. `None` stands for the model's own default.

    Attributes:
        prompt (`str`): what the masked region should show; the empty one means no guidance.
        negative_prompt (`str`, *optional*): what it should not show.
        num_inference_steps (`int`, *optional*), strength (`float`, *optional*), clip_guidance_scale (`float`,
        *optional*), range_guidance_scale (`float`, *optional*), num_augmentations (`int`, *optional*),
        guidance_gradient (`str`, *optional*), blend (`bool`), background_mse_scale (`float`),
        background_lpips_scale (`float`), enforce_background (`bool`), match_release (`bool`), ranking (`str`),
        candidate_labels (`list[str]`, *optional*):
            the pipeline's arguments of these names.
        ddim (`bool`): take the steps with DDIM.
        scheduler (`str`, *optional*): the class name of the scheduler to take the steps with; one that diffusers calls
            compatible with the model's own.
        size (`int`, *optional*): the width and height of the square that is painted; the model's own if left out.
        guidance_scale (`float`, *optional*): classifier-free guidance, of networks that understand words.
        fit_decoder (`bool`): fit the autoencoder's decoder to the photo, for seams: see [`decode_fitted`].
        invert_mask (`bool`): edit the mask's black instead of its white.
        mask_is_change_map (`bool`): the mask's greys say how much of the way a pixel may change: see [`ChangeMap`].
        context (`float`): margin of the square round the mask, as a share of the mask's longer side.
        feather (`float`, *optional*): over how many of the photo's pixels inside the mask's edge the edit fades in.
            `None` takes the width of one of the model's pixels.
        initial_mask_growth (`float`, *optional*): how far the mask of the first step reaches past the wanted one, as a
            share of the window's width; it shrinks to it over the steps. `None` chooses it: see [`growth_of`].
        detail (`int`): refine the edit at this many times the model's size, by overlapping windows; 1 does not.
        match_grain (`bool`): give what is enlarged the grain that the photo has round the mask.
        prompt_templates (`bool`): average the prompt over several phrasings.
        typographic_defence (`float`): weight against looking like the written word; 0 is none.
        object_scale (`float`): weight, in the ranking, against objects too small or too big for the mask; 0 is none.
        region_prompts (`list[str]`, *optional*): what each region of a mask of several regions should show; `prompt`
            is then their title.
        prompt_to (`str`, *optional*), prompt_blend (`float`): go this share, in [0, 1], of the way from `prompt` to
            the words `prompt_to`.
    """

    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    strength: float | None = None
    clip_guidance_scale: float | None = None
    range_guidance_scale: float | None = None
    num_augmentations: int | None = None
    guidance_gradient: str | None = None
    blend: bool = True
    background_mse_scale: float = 0.0
    background_lpips_scale: float = 0.0
    enforce_background: bool = True
    match_release: bool = False
    ranking: str = "surroundings"
    candidate_labels: list[str] | None = None
    ddim: bool = False
    invert_mask: bool = False
    mask_is_change_map: bool = False
    context: float = 0.25
    feather: float | None = None
    initial_mask_growth: float | None = 0.0
    detail: int = 1
    match_grain: bool = True
    prompt_templates: bool = False
    typographic_defence: float = 0.0
    object_scale: float = 0.0
    region_prompts: list[str] | None = None
    prompt_to: str | None = None
    prompt_blend: float = 0.0
    scheduler: str | None = None
    size: int | None = None
    guidance_scale: float | None = None
    fit_decoder: bool = False
