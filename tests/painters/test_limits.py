"""The table of limits, and what the pipeline says to the same values."""

import math

import numpy as np
import pytest
from PIL import Image
from tiny import make_tiny_pipe

from blended_diffusion.painters.limits import CHOICES, LIMITS
from pipeline_blended_diffusion import BlendedDiffusionPipeline


# of the table, what the pipeline is called with under the same name
CHECKED_NUMBERS = (
    "num_inference_steps",
    "strength",
    "clip_guidance_scale",
    "range_guidance_scale",
    "num_augmentations",
    "background_mse_scale",
    "background_lpips_scale",
)


@pytest.fixture(scope="module")
def tiny_pipe() -> BlendedDiffusionPipeline:
    """One for all, since none of them comes to its first step."""
    return make_tiny_pipe()


class AcceptedError(Exception):
    """The pipeline has begun with the steps."""


def begin(pipe, **arguments) -> None:
    """Calls the pipeline as far as its first step."""

    def stop(*_):
        raise AcceptedError

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    arguments = {"num_inference_steps": 2, "strength": 1.0, "num_augmentations": 1, **arguments}
    pipe("rock", photo, mask, callback_on_step_end=stop, **arguments)


VALUES = (-1, -0.001, 0, 1, 1.001, math.nan, math.inf, -math.inf)

# with a weight of its own LPIPS needs a file that tests do not fetch
CASES = [
    (name, value)
    for name in CHECKED_NUMBERS
    for value in VALUES
    if name != "background_lpips_scale" or value not in (1, 1.001)
]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_the_pipeline_refuses_what_the_table_refuses(tiny_pipe, name, value):
    limit = LIMITS[name]
    if limit.allows(value) and not (limit.whole and value != int(value)):
        with pytest.raises(AcceptedError):
            begin(tiny_pipe, **{name: value})
    else:
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}"):
            begin(tiny_pipe, **{name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_the_pipeline_accepts_the_tables_words_and_no_others(tiny_pipe, name):
    for word in set(CHOICES[name]) - {"none"}:  # of models that no CLIP guides
        with pytest.raises(AcceptedError):
            begin(tiny_pipe, **{name: word})
    with pytest.raises(ValueError, match=f"`{name}` is 'size'"):
        begin(tiny_pipe, **{name: "size"})


@pytest.mark.parametrize(
    ("name", "words", "allowed", "refused"),
    [
        ("strength", "a number above 0 and at most 1", (0.01, 1), (0, 1.01, math.nan)),
        ("context", "a number of at least 0", (0, 99), (-0.1, math.inf, math.nan)),
        ("initial_mask_growth", "a number from 0 to 1", (0, 1), (-0.1, 1.1)),
        ("num_images", "of at least 1", (1, 10**9), (0,)),
        ("seed", f"from 0 to {2**62}", (0, 2**62), (-1, 2**62 + 1)),
    ],
)
def test_a_limit_says_what_it_allows(name, words, allowed, refused):
    limit = LIMITS[name]
    assert str(limit) == words
    assert all(map(limit.allows, allowed)) and not any(map(limit.allows, refused))
