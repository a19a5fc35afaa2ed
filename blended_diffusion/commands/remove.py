"""`blended-diffusion remove`: a region filled as if nothing had been there."""

from pathlib import Path
from typing import Annotated

from blended_diffusion.commands.finished import write_finished
from blended_diffusion.commands.flags import (
    INPUT,
    BatchSize,
    ClipScale,
    Context,
    Device,
    Dtype,
    Grow,
    InitImage,
    InvertMask,
    MaskBox,
    MaskPolygon,
    MaskPrompt,
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
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.running import open_editor


def remove(
    init_image: InitImage,
    mask: Annotated[
        str | None, flag(INPUT, "--mask", "White is removed, black stays; of the photo's size.", "FILE")
    ] = None,
    box: MaskBox = None,
    polygon: MaskPolygon = None,
    mask_prompt: MaskPrompt = None,
    grow: Grow = 0.0,
    prompt: Annotated[
        str,
        flag(INPUT, "--prompt -p", "What the background is. [default: no words, only the surroundings]", "WORDS"),
    ] = "",
    invert_mask: InvertMask = False,
    negative_prompt: NegativePrompt = None,
    output_path: OutputPath = "output",
    num_images: NumImages = 8,
    seed: Seed = 404,
    resume: Resume = False,
    vid: Vid = False,
    vid_format: VidFormat = "mp4",
    strip: Strip = None,
    num_inference_steps: Steps = None,
    strength: Strength = None,
    clip_guidance_scale: ClipScale = None,
    context: Context = 0.5,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Take something out of a photo: fill the masked region from what surrounds it.

    The fills are made in edit/ of the output folder, as by `edit`; results/ holds them in the order in which they fit
    their surroundings.
    """
    wanted = MaskFlags(
        mask=mask, box=box, polygon=polygon, mask_prompt=mask_prompt, grow=grow, invert_mask=invert_mask
    )
    if not wanted.sources:
        raise ValueError("--mask is missing; say with it, with --box, --polygon or --mask-prompt what to remove.")

    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if wanted.needs_network else wanted.read(photo)

    from blended_diffusion.applications.remove import remove as fill
    from blended_diffusion.painters.settings import EditSettings

    folder = Path(output_path)
    film = vid_format if vid else None
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet, film, strip)
    region = wanted.read(photo, editor.model.pipe.device) if region is None else region
    settings = EditSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        strength=strength,
        clip_guidance_scale=clip_guidance_scale,
        invert_mask=invert_mask and wanted.is_file,
        context=context,
    )
    edited = fill(editor, photo, region, settings, "edit")
    write_finished(folder, photo, region, edited, prompt or "removed", quiet)
