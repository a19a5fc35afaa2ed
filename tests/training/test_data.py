"""The data set: the same packages give the same bytes, the same seed the same pictures, and masks are exact."""

import hashlib
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from training import prepare_data
from training.captions import BIG, NOTHING, ORDINARY, SMALL, UNSAID, Fact, Vocabulary, truth
from training.packages import Packages, qt_resources
from training.pictures import CaptionedPictures, Composites, open_data, paste_cutout


WORDS = [
    {"word": "apple", "cutout": "1f34e", "other": "1f34e", "colour": "red", "recoloured": "blue"},
    {"word": "rock", "cutout": "1faa8", "other": "1faa8", "colour": "", "recoloured": ""},
]


def picture(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    shape = (*size[::-1], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if mode == "RGBA":  # a disc with a soft edge
        y, x = np.mgrid[: size[1], : size[0]]
        radius = np.hypot(y - size[1] / 2, x - size[0] / 2)
        pixels[..., 3] = np.clip(40 * (size[0] / 2 - 3 - radius), 0, 255)
        pixels[..., :3] = (200, 20, 30)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages in miniature, and tables that name what is in them."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {
        "lobehub-fluent-emoji-3d-1.1.0.tgz": [
            (f"package/assets/{row['cutout']}.webp", encoded(picture("RGBA", (40, 40), n), "WEBP"))
            for n, row in enumerate(WORDS)
        ],
        "emoji-datasource-google-16.0.0.tgz": [
            (f"package/img/google/64/{row['other']}.png", encoded(picture("RGBA", (30, 20), n), "PNG"))
            for n, row in enumerate(WORDS)
        ],
    }
    for name, files in contents.items():
        with tarfile.open(folder / name, "w:gz") as tar:
            for member, data in files:
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    photos = []
    with zipfile.ZipFile(folder / "scikit_image-0.0-py3-none-any.whl", "w") as wheel:
        for number, split in enumerate(["training", "training", "evaluation"]):
            data = encoded(picture("RGB", (70, 50), 10 + number), "PNG")
            wheel.writestr(f"{number}.png", data)
            photos.append(
                {
                    "name": f"photo-{number}",
                    "split": split,
                    "licence": "CC-BY-SA-4.0",
                    "author": "Somebody",
                    "source": "",
                    "package": "scikit-image",
                    "version": "0.0",
                    "member": f"{number}.png",
                    "rows": "",
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    tables = {"words.csv": WORDS, "photos.csv": photos}
    monkeypatch.setattr(prepare_data, "read_table", tables.__getitem__)
    return folder


@pytest.fixture
def data(packages, tmp_path):
    prepare_data.main(["--packages", str(packages), "--output", str(tmp_path / "data"), "--object-size", "32"])
    return tmp_path / "data"


def digest(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_packages_same_bytes(packages, data, tmp_path):
    prepare_data.main(["--packages", str(packages), "--output", str(tmp_path / "again"), "--object-size", "32"])
    assert digest(data) == digest(tmp_path / "again")
    assert {"objects/apple.webp", "objects/apple-blue.webp", "objects/rock-other.webp"} <= digest(data).keys()
    assert "| photo-0 | Somebody | [CC-BY-SA-4.0](https://creativecommons.org/licenses/by-sa/4.0/)" in (
        data / "CREDITS.md"
    ).read_text(encoding="utf-8")


def test_recoloured_cutout_has_the_colour(data):
    red, green, blue, alpha = np.asarray(Image.open(data / "objects" / "apple-blue.webp")).astype(int)[16, 16]
    assert blue > green > red and alpha == 255


def test_a_photo_that_was_not_reviewed_is_refused(packages):
    with pytest.raises(ValueError, match="not the file whose licence was reviewed"):
        Packages(packages).read("scikit-image", "0.0", ["0.png"], {"0.png": "0" * 64})


def test_a_photo_inside_a_qt_resource_file(tmp_path):
    name, photo = "a/é.webp", b"RIFF....WEBP"
    names, starts = b"", {}
    for part in name.split("/"):
        starts[part] = len(names)
        names += struct.pack(">HI", len(part), 0) + part.encode("utf-16-be")
    folder, file = name.split("/")
    # the root holds entry 1, the folder; the folder holds entry 2, the file
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0)
    tree += struct.pack(">IHIIQ", starts[folder], 2, 1, 2, 0) + struct.pack(">IHHHIQ", starts[file], 0, 0, 0, 0, 0)
    contents = struct.pack(">I", len(photo)) + photo
    header = struct.pack(">4sIIII", b"qres", 2, 20, 20 + len(tree), 20 + len(tree) + len(contents))
    assert dict(qt_resources(header + tree + contents + names)) == {f"/{name}": photo}
    with pytest.raises(ValueError, match="not a Qt resource file"):
        dict(qt_resources(b"RIFF" * 10))


def test_every_photo_and_word_of_the_bundled_model_is_clean():
    photos, words = prepare_data.read_table("photos.csv"), prepare_data.read_table("words.csv")
    for row in photos:
        assert row["licence"].startswith(("CC0-", "CC-BY-")) or row["licence"] == "public-domain"
        assert "NC" not in row["licence"] and "ND" not in row["licence"] and row["author"]
    assert len({row["name"] for row in photos}) == len(photos)
    assert len({row["word"] for row in words}) == len(words)
    assert {row["split"] for row in photos} == {"training", "evaluation"}


def test_paste_is_exact():
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    cutout = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    cutout[:4, :, 3], cutout[4:6, :, 3] = 0, 255
    cutout[..., :3] = np.minimum(cutout[..., :3], cutout[..., 3:])  # premultiplied
    composite, mask = paste_cutout(background, cutout, 3, 5)
    assert (mask[5:13, 3:11] == cutout[..., 3]).all() and mask.sum() == cutout[..., 3].sum()
    assert (composite[mask == 0] == background[mask == 0]).all()
    assert (composite[9:11, 3:11] == cutout[4:6, :, :3]).all()
    half = composite[11:13, 3:11].astype(int)
    alpha = cutout[6:, :, 3:] / 255
    assert np.abs(half - cutout[6:, :, :3] - background[11:13, 3:11] * (1 - alpha)).max() <= 1


@pytest.mark.parametrize(("left", "top"), [(-4, -4), (12, 12), (40, 0), (-9, 3)])
def test_paste_over_the_edge(left, top):
    background = np.zeros((16, 16, 3), np.uint8)
    composite, mask = paste_cutout(background, np.full((8, 8, 4), 255, np.uint8), left, top)
    inside = np.zeros((16, 16), bool)
    inside[max(top, 0) : max(top + 8, 0), max(left, 0) : max(left + 8, 0)] = True
    assert ((mask == 255) == inside).all() and ((composite == 255).all(axis=-1) == inside).all()


def test_same_seed_same_pictures_whatever_the_workers(data):
    def pictures(seed: int, workers: int) -> list[dict[str, torch.Tensor]]:
        return list(DataLoader(Composites(data, 16, seed=seed), 4, sampler=range(5, 17), num_workers=workers))

    alone, helped, other = pictures(3, 0), pictures(3, 2), pictures(4, 0)
    for one, two, three in zip(alone, helped, other, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert not torch.equal(one["image"], three["image"])


def test_composites_have_what_they_say(data):
    composites = Composites(data, 32)
    examples = [composites[index] for index in range(60)]
    empty = [example for example in examples if tuple(example["fact"]) == NOTHING]
    assert 0 < len(empty) < 20
    assert all((example["mask"] > 0).any() == (tuple(example["fact"]) != NOTHING) for example in examples)
    assert {int(example["fact"][2]) for example in examples} == {ORDINARY, SMALL, BIG}
    assert len(composites.photos) == 2  # the third is held out
    assert Composites(data, 32, num_words=1).vocabulary.words == ["apple"]
    held_out = Composites(data, 32, split="evaluation", cutouts="evaluation")
    assert len(held_out.photos) == 1 and held_out.vocabulary.pairs == []
    with pytest.raises(ValueError, match="no photos of the split 'another'"):
        Composites(data, 32, split="another")


def test_a_folder_of_ones_own_pictures(tmp_path):
    picture("RGB", (40, 30), 0).save(tmp_path / "a.png")
    picture("RGB", (30, 60), 1).save(tmp_path / "b.png")
    lines = [{"file_name": "a.png", "text": "noise"}, {"file_name": "b.png", "text": "more noise"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pictures = open_data(tmp_path, 16)
    assert isinstance(pictures, CaptionedPictures)
    assert pictures[0]["image"].shape == (3, 16, 16) and pictures[0]["mask"].min() == 255
    assert pictures.vocabulary.describe(Fact(1, UNSAID, ORDINARY), np.random.default_rng(0))[0] == "more noise"


def test_masks_of_ones_own(tmp_path):
    picture("RGB", (40, 30), 0).save(tmp_path / "a.png")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 40, 15))
    mask.save(tmp_path / "m.png")
    line = {"file_name": "a.png", "text": "noise", "mask": "m.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    shown = open_data(tmp_path, 16)[0]["mask"][0]
    assert shown[:5].min() == 255 and shown[-5:].max() == 0
    mask.resize((20, 15)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="m.png .* not of the size of a.png"):
        open_data(tmp_path, 16)[0]


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="metadata.jsonl"):
        open_data(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    with pytest.raises(ValueError, match="Line 1 .* needs a file_name and a text"):
        open_data(tmp_path, 16)


def test_captions():
    vocabulary = Vocabulary(["apple", "rock"], ["blue", "red"], [("apple", "red"), ("apple", "blue")])
    rng = np.random.default_rng(0)
    said = [vocabulary.describe(Fact(0, 1, SMALL), rng) for _ in range(200)]
    texts = {text for text, _ in said}
    assert {"an apple", "a photo of a red apple", "a small red apple"} <= texts
    assert not any("blue" in text or "big" in text for text in texts)
    for text, fact in said:
        assert (fact.colour == 1) == ("red" in text) and (fact.scale == SMALL) == ("small" in text or "little" in text)
    assert len(vocabulary.everything()) == 2 + 2 + 1


def test_which_captions_are_true():
    pictures = torch.tensor([Fact(0, 1, SMALL), Fact(0, 0, ORDINARY), NOTHING])
    captions = torch.tensor(
        [Fact(0, UNSAID, UNSAID), Fact(0, 1, UNSAID), Fact(0, UNSAID, SMALL), Fact(1, UNSAID, UNSAID), NOTHING]
    )
    expected = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert truth(pictures, captions).int().tolist() == expected
