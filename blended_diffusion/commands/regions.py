"""`blended-diffusion regions`: several regions of one photo in one pass, each with its own words."""

from typing import Annotated

from blended_diffusion.commands.flags import (
    Context,
    FilmFlags,
    InitImage,
    MachineFlags,
    MethodFlags,
    OutputFlags,
    Quiet,
)
from blended_diffusion.commands.groups import INPUT, flag, with_groups
from blended_diffusion.commands.running import hint_at_words, open_editor
from blended_diffusion.painters.settings import EditSettings


@with_groups
def regions_command(
    region: Annotated[
        list[str],
        flag(
            INPUT,
            "--region",
            "What a region should show, and its mask, white on black; once for each region. Where they overlap, the"
            " later one lies on top.",
            "WORDS=FILE",
        ),
    ],
    init_image: InitImage,
    output: OutputFlags,
    films: FilmFlags,
    method: MethodFlags,
    machine: MachineFlags,
    context: Context = EditSettings.context,
    quiet: Quiet = False,
) -> None:
    """Edit several regions of a photo in one pass, each with its own words.

    The model sees the square round all regions: the further they are from each other, the fewer of its pixels each one
    has. Where nothing would be left of one, they are edited one after another, each in a square of its own.
    """
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    masks = []
    for text in region:
        words, sign, file = text.rpartition("=")
        if not sign:
            raise ValueError(
                f"--region {text!r} does not say where the region is; give WORDS=FILE, such as rock=a.png."
            )
        mask = inputs.read_mask(file, photo.image.size, argument=f"--region {words}:")
        masks.append((mask, words.strip()))

    from blended_diffusion.applications.regions import Region, edit_regions

    editor = open_editor(output, machine, quiet, films)
    hint_at_words(editor.model, " ".join(words for _, words in masks))
    settings = EditSettings(prompt="", context=context, **method.settings)
    edit_regions(editor, photo, [Region(mask, words) for mask, words in masks], settings)
