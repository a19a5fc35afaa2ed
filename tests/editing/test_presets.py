"""Settings that go together under one word."""

import json

import pytest

from blended_diffusion.cli import main
from blended_diffusion.demo import MODEL_FOLDER
from blended_diffusion.editing.presets import PRESETS, preset_settings
from blended_diffusion.evaluation.methods import BUNDLED_STEPS


def test_fewer_steps_of_the_model_s_own_way():
    steps = [preset_settings(preset, 30)["num_inference_steps"] for preset in ("fast", "balanced", "best")]
    assert steps == [12, 15, 30]
    assert preset_settings("fast", 1) == {"num_inference_steps": 1}


def test_the_evaluation_s_are_the_bundled_model_s():
    index = json.loads((MODEL_FOLDER / "model_index.json").read_text())
    assert index["default_num_inference_steps"] == BUNDLED_STEPS


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="`preset` is 'slow'; pass one of"):
        preset_settings("slow", 30)


@pytest.fixture
def edited(tmp_path, tiny_model_dir, photo, mask):
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")

    def edit(*flags: str) -> dict:
        folder = tmp_path / "-".join(("out", *flags))
        arguments = ["-p", "rock", "-i", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
        arguments += ["--model", str(tiny_model_dir), "--num-images", "1", "--output_path", str(folder)]
        assert main(["edit", *arguments, *flags]) == 0
        return json.loads((folder / "run.json").read_text())["settings"]

    return edit


def test_best_is_the_default(edited):
    assert edited("--preset", "best") == edited()


def test_release_is_the_released_editor(edited):
    """Its own flags say the same; here with 4 steps of which the first is skipped, for 100 and 25."""
    released = "--timestep_respacing 4 --skip_timesteps 1 --clip_guidance_lambda 1000 --range_lambda 50 --aug_num 8"
    settings = edited("--match-release", "--guidance-gradient", "sample", *released.split())
    assert edited("--preset", "release", "--num-inference-steps", "4") == settings
    assert preset_settings("release", 30)["num_inference_steps"] == 100


def test_flags_come_before_it(edited):
    settings = edited("--preset", "fast", "--strength", "0.9")
    assert (settings["num_inference_steps"], settings["strength"]) == (2, 0.9)


def test_zero_is_said_too(edited):
    settings = edited("--preset", "release", "--clip-guidance-scale", "0", "--num-augmentations", "0")
    assert (settings["clip_guidance_scale"], settings["num_augmentations"]) == (0, 0)


def test_bad_ones_are_said(edited, capsys):
    with pytest.raises(AssertionError):
        edited("--preset", "slow")
    said = capsys.readouterr().err
    assert "--preset" in said and all(preset in said for preset in PRESETS)
