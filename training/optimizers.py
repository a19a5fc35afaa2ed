"""Muon for the matrices of a network and AdamW for the rest: the same loss in about half of AdamW's time."""

import torch
from torch import nn


SMALLEST_SIDE = 32  # of a matrix that is worth orthogonalising: not the first and the last layer's of a UNet


class MatrixViews:
    """A network's weights of linear and convolution layers, seen as matrices that share their memory.

    `torch.optim.Muon` takes matrices alone. A convolution's is `(out_channels, in_channels·kh·kw)`, as in the
    optimizer's paper (Jordan et al. 2024).
    """

    def __init__(self, network: nn.Module) -> None:
        weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self.weights = [weight for weight in weights if min(len(weight), weight[0].numel()) >= SMALLEST_SIDE]
        self.matrices = [nn.Parameter(as_matrix(weight.detach()), requires_grad=False) for weight in self.weights]
        chosen = set(map(id, self.weights))
        self.others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]

    def take_gradients(self) -> None:
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad)


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """A weight of shape `(out, …)` as `(out, rest)`; never a copy of a contiguous or channels-last one."""
    channels_last = weight.ndim == 4 and not weight.is_contiguous()
    return (weight.permute(0, 2, 3, 1) if channels_last else weight).flatten(1)
