"""Several regions of one photo edited together, each with its own words.

What belongs here is what a region is to people, the edit that is made of several, and whether they go together at all.
How the regions share one denoising pass is the business of [`~blended_diffusion.painters.regions`].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import PIL.Image
from diffusers.utils import logging

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.masks.regions import RegionMask, label, regions_in
from blended_diffusion.painters.change_maps import refuse_with_change_map
from blended_diffusion.painters.regions import shared_out
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas, box_of, square_around
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of, profile_of


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Region:
    """A part of a photo and what it should show.

    Attributes:
        mask (`PIL.Image.Image` or [`Mask`]): of mode `L` and the photo's size, 255 = edit, 0 = keep.
        prompt (`str`): the empty one fills the region without guidance.
    """

    mask: PIL.Image.Image | Mask
    prompt: str


def edit_regions(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    regions: Sequence[Region],
    settings: EditSettings | None = None,
    name: str = "",
) -> Edited:
    """Edits several regions in one denoising pass, or one after another where they are too far apart for that.

    The model sees the square round all of them, so the further they are from each other, the fewer of its pixels each
    one has. Where nothing would be left of one, or the painter paints one region at a time, each has a square of its
    own: all but the last are edits called `region_01`, `region_02` …, each on the best picture of the one before, and
    the last one's candidates, on the best of those, are the result.

    Args:
        editor ([`Editor`]): makes the pictures.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        regions (`Sequence[Region]`): where they overlap, the later one lies on top.
        settings ([`EditSettings`], *optional*): all but the prompt, for all regions alike.
        name (`str`): of this edit.

    Returns:
        [`Edited`]: ranked by the mean over the regions; by the last one where they are edited one after another.

    Raises:
        ValueError: there is no region, masks are of another size, or a region is covered by later ones or too thin for
            the model even in a square of its own.
    """
    if not regions:
        raise ValueError("There is no region to edit; give at least one.")
    size = picture_of(image).size
    masks = [picture_of(region.mask) for region in regions]
    labels = label(masks)
    if labels.size != size:
        raise ValueError(
            f"The masks of the regions are {labels.width}×{labels.height} pixels (width×height) and the picture is"
            f" {size[0]}×{size[1]}; they must be the same size."
        )
    prompts = [region.prompt for region in regions]
    settings = replace(settings or EditSettings(prompt=""), region_prompts=prompts)
    refuse_with_change_map(settings)
    if not go_together(editor, picture_of(image), labels, settings.context):
        return edit_in_turn(editor, image, list(zip(regions_in(labels), prompts, strict=True)), settings, name)
    kept = editor.keep_mask(labels, name)
    union = labels.point([0] + [255] * 255, "L")
    settings = replace(settings, prompt=" + ".join(prompt for prompt in prompts if prompt))
    return editor.edit(image, RegionMask(union, kept.path, kept.sha256, labels), settings, name)


def go_together(editor: Editor, photo: PIL.Image.Image, labels: PIL.Image.Image, context: float) -> bool:
    """Whether the painter paints several regions at once and, in the square round all of them, each is seen at all."""
    if "region_prompts" not in editor.painter.known_settings:
        return False
    union = labels.point([0] + [255] * 255, "L")
    canvas = Canvas(photo, union, square_around(box_of(union), photo.size, context), editor.painter.size)
    lost = [number for number, mask in enumerate(shared_out(canvas, labels), start=1) if not mask.any()]
    if lost:
        logger.warning(
            f"The regions are too far apart to be painted together: in the square round all of them nothing is left of"
            f" region {lost[0]} at the model's size of {canvas.size}×{canvas.size} pixels; they are edited one after"
            " another."
        )
    return not lost


def edit_in_turn(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    regions: Sequence[tuple[PIL.Image.Image, str]],
    settings: EditSettings,
    name: str = "",
) -> Edited:
    """Edits regions one after another, each on the best picture of the one before: see [`edit_regions`].

    Args:
        editor, image, settings, name: as there.
        regions (`Sequence[tuple[PIL.Image.Image, str]]`): masks and prompts; no mask over another.

    Returns:
        [`Edited`]: of the last region.

    Raises:
        ValueError: a region is too thin for the model; nothing has been painted then.
    """
    for number, (mask, prompt) in enumerate(regions, start=1):
        try:
            Canvas.around(picture_of(image), mask, editor.painter.size, settings.context)
        except ValueError as error:
            raise ValueError(f"Region {number} ({prompt!r}): {error}") from error
    names = [f"{name}/region_{number:02d}".lstrip("/") for number in range(1, len(regions))] + [name]
    for (mask, prompt), own_name in zip(regions, names, strict=True):
        edited = editor.edit(image, mask, replace(settings, prompt=prompt, region_prompts=None), own_name)
        if own_name != name:
            image = editor.keep_photo(edited.best, name, profile_of(image))
    return edited
