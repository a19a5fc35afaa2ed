"""`blended-diffusion interpolate`: a film from one prompt to another."""

from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    Context,
    InitImage,
    MachineFlags,
    MethodFlags,
    OutputFlags,
    Quiet,
    VideoFormat,
)
from blended_diffusion.commands.groups import INPUT, OUTPUT, flag, with_groups
from blended_diffusion.commands.parsers import at_least
from blended_diffusion.commands.running import hint_at_words, open_editor
from blended_diffusion.painters.settings import EditSettings


@with_groups
def interpolate_command(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the first frame should show.", "WORDS")],
    to: Annotated[str, flag(INPUT, "--to", "What the last frame should show.", "WORDS")],
    init_image: InitImage,
    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is edited, black is kept; of the photo's size. [default: all is edited]", "FILE"),
    ] = None,
    frames: Annotated[
        int, flag(OUTPUT, "--frames", "How many, the first and the last included.", "N", at_least(2))
    ] = 9,
    *,
    output: OutputFlags,
    vid_format: VideoFormat = "mp4",
    method: MethodFlags,
    context: Context = EditSettings.context,
    machine: MachineFlags,
    quiet: Quiet = False,
) -> None:
    """Edit the masked region with words between two prompts, always with the same noise, and make a film of it.

    Each frame has a folder of its own in the output folder, with the candidates of all seeds.

    The seed that fits the words best gives the pictures in frames/, the film and strip.png.
    """
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if mask is None else inputs.read_mask(mask, photo.image.size, False, "--mask")

    from blended_diffusion.applications.interpolate import check_prompts, interpolate
    from blended_diffusion.pictures import gallery
    from blended_diffusion.pictures.canvas import Canvas

    check_prompts(prompt, to)
    folder = output.folder
    editor = open_editor(output, machine, quiet)
    hint_at_words(editor.model, f"{prompt} {to}")
    settings = EditSettings(prompt=prompt, context=context, **method.settings)
    pictures = interpolate(editor, photo, region, settings, to, frames)

    view = (0, 0, *photo.image.size)
    if region is not None:
        view = Canvas.around(photo.image, region.image, editor.painter.size, context).view
    (folder / "frames").mkdir(exist_ok=True)
    for index, picture in enumerate(pictures):
        gallery.write_png(picture, folder / "frames" / f"{index:03d}.png", photo.icc_profile)
    near = gallery.close_ups(pictures, view)
    shares = [f"{index / (frames - 1):.0%}" for index in range(frames)]
    chosen = gallery.evenly(frames - 1, 7)
    shown = [0, *(index + 1 for index in chosen)]
    sheet = gallery.strip([near[i] for i in shown], [shares[i] for i in shown], title=f"{prompt} to {to}")
    gallery.write_png(sheet, folder / "strip.png", photo.icc_profile)
    film = folder / f"film.{vid_format}"
    gallery.write_film(gallery.slideshow(near), film)
    if not quiet:
        typer.echo(f"to look at: {film}, {folder / 'strip.png'}")
