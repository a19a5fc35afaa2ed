"""Muon for the matrices of a network and AdamW for the rest: the same loss in about half of AdamW's time."""

import math
from collections.abc import Callable

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


class Muon(torch.optim.Muon):
    """torch's, orthogonalising in the precision that the machine multiplies fastest.

    torch always takes bfloat16. A processor that has to emulate it spends two fifths of a training step on that. One
    learning rate does for both optimizers: steps are as long as AdamW's (`adjust_lr_fn="match_rms_adamw"`).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(
                    matrix.grad.lerp(momentum, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """A matrix with the singular vectors of `matrix` and singular values near 1, by Newton-Schulz iterations."""
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide.to(torch.bfloat16 if multiplies_bfloat16(matrix.device) else torch.float32)
    wide = wide / wide.norm().clamp(min=1e-7)
    linear, cubic, quintic = coefficients
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return (wide if len(matrix) <= matrix.shape[1] else wide.T).to(matrix.dtype)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
