"""One edit with each of several prompts: to choose among words as well as among seeds.

What belongs here makes those edits and lays their pictures on one sheet.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import PIL.Image
from diffusers.utils import make_image_grid

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.canvas import from_near
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of


# of the sheet: the longer side of a picture, and how many of each prompt are shown
SIDE, SHOWN = 256, 8


def over_prompts(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None,
    settings: EditSettings,
    prompts: Sequence[str],
    name: str = "",
) -> dict[str, Edited]:
    """The same edit with each of `prompts`; a folder's edits are called `01_red_rose` and so on.

    Args:
        editor, image, mask, name: as in [`Editor.edit`].
        settings ([`EditSettings`]): whose prompt does not count.
        prompts (`Sequence[str]`): all different.

    Returns:
        `dict[str, Edited]` in the order of `prompts`.

    Raises:
        ValueError: a prompt is there twice.
    """
    for number, prompt in enumerate(prompts):
        if prompt in prompts[:number]:
            raise ValueError(f"prompt {prompt!r} is given twice; give each once.")
    prefix = f"{name}/" if name else ""
    return {
        prompt: editor.edit(image, mask, replace(settings, prompt=prompt), prefix + folder_of(prompt, number))
        for number, prompt in enumerate(prompts, start=1)
    }


def folder_of(prompt: str, number: int) -> str:
    """What the folder of a prompt is called, such as `01_red_rose`."""
    words = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:40]
    return f"{number:02d}_{words}" if words else f"{number:02d}"


def sheet_of_prompts(
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None,
    edits: dict[str, Edited],
    context: float = EditSettings.context,
) -> PIL.Image.Image:
    """A row for each prompt, its pictures best first, the region from near.

    Args:
        image (`PIL.Image.Image` or [`Photo`]), mask (`PIL.Image.Image` or [`Mask`], *optional*): what was edited.
        edits (`dict[str, Edited]`): as from [`over_prompts`].
        context (`float`): margin round the mask, as a share of its longer side.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    photo = picture_of(image)
    view, size = from_near(photo, None if mask is None else picture_of(mask), context, SIDE)
    columns = min(SHOWN, max(len(edit.images) for edit in edits.values()))
    rows = []
    for prompt, edit in edits.items():
        tiles = [
            gallery.tile(
                picture.convert("RGB").crop(view).resize(size, PIL.Image.Resampling.LANCZOS),
                size,
                prompt if number == 0 else f"seed {seed}",
                best=number == 0,
            )
            for number, (picture, seed) in enumerate(zip(edit.images, edit.seeds, strict=True))
        ][:columns]
        rows += tiles + [PIL.Image.new("RGB", tiles[0].size, gallery.PAPER)] * (columns - len(tiles))
    return gallery.titled(make_image_grid(rows, len(edits), columns), "each prompt's pictures, best first")
