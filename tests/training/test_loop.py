"""The trainings: a run in pieces is the run in one, a kill does no harm, and what comes out is a pipeline."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from tiny import assert_close, tiny_tokenizer

from blended_diffusion.checkpoints import convert
from pipeline_blended_diffusion import BlendedDiffusionPipeline
from training import export, train_clip, train_unet
from training.loop import Training, latest_checkpoint
from training.losses import Diffusion, linear_schedule
from training.train_clip import as_seen, draw_regions, soften


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "no_network")


@pytest.fixture
def data(tmp_path):
    """A folder of one's own pictures: three, with two captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number, text in enumerate(["red", "blue", "blue"]):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        pixels[5:15, 5:15] = (255, 0, 0) if text == "red" else (0, 0, 255)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def train(data, output, *flags: str) -> dict[str, torch.Tensor]:
    shared = ["--data", data, "--output", output, "--size", "16", "--batch-size", "2", "--cpu", "--log-steps", "1"]
    small = ["--channels", "32", "32", "--attention", "8", "--sample-steps", "0", "--warmup-steps", "2"]
    train_unet.main([str(part) for part in [*shared, *small, *flags]])
    return load_file(latest_checkpoint(output) / "averaged" / "diffusion_pytorch_model.safetensors")


def train_a_clip(data, output, tokenizer, *flags: str) -> None:
    shared = ["--data", data, "--output", output, "--size", "16", "--batch-size", "4", "--cpu", "--log-steps", "1"]
    small = ["--clip-size", "16", "--patch", "4", "--width", "32", "--layers", "1", "--text-width", "32"]
    train_clip.main([str(part) for part in [*shared, *small, "--tokenizer", tokenizer, *flags]])


def test_a_run_in_pieces_is_the_run_in_one(data, tmp_path):
    whole = train(data, tmp_path / "whole", "--steps", "4")
    for step in range(1, 5):  # no time at all is enough for one step
        pieces = train(data, tmp_path / "pieces", "--steps", "4", "--max-minutes", "0")
        assert latest_checkpoint(tmp_path / "pieces").name == f"step-{step:07d}"
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "pieces")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_kill_while_saving_does_no_harm(data, tmp_path):
    whole = train(data, tmp_path / "whole", "--steps", "3")
    train(data, tmp_path / "killed", "--steps", "3", "--max-minutes", "0")
    last = latest_checkpoint(tmp_path / "killed")
    # killed in the middle of the next checkpoint, and once more before `latest.json` was replaced
    shutil.copytree(last, tmp_path / "killed" / "step-0000002.partial")
    (tmp_path / "killed" / "step-0000002.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "killed" / "latest.partial").write_text("{")
    resumed = train(data, tmp_path / "killed", "--steps", "3")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [path.name for path in (tmp_path / "killed").glob("step-*") if path.suffix != ".partial"] == [
        "step-0000003"
    ]


def test_the_time_limit_counts_from_the_start(data, tmp_path):
    train(data, tmp_path / "run", "--steps", "50", "--max-minutes", "0")
    assert json.loads((tmp_path / "run" / "latest.json").read_text())["step"] == 1


def test_a_run_that_is_asked_to_end_saves_first(data, tmp_path, monkeypatch):
    learn = Training.learn

    def learn_and_be_stopped(run: Training, loss: torch.Tensor) -> None:
        learn(run, loss)
        if run.progress.step == 1:  # in the middle of the second step
            signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(Training, "learn", learn_and_be_stopped)
        train(data, tmp_path / "stopped", "--steps", "4")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert latest_checkpoint(tmp_path / "stopped").name == "step-0000002"
    assert signal.getsignal(signal.SIGTERM) is handler
    whole, resumed = (train(data, tmp_path / name, "--steps", "4") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_line_says_how_long_it_will_take(data, tmp_path, capsys):
    train(data, tmp_path / "run", "--steps", "3")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 3 and all(re.search(r"of 3, .* s each, \d+ h \d\d min left .*loss ", line) for line in lines)
    assert "0 h 00 min left" in lines[-1]


def test_a_constant_learning_rate_decays_at_the_end(data, tmp_path):
    def rates(*flags: str) -> list[float]:
        train(data, tmp_path / "run", "--lr-schedule", "constant_then_decay", "--learning-rate", "1e-3", *flags)
        log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["learning_rate"] for line in log]

    for steps in range(1, 4):
        assert rates("--steps", "9", "--max-minutes", "0") == [0.0005, 0.001, 0.001][:steps]
    # when it decays may be decided on later
    decayed = rates("--steps", "6", "--decay-steps", "3")[2:]
    assert decayed == sorted(set(decayed), reverse=True) and decayed[-1] == 0


def test_options_for_speed(data, tmp_path):
    weights = train(data, tmp_path / "run", "--steps", "2", "--precision", "bf16", "--channels-last")
    assert all(torch.isfinite(tensor).all() and tensor.dtype == torch.float32 for tensor in weights.values())


def test_sample_grid(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_unet, "SAMPLES", 8)
    monkeypatch.setattr(train_unet, "SAMPLING_STEPS", 2)
    train(data, tmp_path / "run", "--steps", "2", "--sample-steps", "2")
    assert Image.open(tmp_path / "run" / "samples-0000002.png").width > 8 * 16


def test_from_pictures_to_a_pipeline_and_guided_diffusions_layout(data, tokenizer, tmp_path):
    train(data, tmp_path / "unet", "--steps", "2")
    train_a_clip(data, tmp_path / "clip", tokenizer, "--steps", "2")
    denoiser = latest_checkpoint(tmp_path / "unet") / "averaged"
    train_a_clip(data, tmp_path / "clip", tokenizer, "--steps", "3", "--denoiser", denoiser)
    runs = ["--unet", str(tmp_path / "unet"), "--clip", str(tmp_path / "clip")]
    export.main([*runs, "--output", str(tmp_path / "model"), "--guided-diffusion", str(tmp_path / "adm.pt")])
    pipe = BlendedDiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert str(tmp_path) not in (tmp_path / "model" / "unet" / "config.json").read_text()
    assert pipe.unet.dtype == pipe.clip_model.dtype == torch.float32
    assert pipe.unet.config.out_channels == 6 and pipe.clip_model.config.vision_config.image_size == 16
    assert (tmp_path / "model" / "words.txt").read_text() == "red\nblue\n"
    stored = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}

    flags = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "attention_resolutions": (8,)}
    flags |= {"num_head_channels": 32, "resblock_updown": True, "image_size": 16, "use_scale_shift_norm": True}
    for part in ("clip_model", "tokenizer", "feature_extractor"):
        shutil.copytree(tmp_path / "model" / part, tmp_path / "whole-clip", dirs_exist_ok=True)
    convert(tmp_path / "adm.pt", tmp_path / "back", clip=tmp_path / "whole-clip", half=True, **flags)
    back = load_file(tmp_path / "back" / "unet" / "diffusion_pytorch_model.safetensors")
    assert back.keys() == stored.keys() and all(torch.equal(back[key], stored[key]) for key in stored)

    state = torch.load(tmp_path / "adm.pt", weights_only=True)
    guided_diffusion = pytest.importorskip("guided_diffusion.unet")
    switches = {"use_scale_shift_norm": True, "resblock_updown": True}
    reference = guided_diffusion.UNetModel(
        16, 3, 32, 6, 1, (2,), channel_mult=(1, 1), num_head_channels=32, **switches
    )
    reference.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    unet = UNet2DModel.from_pretrained(tmp_path / "model" / "unet").float().eval()
    sample, timestep = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        assert_close(unet(sample, timestep).sample, reference.eval()(sample, timestep))


def test_regions_hold_the_objects():
    objects = torch.zeros(200, 1, 32, 32)
    objects[:, :, 10:20, 8:24] = 1
    objects[100:] = 0
    regions = draw_regions(objects, torch.Generator().manual_seed(0))
    covered = (regions * objects).sum(dim=(1, 2, 3))[:100] / objects[0].sum()
    assert covered.mean() > 0.85 and covered.min() > 0.4
    assert set(regions.unique().tolist()) == {0.0, 1.0}
    assert (regions.sum(dim=(1, 2, 3)) > 0).all()
    assert 0.05 < (regions.mean(dim=(1, 2, 3)) == 1).float().mean() < 0.3


def test_pictures_as_the_guidance_shows_them():
    diffusion = Diffusion(linear_schedule())
    clean = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    regions = torch.zeros(32, 1, 32, 32)
    regions[:, :, 8:24, 8:24] = 1

    def seen(timestep: int) -> torch.Tensor:
        return as_seen(
            clean, regions, torch.full((32,), timestep), diffusion, torch.Generator().manual_seed(1), clip_size=32
        )

    assert torch.equal(seen(400), seen(400))
    finished = seen(-1)
    exact = (finished == clean * regions).flatten(1).all(dim=1)
    assert 0.1 < exact.float().mean() < 0.7  # those that are not warped
    assert torch.isfinite(seen(999)).all()


def test_estimates_are_softer_the_more_noise_there_is():
    clean = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spread = [
        soften(clean, torch.full((16,), t), torch.Generator().manual_seed(1)).std().item() for t in (0, 300, 600, 999)
    ]
    assert spread[0] == pytest.approx(clean.std().item()) and spread == sorted(spread, reverse=True)
