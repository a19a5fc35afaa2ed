import json
import os
import pickle
import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from guided_diffusion_reference import SMALL, random_state, reference_unet, small
from safetensors.torch import load_file, save_file
from tiny import TOLERANCES, assert_close

from blended_diffusion.checkpoints import (
    PRESETS,
    Architecture,
    infer_architecture,
    key_map,
    scheduler_config,
    unet_config,
)
from blended_diffusion.checkpoints.presets import find_preset
from blended_diffusion.checkpoints.stock_unet import duplication
from blended_diffusion.checkpoints.tensor_files import (
    read_sharded,
    read_tensors,
    replacing,
    write_safetensors,
    write_sharded,
)


UNTOLD = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order", "noise_schedule", "dropout")

ORDERS = pytest.mark.parametrize("new_order", [False, True], ids=["legacy", "new"])
NETWORKS = pytest.mark.parametrize("name", SMALL)


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def empty_state(architecture: Architecture) -> dict[str, torch.Tensor]:
    return {entry.name: torch.empty(entry.shape, device="meta") for entry in key_map(architecture)}


def untold(architecture: Architecture) -> dict:
    return {name: getattr(architecture, name) for name in UNTOLD}


def to_unet(architecture: Architecture, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: entry.to_unet(key, state[entry.name]) for entry in key_map(architecture) for key in entry.parts}


def to_guided_diffusion(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        entry.name: entry.to_guided_diffusion({key: tensors[key] for key in entry.parts})
        for entry in key_map(architecture)
    }


def stock_unet(architecture: Architecture, state: dict[str, torch.Tensor]) -> UNet2DModel:
    unet = UNet2DModel.from_config(unet_config(architecture)).eval()
    unet.load_state_dict(to_unet(architecture, state))
    return unet


@cache
def inputs(architecture: Architecture) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    side = max(16, 2 ** len(architecture.channel_mult))
    labels = (torch.tensor([0, 3, 4]),) if architecture.class_cond else ()
    return torch.randn(3, 3, side, side), torch.tensor([0, 747, 999]), *labels


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@ORDERS
@NETWORKS
def test_stock_unet_computes_what_guided_diffusion_does(name, new_order):
    architecture = replace(SMALL[name], use_new_attention_order=new_order)
    reference = reference_unet(architecture)
    state = reference.state_dict()

    assert infer_architecture(state, untold(architecture)) == architecture
    expected = reference(*inputs(architecture))
    actual = stock_unet(architecture, state)(*inputs(architecture)).sample
    assert expected.std() > 0.1
    assert (actual - expected).abs().max() <= TOLERANCES[torch.float32][1]


@pytest.mark.slow
@torch.no_grad()
def test_qkv_order_matters():
    architecture = SMALL["256"]
    reference = reference_unet(architecture)
    wrong = stock_unet(replace(architecture, use_new_attention_order=True), reference.state_dict())
    difference = wrong(*inputs(architecture)).sample - reference(*inputs(architecture))
    assert difference.abs().max() > 100 * TOLERANCES[torch.float32][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys(preset.architecture for preset in PRESETS.values()))
def test_published_networks_at_full_size(name):
    """Every key and shape of both networks, without their weights."""
    architecture = name
    state = reference_unet(architecture, device="meta").state_dict()
    assert infer_architecture(state, untold(architecture)) == architecture
    entries = key_map(architecture)
    assert {entry.name: entry.shape for entry in entries} == shapes_of(state)
    with torch.device("meta"):
        unet = UNet2DModel.from_config(unet_config(architecture)).state_dict()
    assert {key for entry in entries for key in entry.parts} == set(unet)


@pytest.mark.slow
@ORDERS
@NETWORKS
def test_there_and_back(name, new_order):
    architecture = replace(SMALL[name], use_new_attention_order=new_order)
    state = random_state(architecture)
    back = to_guided_diffusion(architecture, to_unet(architecture, state))
    assert list(back) == list(state)
    different = [key for key in state if not torch.equal(back[key], state[key])]
    if duplication(architecture) > 1:
        # q carries the root of the head widths' ratio, which is not a power of two
        assert all("qkv" in key for key in different)
        for key in different:
            torch.testing.assert_close(back[key], state[key], rtol=2e-7, atol=0)
    elif unet_config(architecture)["time_embedding_type"] == "learned":
        assert different == ["time_embed.0.weight"]
    else:
        assert different == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["512", "512 unconditional"])
def test_folded_timestep_is_lossless(name):
    architecture = SMALL[name]
    reference = reference_unet(architecture)
    state = {key: tensor.clone() for key, tensor in reference.state_dict().items()}
    tensors = to_unet(architecture, state)
    back = to_guided_diffusion(architecture, tensors)

    from guided_diffusion.nn import timestep_embedding

    table, weight = tensors["time_proj.weight"].double(), tensors["time_embedding.linear_1.weight"].double()
    assert table.shape == (1000, 128) and weight.shape == (1024, 128)
    layer = timestep_embedding(torch.arange(1000), 256).double() @ state["time_embed.0.weight"].double().T
    assert (table @ weight.T - layer).abs().max() <= 1e-6
    sample, _, *labels = inputs(architecture)
    for timesteps in ([0, 1, 2], [100, 333, 512], [747, 998, 999]):
        reference.load_state_dict(state)
        expected = reference(sample, torch.tensor(timesteps), *labels)
        reference.load_state_dict(back)
        difference = reference(sample, torch.tensor(timesteps), *labels) - expected
        assert difference.abs().max() <= 1e-6 * expected.abs().max()


def test_trained_timestep_table_is_not_turned_back():
    architecture = SMALL["512 unconditional"]
    tensors = to_unet(architecture, random_state(architecture))
    tensors["time_proj.weight"][500] += 0.1
    with pytest.raises(ValueError, match="time_proj.weight has been trained"):
        to_guided_diffusion(architecture, tensors)


def test_trained_copies_are_not_turned_back():
    architecture = SMALL["128"]
    tensors = to_unet(architecture, random_state(architecture))
    tensors["conv_in.weight"][1] += 0.1  # the second copy of the first channel
    with pytest.raises(ValueError, match="conv_in.weight has been trained"):
        to_guided_diffusion(architecture, tensors)


def test_only_differing_head_widths_repeat_channels():
    assert {name for name, preset in PRESETS.items() if duplication(preset.architecture) > 1} == {"128x128_diffusion"}
    assert unet_config(PRESETS["128x128_diffusion"].architecture)["attention_head_dim"] == 256
    assert unet_config(SMALL["pixel art"])["attention_head_dim"] is None
    assert unet_config(small("ffhq_10m", num_heads=4, num_head_channels=-1))["attention_head_dim"] == 32


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1000, 4000])
def test_noise_schedule(schedule, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        diffusion = pytest.importorskip("guided_diffusion.gaussian_diffusion")
    architecture = replace(SMALL["64"], noise_schedule=schedule, diffusion_steps=steps)
    scheduler = DDPMScheduler(**scheduler_config(architecture))
    expected = torch.from_numpy(diffusion.get_named_beta_schedule(schedule, steps)).float()
    assert_close(scheduler.betas, expected)
    assert (scheduler.betas - expected).abs().max() <= 1e-7
    assert (scheduler.alphas_cumprod - (1 - expected.double()).cumprod(0)).abs().max() <= 1e-6
    assert scheduler.config.variance_type == "learned_range"
    assert scheduler_config(SMALL["three channels"])["variance_type"] == "fixed_large"


@pytest.mark.parametrize("count", [25, 50, 75, 100, 200, 250, 500, 1000])
def test_respaced_timesteps(count):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        respace = pytest.importorskip("guided_diffusion.respace")
    scheduler = DDPMScheduler(**scheduler_config(SMALL["256"]))
    scheduler.set_timesteps(count)
    assert scheduler.timesteps.tolist() == sorted(respace.space_timesteps(1000, str(count)), reverse=True)
    assert scheduler.config.clip_sample is False


# ---------------------------------------------------------------------------------------------------------------------
# What a network is
# ---------------------------------------------------------------------------------------------------------------------


def test_flags_that_agree_are_accepted():
    architecture = SMALL["64"]
    state = empty_state(architecture)
    flags = {
        **untold(architecture),
        "num_channels": 32,
        "channel_mult": (1.0, 2.0, 3.0, 4.0),
        "attention_resolutions": (8, 16, 32),
        "num_res_blocks": 3,
        "class_cond": True,
        "learn_sigma": True,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
    }
    assert infer_architecture(state, flags) == architecture


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_channels": 64}, "num_channels=64 contradicts the checkpoint, whose tensors say 32"),
        ({"num_res_blocks": 2}, "num_res_blocks=2 contradicts .* say 3"),
        ({"channel_mult": (1, 2, 4, 4)}, r"channel_mult=\(1, 2, 4, 4\) contradicts .* say \(1, 2, 3, 4\)"),
        ({"attention_resolutions": (16, 8)}, r"attention_resolutions=\(16, 8\) contradicts .* say \(32, 16, 8\)"),
        ({"class_cond": False}, "class_cond=False contradicts .* say True"),
        ({"learn_sigma": False}, "learn_sigma=False contradicts .* say True"),
        ({"resblock_updown": False}, "resblock_updown=False contradicts .* say True"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm=False contradicts .* say True"),
        ({"image_size": 0}, "image_size=0 does not fit"),
        ({"image_size": 60}, "image_size=60 does not fit a network of 4 levels; use a multiple of 8"),
        ({"num_head_channels": 48}, "num_head_channels=48 does not divide the attention width 64"),
        ({"num_head_channels": 0}, "num_head_channels=0 does not divide"),
        ({"num_head_channels": -1, "num_heads": 7}, "num_heads=7 does not divide"),
        ({"noise_schedule": "sqrt"}, "noise_schedule='sqrt' is not known; use 'linear' or 'cosine'"),
        ({"dropout": 1.5}, "dropout=1.5 is out of range"),
        ({"diffusion_steps": 0}, "diffusion_steps=0 is out of range"),
        ({"num_blocks": 3}, "'num_blocks' is no architecture flag"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    architecture = SMALL["64"]
    state = empty_state(architecture)
    with pytest.raises(ValueError, match=message):
        infer_architecture(state, {**untold(architecture), **flags})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_heads": 4}, "image_size cannot be read off"),
        ({"image_size": 64}, "give num_heads or num_head_channels"),
        ({"image_size": 64, "num_head_channels": -1}, "give num_heads or num_head_channels"),
    ],
)
def test_flags_that_are_missing(flags, message):
    state = empty_state(SMALL["64"])
    with pytest.raises(ValueError, match=message):
        infer_architecture(state, flags)


def test_other_networks_are_named():
    state = empty_state(SMALL["64"])
    flags = untold(SMALL["64"])
    with pytest.raises(ValueError, match="classifier"):
        infer_architecture({key: tensor for key, tensor in state.items() if "output_blocks" not in key}, flags)
    with pytest.raises(ValueError, match="takes 6 channels.*upsamplers"):
        infer_architecture({**state, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, flags)
    with pytest.raises(ValueError, match="lacks a 2-dimensional 'time_embed.0.weight'; found model.diffusion_model.a"):
        infer_architecture({"model.diffusion_model.a": torch.zeros(1)}, flags)
    with pytest.raises(ValueError, match="found no tensor"):
        infer_architecture({}, flags)
    with pytest.raises(ValueError, match="cannot be divided into levels"):
        infer_architecture({**state, "output_blocks.16.0.x": torch.zeros(1)}, flags)
    with pytest.raises(ValueError, match="multiples of 32"):
        infer_architecture({**state, "input_blocks.1.0.in_layers.2.weight": torch.zeros(48, 32, 3, 3)}, flags)


def test_presets_are_found_by_file_name(tmp_path):
    assert find_preset(tmp_path / "256x256_diffusion_uncond.pt") == "256x256_diffusion_uncond"
    assert find_preset(tmp_path / "lsun_cat.safetensors") == "lsun_cat"
    assert find_preset(tmp_path / "ema_0.9999_100000.pt") is None
    assert find_preset(tmp_path / "renamed.pt", "lsun_cat") == "lsun_cat"
    with pytest.raises(ValueError, match="preset='lsun' is not known; use one of 64x64_diffusion"):
        find_preset(tmp_path / "lsun_cat.pt", "lsun")


def test_presets_are_as_published():
    """The flags of guided-diffusion's README that a state dict does not tell."""
    published = {name: preset.architecture for name, preset in PRESETS.items()}
    assert [name for name, net in published.items() if net.use_new_attention_order] == ["64x64_diffusion"]
    assert [name for name, net in published.items() if net.noise_schedule == "cosine"] == ["64x64_diffusion"]
    assert [name for name, net in published.items() if net.num_head_channels == -1 and net.num_heads == 4] == [
        "128x128_diffusion"
    ]
    assert {name for name, net in published.items() if net.dropout} == {
        "64x64_diffusion",
        "lsun_bedroom",
        "lsun_cat",
        "lsun_horse",
    }
    assert {net.image_size for name, net in published.items() if name.startswith("512x512")} == {512}


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_written_tensors_are_read(tmp_path, dtype):
    tensors = {
        "a": torch.randn(3, 4, dtype=dtype),
        "b": torch.randn(5, 2, dtype=dtype).T,
        "c": torch.ones((), dtype=dtype),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, tensors.__getitem__)
    assert (tmp_path / "x.safetensors").read_bytes()[0] % 8 == 0  # so that tensors lie on their own boundaries
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == dtype for name, tensor in tensors.items())


def test_shards_are_diffusers_own(tmp_path):
    """The same files, split alike, with the same index, as `UNet2DModel.save_pretrained`."""
    architecture = SMALL["FFHQ"]
    unet = UNet2DModel.from_config(unet_config(architecture))
    unet.save_pretrained(tmp_path / "diffusers", max_shard_size="2MB")
    ours = tmp_path / "ours"
    ours.mkdir()
    write_sharded(ours, unet.state_dict(), unet.state_dict().__getitem__, "2MB")
    theirs = {path.name for path in (tmp_path / "diffusers").iterdir()} - {"config.json"}
    assert {path.name for path in ours.iterdir()} == theirs and len(theirs) > 2
    index = "diffusion_pytorch_model.safetensors.index.json"
    assert json.loads((ours / index).read_text()) == json.loads((tmp_path / "diffusers" / index).read_text())
    read = read_sharded(ours)
    assert all(torch.equal(read[key], tensor) for key, tensor in unet.state_dict().items())


class _Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def _save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, _save_legacy, _save_pickle])
def test_nothing_of_a_harmful_pickle_is_executed(tmp_path, save):
    path, mark = tmp_path / "x.pt", tmp_path / "executed"
    save({"a": _Harmful(mark)}, path)
    with pytest.raises(ValueError, match="holds a pickle that .*nothing of it was executed"):
        read_tensors(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if save is _save_pickle else torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_named(tmp_path, kind, share):
    tensors = {"a": torch.randn(100, 100)}
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    {"zip": torch.save, "legacy": _save_legacy, "safetensors": save_file}[kind](tensors, path)
    assert torch.equal(read_tensors(path)["a"], tensors["a"])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="not a whole|torch has not written"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list; expected a state dict"),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "holds state_dict, epoch that are not tensors"),
        ({"a": torch.zeros(1), 3: torch.zeros(1)}, "holds 3 that is not tensors"),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "x.pt")


def test_other_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file; expected a .pt or .safetensors checkpoint"):
        read_tensors(tmp_path)
    (tmp_path / "x.npz").touch()
    with pytest.raises(ValueError, match="ends in '.npz'; expected a .pt or .safetensors checkpoint"):
        read_tensors(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="holds no diffusion_pytorch_model.safetensors"):
        read_sharded(tmp_path)


def test_output_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    output = tmp_path / "model"
    output.mkdir()
    (output / "model_index.json").write_text("old")

    with pytest.raises(ValueError, match="is a folder with files in it"), replacing(output, overwrite=False):
        pass
    with pytest.raises(KeyboardInterrupt), replacing(output, overwrite=True) as partial:
        partial.mkdir()
        (partial / "model_index.json").write_text("half")
        raise KeyboardInterrupt
    assert (output / "model_index.json").read_text() == "old"
    with replacing(output, overwrite=True) as partial:
        partial.mkdir()
        (partial / "model_index.json").write_text("new")
        assert (output / "model_index.json").read_text() == "old"
    assert (output / "model_index.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_only_pipelines_are_overwritten(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(ValueError, match="only a pipeline's folder is overwritten"),
        replacing(tmp_path, overwrite=True),
    ):
        pass


def test_empty_folder_is_no_obstacle(tmp_path):
    output = tmp_path / "model"
    output.mkdir()
    with replacing(output, overwrite=False) as partial:
        partial.mkdir()
        (partial / "x").touch()
    assert (output / "x").exists() and list(tmp_path.iterdir()) == [output]
