"""`blended-diffusion remove`: a region filled as if nothing had been there."""

from dataclasses import dataclass
from typing import Annotated

from blended_diffusion.commands.finished import write_finished
from blended_diffusion.commands.flags import (
    Context,
    FilmFlags,
    InitImage,
    MachineFlags,
    MethodFlags,
    NumImages,
    OutputFlags,
    Quiet,
)
from blended_diffusion.commands.groups import INPUT, flag, with_groups
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.parsers import Places
from blended_diffusion.commands.running import open_editor


@dataclass(frozen=True)
class RemovedFlags(MaskFlags):
    """What is removed."""

    mask: Annotated[
        str | None, flag(INPUT, "--mask", "White is removed, black stays; of the photo's size.", "FILE")
    ] = None
    # there are no such flags
    mask_alpha: str | None = None
    mask_difference: str | None = None
    click: Places | None = None
    mask_threshold: float | None = None
    mask_prompt_model: str | None = None
    click_model: str | None = None


@dataclass(frozen=True)
class FillsFlags(OutputFlags):
    """Where fills are written, and how many."""

    num_images: NumImages = 8


@with_groups
def remove_command(
    init_image: InitImage,
    mask: RemovedFlags,
    prompt: Annotated[
        str,
        flag(INPUT, "--prompt -p", "What the background is. [default: no words, only the surroundings]", "WORDS"),
    ] = "",
    *,
    output: FillsFlags,
    films: FilmFlags,
    method: MethodFlags,
    machine: MachineFlags,
    context: Context = 0.5,
    quiet: Quiet = False,
) -> None:
    """Take something out of a photo: fill the masked region from what surrounds it.

    The fills are made in edit/ of the output folder, as by `edit`; results/ holds them in the order in which they fit
    their surroundings.
    """
    if not mask.sources:
        raise ValueError("--mask is missing; say with it, with --box, --polygon or --mask-prompt what to remove.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if mask.needs_network else mask.read(photo)

    from blended_diffusion.applications.remove import remove
    from blended_diffusion.painters.settings import EditSettings

    editor = open_editor(output, machine, quiet, films)
    region = mask.read(photo, editor.model.pipe.device) if region is None else region
    settings = EditSettings(
        prompt=prompt, invert_mask=mask.invert_mask and mask.is_file, context=context, **method.settings
    )
    edited = remove(editor, photo, region, settings, "edit")
    write_finished(output.folder, photo, region, edited, prompt or "removed", quiet)
