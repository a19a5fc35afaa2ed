"""Making what people look at: the pictures' files, the contact sheet, before and after, the film.

What belongs here lays out and writes pictures. How they came to be does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont
from diffusers.utils import export_to_gif, export_to_video, make_image_grid
from PIL.PngImagePlugin import PngInfo

from blended_diffusion.pictures import TEXT_KEY, Box
from blended_diffusion.pictures.whole_files import whole_file


PAPER, INK, FAINT_INK, ACCENT = "#f6f5f2", "#1d1d1f", "#77757a", "#e8530e"
FRAMES_PER_SECOND = 12


def write_png(image: PIL.Image.Image, path: Path, icc_profile: bytes | None = None, text: str | None = None) -> None:
    """Writes a PNG that is whole whenever it is there.

    Args:
        image (`PIL.Image.Image`): of mode `RGB`, `RGBA` or `L`.
        path (`Path`): a name ending in `.png`.
        icc_profile (`bytes`, *optional*): the colour profile of its numbers.
        text (`str`, *optional*): ASCII, stored in a text chunk of the key [`TEXT_KEY`].
    """
    chunks = PngInfo()
    if text is not None:
        chunks.add_text(TEXT_KEY, text)
    with whole_file(path) as part:
        image.save(part, format="PNG", pnginfo=chunks, icc_profile=icc_profile)


def write_text(text: str, path: Path) -> None:
    """Writes a text file that is whole whenever it is there."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Entry:
    """One finished picture: where it is, its CLIP distance and its seed."""

    path: Path
    clip_distance: float
    seed: int


def contact_sheet(
    photo: PIL.Image.Image, mask: PIL.Image.Image, view: Box, entries: Sequence[Entry], title: str
) -> PIL.Image.Image:
    """The source, the mask and all pictures, best first, under a title; distance and seed under each.

    Args:
        photo, mask (`PIL.Image.Image`): of one size.
        view (`tuple[int, int, int, int]`): the part of each picture to show. If it is not all of it, the photo
            is shown once as a whole too, with that part marked.
        entries (`Sequence[Entry]`): best first.
        title (`str`): the words that were wanted.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    whole = (0, 0, *photo.size)
    count = len(entries) + (2 if view == whole else 3)
    fewest = min(math.ceil(math.sqrt(count)), 8)
    columns = min(range(fewest, min(fewest + 2, 8) + 1), key=lambda columns: -count % columns)  # fewest gaps
    side = 384 if columns <= 5 else 256

    source = _fit(_flat(photo.crop(view)), side, side)
    size = (max(source.width, side // 2), source.height)  # room for the labels
    tiles = []
    if view != whole:
        overview = _fit(_flat(photo), *size)
        tiles.append(tile(_with_frame(overview, view, overview.width / photo.width), size, "photo"))
    tiles.append(tile(source, size, "source"))
    tiles.append(tile(_with_outline(source, mask.crop(view), tint=True), size, "mask"))
    for rank, entry in enumerate(entries, start=1):
        with PIL.Image.open(entry.path) as picture:
            shown = _fit(_flat(picture.crop(view)), side, side)
        tiles.append(tile(shown, size, f"{rank}  ·  {entry.clip_distance:.4f}", f"seed {entry.seed}", best=rank == 1))

    rows = math.ceil(len(tiles) / columns)
    tiles += [PIL.Image.new("RGB", tiles[0].size, PAPER)] * (rows * columns - len(tiles))
    return titled(make_image_grid(tiles, rows, columns), title, "CLIP distance (lower is better) and seed")


def before_after(photo: PIL.Image.Image, mask: PIL.Image.Image, view: Box, best: Path, title: str) -> PIL.Image.Image:
    """The photo with the mask outlined beside the picture `best`, and below them their part `view` from near.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    whole = (0, 0, *photo.size)
    side = 640
    rows = [whole] if view == whole else [whole, view]
    with PIL.Image.open(best) as picture:
        edited = picture.copy()
    tiles = []
    for box in rows:
        before = _with_outline(_fit(_flat(photo.crop(box)), side, side), mask.crop(box))
        after = _fit(_flat(edited.crop(box)), side, side)
        for shown, label in ((before, "before"), (after, "after")):
            tiles.append(tile(shown, shown.size, label if box == whole else f"{label}, close up"))
    width = max(each.width for each in tiles)
    strips = [make_image_grid([left, right], 1, 2) for left, right in zip(tiles[::2], tiles[1::2], strict=True)]
    sheet = PIL.Image.new("RGB", (2 * width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, ((sheet.width - strip.width) // 2, top))
        top += strip.height
    return titled(sheet, title)


def outlined(photo: PIL.Image.Image, mask: PIL.Image.Image, longest: int = 1024) -> PIL.Image.Image:
    """The photo, its longer side at most `longest` pixels, with the mask tinted and its edge drawn.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    return _with_outline(_fit(_flat(photo), longest, longest), mask, tint=True)


def film(source: PIL.Image.Image, steps: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """The frames of a picture's coming into being.

    Args:
        source (`PIL.Image.Image`): what was there before.
        steps (`Sequence[PIL.Image.Image]`): what was there after each step, of the same size.

    Returns:
        `list[PIL.Image.Image]` of mode `RGB`: the source for half a second, the steps, the result for a second and a
        half.
    """
    before, during = _flat(source), [_flat(step) for step in steps]
    return [before] * (FRAMES_PER_SECOND // 2) + during + [during[-1]] * (FRAMES_PER_SECOND * 3 // 2)


def strip_of_steps(
    source: PIL.Image.Image, steps: Sequence[PIL.Image.Image], count: int, title: str
) -> PIL.Image.Image:
    """A picture's coming into being side by side: the source and `count` of the steps, evenly apart, numbered.

    Args:
        source (`PIL.Image.Image`): what was there before.
        steps (`Sequence[PIL.Image.Image]`): what was there after each step, of the same size.
        count (`int`): how many of them to show, the last always; all if there are fewer.
        title (`str`): the words that were wanted.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    chosen = evenly(len(steps), count)
    labels = ["before", *(f"step {index + 1}" for index in chosen)]
    return strip([source, *(steps[index] for index in chosen)], labels, title=title, note=f"{len(steps)} steps")


def evenly(total: int, count: int) -> list[int]:
    """`count` of the indices below `total`, evenly apart and with the last one; all if there are fewer."""
    count = min(count, total)
    return [total * number // count - 1 for number in range(1, count + 1)]


def strip(
    pictures: Sequence[PIL.Image.Image],
    labels: Sequence[str],
    notes: Sequence[str] | None = None,
    title: str = "",
    note: str = "",
) -> PIL.Image.Image:
    """Pictures side by side under a title, a label and a note below each; four in a row.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): of one size.
        labels (`Sequence[str]`), notes (`Sequence[str]`, *optional*): one for each of them.
        title, note (`str`): above them, left and right.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    notes = [""] * len(pictures) if notes is None else notes
    shown = [_fit(_flat(picture), 256, 256) for picture in pictures]
    size = (max(shown[0].width, 192), shown[0].height)  # room for the labels
    tiles = [tile(*each) for each in zip(shown, [size] * len(shown), labels, notes, strict=True)]
    columns = min(len(tiles), 4)
    rows = math.ceil(len(tiles) / columns)
    tiles += [PIL.Image.new("RGB", tiles[0].size, PAPER)] * (rows * columns - len(tiles))
    return titled(make_image_grid(tiles, rows, columns), title, note)


def close_ups(images: Sequence[PIL.Image.Image], view: Box, longest: int = 512) -> list[PIL.Image.Image]:
    """The part `view` of each picture, its longer side `longest` pixels, both sides even as films need it."""
    scale = longest / max(view[2] - view[0], view[3] - view[1])
    width, height = (max(2, 2 * round((view[axis + 2] - view[axis]) * scale / 2)) for axis in (0, 1))
    return [_flat(image.crop(view)).resize((width, height), PIL.Image.Resampling.LANCZOS) for image in images]


def slideshow(pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """The frames of a film that shows each picture for a quarter of a second, the first and the last for one."""
    short = FRAMES_PER_SECOND // 4
    lengths = [FRAMES_PER_SECOND, *[short] * (len(pictures) - 2), FRAMES_PER_SECOND]
    return [_flat(picture) for picture, length in zip(pictures, lengths, strict=True) for _ in range(length)]


def extended(photo: PIL.Image.Image, picture: PIL.Image.Image, left: int, top: int, title: str) -> PIL.Image.Image:
    """A photo in its place on an empty sheet, and the picture that it was extended to.

    Args:
        photo (`PIL.Image.Image`): what was there before.
        picture (`PIL.Image.Image`): what it has become, larger.
        left, top (`int`): where in `picture` the photo begins.
        title (`str`): the words that were wanted.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    wide = picture.width > picture.height
    after = _fit(_flat(picture), 960 if wide else 480, 480 if wide else 960)
    scale = after.width / picture.width
    before = PIL.Image.new("RGB", after.size, "#e4e2dd")
    small = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    corner = (round(left * scale), round(top * scale))
    before.paste(_flat(photo).resize(small, PIL.Image.Resampling.LANCZOS), corner)
    tiles = [tile(before, before.size, "before"), tile(after, after.size, "after")]
    return titled(make_image_grid(tiles, 2 if wide else 1, 1 if wide else 2), title)


def write_film(frames: list[PIL.Image.Image], path: Path) -> None:
    """Writes frames as the `.mp4` or `.gif` that `path` names, whole whenever it is there.

    Raises:
        ImportError: `.mp4` needs imageio with ffmpeg.
    """
    with whole_file(path) as part:
        if path.suffix == ".gif":
            export_to_gif(frames, str(part), fps=FRAMES_PER_SECOND)
        else:
            export_to_video(frames, str(part), fps=FRAMES_PER_SECOND, macro_block_size=2)


def _flat(image: PIL.Image.Image) -> PIL.Image.Image:
    """Without transparency, over white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _fit(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """The largest size within `width`×`height` that keeps the aspect."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, PIL.Image.Resampling.LANCZOS if scale < 1 else PIL.Image.Resampling.BICUBIC)


def _with_outline(image: PIL.Image.Image, mask: PIL.Image.Image, tint: bool = False) -> PIL.Image.Image:
    """`image` with the edge of `mask` drawn on it: a bright line on a dark one, to be seen on any ground."""
    # drawn at twice the size, the mask's pixels rounded off, for smooth lines
    large = (2 * image.width, 2 * image.height)
    radius = max(4, large[0] / mask.width)
    mask = mask.resize(large, PIL.Image.Resampling.BICUBIC).filter(PIL.ImageFilter.GaussianBlur(radius))
    mask = mask.point([0] * 128 + [255] * 128)
    image = image.copy()
    if tint:
        tinted = PIL.Image.blend(image, PIL.Image.new("RGB", image.size, ACCENT), 0.45)
        image.paste(tinted, mask=mask.resize(image.size, PIL.Image.Resampling.BOX))
    # blurred, the edge is grey: the further from the middle grey, the further from the edge
    edge = mask.filter(PIL.ImageFilter.GaussianBlur(4))
    for reach, colour in ((106, "#202020"), (60, "#ffffff")):
        line = edge.point([255 if abs(grey - 127.5) < reach else 0 for grey in range(256)])
        line = line.resize(image.size, PIL.Image.Resampling.BOX)
        image.paste(PIL.Image.new("RGB", image.size, colour), mask=line)
    return image


def _with_frame(image: PIL.Image.Image, box: Box, scale: float) -> PIL.Image.Image:
    image = image.copy()
    draw = PIL.ImageDraw.Draw(image)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="#202020", width=4)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="#ffffff", width=2)
    return image


def tile(
    image: PIL.Image.Image, size: tuple[int, int], label: str, note: str = "", best: bool = False
) -> PIL.Image.Image:
    """`image` in the middle of `size`, a label on the left and a note on the right below."""
    margin, line = 12, 34
    width, height = size
    framed = PIL.Image.new("RGB", (width + 2 * margin, height + margin + line), PAPER)
    left, top = margin + (width - image.width) // 2, margin + (height - image.height) // 2
    framed.paste(image, (left, top))
    draw = PIL.ImageDraw.Draw(framed)
    if best:
        draw.rectangle((left - 4, top - 4, left + image.width + 3, top + image.height + 3), outline=ACCENT, width=4)
    font = PIL.ImageFont.load_default(size=18)
    base = margin + height + 8
    draw.text((margin, base), label, fill=ACCENT if best else INK, font=font)
    draw.text((margin + width, base), note, fill=FAINT_INK, font=font, anchor="ra")
    return framed


def titled(image: PIL.Image.Image, title: str, note: str = "") -> PIL.Image.Image:
    """`image` under its title, shortened if need be, and a note on the right."""
    margin, header = 12, 64
    sheet = PIL.Image.new("RGB", (image.width + 2 * margin, image.height + header + margin), PAPER)
    sheet.paste(image, (margin, header))
    draw = PIL.ImageDraw.Draw(sheet)
    font, small = PIL.ImageFont.load_default(size=26), PIL.ImageFont.load_default(size=18)
    room = image.width - 6 * margin - small.getlength(note)
    title = " ".join(title.split())[:500]
    while font.getlength(title) > room:
        title = title.rstrip("…")[:-1].rstrip() + "…"
    draw.text((2 * margin, 46), title, fill=INK, font=font, anchor="ls")
    draw.text((sheet.width - 2 * margin, 46), note, fill=FAINT_INK, font=small, anchor="rs")
    return sheet
