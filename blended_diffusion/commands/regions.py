"""`blended-diffusion regions`: several regions of one photo in one pass, each with its own words."""

from pathlib import Path
from typing import Annotated

from blended_diffusion.commands.flags import (
    INPUT,
    BatchSize,
    ClipScale,
    Context,
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
    flag,
)
from blended_diffusion.commands.running import hint_at_words, open_editor
from blended_diffusion.painters.settings import EditSettings


def regions(
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
    negative_prompt: NegativePrompt = None,
    output_path: OutputPath = "output",
    num_images: NumImages = 4,
    seed: Seed = 404,
    resume: Resume = False,
    vid: Vid = False,
    vid_format: VidFormat = "mp4",
    strip: Strip = None,
    num_inference_steps: Steps = None,
    strength: Strength = None,
    clip_guidance_scale: ClipScale = None,
    context: Context = EditSettings.context,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Edit several regions of a photo in one pass, each with its own words.

    The model sees the square round all regions: the further they are from each other, the fewer of its pixels each one
    has. Regions that are far apart are better edited one after another (blended-diffusion steps).
    """
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    wanted = []
    for text in region:
        words, sign, file = text.rpartition("=")
        if not sign:
            raise ValueError(
                f"--region {text!r} does not say where the region is; give WORDS=FILE, such as rock=a.png."
            )
        mask = inputs.read_mask(file, photo.image.size, argument=f"--region {words}:")
        wanted.append((mask, words.strip()))

    from blended_diffusion.applications.regions import Region, edit_regions

    film = vid_format if vid else None
    editor = open_editor(
        Path(output_path), model, device, dtype, seed, num_images, batch_size, resume, quiet, film, strip
    )
    hint_at_words(editor.model, " ".join(words for _, words in wanted))
    settings = EditSettings(
        prompt="",
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        strength=strength,
        clip_guidance_scale=clip_guidance_scale,
        context=context,
    )
    edit_regions(editor, photo, [Region(mask, words) for mask, words in wanted], settings)
