"""`blended-diffusion video`: a clip, what is painted moved along with it."""

from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    INPUT,
    METHOD,
    OUTPUT,
    BatchSize,
    ClipScale,
    Context,
    Device,
    Dtype,
    ModelName,
    NegativePrompt,
    OutputPath,
    Quiet,
    Resume,
    Seed,
    Steps,
    Strength,
    count,
    flag,
    number,
    share,
)
from blended_diffusion.commands.running import hint_at_words, open_editor, show
from blended_diffusion.painters.settings import EditSettings


def video(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the masked region should show.", "WORDS")],
    video: Annotated[
        str,
        flag(INPUT, "--video -i", "A video file, or a folder of frames in the order of their names.", "FILE|FOLDER"),
    ],
    mask: Annotated[
        str,
        flag(
            INPUT,
            "--mask",
            "White is edited, black is kept: a picture for all frames, or a folder or a video with a mask for each.",
            "FILE|FOLDER",
        ),
    ],
    invert_mask: Annotated[bool, flag(INPUT, "--invert_mask", "Edit the masks' black instead.")] = False,
    negative_prompt: NegativePrompt = None,
    output_path: OutputPath = "output",
    num_images: Annotated[
        int, flag(OUTPUT, "--num-images", "How many candidates of the first frame.", "N", count)
    ] = 4,
    seed: Seed = 404,
    resume: Resume = False,
    fps: Annotated[
        float | None,
        flag(
            OUTPUT,
            "--fps",
            "Frames per second of result.mp4. [default: the video's own, 24 for a folder]",
            "X",
            number(lambda value: 0 < value <= 1000, "a number above 0 and at most 1000"),
        ),
    ] = None,
    num_inference_steps: Steps = None,
    strength: Strength = None,
    frame_strength: Annotated[
        float | None,
        flag(METHOD, "--frame-strength", "The strength of the frames after the first. [default: 0.25]", "X", share),
    ] = None,
    clip_guidance_scale: ClipScale = None,
    context: Context = EditSettings.context,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Edit the masked region of a clip; what is painted moves with the picture.

    The best of several candidates is taken for the first frame. Each later frame starts from what was painted there,
    moved along by the optical flow, and is gone over with less strength. Outside the mask the pictures in frames/ are
    the clip's, to the last bit; result.mp4 is a compressed copy of them. Needs OpenCV: pip install
    'blended-diffusion[video]'.
    """
    from blended_diffusion.applications.video.clips import read_clip, read_masks

    clip = read_clip(video, "--video")
    masks = read_masks(mask, clip, invert_mask, "--mask")

    from tqdm.auto import tqdm

    from blended_diffusion.applications.video.edit import FRAME_STRENGTH, edit_video
    from blended_diffusion.applications.video.results import VideoRecord, VideoResults, find_record
    from blended_diffusion.editing.records import Origin

    folder = Path(output_path)
    earlier = find_record(folder, "--output_path")
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet)
    hint_at_words(editor.model, prompt)
    record = VideoRecord(
        settings=EditSettings(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            strength=strength,
            clip_guidance_scale=clip_guidance_scale,
            invert_mask=invert_mask,
            context=context,
        ),
        frame_strength=FRAME_STRENGTH if frame_strength is None else frame_strength,
        clip=Origin(str(clip.path), clip.sha256),
        masks=Origin(str(masks.path), masks.sha256),
        model=Origin(editor.model.name, editor.model.sha256),
        seed=seed,
        num_images=num_images,
        frames_per_second=fps or clip.frames_per_second or 24.0,
        made_with=editor.made_with,
        frames=[None] * len(clip),
    )
    results = VideoResults.open(folder, record, resume, "--output_path")
    if earlier is not None and not resume and (lost := VideoResults(folder, earlier).num_finished):
        show(f"note: making all {len(clip)} frames again; --resume would keep the {lost} that are finished")
    if earlier is not None and resume and (changed := earlier.made_with.differences(editor.made_with)):
        show(
            f"note: what is finished was made with another {', '.join(changed)}; the rest may differ in its last bits"
        )
    editor.model.pipe.set_progress_bar_config(disable=quiet, desc="steps", leave=False)
    frames = edit_video(editor, clip, masks, results.record.settings, record.frame_strength, finished=results.finished)
    with tqdm(total=len(clip), desc="frames", unit="frame", disable=quiet) as bar:
        try:
            for index, made in enumerate(frames):
                if results.finished(index) is None:
                    results.write(index, made, clip.icc_profile)
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            show(f"interrupted: {results.num_finished} of {len(clip)} frames are finished; --resume makes the others")
            raise
    results.write_sheets(clip, masks)
    if not quiet:
        flicker = results.record.flicker
        said = "" if flicker is None else f", flicker {flicker:.2f} of 255 inside the mask"
        typer.echo(f"{len(clip)} frames in {folder / 'frames'}{said}")
        typer.echo(f"to look at: {folder / 'result.mp4'}, {folder / 'contact_strip.png'}")
