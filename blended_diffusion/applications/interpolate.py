"""The way from one prompt to another in pictures: one noise, and words that turn from the one into the other.

What belongs here chooses the frames. How prompts are blended is `prompts`' business.
"""

from dataclasses import replace

import PIL.Image

from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo


def interpolate(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None,
    settings: EditSettings | str,
    prompt_to: str,
    frames: int = 9,
) -> list[PIL.Image.Image]:
    """Edits one region with prompts evenly apart on the great circle between two, each frame with the same noise.

    Each frame is an edit; their names are `frame_000`, `frame_001` …

    Args:
        editor ([`Editor`]): makes the frames. Of its seeds the one with the lowest mean CLIP distance over all frames
            is taken.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image` or [`Mask`], *optional*): of mode `L` and the picture's size, 255 = edit, 0 = keep.
        settings ([`EditSettings`] or `str`): of the first frame, or just its prompt.
        prompt_to (`str`): the last frame's prompt.
        frames (`int`): how many, at least 2.

    Returns:
        `list[PIL.Image.Image]`: the frames, of the size and mode of `image`.

    Raises:
        ValueError: one of the prompts is empty, or there are less than two frames.
    """
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    if frames < 2:
        raise ValueError(f"frames {frames}: from one prompt to another it takes at least 2; give such a number.")
    check_prompts(settings.prompt, prompt_to)
    photo, region = image, mask
    if not isinstance(image, Photo):
        photo = editor.keep_photo(image, "")
    if mask is not None and not isinstance(mask, Mask):
        region = editor.keep_mask(mask, "")
    made = []
    for index in range(frames):
        of_frame = replace(settings, prompt_to=prompt_to, prompt_blend=index / (frames - 1))
        made.append(editor.edit(photo, region, of_frame, f"frame_{index:03d}"))
    distances = [dict(zip(frame.seeds, frame.clip_distances, strict=True)) for frame in made]
    seed = min(editor.seeds, key=lambda seed: sum(frame[seed] for frame in distances))
    return [frame.images[frame.seeds.index(seed)] for frame in made]


def check_prompts(prompt: str, prompt_to: str) -> None:
    """Raises a `ValueError` if there is nothing to go from or to."""
    if "" in (prompt, prompt_to):
        raise ValueError(f"from {prompt!r} to {prompt_to!r} there is no way; give words for both ends.")
