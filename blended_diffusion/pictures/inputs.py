"""Reading what people give us: the photo, the mask, the words.

What belongs here turns files into upright pictures of eight bits a channel, and says in one sentence what is wrong
with a file that cannot be one. What is done with the pictures does not.
"""

import difflib
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import PIL.ImageOps


# words that say nothing about the thing wanted: "a photo of a rock" asks for a rock
FILLER_WORDS = frozenset("a an the of on in with and photo picture image".split())


@dataclass(frozen=True)
class Photo:
    """A photo as people see it.

    Attributes:
        image (`PIL.Image.Image`): upright, of mode `RGB`, or `RGBA` if the file knows transparency.
        icc_profile (`bytes`, *optional*): the colour profile of those numbers.
        path (`Path`): where it was read, absolute.
        sha256 (`str`): of the file.
    """

    image: PIL.Image.Image
    icc_profile: bytes | None
    path: Path
    sha256: str


@dataclass(frozen=True)
class Mask:
    """Which pixels to edit.

    Attributes:
        image (`PIL.Image.Image`): of mode `L`, 255 = edit, 0 = keep; nothing between, unless its greys are to say how
            much.
        path (`Path`): where it was read, absolute.
        sha256 (`str`): of the file.
    """

    image: PIL.Image.Image
    path: Path
    sha256: str


def picture_of(given: PIL.Image.Image | Photo | Mask) -> PIL.Image.Image:
    """The picture itself, whether it came from a file or not."""
    return given.image if isinstance(given, (Photo, Mask)) else given


def profile_of(given: PIL.Image.Image | Photo) -> bytes | None:
    """The colour profile of a photo; a picture that came from no file has none."""
    return given.icc_profile if isinstance(given, Photo) else None


def read_photo(path: str | Path, argument: str = "photo", size: tuple[int, int] | None = None) -> Photo:
    """Reads a photo, turned as its EXIF orientation says.

    RGB, grey and palette pictures keep their numbers and their colour profile; CMYK and grey ones with a profile of
    their own kind are brought to sRGB, because their profile cannot describe the coloured result.

    Args:
        path (`str` or `Path`): a file of any format Pillow reads; of several frames the first is taken.
        argument (`str`): what to call it in error messages.
        size (`tuple[int, int]`, *optional*): of the photo that it must match, `(width, height)`.

    Raises:
        ValueError: there is no such file, it is not a picture, it is damaged, it has more than 8 bits a channel, or it
            is of another size.
    """
    file, path, sha256 = open_picture(path, argument)
    # PNG and TIFF decoders name the bits a channel in the raw mode they decode from, "RGB;16B" for one
    if file.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in file.tile):
        raise ValueError(
            f"{argument} {str(path)!r} has more than 8 bits a channel, of which the result would keep 8; save it with"
            " 8 bits a channel first."
        )
    decode(file, path, argument)
    image = PIL.ImageOps.exif_transpose(file)
    if size is not None:
        _check_size(image, size, path, argument)
    profile: bytes | None = image.info.get("icc_profile")
    if profile is not None:
        space = profile[16:20]
        if space == b"CMYK" and image.mode == "CMYK" or space == b"GRAY" and image.mode in ("L", "LA"):
            image = _to_srgb(image, profile, path, argument)
        if space != b"RGB ":
            profile = None  # applied, or of another kind than the numbers
    return Photo(image.convert("RGBA" if image.has_transparency_data else "RGB"), profile, path, sha256)


def read_mask(
    path: str | Path,
    size: tuple[int, int],
    invert: bool = False,
    argument: str = "mask",
    keep_greys: bool = False,
) -> Mask:
    """Reads a mask: white is edited, black is kept, greys fall to the nearer of the two, transparent counts as black.

    Args:
        path (`str` or `Path`): a file of any format Pillow reads.
        size (`tuple[int, int]`): the upright photo's `(width, height)`, which the mask must have.
        invert (`bool`): edit the black instead.
        argument (`str`): what to call it in error messages.
        keep_greys (`bool`): leave greys as they are, or inverted.

    Raises:
        ValueError: the file cannot be read, is of another size, or leaves nothing to edit.
    """
    file, path, sha256 = open_picture(path, argument)
    decode(file, path, argument)
    image = PIL.ImageOps.exif_transpose(file)
    _check_size(image, size, path, argument)
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L")
    darkest, brightest = image.getextrema()
    image = black_and_white(image, invert, keep_greys)
    if image.getbbox() is None:
        found = f"its darkest pixel is {darkest}" if invert else f"its brightest pixel is {brightest}"
        colour = "black, because it is inverted," if invert else "white"
        raise ValueError(
            f"{argument} {str(path)!r} leaves nothing to edit: {found} of 255; paint {colour} what is to be edited."
        )
    return Mask(image, path, sha256)


def as_photo(photo: str | Path | PIL.Image.Image | Photo) -> Photo:
    """The photo in a file, which is read, or as it is given: a picture that came from no file has no path.

    Raises:
        ValueError: the file cannot be read.
    """
    if isinstance(photo, Photo):
        return photo
    if not isinstance(photo, PIL.Image.Image):
        return read_photo(photo)
    image = photo.convert("RGBA" if photo.has_transparency_data else "RGB")
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return Photo(image, photo.info.get("icc_profile"), Path("in memory"), digest)


def as_mask(
    mask: str | Path | PIL.Image.Image | Mask, size: tuple[int, int], invert: bool = False, keep_greys: bool = False
) -> Mask:
    """The mask in a file, which is read, or as it is given; a picture is taken as a file of it would be.

    Args:
        mask (`str`, `Path`, `PIL.Image.Image` or [`Mask`]): a [`Mask`] stays as it is.
        size (`tuple[int, int]`): the photo's `(width, height)`, which the mask must have.
        invert (`bool`), keep_greys (`bool`): as in [`read_mask`].

    Raises:
        ValueError: it cannot be used.
    """
    if isinstance(mask, Mask):
        return mask
    if not isinstance(mask, PIL.Image.Image):
        return read_mask(mask, size, invert, keep_greys=keep_greys)
    if mask.size != size:
        raise ValueError(
            f"`mask` is {mask.width}×{mask.height} pixels (width×height) and the photo is {size[0]}×{size[1]}; they"
            " must be the same size."
        )
    image = black_and_white(mask, invert, keep_greys)
    if image.getbbox() is None:
        raise ValueError(
            f"`mask` leaves nothing to edit; paint {'black' if invert else 'white'} what is to be edited."
        )
    return Mask(image, Path("in memory"), hashlib.sha256(image.tobytes()).hexdigest())


def black_and_white(image: PIL.Image.Image, invert: bool = False, keep_greys: bool = False) -> PIL.Image.Image:
    """A mask of mode `L` whose greys have fallen to black or white, unless they are to be kept; and then inverted."""
    levels = [level if keep_greys else 255 * (level >= 128) for level in range(256)]
    return image.convert("L").point([255 - level if invert else level for level in levels])


def shows(path: Path, image: PIL.Image.Image) -> bool:
    """Whether a file is there and shows exactly this picture."""
    if not path.exists():
        return False
    with PIL.Image.open(path) as picture:
        same_kind = (picture.mode, picture.size) == (image.mode, image.size)
        return same_kind and picture.tobytes() == image.tobytes()


def unknown_words(prompt: str, known: Sequence[str]) -> list[str]:
    """The words of `prompt` that are neither in `known` (words or phrases) nor mere filler, in their order."""
    rest = " ".join(re.findall(r"\w+", prompt.lower()))
    for phrase in sorted(known, key=len, reverse=True):
        rest = re.sub(rf"\b{re.escape(phrase)}(s|es)?\b", " ", rest)
    return [word for word in dict.fromkeys(rest.split()) if word not in FILLER_WORDS]


def closest_first(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """`known`, those most like one of `words` first, the others as they were."""
    close = [match for word in words for match in difflib.get_close_matches(word, known, n=3)]
    return list(dict.fromkeys([*close, *known]))


def open_picture(path: str | Path, argument: str) -> tuple[PIL.ImageFile.ImageFile, Path, str]:
    path = Path(path).absolute()
    if path.is_dir():
        raise ValueError(f"{argument} {str(path)!r} is a folder; give a picture file.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{argument} {str(path)!r} does not exist; give a picture file.") from None
    except OSError as error:
        raise ValueError(f"{argument} {str(path)!r} cannot be read ({error.strerror}).") from None
    try:
        image = PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError:
        raise ValueError(
            f"{argument} {str(path)!r} is not a picture that can be read; give a PNG, JPEG, WebP or TIFF file."
        ) from None
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{argument} {str(path)!r} is too large: {error}") from None
    return image, path, hashlib.sha256(data).hexdigest()


def decode(image: PIL.Image.Image, path: Path, argument: str) -> None:
    # the decoders raise OSError, SyntaxError, ValueError, zlib.error, struct.error … on damaged files
    try:
        image.load()
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{argument} {str(path)!r} is damaged ({reason}); give an intact picture file.") from None


def _check_size(image: PIL.Image.Image, size: tuple[int, int], path: Path, argument: str) -> None:
    if image.size != size:
        raise ValueError(
            f"{argument} {str(path)!r} is {image.width}×{image.height} pixels (width×height) and the photo is"
            f" {size[0]}×{size[1]}; they must be the same size."
        )


def _to_srgb(image: PIL.Image.Image, profile: bytes, path: Path, argument: str) -> PIL.Image.Image:
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image if image.mode == "CMYK" else image.convert("L")
    try:
        image = PIL.ImageCms.profileToProfile(  # type: ignore[assignment]  # `None` only of `inPlace=True`
            plain, io.BytesIO(profile), PIL.ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except PIL.ImageCms.PyCMSError as error:
        raise ValueError(
            f"{argument} {str(path)!r} has a colour profile that cannot be used ({error}); save it as sRGB."
        ) from None
    if alpha is not None:
        image.putalpha(alpha)
    return image
