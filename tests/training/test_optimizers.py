"""Muon sees the weights themselves, and both trainings draw and move what they say."""

import pytest
import torch
from tiny import assert_close

from training.losses import draw_timesteps
from training.optimizers import MatrixViews, Muon
from training.train_clip import worst_shift
from training.train_unet import make_unet


def test_a_step_on_the_matrices_is_a_step_of_the_network():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        unet = make_unet(16, [32, 32], 1, [8]).to(memory_format=memory_format)
        views = MatrixViews(unet)
        before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
        unet(torch.randn(2, 3, 16, 16), torch.tensor([3, 700])).sample.square().mean().backward()
        views.take_gradients()
        optimizer = Muon(views.matrices, lr=1e-2, weight_decay=0.0)
        optimizer.step()
        moved = {name for name, own in unet.named_parameters() if not torch.equal(own, before[name])}
        chosen = set(map(id, views.weights))
        assert moved == {name for name, own in unet.named_parameters() if id(own) in chosen and own.grad.any()}
        assert "mid_block.resnets.0.conv1.weight" in moved
        assert "conv_in.weight" not in moved and "conv_out.weight" not in moved  # AdamW's


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_muon_is_that_of_torch_but_for_rounding(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    optimizers = [Muon([ours], **settings), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)]
    for gradient in gradients:
        for matrix, optimizer in zip((ours, theirs), optimizers, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
    # compared in units of what was learned
    assert_close((ours - start) / (ours - start).std(), (theirs - start) / (theirs - start).std(), torch.bfloat16)
    assert_close(ours, theirs, torch.bfloat16)


def test_every_weight_has_one_optimizer():
    unet = make_unet(16, [32, 32], 1, [8])
    views = MatrixViews(unet)
    both = [id(parameter) for parameter in (*views.weights, *views.others)]
    assert sorted(both) == sorted(id(parameter) for parameter in unet.parameters())


def test_a_convolution_is_the_matrix_of_its_outputs():
    convolution = torch.nn.Conv2d(32, 64, 3)
    assert_close(MatrixViews(convolution).matrices[0], convolution.weight.reshape(64, -1))


def test_timesteps_are_drawn_from_all_and_most_from_the_middle():
    timesteps = draw_timesteps(20_000, (0.25, 1.2), torch.Generator().manual_seed(0))
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    share = torch.histc(timesteps.float(), 10, 0, 1000) / len(timesteps)
    assert share.min() > 0.01 and share[3:8].min() > 0.1
    assert torch.equal(timesteps, draw_timesteps(20_000, (0.25, 1.2), torch.Generator().manual_seed(0)))


def test_the_adversary_climbs_and_stays_in_its_ball():
    shift = torch.zeros(2, 3, 4, 4, requires_grad=True)
    slope = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    (shift * slope).sum().backward()
    first = worst_shift(shift, 0.5)
    assert_close(first.flatten(1).norm(dim=1), torch.full((2,), 0.5))
    assert ((first * slope).sum(dim=(1, 2, 3)) > 0).all()
    first.requires_grad_()
    (first * slope).sum().backward()
    assert_close(worst_shift(first, 0.5), first)  # it is at the top already
