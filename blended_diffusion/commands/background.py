"""`blended-diffusion background`: another background behind what the mask keeps."""

from pathlib import Path
from typing import Annotated

from blended_diffusion.commands.finished import write_finished
from blended_diffusion.commands.flags import (
    INPUT,
    METHOD,
    BatchSize,
    ClipScale,
    Device,
    Dtype,
    Grow,
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
    scale,
)
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.running import hint_at_words, open_editor


def background(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the background should show.", "WORDS")],
    init_image: InitImage,
    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is the foreground and stays, black is painted; of the photo's size.", "FILE"),
    ] = None,
    mask_prompt: Annotated[
        str | None, flag(INPUT, "--mask-prompt", "Keep what these words name, as CLIPSeg sees it.", "WORDS")
    ] = None,
    grow: Grow = 0.0,
    invert_mask: Annotated[bool, flag(INPUT, "--invert_mask", "The mask's black is the foreground.")] = False,
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
    edge: Annotated[
        float | None,
        flag(
            METHOD,
            "--edge",
            "How far the soft edge reaches to either side of the mask's; more for hair. [default: a hundredth of the"
            " photo's shorter side]",
            "PIXELS",
            scale,
        ),
    ] = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Paint another background behind a foreground that keeps soft edges.

    The background is painted in edit/ of the output folder, as by `edit`; results/ holds the pictures with the
    foreground put back, best first, matte.png how much of each pixel that is.
    """
    wanted = MaskFlags(mask=mask, mask_prompt=mask_prompt, grow=grow, invert_mask=invert_mask)
    if not wanted.sources:
        raise ValueError("--mask is missing; say with it or with --mask-prompt what the foreground is.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    foreground = None if wanted.needs_network else wanted.read(photo)

    from blended_diffusion import masks
    from blended_diffusion.applications.background import matte, replace_background
    from blended_diffusion.painters.settings import EditSettings
    from blended_diffusion.pictures import gallery

    folder = Path(output_path)
    film = vid_format if vid else None
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet, film, strip)
    hint_at_words(editor.model, prompt)
    foreground = wanted.read(photo, editor.model.pipe.device) if foreground is None else foreground
    keep = inputs.picture_of(foreground)
    settings = EditSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        strength=strength,
        clip_guidance_scale=clip_guidance_scale,
    )
    edited = replace_background(editor, photo, keep, settings, edge, "edit")
    gallery.write_png(matte(photo.image, keep, edge), folder / "matte.png")
    write_finished(folder, photo, masks.invert(keep), edited, prompt, quiet)
