"""`blended-diffusion video`: a clip, what is painted moved along with it."""

from dataclasses import dataclass
from typing import Annotated

import typer

from blended_diffusion.commands.flags import Context, MachineFlags, MethodFlags, OutputFlags, Quiet
from blended_diffusion.commands.groups import INPUT, METHOD, OUTPUT, flag, with_groups
from blended_diffusion.commands.parsers import number, setting
from blended_diffusion.commands.running import hint_at_words, note_another_machine, open_editor, show
from blended_diffusion.painters.limits import Limit
from blended_diffusion.painters.settings import EditSettings


FRAME_RATES = Limit(0, 1000, above_minimum=True)


@dataclass(frozen=True)
class VideoOutputFlags(OutputFlags):
    """Where frames are written, and how many candidates the first one has."""

    num_images: Annotated[
        int, flag(OUTPUT, "--num-images", "How many candidates of the first frame.", "N", setting("num_images"))
    ] = 4


@with_groups
def video_command(
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
    *,
    output: VideoOutputFlags,
    fps: Annotated[
        float | None,
        flag(
            OUTPUT,
            "--fps",
            "Frames per second of result.mp4. [default: the video's own, 24 for a folder]",
            "X",
            number(FRAME_RATES.allows, FRAME_RATES),
        ),
    ] = None,
    method: MethodFlags,
    frame_strength: Annotated[
        float | None,
        flag(
            METHOD,
            "--frame-strength",
            "The strength of the frames after the first. [default: 0.25]",
            "X",
            setting("strength"),
        ),
    ] = None,
    context: Context = EditSettings.context,
    machine: MachineFlags,
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

    folder = output.folder
    earlier = find_record(folder, "--output_path")
    editor = open_editor(output, machine, quiet)
    hint_at_words(editor.model, prompt)
    record = VideoRecord(
        settings=EditSettings(prompt=prompt, invert_mask=invert_mask, context=context, **method.settings),
        frame_strength=FRAME_STRENGTH if frame_strength is None else frame_strength,
        clip=Origin(str(clip.path), clip.sha256),
        masks=Origin(str(masks.path), masks.sha256),
        model=Origin(editor.model.name, editor.model.sha256),
        seed=output.seed,
        num_images=output.num_images,
        frames_per_second=fps or clip.frames_per_second or 24.0,
        made_with=editor.made_with,
        frames=[None] * len(clip),
    )
    results = VideoResults.open(folder, record, output.resume, "--output_path")
    if earlier is not None and not output.resume and (lost := VideoResults(folder, earlier).num_finished):
        show(f"note: making all {len(clip)} frames again; --resume would keep the {lost} that are finished")
    if earlier is not None and output.resume:
        note_another_machine(earlier.made_with, editor.made_with)
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
        flickering = "" if flicker is None else f", flicker {flicker:.2f} of 255 inside the mask"
        typer.echo(f"{len(clip)} frames in {folder / 'frames'}{flickering}")
        typer.echo(f"to look at: {folder / 'result.mp4'}, {folder / 'contact_strip.png'}")
