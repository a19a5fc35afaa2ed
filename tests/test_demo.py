import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from house import ROOT
from huggingface_hub import ModelCard
from PIL import Image
from tiny import assert_close

import pipeline_blended_diffusion
from blended_diffusion import models
from blended_diffusion.checkpoints import to_guided_diffusion
from blended_diffusion.demo import KNOWN_WORDS, MODEL_FOLDER
from blended_diffusion.models import load_model


def test_the_model_in_the_box_is_a_complete_folder():
    """It brings the pipeline of this checkout with it, and what it stores of settings."""
    pipe = DiffusionPipeline.from_pretrained(MODEL_FOLDER, custom_pipeline=str(MODEL_FOLDER), trust_remote_code=True)
    brought = sys.modules[type(pipe).__module__]
    assert brought is not pipeline_blended_diffusion
    assert Path(brought.__file__).read_bytes() == Path(pipeline_blended_diffusion.__file__).read_bytes()
    assert pipe.unet.dtype == pipe.clip_model.dtype == torch.float32
    assert tuple(pipe.config.default_candidate_labels) == KNOWN_WORDS


@pytest.mark.parametrize("name", ["README.md", "pipeline.py", "pipeline_blended_diffusion.py"])
def test_what_is_elsewhere_too_is_a_link(name):
    """There is one source of the pipeline, and `model_card.md` is the one of the card."""
    assert (MODEL_FOLDER / name).is_symlink()
    assert (MODEL_FOLDER / name).resolve().parent == ROOT


@pytest.fixture
def unlinked(tmp_path) -> Path:
    """The model as git leaves it where it makes no links: a text file of where each leads."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder, symlinks=True)
    for path in folder.iterdir():
        if path.is_symlink():
            target = os.readlink(path)
            path.unlink()
            path.write_text(target)
    return folder


def test_a_checkout_without_links_is_told_of(unlinked, monkeypatch, caplog):
    monkeypatch.setattr(models, "MODEL_FOLDER", unlinked)
    monkeypatch.setitem(models.IN_THE_BOX, "bundled", unlinked)
    assert load_model().name == "bundled"
    (said,) = caplog.messages
    assert "git config core.symlinks true" in said and "pipeline_blended_diffusion.py" in said


def test_one_with_links_is_not(caplog):
    load_model()
    assert caplog.messages == []


def test_it_knows_its_words():
    """Its CLIP tells every word it claims to know from every other."""
    pipe = load_model().pipe
    words = torch.nn.functional.normalize(pipe.encode_prompt(list(KNOWN_WORDS)), dim=-1).detach()
    likeness = words @ words.T - 2 * torch.eye(len(words))
    assert likeness.max() < 0.95
    photos = pipe.encode_prompt([f"a photo of a {word}" for word in KNOWN_WORDS])
    nearest = (torch.nn.functional.normalize(photos, dim=-1) @ words.T).argmax(dim=-1)
    assert (nearest == torch.arange(len(words))).float().mean() > 0.9


@pytest.mark.slow
def test_its_guidance_leads_to_the_word():
    """Edits for one word come out closer to it than edits for another, by the distance they are ranked by."""
    pipe = load_model().pipe
    pipe.set_progress_bar_config(disable=True)
    photo = Image.fromarray(np.random.default_rng(0).integers(90, 140, (64, 64, 3), dtype=np.uint8))
    white = np.zeros((64, 64), dtype=bool)
    white[16:48, 16:48] = True

    def edit(word: str) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        options = {"num_inference_steps": 15, "num_images_per_prompt": 2, "generator": generators}
        return pipe(word, photo, white, output_type="pt", **options).images

    def distance(images: torch.Tensor, word: str) -> float:
        mask = torch.from_numpy(white)[None, None].float().expand(2, -1, -1, -1)
        return pipe.clip_distance(images, mask, pipe.encode_prompt([word])).mean().item()

    rocks, tangerines = edit("rock"), edit("tangerine")
    assert distance(rocks, "rock") < distance(tangerines, "rock") - 0.2
    assert distance(tangerines, "tangerine") < distance(rocks, "tangerine") - 0.2


def test_it_goes_back_to_guided_diffusion():
    state = to_guided_diffusion(MODEL_FOLDER)
    assert_close(state["out.2.bias"], load_model().pipe.unet.conv_out.bias, torch.float16)


def test_its_card_is_a_valid_one():
    card = ModelCard.load(MODEL_FOLDER / "README.md")
    assert card.data.library_name == "diffusers" and card.data.license == "mit"
    assert card.data.pipeline_tag == "image-to-image"
    text = " ".join(card.text.split())
    assert all(word in text for word in KNOWN_WORDS)
    assert sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*.safetensors")) < 40e6
