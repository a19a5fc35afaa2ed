"""Scribble-guided editing: what somebody has roughly painted onto a photo becomes the thing that the words name.

What belongs here finds the scribble and decides what the edit starts from. How two pictures are compared is `masks`'
business, the edit the editor's.
"""

from dataclasses import replace

import PIL.Image

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.masks import from_difference, grow
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import box_of
from blended_diffusion.pictures.inputs import Photo, picture_of, profile_of


# where the shape and the colours of a scribble are still seen and its flat paint is not
SCRIBBLE_STRENGTH = 0.3

# round the scribble, as a share of its longer side: room for an outline that was not painted
MARGIN = 0.06


def scribble(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    painted: PIL.Image.Image | Photo,
    settings: EditSettings | str,
    margin: float = MARGIN,
    name: str = "",
) -> Edited:
    """Edits what differs between a photo and a painted copy of it, starting from the paint.

    Args:
        editor ([`Editor`]): makes the pictures.
        image (`PIL.Image.Image` or [`Photo`]): the photo, of mode `RGB` or `RGBA`.
        painted (`PIL.Image.Image` or [`Photo`]): the photo with something painted on it, or, transparent where nothing
            is painted, the paint alone; of the photo's size.
        settings ([`EditSettings`] or `str`): what is wanted, or just its prompt. A strength that is left out is
            [`SCRIBBLE_STRENGTH`].
        margin (`float`): of the mask round what is painted, as a share of its longer side.
        name (`str`): of this edit.

    Returns:
        [`Edited`]: outside the mask the photo's own pixels.

    Raises:
        ValueError: the sizes differ, or nothing is painted.
    """
    settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
    start, mask = start_from(editor, image, painted, margin, name)
    return editor.edit(start, mask, with_strength(settings), name)


def with_strength(settings: EditSettings) -> EditSettings:
    """The settings with a scribble's strength if they name none."""
    return settings if settings.strength is not None else replace(settings, strength=SCRIBBLE_STRENGTH)


def start_from(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    painted: PIL.Image.Image | Photo,
    margin: float = MARGIN,
    name: str = "",
    argument: str = "painted",
) -> tuple[Photo, PIL.Image.Image]:
    """The picture that an edit of a scribble starts from, and its mask: see [`scribble`].

    The picture is the photo with the paint alone put on it, so that it is the photo's own, bit for bit, wherever a
    file of the painted one has lost something.
    """
    photo, paint = picture_of(image), picture_of(painted)
    if paint.size != photo.size:
        raise ValueError(
            f"{argument} is {paint.width}×{paint.height} pixels (width×height) and the photo is"
            f" {photo.width}×{photo.height}; paint on the photo itself, at its own size."
        )
    plain = photo.convert("RGB")
    if paint.has_transparency_data:
        paint = PIL.Image.alpha_composite(plain.convert("RGBA"), paint.convert("RGBA"))
    paint = paint.convert("RGB")
    try:
        region = from_difference(plain, paint, margin=0)
    except ValueError:
        raise ValueError(f"{argument} shows what the photo shows; paint something on it.") from None
    left, top, right, bottom = box_of(region)
    mask = grow(region, max(1.0, margin * max(right - left, bottom - top)))
    start = photo.copy()
    colours = PIL.Image.composite(paint, plain, region)
    if photo.mode == "RGBA":
        colours.putalpha(photo.getchannel("A"))
    start.paste(colours)
    return editor.keep_photo(start, name, profile_of(image)), mask
