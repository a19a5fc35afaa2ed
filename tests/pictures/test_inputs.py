"""What people give: every kind of picture they have, and everything that can be wrong with a file."""

import hashlib
import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, Record, read_record, to_json
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.gallery import write_png
from blended_diffusion.pictures.inputs import closest_first, read_mask, read_photo, unknown_words


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def srgb_profile() -> bytes:
    return PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def grey_profile(gamma: float) -> bytes:
    """The smallest ICC profile of a grey scale: a white point and a gamma."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    offset = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", offset, len(white), b"kTRC", offset + len(white), len(curve))
    size = offset + len(white) + len(curve)
    header = struct.pack(">I4sI4s4s4s12x4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + tags + white + curve


def png_of_16_bits(height: int, width: int) -> bytes:
    """An RGB PNG of 16 bits a channel, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(6 * width)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class TestPhoto:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
    def test_pictures_without_transparency_keep_their_numbers(self, tmp_path, mode):
        image = PIL.Image.fromarray(noise(5, 7)).convert(mode)
        image.save(tmp_path / "photo.png")
        photo = read_photo(tmp_path / "photo.png")
        assert photo.image.mode == "RGB"
        np.testing.assert_array_equal(photo.image, image.convert("RGB"))
        assert photo.icc_profile is None

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_pictures_with_transparency_keep_it(self, tmp_path, mode):
        pixels = noise(5, 7, 4)
        pixels[..., 1:3] = pixels[..., :1]
        image = PIL.Image.fromarray(pixels)
        if mode == "PA":  # a palette with a transparent entry
            image = PIL.Image.fromarray(noise(5, 7)).quantize(8)
            image.info["transparency"] = 3
        else:
            image = image.convert(mode)
        image.save(tmp_path / "photo.png")
        photo = read_photo(tmp_path / "photo.png")
        assert photo.image.mode == "RGBA"
        with PIL.Image.open(tmp_path / "photo.png") as saved:
            np.testing.assert_array_equal(photo.image, saved.convert("RGBA"))
        assert len(np.unique(photo.image.getchannel("A"))) > 1

    def test_cmyk_becomes_rgb(self, tmp_path):
        image = PIL.Image.fromarray(noise(8, 8)).convert("CMYK")
        image.save(tmp_path / "photo.tif")
        np.testing.assert_array_equal(read_photo(tmp_path / "photo.tif").image, image.convert("RGB"))

    def test_exif_orientation_is_honoured(self, tmp_path):
        pixels = noise(4, 6)
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
        PIL.Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
        photo = read_photo(tmp_path / "photo.png")
        assert photo.image.size == (4, 6)
        np.testing.assert_array_equal(photo.image, np.rot90(pixels, -1))

    def test_rgb_keeps_its_colour_profile(self, tmp_path):
        image = PIL.Image.fromarray(noise(4, 4))
        image.save(tmp_path / "photo.png", icc_profile=srgb_profile())
        photo = read_photo(tmp_path / "photo.png")
        assert photo.icc_profile == srgb_profile()
        np.testing.assert_array_equal(photo.image, image)

    def test_grey_profile_is_applied_because_colour_cannot_carry_it(self, tmp_path):
        image = PIL.Image.fromarray(np.full((4, 4), 128, np.uint8))
        image.save(tmp_path / "photo.png", icc_profile=grey_profile(1.0))
        photo = read_photo(tmp_path / "photo.png")
        assert photo.icc_profile is None
        # half of the light is 188 of 255 in sRGB
        assert photo.image.getpixel((0, 0)) == (188, 188, 188)

    def test_a_profile_of_another_kind_than_the_numbers_is_left_out(self, tmp_path):
        image = PIL.Image.fromarray(noise(4, 4))
        for profile in (grey_profile(1.0), b"nonsense"):
            image.save(tmp_path / "photo.png", icc_profile=profile)
            photo = read_photo(tmp_path / "photo.png")
            assert photo.icc_profile is None
            np.testing.assert_array_equal(photo.image, image)

    def test_it_remembers_its_file(self, tmp_path, monkeypatch):
        PIL.Image.fromarray(noise(4, 4)).save(tmp_path / "photo.png")
        monkeypatch.chdir(tmp_path)
        photo = read_photo("photo.png")
        assert photo.path == tmp_path / "photo.png"
        assert photo.sha256 == hashlib.sha256((tmp_path / "photo.png").read_bytes()).hexdigest()

    @pytest.mark.parametrize("depth", ["rgb", "grey"])
    def test_sixteen_bits_are_refused(self, tmp_path, depth):
        path = tmp_path / "photo.png"
        if depth == "rgb":
            path.write_bytes(png_of_16_bits(3, 3))
        else:
            PIL.Image.fromarray(np.arange(9, dtype=np.uint16).reshape(3, 3)).save(path)
        with pytest.raises(ValueError, match="more than 8 bits"):
            read_photo(path)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (None, "does not exist"),
            ("folder", "is a folder"),
            (b"", "not a picture"),
            (b"plain words", "not a picture"),
            ("truncated png", "damaged"),
            ("truncated jpeg", "damaged"),
            ("broken png", "damaged"),
        ],
    )
    @pytest.mark.parametrize("read", [read_photo, lambda path, name: read_mask(path, (64, 64), argument=name)])
    def test_what_is_no_picture_is_one_sentence(self, tmp_path, content, complaint, read):
        path = tmp_path / "given.png"
        if content == "folder":
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            buffer = io.BytesIO()
            PIL.Image.fromarray(noise(64, 64)).save(buffer, format=content.split()[1])
            data = buffer.getvalue()
            broken = data[:60] + bytes(40) + data[100:] if "broken" in content else data[: len(data) // 2]
            path.write_bytes(broken)
        with pytest.raises(ValueError, match=complaint) as caught:
            read(path, "--given")
        message = str(caught.value)
        assert message.startswith(f"--given '{path}'") and "\n" not in message and message.endswith(".")


class TestMask:
    def test_it_falls_to_black_and_white_in_the_middle(self, tmp_path):
        PIL.Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
        assert np.asarray(read_mask(tmp_path / "mask.png", (4, 1)).image).ravel().tolist() == [0, 0, 255, 255]
        inverted = read_mask(tmp_path / "mask.png", (4, 1), invert=True)
        assert np.asarray(inverted.image).ravel().tolist() == [255, 255, 0, 0]

    def test_greys_may_be_kept(self, tmp_path):
        PIL.Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8)).save(tmp_path / "map.png")
        for invert, expected in ((False, [0, 1, 128, 255]), (True, [255, 254, 127, 0])):
            read = read_mask(tmp_path / "map.png", (4, 1), invert, keep_greys=True)
            assert np.asarray(read.image).ravel().tolist() == expected

    def test_transparent_counts_as_black(self, tmp_path):
        pixels = np.full((1, 2, 4), 255, np.uint8)
        pixels[0, 0, 3] = 0
        PIL.Image.fromarray(pixels).save(tmp_path / "mask.png")
        assert np.asarray(read_mask(tmp_path / "mask.png", (2, 1)).image).ravel().tolist() == [0, 255]

    def test_sixteen_bits_are_read_by_their_brightness(self, tmp_path):
        PIL.Image.fromarray(np.array([[0, 300, 40000, 65535]], np.uint16)).save(tmp_path / "mask.png")
        assert np.asarray(read_mask(tmp_path / "mask.png", (4, 1)).image).ravel().tolist() == [0, 0, 255, 255]

    @pytest.mark.parametrize("mode", ["1", "P", "RGB", "L"])
    def test_every_mode_is_read(self, tmp_path, mode):
        image = PIL.Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
        image.save(tmp_path / "mask.png")
        assert np.asarray(read_mask(tmp_path / "mask.png", (2, 1)).image).ravel().tolist() == [0, 255]

    def test_another_size_than_the_photo_is_refused(self, tmp_path):
        PIL.Image.new("L", (6, 4), 255).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match="6×4 pixels .* photo is 4×6; they must be the same size"):
            read_mask(tmp_path / "mask.png", (4, 6))

    @pytest.mark.parametrize(("value", "invert"), [(1, False), (255, True)])
    def test_nothing_to_edit_is_refused(self, tmp_path, value, invert):
        PIL.Image.new("L", (4, 4), value).save(tmp_path / "mask.png")
        with pytest.raises(
            ValueError, match=f"nothing to edit.* {value} of 255; paint {'black' if invert else 'white'}"
        ):
            read_mask(tmp_path / "mask.png", (4, 4), invert)


class TestRecord:
    RECORD = Record(
        settings=EditSettings("a rock"),
        photo=Origin("/photos/a.png", "aa"),
        mask=None,
        model=Origin("bundled", "cc"),
        seed=5,
        batch=[4, 5],
        clip_distance=0.3,
        made_with=MadeWith("0.1", "2.15", "0.42", "5.23", "3.11", "cpu", "x86_64", "float32", 1),
    )

    def test_it_is_what_was_written(self, tmp_path):
        write_png(PIL.Image.fromarray(noise(8, 8)), tmp_path / "a.png", text=to_json(self.RECORD))
        assert read_record(tmp_path / "a.png") == self.RECORD

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (None, "does not exist"),
            ("folder", "is a folder"),
            (b"words", "not a picture"),
            ("plain png", "holds no record"),
            ("jpeg", "holds no record"),
            ("half", "damaged"),
            ("other text", r"has a damaged record \(settings: Field required\)"),
        ],
    )
    def test_a_picture_without_one_is_one_sentence(self, tmp_path, content, complaint):
        path, image = tmp_path / "a.png", PIL.Image.fromarray(noise(64, 64))
        if content == "folder":
            path.mkdir()
        elif content == "plain png":
            image.save(path)
        elif content == "jpeg":
            image.save(path, format="JPEG")
        elif content == "half":
            write_png(image, path, text=to_json(self.RECORD))
            path.write_bytes(path.read_bytes()[:2000])
        elif content == "other text":
            write_png(image, path, text='{"seed": 1}')
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=complaint) as caught:
            read_record(path, "PICTURE")
        assert str(caught.value).startswith(f"PICTURE '{path}'") and "\n" not in str(caught.value)


class TestWords:
    KNOWN = ("rock", "rose", "jack o lantern", "tropical fish")

    @pytest.mark.parametrize(
        ("prompt", "unknown"),
        [
            ("rock", []),
            ("A photo of a Rock!", []),
            ("two rocks", ["two"]),
            ("jack-o-lantern", []),
            ("a fish", ["fish"]),
            ("a castle on a castle", ["castle"]),
            ("", []),
        ],
    )
    def test_unknown_words(self, prompt, unknown):
        assert unknown_words(prompt, self.KNOWN) == unknown

    def test_the_closest_come_first_and_none_is_lost(self):
        assert closest_first(["roze"], self.KNOWN) == ["rose", "rock", "jack o lantern", "tropical fish"]
        assert closest_first(["xyz"], self.KNOWN) == list(self.KNOWN)
