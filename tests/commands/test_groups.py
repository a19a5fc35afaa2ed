"""Groups of flags: what typer is given for a dataclass of them, and what the command gets."""

import re
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from blended_diffusion.commands.groups import INPUT, MACHINE, flag, with_groups
from blended_diffusion.commands.parsers import at_least, refuse_both


@dataclass(frozen=True)
class SizeFlags:
    """Two flags that do not go together."""

    width: Annotated[int | None, flag(INPUT, "--width", "How wide.", "N", at_least(1))] = None
    diameter: Annotated[int | None, flag(INPUT, "--diameter", "How wide, if round.", "N", at_least(1))] = None
    threads: Annotated[int, flag(MACHINE, "--threads", "How many.", "N", at_least(1))] = 2

    def __post_init__(self) -> None:
        refuse_both(self, ("--width", "--diameter"))


@dataclass(frozen=True)
class WideFlags(SizeFlags):
    """Likewise, with another default, and without one of the flags."""

    width: Annotated[int, flag(INPUT, "--width", "How wide, at least.", "N", at_least(1))] = 7
    diameter: int | None = None


def command_of(group: type) -> tuple[typer.Typer, list]:
    """A command with such a group, and what it was called with."""
    calls = []

    def paint(
        size: group, words: Annotated[str, flag(INPUT, "--words", "What.", "WORDS")], quiet: bool = False
    ) -> None:
        """Paints."""
        calls.append((size, words, quiet))

    paint.__annotations__["quiet"] = Annotated[bool, flag(MACHINE, "--quiet", "No words.")]
    app = typer.Typer()
    app.command()(with_groups(paint))
    return app, calls


def test_a_group_comes_whole():
    app, calls = command_of(SizeFlags)
    assert CliRunner().invoke(app, ["--words", "rock", "--width", "3", "--quiet"]).exit_code == 0
    assert CliRunner().invoke(app, ["--words", "rose"]).exit_code == 0
    assert calls == [(SizeFlags(width=3), "rock", True), (SizeFlags(), "rose", False)]


def test_a_subclass_may_have_another_default_and_less_flags():
    app, calls = command_of(WideFlags)
    assert CliRunner().invoke(app, ["--words", "rock"]).exit_code == 0
    assert calls == [(WideFlags(width=7), "rock", False)]
    assert CliRunner().invoke(app, ["--words", "rock", "--diameter", "3"]).exit_code == 2
    assert "at least" in CliRunner().invoke(app, ["--help"]).output


def test_flags_that_do_not_go_together_are_refused():
    app, calls = command_of(SizeFlags)
    result = CliRunner().invoke(app, ["--words", "rock", "--width", "3", "--diameter", "4"])
    assert isinstance(result.exception, ValueError) and calls == []
    assert str(result.exception) == "--width 3 and --diameter 4 say the same thing twice; give one of them."


def test_the_flags_of_a_panel_stand_together_in_their_order():
    app, _ = command_of(SizeFlags)
    output = CliRunner().invoke(app, ["--help"]).output
    assert re.findall(r"--(width|diameter|words|threads|quiet)\b", output) == [
        "width",
        "diameter",
        "words",
        "threads",
        "quiet",
    ]


def test_the_same_flag_twice_is_a_mistake_of_the_commands():
    def paint(size: SizeFlags, wide: WideFlags) -> None:
        pass

    with pytest.raises(ValueError, match="duplicate parameter name"):
        with_groups(paint)
