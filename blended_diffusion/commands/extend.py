"""`blended-diffusion extend`: a picture grown past its border."""

from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    INPUT,
    METHOD,
    BatchSize,
    ClipScale,
    Device,
    Dtype,
    InitImage,
    ModelName,
    NegativePrompt,
    NumImages,
    OutputPath,
    Quiet,
    Resume,
    Seed,
    Steps,
    Strength,
    Strip,
    Vid,
    VidFormat,
    count,
    flag,
    one_of,
    whole_number,
)
from blended_diffusion.commands.running import hint_at_words, open_editor
from blended_diffusion.painters.settings import EditSettings


def pixels(side: str) -> object:
    return flag(INPUT, f"--{side}", f"By how many pixels to grow at the {side}.", "PIXELS", whole_number(0))


def words(side: str) -> object:
    return flag(INPUT, f"--prompt-{side}", f"What the {side} should show. [default: as --prompt]", "WORDS")


def extend(
    init_image: InitImage,
    left: Annotated[int, pixels("left")] = 0,
    right: Annotated[int, pixels("right")] = 0,
    top: Annotated[int, pixels("top")] = 0,
    bottom: Annotated[int, pixels("bottom")] = 0,
    prompt: Annotated[
        str, flag(INPUT, "--prompt -p", "What the new parts should show; left out, the picture goes on.", "WORDS")
    ] = "",
    prompt_left: Annotated[str | None, words("left")] = None,
    prompt_right: Annotated[str | None, words("right")] = None,
    prompt_top: Annotated[str | None, words("top")] = None,
    prompt_bottom: Annotated[str | None, words("bottom")] = None,
    negative_prompt: NegativePrompt = None,
    output_path: OutputPath = "output",
    num_images: NumImages = 4,
    seed: Seed = 404,
    resume: Resume = False,
    vid: Vid = False,
    vid_format: VidFormat = "mp4",
    strip: Strip = None,
    window: Annotated[
        int | None,
        flag(
            METHOD,
            "--window",
            "Side of the square that the model sees at a time, half of it new at most. [default: the photo's shorter"
            " side]",
            "PIXELS",
            count,
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
    num_inference_steps: Steps = None,
    strength: Strength = None,
    clip_guidance_scale: ClipScale = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
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

    check_growth(left, right, top, bottom)
    find_window(photo.image.size, window)
    folder = Path(output_path)
    film = vid_format if vid else None
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet, film, strip)
    sides = (prompt_left, prompt_right, prompt_top, prompt_bottom)
    said = list(dict.fromkeys(words for words in (prompt, *sides) if words))
    hint_at_words(editor.model, " ".join(said))

    settings = EditSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        strength=strength,
        clip_guidance_scale=clip_guidance_scale,
    )
    result = extend(editor, photo, left, right, top, bottom, settings, *sides, window, prompt_area)
    gallery.write_png(result, folder / "extended.png", photo.icc_profile)
    sheet = gallery.extended(photo.image, result, left, top, " · ".join(said) or "without words")
    gallery.write_png(sheet, folder / "before_after.png", photo.icc_profile)
    if not quiet:
        typer.echo(f"the whole: {folder / 'extended.png'}, {folder / 'before_after.png'}")
