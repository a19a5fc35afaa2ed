"""The flags that commands share, and the parsers of their values.

What belongs here is how a flag is spelled, explained and read. What a command does with it does not.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer


INPUT, OUTPUT, METHOD = "Input", "Output", "Method (left out: the model's own numbers)"
RELEASED, MACHINE = "The released editor's names", "Machine"


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A parser for whole numbers from `minimum` on."""
    wanted = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number; give one {wanted}.") from None
        if number < minimum or (maximum is not None and number > maximum):
            raise typer.BadParameter(f"{number} is out of range; give a whole number {wanted}.")
        return number

    return parse


def number(accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A parser for numbers that `accepts` likes."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number; give {wanted}.") from None
        if not accepts(value):
            raise typer.BadParameter(f"{text} is out of range; give {wanted}.")
        return value

    return parse


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


def places(accepts: Callable[[int], bool], wanted: str) -> Callable[[str], Places]:
    """A parser for points, of which `accepts` likes the number."""

    def parse(text: str) -> Places:
        numbers = tuple(text.replace(",", " ").split())
        if not all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)%?", number) for number in numbers):
            raise typer.BadParameter(f"{text!r} is more than numbers and percentages; give {wanted}.")
        if len(numbers) % 2 or not accepts(len(numbers) // 2):
            raise typer.BadParameter(f"{text!r} has {len(numbers)} numbers; give {wanted}.")
        return Places(numbers)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser for words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is unknown; give {' or '.join(choices)}.")
        return text

    return parse


def shares(text: str, argument: str) -> list[float]:
    """Several shares of one flag's value.

    Raises:
        ValueError: one of them is none.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1 for value in values):
        raise ValueError(f"{argument} {text!r}: give numbers above 0 and at most 1, with commas between them.")
    return list(dict.fromkeys(values))


count = whole_number(1)
seed_number = whole_number(0, 2**62)
share = number(lambda value: 0 < value <= 1, "a number above 0 and at most 1")
scale = number(lambda value: 0 <= value < math.inf, "a number of at least 0")


def flag(
    panel: str, names: str, help: str, metavar: str | None = None, parser: Callable[[str], object] | None = None
) -> typer.models.OptionInfo:
    """A flag of `--help`'s group `panel`."""
    help = help.replace("[", r"\[")  # no markup of rich's
    return typer.Option(*names.split(), help=help, metavar=metavar or " ", parser=parser, rich_help_panel=panel)


def either(**flags: Any) -> Any:
    """The value of the one flag of two synonyms that was given, if any.

    Raises:
        ValueError: both were.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if len(given) > 1:
        (first, one), (second, other) = given.items()
        raise ValueError(f"{first} {one} and {second} {other} say the same thing twice; give one of them.")
    return next(iter(given.values()), None)


# ---------------------------------------------------------------------------------------------------------------------
# The flags of every command that edits
# ---------------------------------------------------------------------------------------------------------------------

InitImage = Annotated[str, flag(INPUT, "--init_image -i", "The photo.", "FILE")]
MaskFile = Annotated[
    str | None,
    flag(INPUT, "--mask", "White is edited, black is kept; of the photo's size. [default: all is edited]", "FILE"),
]
MaskAlpha = Annotated[
    str | None, flag(INPUT, "--mask-alpha", "Edit where this picture, of the photo's size, is opaque.", "FILE")
]
MaskDifference = Annotated[
    str | None, flag(INPUT, "--mask-difference", "Edit where this changed copy differs from the photo.", "FILE")
]
MaskBox = Annotated[
    Places | None,
    flag(
        INPUT,
        "--box",
        "Edit a rectangle: left, top, right, bottom in pixels or percent.",
        "X,Y,X,Y",
        places(lambda points: points == 2, "left,top,right,bottom, such as 40,30,200,120 or 10%,10%,50%,60%"),
    ),
]
MaskPolygon = Annotated[
    Places | None,
    flag(
        INPUT,
        "--polygon",
        "Edit what these corners enclose.",
        "'X,Y X,Y …'",
        places(lambda points: points >= 3, "three or more corners, such as '40,30 200,60 120,150'"),
    ),
]
MaskClick = Annotated[
    Places | None,
    flag(
        INPUT,
        "--click",
        "Edit the thing at this point, or at all of these, as SAM 2 sees it.",
        "'X,Y …'",
        places(lambda points: points >= 1, "one or more points on the thing, such as 120,80 or 50%,50%"),
    ),
]
MaskPrompt = Annotated[
    str | None, flag(INPUT, "--mask-prompt", "Edit what these words name, as CLIPSeg sees it.", "WORDS")
]
MaskThreshold = Annotated[
    float | None,
    flag(
        INPUT, "--mask-threshold", "How sure of --mask-prompt, up to 1: less takes in more. [default: 0.4]", "X", share
    ),
]
MaskPromptModel = Annotated[
    str | None,
    flag(
        MACHINE,
        "--mask-prompt-model",
        "A CLIPSeg model's folder or Hub id. [default: CIDAS/clipseg-rd64-refined]",
        "NAME",
    ),
]
ClickModel = Annotated[
    str | None,
    flag(MACHINE, "--click-model", "A SAM 2 model's folder or Hub id. [default: facebook/sam2.1-hiera-tiny]", "NAME"),
]
Grow = Annotated[
    float,
    flag(
        INPUT,
        "--grow",
        "Make the mask larger by so many of the photo's pixels all round; smaller, if negative.",
        "N",
        number(math.isfinite, "a number of pixels, such as 8 or -3"),
    ),
]
Feather = Annotated[
    float | None,
    flag(
        INPUT,
        "--feather",
        "Let the edit fade in over so many of the photo's pixels inside the mask's edge. [default: the width of one of"
        " the model's pixels]",
        "N",
        scale,
    ),
]
InvertMask = Annotated[bool, flag(INPUT, "--invert_mask --invert", "Edit what would be kept, and keep the rest.")]
NegativePrompt = Annotated[str | None, flag(INPUT, "--negative-prompt", "What the region should not show.", "WORDS")]
OutputPath = Annotated[str, flag(OUTPUT, "--output_path", "Where to write.", "FOLDER")]
NumImages = Annotated[int, flag(OUTPUT, "--num-images", "How many candidates.", "N", count)]
Seed = Annotated[int, flag(OUTPUT, "--seed", "Of the first candidate; the next ones count on.", "N", seed_number)]
Resume = Annotated[
    bool, flag(OUTPUT, "--resume", "Keep what an interrupted run has finished and make what is missing.")
]
Vid = Annotated[bool, flag(OUTPUT, "--vid", "Write a film of each candidate's making to films/.")]
VidFormat = Annotated[str, flag(OUTPUT, "--vid-format", "Of the films.", "mp4|gif", one_of("mp4", "gif"))]
Strip = Annotated[
    int | None, flag(OUTPUT, "--strip", "Write K steps of each candidate's making side by side to films/.", "K", count)
]
Steps = Annotated[
    int | None,
    flag(METHOD, "--num-inference-steps", "Steps of the whole way from noise to picture.", "N", count),
]
Strength = Annotated[
    float | None,
    flag(METHOD, "--strength", "How much of that way to go, up to 1: less keeps more of the source.", "X", share),
]
ClipScale = Annotated[float | None, flag(METHOD, "--clip-guidance-scale", "Weight of the words.", "X", scale)]
Context = Annotated[
    float,
    flag(
        METHOD,
        "--context",
        "Margin of the square round the mask, as a share of the mask's longer side; 99 takes in all there is.",
        "X",
        scale,
    ),
]
Detail = Annotated[
    int,
    flag(
        METHOD,
        "--detail",
        "Refine the edit at N times the model's size, by overlapping windows: for regions much larger than that.",
        "N",
        count,
    ),
]
NoMatchGrain = Annotated[
    bool, flag(METHOD, "--no-match-grain", "Do not give what is enlarged the grain that the photo has round the mask.")
]
ModelName = Annotated[
    str, flag(MACHINE, "--model", "The bundled one, a converted model's folder, or a Hub id.", "NAME")
]
BatchSize = Annotated[
    int, flag(MACHINE, "--batch_size", "Candidates computed together; halved when memory runs out.", "N", count)
]
Device = Annotated[str | None, flag(MACHINE, "--device", "cpu, cuda, cuda:1, mps … [default: what there is]", "NAME")]
Dtype = Annotated[
    str | None,
    flag(
        MACHINE,
        "--dtype",
        "Of the networks. [default: accelerate's mixed precision, else float32, and bfloat16 for large networks where"
        " the device is quick in it]",
        "float32|bfloat16|float16",
        one_of("float32", "bfloat16", "float16"),
    ),
]
Quiet = Annotated[bool, flag(MACHINE, "--quiet", "No progress and no summary.")]
