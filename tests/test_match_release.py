"""`match_release=True` against the released editor.

The oracle is written here once more from what the released code does, on guided-diffusion's own arithmetic and
with its random order, and shares nothing with the pipeline but the networks. Where the recorded traces of the released
editor itself are at hand they are followed too.
"""

import inspect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from tiny import make_tiny_pipe, tiny_unet

import pipeline_blended_diffusion as method
from blended_diffusion.checkpoints import convert
from pipeline_blended_diffusion import BlendedDiffusionPipeline


REFERENCE = Path(__file__).resolve().parents[2] / "shared"
STEP_TOLERANCE = 1e-4  # relative error of one step from the recorded sample
PATH_TOLERANCE = 1e-3  # of a whole path: guidance amplifies rounding


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def spaced_diffusion(num_inference_steps: int):
    respace = pytest.importorskip("guided_diffusion.respace")
    gaussian = pytest.importorskip("guided_diffusion.gaussian_diffusion")
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, [num_inference_steps]),
        betas=gaussian.get_named_beta_schedule("linear", 1000),
        model_mean_type=gaussian.ModelMeanType.EPSILON,
        model_var_type=gaussian.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian.LossType.MSE,
    )


def released_edit(
    pipe,
    prompt: str,
    image: torch.Tensor,
    mask: torch.Tensor,
    *,
    batch: int,
    respacing: int,
    skip: int,
    clip_lambda: float,
    range_lambda: float,
    l2_lambda: float,
    lpips_lambda: float,
    lpips,
    ddim: bool,
    local: bool,
    generator: torch.Generator,
) -> dict[str, list[torch.Tensor]]:
    """The released edit loop without warps. `image` (1, 3, H, W) in [−1, 1], `mask` (1, 1, H, W)."""
    diffusion = spaced_diffusion(respacing)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    text = pipe.encode_prompt([prompt]).detach()

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return pipe.clip_model.get_image_features(pixel_values=pixels).pooler_output

    def distance(embeds: torch.Tensor) -> torch.Tensor:
        chord = F.normalize(embeds, dim=-1) - F.normalize(text, dim=-1)
        return chord.norm(dim=-1).div(2).arcsin().pow(2).mul(2)

    def network(x: torch.Tensor, timesteps: torch.Tensor, **_) -> torch.Tensor:
        return pipe.unet(x, timesteps).sample

    def cond_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = diffusion.p_mean_variance(network, x, t, clip_denoised=False, model_kwargs={})
            factor = float(diffusion.sqrt_one_minus_alphas_cumprod[t[0].item()])
            x_in = out["pred_xstart"] * factor + x * (1 - factor)
            size = pipe.clip_model.config.vision_config.image_size
            pooled = F.adaptive_avg_pool2d(x_in * mask, (size, size))
            loss = clip_lambda * distance(embed((pooled.add(1).div(2) - mean) / std)).sum()
            beyond = out["pred_xstart"] - out["pred_xstart"].clamp(-1, 1)
            loss = loss + range_lambda * beyond.pow(2).mean([1, 2, 3]).sum()
            background = x_in * (1 - mask)
            if l2_lambda:
                loss = loss + l2_lambda * F.mse_loss(background, image.expand_as(background))
            if lpips_lambda:
                loss = loss + lpips_lambda * lpips(background, image).sum()
            return -torch.autograd.grad(loss, x)[0]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    record: dict[str, list[torch.Tensor]] = {"x_t": [], "pred_original_sample": []}
    first = respacing - 1 - skip
    x = diffusion.q_sample(
        image.expand(batch, -1, -1, -1), torch.tensor([first] * batch), draw(batch, *image.shape[1:])
    )
    for index in range(first, -1, -1):
        t = torch.tensor([index] * batch)
        record["x_t"].append(x)
        with torch.no_grad():
            out = diffusion.p_mean_variance(network, x, t, clip_denoised=False, model_kwargs={})
        noise = draw(batch, *image.shape[1:])
        gradient = cond_fn(x, t)
        if ddim:
            alpha_bar = float(diffusion.alphas_cumprod[index])
            alpha_bar_prev = float(diffusion.alphas_cumprod_prev[index])
            eps = (x - alpha_bar**0.5 * out["pred_xstart"]) / (1 - alpha_bar) ** 0.5
            eps = eps - (1 - alpha_bar) ** 0.5 * gradient
            out["pred_xstart"] = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
            x = alpha_bar_prev**0.5 * out["pred_xstart"] + (1 - alpha_bar_prev) ** 0.5 * eps
        else:
            x = out["mean"] + out["variance"] * gradient
            if index > 0:
                x = x + torch.exp(0.5 * out["log_variance"]) * noise
        if not local:
            background = diffusion.q_sample(image, t[:1], draw(1, *image.shape[1:]))
            x = x * mask + background * (1 - mask)
        record["pred_original_sample"].append(out["pred_xstart"])
    result = record["pred_original_sample"][-1]
    if not local:
        result = result * mask + image * (1 - mask)
    result = result.add(1).div(2).clamp(0, 1)
    with torch.no_grad():
        record["clip_distance"] = distance(embed(result * mask))
    record["result"] = result
    return record


def released_pipe(ddim: bool) -> BlendedDiffusionPipeline:
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
    unet = tiny_unet()
    # small outputs keep the path of an untrained network stable
    torch.nn.init.normal_(unet.conv_out.weight, std=1e-2)
    return make_tiny_pipe(unet=unet, scheduler=DDIMScheduler.from_config(scheduler.config) if ddim else scheduler)


def follow(pipe, **arguments) -> dict:
    """Runs the pipeline and keeps what enters and what is estimated at every step."""
    seen: dict[str, list[torch.Tensor]] = {"x_t": [], "pred_original_sample": []}

    def callback(_, step, timestep, callback_kwargs):
        seen["x_t"].append(callback_kwargs["latents"])
        seen["pred_original_sample"].append(callback_kwargs["pred_original_sample"])
        return callback_kwargs

    names = ["latents", "pred_original_sample"]
    out = pipe(
        match_release=True,
        output_type="pt",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        **arguments,
    )
    return seen | {"result": out.images, "clip_distance": torch.tensor(out.clip_distances)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "local", "local_lpips"])
@pytest.mark.parametrize(("respacing", "skip"), [(20, 8), (30, 15), (7, 0)])
def test_follows_the_released_loop(kind, respacing, skip):
    local = kind.startswith("local")
    pipe = released_pipe(ddim=kind == "ddim")
    lpips = None
    if kind == "local_lpips":
        torch.manual_seed(0)
        lpips = pytest.importorskip("lpips").LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
        pipe._lpips = lpips
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 5:13] = 1
    settings = {"clip_lambda": 5.0, "range_lambda": 50.0, "l2_lambda": 20.0 if local else 0.0}
    lpips_lambda = 20.0 if lpips else 0.0
    expected = released_edit(
        pipe,
        "rock",
        2 * image - 1,
        mask,
        batch=2,
        respacing=respacing,
        skip=skip,
        lpips_lambda=lpips_lambda,
        lpips=lpips,
        ddim=kind == "ddim",
        local=local,
        generator=torch.Generator().manual_seed(404),
        **settings,
    )
    found = follow(
        pipe,
        prompt="rock",
        image=image,
        mask_image=mask,
        num_images_per_prompt=2,
        num_inference_steps=respacing,
        strength=(respacing - skip) / respacing,
        clip_guidance_scale=settings["clip_lambda"],
        range_guidance_scale=settings["range_lambda"],
        background_mse_scale=settings["l2_lambda"],
        background_lpips_scale=lpips_lambda,
        num_augmentations=0,
        blend=not local,
        generator=torch.Generator().manual_seed(404),
    )
    assert len(found["x_t"]) == len(expected["x_t"]) == respacing - skip
    for step in range(respacing - skip - 1):
        assert relative_error(found["x_t"][step], expected["x_t"][step + 1]) < PATH_TOLERANCE
    for step in range(respacing - skip):
        name = "pred_original_sample"
        assert relative_error(found[name][step], expected[name][step]) < PATH_TOLERANCE
    assert relative_error(found["result"], expected["result"]) < PATH_TOLERANCE
    assert relative_error(found["clip_distance"], expected["clip_distance"]) < PATH_TOLERANCE


def test_timesteps_are_guided_diffusions():
    respace = pytest.importorskip("guided_diffusion.respace")
    for number in [*range(1, 201), 250, 333, 500, 999, 1000]:
        expected = sorted(respace.space_timesteps(1000, [number]), reverse=True)
        assert method.released_timesteps(number, 1000) == expected


def test_the_released_defaults_start_at_747_and_take_75_steps():
    pipe = make_tiny_pipe()
    call = method.EditCall.of({"num_inference_steps": 100, "strength": 0.75, "match_release": True})
    timesteps = pipe.get_timesteps(call, torch.device("cpu"))
    assert len(timesteps) == 75 and timesteps[0] == 747 and timesteps[-1] == 0


def test_every_share_of_the_steps_can_be_skipped():
    for total in (7, 20, 100, 250):
        for skip in range(total):
            assert BlendedDiffusionPipeline.num_steps_left(total, (total - skip) / total) == total - skip


def test_a_mask_is_white_wherever_it_is_not_black():
    pipe = make_tiny_pipe()
    grey = Image.new("L", (32, 32))
    grey.putpixel((0, 0), 255)
    grey.paste(1, (8, 8, 24, 24))
    image = torch.rand(3, 32, 32)
    seeds = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    released, ours = (
        pipe("rock", image, grey, match_release=match, generator=seed, output_type="pt", padding_mask_crop=0).images[0]
        for match, seed in zip((True, False), seeds, strict=True)
    )
    assert not torch.equal(released[:, 8:24, 8:24], image[:, 8:24, 8:24])
    assert torch.equal(ours[:, 8:24, 8:24], image[:, 8:24, 8:24])
    # to the nearest pixel: of 2×2 pixels the one at the lower right decides
    mask = pipe.prepare_mask(grey, method.EditCall.of({"match_release": True}).mask_threshold, match_release=True)
    assert mask[0, 0, 4:12, 4:12].all() and mask.sum() == 64


# --- the recorded traces ---------------------------------------------------------------------------------------------

TRACES = sorted((REFERENCE / "reference" / "traces").glob("*.safetensors"))


@pytest.fixture(scope="module")
def traced_pipe(tmp_path_factory) -> BlendedDiffusionPipeline:
    """The networks that the traces were recorded on, in fp32."""
    folder = convert(
        REFERENCE / "demo-model-0" / "unet_adm.pt",
        tmp_path_factory.mktemp("traced") / "model",
        clip=REFERENCE / "demo-model-0" / "clip",
        image_size=64,
        num_head_channels=32,
        use_new_attention_order=False,
        noise_schedule="linear",
    )
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
@pytest.mark.skipif(not TRACES, reason="the recorded traces are not at hand")
@pytest.mark.parametrize("forced", [True, False], ids=["step by step", "whole path"])
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_follows_a_recorded_trace(traced_pipe, path, forced, monkeypatch):
    """With `forced` every step starts from the recorded sample; else rounding may add up over the path."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
        trace = {name: file.get_tensor(name) for name in file.keys()}
    steps = len(trace["timestep"])
    local = settings["local_clip_guided_diffusion"]
    draws = [trace["noise_start"]]
    for step in range(steps):
        draws += [trace["noise_step"][step]] + ([] if local else [trace["noise_background"][step]])
    draws = iter(draws)

    def recorded(shape, **_) -> torch.Tensor:
        noise = next(draws)
        assert tuple(shape) == tuple(noise.shape)
        return noise

    monkeypatch.setitem(inspect.unwrap(type(traced_pipe).__call__).__globals__, "randn_tensor", recorded)
    scheduler = DDPMScheduler.from_config(traced_pipe.scheduler.config)
    traced_pipe.scheduler = DDIMScheduler.from_config(scheduler.config) if settings["ddim"] else scheduler
    tolerance = STEP_TOLERANCE if forced else PATH_TOLERANCE
    timesteps = []

    def callback(_, step, timestep, callback_kwargs):
        timesteps.append(int(timestep))
        estimate = callback_kwargs["pred_original_sample"]
        assert relative_error(estimate, trace["pred_original_sample"][step]) < tolerance
        if step + 1 < steps:
            assert relative_error(callback_kwargs["latents"], trace["x_t"][step + 1]) < tolerance
            if forced:
                callback_kwargs["latents"] = trace["x_t"][step + 1]
        return callback_kwargs

    preserving = settings["background_preservation_loss"]
    respacing = int(settings["timestep_respacing"])
    out = traced_pipe(
        settings["prompt"],
        Image.open(REFERENCE / "reference" / "photos" / "img.png"),
        Image.open(REFERENCE / "reference" / "photos" / "mask.png"),
        num_inference_steps=respacing,
        strength=(respacing - settings["skip_timesteps"]) / respacing,
        num_images_per_prompt=settings["batch"],
        clip_guidance_scale=settings["clip_guidance_lambda"],
        range_guidance_scale=settings["range_lambda"],
        background_mse_scale=settings["l2_sim_lambda"] if preserving else 0.0,
        background_lpips_scale=settings["lpips_sim_lambda"] if preserving else 0.0,
        num_augmentations=1,  # the warps were off: every copy was the plain one
        blend=not local,
        match_release=True,
        output_type="pt",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    )
    assert timesteps == trace["timestep"].tolist()
    assert relative_error(out.images, trace["result"]) < tolerance
    assert relative_error(torch.tensor(out.clip_distances), trace["clip_distance"]) < tolerance
