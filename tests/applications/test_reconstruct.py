"""Noising and denoising without words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import assert_close

from blended_diffusion.applications.reconstruct import reconstruct, region_psnr
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings


@pytest.fixture
def editor(tiny_pipe) -> Editor:
    return Editor(tiny_pipe, num_images=2)


def test_less_is_kept_the_further_it_goes(editor, photo):
    found = reconstruct(editor, photo, strengths=(0.2, 0.6, 1.0))
    assert [one.strength for one in found] == [0, 0.2, 0.6, 1.0]
    ratios = [one.psnr for one in found[1:]]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > ratios[-1] + 3
    # a photo of the model's own size loses nothing by its resolution
    assert found[0].psnr == float("inf") and found[0].image.tobytes() == photo.tobytes()


def test_the_resolution_alone_is_what_the_model_saw(editor, photo):
    large = photo.resize((48, 48))
    seen = reconstruct(editor, large, strengths=(0.2,))[0].image
    expected = large.resize((16, 16), 1).resize((48, 48), 3)
    assert np.abs(np.asarray(seen, int) - np.asarray(expected, int)).max() == 0


def test_words_do_not_count(editor, photo):
    one, other = (
        reconstruct(editor, photo, None, (0.6,), EditSettings(prompt=words, clip_guidance_scale=1000.0))[1]
        for words in ("", "rock")
    )
    assert one.image.tobytes() == other.image.tobytes()


def test_the_ratio_is_the_mean_of_all_candidates_and_the_picture_the_first_seeds(tiny_pipe, photo):
    alone = [
        reconstruct(Editor(tiny_pipe, seed=seed, num_images=1), photo, strengths=(0.6,))[1] for seed in (404, 405)
    ]
    together = reconstruct(Editor(tiny_pipe, num_images=2, batch_size=1), photo, strengths=(0.6,))[1]
    assert together.psnr == pytest.approx(np.mean([one.psnr for one in alone]))
    assert together.image.tobytes() == alone[0].image.tobytes()


def test_outside_the_mask_nothing_changes(editor, photo, mask):
    photo, mask = photo.resize((40, 40)), mask.resize((40, 40), 0)
    outside = np.asarray(mask) == 0
    for one in reconstruct(editor, photo, mask, (0.4, 1.0)):
        assert (np.asarray(one.image)[outside] == np.asarray(photo)[outside]).all()
        assert (np.asarray(one.image)[~outside] != np.asarray(photo)[~outside]).any()


def test_the_ratio_is_that_of_the_region(photo, mask):
    changed = photo.copy()
    changed.paste((0, 0, 0), (0, 0, 16, 1))  # outside
    assert region_psnr(changed, photo, mask) == float("inf")
    shifted = photo.point(lambda value: value ^ 16)
    assert_close(torch.tensor(region_psnr(shifted, photo, mask)), torch.tensor(20 * np.log10(255 / 16)))


@pytest.fixture
def command(tiny_model_dir, photo, mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    mask.save("mask.png")
    yield lambda *given: main(["reconstruct", "-i", "photo.png", "--model", str(tiny_model_dir), *given])
    torch.use_deterministic_algorithms(False)


def test_the_command_shows_strengths_side_by_side(command, capsys):
    assert command("--strength", "0.4,1", "--mask", "mask.png") == 0
    assert [figure["strength"] for figure in json.loads(Path("output/figures.json").read_text())] == [0, 0.4, 1]
    assert {path.name for path in Path("output").iterdir()} == {
        "strength_0.40",
        "strength_1.00",
        "strip.png",
        "figures.json",
    }
    assert "strength 0.4: " in capsys.readouterr().out


@pytest.mark.parametrize("strength", ["0", "1.2", "0.5,", "much", "0.01"])
def test_bad_strengths_end_with_2(command, strength):
    assert command("--strength", strength) == 2
