"""`blended-diffusion mask`: a mask without an edit."""

from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    OUTPUT,
    ClickModel,
    Device,
    Grow,
    InitImage,
    InvertMask,
    MaskAlpha,
    MaskBox,
    MaskClick,
    MaskDifference,
    MaskFile,
    MaskPolygon,
    MaskPrompt,
    MaskPromptModel,
    MaskThreshold,
    Quiet,
    flag,
)
from blended_diffusion.commands.masking import MaskFlags, keep, preview_of


def mask(
    init_image: InitImage,
    mask: MaskFile = None,
    mask_alpha: MaskAlpha = None,
    mask_difference: MaskDifference = None,
    box: MaskBox = None,
    polygon: MaskPolygon = None,
    click: MaskClick = None,
    mask_prompt: MaskPrompt = None,
    mask_threshold: MaskThreshold = None,
    grow: Grow = 0.0,
    invert_mask: InvertMask = False,
    output_file: Annotated[
        str, flag(OUTPUT, "--output_file -o", "What to write; the preview is written beside it.", "FILE")
    ] = "mask.png",
    mask_prompt_model: MaskPromptModel = None,
    click_model: ClickModel = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make a mask of a photo, and a preview of it, without editing anything.

    The flags are those of `edit`, which makes its masks in the same way.
    """
    wanted = MaskFlags(
        mask=mask,
        mask_alpha=mask_alpha,
        mask_difference=mask_difference,
        box=box,
        polygon=polygon,
        click=click,
        mask_prompt=mask_prompt,
        mask_threshold=mask_threshold,
        mask_prompt_model=mask_prompt_model,
        click_model=click_model,
        grow=grow,
        invert_mask=invert_mask,
    )
    if not wanted.sources:
        raise ValueError("There is nothing to make a mask of; give a flag that says where to edit, such as --box.")
    target = Path(output_file)
    if target.suffix != ".png" or target.is_dir():
        raise ValueError(f"--output_file {output_file!r} is no PNG's name; give one, such as mask.png.")
    read = [Path(path) for path in (init_image, mask, mask_alpha, mask_difference) if path is not None]
    for path in (target, preview_of(target)):
        if path.exists() and any(path.samefile(other) for other in read if other.exists()):
            raise ValueError(f"--output_file {output_file!r} would overwrite {str(path)!r}; give another name.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    place = "cpu"
    if wanted.needs_network:
        from blended_diffusion import machine

        place = machine.find_device(device, "--device")
    made = wanted.read(photo, place)
    keep(made, photo, target, "--output_file's folder")
    if not quiet:
        image = inputs.picture_of(made)
        share = image.histogram()[255] / (image.width * image.height)
        typer.echo(f"{target}: {share:.1%} of the photo; to look at: {preview_of(target)}")
