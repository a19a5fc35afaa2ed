"""`blended-diffusion mask`: a mask without an edit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blended_diffusion.commands.flags import Device, InitImage, Quiet
from blended_diffusion.commands.groups import OUTPUT, flag, with_groups
from blended_diffusion.commands.masking import MaskFlags, keep, preview_of


if TYPE_CHECKING:
    import torch


@with_groups
def mask_command(
    init_image: InitImage,
    mask: MaskFlags,
    output_file: Annotated[
        str, flag(OUTPUT, "--output_file -o", "What to write; the preview is written beside it.", "FILE")
    ] = "mask.png",
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make a mask of a photo, and a preview of it, without editing anything.

    The flags are those of `edit`, which makes its masks in the same way.
    """
    if not mask.sources:
        raise ValueError("There is nothing to make a mask of; give a flag that says where to edit, such as --box.")
    target = Path(output_file)
    if target.suffix != ".png" or target.is_dir():
        raise ValueError(f"--output_file {output_file!r} is no PNG's name; give one, such as mask.png.")
    read = [Path(path) for path in (init_image, *mask.files)]
    for path in (target, preview_of(target)):
        if path.exists() and any(path.samefile(other) for other in read if other.exists()):
            raise ValueError(f"--output_file {output_file!r} would overwrite {str(path)!r}; give another name.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    found_device: torch.device | str = "cpu"
    if mask.needs_network:
        from blended_diffusion import machine

        found_device = machine.find_device(device, "--device")
    made = mask.read(photo, found_device)
    keep(made, photo, target, "--output_file's folder")
    if not quiet:
        image = inputs.picture_of(made)
        share = image.histogram()[255] / (image.width * image.height)
        typer.echo(f"{target}: {share:.1%} of the photo; to look at: {preview_of(target)}")
