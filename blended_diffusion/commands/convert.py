"""The `convert` command: flags in, one sentence out.

Belongs here: parsing and showing. Does not: anything that needs torch before a conversion starts.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from blended_diffusion.checkpoints.presets import DEFAULT_CLIP, PRESETS
from blended_diffusion.commands.groups import with_groups


_ARCHITECTURE = "Architecture, under guided-diffusion's names (only for checkpoints without a preset)"
_CANNOT_BE_TOLD = "A state dict does not tell it."
_CHECKED = "Read off the state dict; checked if given."
BOOLEANS = ("class-cond", "learn-sigma", "resblock-updown", "use-new-attention-order", "use-scale-shift-norm")
_DEFAULTS = "What the pipeline does when its caller does not say"


@dataclass(frozen=True)
class ArchitectureFlags:
    """What a checkpoint's network is like, under guided-diffusion's names; what is left out is `None`."""

    image_size: Annotated[int | None, typer.Option(help=_CANNOT_BE_TOLD, rich_help_panel=_ARCHITECTURE)] = None
    num_heads: Annotated[
        int | None,
        typer.Option(help=f"{_CANNOT_BE_TOLD} Needed without --num-head-channels.", rich_help_panel=_ARCHITECTURE),
    ] = None
    num_head_channels: Annotated[
        int | None, typer.Option(help=f"{_CANNOT_BE_TOLD} Wins over --num-heads.", rich_help_panel=_ARCHITECTURE)
    ] = None
    use_new_attention_order: Annotated[
        bool | None,
        typer.Option(
            help=f"Order of the qkv rows. {_CANNOT_BE_TOLD} Legacy if not given; with --reverse, as it was.",
            rich_help_panel=_ARCHITECTURE,
            show_default=False,
        ),
    ] = None
    noise_schedule: Annotated[
        str | None,
        typer.Option(help=f"linear or cosine. {_CANNOT_BE_TOLD} Linear if not given.", rich_help_panel=_ARCHITECTURE),
    ] = None
    diffusion_steps: Annotated[
        int | None,
        typer.Option(help=f"{_CANNOT_BE_TOLD} 1000 if not given.", rich_help_panel=_ARCHITECTURE),
    ] = None
    dropout: Annotated[
        float | None, typer.Option(help=f"{_CANNOT_BE_TOLD} 0 if not given.", rich_help_panel=_ARCHITECTURE)
    ] = None
    num_channels: Annotated[int | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE)] = None
    num_res_blocks: Annotated[int | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE)] = None
    channel_mult: Annotated[
        str | None, typer.Option(help=f"As in 1,2,3,4. {_CHECKED}", rich_help_panel=_ARCHITECTURE)
    ] = None
    attention_resolutions: Annotated[
        str | None, typer.Option(help=f"As in 32,16,8. {_CHECKED}", rich_help_panel=_ARCHITECTURE)
    ] = None
    class_cond: Annotated[
        bool | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE, show_default=False)
    ] = None
    learn_sigma: Annotated[
        bool | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE, show_default=False)
    ] = None
    resblock_updown: Annotated[
        bool | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE, show_default=False)
    ] = None
    use_scale_shift_norm: Annotated[
        bool | None, typer.Option(help=_CHECKED, rich_help_panel=_ARCHITECTURE, show_default=False)
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that were.

        Raises:
            ValueError: one that is a list of numbers is none.
        """
        flags = {name: value for name, value in asdict(self).items() if value is not None}
        for name, number in (("channel_mult", float), ("attention_resolutions", int)):
            if name in flags:
                flags[name] = _numbers(name, flags[name], number)
        return flags


@dataclass(frozen=True)
class DefaultFlags:
    """What the pipeline does when its caller does not say."""

    default_num_inference_steps: Annotated[int, typer.Option(rich_help_panel=_DEFAULTS)] = 100
    default_strength: Annotated[float, typer.Option(rich_help_panel=_DEFAULTS)] = 0.75
    default_clip_guidance_scale: Annotated[float, typer.Option(rich_help_panel=_DEFAULTS)] = 1000.0
    default_range_guidance_scale: Annotated[float, typer.Option(rich_help_panel=_DEFAULTS)] = 50.0
    default_num_augmentations: Annotated[int, typer.Option(rich_help_panel=_DEFAULTS)] = 8


@with_groups
def convert_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A .pt or .safetensors file of guided-diffusion; with --reverse, a converted folder."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write; with --reverse, a .pt or .safetensors file.")
    ],
    clip: Annotated[str, typer.Option(help="The CLIP that guides: a Hub id or a folder.")] = DEFAULT_CLIP,
    preset: Annotated[
        str | None,
        typer.Option(help=f"The published checkpoint this is, if its file was renamed: {', '.join(PRESETS)}."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write the weights in half precision.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output once the new one is complete.")
    ] = False,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="From a converted folder back to a guided-diffusion state dict.")
    ] = False,
    *,
    architecture: ArchitectureFlags,
    defaults: DefaultFlags,
) -> None:
    """Make a guided-diffusion checkpoint a folder that DiffusionPipeline.from_pretrained loads, or back.

    Published checkpoints are known by file name. Of others, give what a state dict does not tell.
    """
    try:
        flags = architecture.given
        if reverse:
            _convert_back(checkpoint, output, overwrite, flags)
        else:
            from transformers.utils import logging

            from blended_diffusion.checkpoints.conversion import convert

            # what is missing is checked and said in one sentence
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            convert(
                checkpoint,
                output,
                clip=clip,
                preset=preset,
                half=half,
                overwrite=overwrite,
                pipeline_defaults=asdict(defaults),
                **flags,
            )
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"Wrote {output}")


def _convert_back(folder: Path, output: Path, overwrite: bool, flags: dict[str, Any]) -> None:
    from blended_diffusion.checkpoints.conversion import to_guided_diffusion

    order = flags.pop("use_new_attention_order", None)
    if flags:
        raise ValueError(
            f"{next(iter(flags))} cannot be given with --reverse, which takes it from the folder; leave it out."
        )
    to_guided_diffusion(folder, output, use_new_attention_order=order, overwrite=overwrite)


def _numbers(name: str, text: str, number: type) -> tuple:
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}={text!r} is no list of numbers; write them with commas, as in 32,16,8.") from None


def as_flags(arguments: Sequence[str]) -> list[str]:
    """Turns guided-diffusion's `--class_cond False` into `--no-class-cond`, so that its published flags can be pasted.

    Args:
        arguments (`Sequence[str]`): A command line.

    Returns:
        `list[str]`: The same with the values of [`BOOLEANS`] said by the flag itself.
    """
    rest, spelled = list(arguments), []
    while rest:
        argument = rest.pop(0)
        name = argument.removeprefix("--").replace("_", "-")
        if argument.startswith("--") and name in BOOLEANS and rest and rest[0].lower() in ("true", "false"):
            argument = f"--{name}" if rest.pop(0).lower() == "true" else f"--no-{name}"
        spelled.append(argument)
    return spelled


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    # --image_size and --image-size are the same flag
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
app.command()(convert_command)


def main() -> None:
    """`convert_checkpoint.py`."""
    app(as_flags(sys.argv[1:]))
