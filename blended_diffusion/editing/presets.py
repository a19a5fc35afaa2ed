"""Settings that go together, under one word: how much time an edit may take, or the released editor's.

What belongs here is numbers that were measured against each other (`python -m benchmarks.edit`).
"""

from typing import Any


# of the steps that the model itself asks for: fewer steps of the same way
SHARES = {"fast": 0.4, "balanced": 1 / 2, "best": 1.0}
# --timestep_respacing 100 --skip_timesteps 25 --clip_guidance_lambda 1000 --range_lambda 50 --aug_num 8
RELEASE: dict[str, Any] = {
    "match_release": True,
    "guidance_gradient": "sample",
    "num_inference_steps": 100,
    "strength": 0.75,
    "clip_guidance_scale": 1000.0,
    "range_guidance_scale": 50.0,
    "num_augmentations": 8,
}
PRESETS = (*SHARES, "release")


def preset_settings(preset: str, default_num_inference_steps: int) -> dict[str, Any]:
    """The fields of [`~blended_diffusion.painters.settings.EditSettings`] that a preset decides.

    Args:
        preset (`str`): one of [`PRESETS`].
        default_num_inference_steps (`int`): the model's own, `pipe.config.default_num_inference_steps`.

    Returns:
        `dict`: settings by name, to be overridden by those that somebody asked for.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}; pass one of {PRESETS}.")
    if preset == "release":
        return dict(RELEASE)
    return {"num_inference_steps": max(1, round(SHARES[preset] * default_num_inference_steps))}
