"""A second kind of painter, which shares nothing with Blended Diffusion: what stands above the seam bears with it."""

from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from blended_diffusion.models import Model
from blended_diffusion.painters.memory import MemorySaving
from blended_diffusion.painters.painter import PaintedSquare


@dataclass(frozen=True)
class PlainPainter:
    """Fills the square with one colour, its seed's, over `num_inference_steps`; knows nothing of CLIP."""

    model: Model
    size: int = 16
    known_settings = frozenset({"num_inference_steps"})
    default_num_inference_steps = 3

    @property
    def title(self):
        return type(self).__name__

    def check(self, settings, mask):
        if settings.num_inference_steps == 0:
            raise ValueError("`num_inference_steps` is 0; give at least 1.")

    def with_defaults(self, settings, canvas):
        return replace(settings, num_inference_steps=settings.num_inference_steps or 3)

    def for_edit(self, settings):
        return self

    def make(self, canvas, mask, settings, seeds, watch):
        painted = []
        for seed in seeds:
            colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
            image = PIL.Image.new("RGB", canvas.model_image.size, colour)
            painted.append(PaintedSquare(image, sum(colour) / 765, [image] * settings.num_inference_steps * watch))
        return painted

    def make_room(self, settings, batch_size):
        return None

    def memory_saving(self):
        return MemorySaving()

    def save_memory(self, saving):
        raise ValueError("It needs little.")
