"""The command `blended-diffusion`: what people touch. It parses, calls and shows.

What belongs here is the list of commands and what becomes of errors: exit codes 0, 2 for bad input, 1 for failure, 130
for interruption. The commands are in `commands`. Of several processes only the first one comes to them.
"""

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from blended_diffusion.commands.background import background_command
from blended_diffusion.commands.batch import batch_command
from blended_diffusion.commands.convert import as_flags, convert_command
from blended_diffusion.commands.edit import EDIT_HELP, edit_command
from blended_diffusion.commands.extend import extend_command
from blended_diffusion.commands.interpolate import interpolate_command
from blended_diffusion.commands.mask import mask_command
from blended_diffusion.commands.reconstruct import reconstruct_command
from blended_diffusion.commands.regions import regions_command
from blended_diffusion.commands.remove import remove_command
from blended_diffusion.commands.replay import replay_command
from blended_diffusion.commands.running import show
from blended_diffusion.commands.steps import steps_command
from blended_diffusion.commands.video import video_command
from blended_diffusion.editing import processes


app = typer.Typer(
    add_completion=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # --output_path and --output-path are the same flag
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def print_version(asked: bool) -> None:
    if asked:
        from blended_diffusion import __version__

        typer.echo(f"blended-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def blended_diffusion(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Edit a region of a photo with words: photo + mask + words in; several edited photos out, best first.

    Everything outside the mask stays as it was, to the last bit.
    """


app.command("edit", help=EDIT_HELP)(edit_command)
app.command("background")(background_command)
app.command("mask")(mask_command)
app.command("remove")(remove_command)
app.command("extend")(extend_command)
app.command("interpolate")(interpolate_command)
app.command("reconstruct")(reconstruct_command)
app.command("video")(video_command)
app.command("regions")(regions_command)
app.command("steps")(steps_command)
app.command("batch")(batch_command)
app.command("replay")(replay_command)
app.command("convert")(convert_command)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments (`list[str]`, *optional*): the command line without the program's name; `sys.argv`'s if left out.

    Returns:
        `int`: the exit code.
    """
    try:
        several = processes.process_count() > 1
        if several and processes.process_index() > 0:
            return processes.work()
    except ValueError as error:
        return fail(str(error), 2)
    code = run(sys.argv[1:] if arguments is None else arguments)
    if several and code != 130:
        processes.dismiss()
    return code


def run(arguments: list[str]) -> int:
    try:
        return app(as_flags(arguments) or ["--help"], prog_name="blended-diffusion", standalone_mode=False) or 0
    except TyperException as error:
        return fail(error.format_message(), error.exit_code)
    except ValueError as error:
        return fail(str(error), 2)
    except (*processes.EXPECTED_ERRORS, processes.LostProcessError) as error:
        return fail(str(error), 1)


def fail(message: str, exit_code: int) -> int:
    show(f"blended-diffusion: error: {' '.join(message.split())}")
    return exit_code
