"""Masks that people can make: shapes are where they were said to be, and the networks are transformers' own."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from stand_ins import save_clipseg, save_sam2
from tiny import tiny_clip
from transformers import (
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    Sam2Model,
    Sam2Processor,
)

from blended_diffusion import masks


def white(mask: PIL.Image.Image) -> np.ndarray:
    """Where a mask is white; it is a mask and nothing else."""
    pixels = np.asarray(mask)
    assert mask.mode == "L" and set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


def smooth_photo(width: int = 96, height: int = 64) -> PIL.Image.Image:
    """Ramps of colour with some texture, so that JPEG has noise to make."""
    y, x = np.mgrid[:height, :width]
    texture = 30 * np.sin(x * 1.3) * np.sin(y * 0.9)
    pixels = np.stack([60 + x + texture, 90 + y + texture, 200 - x + texture], axis=-1)
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_jpeg(image: PIL.Image.Image, quality: int) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return PIL.Image.open(buffer)


class TestBox:
    def test_it_holds_the_pixels_between_its_edges(self):
        expected = np.zeros((6, 8), bool)
        expected[1:4, 2:7] = True
        np.testing.assert_array_equal(white(masks.from_box((8, 6), (2, 1, 7, 4))), expected)

    def test_all_of_the_photo_may_be_meant(self):
        assert white(masks.from_box((8, 6), (0, 0, 8, 6))).all()

    @pytest.mark.parametrize(
        ("box", "complaint"),
        [
            ((3, 3, 3, 5), "The box 3,3,3,5 is empty"),
            ((5, 2, 3, 4), "The box 5,2,3,4 is empty"),
            ((0, 0, 9, 4), "The box 0,0,9,4 reaches past the photo, which is 8×6 pixels"),
            ((-1, 0, 4, 4), "reaches past the photo"),
        ],
    )
    def test_what_is_no_box_on_the_photo_is_refused(self, box, complaint):
        with pytest.raises(ValueError, match=complaint):
            masks.from_box((8, 6), box)


class TestPolygon:
    def test_a_polygon_is_its_inside_and_its_line(self):
        triangle = [(5.0, 4.0), (35.0, 10.0), (12.0, 27.0)]
        y, x = np.mgrid[:30, :40] + 0.5
        inside = np.ones((30, 40), bool)
        for (x0, y0), (x1, y1) in zip(triangle, triangle[1:] + triangle[:1], strict=True):
            inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
        found = white(masks.from_polygon((40, 30), triangle))
        picture = PIL.Image.fromarray(inside.astype(np.uint8) * 255)
        assert (found | ~white(masks.grow(picture, -1))).all()
        assert (white(masks.grow(picture, 1.5)) | ~found).all()

    def test_a_dent_is_outside(self):
        arrow = [(0, 0), (30, 15), (0, 30), (20, 15)]
        found = white(masks.from_polygon((30, 30), arrow))
        assert not found[15, 5] and found[15, 25]

    @pytest.mark.parametrize(
        ("points", "complaint"),
        [
            ([(1, 1), (5, 5)], "The polygon 1,1 5,5 has 2 corners; give at least three"),
            ([(1, 1), (5, 5), (1, 41)], "reaches past the photo, which is 40×30"),
        ],
    )
    def test_what_encloses_nothing_is_refused(self, points, complaint):
        with pytest.raises(ValueError, match=complaint):
            masks.from_polygon((40, 30), points)


class TestAlpha:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_what_is_opaque_is_edited(self, mode):
        picture = PIL.Image.new("RGBA", (4, 1), "white")
        picture.putalpha(PIL.Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)))
        assert white(masks.from_alpha(picture.convert(mode))).ravel().tolist() == [False, False, True, True]

    def test_a_picture_without_transparency_is_refused(self, photo):
        with pytest.raises(ValueError, match="has no transparency"):
            masks.from_alpha(photo)
        photo.putalpha(0)
        with pytest.raises(ValueError, match="is transparent everywhere"):
            masks.from_alpha(photo)


class TestDifference:
    def painted(self, photo: PIL.Image.Image) -> tuple[PIL.Image.Image, np.ndarray]:
        scribble, where = photo.copy(), PIL.Image.new("L", photo.size)
        PIL.ImageDraw.Draw(scribble).ellipse((30, 20, 60, 45), fill=(220, 30, 40))
        PIL.ImageDraw.Draw(where).ellipse((30, 20, 60, 45), fill=255)
        return scribble, np.asarray(where) > 0

    def test_it_is_what_was_painted(self):
        photo = smooth_photo()
        scribble, where = self.painted(photo)
        np.testing.assert_array_equal(white(masks.from_difference(photo, scribble, margin=0)), where)

    @pytest.mark.parametrize("quality", [95, 75, 50])
    def test_the_noise_of_jpeg_is_no_difference(self, quality):
        photo = smooth_photo()
        scribble, where = self.painted(photo)
        found = masks.from_difference(photo, as_jpeg(scribble, quality), margin=0)
        # at its hard edge JPEG rings within its blocks of 8 pixels
        near = white(masks.grow(PIL.Image.fromarray(where.astype(np.uint8) * 255), 10))
        assert (near | ~white(found)).all() and (white(found) & where).sum() > 0.9 * where.sum()
        with pytest.raises(ValueError, match="show the same: no part of them differs by more than 24 of 255"):
            masks.from_difference(photo, as_jpeg(photo, quality))

    def test_specks_are_dropped_and_holes_filled(self):
        photo = smooth_photo(600, 400)
        ring = photo.copy()
        draw = PIL.ImageDraw.Draw(ring)
        draw.ellipse((300, 200, 380, 280), outline=(250, 0, 250), width=10)
        draw.rectangle((50, 50, 52, 53), fill=(255, 255, 255))
        found = white(masks.from_difference(photo, ring, margin=0))
        assert found[240, 340] and not found[:100, :100].any()

    def test_the_margin_is_round_it(self):
        photo = smooth_photo()
        scribble, where = self.painted(photo)
        tight, wide = (masks.from_difference(photo, scribble, margin=margin) for margin in (0, 5))
        np.testing.assert_array_equal(white(wide), white(masks.grow(tight, 5)))

    def test_colours_that_nobody_sees_do_not_count(self):
        photo = smooth_photo()
        scribble, _ = self.painted(photo)
        for picture in (photo, scribble):
            picture.putalpha(0)
        with pytest.raises(ValueError, match="show the same"):
            masks.from_difference(photo, scribble)

    def test_pictures_of_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match="96×64 and 60×64 pixels .*; they must be the same size"):
            masks.from_difference(smooth_photo(), smooth_photo(60))


class TestGrow:
    def test_it_is_all_that_is_near(self):
        mask = masks.from_box((40, 30), (15, 12, 16, 13))
        y, x = np.mgrid[:30, :40]
        near = np.hypot(x - 15, y - 12) <= 6
        np.testing.assert_array_equal(white(masks.grow(mask, 6)), near)
        np.testing.assert_array_equal(white(masks.grow(masks.grow(mask, 6), -6)), white(mask))

    def test_the_photos_border_is_no_edge(self):
        left_half = masks.from_box((40, 30), (0, 0, 20, 30))
        expected = white(masks.from_box((40, 30), (0, 0, 17, 30)))
        np.testing.assert_array_equal(white(masks.grow(left_half, -3)), expected)

    @pytest.mark.parametrize("pixels", [5, -5])
    def test_all_and_nothing_stay(self, pixels):
        for value in (0, 255):
            mask = PIL.Image.new("L", (8, 6), value)
            np.testing.assert_array_equal(white(masks.grow(mask, pixels)), white(mask))

    def test_inverted_it_is_the_rest(self):
        mask = masks.from_box((8, 6), (2, 1, 7, 4))
        np.testing.assert_array_equal(white(masks.invert(mask)), ~white(mask))


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    """A tiny CLIPSeg of random weights, saved."""
    folder = tmp_path_factory.mktemp("clipseg")
    save_clipseg(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory) -> str:
    """A tiny SAM 2 of random weights, saved."""
    folder = tmp_path_factory.mktemp("sam2")
    save_sam2(folder)
    return str(folder)


class TestWords:
    def likely(self, folder: str, words: str, photo: PIL.Image.Image) -> np.ndarray:
        """What the network itself says, at the photo's size."""
        network = CLIPSegForImageSegmentation.from_pretrained(folder)
        processor = CLIPSegProcessor.from_pretrained(folder)
        with torch.no_grad():
            logits = network(**processor(text=[words], images=[photo], return_tensors="pt")).logits
        assert logits.shape == (1, 32, 32)
        return torch.nn.functional.interpolate(logits[None], photo.size[::-1], mode="bilinear")[0, 0].sigmoid().numpy()

    def test_the_mask_is_where_the_network_is_sure(self, clipseg):
        photo = smooth_photo()
        likely = self.likely(clipseg, "dog", photo)
        middle = float(np.median(likely))
        found = white(masks.from_words(photo, "dog", clipseg, threshold=middle))
        assert 0.3 < found.mean() < 0.9
        # but for specks and holes
        assert (found == (likely > middle)).mean() > 0.9
        bold = white(masks.from_words(photo, "dog", clipseg, threshold=float(np.quantile(likely, 0.2))))
        assert bold.sum() > found.sum()

    def test_other_words_are_elsewhere(self, clipseg):
        photo = smooth_photo()
        threshold = float(np.median(self.likely(clipseg, "dog", photo)))
        dog, tree = (white(masks.from_words(photo, words, clipseg, threshold)) for words in ("dog", "a tall tree"))
        assert (dog != tree).any()

    def test_what_is_nowhere_is_one_sentence(self, clipseg):
        with pytest.raises(
            ValueError, match=r"words 'dog' are nowhere in the photo: .*the most likely pixel: [01]\.\d\d"
        ):
            masks.from_words(smooth_photo(), "dog", clipseg, threshold=1.0)

    def test_too_many_words_are_refused(self, clipseg):
        with pytest.raises(ValueError, match="are 40 tokens; .* reads 16: give less words"):
            masks.from_words(smooth_photo(), "dogcat" * 6 + "do", clipseg)


class TestClick:
    def answers(self, folder: str, photo: PIL.Image.Image, points: list, several: bool) -> tuple:
        network, processor = Sam2Model.from_pretrained(folder), Sam2Processor.from_pretrained(folder)
        inputs = processor(
            images=photo, input_points=[[points]], input_labels=[[[1] * len(points)]], return_tensors="pt"
        )
        with torch.no_grad():
            out = network(**inputs, multimask_output=several)
        (found,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"])
        return found[0].numpy(), out.iou_scores[0, 0]

    def test_of_three_answers_the_most_trusted_is_taken(self, sam2):
        photo = smooth_photo()
        found, scores = self.answers(sam2, photo, [[30.0, 20.0]], True)
        assert found.shape == (3, 64, 96) and len(set(scores.tolist())) == 3
        expected = found[scores.argmax()]
        assert expected.any()
        mask = white(masks.from_click(photo, [(30, 20)], sam2))
        # but for specks and holes
        agree = [(mask == answer).mean() for answer in found]
        assert np.argmax(agree) == scores.argmax() and max(agree) > 0.9

    def test_several_points_have_one_answer(self, sam2):
        photo = smooth_photo()
        found, _ = self.answers(sam2, photo, [[30.0, 20.0], [60.0, 40.0]], False)
        assert found.shape == (1, 64, 96)
        assert (white(masks.from_click(photo, [(30, 20), (60, 40)], sam2)) == found[0]).mean() > 0.9

    def test_the_video_models_checkpoints_are_taken(self, sam2, tmp_path):
        """The published ones are of that kind."""
        folder = shutil.copytree(sam2, tmp_path / "video")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
        photo = smooth_photo()
        np.testing.assert_array_equal(
            white(masks.from_click(photo, [(30, 20)], str(folder))), white(masks.from_click(photo, [(30, 20)], sam2))
        )

    def test_a_click_outside_is_refused_before_anything_is_loaded(self):
        with pytest.raises(ValueError, match="The click 200,20 reaches past the photo, which is 96×64"):
            masks.from_click(smooth_photo(), [(200, 20)], "no/such-model")


class TestModels:
    @pytest.mark.parametrize("find", ["words", "click"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "another kind", "half a file"])
    def test_a_model_that_cannot_be_loaded_is_one_sentence(self, tmp_path, sam2, find, damage, request):
        folder = tmp_path / "model"
        if damage != "missing":
            folder.mkdir()
        if damage == "another kind":
            tiny_clip().save_pretrained(folder)
        elif damage == "half a file":
            whole = request.getfixturevalue("clipseg" if find == "words" else "sam2")
            for path in Path(whole).iterdir():
                data = path.read_bytes()
                (folder / path.name).write_bytes(data[:1000] if path.suffix == ".safetensors" else data)
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            if find == "words":
                masks.from_words(smooth_photo(), "dog", str(folder), argument="--mask-prompt-model")
            else:
                masks.from_click(smooth_photo(), [(30, 20)], str(folder), argument="--click-model")
        message = str(caught.value)
        flag = "--mask-prompt-model" if find == "words" else "--click-model"
        assert message.startswith(f"{flag} {str(folder)!r} cannot be loaded (")
        assert "\n" not in message and message.endswith("give a Hub id or the folder of such a model.")
        if damage == "another kind":
            assert "it is of the kind 'clip'" in message
