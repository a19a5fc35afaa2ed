"""The hybrid loss is guided-diffusion's own, and the others are what their formulas say."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import assert_close, tiny_unet

from training.losses import (
    Diffusion,
    contrastive_loss,
    hybrid_loss,
    linear_schedule,
    noise_loss,
    reconstruction_loss,
    scaled_linear_schedule,
)


def reference_losses(model, clean, timesteps, noise):
    pytest.importorskip("guided_diffusion")
    from guided_diffusion.script_util import create_gaussian_diffusion

    diffusion = create_gaussian_diffusion(steps=1000, learn_sigma=True, noise_schedule="linear")
    return diffusion.training_losses(model, clean, timesteps, noise=noise)


def draws():
    generator = torch.Generator().manual_seed(0)
    # 8-bit pixels, the darkest and the brightest among them: the likelihood treats those apart
    clean = torch.randint(0, 256, (6, 3, 16, 16), generator=generator).div(127.5).sub(1)
    clean[:, :, :2], clean[:, :, 2:4] = -1, 1
    noise = torch.randn(clean.shape, generator=generator)
    return clean, noise, torch.tensor([0, 0, 1, 17, 500, 999])


def test_hybrid_loss_is_guided_diffusions():
    clean, noise, timesteps = draws()
    unet, diffusion = tiny_unet(), Diffusion(linear_schedule())
    reference = reference_losses(lambda x, t: unet(x, t).sample, clean, timesteps, noise)
    output = unet(noisy := diffusion.noised(clean, noise, timesteps), timesteps).sample
    simple, bound = hybrid_loss(diffusion, output, clean, noisy, noise, timesteps)
    assert_close(simple, reference["mse"])
    assert_close(bound, reference["vb"])
    assert_close(simple + bound, reference["loss"])


def test_its_gradient_is_too():
    clean, noise, timesteps = draws()
    unet, diffusion = tiny_unet(), Diffusion(linear_schedule())
    parameters = list(unet.parameters())
    reference = reference_losses(lambda x, t: unet(x, t).sample, clean, timesteps, noise)
    expected = torch.autograd.grad(reference["loss"].mean(), parameters)
    output = unet(noisy := diffusion.noised(clean, noise, timesteps), timesteps).sample
    loss = sum(hybrid_loss(diffusion, output, clean, noisy, noise, timesteps))
    for ours, theirs in zip(torch.autograd.grad(loss.mean(), parameters), expected, strict=True):
        assert_close(ours, theirs)


def test_the_bound_teaches_the_variance_alone():
    clean, noise, timesteps = draws()
    diffusion = Diffusion(linear_schedule())
    output = torch.zeros(6, 6, 16, 16, requires_grad=True)
    _, bound = hybrid_loss(diffusion, output, clean, diffusion.noised(clean, noise, timesteps), noise, timesteps)
    bound.sum().backward()
    assert (output.grad[:, :3] == 0).all() and (output.grad[:, 3:] != 0).any()


def test_weight_by_snr():
    clean, noise, timesteps = draws()
    diffusion = Diffusion(linear_schedule())
    output, noisy = torch.zeros(6, 6, 16, 16), diffusion.noised(clean, noise, timesteps)
    plain, _ = hybrid_loss(diffusion, output, clean, noisy, noise, timesteps)
    weighted, _ = hybrid_loss(diffusion, output, clean, noisy, noise, timesteps, snr_range=(0.01, 5.0))
    alpha_bar = linear_schedule().alphas_cumprod[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    assert_close(weighted / plain, snr.clamp(0.01, 5) / snr)
    assert weighted[4] == plain[4]  # in between, where the weight is 1


def test_contrastive_loss_is_clips_when_pairs_are_one_to_one():
    similarity = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(4)
    expected = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    assert_close(contrastive_loss(similarity, torch.eye(4).bool()), expected)


def test_contrastive_loss_with_several_true_captions():
    # two captions both true of the one picture, one that is not, and one that no picture fits
    similarity = torch.tensor([[2.0, 2.0, -30.0, -30.0]])
    true = torch.tensor([[True, True, False, False]])
    assert contrastive_loss(similarity, true).item() == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_the_noise_loss_weighs_the_error_of_the_estimate():
    diffusion = Diffusion(scaled_linear_schedule())
    generator = torch.Generator().manual_seed(0)
    clean, noise, predicted = torch.randn(3, 6, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 100, 300, 600, 800, 999])
    noisy = diffusion.noised(clean, noise, timesteps)
    estimate = diffusion.clean_estimate(noisy, predicted, timesteps)
    alpha_bar = diffusion.at("alpha_bar", timesteps).flatten()
    snr = (alpha_bar / (1 - alpha_bar)).clamp(0.01, 5)
    expected = snr * (estimate - clean).square().mean(dim=(1, 2, 3))
    weighted = noise_loss(diffusion, predicted, noise, timesteps, (0.01, 5))
    assert_close(weighted[1:], expected[1:])  # at t = 0 the estimate's error is lost to rounding
    assert timesteps[0] == 0 and weighted[0] < noise_loss(diffusion, predicted, noise, timesteps)[0]


def test_reconstruction_counts_edges():
    clean = torch.zeros(1, 1, 4, 4)
    flat, edge = torch.full_like(clean, 0.5), torch.tensor([0.0, 0, 1, 1]).expand(1, 1, 4, 4)
    assert reconstruction_loss(clean, clean) == 0
    assert reconstruction_loss(flat, clean) == 0.5
    assert_close(reconstruction_loss(edge, clean), torch.tensor(0.5 + 1 / 3))
