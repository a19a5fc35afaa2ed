"""Several regions of one photo edited together, each with its own words.

What belongs here is what a region is to people, and the edit that is made of several. How the regions share one
denoising pass is the business of [`~blended_diffusion.painters.regions`].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import PIL.Image

from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.masks.regions import RegionMask, label
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of


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
    """Edits several regions in one denoising pass.

    The model sees the square round all of them, so the further they are from each other, the fewer of its pixels each
    one has; where they are too far, edit them one after another.

    Args:
        editor ([`Editor`]): makes the pictures.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        regions (`Sequence[Region]`): where they overlap, the later one lies on top.
        settings ([`EditSettings`], *optional*): all but the prompt, for all regions alike.
        name (`str`): of this edit.

    Returns:
        [`Edited`]: ranked by the mean over the regions.

    Raises:
        ValueError: there is no region, masks are of another size, or a region is covered by later ones or too small
            for the model.
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
    kept = editor.keep_mask(labels, name)
    union = labels.point([0] + [255] * 255, "L")
    prompts = [region.prompt for region in regions]
    title = " + ".join(prompt for prompt in prompts if prompt)
    settings = replace(settings or EditSettings(prompt=""), prompt=title, region_prompts=prompts)
    return editor.edit(image, RegionMask(union, kept.path, kept.sha256, labels), settings, name)
