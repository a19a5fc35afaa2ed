import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from forked import run_forked
from guided_diffusion_reference import SMALL, random_state, reference_unet, small
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny import TOLERANCES, tiny_clip, tiny_feature_extractor, tiny_tokenizer
from typer.testing import CliRunner

from blended_diffusion.checkpoints import PRESETS, Preset, convert, recorded_architecture, to_guided_diffusion
from blended_diffusion.commands.convert import app, as_flags


ROOT = Path(__file__).parents[1]

TINY = small(
    "256x256_diffusion_uncond",
    image_size=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    use_new_attention_order=True,
)
FLAGS = ["--image-size", "16", "--num-head-channels", "32"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    return random_state(TINY)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, state) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory, checkpoint, clip) -> Path:
    output = tmp_path_factory.mktemp("converted") / "model"
    flags = {"image_size": 16, "num_head_channels": 32, "use_new_attention_order": True}
    return convert(checkpoint, output, clip=clip, **flags)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(result, output: Path, message: str, code: int = 2) -> None:
    """One sentence, the exit code, and nothing left behind."""
    assert result.exit_code == code
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and message in last
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if path.name.startswith(f".{output.name}.")] == []


# ---------------------------------------------------------------------------------------------------------------------
# There
# ---------------------------------------------------------------------------------------------------------------------


def test_folder_loads_and_edits(tmp_path, checkpoint, clip, photo, mask):
    output = tmp_path / "models" / "tiny"
    options = "--default-num-inference-steps 4 --default-strength 0.5 --default-clip-guidance-scale 20".split()
    options += "--default-range-guidance-scale 10 --default-num-augmentations 2".split()
    result = run(checkpoint, "--output", output, "--clip", clip, *FLAGS, *options)
    assert result.exit_code == 0 and result.stdout == f"Wrote {output}\n"
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]
    assert {"README.md", "model_index.json", "pipeline_blended_diffusion.py"} < {
        path.name for path in output.iterdir()
    }

    pipe = DiffusionPipeline.from_pretrained(output, custom_pipeline=str(output), trust_remote_code=True)
    assert type(pipe).__name__ == "BlendedDiffusionPipeline"
    assert {name: value for name, value in pipe.config.items() if name.startswith("default_")} == {
        "default_num_inference_steps": 4,
        "default_strength": 0.5,
        "default_clip_guidance_scale": 20.0,
        "default_range_guidance_scale": 10.0,
        "default_num_augmentations": 2,
        "default_guidance_gradient": "sample",
        "default_candidate_labels": None,
    }
    assert type(pipe.unet) is UNet2DModel and type(pipe.scheduler) is DDPMScheduler
    assert pipe.unet.config.sample_size == 16 and pipe.scheduler.config.variance_type == "learned_range"
    pipe.set_progress_bar_config(disable=True)
    edited = pipe("rock", photo, mask_image=mask, output_type="pt").images
    assert edited.shape == (1, 3, 16, 16) and edited.isfinite().all()


def test_defaults_are_the_released_editors(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert {name: value for name, value in index.items() if name.startswith("default_")} == {
        "default_num_inference_steps": 100,
        "default_strength": 0.75,
        "default_clip_guidance_scale": 1000.0,
        "default_range_guidance_scale": 50.0,
        "default_num_augmentations": 8,
        "default_guidance_gradient": "sample",
        "default_candidate_labels": None,
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["64", "128", "512"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_converted_unet_computes_what_guided_diffusion_does(tmp_path, clip, name, suffix):
    """From file to file, the ways of each of the three kinds of network: plain, repeated channels, folded timestep."""
    architecture = SMALL[name]
    reference = reference_unet(architecture)
    checkpoint = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pt" else save_file)(reference.state_dict(), checkpoint)
    flags = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order", "noise_schedule", "dropout")
    convert(checkpoint, tmp_path / "x", clip=clip, **{flag: getattr(architecture, flag) for flag in flags})
    unet = UNet2DModel.from_pretrained(tmp_path / "x" / "unet")
    sample, timesteps, labels = torch.randn(2, 3, 32, 32), torch.tensor([5, 990]), torch.tensor([4, 0])
    difference = unet(sample, timesteps, labels).sample - reference(sample, timesteps, labels)
    assert difference.abs().max() <= TOLERANCES[torch.float32][1]


def test_half_precision(tmp_path, checkpoint, clip, state):
    assert run(checkpoint, "--output", tmp_path / "half", "--clip", clip, "--half", *FLAGS).exit_code == 0
    unet = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in unet.values()} == {torch.float16}
    assert torch.equal(unet["conv_in.weight"], state["input_blocks.0.0.weight"].half())
    weights = load_file(tmp_path / "half" / "clip_model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    for options, dtype in (({}, torch.float32), ({"dtype": torch.float16}, torch.float16)):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "half", trust_remote_code=True, **options)
        assert pipe.unet.dtype == pipe.clip_model.dtype == dtype


def test_shards(tmp_path, checkpoint, clip, folder):
    flags = {"image_size": 16, "num_head_channels": 32, "use_new_attention_order": True}
    convert(checkpoint, tmp_path / "x", clip=clip, max_shard_size="500KB", **flags)
    assert len(list((tmp_path / "x" / "unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 2
    sharded, whole = (UNet2DModel.from_pretrained(path / "unet").state_dict() for path in (tmp_path / "x", folder))
    assert all(torch.equal(sharded[key], tensor) for key, tensor in whole.items())


def test_what_was_assumed_is_said(tmp_path, checkpoint, clip, caplog):
    run(checkpoint, "--output", tmp_path / "a", "--clip", clip, *FLAGS)
    assert (
        "tiny.pt is no published checkpoint; assumed use_new_attention_order=False, noise_schedule=linear"
        in caplog.text
    )
    caplog.clear()
    told = "--no-use-new-attention-order --noise-schedule cosine --diffusion-steps 500 --dropout 0.1".split()
    run(checkpoint, "--output", tmp_path / "b", "--clip", clip, *FLAGS, *told)
    assert "assumed" not in caplog.text
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "b" / "scheduler").config
    assert (scheduler.beta_schedule, scheduler.num_train_timesteps) == ("squaredcos_cap_v2", 500)
    assert recorded_architecture(tmp_path / "b").dropout == 0.1


def test_repeated_channels_are_said(tmp_path, clip, caplog):
    torch.save(random_state(SMALL["128"]), tmp_path / "x.pt")
    run(tmp_path / "x.pt", "--output", tmp_path / "x", "--clip", clip, "--image-size", 128, "--num-heads", 4)
    assert "every channel is written 2 times" in caplog.text


def test_preset_by_file_name_and_by_flag(tmp_path, checkpoint, clip, caplog, monkeypatch, folder):
    preset = Preset(replace(TINY, use_new_attention_order=False), "nothing", "https://example.org", "mit")
    monkeypatch.setitem(PRESETS, "tiny", preset)
    monkeypatch.setitem(PRESETS, "tiny_new", replace(preset, architecture=TINY))
    assert run(checkpoint, "--output", tmp_path / "a", "--clip", clip).exit_code == 0
    assert run(checkpoint, "--output", tmp_path / "b", "--clip", clip, "--preset", "tiny_new").exit_code == 0
    assert "assumed" not in caplog.text
    unets = [
        UNet2DModel.from_pretrained(path / "unet").state_dict() for path in (tmp_path / "a", tmp_path / "b", folder)
    ]
    query = "mid_block.attentions.0.to_q.weight"
    assert not torch.equal(unets[0][query], unets[2][query])
    assert all(torch.equal(unets[1][key], tensor) for key, tensor in unets[2].items())

    result = run(checkpoint, "--output", tmp_path / "c", "--clip", clip, "--use-new-attention-order")
    assert_refused(
        result, tmp_path / "c", "use_new_attention_order=True contradicts the preset 'tiny', where it is False."
    )


def test_model_card(tmp_path, checkpoint, clip, folder, monkeypatch):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "image-to-image"
    assert card.data.license is None and "blended-diffusion" in card.data.tags
    assert "trust_remote_code=True" in card.text and "| `use_new_attention_order` | `True` |" in card.text
    assert str(tmp_path.parent) not in card.content
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY, "nothing", "https://example.org", "mit"))
    convert(checkpoint, tmp_path / "x", clip=clip)
    card = ModelCard.load(tmp_path / "x" / "README.md")
    assert card.data.license == "mit" and "[tiny](https://example.org), trained on nothing" in card.text


@pytest.mark.slow
def test_script(tmp_path, checkpoint, clip):
    """As a person runs it."""
    command = [sys.executable, "convert_checkpoint.py", checkpoint, "--output", tmp_path / "x", "--clip", clip, *FLAGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # older tokenizers remark on the tiny vocabulary first
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"Wrote {tmp_path / 'x'}"
    assert (tmp_path / "x" / "model_index.json").exists()


def test_guided_diffusions_published_flags_can_be_pasted(tmp_path, checkpoint, clip):
    flags = "--image_size 16 --num_head_channels 32 --class_cond False --use_new_attention_order True"
    command = [checkpoint, "--clip", clip, "--output"]
    assert run(*command, tmp_path / "x", *as_flags(flags.split())).exit_code == 0
    assert recorded_architecture(tmp_path / "x").use_new_attention_order
    flags = flags.replace("class_cond False", "class-cond true")
    result = run(*command, tmp_path / "y", *as_flags(flags.split()))
    assert_refused(result, tmp_path / "y", "class_cond=True contradicts the checkpoint")


def test_help_does_not_wait_for_torch():
    code = "import sys, blended_diffusion.commands.convert; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "image_size cannot be read off a state dict"),
        (["--image-size", "16"], "give num_heads or num_head_channels."),
        ([*FLAGS, "--num-res-blocks", "3"], "num_res_blocks=3 contradicts the checkpoint, whose tensors say 1."),
        ([*FLAGS, "--channel-mult", "1,x"], "channel_mult='1,x' is no list of numbers"),
        ([*FLAGS, "--channel-mult", "1,4"], "channel_mult=(1.0, 4.0) contradicts the checkpoint"),
        ([*FLAGS, "--attention-resolutions", "16"], "attention_resolutions=(16,) contradicts the checkpoint"),
        ([*FLAGS, "--class-cond"], "class_cond=True contradicts the checkpoint, whose tensors say False."),
        ([*FLAGS, "--noise-schedule", "sqrt"], "noise_schedule='sqrt' is not known; use 'linear' or 'cosine'."),
        (["--preset", "lsun_cat"], "of the preset 'lsun_cat' contradicts the checkpoint, whose tensors say"),
        (["--preset", "lsun"], "preset='lsun' is not known; use one of 64x64_diffusion, "),
        ([*FLAGS, "--clip", "./nowhere"], "clip='./nowhere' is neither a folder nor a Hub id"),
    ],
)
def test_wrong_flags(tmp_path, checkpoint, clip, options, message):
    clip_option = [] if "--clip" in options else ["--clip", clip]
    assert_refused(run(checkpoint, "--output", tmp_path / "x", *clip_option, *options), tmp_path / "x", message)


def _without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: _without(state, "middle_block.1.norm.bias"), "1 missing (middle_block.1.norm.bias)"),
        (lambda state: {**state, "step": torch.zeros(1)}, "1 extra (step)"),
        (
            lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
            "found module.time_embed.0.weight",
        ),
        (lambda state: _without(state, "time_embed.0.weight"), "lacks a 2-dimensional 'time_embed.0.weight'"),
        (
            lambda state: {**state, "out.0.bias": torch.zeros(5)},
            "out.0.bias has the shape (5,); this network needs (32,)",
        ),
        (lambda state: {**state, "out.0.bias": torch.zeros(32).int()}, "out.0.bias holds torch.int32"),
        (lambda state: {"state_dict": state}, "holds state_dict that is not tensors"),
        (lambda state: tiny_clip().state_dict(), "this is no guided-diffusion UNet"),
    ],
)
def test_wrong_checkpoints(tmp_path, state, clip, change, message):
    torch.save(change(state), tmp_path / "x.pt")
    result = run(tmp_path / "x.pt", "--output", tmp_path / "x", "--clip", clip, *FLAGS)
    assert_refused(result, tmp_path / "x", message)


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_harmful_checkpoint(tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Harmful()}, "x.pt")
    result = run("x.pt", "--output", tmp_path / "x", "--clip", clip, *FLAGS)
    assert_refused(result, tmp_path / "x", "asks for posix.mkdir; nothing of it was executed")
    assert not (tmp_path / "executed").exists()


def test_truncated_checkpoint(tmp_path, checkpoint, clip):
    whole = checkpoint.read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    result = run(tmp_path / "x.pt", "--output", tmp_path / "x", "--clip", clip, *FLAGS)
    assert_refused(result, tmp_path / "x", "x.pt is not a whole .pt file (")


def test_weights_beyond_half_precision(tmp_path, state, clip):
    torch.save({**state, "out.2.bias": torch.full((6,), 1e6)}, tmp_path / "x.pt")
    result = run(tmp_path / "x.pt", "--output", tmp_path / "x", "--clip", clip, "--half", *FLAGS)
    assert_refused(
        result, tmp_path / "x", "out.2.bias has values beyond half precision's range; convert without half."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "holds no CLIP model"),
        ("tokenizer.json", "holds no tokenizer with the words its model knows"),
        ("preprocessor_config.json", "holds no CLIP model with its tokenizer and image processor"),
    ],
)
def test_incomplete_clip(tmp_path, checkpoint, clip, name, message):
    incomplete = shutil.copytree(clip, tmp_path / "clip")
    (incomplete / name).unlink()
    result = run(checkpoint, "--output", tmp_path / "x", "--clip", incomplete, *FLAGS)
    assert_refused(result, tmp_path / "x", message)


def test_half_a_clip(tmp_path, checkpoint, clip):
    """transformers would fill in random weights."""
    half = shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(half / "model.safetensors")
    save_file(_without(weights, "visual_projection.weight"), half / "model.safetensors", metadata={"format": "pt"})
    result = run(checkpoint, "--output", tmp_path / "x", "--clip", half, *FLAGS)
    assert_refused(result, tmp_path / "x", "does not hold a whole CLIPModel (visual_projection.weight is missing)")


def test_clip_that_cannot_be_fetched(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run(checkpoint, "--output", tmp_path / "x", "--clip", "nobody/no-such-clip", *FLAGS)
    message = "clip='nobody/no-such-clip' is no folder and could not be fetched from the Hub; give the folder"
    assert_refused(result, tmp_path / "x", message, code=1)


def test_overwriting(tmp_path, checkpoint, clip, folder):
    output = shutil.copytree(folder, tmp_path / "model")
    before = files_below(output)
    arguments = [checkpoint, "--output", output, *FLAGS]

    result = run(*arguments, "--clip", clip)
    assert result.exit_code == 2 and "is a folder with files in it; name another or set overwrite." in result.stderr
    assert run(*arguments, "--clip", tmp_path, "--overwrite").exit_code == 2
    assert files_below(output) == before

    assert run(*arguments, "--clip", clip, "--overwrite").exit_code == 0  # with another qkv order
    assert files_below(output).keys() == before.keys() and files_below(output) != before
    assert list(tmp_path.iterdir()) == [output]


# ---------------------------------------------------------------------------------------------------------------------
# And back
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_back_is_bit_exact(tmp_path, folder, state, suffix):
    output = tmp_path / f"back{suffix}"
    assert run(folder, "--reverse", "--output", output).exit_code == 0
    back = torch.load(output, weights_only=True) if suffix == ".pt" else load_file(output)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_back_through_the_pipelines_own_saving(tmp_path, folder, state):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipe.save_pretrained(tmp_path / "again")
    back = to_guided_diffusion(tmp_path / "again")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_back_into_the_other_order(tmp_path, folder, clip, state):
    output = tmp_path / "legacy.pt"
    assert run(folder, "--reverse", "--output", output, "--no-use-new-attention-order").exit_code == 0
    back = torch.load(output, weights_only=True)
    assert not torch.equal(back["middle_block.1.qkv.weight"], state["middle_block.1.qkv.weight"])
    convert(output, tmp_path / "x", clip=clip, image_size=16, num_head_channels=32, use_new_attention_order=False)
    unets = [UNet2DModel.from_pretrained(path / "unet").state_dict() for path in (tmp_path / "x", folder)]
    assert all(torch.equal(unets[0][key], tensor) for key, tensor in unets[1].items())


def test_back_in_half_precision(tmp_path, checkpoint, clip, state):
    flags = {"image_size": 16, "num_head_channels": 32, "use_new_attention_order": True}
    back = to_guided_diffusion(convert(checkpoint, tmp_path / "x", clip=clip, half=True, **flags))
    assert all(torch.equal(back[name], tensor.half()) for name, tensor in state.items())


def test_what_cannot_go_back(tmp_path, folder):
    def refused(message, *arguments):
        assert_refused(run(*arguments, "--reverse", "--output", tmp_path / "x.pt"), tmp_path / "x.pt", message)

    refused("holds no unet/config.json; expected a folder made by the conversion.", tmp_path)
    refused("num_heads cannot be given with --reverse", folder, "--num-heads", 4)
    result = run(folder, "--reverse", "--output", tmp_path / "x.bin")
    assert_refused(result, tmp_path / "x.bin", "end it in .pt or .safetensors.")

    other = shutil.copytree(folder, tmp_path / "other")
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(_without(tensors, "conv_in.bias"), weights)
    refused("does not hold the network its config records: conv_in.bias", other)
    UNet2DModel.from_config({**UNet2DModel.load_config(other / "unet"), "_guided_diffusion": None}).save_config(
        other / "unet"
    )
    refused("has no '_guided_diffusion' entry", other)

    (tmp_path / "x.pt").write_text("mine")
    result = run(folder, "--reverse", "--output", tmp_path / "x.pt")
    assert result.exit_code == 2 and "exists; name another or set overwrite." in result.stderr
    assert (tmp_path / "x.pt").read_text() == "mine"
    assert run(folder, "--reverse", "--output", tmp_path / "x.pt", "--overwrite").exit_code == 0


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def print_memory(clip: Path, warm_up: Path, output: Path, runs: list[tuple[Path, str]]) -> None:
    """For each run the peak of this process's memory over what it was before."""

    def memory(name: str) -> int:
        return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    convert(warm_up, f"{output}-warm-up", clip=clip, image_size=16, num_head_channels=32)
    before, peaks = memory("VmRSS"), []
    for number, (checkpoint, half) in enumerate(runs):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        convert(checkpoint, f"{output}-{number}", clip=clip, half=half == "half", image_size=256, num_head_channels=32)
        peaks.append(memory("VmHWM") - before)
    print(json.dumps(peaks))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory_stays_near_the_checkpoints_size(tmp_path, checkpoint, clip):
    """
    The peak of the process's resident memory over what it was before, the pages mapped from the checkpoint included.
    """
    state = random_state(small("256x256_diffusion_uncond", num_channels=96))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size > 300e6
    torch.save(state, tmp_path / "x.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "x.safetensors")
    del state
    runs = [(tmp_path / "x.pt", "full"), (tmp_path / "x.pt", "half")]
    runs += [(tmp_path / "x.safetensors", "half"), (tmp_path / "legacy.pt", "full")]
    ended = run_forked(print_memory, clip, checkpoint, tmp_path / "out", runs, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for (path, kind), peak in zip(runs, json.loads(ended.stdout.splitlines()[-1]), strict=True):
        print(f"{path.name} {kind}: {peak / size:.2f}")
        assert peak <= 1.3 * size
