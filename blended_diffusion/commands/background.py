"""`blended-diffusion background`: another background behind what the mask keeps."""

from dataclasses import dataclass
from typing import Annotated

from blended_diffusion.commands.finished import write_finished
from blended_diffusion.commands.flags import FilmFlags, InitImage, MachineFlags, MethodFlags, OutputFlags, Quiet
from blended_diffusion.commands.groups import INPUT, METHOD, flag, with_groups
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.parsers import Places, distance
from blended_diffusion.commands.running import hint_at_words, open_editor


@dataclass(frozen=True)
class ForegroundFlags(MaskFlags):
    """What stays."""

    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is the foreground and stays, black is painted; of the photo's size.", "FILE"),
    ] = None
    mask_prompt: Annotated[
        str | None, flag(INPUT, "--mask-prompt", "Keep what these words name, as CLIPSeg sees it.", "WORDS")
    ] = None
    invert_mask: Annotated[bool, flag(INPUT, "--invert_mask", "The mask's black is the foreground.")] = False
    # there are no such flags
    mask_alpha: str | None = None
    mask_difference: str | None = None
    box: Places | None = None
    polygon: Places | None = None
    click: Places | None = None
    mask_threshold: float | None = None
    mask_prompt_model: str | None = None
    click_model: str | None = None


@with_groups
def background_command(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the background should show.", "WORDS")],
    init_image: InitImage,
    mask: ForegroundFlags,
    output: OutputFlags,
    films: FilmFlags,
    method: MethodFlags,
    machine: MachineFlags,
    edge: Annotated[
        float | None,
        flag(
            METHOD,
            "--edge",
            "How far the soft edge reaches to either side of the mask's; more for hair. [default: a hundredth of the"
            " photo's shorter side]",
            "PIXELS",
            distance,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Paint another background behind a foreground that keeps soft edges.

    The background is painted in edit/ of the output folder, as by `edit`; results/ holds the pictures with the
    foreground put back, best first, matte.png how much of each pixel that is.
    """
    if not mask.sources:
        raise ValueError("--mask is missing; say with it or with --mask-prompt what the foreground is.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    foreground = None if mask.needs_network else mask.read(photo)

    from blended_diffusion import masks
    from blended_diffusion.applications.background import matte, replace_background
    from blended_diffusion.painters.settings import EditSettings
    from blended_diffusion.pictures import gallery

    editor = open_editor(output, machine, quiet, films)
    hint_at_words(editor.model, prompt)
    foreground = mask.read(photo, editor.model.pipe.device) if foreground is None else foreground
    keep = inputs.picture_of(foreground)
    settings = EditSettings(prompt=prompt, **method.settings)
    edited = replace_background(editor, photo, keep, settings, edge, "edit")
    gallery.write_png(matte(photo.image, keep, edge), output.folder / "matte.png")
    write_finished(output.folder, photo, masks.invert(keep), edited, prompt, quiet)
