"""Clips from video files and folders of frames, and films of the frames that were made.

What belongs here reads and writes many pictures of one size, one at a time: a clip need not fit into memory.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import PIL.Image
import PIL.ImageOps

from blended_diffusion.pictures import inputs
from blended_diffusion.pictures.whole_files import whole_file


# what imageio hands to ffmpeg
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".h264")

# of 0…10; imageio's own 5 smears what the model paints
FILM_QUALITY = 8


@dataclass(frozen=True)
class Clip:
    """Frames of one size, read anew each time they are walked through.

    Attributes:
        path (`Path`): a video file, a folder of frames, or one picture that stands for every frame; absolute.
        sha256 (`str`): of the file, or of a folder's frames.
        size (`tuple[int, int]`): width and height.
        count (`int`): of frames.
        frames_per_second (`float`, *optional*): of a video file.
        icc_profile (`bytes`, *optional*): the colour profile of a folder's frames.
        sound (`bool`): whether the video file has some.
        pictures (`Callable`): opens the frames: upright, of mode `RGB` or `RGBA`, or `L` for masks.
    """

    path: Path
    sha256: str
    size: tuple[int, int]
    count: int
    frames_per_second: float | None
    icc_profile: bytes | None
    sound: bool
    pictures: Callable[[], Iterator[PIL.Image.Image]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        return self.pictures()


def read_clip(path: str | Path, argument: str = "clip") -> Clip:
    """Opens a clip, having looked at every frame once.

    Args:
        path (`str` or `Path`): a video file, or a folder whose pictures are the frames in the order of their names,
            `frame2.png` before `frame10.png`.
        argument (`str`): what to call it in error messages.

    Raises:
        ValueError: there is no such clip, a frame cannot be read, or the frames differ in size or colour profile.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return _read_folder(path, argument)
    if not path.exists():
        raise ValueError(f"{argument} {str(path)!r} does not exist; give a video file or a folder of frames.")
    return _read_video(path, argument)


def read_masks(path: str | Path, clip: Clip, invert: bool = False, argument: str = "mask") -> Clip:
    """Opens the masks of a clip: white is edited, black is kept, greys fall to the nearer of the two.

    Args:
        path (`str` or `Path`): one picture for all frames, or a folder or a video file with one mask for each frame.
        clip ([`Clip`]): what they are for.
        invert (`bool`): edit the black instead.
        argument (`str`): what to call it in error messages.

    Returns:
        [`Clip`] of as many masks as `clip` has frames, of mode `L`, 255 = edit, 0 = keep, nothing between. A mask may
        be black all over: its frame is to stay as it is.

    Raises:
        ValueError: a mask cannot be read, is of another size, there are neither one nor as many as frames, or none of
            them has anything to edit.
    """
    path = Path(path).absolute()
    if path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES:
        mask = inputs.read_mask(path, clip.size, invert, argument)
        one = Clip(mask.path, mask.sha256, clip.size, 1, None, None, False, lambda: iter([mask.image]))
        return _repeated(one, clip)
    found = read_clip(path, argument)
    if found.size != clip.size:
        raise ValueError(
            f"{argument} {str(path)!r} has masks of {found.size[0]}×{found.size[1]} pixels (width×height) and the"
            f" frames are {clip.size[0]}×{clip.size[1]}; they must be the same size."
        )
    if found.count not in (1, clip.count):
        raise ValueError(
            f"{argument} {str(path)!r} has {found.count} masks for {clip.count} frames; give one, or one for each"
            " frame."
        )
    masks = replace(found, pictures=lambda: (_black_and_white(image, invert) for image in found))
    if all(mask.getbbox() is None for mask in masks):
        colour = "black, because they are inverted," if invert else "white"
        raise ValueError(
            f"{argument} {str(path)!r} leaves nothing to edit in any frame; paint {colour} what is to be edited."
        )
    return _repeated(masks, clip)


def write_video(frames: Iterable[PIL.Image.Image], path: Path, frames_per_second: float, sound: Path | None) -> None:
    """Writes an `.mp4` (H.264) that is whole whenever it is there.

    Its width and height are even, as players want them: the last column or row of odd frames comes twice. Compression
    changes every pixel a little, also where the frames themselves are exact.

    Args:
        frames (`Iterable[PIL.Image.Image]`): of one size; transparency is laid over white.
        path (`Path`): a name ending in `.mp4`.
        frames_per_second (`float`): of the film.
        sound (`Path`, *optional*): a video file whose sound to take.
    """
    with whole_file(path) as part:
        writer = imageio.get_writer(
            part,
            format="FFMPEG",
            fps=frames_per_second,
            quality=FILM_QUALITY,
            macro_block_size=2,
            audio_path=None if sound is None else str(sound),
        )
        with writer:
            for frame in frames:
                if frame.mode == "RGBA":
                    frame = PIL.Image.alpha_composite(PIL.Image.new("RGBA", frame.size, "white"), frame)
                odd = ((0, frame.height % 2), (0, frame.width % 2), (0, 0))
                writer.append_data(np.pad(np.asarray(frame.convert("RGB")), odd, mode="edge"))


def _read_folder(path: Path, argument: str) -> Clip:
    known = PIL.Image.registered_extensions()
    files = [file for file in path.iterdir() if file.suffix.lower() in known and not file.name.startswith(".")]
    files.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)])
    if not files:
        raise ValueError(
            f"{argument} {str(path)!r} is a folder without pictures; give one whose pictures are the frames."
        )
    digest = hashlib.sha256()
    first = inputs.read_photo(files[0], argument)
    for file in files:
        photo = inputs.read_photo(file, argument)
        if photo.image.size != first.image.size:
            raise ValueError(
                f"{argument} {str(file)!r} is {photo.image.width}×{photo.image.height} pixels (width×height) and the"
                f" first frame is {first.image.width}×{first.image.height}; all frames must be the same size."
            )
        if photo.icc_profile != first.icc_profile:
            raise ValueError(
                f"{argument} {str(file)!r} has another colour profile than the first frame; save all frames with one."
            )
        digest.update(bytes.fromhex(photo.sha256))

    def pictures() -> Iterator[PIL.Image.Image]:
        return (inputs.read_photo(file, argument).image for file in files)

    return Clip(path, digest.hexdigest(), first.image.size, len(files), None, first.icc_profile, False, pictures)


def _read_video(path: Path, argument: str) -> Clip:
    def pictures() -> Iterator[PIL.Image.Image]:
        reader = imageio.get_reader(path, format="FFMPEG")
        with reader:
            for frame in reader:  # type: ignore[attr-defined]  # imageio's hint names a frame, not an iterator
                yield PIL.Image.fromarray(frame)

    try:
        reader = imageio.get_reader(path, format="FFMPEG")
        with reader:
            about = reader.get_meta_data()
        count = sum(1 for _ in pictures())
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no video that ffmpeg can read"
        raise ValueError(
            f"{argument} {str(path)!r} cannot be read ({reason}); give a video file, such as an .mp4, or a folder of"
            " frames."
        ) from None
    if count == 0:
        raise ValueError(f"{argument} {str(path)!r} is a video without frames; give one that has some.")
    rate = about["fps"]
    if not 0 < rate < math.inf:
        raise ValueError(f"{argument} {str(path)!r} does not say how fast it is; save it with a frame rate.")
    return Clip(path, digest.hexdigest(), tuple(about["size"]), count, rate, None, "audio_codec" in about, pictures)


def _black_and_white(image: PIL.Image.Image, invert: bool) -> PIL.Image.Image:
    if image.mode == "RGBA":
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "black"), image)
    mask = image.convert("L").point([0] * 128 + [255] * 128)
    return PIL.ImageOps.invert(mask) if invert else mask


def _repeated(masks: Clip, clip: Clip) -> Clip:
    """One mask as many times as `clip` has frames."""
    if masks.count == clip.count:
        return masks
    (mask,) = masks
    return replace(masks, count=clip.count, pictures=lambda: (mask for _ in range(clip.count)))
