"""What flickers in an edited clip: frames made from the first one, against frames edited independently.

python -m benchmarks.flicker

Flicker is the mean absolute difference, inside the mask, between a frame and the frame before it moved along by the
optical flow of the clip, of 255. All three ways have the same squares.
"""

import itertools
import statistics
import tempfile
from pathlib import Path

from blended_diffusion.applications.video.clips import read_clip, read_masks
from blended_diffusion.applications.video.edit import EditedFrame, edit_frame, edit_video, steady_squares
from blended_diffusion.applications.video.flow import dense_flow, flicker
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from examples.make_clip import main as make_clip


WORDS = "frog"
FRAMES = 12


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_clip(Path(folder))
        clip = read_clip(Path(folder) / "frames")
        masks = list(read_masks(Path(folder) / "masks", clip))[:FRAMES]
        frames = list(clip)[:FRAMES]
    flows = [dense_flow(frame, before) for before, frame in itertools.pairwise(frames)]

    def report(name: str, made: list[EditedFrame]) -> None:
        pairs = itertools.pairwise([each.image for each in made])
        values = [
            flicker(now, before, mask, flow) for (before, now), mask, flow in zip(pairs, masks[1:], flows, strict=True)
        ]
        distance = statistics.mean(each.clip_distance for each in made)
        print(f"{statistics.mean(values):6.2f}  {name}; CLIP distance {distance:.4f}", flush=True)

    editor, settings = Editor(), EditSettings(WORDS)
    editor.model.pipe.set_progress_bar_config(disable=True)
    made = list(edit_video(editor, frames, masks, settings))
    report("later frames from the first one", made)

    squares = steady_squares([mask.getbbox() for mask in masks], clip.size, settings.context)
    for name, seeds in (
        ("independent frames of one seed", [made[0].seed] * len(frames)),
        ("independent frames of different seeds", range(editor.seed, editor.seed + len(frames))),
    ):
        alone = [
            edit_frame(Editor(editor.model, seed, num_images=1), frame, mask, square, settings, start=frame)
            for frame, mask, square, seed in zip(frames, masks, squares, seeds, strict=True)
        ]
        report(name, alone)


if __name__ == "__main__":
    main()
