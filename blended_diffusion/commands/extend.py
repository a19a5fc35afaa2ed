"""`blended-diffusion extend`: a picture grown past its border."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from blended_diffusion.commands.flags import FilmFlags, InitImage, MachineFlags, MethodFlags, OutputFlags, Quiet
from blended_diffusion.commands.groups import INPUT, METHOD, flag, with_groups
from blended_diffusion.commands.parsers import at_least, one_of
from blended_diffusion.commands.running import hint_at_words, open_editor
from blended_diffusion.painters.settings import EditSettings


def growth_flag(side: str) -> Any:
    return flag(INPUT, f"--{side}", f"By how many pixels to grow at the {side}.", "PIXELS", at_least(0))


def words_flag(side: str) -> Any:
    return flag(INPUT, f"--prompt-{side}", f"What the {side} should show. [default: as --prompt]", "WORDS")


@dataclass(frozen=True)
class SideFlags:
    """By how much each side grows, and what it should show."""

    left: Annotated[int, growth_flag("left")] = 0
    right: Annotated[int, growth_flag("right")] = 0
    top: Annotated[int, growth_flag("top")] = 0
    bottom: Annotated[int, growth_flag("bottom")] = 0
    prompt: Annotated[
        str, flag(INPUT, "--prompt -p", "What the new parts should show; left out, the picture goes on.", "WORDS")
    ] = ""
    prompt_left: Annotated[str | None, words_flag("left")] = None
    prompt_right: Annotated[str | None, words_flag("right")] = None
    prompt_top: Annotated[str | None, words_flag("top")] = None
    prompt_bottom: Annotated[str | None, words_flag("bottom")] = None

    @property
    def growth(self) -> tuple[int, int, int, int]:
        """Of the left, the right, the top and the bottom, in pixels."""
        return self.left, self.right, self.top, self.bottom

    @property
    def prompts(self) -> tuple[str | None, str | None, str | None, str | None]:
        """Of the left, the right, the top and the bottom, where they are not `prompt`."""
        return self.prompt_left, self.prompt_right, self.prompt_top, self.prompt_bottom


@with_groups
def extend_command(
    init_image: InitImage,
    sides: SideFlags,
    window: Annotated[
        int | None,
        flag(
            METHOD,
            "--window",
            "Side of the square that the model sees at a time, half of it new at most. [default: the photo's shorter"
            " side, or less where little is new]",
            "PIXELS",
            at_least(1),
        ),
    ] = None,
    prompt_area: Annotated[
        str,
        flag(
            METHOD,
            "--prompt-area",
            "all: the words describe all that is new. middle: they name a thing in it; the picture goes on without"
            " words first.",
            "all|middle",
            one_of("all", "middle"),
        ),
    ] = "all",
    *,
    output: OutputFlags,
    films: FilmFlags,
    method: MethodFlags,
    machine: MachineFlags,
    quiet: Quiet = False,
) -> None:
    """Grow a photo on any of its sides, with words for each of them; its own pixels stay as they are.

    Step by step a square window is edited that is half photo and half new, each going on from the best one before.

    Each step has a folder of its own in the output folder; at the end come extended.png and before_after.png.
    """
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")

    from blended_diffusion.applications.extend import check_growth, extend, find_window
    from blended_diffusion.pictures import gallery

    check_growth(*sides.growth)
    find_window(photo.image.size, window)
    folder = output.folder
    editor = open_editor(output, machine, quiet, films)
    prompts = list(dict.fromkeys(words for words in (sides.prompt, *sides.prompts) if words))
    hint_at_words(editor.model, " ".join(prompts))

    settings = EditSettings(prompt=sides.prompt, **method.settings)
    result = extend(editor, photo, *sides.growth, settings, *sides.prompts, window, prompt_area)
    gallery.write_png(result, folder / "extended.png", photo.icc_profile)
    sheet = gallery.extended(photo.image, result, sides.left, sides.top, " · ".join(prompts) or "without words")
    gallery.write_png(sheet, folder / "before_after.png", photo.icc_profile)
    if not quiet:
        typer.echo(f"the whole: {folder / 'extended.png'}, {folder / 'before_after.png'}")
