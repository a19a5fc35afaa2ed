"""Which values a setting may have: one table, for the flags of commands and the keys of files.

What belongs here is plain data. The pipeline checks its own arguments, because it is one file on the Hub; a test holds
the two together.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """Which numbers a setting may be.

    Attributes:
        minimum (`float`), maximum (`float`): the ends, both allowed. Infinity stands for no end and is not allowed.
        above_minimum (`bool`): the minimum itself is not allowed.
        whole (`bool`): whole numbers alone are.
    """

    minimum: float
    maximum: float = math.inf
    above_minimum: bool = False
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Whether a number is within the limit; NaN is not."""
        if not self.minimum <= value <= self.maximum or value == math.inf:
            return False
        return not (self.above_minimum and value == self.minimum)

    def __str__(self) -> str:
        endless = self.maximum == math.inf
        if self.whole:
            return f"of at least {self.minimum}" if endless else f"from {self.minimum} to {self.maximum}"
        if endless:
            return f"a number of at least {self.minimum}"
        if self.above_minimum:
            return f"a number above {self.minimum} and at most {self.maximum}"
        return f"a number from {self.minimum} to {self.maximum}"


WEIGHT = Limit(0)

# of the fields of `EditSettings`, and of what is said beside them about an edit
LIMITS = {
    "num_inference_steps": Limit(1, whole=True),
    "strength": Limit(0, 1, above_minimum=True),
    "clip_guidance_scale": WEIGHT,
    "guidance_scale": WEIGHT,
    "size": Limit(8, whole=True),
    "range_guidance_scale": WEIGHT,
    "num_augmentations": Limit(0, whole=True),
    "background_mse_scale": WEIGHT,
    "background_lpips_scale": WEIGHT,
    "context": WEIGHT,
    "feather": Limit(0),
    "initial_mask_growth": Limit(0, 1),
    "detail": Limit(1, whole=True),
    "typographic_defence": WEIGHT,
    "object_scale": WEIGHT,
    "num_images": Limit(1, whole=True),
    "seed": Limit(0, 2**62, whole=True),
}

CHOICES = {"guidance_gradient": ("sample", "estimate"), "ranking": ("surroundings", "region", "none")}
