"""What a picture remembers of its making: everything needed to make it again, and none of the photo's pixels.

What belongs here is plain data and its JSON. Making pictures does not.
"""

from dataclasses import asdict, dataclass
from typing import Any


# of the PNG text chunk that holds a picture's record
TEXT_KEY = "blended_diffusion"


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
        invert_mask (`bool`): edit the mask's black instead of its white.
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


@dataclass(frozen=True)
class Origin:
    """A file or a model that was used.

    Attributes:
        name (`str`): its absolute path, or a model's name.
        sha256 (`str`): of the file, or of a model's weights.
    """

    name: str
    sha256: str


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

    def differences(self, other: "MadeWith") -> list[str]:
        """The names of what `other` has otherwise."""
        return [name for name, value in asdict(self).items() if getattr(other, name) != value]


@dataclass(frozen=True)
class Record:
    """How one picture was made.

    Attributes:
        settings (`EditSettings`): with the model's defaults filled in.
        photo, mask, model (`Origin`): what it was made from; without a mask all of the photo was edited.
        seed (`int`): the picture's own.
        batch (`list[int]`): the seeds of all pictures computed together with it, in their order: rounding depends on
            how many they are.
        clip_distance (`float`): lower is better.
        made_with (`MadeWith`): on what.
    """

    settings: EditSettings
    photo: Origin
    mask: Origin | None
    model: Origin
    seed: int
    batch: list[int]
    clip_distance: float
    made_with: MadeWith


@dataclass(frozen=True)
class Run:
    """What one folder of results is about.

    Attributes:
        settings, photo, mask, model, made_with: as in [`Record`].
        seed (`int`): of the first picture; the following count on.
        batch_size (`int`): how many pictures were to be computed together.
        stem (`str`): part of the pictures' names.
        film (`str`, *optional*): the format of each picture's film.
        strip (`int`, *optional*): how many steps of its making to show side by side.
        assets (`bool`): whether to write what the model saw and made.
        batches (`list[list[int]]`): the seeds of the pictures that are computed together, smaller than `batch_size`
            where memory ran out.
    """

    settings: EditSettings
    photo: Origin
    mask: Origin | None
    model: Origin
    seed: int
    batch_size: int
    stem: str
    film: str | None
    assets: bool
    batches: list[list[int]]
    made_with: MadeWith
    strip: int | None = None

    @property
    def seeds(self) -> list[int]:
        return [seed for batch in self.batches for seed in batch]

    def differences(self, other: "Run | Record") -> list[str]:
        """The names of what `other` wants otherwise.

        Of files and models the contents count, not where they are. Machines and the number of pictures may differ.
        """
        ours, theirs = _wishes(self), _wishes(other)
        return [name for name, value in ours.items() if name in theirs and theirs[name] != value]


def _wishes(thing: Run | Record) -> dict[str, Any]:
    wishes = asdict(thing)
    for name in ("photo", "mask", "model"):
        wishes[name] = wishes[name] and wishes[name]["sha256"]
    per_picture = ("seed", "batch", "clip_distance") if isinstance(thing, Record) else ("batches",)
    for name in ("made_with", *per_picture):
        del wishes[name]
    return {**wishes.pop("settings"), **wishes}


def to_json(record: Record | Run, indent: int | None = None) -> str:
    """ASCII JSON; reading it back gives an equal object."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(record)).dump_json(record, indent=indent, ensure_ascii=True).decode()


def from_json(kind: type, text: str | bytes) -> Any:
    """The [`Record`] or [`Run`] that `text` describes.

    Raises:
        ValueError: `text` is not JSON, or something is missing or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
