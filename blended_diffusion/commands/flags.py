"""The flags that commands share, and the parsers of their values.

What belongs here is how a flag is spelled, explained and read. What a command does with it does not.
"""

import math
from collections.abc import Callable
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


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser for words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is unknown; give {' or '.join(choices)}.")
        return text

    return parse


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
NegativePrompt = Annotated[str | None, flag(INPUT, "--negative-prompt", "What the region should not show.", "WORDS")]
OutputPath = Annotated[str, flag(OUTPUT, "--output_path", "Where to write.", "FOLDER")]
NumImages = Annotated[int, flag(OUTPUT, "--num-images", "How many candidates.", "N", count)]
Seed = Annotated[int, flag(OUTPUT, "--seed", "Of the first candidate; the next ones count on.", "N", seed_number)]
Resume = Annotated[
    bool, flag(OUTPUT, "--resume", "Keep what an interrupted run has finished and make what is missing.")
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
        "Of the networks. [default: accelerate's mixed precision, else float32]",
        "float32|bfloat16|float16",
        one_of("float32", "bfloat16", "float16"),
    ),
]
Quiet = Annotated[bool, flag(MACHINE, "--quiet", "No progress and no summary.")]
