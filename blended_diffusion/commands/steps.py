"""`blended-diffusion steps`: several edits of one photo, one after another."""

from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import FilmFlags, InitImage, MachineFlags, Quiet, ResumingOutputFlags
from blended_diffusion.commands.groups import with_groups
from blended_diffusion.commands.running import hint_at_words, open_editor, show


@with_groups
def steps_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The steps: a YAML or JSON list.")],
    init_image: InitImage,
    output: ResumingOutputFlags,
    films: FilmFlags,
    machine: MachineFlags,
    quiet: Quiet = False,
) -> None:
    """Edit a photo in several steps, each on the best picture of the one before.

    A step has a mask and a prompt, or regions with one each, or it names an application; all settings of `edit` may
    stand in it. Everything is checked before the first step is taken. Each step's pictures are kept in a folder of its
    own, and overview.png shows them all.
    """
    from blended_diffusion.applications.step_files import read_steps
    from blended_diffusion.pictures import inputs

    steps = read_steps(file, "FILE")
    photo = inputs.read_photo(init_image, "--init_image")

    from blended_diffusion.applications.steps import RESULT, run_steps, step_folder

    folder = output.folder
    editor = open_editor(output, machine, quiet, films)
    hint_at_words(editor.model, " ".join(words for step in steps for words in step.words))
    run_steps(editor, photo, steps, Path(file).stem, tell=(lambda _: None) if quiet else show)
    if not quiet:
        typer.echo(f"the result: {folder / step_folder(len(steps)) / RESULT}, all steps: {folder / 'overview.png'}")
