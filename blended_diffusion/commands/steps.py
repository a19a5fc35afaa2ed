"""`blended-diffusion steps`: several edits of one photo, one after another."""

from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    OUTPUT,
    BatchSize,
    Device,
    Dtype,
    InitImage,
    ModelName,
    NumImages,
    OutputPath,
    Quiet,
    Seed,
    Strip,
    Vid,
    VidFormat,
    flag,
)
from blended_diffusion.commands.running import hint_at_words, open_editor, show


KeepFinished = Annotated[
    bool, flag(OUTPUT, "--resume/--no-resume", "Keep what is finished already, or make all of it again.")
]


def steps(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The steps: a YAML or JSON list.")],
    init_image: InitImage,
    output_path: OutputPath = "output",
    num_images: NumImages = 4,
    seed: Seed = 404,
    resume: KeepFinished = True,
    vid: Vid = False,
    vid_format: VidFormat = "mp4",
    strip: Strip = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Edit a photo in several steps, each on the best picture of the one before.

    A step has a mask and a prompt, or regions with one each, or it names an application; all settings of `edit` may
    stand in it. Everything is checked before the first step is taken. Each step's pictures are kept in a folder of its
    own, and overview.png shows them all.
    """
    from blended_diffusion.applications.step_files import read_steps
    from blended_diffusion.pictures import inputs

    wanted = read_steps(file, "FILE")
    photo = inputs.read_photo(init_image, "--init_image")

    from blended_diffusion.applications.steps import RESULT, run_steps, step_folder

    folder = Path(output_path)
    film = vid_format if vid else None
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet, film, strip)
    hint_at_words(editor.model, " ".join(words for step in wanted for words in step.words))
    run_steps(editor, photo, wanted, Path(file).stem, tell=(lambda _: None) if quiet else show)
    if not quiet:
        typer.echo(f"the result: {folder / step_folder(len(wanted)) / RESULT}, all steps: {folder / 'overview.png'}")
