"""Regions larger than the network's pictures: overlapping windows of one canvas, denoised together.

What belongs here is how a network of small pictures takes part in making a large one. The method stays the pipeline's:
noise, guidance, blending and ranking see one picture, the canvas.
"""

import math

import PIL.Image
import torch

from blended_diffusion.painters.variants import variant_of
from blended_diffusion.pictures.canvas import Canvas
from pipeline_blended_diffusion import BlendedDiffusionPipeline, Guidance, recomputed


# neighbouring windows lie at most this share of a window apart
STRIDE = 0.5

# of the way from noise to picture: enough for sharp edges and texture, too little for windows to begin objects
REFINING_STRENGTH = 0.2


class WindowedPipeline(BlendedDiffusionPipeline):
    """[`BlendedDiffusionPipeline`] on a canvas `detail` times as wide and high as the network's pictures.

    At every step the network sees the canvas in overlapping windows, and what it predicts is averaged with smooth
    weights where they overlap (MultiDiffusion, https://arxiv.org/abs/2302.08113). The reverse step is linear in the
    predicted noise: this averages the windows' steps, and since it is the canvas that steps, windows agree exactly.
    One noise is drawn for the whole canvas, and CLIP sees the whole of it, at CLIP's own size.

    A window knows nothing of what lies beyond it: from pure noise each would make an object of its own. Start from a
    picture that shows the object already, such as the ordinary edit enlarged, with a low `strength`.

    The network's memory is that of one window of every picture in the batch, however large the canvas;
    `guidance_gradient="sample"` computes each window twice for it.
    """

    detail: int = 1

    @classmethod
    def of(cls, pipe: BlendedDiffusionPipeline, detail: int) -> "WindowedPipeline":
        """The same components, defaults and whatever was set on `pipe`; nothing is copied.

        Args:
            pipe (`BlendedDiffusionPipeline`): of a network for square pictures.
            detail (`int`): the canvas's width over the network's.
        """
        windowed = variant_of(pipe, cls)
        windowed.detail = detail
        return windowed

    @property
    def window_size(self) -> int:
        return super().sample_size[0]

    @property
    def sample_size(self) -> tuple[int, int]:
        """`(height, width)` of the canvas."""
        return self.detail * self.window_size, self.detail * self.window_size

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The windows' predictions for the canvas `(B, 3, H, W)`, averaged where they overlap, in fp32."""
        size = self.window_size
        starts = window_starts(sample.shape[-1], size)
        weights = window_weights(size).to(sample)
        total = sample.new_zeros(len(sample), self.unet.config.out_channels, *sample.shape[-2:])
        weight = sample.new_zeros(1, 1, *sample.shape[-2:])

        def of_window(part: torch.Tensor) -> torch.Tensor:
            noise_pred, variance_pred = super(WindowedPipeline, self).predict(part, timestep, class_labels)
            return noise_pred if variance_pred is None else torch.cat([noise_pred, variance_pred], dim=1)

        for top in starts:
            for left in starts:
                window = (..., slice(top, top + size), slice(left, left + size))
                # only one window's graph is held at a time
                predicted = recomputed(of_window, sample[window])
                total[window] += weights * predicted
                weight[window] += weights
        averaged = total / weight
        return averaged[:, :3], averaged[:, 3:] if averaged.shape[1] > 3 else None

    def guide(
        self,
        sample: torch.Tensor,
        pred_original_sample: torch.Tensor,
        signal: float,
        noise: float,
        guidance: Guidance,
        warps: torch.Tensor,
    ) -> torch.Tensor:
        """The direction in which the losses fall, as strong for a pixel as in a picture of the network's size.

        The losses are means over the picture: the more pixels, the less each of them counts.
        """
        gradient = super().guide(sample, pred_original_sample, signal, noise, guidance, warps)
        return gradient * self.detail**2


def enlarged(coarse: PIL.Image.Image, canvas: Canvas) -> PIL.Image.Image:
    """An edit of the canvas's square, enlarged to its size inside the mask; outside, the photo at that size.

    Args:
        coarse (`PIL.Image.Image`): of mode `RGB`, square.
        canvas ([`Canvas`]): of a multiple of its size.
    """
    size = (canvas.size, canvas.size)
    return PIL.Image.composite(
        coarse.resize(size, PIL.Image.Resampling.BICUBIC), canvas.model_image, canvas.model_mask
    )


def window_starts(extent: int, size: int) -> list[int]:
    """Where windows of `size` begin that cover `extent` evenly, neighbours at most [`STRIDE`] of a window apart."""
    steps = math.ceil((extent - size) / (STRIDE * size))
    return [round(index * (extent - size) / steps) if steps else 0 for index in range(steps + 1)]


def window_weights(size: int) -> torch.Tensor:
    """How much each pixel of a window counts, `(size, size)`: sin² across and down, highest in its middle, never 0."""
    rise = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    return rise[:, None] * rise
