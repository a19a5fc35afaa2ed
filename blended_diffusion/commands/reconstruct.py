"""`blended-diffusion reconstruct`: what the diffusion model keeps of a photo."""

from dataclasses import dataclass
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    Context,
    FilmFlags,
    InitImage,
    MachineFlags,
    NumImages,
    OutputFlags,
    Quiet,
    Steps,
)
from blended_diffusion.commands.groups import INPUT, METHOD, flag, with_groups
from blended_diffusion.commands.parsers import setting
from blended_diffusion.commands.running import open_editor
from blended_diffusion.painters.settings import EditSettings


@dataclass(frozen=True)
class OneImageFlags(OutputFlags):
    """Where reconstructions are written, and how many of each strength."""

    num_images: NumImages = 1


@with_groups
def reconstruct_command(
    init_image: InitImage,
    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is reconstructed; of the photo's size. [default: all is]", "FILE"),
    ] = None,
    *,
    output: OneImageFlags,
    films: FilmFlags,
    strength: Annotated[
        str,
        flag(METHOD, "--strength", "How far to go towards noise, up to 1; several with commas between them.", "X,X…"),
    ] = "0.2,0.4,0.6,0.8,1",
    num_inference_steps: Steps = None,
    context: Context = EditSettings.context,
    machine: MachineFlags,
    quiet: Quiet = False,
) -> None:
    """Noise a photo to several levels and denoise it without words: what does the model keep of it?

    Each strength has a folder of its own in the output folder; strip.png shows all of them side by side.

    Below each is its peak signal-to-noise ratio (PSNR), which figures.json holds too.
    """
    strengths = tuple(setting("strength")(part.strip()) for part in strength.split(","))

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if mask is None else inputs.read_mask(mask, photo.image.size, False, "--mask")

    import json

    from blended_diffusion.applications.reconstruct import reconstruct
    from blended_diffusion.pictures import gallery
    from blended_diffusion.pictures.canvas import Canvas

    folder = output.folder
    editor = open_editor(output, machine, quiet, films)
    settings = EditSettings(prompt="", num_inference_steps=num_inference_steps, context=context)
    found = reconstruct(editor, photo, region, strengths, settings)

    view = (0, 0, *photo.image.size)
    if region is not None:
        view = Canvas.around(photo.image, region.image, editor.painter.size, context).view
    labels = ["photo", f"{editor.painter.size} pixels alone", *(f"strength {one.strength:g}" for one in found[1:])]
    notes = ["", *(f"{one.psnr:.1f} dB" for one in found)]
    pictures = gallery.close_ups([photo.image, *(one.image for one in found)], view)
    sheet = gallery.strip(pictures, labels, notes, "noised and denoised without words", "PSNR (higher is nearer)")
    gallery.write_png(sheet, folder / "strip.png", photo.icc_profile)
    figures = [{"strength": one.strength, "psnr": one.psnr} for one in found]
    gallery.write_text(json.dumps(figures, indent=2) + "\n", folder / "figures.json")
    if not quiet:
        for label, note in zip(labels[1:], notes[1:], strict=True):
            typer.echo(f"  {label}: {note}")
        typer.echo(f"to look at: {folder / 'strip.png'}")
