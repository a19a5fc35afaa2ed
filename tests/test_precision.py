"""Half precision: the pictures' gradient keeps its size and direction, and nothing becomes NaN."""

from pathlib import Path

import pytest
import torch
from diffusers.utils import load_image
from tiny import assert_close, make_tiny_pipe

from blended_diffusion.models import load_model
from pipeline_blended_diffusion import BlendedDiffusionPipeline, rounded


HALVES = [torch.float16, torch.bfloat16]
GRADIENTS = ["sample", "estimate"]
EXAMPLES = Path(__file__).parents[1] / "examples"
WANTED = 2 / 127.5  # two levels of 255, of numbers in [−1, 1]
# far below and far above what fp16 can hold
SCALES = [1e-9, 1.0, 1e9]


def rounded_pipe(dtype: torch.dtype, computed_in: torch.dtype) -> BlendedDiffusionPipeline:
    """The tiny pipeline with weights of `dtype`, as numbers of `computed_in`."""
    return make_tiny_pipe().to(dtype).to(computed_in)


def samples(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()


def losses_through(pipe: BlendedDiffusionPipeline, network: str, sample: torch.Tensor) -> torch.Tensor:
    if network == "unet":
        return pipe.predict(sample, torch.tensor(500), None)[0].square().mean(dim=(1, 2, 3))
    with torch.no_grad():
        text_embeds = pipe.encode_prompt(["a"])
    return pipe.prompt_distance(pipe.clip_embed(sample), text_embeds)


def edit(pipe: BlendedDiffusionPipeline, photo, mask, **arguments) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    arguments = {"generator": generators, "num_images_per_prompt": 2, "output_type": "latent", **arguments}
    return pipe("a", photo, mask, **arguments).images


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("network", ["unet", "clip_model"])
def test_gradient_in_fp16_is_that_of_fp32_at_every_scale(network, scale):
    sample = samples()
    half, full = (rounded_pipe(torch.float16, dtype) for dtype in (torch.float16, torch.float32))
    expected = torch.autograd.grad(losses_through(full, network, sample).sum(), sample)[0]
    gradient = half.loss_gradient(scale * losses_through(half, network, sample), sample, scale)
    assert gradient.dtype == torch.float32
    largest = expected.abs().max()
    assert_close(gradient / scale / largest, expected / largest, torch.float16)
    if scale != 1:  # the case is one: without scaling nothing, or nothing finite, is left
        plain = torch.autograd.grad(scale * losses_through(half, network, sample).sum(), sample)[0]
        assert not plain.any() if scale < 1 else not plain.isfinite().all()


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_gradient_that_overflows_is_tried_again_from_a_smaller_loss(chunk):
    sample = samples()
    half = rounded_pipe(torch.float16, torch.float16)
    half.clip_chunk_size = chunk
    weights = torch.tensor([1e6, 1.0])  # the first overflows once more than it is told to expect
    gradient = half.loss_gradient(weights * losses_through(half, "clip_model", sample), sample, 1.0)
    expected = half.loss_gradient(losses_through(half, "clip_model", sample), sample, 1.0)
    assert torch.equal(gradient[1], expected[1])
    largest = expected[0].abs().max()
    assert_close(gradient[0] / 1e6 / largest, expected[0] / largest, torch.float16)


def test_a_loss_that_is_nan_makes_its_own_picture_nan_alone():
    sample = samples()
    half = rounded_pipe(torch.float16, torch.float16)
    weights = torch.tensor([float("nan"), 1.0])
    gradient = half.loss_gradient(weights * losses_through(half, "clip_model", sample), sample, 1.0)
    assert gradient[0].isnan().all() and gradient[1].isfinite().all() and gradient[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_formats_are_not_scaled(dtype):
    sample = samples()
    pipe = rounded_pipe(dtype, dtype)
    gradient = pipe.loss_gradient(losses_through(pipe, "unet", sample), sample, 1e-30)
    assert torch.equal(gradient, torch.autograd.grad(losses_through(pipe, "unet", sample).sum(), sample)[0])


def test_the_estimate_alone_holds_the_graph():
    """So that its memory is free before the next step's forward pass."""
    pipe = make_tiny_pipe()
    pipe.scheduler.set_timesteps(5)
    sample, noise_pred, variance_pred, pred_original_sample = pipe.estimate(samples(), torch.tensor(500), None, True)
    assert pred_original_sample.requires_grad and sample.requires_grad
    assert not noise_pred.requires_grad and not variance_pred.requires_grad


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", HALVES)
def test_pictures_are_those_of_fp32(photo, mask, dtype, guidance_gradient):
    full, half = (make_tiny_pipe().to(to) for to in (torch.float32, dtype))
    # networks that were never trained have a gradient that the last bits turn: little of it
    arguments = {"guidance_gradient": guidance_gradient, "clip_guidance_scale": 0.2, "range_guidance_scale": 0.0}
    expected, pictures = edit(full, photo, mask, **arguments), edit(half, photo, mask, **arguments)
    assert pictures.dtype == torch.float32
    assert 0 < (pictures - expected).abs().mean() < WANTED


@pytest.mark.slow
def test_the_bundled_models_pictures_in_bf16_are_those_of_fp32():
    photo, mask = (
        load_image(str(EXAMPLES / name)).crop((0, 220, 180, 400)).resize((64, 64))
        for name in ("coffee.jpg", "coffee_mask.png")
    )
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = load_model(dtype=dtype).pipe
        pipe.set_progress_bar_config(disable=True)
        out = pipe(
            "tangerine",
            photo,
            mask,
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        pictures.append(out.images)
    assert 0 < (pictures[1] - pictures[0]).abs().mean() < WANTED


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("clip_guidance_scale", [1e-6, 1e5])
def test_fp16_is_finite_at_every_guidance_scale(photo, mask, clip_guidance_scale, guidance_gradient):
    half = make_tiny_pipe().to(torch.float16)
    gradients = []
    guide = half.guide

    def kept(*arguments) -> torch.Tensor:
        gradients.append(guide(*arguments))
        return gradients[-1]

    half.guide = kept
    arguments = {"clip_guidance_scale": clip_guidance_scale, "range_guidance_scale": 0.0, "num_inference_steps": 2}
    pictures = edit(half, photo, mask, guidance_gradient=guidance_gradient, strength=0.5, **arguments)
    assert pictures.isfinite().all()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_fp16_is_finite_wherever_guidance_has_driven_the_sample(size):
    half = make_tiny_pipe().to(torch.float16)
    with torch.no_grad():
        wild = size * samples()
        assert all(output.isfinite().all() for output in half.predict(wild, torch.tensor(500), None))
        assert half.clip_embed(wild).isfinite().all()


def test_fp16_rounds_a_sane_sample_alone():
    """What keeps wild ones finite must not touch those of every scheduler's noise."""
    sample = 100 * samples().detach()
    assert torch.equal(rounded(sample, torch.float16), sample.half())
    assert torch.equal(rounded(1e30 * sample, torch.bfloat16), (1e30 * sample).bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", HALVES)
def test_pictures_on_cuda_are_those_of_fp32(photo, mask, dtype, guidance_gradient):
    full, half = (make_tiny_pipe().to("cuda", to) for to in (torch.float32, dtype))
    arguments = {"guidance_gradient": guidance_gradient, "clip_guidance_scale": 0.2, "range_guidance_scale": 0.0}
    expected, pictures = edit(full, photo, mask, **arguments), edit(half, photo, mask, **arguments)
    assert pictures.isfinite().all()
    assert (pictures - expected).abs().mean() < WANTED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("network", ["unet", "clip_model"])
def test_gradient_in_fp16_on_cuda_is_that_of_fp32_at_every_scale(network, scale):
    sample = samples().detach().cuda().requires_grad_()
    half, full = (rounded_pipe(torch.float16, dtype).to("cuda") for dtype in (torch.float16, torch.float32))
    expected = torch.autograd.grad(losses_through(full, network, sample).sum(), sample)[0]
    gradient = half.loss_gradient(scale * losses_through(half, network, sample), sample, scale)
    largest = expected.abs().max()
    assert_close(gradient / scale / largest, expected / largest, torch.float16)
