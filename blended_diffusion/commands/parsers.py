"""How the values of flags are read.

What belongs here turns a word of the command line into a value, or says in one sentence what is wrong with it.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

from blended_diffusion.painters.limits import LIMITS, Limit


def whole_number(limit: Limit) -> Callable[[str], int]:
    """A parser for the whole numbers that a limit allows."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number; give one {limit}.") from None
        if not limit.allows(value):
            raise typer.BadParameter(f"{value} is out of range; give a whole number {limit}.")
        return value

    return parse


def at_least(minimum: int) -> Callable[[str], int]:
    """A parser for whole numbers from `minimum` on."""
    return whole_number(Limit(minimum, whole=True))


def number(accepts: Callable[[float], bool], expected: object) -> Callable[[str], float]:
    """A parser for the numbers that `accepts` likes; `expected` says which these are."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number; give {expected}.") from None
        if not accepts(value):
            raise typer.BadParameter(f"{text} is out of range; give {expected}.")
        return value

    return parse


def setting(name: str) -> Callable[[str], Any]:
    """A parser for the numbers of a setting: see [`~blended_diffusion.painters.limits.LIMITS`]."""
    limit = LIMITS[name]
    return whole_number(limit) if limit.whole else number(limit.allows, limit)


def mask_growth(text: str) -> float | str:
    """A parser for `initial_mask_growth`, which may be `"auto"` too."""
    limit = LIMITS["initial_mask_growth"]
    return text if text == "auto" else number(limit.allows, f"{limit}, or auto")(text)


pixels = number(math.isfinite, "a number of pixels, such as 8 or -3")
at_least_zero = Limit(0)
distance = number(at_least_zero.allows, at_least_zero)


@dataclass(frozen=True)
class Places:
    """Coordinates as people write them, in pixels or as a percentage of the photo's width or height.

    Attributes:
        numbers (`tuple[str, ...]`): x, y, x, y, …; a percentage ends in `%`.
    """

    numbers: tuple[str, ...]

    def on(self, size: tuple[int, int]) -> list[tuple[float, float]]:
        """The points `(x, y)` in pixels of a photo of this `(width, height)`."""
        values = [
            float(number.removesuffix("%")) * (extent / 100 if number.endswith("%") else 1)
            for number, extent in zip(self.numbers, itertools.cycle(size))
        ]
        return list(zip(values[::2], values[1::2], strict=True))


def places(accepts: Callable[[int], bool], expected: str) -> Callable[[str], Places]:
    """A parser for points, of which `accepts` likes the number."""

    def parse(text: str) -> Places:
        numbers = tuple(text.replace(",", " ").split())
        if not all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)%?", number) for number in numbers):
            raise typer.BadParameter(f"{text!r} is more than numbers and percentages; give {expected}.")
        if len(numbers) % 2 or not accepts(len(numbers) // 2):
            raise typer.BadParameter(f"{text!r} has {len(numbers)} numbers; give {expected}.")
        return Places(numbers)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser for words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is unknown; give {' or '.join(choices)}.")
        return text

    return parse


def words_with_commas(text: str) -> list[str]:
    """The words, or several words each, between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def lora_and_weight(text: str) -> tuple[str, float]:
    """What `--lora` says: a name, and how much of it; all of it if that is left out.

    Raises:
        ValueError: what is behind the `=` is no number.
    """
    name, sign, weight = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"--lora {text!r}: {weight!r} is not a number; give NAME=0.8, for example.") from None


def strengths_with_commas(text: str) -> list[float]:
    """The numbers of `--strengths`, each once.

    Raises:
        ValueError: one of them is none.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(LIMITS["strength"].allows, values)):
        raise ValueError(f"--strengths {text!r}: give numbers above 0 and at most 1, with commas between them.")
    return list(dict.fromkeys(values))


def refuse_both(group: object, *pairs: tuple[str, str]) -> None:
    """Raises a `ValueError` if a group has a value for both flags of a pair, which say the same thing."""
    for pair in pairs:
        one, other = (getattr(group, name.removeprefix("--").replace("-", "_")) for name in pair)
        if one is not None and other is not None:
            raise ValueError(f"{pair[0]} {one} and {pair[1]} {other} say the same thing twice; give one of them.")


def first_given(*values: Any) -> Any:
    """The first that is not `None`, if any."""
    return next((value for value in values if value is not None), None)
