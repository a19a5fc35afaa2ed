"""From one prompt to another with the same noise."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from tiny import assert_close

from blended_diffusion.applications.interpolate import interpolate
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.words import blended_embeds
from pipeline_blended_diffusion import spherical_distance


class TestBlendedEmbeds:
    def test_its_ends_are_the_prompts(self, tiny_pipe):
        for share, words in ((0.0, "rock"), (1.0, "rose")):
            embeds = blended_embeds(tiny_pipe, "rock", "rose", share)
            expected = torch.nn.functional.normalize(tiny_pipe.encode_prompt([words]), dim=-1)
            assert_close(embeds, expected)

    def test_equal_steps_are_equal_angles(self, tiny_pipe):
        way = torch.cat([blended_embeds(tiny_pipe, "rock", "rose", share) for share in (0, 0.25, 0.5, 0.75, 1)])
        steps = spherical_distance(way[1:], way[:-1])
        assert steps.min() > 1e-5
        assert_close(steps, steps[:1].expand(4))
        assert_close(way.norm(dim=-1), torch.ones(5))

    def test_the_same_words_stay_where_they_are(self, tiny_pipe):
        one, other = (blended_embeds(tiny_pipe, "rock", "rock", share) for share in (0, 0.5))
        assert one.shape == other.shape
        assert_close(one, other)


class TestInterpolate:
    @pytest.fixture
    def editor(self, tiny_pipe) -> Editor:
        return Editor(tiny_pipe, num_images=2)

    def test_its_ends_are_the_edits(self, editor, photo, mask):
        settings = EditSettings(prompt="rock", clip_guidance_scale=2000.0)
        frames = interpolate(editor, photo, mask, settings, "teddy bear", 3)
        for frame, words in ((frames[0], "rock"), (frames[-1], "teddy bear")):
            edited = editor.edit(photo, mask, EditSettings(prompt=words, clip_guidance_scale=2000.0))
            nearest = min(np.abs(np.asarray(frame, int) - np.asarray(one, int)).max() for one in edited.images)
            assert nearest <= 1  # the embeddings differ by rounding
        assert (np.asarray(frames[0]) != np.asarray(frames[-1])).any()

    def test_all_frames_have_the_noise_of_one_seed_and_the_background(self, editor, photo, mask):
        settings = EditSettings(prompt="rock", clip_guidance_scale=0.0)
        frames = interpolate(editor, photo, mask, settings, "rose", 3)
        # without guidance the words change nothing: what is left is the noise
        assert len({frame.tobytes() for frame in frames}) == 1
        outside = np.asarray(mask) == 0
        assert (np.asarray(frames[1])[outside] == np.asarray(photo)[outside]).all()

    @pytest.mark.parametrize(
        "words, to, frames, message", [("", "b", 3, "no way"), ("a", "", 3, "no way"), ("a", "b", 1, "at least 2")]
    )
    def test_what_cannot_be_is_said(self, editor, photo, mask, words, to, frames, message):
        with pytest.raises(ValueError, match=message):
            interpolate(editor, photo, mask, words, to, frames)


class TestCommand:
    @pytest.fixture
    def command(self, tiny_model_dir, photo, mask, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        photo.save("photo.png")
        mask.save("mask.png")
        given = ["-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir), "--num-images", "1"]
        yield lambda *arguments: main(["interpolate", *given, *arguments])
        torch.use_deterministic_algorithms(False)

    def test_it_writes_frames_film_and_strip(self, command, capsys):
        assert command("-p", "rock", "--to", "rose", "--frames", "3") == 0
        assert {path.name for path in Path("output").iterdir()} == {
            "film.mp4",
            "strip.png",
            "frames",
            *(f"frame_00{index}" for index in range(3)),
        }
        settings = json.loads(Path("output/frame_001/run.json").read_text())["settings"]
        assert (settings["prompt"], settings["prompt_to"], settings["prompt_blend"]) == ("rock", "rose", 0.5)
        # each picture is there, the ends longer
        assert len(imageio.imread("output/film.mp4")) == 12 + 3 + 12

    def test_a_frame_can_be_replayed(self, command, capsys):
        assert command("-p", "rock", "--to", "rose", "--frames", "3", "--quiet") == 0
        picture = next(Path("output/frame_001/ranked").glob("*.png"))
        assert main(["replay", str(picture)]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [("--to", ""), ("--to", "rose", "--frames", "1")])
    def test_bad_input_ends_with_2(self, command, arguments):
        assert command("-p", "rock", *arguments) == 2
        assert not Path("output").exists()
