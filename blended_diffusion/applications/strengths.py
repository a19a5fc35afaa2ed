"""One edit at several strengths: to see how much of what is there stays, and from where on the words win.

What belongs here makes those edits and lays their best pictures side by side.
"""

from collections.abc import Sequence
from dataclasses import replace

import PIL.Image
from diffusers.utils import make_image_grid

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.canvas import from_near
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of


def over_strengths(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None,
    settings: EditSettings | str,
    strengths: Sequence[float],
    name: str = "",
) -> dict[float, Edited]:
    """The same edit at each of `strengths`; a folder's edits are called `strength_0.5` and so on.

    Args:
        editor, image, mask, settings, name: as in [`Editor.edit`].
        strengths (`Sequence[float]`): shares of the way from noise to picture, above 0 and at most 1.

    Returns:
        `dict[float, Edited]` in the order of `strengths`.
    """
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    prefix = f"{name}/" if name else ""
    return {
        strength: editor.edit(image, mask, replace(settings, strength=strength), f"{prefix}strength_{strength:g}")
        for strength in strengths
    }


def strip_of_strengths(
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None,
    edits: dict[float, Edited],
    title: str,
    context: float = EditSettings.context,
) -> PIL.Image.Image:
    """What was started from and the best picture of each strength side by side, the region from near.

    Args:
        image (`PIL.Image.Image` or [`Photo`]), mask (`PIL.Image.Image` or [`Mask`], *optional*): what was edited.
        edits (`dict[float, Edited]`): as from [`over_strengths`].
        title (`str`): the words that were wanted.
        context (`float`): margin round the mask, as a share of its longer side.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    photo = picture_of(image)
    view, size = from_near(photo, None if mask is None else picture_of(mask), context, 256)
    shown = {"start": photo} | {f"{strength:g}": edit.best for strength, edit in edits.items()}
    tiles = [
        gallery.tile(picture.convert("RGB").crop(view).resize(size, PIL.Image.Resampling.LANCZOS), size, label)
        for label, picture in shown.items()
    ]
    return gallery.titled(make_image_grid(tiles, 1, len(tiles)), title, "strength")
