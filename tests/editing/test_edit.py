"""One edit: what is wanted reaches the painter, and what it paints reaches the photo, and nothing else does."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from blended_diffusion.editing.edit import Edit, largest_difference
from blended_diffusion.painters.settings import EditSettings


class TestEdit:
    def test_what_is_not_said_is_the_models_default(self, edit):
        assert edit.settings.num_inference_steps == 5
        assert edit.settings.strength == 0.8
        assert edit.settings.clip_guidance_scale == 20.0
        chosen = Edit.prepare(edit.model, edit.photo, edit.mask, EditSettings("a rock", strength=0.4))
        assert (chosen.settings.strength, chosen.settings.num_inference_steps) == (0.4, 5)

    @pytest.mark.parametrize(
        ("change", "base"),
        [
            ({"prompt": "cat"}, {}),
            ({"negative_prompt": "cat"}, {}),
            ({"num_inference_steps": 7}, {}),
            ({"strength": 0.6}, {}),
            ({"clip_guidance_scale": 300.0}, {}),
            ({"range_guidance_scale": 3e4}, {}),
            ({"num_augmentations": 0}, {}),
            ({"guidance_gradient": "estimate"}, {}),
            ({"blend": False}, {}),
            ({"background_mse_scale": 1e4}, {"blend": False, "enforce_background": False}),
            ({"enforce_background": False}, {"blend": False}),
            ({"match_release": True}, {}),
            ({"ddim": True}, {}),
            ({"context": 0.1}, {}),
        ],
        ids=lambda settings: ", ".join(settings),
    )
    def test_every_setting_reaches_the_pipeline(self, edit, change, base):
        def picture(**changes):
            settings = replace(EditSettings("a rock"), **changes)
            return Edit.prepare(edit.model, edit.photo, edit.mask, settings).make([7])[0].image

        # the plain one first: `ddim` changes the model's scheduler
        assert largest_difference(picture(**base), picture(**base, **change)) > 0

    def test_a_candidate_depends_on_its_seed_but_for_rounding(self, edit):
        alone = {seed: edit.make([seed])[0] for seed in (7, 8, 9)}
        together = edit.make([9, 7, 8])
        assert [candidate.seed for candidate in together] == [9, 7, 8]
        for candidate in together:
            other = alone[candidate.seed]
            assert largest_difference(candidate.image, other.image) <= 1
            assert candidate.clip_distance == pytest.approx(other.clip_distance, abs=1e-4)
        assert largest_difference(alone[7].image, alone[8].image) > 10

    def test_it_can_be_watched(self, edit):
        watched = edit.make([7, 8], watch=True)
        steps = [candidate.steps for candidate in watched]
        assert [len(own) for own in steps] == [4, 4]
        assert largest_difference(steps[0][0], steps[1][0]) > 0
        # the film ends where the picture is
        inside = edit.canvas.model_mask
        for candidate in watched:
            last = PIL.Image.composite(candidate.steps[-1], candidate.image, inside)
            assert np.abs(np.asarray(last, int) - np.asarray(candidate.image, int)).mean() < 3

    def test_watching_changes_nothing(self, edit):
        assert largest_difference(edit.make([7], watch=True)[0].image, edit.make([7])[0].image) == 0

    def test_without_a_mask_all_is_edited(self, edit):
        everywhere = Edit.prepare(edit.model, edit.photo, None, EditSettings("a rock"))
        before, after = edit.photo.image, everywhere.finish(everywhere.make([7])[0])
        assert after.size == (40, 30)
        assert (np.asarray(before) != np.asarray(after)).any(-1).mean() > 0.9
        assert everywhere.origins["mask"] is None

    @pytest.mark.parametrize(
        ("changes", "kept"),
        [
            ({}, True),
            ({"enforce_background": False}, False),
            ({"blend": False}, True),
            ({"blend": False, "match_release": True}, False),  # the released baseline does not paste
        ],
    )
    def test_the_background_is_kept_unless_that_is_not_wanted(self, edit, changes, kept):
        settings = replace(EditSettings("a rock"), **changes)
        other = Edit.prepare(edit.model, edit.photo, edit.mask, settings)
        before, after = np.asarray(edit.photo.image), np.asarray(other.finish(other.make([7])[0]))
        outside = np.asarray(edit.mask.image) == 0
        assert np.array_equal(before[outside], after[outside]) == kept

    def test_nan_is_a_failure_not_a_picture(self, edit):
        with torch.no_grad():
            next(edit.model.pipe.unet.parameters()).fill_(float("nan"))
        with pytest.raises(ArithmeticError, match="NaN in float32"):
            edit.make([7])


class TestLargestDifference:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_it_is_that_of_any_channel(self, mode):
        one = PIL.Image.new(mode, (3, 3), (10, 20, 30, 40)[: len(mode)])
        for channel in range(len(mode)):
            other = one.copy()
            value = list(one.getpixel((0, 0)))
            value[channel] += 5
            other.putpixel((1, 2), tuple(value))
            assert largest_difference(one, other) == 5
        assert largest_difference(one, one.copy()) == 0

    def test_pictures_of_another_kind_cannot_be_compared(self):
        one = PIL.Image.new("RGB", (3, 3))
        assert largest_difference(one, one.convert("RGBA")) is None
        assert largest_difference(one, one.resize((2, 3))) is None
