"""The folder that a clip is edited into: its frames, the film, what made them, and a strip to look at.

What belongs here decides when a frame counts as finished and what is written. How frames are made does not.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
from diffusers.utils import make_image_grid

from blended_diffusion.applications.video.clips import Clip, write_video
from blended_diffusion.applications.video.edit import EditedFrame, Frames
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, to_json
from blended_diffusion.editing.results import read_if_there, refusal
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.canvas import CLOSE_UP_BELOW, square_around
from blended_diffusion.pictures.whole_files import writing_to


# frames in the strip, and the longer side of each
FRAMES_SHOWN, FRAME_SIDE = 6, 256


@dataclass(frozen=True)
class FrameRecord:
    """What is known of one frame: as in [`EditedFrame`]."""

    seed: int | None
    clip_distance: float | None
    strength: float | None
    flicker: float | None


@dataclass(frozen=True)
class VideoRecord:
    """How a clip was edited.

    Attributes:
        settings (`EditSettings`): of the first frame; `None` stands for the model's own default.
        frame_strength (`float`): the `strength` of the later frames.
        clip, masks, model (`Origin`): what it was made from.
        seed (`int`), num_images (`int`): of the first frame's first candidate, and how many candidates it had.
        frames_per_second (`float`): of the film.
        made_with (`MadeWith`): on what.
        frames (`list[FrameRecord | None]`): in their order; `None` for what was not begun.
    """

    settings: EditSettings
    frame_strength: float
    clip: Origin
    masks: Origin
    model: Origin
    seed: int
    num_images: int
    frames_per_second: float
    made_with: MadeWith
    frames: list[FrameRecord | None]

    def differences(self, other: "VideoRecord") -> list[str]:
        """The names of what `other` wants otherwise; how fast the film is and where files are does not count."""

        def comparable(record: VideoRecord) -> dict:
            origins = {name: getattr(record, name).sha256 for name in ("clip", "masks", "model")}
            numbers = {name: getattr(record, name) for name in ("frame_strength", "seed", "num_images")}
            return {**asdict(record.settings), **origins, **numbers}

        theirs = comparable(other)
        return [name for name, value in comparable(self).items() if theirs[name] != value]

    @property
    def flicker(self) -> float | None:
        """The mean of the frames' flicker, in 0…255; `None` if nothing came over from one frame to another."""
        values = [frame.flicker for frame in self.frames if frame is not None and frame.flicker is not None]
        return sum(values) / len(values) if values else None


@dataclass
class VideoResults:
    """A folder of results: `video.json`, `frames/000001.png` and on, `result.mp4`, `contact_strip.png`.

    In `painted/` is what the model painted, for later frames to start from.

    A frame is finished when its PNG is there.
    """

    folder: Path
    record: VideoRecord

    @classmethod
    def open(cls, folder: Path, record: VideoRecord, resume: bool, argument: str = "folder") -> "VideoResults":
        """Opens `folder` for the edit that `record` describes, making it if need be.

        Args:
            folder (`Path`): where to write.
            record ([`VideoRecord`]): what is wanted, none of its frames begun.
            resume (`bool`): keep the frames that are finished.
            argument (`str`): what to call `folder` in error messages.

        Raises:
            ValueError: the folder holds the edit of another clip or with other settings, or cannot be written to.
        """
        with writing_to(folder, argument):
            for name in ("frames", "painted"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            earlier = find_record(folder, argument)
            if earlier is not None and (differences := earlier.differences(record)):
                if cls(folder, earlier).num_finished:
                    different = f"{earlier.settings.prompt!r}; different are: {', '.join(differences)}"
                    raise refusal(folder, f"another video ({different})", argument)
                earlier = None  # it came to nothing and stands in nobody's way
            if earlier is not None and resume:
                record = replace(record, frames=earlier.frames)
            results = cls(folder, record)
            results.write_record()
        return results

    @property
    def num_finished(self) -> int:
        return sum(
            frame is not None and self.path_of(index).exists() for index, frame in enumerate(self.record.frames)
        )

    def path_of(self, index: int) -> Path:
        return self.folder / "frames" / f"{index + 1:06}.png"

    def painted_of(self, index: int) -> Path:
        return self.folder / "painted" / f"{index + 1:06}.png"

    def write_record(self) -> None:
        gallery.write_text(to_json(self.record, indent=2) + "\n", self.folder / "video.json")

    def finished(self, index: int) -> EditedFrame | None:
        """The frame of an index, if it is finished."""
        about, path = self.record.frames[index], self.path_of(index)
        if about is None or not path.exists():
            return None
        painted = None if about.seed is None else open_whole(self.painted_of(index))
        return EditedFrame(open_whole(path), painted, **asdict(about))

    def write(self, index: int, made: EditedFrame, icc_profile: bytes | None) -> None:
        """Writes a frame, its PNG last."""
        about = FrameRecord(made.seed, made.clip_distance, made.strength, made.flicker)
        if made.painted is not None:
            gallery.write_png(made.painted, self.painted_of(index))
        self.record.frames[index] = about
        self.write_record()
        gallery.write_png(made.image, self.path_of(index), icc_profile)

    def write_sheets(self, clip: Clip, masks: Frames) -> None:
        """Writes the film and the strip of a clip of which all frames are finished."""
        paths = [self.path_of(index) for index in range(len(clip))]
        speed, sound = self.record.frames_per_second, clip.path if clip.sound else None
        write_video((open_whole(path) for path in paths), self.folder / "result.mp4", speed, sound)

        boxes = np.array([box for mask in masks if (box := mask.getbbox()) is not None])
        around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        left, top, right, bottom = square_around(around, clip.size, 0.25)
        view = (max(left, 0), max(top, 0), min(right, clip.size[0]), min(bottom, clip.size[1]))
        if (view[2] - view[0]) * (view[3] - view[1]) > CLOSE_UP_BELOW * clip.size[0] * clip.size[1]:
            view = (0, 0, *clip.size)
        chosen = sorted({round(index) for index in np.linspace(0, len(clip) - 1, FRAMES_SHOWN)})
        sources = [frame for index, frame in enumerate(clip) if index in chosen]
        tiles = []
        for pictures, label in ((sources, "clip"), ([open_whole(paths[index]) for index in chosen], "edited")):
            for index, shown in zip(chosen, gallery.close_ups(pictures, view, FRAME_SIDE), strict=True):
                tiles.append(gallery.tile(shown, shown.size, label, f"{index + 1}"))
        strip = make_image_grid(tiles, 2, len(chosen))
        flicker = self.record.flicker
        note = "" if flicker is None else f"flicker {flicker:.2f} of 255"
        gallery.write_png(
            gallery.titled(strip, self.record.settings.prompt, note),
            self.folder / "contact_strip.png",
            clip.icc_profile,
        )


def open_whole(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as picture:
        return picture.copy()


def find_record(folder: Path, argument: str = "folder") -> VideoRecord | None:
    """What `folder` holds, if any.

    Raises:
        ValueError: its `video.json` is damaged.
    """
    return read_if_there(VideoRecord, folder / "video.json", argument)
