"""Several regions in one denoising pass: one region is the ordinary edit, and each region follows its own words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import quick_first
from PIL import Image
from tiny import assert_close

from blended_diffusion.applications.regions import Region, edit_regions
from blended_diffusion.editing.edit import make_again
from blended_diffusion.editing.editor import Editor, FolderEditor
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import read_record
from blended_diffusion.masks.regions import label
from blended_diffusion.models import load_model
from blended_diffusion.painters.regions import RegionsPipeline, region_masks, territories
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import read_mask, read_photo


def box(size: tuple[int, int], *edges: int) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, edges)
    return mask


@pytest.fixture
def scene(photo):
    """A 40×30 photo, a region on its left and one on its right."""
    size = (40, 30)
    return photo.resize(size), box(size, 4, 8, 16, 22), box(size, 22, 8, 34, 22)


def arrays(edited) -> list[np.ndarray]:
    return [np.asarray(image, int) for image in edited.images]


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


class TestPipeline:
    @pytest.fixture
    def first_gradient(self, tiny_pipe, photo):
        """The gradient that the regions' words give in the first step."""

        def gradient(*regions):
            pipe, seen = RegionsPipeline.of(tiny_pipe), []
            guide = pipe.guide
            pipe.guide = lambda *given: seen.append(guide(*given)) or seen[-1]
            words, masks = zip(*regions, strict=True)
            scales = {"range_guidance_scale": 0, "clip_guidance_scale": 300, "guidance_gradient": "estimate"}
            pipe(list(words), photo, list(masks), generator=generators(1), **scales)
            return seen[0]

        return gradient

    @pytest.mark.parametrize(
        "options",
        quick_first([{}, {"guidance_gradient": "estimate"}, {"ranking": "region"}, {"negative_prompt": "cat"},
                     {"match_release": True}, {"padding_mask_crop": 2}]),
    )  # fmt: skip
    def test_one_region_is_the_ordinary_edit(self, tiny_pipe, photo, mask, options):
        shared = {"num_images_per_prompt": 2, **options}
        one = tiny_pipe("rock", photo, mask, generator=generators(), **shared)
        same = RegionsPipeline.of(tiny_pipe)(["rock"], photo, [mask], generator=generators(), **shared)
        for image, other in zip(one.images, same.images, strict=True):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
        assert (one.clip_distances, one.ranking) == (same.clip_distances, same.ranking)

    @pytest.mark.slow
    def test_the_gradient_is_the_sum_of_the_regions_own(self, first_gradient):
        """At the estimate no region sees the others."""
        left, right = box((16, 16), 0, 0, 7, 16), box((16, 16), 9, 0, 16, 16)
        both = first_gradient(("rock", left), ("cat", right))
        assert_close(both, first_gradient(("rock", left)) + first_gradient(("cat", right)))
        assert (both - first_gradient(("cat", left), ("rock", right))).abs().max() > 1e-3  # the words do matter

    def test_a_region_without_words_is_not_guided(self, first_gradient):
        left, right = box((16, 16), 0, 0, 7, 16), box((16, 16), 9, 0, 16, 16)
        gradient = first_gradient(("rock", left), ("", right))
        assert not gradient[..., 9:].any() and gradient[..., :7].any()

    def test_the_later_region_lies_on_top(self, tiny_pipe, photo):
        whole, right = box((16, 16), 0, 0, 16, 16), box((16, 16), 8, 0, 16, 16)
        pipe = RegionsPipeline.of(tiny_pipe)
        overlapping = pipe(["rock", "cat"], photo, [whole, right], generator=generators(1)).images[0]
        apart = pipe(["rock", "cat"], photo, [box((16, 16), 0, 0, 8, 16), right], generator=generators(1)).images[0]
        np.testing.assert_array_equal(np.asarray(overlapping), np.asarray(apart))

    @pytest.mark.parametrize("ranking", ["surroundings", "region"])
    def test_it_ranks_by_the_mean_of_the_regions(self, tiny_pipe, photo, ranking):
        left, right = box((16, 16), 0, 0, 7, 16), box((16, 16), 9, 0, 16, 16)
        pipe = RegionsPipeline.of(tiny_pipe)
        options = {"generator": generators(1), "output_type": "pt", "ranking": ranking}
        out = pipe(["rock", "cat"], photo, [left, right], **options)
        distance = tiny_pipe.clip_distance if ranking == "region" else tiny_pipe.surroundings_distance
        embeds = tiny_pipe.encode_prompt(["rock", "cat"])
        own = []
        for mask, words in ((left, embeds[:1]), (right, embeds[1:])):
            at_size = tiny_pipe.prepare_mask(mask, 0.5, False)
            own.append(distance(out.images, at_size, words).item())
        assert_close(torch.tensor(out.clip_distances[0]), torch.tensor(sum(own) / 2))

    @pytest.mark.parametrize(
        ("prompt", "sizes", "complaint"),
        [
            ("rock", [(16, 16)], "`prompt` must be a list of strings, one for each region, not 'rock'"),
            (["rock"], [(16, 16), (16, 16)], "`prompt` is a list of 1 and `region_masks` of 2"),
            (["rock", "cat"], [(16, 16), (8, 8)], "`region_masks` number 2 is 8×8 pixels .* the first one 16×16"),
            (["rock", "cat"], [(16, 16), (16, 16)], r"`region_masks` number 1 \('rock'\) has nothing left"),
        ],
    )
    def test_bad_regions_are_one_sentence(self, tiny_pipe, photo, prompt, sizes, complaint):
        masks = [Image.new("L", size, 255) for size in sizes]
        with pytest.raises((ValueError, TypeError), match=complaint):
            RegionsPipeline.of(tiny_pipe)(prompt, photo, masks)


class TestLabels:
    def test_read_as_a_mask_it_is_white_in_every_region(self, tmp_path):
        masks = [box((40, 30), 2 * n, 0, 2 * n + 2, 30) for n in range(20)]
        label(masks).save(tmp_path / "labels.png")
        read = read_mask(tmp_path / "labels.png", (40, 30)).image
        np.testing.assert_array_equal(np.asarray(read), np.full((30, 40), 255))
        label(masks[1:]).save(tmp_path / "labels.png")
        assert read_mask(tmp_path / "labels.png", (40, 30)).image.getbbox() == (2, 0, 40, 30)

    def test_what_is_covered_by_none_belongs_to_the_nearest(self):
        coverage = np.zeros((2, 4, 8))
        coverage[0, :, 0] = 1
        coverage[1, :, 6] = 0.1
        np.testing.assert_array_equal(territories(coverage), np.broadcast_to([0, 0, 0, 0, 1, 1, 1, 1], (4, 8)))

    def test_a_region_that_is_covered_altogether_is_refused(self):
        with pytest.raises(ValueError, match="Region 1 is empty or covered altogether by later ones"):
            label([box((8, 8), 2, 2, 4, 4), box((8, 8), 0, 0, 8, 8)])


class TestEdit:
    @pytest.mark.parametrize(
        "options", quick_first([{}, {"ddim": True}, {"prompt_templates": True, "typographic_defence": 2.0}])
    )
    def test_one_region_is_the_ordinary_edit(self, tiny_pipe, scene, options):
        photo, left, _ = scene
        editor, settings = Editor(tiny_pipe, num_images=2), EditSettings("rock", **options)
        one, other = editor.edit(photo, left, settings), edit_regions(editor, photo, [Region(left, "rock")], settings)
        assert one.clip_distances == other.clip_distances
        for image, same in zip(arrays(one), arrays(other), strict=True):
            np.testing.assert_array_equal(image, same)

    def test_all_regions_change_and_nothing_else(self, tiny_pipe, scene):
        photo, left, right = scene
        editor = Editor(tiny_pipe, num_images=2)
        edited = edit_regions(editor, photo, [Region(left, "rock"), Region(right, "cat")])
        before = np.asarray(photo, int)
        outside = (np.asarray(left) == 0) & (np.asarray(right) == 0)
        for image in arrays(edited):
            np.testing.assert_array_equal(image[outside], before[outside])
            for mask in (left, right):
                assert (image != before)[np.asarray(mask) > 0].any()

    def test_which_words_belong_to_which_region_matters(self, tiny_pipe, scene):
        photo, left, right = scene
        editor = Editor(tiny_pipe, num_images=1)
        one = edit_regions(editor, photo, [Region(left, "rock"), Region(right, "cat")])
        other = edit_regions(editor, photo, [Region(left, "cat"), Region(right, "rock")])
        assert one.clip_distances != other.clip_distances
        assert (arrays(one)[0] != arrays(other)[0]).any()

    def test_the_square_holds_all_regions(self, tiny_pipe, scene):
        photo, left, right = scene
        seen = []
        editor = Editor(tiny_pipe, num_images=1)
        prepare = editor.prepare
        editor.prepare = lambda *given: seen.append(prepare(*given)) or seen[-1]
        edit_regions(editor, photo, [Region(left, "rock"), Region(right, "cat")])
        x0, y0, x1, y1 = seen[0].canvas.square
        assert x0 <= 4 and x1 >= 34 and y0 <= 8 and y1 >= 22

    def test_a_region_too_small_for_the_square_is_named(self, photo):
        size = (200, 200)
        labels = label([box(size, 0, 0, 80, 80), box(size, 196, 196, 200, 200)])
        canvas = Canvas(photo.resize(size), labels.point([0] + [255] * 255, "L"), (0, 0, *size), 16)
        with pytest.raises(ValueError, match=r"Region 2 \('cat'\) is too small.*one after another"):
            region_masks(canvas, labels, ["rock", "cat"])

    def test_a_small_region_is_pointed_out(self, tiny_pipe, photo, caplog):
        size = (200, 200)
        regions = [Region(box(size, 0, 0, 80, 80), "rock"), Region(box(size, 180, 180, 200, 200), "cat")]
        edit_regions(Editor(tiny_pipe, num_images=1), photo.resize(size), regions)
        assert "Region 2 ('cat') is" in caplog.text and "Region 1" not in caplog.text

    @pytest.mark.parametrize(
        ("sizes", "complaint"),
        [
            ([], "There is no region"),
            ([(40, 30), (30, 40)], "mask of region 2 is 30×40"),
            ([(8, 8)], "are 8×8 pixels"),
        ],
    )
    def test_bad_regions_are_one_sentence(self, tiny_pipe, scene, sizes, complaint):
        regions = [Region(Image.new("L", size, 255), "rock") for size in sizes]
        with pytest.raises(ValueError, match=complaint):
            edit_regions(Editor(tiny_pipe), scene[0], regions)

    def test_a_picture_can_be_made_again(self, tiny_model_dir, tmp_path, scene):
        photo, left, right = scene
        model = load_model(str(tiny_model_dir))
        model.pipe.set_progress_bar_config(disable=True)
        editor = FolderEditor(model, tmp_path, MadeWith.on(torch.device("cpu"), torch.float32), num_images=2)
        edited = edit_regions(editor, photo, [Region(left, "rock"), Region(right, "cat")], name="both")
        best = sorted((tmp_path / "both" / "ranked").glob("*.png"))[0]
        record = read_record(best)
        assert record.settings.region_prompts == ["rock", "cat"]
        again = read_photo(record.photo.name)
        region = read_mask(record.mask.name, again.image.size)
        job = editor.prepare(again, region, record.settings, "both")
        np.testing.assert_array_equal(np.asarray(job.finish(make_again(job, record))), np.asarray(edited.best))


@pytest.mark.slow
def test_settings_of_one_edit_do_not_stay_for_the_next(tiny_pipe, scene):
    """DDIM and regions are this edit's alone."""
    photo, left, right = scene
    editor = Editor(tiny_pipe, num_images=1)
    before = editor.edit(photo, left, "rock")
    editor.edit(photo, left, replace(EditSettings("rock"), ddim=True))
    edit_regions(editor, photo, [Region(left, "rock"), Region(right, "cat")])
    np.testing.assert_array_equal(arrays(editor.edit(photo, left, "rock"))[0], arrays(before)[0])
