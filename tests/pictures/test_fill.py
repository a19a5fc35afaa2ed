"""Any function paints the square: it sees what the mask is round, and nothing outside the mask changes."""

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from stand_ins import save_inpainting

import blended_diffusion
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.fill import fill


@pytest.fixture
def scene() -> tuple[Image.Image, Image.Image]:
    """A 90×70 photo of noise and a mask at its border."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    mask = Image.new("L", (90, 70))
    mask.paste(255, (50, 20, 90, 60))
    return Image.fromarray(pixels), mask


def negative(image: Image.Image, mask: Image.Image, seed: int) -> Image.Image:
    return ImageOps.invert(image)


class TestSquare:
    def test_the_function_sees_the_square_round_the_mask(self, scene):
        seen = []

        def paint(*given):
            seen.append(given)
            return negative(*given)

        fill(*scene, paint, size=24, seed=7, context=0.1)
        ((image, mask, seed),) = seen
        canvas = Canvas.around(*scene, 24, 0.1)
        assert (image.mode, image.size, mask.mode, mask.size, seed) == ("RGB", (24, 24), "L", (24, 24), 7)
        assert image.tobytes() == canvas.model_image.tobytes() and set(mask.get_flattened_data()) == {0, 255}

    @pytest.mark.parametrize("size", [16, 64, 128])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_inside_the_mask_it_is_painted_and_outside_it_is_the_photo(self, scene, size, mode):
        photo, mask = scene[0].convert(mode), scene[1]
        if mode == "RGBA":
            photo.putalpha(Image.linear_gradient("L").resize(photo.size))
        result = fill(photo, mask, negative, size=size)
        assert (result.mode, result.size) == (mode, photo.size)
        before, after, inside = np.asarray(photo), np.asarray(result), np.asarray(mask) > 0
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert (after != before).any(axis=-1)[inside].mean() > 0.9

    def test_a_multiple_of_the_size_is_as_good_and_finer(self, scene):
        columns = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
        result = np.asarray(fill(*scene, lambda *_: columns, size=32, match_grain=False), int)
        assert np.abs(np.diff(result[30:50, 65:80], axis=1)).max() > 100

    def test_the_way_back_has_its_settings(self, scene):
        def red(image, mask, seed):
            return Image.new("RGB", image.size, "red")

        grey = Image.fromarray((np.asarray(scene[0]) * 0.1 + 100).astype(np.uint8))  # smooth enough to have grain
        hard, soft = (np.asarray(fill(grey, scene[1], red, 90, feather=width), int) for width in (0, 10))
        assert (hard[40, 51] == (255, 0, 0)).all() and (soft[40, 51] < (200, 200, 200)).all()
        plain, one, other, same = (
            fill(grey, scene[1], red, 30, **options).tobytes()
            for options in ({"match_grain": False}, {"seed": 1}, {"seed": 2}, {"seed": 1})
        )
        assert one == same and len({plain, one, other}) == 3


class TestGiven:
    def test_files_will_do(self, scene, tmp_path):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        scene[0].save(tmp_path / "photo.png", icc_profile=profile)
        scene[1].save(tmp_path / "mask.png")
        result = blended_diffusion.fill(tmp_path / "photo.png", str(tmp_path / "mask.png"), negative, size=32)
        assert result.tobytes() == fill(*scene, negative, size=32).tobytes()
        assert result.info["icc_profile"] == profile

    def test_a_pipeline_of_diffusers_paints(self, scene, tmp_path):
        import torch
        from diffusers import AutoPipelineForInpainting

        save_inpainting(tmp_path / "inpainting")
        pipe = AutoPipelineForInpainting.from_pretrained(tmp_path / "inpainting", safety_checker=None)
        pipe.set_progress_bar_config(disable=True)

        def paint(image, mask, seed):
            options = {"num_inference_steps": 2, "generator": torch.manual_seed(seed)}
            return pipe("a cat", image, mask, height=64, width=64, **options).images[0]

        one, same, other = (np.asarray(fill(*scene, paint, size=64, seed=seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        inside = np.asarray(scene[1]) > 0
        np.testing.assert_array_equal(one[~inside], np.asarray(scene[0])[~inside])
        assert (one != other)[inside].any()

    @pytest.mark.parametrize(
        ("returned", "error", "complaint"),
        [
            (
                Image.new("RGB", (32, 31)),
                ValueError,
                "`paint` returned a picture of 32×31 pixels; return one of 32×32",
            ),
            (Image.new("RGB", (48, 48)), ValueError, "`paint` returned a picture of 48×48 pixels"),
            (Image.new("RGB", (16, 16)), ValueError, "`paint` returned a picture of 16×16 pixels"),
            ([Image.new("RGB", (32, 32))], TypeError, "`paint` returned a list; return one picture"),
            (None, TypeError, "`paint` returned a NoneType; return one picture"),
        ],
    )
    def test_what_cannot_be_put_back_is_one_sentence(self, scene, returned, error, complaint):
        with pytest.raises(error, match=complaint):
            fill(*scene, lambda *_: returned, size=32)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"size": 0}, "`size` is 0; give a number of at least 1"),
            ({"context": -0.1}, "`context` is -0.1; give"),
            ({"feather": -1}, "`feather` is -1; give"),
            ({"mask": Image.new("L", (70, 90), 255)}, "`mask` is 70×90 pixels"),
            ({"mask": Image.new("L", (90, 70))}, "`mask` leaves nothing to edit"),
        ],
    )
    def test_what_cannot_be_painted_is_one_sentence(self, scene, options, complaint):
        photo, mask = scene
        with pytest.raises(ValueError, match=complaint):
            fill(**{"photo": photo, "mask": mask, "paint": negative, **options})
