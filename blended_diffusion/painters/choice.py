"""Which painter a model is for.

What belongs here knows the painters by name, so that nobody above has to.
"""

from diffusers import DiffusionPipeline

from blended_diffusion.inpainting_models import paints_by_words
from blended_diffusion.models import Model
from blended_diffusion.painters.blended_diffusion import BlendedDiffusionPainter
from blended_diffusion.painters.inpainting import InpaintingPainter
from blended_diffusion.painters.painter import Painter
from pipeline_blended_diffusion import BlendedDiffusionPipeline


def painter_for(given: Model | DiffusionPipeline | Painter) -> Painter:
    """The painter that paints with a model; a painter is taken as it is.

    Args:
        given ([`Model`], `DiffusionPipeline` or [`Painter`]): a pipeline alone came from nowhere and has no hash.

    Raises:
        TypeError: it is none of these, or a pipeline for which there is no painter.
    """
    if isinstance(given, Painter):
        return given
    model = Model(given, "in memory", "") if isinstance(given, DiffusionPipeline) else given
    if isinstance(model, Model) and isinstance(model.pipe, BlendedDiffusionPipeline):
        return BlendedDiffusionPainter(model)
    found = type(model.pipe if isinstance(model, Model) else model)
    if isinstance(model, Model) and paints_by_words(found):
        return InpaintingPainter(model)
    raise TypeError(
        f"`model` is a {found.__name__}, for which there is no painter; give a BlendedDiffusionPipeline, or a pipeline"
        " that needs words, an image and a mask, and nothing else."
    )
