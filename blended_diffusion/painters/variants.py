"""Pipelines that are made of another one.

What belongs here is the one way to make them. What a variant does otherwise is said by its class.
"""

from typing import TypeVar

from pipeline_blended_diffusion import BlendedDiffusionPipeline


Variant = TypeVar("Variant", bound=BlendedDiffusionPipeline)


def variant_of(pipe: BlendedDiffusionPipeline, kind: type[Variant]) -> Variant:
    """The pipeline as one of class `kind`, with everything that it is and that was set on it.

    The components are the same objects and none is copied; what is set on the variant is not set on `pipe`.

    Args:
        pipe ([`BlendedDiffusionPipeline`]): left as it is.
        kind (`type`): its class or one derived from that, which may need more than `pipe` has: set it afterwards.
    """
    variant = kind.__new__(kind)
    variant.__dict__.update(pipe.__dict__)
    return variant
