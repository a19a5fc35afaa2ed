"""Flags that travel together: dataclasses of them, as parameters of commands.

What belongs here makes of such parameters what typer wants, one parameter for each flag. Which flags there are belongs
to `flags`.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

import typer


# of `--help`, in this order
INPUT, OUTPUT, METHOD = "Input", "Output", "Method (left out: the model's own numbers)"
RELEASED, MACHINE = "The released editor's names", "Machine"
PANELS = (INPUT, OUTPUT, METHOD, RELEASED, MACHINE)


def flag(
    panel: str, names: str, help: str, metavar: str | None = None, parser: Callable[[str], object] | None = None
) -> Any:
    """A flag of `--help`'s group `panel`, for `Annotated`."""
    help = help.replace("[", r"\[")  # no markup of rich's
    return typer.Option(*names.split(), help=help, metavar=metavar or " ", parser=parser, rich_help_panel=panel)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each group of flags among its parameters replaced by the flags themselves, as typer wants it.

    A group is a dataclass. Its flags are the fields that are annotated with one; a field without a flag keeps its
    default. So a subclass gives a flag another default or another help, or takes it away. What is wrong with the flags
    of a group together its `__post_init__` says.

    Args:
        command (`Callable`): with annotated flags, arguments and dataclasses of flags as parameters.

    Returns:
        `Callable`: takes a flag of each name and calls `command` with the dataclasses made of them. The flags of a
        panel stay in their order.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            flags = _flags_of(hints[name])
            groups[name] = [one.name for one in flags]
            parameters += flags
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))
    parameters.sort(key=_panel_of)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: hints[name](**{one: values.pop(one) for one in flags}) for name, flags in groups.items()}
        command(**made, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _flags_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        _keyword(one.name, hints[one.name], inspect.Parameter.empty if one.default is MISSING else one.default)
        for one in fields(group)
        if get_origin(hints[one.name]) is Annotated
    ]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _panel_of(parameter: inspect.Parameter) -> int:
    panels = [getattr(one, "rich_help_panel", None) for one in parameter.annotation.__metadata__]
    return PANELS.index(panels[0]) if panels[0] in PANELS else -1
