"""Writing what an application makes of its edits: `results/`, `before_after.png`.

What belongs here is where those pictures go. How they are laid out is the gallery's business.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
import typer


if TYPE_CHECKING:
    from blended_diffusion.editing.editor import Edited
    from blended_diffusion.pictures.inputs import Mask, Photo


def write_finished(
    folder: Path, photo: "Photo", mask: "PIL.Image.Image | Mask", edited: "Edited", title: str, quiet: bool
) -> None:
    """Writes the finished pictures of an application, best first, and the best one beside the photo.

    Args:
        folder (`Path`): where to write.
        photo ([`Photo`]): what was there before.
        mask (`PIL.Image.Image` or [`Mask`]): of mode `L`, what was changed.
        edited ([`Edited`]): the finished pictures.
        title (`str`): over before and after.
        quiet (`bool`): say nothing.
    """
    from blended_diffusion.painters.settings import EditSettings
    from blended_diffusion.pictures import gallery, inputs
    from blended_diffusion.pictures.canvas import Canvas, box_of, square_around

    region = inputs.picture_of(mask)
    results = folder / "results"
    results.mkdir(exist_ok=True)
    paths = []
    for rank, (image, seed) in enumerate(zip(edited.images, edited.seeds, strict=True), start=1):
        paths.append(results / f"{rank}_seed_{seed}.png")
        gallery.write_png(image, paths[-1], photo.icc_profile)
    square = square_around(box_of(region), photo.image.size, EditSettings.context)
    view = Canvas(photo.image, region, square, 1).view
    strip = gallery.before_after(photo.image, region, view, paths[0], title)
    gallery.write_png(strip, folder / "before_after.png", photo.icc_profile)
    if not quiet:
        typer.echo(f"the finished pictures, best first: {results}; to look at: {folder / 'before_after.png'}")
