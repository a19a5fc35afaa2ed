"""Imagic on tiny random networks: that each step does what the paper says, and leaves alone what it must.

What it makes of a photo is seen on a trained network; here losses fall, and what is to be equal is equal.
"""

import copy
import inspect
import os
import re
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image, ImageDraw
from stand_ins import CLIP_WORDS, TRANSFORMER, tiny_autoencoder, tiny_conditional_unet, tiny_text_encoder
from tiny import assert_close, tiny_clip, tiny_feature_extractor, tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import pipeline_imagic as method
from pipeline_imagic import EtaPoint, ImagicEdit, ImagicPipeline


PROMPT = "a green apple"
FILE = method.__file__


def make_scheduler(prediction_type: str = "epsilon", cls: type = DDIMScheduler):
    """Little noise at the end, so that networks which were never trained do not throw the sample far away."""
    options = {"clip_sample": False, "steps_offset": 1}
    known = {name: value for name, value in options.items() if name in inspect.signature(cls).parameters}
    return cls(beta_end=0.005, prediction_type=prediction_type, **known)


def parts(prediction_type: str = "epsilon", **changes) -> dict:
    """Stable Diffusion for pictures of 16×16, in tiny."""
    torch.manual_seed(0)
    vae = tiny_autoencoder(2)
    vae.register_to_config(scaling_factor=3.0)  # its latents are then about as large as noise
    return {
        "vae": vae,
        "text_encoder": tiny_text_encoder(),
        "tokenizer": tiny_tokenizer(),
        "unet": tiny_conditional_unet(4, **{**SMALL, **changes}),
        "scheduler": make_scheduler(prediction_type),
    }


# with cross-attention in the middle alone
SMALL = {
    "sample_size": 8,
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}


def xl_parts() -> dict:
    """Stable Diffusion XL, likewise."""
    changes = {
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    config = CLIPTextConfig(**TRANSFORMER, **CLIP_WORDS, projection_dim=32)
    second = CLIPTextModelWithProjection(config).eval()
    return {**parts(**changes), "text_encoder_2": second, "tokenizer_2": tiny_tokenizer()}


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pipe(**components) -> ImagicPipeline:
    return quiet(ImagicPipeline(**{**(components or parts()), "default_num_inference_steps": 3}))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fit(pipe: ImagicPipeline, photo: Image.Image, **arguments) -> ImagicEdit:
    """Few steps, and so large that they make a difference."""
    rates = {"embedding_learning_rate": 0.3, "learning_rate": 3e-2}
    common = {"embedding_steps": 3, "steps": 3, "lora_rank": 4, "generator": seeded(0)[0], **rates}
    return pipe.fit(photo, PROMPT, **{**common, **arguments})


def pictures(pipe: ImagicPipeline, edit: ImagicEdit, **arguments) -> torch.Tensor:
    """`(E, N, 3, H, W)`, of the same generators every time."""
    number = arguments.get("num_images_per_prompt", 1)
    return pipe(edit, **{"output_type": "pt", "generator": seeded(*range(number)), **arguments}).images


def state(network: torch.nn.Module) -> dict:
    """All that tuning could leave behind in a network: values, kinds of layers, flags."""
    values = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    kinds = {name: (type(module), module.training) for name, module in network.named_modules()}
    return {"values": values, "flags": flags, "kinds": kinds, "checkpointing": network.is_gradient_checkpointing}


def assert_untouched(network: torch.nn.Module, before: dict) -> None:
    now = state(network)
    assert now["values"].keys() == before["values"].keys()
    assert all(torch.equal(now["values"][name], value) for name, value in before["values"].items())
    assert {**now, "values": None} == {**before, "values": None}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not getattr(network, "peft_config", None)


def assert_same_edit(one: ImagicEdit, other: ImagicEdit) -> None:
    for name in ("e_tgt", "e_opt", "weights"):
        found, expected = getattr(one, name), getattr(other, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    assert (one.losses, one.psnr, one.region, one.prompt) == (other.losses, other.psnr, other.region, other.prompt)
    assert one.photo_hash == other.photo_hash


@pytest.fixture(scope="module")
def fitted() -> tuple[ImagicPipeline, ImagicEdit]:
    """A pipeline and an edit of a 40×28 photo; tests that change the pipeline copy it."""
    ramp = torch.linspace(0, 255, 40)
    pixels = torch.stack([ramp.expand(28, 40), ramp.flip(0).expand(28, 40), ramp[:28, None].expand(28, 40)], dim=-1)
    pipe = make_pipe()
    return pipe, fit(pipe, Image.fromarray(pixels.to(torch.uint8).numpy()))


@pytest.fixture
def wide_mask() -> Image.Image:
    """White in the middle of 40×28."""
    picture = Image.new("L", (40, 28), 0)
    ImageDraw.Draw(picture).rectangle((12, 8, 25, 20), fill=255)
    return picture


# --- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", method.PREDICTION_TYPES)
def test_noise_and_target_are_the_schedulers_own(prediction_type):
    scheduler = DDPMScheduler()
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=seeded(0)[0])
    timesteps = torch.tensor([0, 500, 999])
    alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    assert_close(method.noised(latents, noise, alpha_bar), scheduler.add_noise(latents, noise, timesteps))
    expected = {"epsilon": noise, "sample": latents, "v_prediction": scheduler.get_velocity(latents, noise, timesteps)}
    target = method.prediction_target(prediction_type, latents, noise, alpha_bar)
    assert_close(target, expected[prediction_type])


def test_the_ends_of_the_interpolation_are_the_two_embeddings():
    e_tgt, e_opt = ({"prompt_embeds": torch.randn(1, 4, 8, generator=one)} for one in seeded(0, 1))
    between = [method.interpolate_text(e_tgt, e_opt, eta)["prompt_embeds"] for eta in (0.0, 0.25, 1.0)]
    assert torch.equal(between[0], e_opt["prompt_embeds"]) and torch.equal(between[2], e_tgt["prompt_embeds"])
    assert_close(between[1], 0.25 * e_tgt["prompt_embeds"] + 0.75 * e_opt["prompt_embeds"])


def curve_of(text: list[float], distance: list[float]) -> list[EtaPoint]:
    return [EtaPoint(0.4 + 0.1 * index, *pair) for index, pair in enumerate(zip(text, distance, strict=True))]


@pytest.mark.parametrize(
    ("text", "distance", "knee"),
    [
        ([0.20, 0.27, 0.29, 0.30], [0.1, 0.2, 0.4, 0.6], 1),  # the text is won early
        ([0.20, 0.21, 0.29, 0.30], [0.1, 0.11, 0.2, 0.6], 2),  # the photo is lost late
        ([0.20, 0.30, 0.20], [0.1, 0.5, 0.6], 1),  # likeness to the text need not rise to the end
        ([0.20, 0.25, 0.30], [0.1, 0.3, 0.5], None),  # a straight line
        ([0.20, 0.21, 0.30], [0.1, 0.4, 0.5], None),  # the photo is lost before the text is won
        ([0.20, 0.20, 0.20], [0.1, 0.3, 0.5], None),  # the words change nothing
        ([0.20], [0.1], None),
    ],
)
def test_the_knee_is_where_most_text_is_won_for_least_photo(text, distance, knee):
    assert method.find_knee(curve_of(text, distance)) == knee
    # neither scale matters
    scaled = curve_of([100 * value for value in text], [value / 7 - 1 for value in distance])
    assert method.find_knee(scaled) == knee


# --- the fit ---------------------------------------------------------------------------------------------------------


def losses_of_a_guess(monkeypatch, photo, prediction_type: str, share: float, **arguments) -> list[float]:
    """Of a network that takes the photo, times `share`, for what is behind the noise."""
    pipe = make_pipe(**parts(prediction_type))
    guess = share * pipe.encode_photo(pipe.image_processor.preprocess(photo, 16, 16))

    def predict(sample, timesteps, embeds):
        alpha_bar = pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (sample - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()
        velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * guess
        said = {"epsilon": noise, "v_prediction": velocity, "sample": guess}[prediction_type]
        return said + 0 * embeds["prompt_embeds"].sum()

    monkeypatch.setattr(pipe, "predict", predict)
    monkeypatch.setattr(pipe, "measure_psnr", lambda run: 0.0)
    return fit(pipe, photo, steps=0, batch_size=2, **arguments).losses["embedding"]


@pytest.mark.parametrize("prediction_type", method.PREDICTION_TYPES)
def test_who_knows_the_photo_has_no_loss(photo, monkeypatch, prediction_type):
    for weighting in method.LOSS_WEIGHTINGS:
        losses = losses_of_a_guess(monkeypatch, photo, prediction_type, 1.0, loss_weighting=weighting)
        assert len(losses) == 3 and max(losses) < 1e-6


def test_weighted_as_velocity_the_same_error_counts_the_same_whatever_a_network_predicts(photo, monkeypatch):
    losses = {
        (prediction_type, weighting): torch.tensor(
            losses_of_a_guess(monkeypatch, photo, prediction_type, 0.5, loss_weighting=weighting)
        )
        for prediction_type in method.PREDICTION_TYPES
        for weighting in method.LOSS_WEIGHTINGS
    }
    expected = losses["v_prediction", "none"]
    for prediction_type in method.PREDICTION_TYPES:
        assert_close(losses[prediction_type, "velocity"], expected)
    for prediction_type in ("epsilon", "sample"):
        assert not torch.allclose(losses[prediction_type, "none"], expected, rtol=1e-2)


@pytest.mark.parametrize("prediction_type", method.PREDICTION_TYPES)
def test_a_fit_lowers_the_loss_and_gives_the_photo_back_better(photo, prediction_type):
    """Against one with the same noises that moves nothing."""
    pipe = make_pipe(**parts(prediction_type))
    source = pipe.encode_photo(pipe.image_processor.preprocess(photo, 16, 16))
    common = {"embedding_steps": 10, "batch_size": 2, "lora_targets": ["conv1", "conv2", "conv_in"]}
    still = fit(pipe, photo, embedding_learning_rate=1e-12, steps=0, **common)
    edit = fit(pipe, photo, embedding_learning_rate=0.1, steps=40, **common)
    errors = []
    for one in (still, edit):
        given_back = pictures(pipe, one, eta=0, guidance_scale=1, output_type="latent", num_inference_steps=5)
        errors.append((given_back - source).square().mean().item())
    assert np.sum(edit.losses["embedding"]) < np.sum(still.losses["embedding"])
    network = edit.losses["network"]
    assert len(network) == 40 and np.mean(network[-10:]) < 0.8 * np.mean(network[:10])
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_networks_are_left_as_they_were(photo, tuning, gradient_checkpointing):
    pipe = make_pipe()
    pipe.unet.conv_in.requires_grad_(False)
    pipe.unet.mid_block.train()
    before = {name: state(part) for name, part in (("unet", pipe.unet), ("vae", pipe.vae))}
    random_state = torch.get_rng_state()
    edit = fit(pipe, photo, tuning=tuning, gradient_checkpointing=gradient_checkpointing)
    untuned = pictures(pipe, fit(pipe, photo, tuning=tuning, steps=0))
    tuned = pictures(pipe, edit)
    assert not torch.equal(tuned, untuned)
    for name, was in before.items():
        assert_untouched(getattr(pipe, name), was)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: tensor.shape for name, tensor in edit.e_opt.items()} == {"prompt_embeds": (1, 16, 32)}
    assert not torch.equal(edit.e_opt["prompt_embeds"], edit.e_tgt["prompt_embeds"])
    assert torch.equal(edit.e_tgt["prompt_embeds"], pipe.encode_prompt(PROMPT)["prompt_embeds"])


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_networks_are_left_as_they_were_whatever_happens(photo, tuning):
    pipe = make_pipe()
    before = state(pipe.unet)

    def fail(*_):
        raise KeyboardInterrupt

    def fail_in_step_2(pipe, phase, step, loss):
        if phase == "network":
            raise KeyboardInterrupt

    for callback in (fail, fail_in_step_2):
        with pytest.raises(KeyboardInterrupt):
            fit(pipe, photo, tuning=tuning, gradient_checkpointing=True, callback_on_step_end=callback)
        assert_untouched(pipe.unet, before)
    edit = fit(pipe, photo, tuning=tuning)
    with pytest.raises(KeyboardInterrupt):
        pipe(edit, callback_on_step_end=fail)
    assert_untouched(pipe.unet, before)


def test_step_1_moves_the_embedding_alone_and_step_2_the_network_alone(photo):
    pipe = make_pipe()
    embedding, network = fit(pipe, photo, steps=0), fit(pipe, photo, embedding_steps=0)
    assert not torch.equal(embedding.e_opt["prompt_embeds"], embedding.e_tgt["prompt_embeds"])
    assert torch.equal(network.e_opt["prompt_embeds"], network.e_tgt["prompt_embeds"])
    for edit, changed in ((embedding, False), (network, True)):
        assert any(weights.any() for name, weights in edit.weights.items() if "lora_B" in name) == changed


def test_the_generator_makes_the_fit_reproducible(photo):
    pipe = make_pipe()
    first = fit(pipe, photo)
    torch.manual_seed(5)
    assert_same_edit(fit(pipe, photo), first)
    assert fit(pipe, photo, generator=seeded(1)[0]).losses != first.losses
    assert fit(pipe, photo, generator=None).losses != first.losses


def test_gradient_checkpointing_and_mixed_precision_do_the_same(photo):
    pipe = make_pipe()
    plain = fit(pipe, photo)
    twice = fit(pipe, photo, gradient_checkpointing=True)
    assert_close(torch.tensor(twice.losses["network"]), torch.tensor(plain.losses["network"]))
    mixed = fit(pipe, photo, mixed_precision="bf16")
    assert_close(torch.tensor(mixed.losses["network"]), torch.tensor(plain.losses["network"]), torch.bfloat16)
    assert mixed.losses != plain.losses
    assert all(weights.dtype == torch.float32 for weights in mixed.weights.values())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_network_in_half_precision(photo, tuning):
    pipe = make_pipe().to(torch.bfloat16)
    before = state(pipe.unet)
    edit = fit(pipe, photo, tuning=tuning, optimizer="adamw")
    assert np.isfinite(edit.losses["network"]).all() and pictures(pipe, edit).isfinite().all()
    assert all(weights.dtype == torch.float32 for weights in (*edit.weights.values(), *edit.e_opt.values()))
    assert_untouched(pipe.unet, before)


def test_it_stops_when_the_photo_is_given_back_well_enough(photo):
    pipe = make_pipe()
    early = fit(pipe, photo, steps=6, psnr_every=2, target_psnr=0.1)
    assert len(early.losses["network"]) == 2 and early.psnr >= 0.1
    assert len(fit(pipe, photo, steps=6, psnr_every=2, target_psnr=90).losses["network"]) == 6


def test_the_psnr_is_that_of_what_the_call_gives_back(fitted):
    pipe, edit = fitted
    given_back = pictures(pipe, edit, eta=0, guidance_scale=1)[0, 0]
    pixels = pipe.image_processor.preprocess(edit.photo, 16, 16)[0] / 2 + 0.5
    mean_square = (given_back - pixels).square().mean()
    assert_close(torch.tensor(edit.psnr), -10 * mean_square.log10())


def test_interrupting_a_fit_returns_what_it_has_come_to(photo):
    pipe = make_pipe()

    def stop(pipe, phase, step, loss):
        pipe.interrupt = (phase, step) == ("network", 1)

    assert [len(losses) for losses in fit(pipe, photo, steps=9, callback_on_step_end=stop).losses.values()] == [3, 2]
    stop_early = lambda pipe, phase, step, loss: setattr(pipe, "interrupt", True)  # noqa: E731
    assert [len(one) for one in fit(pipe, photo, callback_on_step_end=stop_early).losses.values()] == [1, 0]


# --- interruption ----------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Somebody's."""


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    "stopped_in",
    [
        pytest.param(("embedding", 0), marks=pytest.mark.slow),
        ("embedding", 2),
        pytest.param(("network", 0), marks=pytest.mark.slow),
        ("network", 3),
    ],
    ids=str,
)
def test_going_on_equals_never_having_stopped(photo, tmp_path, tuning, stopped_in):
    pipe = make_pipe()
    common = {"tuning": tuning, "embedding_steps": 4, "steps": 5, "lora_rank": 2}
    whole = fit(pipe, photo, **common)

    def kill(pipe, phase, step, loss):
        if (phase, step) == stopped_in:
            raise Killed

    common |= {"checkpoint_folder": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Killed):
        fit(pipe, photo, resume=True, callback_on_step_end=kill, **common)
    again = []
    edit = fit(pipe, photo, resume=True, callback_on_step_end=lambda *call: again.append(call[1:3]), **common)
    assert_same_edit(edit, whole)
    assert len(again) < 9 or stopped_in == ("embedding", 0)
    # what has ended is there to have again
    assert_same_edit(fit(pipe, photo, resume=True, callback_on_step_end=kill, **common), whole)


ENDLESS = """
import sys, time
from PIL import Image
from test_pipeline_imagic import fit, make_pipe
fit(
    make_pipe(), Image.open(sys.argv[1]), steps=10**6, checkpoint_folder=sys.argv[2], checkpoint_every=2,
    callback_on_step_end=lambda *_: time.sleep(0.02),
)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_can_be_gone_on_from(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    file = tmp_path / "fit" / "imagic_fit.pt"
    folders = os.pathsep.join([str(Path(FILE).parent), str(Path(__file__).parent)])
    command = [sys.executable, "-c", ENDLESS, tmp_path / "photo.png", file.parent]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": folders}) as process:
        try:
            while not (file.exists() and torch.load(file, weights_only=True)["phase"] == "network"):
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.kill()
    done = len(torch.load(file, weights_only=True)["losses"]["network"])
    pipe = make_pipe()
    edit = fit(pipe, photo, steps=done + 3, checkpoint_folder=file.parent, checkpoint_every=2, resume=True)
    assert_same_edit(edit, fit(pipe, photo, steps=done + 3))


def test_more_steps_go_on_from_fewer(photo, tmp_path):
    pipe = make_pipe()
    fit(pipe, photo, steps=2, checkpoint_folder=tmp_path)
    assert_same_edit(fit(pipe, photo, steps=5, checkpoint_folder=tmp_path, resume=True), fit(pipe, photo, steps=5))


def test_another_fit_is_not_gone_on_from(photo, tmp_path):
    pipe = make_pipe()
    fit(pipe, photo, checkpoint_folder=tmp_path)
    with pytest.raises(ValueError, match="holds a fit already; pass `resume=True`"):
        fit(pipe, photo, checkpoint_folder=tmp_path)
    for changes, message in (
        ({"lora_rank": 2}, "`lora_rank` is 2, and was 4"),
        ({"steps": 2}, "`steps` is 2, and was 3"),
        ({"embedding_steps": 4}, "`embedding_steps` is 4, and was 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(pipe, photo, checkpoint_folder=tmp_path, resume=True, **changes)
    with pytest.raises(ValueError, match="`image` is another photo in the fit that"):
        fit(pipe, photo.rotate(90), checkpoint_folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="`resume=True` needs the `checkpoint_folder`"):
        fit(pipe, photo, resume=True)


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_saved_edit_makes_the_same_picture(photo, tmp_path, tuning):
    pipe = make_pipe()
    edit = fit(pipe, photo, tuning=tuning)
    edit.save(tmp_path / "edit")
    loaded = ImagicEdit.load(tmp_path / "edit")
    assert_same_edit(loaded, edit)
    assert loaded.settings == edit.settings
    expected = pictures(pipe, edit)
    assert torch.equal(pictures(pipe, loaded), expected)
    assert torch.equal(pictures(make_pipe(), str(tmp_path / "edit")), expected)
    assert {path.suffix for path in (tmp_path / "edit").iterdir()} == {".safetensors", ".json", ".png"}


def test_a_saved_adapter_is_one_that_other_pipelines_load(fitted, tmp_path):
    pipe, edit = fitted
    edit.save(tmp_path)
    stock = StableDiffusionPipeline(
        **parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.load_lora_weights(tmp_path)
    sample = torch.randn(1, 4, 8, 8, generator=seeded(0)[0])
    with torch.no_grad():
        found = stock.unet(sample, 500, edit.e_opt["prompt_embeds"]).sample
        with pipe.tuned_network(edit):
            expected = pipe.predict(sample, torch.tensor(500), edit.e_opt)
        untuned = pipe.predict(sample, torch.tensor(500), edit.e_opt)
    assert_close(found, expected)
    assert (found - untuned).abs().max() > 1e-3


def test_what_is_no_edit_is_refused(fitted, tmp_path):
    pipe, edit = fitted
    with pytest.raises(ValueError, match=r"holds no imagic_edit.json; expected a folder"):
        pipe(tmp_path)
    with pytest.raises(TypeError, match=r"^`edit` must be what `fit\(\)` returned or the folder it was saved to"):
        pipe({"e_opt": 1})
    edit.save(tmp_path)
    edit.photo.rotate(180).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="is not the photo that the edit was fitted to"):
        pipe(tmp_path)
    for other in (parts(block_out_channels=(8,)), parts(cross_attention_dim=24), xl_parts()):
        with pytest.raises(ValueError, match="^`edit` was fitted with another network; load the checkpoint"):
            make_pipe(**other)(edit)


# --- the call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler])
def test_several_etas_and_seeds_are_each_by_itself(fitted, cls):
    pipe, edit = copy.copy(fitted[0]), fitted[1]
    pipe.scheduler = make_scheduler(cls=cls)
    etas, seeds = [0.0, 1.0], [3, 4]
    generators = seeded(*seeds)
    out = pipe(edit, eta=etas, num_images_per_prompt=2, generator=generators, output_type="pt")
    assert out.images.shape == (2, 2, 3, 16, 16) and (out.etas, out.seeds) == (etas, seeds)
    assert (out.chosen, out.curve, out.explanation) == (None, None, None)
    for i, eta in enumerate(etas):
        for n, seed in enumerate(seeds):
            alone = pipe(edit, eta=eta, generator=torch.Generator().manual_seed(seed), output_type="pt").images
            assert_close(out.images[i, n], alone[0, 0])
    assert not torch.allclose(out.images[0], out.images[1], atol=1e-3)
    assert not torch.allclose(out.images[:, 0], out.images[:, 1], atol=1e-3)
    default = pipe(edit, generator=seeded(3)[0], output_type="pt")
    assert default.etas == [0.7]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_pictures_are_their_own_generators_with_every_scheduler(fitted, wide_mask, cls, strength):
    pipe = copy.copy(fitted[0])
    pipe.scheduler = make_scheduler(cls=cls)
    common = {"mask_image": wide_mask, "num_inference_steps": 4, "strength": strength, "eta": [0.5, 0.9]}
    together = pictures(pipe, fitted[1], num_images_per_prompt=3, **common)
    assert_close(together[:, :1], pictures(pipe, fitted[1], **common))
    # with a single generator the first picture is the same, however many there are
    few, many = (
        pictures(pipe, fitted[1], num_images_per_prompt=number, generator=seeded(0)[0], **common) for number in (2, 3)
    )
    assert_close(many[:, :2], few)
    assert_close(few[:, :1], together[:, :1])
    assert together.isfinite().all() and not torch.allclose(together[:, 0], together[:, 2], atol=1e-3)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_background_is_the_photos_to_the_last_bit(fitted, wide_mask, output_type):
    pipe, edit = fitted
    out = pipe(edit, eta=[0.4, 0.8], mask_image=wide_mask, output_type=output_type, generator=seeded(0))
    photo, inside = np.asarray(edit.photo), np.asarray(wide_mask) > 0
    for eta in out.images:
        for picture in eta:
            if output_type == "pil":
                assert picture.size == (40, 28)
            else:
                array = picture.permute(1, 2, 0).numpy() if output_type == "pt" else picture
                assert np.array_equal(array[~inside], (photo / np.float32(255))[~inside])
                picture = (array * 255).round().astype(np.uint8)
            difference = (np.asarray(picture).astype(int) - photo).any(axis=-1)
            assert not difference[~inside].any()
            assert difference[inside].mean() > 0.5


def test_with_a_mask_the_photo_is_there_at_every_step(fitted, wide_mask):
    """Outside the mask the latents are the photo's, noised to the level of the next step."""
    pipe, edit = fitted
    source = pipe.encode_photo(pipe.image_processor.preprocess(edit.photo, 16, 16))
    noise = torch.randn(1, 4, 8, 8, generator=seeded(7)[0])
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    pipe(edit, mask_image=wide_mask, generator=seeded(7)[0], callback_on_step_end=look)
    timesteps = pipe.scheduler.timesteps
    levels = [pipe.scheduler.add_noise(source, noise, t[None]) for t in timesteps[1:]] + [source]
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:7, 2:7] = False  # the white rectangle reaches into these
    assert len(seen) == len(levels) == 3
    for latents, level in zip(seen, levels, strict=True):
        assert_close(latents[..., outside], level[..., outside])
        assert not torch.allclose(latents[..., ~outside], level[..., ~outside], atol=1e-2)


def test_a_fit_of_the_crop_round_the_mask(fitted, wide_mask):
    pipe, whole = fitted
    edit = fit(pipe, whole.photo, mask_image=wide_mask, padding_mask_crop=2)
    left, top, right, bottom = edit.region
    assert left <= 10 and top <= 6 and right >= 27 and bottom >= 22 and right - left == bottom - top < 28
    photo = torch.from_numpy(np.array(whole.photo)).permute(2, 0, 1) / 255
    without, masked = (pictures(pipe, edit, mask_image=mask)[0, 0] for mask in (None, wide_mask))
    changed, changed_masked = ((one != photo).any(dim=0) for one in (without, masked))
    assert changed[top:bottom, left:right].float().mean() > 0.9
    changed[top:bottom, left:right] = False
    assert not changed.any()
    assert changed_masked.any() and not changed_masked[np.asarray(wide_mask) == 0].any()
    elsewhere = Image.new("L", (40, 28), 0)
    elsewhere.putpixel((0, 0), 255)
    with pytest.raises(ValueError, match="`mask_image` has nothing white within"):
        pipe(edit, mask_image=elsewhere)


def test_guidance_leads_away_from_the_negative_prompt(fitted):
    pipe, edit = fitted
    arguments = [{"guidance_scale": 1}, {"guidance_scale": 4}, {"guidance_scale": 4, "negative_prompt": "red"}]
    results = [pictures(pipe, edit, **one) for one in arguments]
    assert pipe.guidance_scale == 4
    assert torch.equal(results[0], pictures(pipe, edit, guidance_scale=1, negative_prompt="red"))
    for one, other in ((0, 1), (1, 2)):
        assert not torch.allclose(results[one], results[other], atol=1e-3)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types_and_tuples(fitted, output_type):
    pipe, edit = fitted
    arguments = {"eta": [0.4, 0.8], "num_images_per_prompt": 3, "output_type": output_type}
    named = pipe(edit, generator=seeded(0, 1, 2), **arguments)
    plain = pipe(edit, generator=seeded(0, 1, 2), return_dict=False, **arguments)
    assert len(named.images) == 2 and all(len(one) == 3 for one in named.images)
    shapes = {"np": (2, 3, 16, 16, 3), "pt": (2, 3, 3, 16, 16), "latent": (2, 3, 4, 8, 8)}
    if output_type == "pil":
        assert named.images[1][2].tobytes() == plain[0][1][2].tobytes()
    else:
        assert named.images.shape == shapes[output_type] and (named.images == plain[0]).all()
    assert tuple(plain[1:]) == ([0.4, 0.8], [0, 1, 2], None, None, None)


def test_callbacks_and_interrupting(fitted):
    pipe, edit = fitted

    def empty(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipe.num_timesteps - 1 else {}

    assert not pictures(pipe, edit, callback_on_step_end=empty, output_type="latent").any()
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe.interrupt = True
        return tensors

    pictures(pipe, edit, callback_on_step_end=stop)
    assert steps == [0] and pipe.num_timesteps == 3


def test_every_argument_is_documented():
    for function in (ImagicPipeline.__call__, ImagicPipeline.fit):
        documented = re.findall(r"^ {12}(\w[\w, ]*) \(", function.__doc__, re.MULTILINE)
        names = {name for line in documented for name in line.split(", ")}
        assert names == set(inspect.signature(function).parameters) - {"self"}
        assert "DiffusionPipeline.from_pretrained" in function.__doc__


# --- choosing η ------------------------------------------------------------------------------------------------------


def with_clip(pipe: ImagicPipeline) -> ImagicPipeline:
    clip = {
        "clip_model": tiny_clip(),
        "clip_tokenizer": tiny_tokenizer(),
        "feature_extractor": tiny_feature_extractor(),
    }
    pipe = quiet(ImagicPipeline(**{**pipe.components, **clip}, default_num_inference_steps=2))
    pipe.lpips = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    return pipe


def test_auto_measures_every_eta_and_says_why_it_takes_one(fitted):
    pipe, edit = with_clip(fitted[0]), fit(fitted[0], fitted[1].photo, height=32, width=32)
    out = pipe(edit, eta="auto", num_images_per_prompt=2, generator=seeded(0, 1), output_type="pt")
    assert out.etas == [point.eta for point in out.curve] == method.AUTO_ETAS
    knee = method.find_knee(out.curve)
    assert out.chosen == (method.AUTO_ETAS.index(0.7) if knee is None else knee)
    assert out.explanation.startswith(f"η = {out.etas[out.chosen]:g}")
    # each point is the mean over its pictures
    photo = pipe.image_processor.preprocess(edit.photo, 32, 32)
    with torch.no_grad():
        distances = [pipe.lpips(2 * one[None] - 1, photo).item() for one in out.images[3]]
        likeness = pipe.text_likeness(out.images[3], PROMPT)
    assert_close(torch.tensor(out.curve[3].photo_distance), torch.tensor(distances).mean())
    assert_close(torch.tensor(out.curve[3].text_likeness), likeness.mean())
    assert likeness.abs().max() <= 1 and min(distances) > 0


def test_auto_says_what_it_lacks(fitted, monkeypatch, no_network):
    pipe, edit = fitted
    with pytest.raises(ValueError, match=r'^`eta="auto"` measures by CLIP, of which `clip_model` is not loaded'):
        pipe(edit, eta="auto")
    pipe = with_clip(pipe)
    with pytest.raises(ValueError, match=r'`output_type` cannot be "latent" with it'):
        pipe(edit, eta="auto", output_type="latent")

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    pipe.lpips = None
    with pytest.raises(OSError, match=r"needs torchvision's AlexNet, .* put alexnet-owt-7be5be79.pth into nowhere/"):
        pipe(edit, eta="auto")


# --- Stable Diffusion XL ---------------------------------------------------------------------------------------------


def test_xl_moves_both_embeddings_and_is_told_the_size(photo, tmp_path, monkeypatch):
    pipe = make_pipe(**xl_parts())
    before = state(pipe.unet)
    told = []
    embedding = pipe.unet.get_aug_embed
    monkeypatch.setattr(
        pipe.unet, "get_aug_embed", lambda **given: told.append(given["added_cond_kwargs"]) or embedding(**given)
    )
    edit = fit(pipe, photo.resize((20, 30)), height=32, width=16)
    assert {name: tuple(tensor.shape) for name, tensor in edit.e_opt.items()} == {
        "prompt_embeds": (1, 16, 64),
        "pooled_prompt_embeds": (1, 32),
    }
    assert all(not torch.equal(edit.e_opt[name], edit.e_tgt[name]) for name in edit.e_tgt)
    assert {tuple(row) for given in told for row in given["time_ids"].tolist()} == {(32, 16, 0, 0, 32, 16)}
    edit.save(tmp_path)
    assert torch.equal(pictures(pipe, tmp_path, eta=[0.2, 0.9]), pictures(pipe, edit, eta=[0.2, 0.9]))
    assert pictures(pipe, edit).shape == (1, 1, 3, 32, 16)
    assert_untouched(pipe.unet, before)


def test_xl_encodes_as_its_own_pipeline():
    components = xl_parts()
    stock = StableDiffusionXLPipeline(**components, force_zeros_for_empty_prompt=True, add_watermarker=False)
    pipe = ImagicPipeline.from_pipe(stock)
    expected = stock.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=True)
    found, away = pipe.encode_prompt(PROMPT), pipe.encode_negative(None)
    ours = [found["prompt_embeds"], away["prompt_embeds"], found["pooled_prompt_embeds"], away["pooled_prompt_embeds"]]
    for one, other in zip(ours, expected, strict=True):
        assert_close(one, other)
    assert pipe.config.force_zeros_for_empty_prompt and not away["prompt_embeds"].any()
    assert pipe.encode_negative("").keys() == found.keys() and pipe.encode_negative("")["prompt_embeds"].any()


# --- loading and saving ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    StableDiffusionPipeline(
        **parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


def test_stable_diffusion_loads_with_this_file_and_encodes_as_its_own(stock_folder, fitted):
    edit = fitted[1]
    loaded = DiffusionPipeline.from_pretrained(stock_folder, custom_pipeline=FILE, trust_remote_code=True)
    assert type(loaded).__name__ == "ImagicPipeline" and type(loaded) is not ImagicPipeline
    loaded.register_to_config(default_num_inference_steps=3)
    expected = pictures(fitted[0], edit)
    assert_close(pictures(quiet(loaded), edit), expected)
    stock = StableDiffusionPipeline.from_pretrained(stock_folder)
    assert_close(pictures(make_pipe(**{name: getattr(stock, name) for name in parts()}), edit), expected)
    ours, theirs = ImagicPipeline.from_pipe(stock), stock.encode_prompt(PROMPT, "cpu", 1, True)
    assert_close(ours.encode_prompt(PROMPT)["prompt_embeds"], theirs[0])
    assert_close(ours.encode_negative(None)["prompt_embeds"], theirs[1])
    assert ours.unet is stock.unet


def test_a_saved_folder_is_complete(fitted, tmp_path):
    pipe, edit = fitted
    expected = pictures(pipe, edit)
    pipe.save_pretrained(tmp_path / "first")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "first", trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "second")
    for name in ("pipeline.py", "pipeline_imagic.py"):
        assert (tmp_path / "second" / name).read_bytes() == Path(FILE).read_bytes()
    own = ImagicPipeline.from_pretrained(tmp_path / "second")
    assert type(own) is ImagicPipeline and own.config.default_num_inference_steps == 3
    for one in (loaded, own):
        assert one.clip_model is None
        assert_close(pictures(quiet(one), edit), expected)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "photo.png"}, "`image` must be one PIL picture, NumPy array or torch tensor, not str"),
        ({"image": np.zeros((3, 16, 16))}, r"`image` has the shape \(3, 16, 16\); expected \(height, width, 3\)"),
        ({"image": torch.full((3, 16, 16), 2.0)}, r"`image` holds values outside \[0, 1\]"),
        ({"prompt": ["one", "two"]}, "`prompt` must be one string"),
        ({"prompt": " "}, "`prompt` is empty; describe the photo"),
        ({"height": 15}, "`height` is 15; expected a multiple of 2 pixels"),
        ({"steps": -1}, "`steps` is -1; expected a whole number of at least 0"),
        ({"lora_rank": 0}, "`lora_rank` is 0; expected a whole number of at least 1"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan; expected a number above 0"),
        ({"tuning": "lorry"}, r"`tuning` is 'lorry'; expected one of \('lora', 'full'\)"),
        ({"loss_weighting": "snr"}, "`loss_weighting` is 'snr'; expected one of"),
        ({"optimizer": "sgd"}, "`optimizer` is 'sgd'; expected one of"),
        ({"mixed_precision": "int8"}, "`mixed_precision` is 'int8'; expected one of"),
        ({"lora_targets": ["to_x"]}, "`lora_targets` has 'to_x', which no linear or convolutional layer's name"),
        ({"lora_targets": []}, "`lora_targets` is empty"),
        ({"target_psnr": -3}, "`target_psnr` is -3; expected a number of dB above 0"),
        ({"generator": 5}, "`generator` must be a torch.Generator, not int"),
        ({"checkpoint_every": 0}, "`checkpoint_every` is 0"),
        ({"padding_mask_crop": 4}, "`padding_mask_crop` needs a `mask_image`"),
        ({"mask_image": Image.new("L", (16, 16), 255)}, "`mask_image` is for `padding_mask_crop` here"),
        ({"mask_image": Image.new("L", (16, 16)), "padding_mask_crop": 4}, "`mask_image` has nothing white in it"),
    ],
)
def test_a_fit_says_what_is_wrong(fitted, photo, arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}[^\n]*\\.$"):
        fitted[0].fit(**{"image": photo, "prompt": PROMPT, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": "best"}, "`eta` is 'best'; expected a number from 0"),
        ({"eta": []}, r"`eta` is \[\]; expected a number from 0"),
        ({"eta": [0.5, -1]}, r"`eta` is \[0.5, -1\]; expected a number from 0"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0; expected a whole number of at least 1"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` is 1001; the network knows 1000 timesteps"),
        ({"strength": 0}, "`strength` is 0; expected a number above 0 and at most 1"),
        ({"strength": 0.1}, "`strength` 0.1 of `num_inference_steps` 3 leaves no step to take"),
        ({"guidance_scale": -1}, "`guidance_scale` is -1; expected a number of at least 0"),
        ({"negative_prompt": 5}, "`negative_prompt` must be a string, not 5"),
        ({"output_type": "gif"}, "`output_type` is 'gif'; expected one of"),
        ({"generator": seeded(0, 1)}, "`generator` is a list of 2; expected 1 torch generators"),
        ({"generator": 3}, "`generator` must be a torch.Generator or a list of them, not int"),
        ({"mask_image": Image.new("L", (16, 16), 255)}, "`mask_image` is 16×16 and the photo 40×28 pixels"),
        ({"mask_image": Image.new("L", (40, 28))}, "`mask_image` has nothing white in it"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "`callback_on_step_end_tensor_inputs` has"),
    ],
)
def test_a_call_says_what_is_wrong(fitted, arguments, message):
    pipe, edit = fitted
    with pytest.raises((ValueError, TypeError), match=f"^{message}[^\n]*\\.$"):
        pipe(edit, **arguments)


def test_components_that_cannot_work_are_named(fitted, photo):
    for changes, message in (
        (
            {"unet": tiny_conditional_unet(9)},
            "`unet` takes 9 and gives 4 channels where `vae` has 4; expected a network",
        ),
        ({"unet": tiny_autoencoder(2)}, "`unet` is AutoencoderKL; expected a UNet2DConditionModel"),
        ({"unet": None}, "`unet` is not loaded; set `pipe.unet`"),
        ({"unet": xl_parts()["unet"]}, "`unet` needs `text_encoder_2`; expected all of Stable Diffusion XL's parts"),
        ({"tokenizer_2": tiny_tokenizer()}, "`unet` knows no `tokenizer_2`; expected all of"),
        (
            {"scheduler": FlowMatchEulerDiscreteScheduler()},
            "`scheduler` is FlowMatchEulerDiscreteScheduler, which has",
        ),
        ({"scheduler": DDPMScheduler(prediction_type="x")}, "`scheduler` has prediction_type='x'; expected one of"),
    ):
        with pytest.raises(ValueError, match=f"^{message}[^\n]*\\.$"):
            ImagicPipeline(**{**parts(), **changes})


def test_packages_and_adapters_that_stand_in_the_way_are_named(photo, fitted):
    pipe, edit = make_pipe(), fitted[1]
    with pytest.raises(ImportError, match='^`optimizer="adamw_8bit"` needs the package bitsandbytes'):
        fit(pipe, photo, optimizer="adamw_8bit")
    with pipe.trained_weights(edit.settings, None):
        for act in (lambda: fit(pipe, photo), lambda: pipe(edit)):
            with pytest.raises(ValueError, match="^`unet` has adapters; make them part of it first"):
                act()
    pipe.unet.to("meta")
    with pytest.raises(ValueError, match="^`unet` is offloaded layer by layer, where it cannot be tuned"):
        pipe(edit)
