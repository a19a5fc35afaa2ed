"""Windows of one canvas make one picture: what the network sees in parts is averaged, noised and judged as a whole."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import assert_close, make_tiny_pipe

from blended_diffusion.cli import main
from blended_diffusion.editing.edit import Edit, largest_difference
from blended_diffusion.editing.editor import Editor
from blended_diffusion.editing.records import read_record
from blended_diffusion.models import Model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.windows import WindowedPipeline, enlarged, window_starts, window_weights
from blended_diffusion.pictures.canvas import Canvas
from pipeline_blended_diffusion import BlendedDiffusionPipeline, Guidance


@pytest.fixture
def large(photo, mask):
    """Twice as wide and high as the tiny network's pictures."""
    return photo.resize((32, 32), PIL.Image.Resampling.BICUBIC), mask.resize((32, 32), PIL.Image.Resampling.NEAREST)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class TestLayout:
    @pytest.mark.parametrize(("extent", "size"), [(16, 16), (17, 16), (32, 16), (48, 16), (1024, 256)])
    def test_windows_cover_all_and_overlap_by_half(self, extent, size):
        starts = window_starts(extent, size)
        assert starts[0] == 0 and starts[-1] + size == extent
        assert all(0 < after - before <= size / 2 for before, after in zip(starts, starts[1:], strict=False))

    def test_weights_fall_smoothly_towards_the_edge_and_are_never_nothing(self):
        weights = window_weights(16)
        assert weights.min() > 0 and weights[7, 7] == pytest.approx(weights.max().item())
        assert (weights.diff(dim=0)[:7] > 0).all() and torch.allclose(weights, weights.flip(0).T)


class TestWindowedPipeline:
    @pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
    def test_one_window_is_the_ordinary_pipeline(self, tiny_pipe, photo, mask, guidance_gradient):
        arguments = {"mask_image": mask, "guidance_gradient": guidance_gradient, "output_type": "pt"}
        ordinary = tiny_pipe("rock", photo, generator=seeded(3), **arguments)
        windowed = WindowedPipeline.of(tiny_pipe, 1)("rock", photo, generator=seeded(3), **arguments)
        assert_close(windowed.images, ordinary.images)
        assert windowed.clip_distances == pytest.approx(ordinary.clip_distances, abs=1e-5)

    def test_where_one_window_lies_alone_its_prediction_stands_elsewhere_it_is_between_theirs(self, tiny_pipe):
        pipe = WindowedPipeline.of(tiny_pipe, 2)
        sample, timestep = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
        with torch.no_grad():
            noise_pred, variance_pred = pipe.predict(sample, timestep, None)
            own = {
                (top, left): tiny_pipe.predict(sample[..., top : top + 16, left : left + 16], timestep, None)
                for top in (0, 8, 16)
                for left in (0, 8, 16)
            }
        for index, whole in enumerate((noise_pred, variance_pred)):
            assert_close(whole[..., :8, :8], own[0, 0][index][..., :8, :8])
            assert_close(whole[..., 24:, 24:], own[16, 16][index][..., 8:, 8:])
            # rows 0…7 and columns 8…15 are seen by two windows
            left, right = own[0, 0][index][..., :8, 8:], own[0, 8][index][..., :8, :8]
            between = whole[..., :8, 8:16]
            assert (between >= torch.minimum(left, right) - 1e-5).all()
            assert (between <= torch.maximum(left, right) + 1e-5).all()
            assert not torch.allclose(left, right, atol=1e-3)

    def test_all_windows_take_part_in_one_canvas_after_every_step(self, tiny_pipe, large):
        canvases, windows = [], []
        tiny_pipe.unet.register_forward_pre_hook(lambda unet, given: windows.append(given[0].shape))

        def watch(pipe, step, timestep, tensors):
            canvases.append(tensors["latents"].shape)
            return {}

        pipe = WindowedPipeline.of(tiny_pipe, 2)
        pipe("rock", large[0], large[1], guidance_gradient="estimate", callback_on_step_end=watch)
        assert canvases == [(1, 3, 32, 32)] * 4
        assert windows == [(1, 3, 16, 16)] * 4 * 9

    def test_only_one_windows_graph_is_held_at_a_time(self, tiny_pipe, large):
        """Which means that each is computed again for the gradient."""
        windows = []
        tiny_pipe.unet.register_forward_pre_hook(lambda unet, given: windows.append(given[0].shape))
        WindowedPipeline.of(tiny_pipe, 2)("rock", *large, guidance_gradient="sample")
        assert windows == [(1, 3, 16, 16)] * 4 * 9 * 2

    @pytest.mark.slow
    def test_a_picture_is_the_same_alone_and_in_a_batch(self, tiny_pipe, large):
        pipe = WindowedPipeline.of(tiny_pipe, 2)
        other = large[0].transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        together = pipe("rock", [large[0], other], large[1], generator=seeded(3, 4)).images
        alone = pipe("rock", other, large[1], generator=seeded(4)).images[0]
        assert largest_difference(together[1], alone) <= 1
        assert largest_difference(together[0], together[1]) > 1

    def test_the_background_is_the_photo(self, tiny_pipe, large):
        pictures = WindowedPipeline.of(tiny_pipe, 2)("rock", *large, generator=seeded(3)).images
        outside = np.asarray(large[1]) == 0
        assert pictures[0].size == (32, 32)
        np.testing.assert_array_equal(np.asarray(pictures[0])[outside], np.asarray(large[0])[outside])
        assert (np.asarray(pictures[0]) != np.asarray(large[0]))[~outside].any()

    def test_words_pull_at_every_pixel_as_at_the_networks_size(self, tiny_pipe):
        """Enlarged pixel by pixel, a picture looks the same to CLIP, and its pixels are to move alike."""

        def pull(pipe: BlendedDiffusionPipeline, repeat: int) -> torch.Tensor:
            def enlarge(tensor: torch.Tensor) -> torch.Tensor:
                return tensor.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)

            estimate = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 4 - 2
            mask = torch.zeros(1, 1, 16, 16)
            mask[..., 4:12, 3:10] = 1
            text, none = pipe.encode_prompt(["rock"]), torch.zeros(1)
            guidance = Guidance(
                text_embeds=text, weights=torch.ones(1), negative_embeds=text, negative_weights=none,
                rival_embeds=text, rival_weights=none, image=enlarge(estimate), mask=enlarge(mask),
                gradient="estimate", clip_scale=10.0, range_scale=50.0, mse_scale=0.0, lpips_scale=0.0,
                match_release=False,
            )  # fmt: skip
            warps = torch.rand(1, 2, 13, generator=torch.Generator().manual_seed(1))
            with pipe.frozen():
                return pipe.guide(enlarge(estimate), enlarge(estimate), 0.9, 0.4, guidance, warps)

        small = pull(tiny_pipe, 1)
        large = pull(WindowedPipeline.of(tiny_pipe, 2), 2)
        assert_close(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
        assert small.abs().max() > 0.01


def test_refining_starts_from_the_edit_inside_and_from_the_photo_outside(photo, mask):
    canvas = Canvas(photo.resize((64, 64)), mask.resize((64, 64), PIL.Image.Resampling.NEAREST), (0, 0, 64, 64), 32)
    start = enlarged(PIL.Image.new("RGB", (16, 16), "red"), canvas)
    inside = np.asarray(canvas.model_mask) > 0
    assert (np.asarray(start)[inside] == (255, 0, 0)).all()
    np.testing.assert_array_equal(np.asarray(start)[~inside], np.asarray(canvas.model_image)[~inside])


class TestEdit:
    @pytest.fixture
    def scene(self, photo, mask):
        return photo.resize((80, 80)), mask.resize((80, 80), PIL.Image.Resampling.NEAREST)

    @pytest.fixture
    def job(self, scene):
        def prepare(**settings) -> Edit:
            editor = Editor(Model(make_tiny_pipe(), "tiny", ""))
            return editor.prepare(*scene, EditSettings("rock", **settings), "")

        return prepare

    def test_detail_makes_larger_pictures_and_keeps_the_background(self, job, scene):
        edit = job(detail=2)
        candidate = edit.make([5])[0]
        assert candidate.image.size == (32, 32)
        outside = np.asarray(scene[1]) == 0
        after = np.asarray(edit.finish(candidate))
        np.testing.assert_array_equal(after[outside], np.asarray(scene[0])[outside])
        assert (after != np.asarray(job().finish(job().make([5])[0]))).any()

    @pytest.mark.slow
    def test_it_is_made_again_exactly_and_does_not_depend_on_its_batch(self, job):
        edit = job(detail=2)
        first, again = edit.make([5, 6])[1], edit.make([5, 6])[1]
        assert largest_difference(edit.finish(first), edit.finish(again)) == 0
        assert first.clip_distance == again.clip_distance
        assert largest_difference(edit.make([6])[0].image, first.image) <= 1

    def test_watching_shows_both_passes(self, job):
        steps = job(detail=2).make([5], watch=True)[0].steps
        assert [step.width for step in steps] == [16] * 4 + [32]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"detail": 0}, "`detail` is 0; expected a whole number of at least 1"),
            ({"detail": 2, "blend": False}, "`detail` 2 does not go with local CLIP-guided diffusion; give 1"),
            ({"detail": 2, "region_prompts": ["a", "b"]}, "`detail` 2 does not go with several regions at once"),
        ],
    )
    def test_what_windows_cannot_refine_is_said(self, job, settings, message):
        with pytest.raises(ValueError, match=message):
            job(**settings)

    def test_grain_is_a_setting(self):
        noise = np.random.default_rng(0).normal(120, 9, (160, 160, 3))
        photo = PIL.Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        mask = PIL.Image.new("L", (160, 160))
        mask.paste(255, (68, 68, 92, 92))
        edit = Editor(Model(make_tiny_pipe(), "tiny", "")).prepare(photo, mask, EditSettings("rock", context=1.0), "")
        candidate = replace(edit.make([5])[0], image=PIL.Image.new("RGB", (16, 16), (200, 90, 90)))
        with_grain = edit.finish(candidate)
        assert largest_difference(with_grain, edit.finish(candidate)) == 0
        assert largest_difference(with_grain, edit.finish(replace(candidate, seed=6))) > 3
        plain = replace(edit, settings=replace(edit.settings, match_grain=False))
        assert largest_difference(plain.finish(candidate), plain.finish(replace(candidate, seed=6))) == 0


def test_the_command_says_it(tiny_model_dir, photo, mask, tmp_path):
    photo.resize((40, 40)).save(tmp_path / "photo.png")
    mask.resize((40, 40)).save(tmp_path / "mask.png")
    threads = torch.get_num_threads()
    arguments = ["-i", f"{tmp_path}/photo.png", "--mask", f"{tmp_path}/mask.png", "--output_path", f"{tmp_path}/out"]
    given = ["edit", "-p", "rock", *arguments, "--model", str(tiny_model_dir), "--device", "cpu", "--num-images", "1"]
    try:
        assert main([*given, "--detail", "2", "--no-match-grain"]) == 0
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    record = read_record(next((tmp_path / "out" / "ranked").glob("*.png")))
    assert (record.settings.detail, record.settings.match_grain) == (2, False)
