"""The figures that a set of edits is measured by: pure functions from eight-bit pictures to numbers.

Pictures are of mode `RGB`, masks of mode `L` and the picture's size, 255 = edit, 0 = keep. What judges the content is
in `judge.py`. For the confidence interval of an accuracy use
`scipy.stats.binomtest(successes, count).proportion_ci(method="wilson")`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import lpips
import numpy as np
import PIL.Image
import torch
from kornia.filters import spatial_gradient
from scipy.ndimage import morphological_gradient
from scipy.stats import spearmanr
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.functional import pil_to_tensor


# pictures that a network sees at a time
BATCH = 16


def background_difference(photo: PIL.Image.Image, edited: PIL.Image.Image, mask: PIL.Image.Image) -> tuple[int, float]:
    """How much has changed outside the mask: max |e − p| and mean |e − p| over the channels of pixels whose mask is 0.

    Returns:
        `tuple[int, float]`: in levels of 0…255; `(0, 0.0)` where every pixel is the photo's own.

    Raises:
        ValueError: the mask covers the whole photo.
    """
    outside = np.asarray(mask) == 0
    if not outside.any():
        raise ValueError("The mask covers the whole photo: there is no background to compare.")
    difference = np.abs(np.asarray(edited, np.int16) - np.asarray(photo, np.int16))[outside]
    return int(difference.max()), float(difference.mean())


def seam(photo: PIL.Image.Image, edited: PIL.Image.Image, mask: PIL.Image.Image, width: int = 2) -> float:
    """How much steeper the picture is at the mask's edge than the photo: mean_B |∇e| / mean_B |∇p|.

    B is the mask's [`band`], ∇ Sobel's gradient of each channel. A seam raises the figure, and so does an edit that
    has more detail there than the photo.

    Returns:
        `float`: 1 where the edge is as steep as before; infinite, or NaN, where the photo is flat there.
    """
    inside = band(mask, width)
    return (_steepness(edited, inside) / _steepness(photo, inside)).item()


@torch.no_grad()
def seam_lpips(
    photo: PIL.Image.Image, edited: PIL.Image.Image, mask: PIL.Image.Image, lpips: lpips.LPIPS, width: int = 2
) -> float:
    """How differently the mask's edge looks: the mean over its [`band`] of LPIPS's map between photo and picture.

    Args:
        lpips (`lpips.LPIPS`): with `spatial=True`.

    Returns:
        `float`: 0 where nothing has changed. The networks see far beyond the band: an edit that differs inside the
        mask differs a little at its edge, however soft that is.

    Raises:
        ValueError: `lpips` gives no map, or the mask has no edge.
    """
    if not lpips.spatial:
        raise ValueError("`lpips` gives one number for a picture: load it with `spatial=True`.")
    distances = lpips(_signed([photo]), _signed([edited]))[0, 0]
    return distances[band(mask, width)].mean().item()


def band(mask: PIL.Image.Image, width: int) -> torch.Tensor:
    """The pixels round the mask's edge, dilate(mask) − erode(mask) with a square of 2·`width` + 1 pixels.

    Returns:
        `torch.Tensor` of `bool` and shape (H, W): `width` pixels on either side. The photo's border is no edge.

    Raises:
        ValueError: the mask has no edge.
    """
    inside = (np.asarray(mask) >= 128).astype(np.uint8)
    edge = morphological_gradient(inside, size=2 * width + 1) > 0
    if not edge.any():
        raise ValueError("The mask covers nothing or the whole photo: it has no edge to look at.")
    return torch.from_numpy(edge)


@torch.no_grad()
def diversity(images: Sequence[PIL.Image.Image], lpips: lpips.LPIPS) -> float:
    """How different the candidates of one edit are: LPIPS(xᵢ, xⱼ) averaged over all pairs i < j.

    Args:
        images (`list[PIL.Image.Image]`): at least two, of one size: the squares round the edited region.

    Returns:
        `float`: 0 where all are alike.
    """
    pixels = _signed(images)
    pairs = torch.tensor(list(combinations(range(len(images)), 2)))
    distances = [lpips(pixels[batch[:, 0]], pixels[batch[:, 1]]).flatten() for batch in pairs.split(BATCH)]
    return torch.cat(distances).mean().item()


def kernel_distance(
    real: Sequence[PIL.Image.Image],
    made: Sequence[PIL.Image.Image],
    features: nn.Module,
    subset_size: int = 50,
    subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """How far two sets of pictures lie apart: the kernel distance of Bińkowski et al. 2018 (KID), squared MMD.

    The kernel is k(x, y) = (x·y / d + 1)³ of the d `features` of a picture; the estimate is without bias, so that it
    lies round 0, on either side, for two sets of one kind.

    Args:
        real, made (`list[PIL.Image.Image]`): of one size.
        features (`nn.Module`): from (N, 3, H, W) of `uint8` to (N, d), such as
            [`~blended_diffusion.evaluation.perceptual.AlexNetFeatures`].
        subset_size (`int`, defaults to 50): pictures of each set in one estimate, at most as many as it has.
        subsets (`int`, defaults to 100): estimates.
        seed (`int`, defaults to 0): draws the subsets; the same gives the same figures.

    Returns:
        `tuple[float, float]`: the estimates' mean and standard deviation.
    """
    metric = KernelInceptionDistance(features, subsets=subsets, subset_size=subset_size)
    for pictures, are_real in ((real, True), (made, False)):
        for start in range(0, len(pictures), BATCH):
            metric.update(_levels(pictures[start : start + BATCH]), real=are_real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


@dataclass(frozen=True)
class RankQuality:
    """What ranking is worth, each a mean over edits.

    Attributes:
        first (`float`): the judge's probability of the right word for the candidate ranked first, in 0…1.
        mean (`float`): the same for a candidate taken at random.
        agreement (`float`): Spearman's correlation of the ranking with the judge's, in −1…1: 1 = the same order,
            0 = no relation.
    """

    first: float
    mean: float
    agreement: float


def rank_quality(probabilities: Sequence[Sequence[float]]) -> RankQuality:
    """How well the ranking finds the candidates that an independent judge finds right.

    Args:
        probabilities (`list[list[float]]`): for each edit, the judge's probability of the right word for its
            candidates, the one ranked first first. Where all are equal the ranking counts as unrelated.
    """

    def agreement(candidates: Sequence[float]) -> float:
        if len(set(candidates)) == 1:
            return 0.0
        return spearmanr(range(len(candidates), 0, -1), candidates).statistic

    return RankQuality(
        first=float(np.mean([candidates[0] for candidates in probabilities])),
        mean=float(np.mean([np.mean(candidates) for candidates in probabilities])),
        agreement=float(np.mean([agreement(candidates) for candidates in probabilities])),
    )


def _steepness(image: PIL.Image.Image, inside: torch.Tensor) -> torch.Tensor:
    """The mean of |∇x| over the channels of the pixels `inside` (H, W), in levels a pixel."""
    gradient = spatial_gradient(_levels([image]).double(), mode="sobel")[0]  # (3, 2, H, W)
    return gradient.norm(dim=1)[:, inside].mean()


def _levels(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """(N, 3, H, W) of `uint8`."""
    return torch.stack([pil_to_tensor(image) for image in images])


def _signed(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """(N, 3, H, W) in [−1, 1], as LPIPS takes it."""
    return _levels(images) / 127.5 - 1
