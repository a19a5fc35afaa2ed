"""What is compared: our defaults, the released editor's settings, the paper's baselines and ablations."""

from dataclasses import dataclass, field
from typing import Any

from blended_diffusion.editing.presets import preset_settings


@dataclass(frozen=True)
class Method:
    """A way to make an edit.

    Attributes:
        title (`str`): for people.
        settings (`dict`): what differs from the model's defaults, as of [`EditSettings`].
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)


BUNDLED_STEPS = 30  # what the bundled model asks for

METHODS = {
    "default": Method("ours, default settings"),
    "release": Method("the released editor's settings", preset_settings("release", BUNDLED_STEPS)),
    "balanced": Method("ours, half of the steps", preset_settings("balanced", BUNDLED_STEPS)),
    "fast": Method("ours, two fifths of the steps", preset_settings("fast", BUNDLED_STEPS)),
    # the paper's algorithm 1 with its λ, in which nothing keeps the background but a loss
    "local-clip-guided": Method(
        "local CLIP-guided diffusion, λ = 1000",
        {
            "blend": False,
            "enforce_background": False,
            "background_mse_scale": 1000.0,
            "background_lpips_scale": 1000.0,
        },
    ),
    "final-paste": Method("no blending, the background pasted at the end", {"blend": False}),
    "no-augmentations": Method("without extending augmentations", {"num_augmentations": 1}),
    "gradient-through-network": Method(
        "the gradient through the network", {"guidance_gradient": "sample", "clip_guidance_scale": 64.0}
    ),
    "wider-square": Method("twice the margin round the mask", {"context": 0.5}),
    # small masks cover a twentieth of these windows
    "far": Method("seen from far, the mask as it is", {"context": 1.7}),
    "far-growing": Method(
        "seen from far, the mask shrinking from a larger one", {"context": 1.7, "initial_mask_growth": None}
    ),
}
