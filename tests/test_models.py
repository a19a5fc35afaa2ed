"""A pipeline from a name: weights and settings come along, code never does, and what is wrong is one sentence."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from tiny import make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer

from blended_diffusion import models
from blended_diffusion.demo import MODEL_FOLDER
from blended_diffusion.models import BUNDLED, load_model
from pipeline_blended_diffusion import BlendedDiffusionPipeline


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def change_index(folder, **entries):
    index = json.loads((folder / "model_index.json").read_text())
    index.update(entries)
    (folder / "model_index.json").write_text(json.dumps(index))


def test_a_folder_gives_the_pipeline_that_was_saved(tiny_model_dir):
    model = load_model(str(tiny_model_dir))
    assert type(model.pipe) is BlendedDiffusionPipeline
    assert (model.size, model.name) == (16, str(tiny_model_dir))
    saved = make_tiny_pipe()
    for name in ("unet", "clip_model"):
        expected = getattr(saved, name).state_dict()
        for key, value in getattr(model.pipe, name).state_dict().items():
            assert torch.equal(value, expected[key]), key
    for key in (key for key in saved.config if key.startswith("default_")):
        assert model.pipe.config[key] == saved.config[key]
    assert model.pipe.scheduler.config.variance_type == "learned_range"


def test_a_second_clip_comes_along(tiny_model_dir, tmp_path):
    second = {
        "clip_model_2": tiny_clip(),
        "tokenizer_2": tiny_tokenizer(),
        "feature_extractor_2": tiny_feature_extractor(),
    }
    folder = tmp_path / "two"
    make_tiny_pipe(**second).save_pretrained(folder)
    model = load_model(str(folder), torch.bfloat16)
    assert len(model.pipe.clips) == 2 and model.pipe.clip_model_2.dtype == torch.bfloat16
    alone = load_model(str(tiny_model_dir))
    assert len(alone.pipe.clips) == 1 and alone.sha256 != model.sha256
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(ValueError, match="part 'tokenizer_2' that cannot be loaded"):
        load_model(str(folder))
    change_index(folder, tokenizer_2=[None, None])
    with pytest.raises(ValueError, match="its tokenizer_2 is None, and a CLIPTokenizer is needed"):
        load_model(str(folder))


def test_the_bundled_model_is_the_default():
    model = load_model()
    assert model.name == BUNDLED and model.size == 64
    assert load_model(str(MODEL_FOLDER)).name == BUNDLED


def test_the_number_format_reaches_both_networks(tiny_model_dir):
    pipe = load_model(str(tiny_model_dir), torch.bfloat16).pipe
    assert {pipe.unet.dtype, pipe.clip_model.dtype} == {torch.bfloat16}
    # whatever it was saved in
    pipe = load_model(BUNDLED, torch.float32).pipe
    assert {pipe.unet.dtype, pipe.clip_model.dtype} == {torch.float32}


def test_large_networks_are_in_half_precision_where_that_is_quick(tiny_model_dir, monkeypatch):
    def dtypes(*arguments, **options) -> set[torch.dtype]:
        pipe = load_model(str(tiny_model_dir), *arguments, **options).pipe
        return {pipe.unet.dtype, pipe.clip_model.dtype}

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert dtypes() == {torch.float32}
    monkeypatch.setattr(models, "LARGE", 0)
    assert dtypes() == {torch.bfloat16}
    assert dtypes(torch.float32) == {torch.float32}
    assert dtypes(device=torch.device("mps")) == {torch.float32}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert dtypes() == {torch.float32}


def test_the_hash_is_that_of_the_weights(tiny_model_dir, folder):
    assert load_model(str(folder)).sha256 == load_model(str(tiny_model_dir)).sha256
    path = next((folder / "unet").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert load_model(str(folder)).sha256 != load_model(str(tiny_model_dir)).sha256


def test_code_in_the_folder_is_never_executed(folder):
    marker = folder / "executed"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for path in ("pipeline_blended_diffusion.py", "pipeline.py", "unet/unet.py", "clip_model/modeling.py"):
        (folder / path).write_text(code)
    config = json.loads((folder / "clip_model/config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}
    (folder / "clip_model/config.json").write_text(json.dumps(config))
    load_model(str(folder))
    assert not marker.exists()


def test_pickled_weights_are_refused(folder):
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    torch.save(make_tiny_pipe().unet.state_dict(), folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="part 'unet' that cannot be loaded"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "unreadable model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "its unet is None"),
        (
            lambda folder: change_index(folder, unet=["diffusers", "UNet2DConditionModel"]),
            "not made for Blended Diffusion: its unet is UNet2DConditionModel, and a UNet2DModel is needed",
        ),
        (lambda folder: change_index(folder, scheduler=["os", "system"]), "its scheduler is system"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "part 'tokenizer' that cannot be loaded"),
        (
            lambda folder: next((folder / "unet").glob("*.safetensors")).write_bytes(b"short"),
            "part 'unet' that cannot be loaded",
        ),
        (
            lambda folder: (folder / "unet/config.json").write_text(
                '{"_class_name": "UNet2DModel", "sample_size": [16, 8]'
            ),
            "part 'unet' that cannot be loaded",
        ),
    ],
)
def test_what_is_no_model_is_one_sentence(folder, spoil, complaint):
    spoil(folder)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_model(str(folder), argument="--model")
    assert str(caught.value).startswith(f"--model '{folder}'") and "\n" not in str(caught.value)


def test_pictures_have_to_be_square(folder):
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "sample_size": [8, 16]}))
    with pytest.raises(ValueError, match="pictures of 16×8 pixels; square ones are needed"):
        load_model(str(folder))


def test_a_file_is_pointed_to_the_converter(tmp_path):
    (tmp_path / "256x256_diffusion_uncond.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; .*blended-diffusion convert"):
        load_model(str(tmp_path / "256x256_diffusion_uncond.pt"))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("somebody/nothing", "Hub did not give it"), ("no such/../thing", "neither a folder nor a Hub id")],
)
def test_an_unknown_name_is_one_sentence(monkeypatch, name, complaint):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_model(name, argument="--model")
    assert str(caught.value).startswith(f"--model '{name}'") and "\n" not in str(caught.value)


def test_a_hub_model_comes_from_the_cache(monkeypatch, tmp_path, tiny_model_dir):
    """As the Hub's cache lays it out, without the Hub."""
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_model_dir, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_model("somebody/tiny")
    assert (model.name, model.sha256) == ("somebody/tiny", load_model(str(tiny_model_dir)).sha256)


def test_convolutions_are_laid_out_channels_last(tiny_model_dir):
    weight = load_model(str(tiny_model_dir)).pipe.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
