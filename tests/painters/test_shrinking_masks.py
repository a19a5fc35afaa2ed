"""A mask that shrinks: nested from step to step, the wanted one at the end, and nothing kept outside that."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline_blended_diffusion as method
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.shrinking_masks import ENOUGH, ShrinkingMask, growth_of


def box(*corners: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    picture = Image.new("L", size)
    picture.paste(255, corners)
    return picture


SMALL = box(6, 7, 9, 10)


def share(mask: np.ndarray) -> float:
    return float(mask.mean())


@pytest.mark.parametrize("corners", [(6, 7, 9, 10), (0, 0, 2, 2), (1, 8, 15, 9)], ids=["middle", "corner", "thin"])
def test_what_is_small_grows_as_far_as_is_needed(corners):
    mask = box(*corners)
    growth = growth_of(mask)
    assert share(ShrinkingMask(mask, growth).at(0)) >= ENOUGH
    assert share(ShrinkingMask(mask, growth - 0.01).at(0)) < ENOUGH


def test_what_is_large_enough_is_left_alone():
    mask = box(2, 2, 13, 13)
    assert growth_of(mask) == 0
    assert np.array_equal(ShrinkingMask(mask, 0.0).at(0), np.asarray(mask) > 0)


def test_a_mask_grows_evenly_on_all_sides():
    grown = np.asarray(ShrinkingMask(box(8, 8, 9, 9, size=(17, 17)), 4 / 17).first) > 0
    assert grown[8].sum() == grown[:, 8].sum() == 9
    assert np.array_equal(grown, grown.T) and np.array_equal(grown, grown[::-1])


def test_it_shrinks_to_the_wanted_one():
    shrinking = ShrinkingMask(SMALL, 0.4)
    masks = [shrinking.at(step / 10) for step in range(11)]
    for larger, smaller in zip(masks, masks[1:], strict=False):
        assert larger[smaller].all()
    assert share(masks[0]) > share(masks[2]) > share(masks[4])
    assert np.array_equal(masks[4], np.asarray(SMALL) > 0)


def test_each_step_blends_with_its_own_mask_and_the_photo_is_kept_outside_the_wanted_one(
    tiny_pipe, photo, monkeypatch
):
    used, composite = [], method.composite

    def note(foreground, background, mask):
        used.append(mask[0, 0].numpy() > 0)
        return composite(foreground, background, mask)

    monkeypatch.setattr(method, "composite", note)
    shrinking = ShrinkingMask(SMALL, 0.3)
    result = tiny_pipe(
        "rock",
        photo,
        shrinking.first,
        num_images_per_prompt=2,
        callback_on_step_end=shrinking,
        callback_on_step_end_tensor_inputs=["mask"],
    )
    steps = tiny_pipe.num_timesteps
    for mask, expected in zip(used, [*(step / steps for step in range(steps)), 1], strict=True):
        assert np.array_equal(mask, shrinking.at(expected))
    outside = np.asarray(SMALL) == 0
    for image in result.images:
        assert (np.asarray(image)[outside] == np.asarray(photo)[outside]).all()
        assert (np.asarray(image)[~outside] != np.asarray(photo)[~outside]).any()


def test_guidance_sees_what_is_edited(tiny_pipe, photo, monkeypatch):
    seen, guide = [], tiny_pipe.guide

    def note(*arguments):
        seen.append(share((arguments[4].mask > 0).numpy()))
        return guide(*arguments)

    monkeypatch.setattr(tiny_pipe, "guide", note)
    Editor(tiny_pipe, num_images=1).edit(photo, SMALL, EditSettings("rock", context=99, initial_mask_growth=0.3))
    assert seen == sorted(seen, reverse=True) and seen[0] > 2 * seen[-1]


@pytest.mark.parametrize(
    ("mask", "changes", "grows"),
    [
        (SMALL, {"context": 99}, True),
        (SMALL, {}, False),  # the square round it is small too
        (box(1, 8, 15, 9), {}, True),  # thin
        (SMALL, {"context": 99, "prompt": ""}, False),
        (SMALL, {"context": 99, "match_release": True}, False),
    ],
    ids=["context", "close", "thin", "no words", "release"],
)
def test_on_request_it_grows_what_is_small_in_its_window(tiny_pipe, photo, mask, changes, grows):
    editor = Editor(tiny_pipe, num_images=1)
    settings = EditSettings(**{"prompt": "rock", "initial_mask_growth": None, **changes})
    job = editor.prepare(photo, mask, settings, "")
    assert (job.settings.initial_mask_growth > 0) == grows
    # what is recorded makes the same picture again
    chosen = job.settings.initial_mask_growth
    again = editor.edit(photo, mask, EditSettings(**{"prompt": "rock", **changes, "initial_mask_growth": chosen}))
    edited = editor.edit(photo, mask, settings).best
    assert np.array_equal(np.asarray(edited), np.asarray(again.best))
    outside = np.asarray(mask) == 0
    assert (np.asarray(edited)[outside] == np.asarray(photo)[outside]).all()


def test_growth_changes_the_picture_inside(tiny_pipe, photo):
    editor = Editor(tiny_pipe, num_images=1)
    plain, grown = (
        editor.edit(photo, SMALL, EditSettings("rock", context=99, initial_mask_growth=growth)).best
        for growth in (0.0, 0.3)
    )
    assert (np.asarray(plain) != np.asarray(grown)).any()


def test_without_growth_it_is_the_edit_without_a_callback(tiny_pipe, photo, mask):
    settings = EditSettings("rock", context=99, initial_mask_growth=0.0)
    made = Editor(tiny_pipe).prepare(photo, mask, settings, "").make([3])[0]
    plain = tiny_pipe("rock", photo, mask, generator=[torch.Generator().manual_seed(3)])
    assert np.array_equal(np.asarray(made.image), np.asarray(plain.images[0]))
    assert [made.clip_distance] == plain.clip_distances


@pytest.mark.parametrize("growth", [-0.1, 1.5])
def test_an_impossible_growth_is_one_sentence(tiny_pipe, photo, growth):
    with pytest.raises(ValueError, match=rf"`initial_mask_growth` is {growth}; expected a number from 0 to 1\."):
        Editor(tiny_pipe).edit(photo, SMALL, EditSettings("rock", initial_mask_growth=growth))


def test_the_command_takes_it(tiny_model_dir, tmp_path, photo, capsys):
    photo.save(tmp_path / "photo.png")
    SMALL.save(tmp_path / "mask.png")

    def edit(growth: str, folder: str) -> int:
        files = ["-i", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
        output = ["--output_path", str(tmp_path / folder), "--num-images", "1", "--quiet"]
        model = ["--model", str(tiny_model_dir), "--device", "cpu"]
        far = ["--context", "99", "--initial-mask-growth", growth]
        return main(["edit", "-p", "rock", *files, *output, *model, *far])

    assert edit("0.2", "output") == 0
    assert json.loads((tmp_path / "output/run.json").read_text())["settings"]["initial_mask_growth"] == 0.2
    assert edit("auto", "auto") == 0
    chosen = json.loads((tmp_path / "auto/run.json").read_text())["settings"]["initial_mask_growth"]
    assert chosen == growth_of(SMALL) > 0
    for wrong in ("2", "much"):
        assert edit(wrong, "other") == 2
        assert "number from 0 to 1, or auto" in capsys.readouterr().err
