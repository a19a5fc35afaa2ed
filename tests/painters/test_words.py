"""Words for CLIP: phrasings averaged as directions, and a defence that does nothing where there is nothing to fear."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import assert_close, make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer

from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.words import TEMPLATES, WRITTEN, averaged_embeds, prompt_arguments


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("phrasings", [TEMPLATES, WRITTEN])
def test_every_phrasing_has_one_place_for_the_words(phrasings):
    assert len(set(phrasings)) == len(phrasings) > 1
    assert all(phrasing.count("{}") == 1 for phrasing in phrasings)


def test_the_average_is_the_mean_direction(tiny_pipe):
    embeds = tiny_pipe.encode_prompt(["a b", "b", "b c"]).detach()
    average = averaged_embeds(tiny_pipe, "b", ("a {}", "{}", "{} c"))
    assert_close(average, F.normalize(F.normalize(embeds, dim=-1).sum(dim=0, keepdim=True), dim=-1))
    assert not average.requires_grad


def test_with_two_clips_each_has_its_own_average():
    pipe = make_tiny_pipe(
        clip_model_2=tiny_clip(), tokenizer_2=tiny_tokenizer(), feature_extractor_2=tiny_feature_extractor()
    )
    pipe.clip_model_2.text_projection.weight.data *= 100  # only the direction counts
    first, second = averaged_embeds(pipe, "rock").split(pipe.embed_dims, dim=-1)
    assert_close(first, averaged_embeds(make_tiny_pipe(), "rock"))
    assert_close(first, second)


def test_the_prompt_as_its_own_only_phrasing_is_the_prompt(tiny_pipe, photo, mask):
    words = tiny_pipe("rock", photo, mask, generator=seeded(1), output_type="pt")
    embeds = averaged_embeds(tiny_pipe, "rock", ("{}",))
    averaged = tiny_pipe(image=photo, mask_image=mask, prompt_embeds=embeds, generator=seeded(1), output_type="pt")
    assert_close(words.images, averaged.images)


def test_phrasings_guide_and_rank(tiny_pipe, photo, mask):
    editor = Editor(tiny_pipe, num_images=1)
    plain, averaged = (
        editor.edit(photo, mask, EditSettings("rock", prompt_templates=templates)) for templates in (False, True)
    )
    assert (np.asarray(plain.best) != np.asarray(averaged.best)).any()
    assert plain.clip_distances != averaged.clip_distances


def test_no_words_are_no_guidance_whatever_is_asked_for(tiny_pipe, photo, mask):
    editor = Editor(tiny_pipe, num_images=1)
    plain, asked = (
        editor.edit(photo, mask, EditSettings("", **settings)).best
        for settings in ({}, {"prompt_templates": True, "typographic_defence": 4.0})
    )
    assert np.array_equal(np.asarray(plain), np.asarray(asked))


def test_without_them_words_stay_words(tiny_pipe):
    assert prompt_arguments(tiny_pipe, "rock", False, 0.0) == {"prompt": "rock"}
    assert set(prompt_arguments(tiny_pipe, "rock", False, 2.0)) == {
        "prompt",
        "rival_prompt_embeds",
        "rival_guidance_scale",
    }


@pytest.mark.parametrize(("defence", "complaint"), [(-1.0, "-1"), (float("nan"), "nan")])
def test_an_impossible_weight_is_one_sentence(tiny_pipe, photo, mask, defence, complaint):
    with pytest.raises(ValueError, match=f"`rival_guidance_scale` is {complaint}.*; expected a finite number"):
        Editor(tiny_pipe).edit(photo, mask, EditSettings("rock", typographic_defence=defence))


def test_the_command_takes_them(tiny_model_dir, tmp_path, photo, mask):
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    files = ["-i", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    output = ["--output_path", str(tmp_path / "output"), "--num-images", "1", "--quiet"]
    words = ["--prompt-templates", "--typographic-defence", "3", "--negative-prompt", "tree"]
    machine = ["--model", str(tiny_model_dir), "--device", "cpu"]
    assert main(["edit", "-p", "rock", *files, *output, *words, *machine]) == 0
    settings = json.loads((tmp_path / "output/run.json").read_text())["settings"]
    assert (settings["prompt_templates"], settings["typographic_defence"]) == (True, 3.0)
    assert settings["negative_prompt"] == "tree"
