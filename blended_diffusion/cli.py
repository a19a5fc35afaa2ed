"""The command `blended-diffusion`: what people touch. It parses, calls and shows.

What belongs here is flags, sentences and exit codes: 0, 2 for bad input, 1 for failure, 130 for interruption. No
algorithm, no tensor arithmetic. Whatever imports torch is imported inside the commands, so that `--help` is quick.
"""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from blended_diffusion.checkpoints.command import as_flags, convert_command
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.records import EditSettings


if TYPE_CHECKING:
    import torch

    from blended_diffusion.candidates import Edit, Results
    from blended_diffusion.models import Model
    from blended_diffusion.records import Origin


INPUT, OUTPUT, METHOD = "Input", "Output", "Method (left out: the model's own numbers)"
RELEASED, MACHINE = "The released editor's names", "Machine"


# ---------------------------------------------------------------------------------------------------------------------
# Values of flags
# ---------------------------------------------------------------------------------------------------------------------


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
# What the commands have in common, and what they say
# ---------------------------------------------------------------------------------------------------------------------


def show(text: str) -> None:
    typer.echo(text, err=True)


def load(name: str, dtype: "torch.dtype", device: "torch.device") -> "Model":
    """The model `name`, on `device`."""
    from transformers.utils import logging

    from blended_diffusion.models import load_model

    logging.disable_progress_bar()
    model = load_model(name, dtype, "--model")
    model.pipe.to(device)
    return model


def hint_at_words(prompt: str) -> None:
    """Says which words of `prompt` the bundled model does not know, and which it does."""
    from blended_diffusion.inputs import closest_first, unknown_words

    if unknown := unknown_words(prompt, KNOWN_WORDS):
        show(
            f"hint: the bundled model does not know {', '.join(map(repr, unknown))}; it knows"
            f" {', '.join(closest_first(unknown, KNOWN_WORDS))}"
        )


def stem_of(output_file: str) -> str:
    """The stem of a file's name.

    Raises:
        ValueError: it is a path, or not a PNG.
    """
    path = Path(output_file)
    if path.name != output_file or not path.stem:
        raise ValueError(
            f"--output_file {output_file!r} is not a plain name; give one, and the folder as --output_path."
        )
    if path.suffix not in ("", ".png"):
        raise ValueError(f"--output_file {output_file!r} ends in {path.suffix!r}; results are lossless: give a .png.")
    return path.stem


def make_all(job: "Edit", results: "Results", seeds: list[int], keep: bool, quiet: bool) -> None:
    """Makes what is missing under two progress bars, then the sheets, and says where they are."""
    from tqdm.auto import tqdm

    from blended_diffusion.candidates import make_candidates

    finished = {entry.seed for entry in results.finished()}.intersection(seeds)
    if finished and not keep:
        show(
            f"note: making all {len(seeds)} pictures again; --resume would keep the {len(finished)} that are finished"
        )
        finished = set()
    job.model.pipe.set_progress_bar_config(disable=quiet, desc="steps", leave=False)
    with tqdm(total=len(seeds), initial=len(finished), desc="pictures", unit="picture", disable=quiet) as bar:
        try:
            for entry in make_candidates(job, results, seeds, keep):
                finished.add(entry.seed)
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            show(f"interrupted: {len(finished)} of {len(seeds)} pictures are finished; --resume makes the others")
            raise
    entries = results.write_sheets(job)
    if not quiet:
        typer.echo(
            f"{len(entries)} picture{'s' * (len(entries) > 1)} in {results.folder / 'ranked'}, the best of them:"
        )
        for entry in entries[:3]:
            typer.echo(f"  {entry.clip_distance:.4f}  seed {entry.seed}  {entry.path.name}")
        typer.echo(f"to look at: {results.folder / 'contact_sheet.png'}, {results.folder / 'before_after.png'}")


def replay_target(picture: Path, output_path: str | None, inputs: list[Path]) -> Path:
    """Where to write the replay of `picture`.

    Raises:
        ValueError: that is no name for a PNG, one of `inputs`, or cannot be written.
    """
    target = picture.with_name(f"{picture.stem}_replay.png") if output_path is None else Path(output_path)
    if target.is_dir():
        target /= f"{picture.stem}_replay.png"
    if target.suffix != ".png":
        raise ValueError(f"--output_path {str(target)!r} is neither a folder nor a PNG's name; give one of these.")
    if target.exists() and any(target.samefile(path) for path in inputs):
        raise ValueError(f"--output_path {str(target)!r} is what the replay is made from; give another name.")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"--output_path {str(target)!r} is in a folder that cannot be written to; give another one.")
    return target


def recorded(given: str | None, flag: str) -> str:
    """What to call a file in error messages: the flag, or that the record names it."""
    return flag if given else f"the record's file (it may be elsewhere now: say where with {flag})"


def refuse_changed(origin: "Origin", sha256: str, name: object, flag: str) -> None:
    """Raises a `ValueError` if something is not what a picture was made from."""
    if sha256 != origin.sha256:
        raise ValueError(
            f"{flag} {str(name)!r} is not what the picture was made from (SHA-256 {sha256[:12]}…, then"
            f" {origin.sha256[:12]}…); give the one that it was made from."
        )


def verdict(difference: int | None, changed: list[str]) -> str:
    if difference == 0:
        return "pixel for pixel the same"
    reason = f"; another {', '.join(changed)} than then" if changed else ""
    if difference is None:
        return f"not the same: the picture has been resized or converted since{reason}"
    return f"not the same: pixels differ by up to {difference} of 255{reason}"


# ---------------------------------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------------------------------

app = typer.Typer(
    add_completion=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # --output_path and --output-path are the same flag
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def print_version(wanted: bool) -> None:
    if wanted:
        from blended_diffusion import __version__

        typer.echo(f"blended-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def blended_diffusion(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Edit a region of a photo with words: photo + mask + words in; several edited photos out, best first.

    Everything outside the mask stays as it was, to the last bit.
    """


EDIT_HELP = "\n\n".join(
    [
        "Edit the masked region of a photo; write several candidates, best first.",
        "The photo keeps its size: the model sees the square round the mask, and its picture is put back inside the"
        " mask alone. Each candidate is written to ranked/ in the output folder the moment it is done, its name"
        " starting with its CLIP distance (lower is better); at the end come contact_sheet.png and before_after.png.",
        "The bundled model is a small one for trying things out: it paints 64×64 pixels, and it knows"
        f" {len(KNOWN_WORDS)} things: {', '.join(KNOWN_WORDS)}. For larger pictures and any words, convert a published"
        " checkpoint (blended-diffusion convert) and name its folder with --model.",
        "Every flag may be written with dashes or underscores. Exit codes: 0, 2 for bad input, 1 for failure, 130 when"
        " interrupted.",
    ]
)


@app.command(help=EDIT_HELP)
def edit(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the masked region should show.", "WORDS")],
    init_image: Annotated[str, flag(INPUT, "--init_image -i", "The photo.", "FILE")],
    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is edited, black is kept; of the photo's size. [default: all is edited]", "FILE"),
    ] = None,
    invert_mask: Annotated[bool, flag(INPUT, "--invert_mask", "Edit the mask's black instead.")] = False,
    negative_prompt: Annotated[
        str | None, flag(INPUT, "--negative-prompt", "What the region should not show.", "WORDS")
    ] = None,
    output_path: Annotated[str, flag(OUTPUT, "--output_path", "Where to write.", "FOLDER")] = "output",
    output_file: Annotated[
        str, flag(OUTPUT, "--output_file -o", "Its stem becomes part of the pictures' names.", "NAME")
    ] = "output.png",
    num_images: Annotated[
        int | None, flag(OUTPUT, "--num-images", "How many candidates. [default: 4]", "N", count)
    ] = None,
    seed: Annotated[
        int, flag(OUTPUT, "--seed", "Of the first candidate; the next ones count on.", "N", seed_number)
    ] = 404,
    resume: Annotated[
        bool, flag(OUTPUT, "--resume", "Keep what an interrupted run has finished and make what is missing.")
    ] = False,
    vid: Annotated[bool, flag(OUTPUT, "--vid", "Write a film of each candidate's making to films/.")] = False,
    vid_format: Annotated[str, flag(OUTPUT, "--vid-format", "Of the films.", "mp4|gif", one_of("mp4", "gif"))] = "mp4",
    export_assets: Annotated[
        bool, flag(OUTPUT, "--export_assets", "Write what the model saw and painted to assets/.")
    ] = False,
    num_inference_steps: Annotated[
        int | None, flag(METHOD, "--num-inference-steps", "Steps of the whole way from noise to picture.", "N", count)
    ] = None,
    strength: Annotated[
        float | None,
        flag(METHOD, "--strength", "How much of that way to go, up to 1: less keeps more of the source.", "X", share),
    ] = None,
    clip_guidance_scale: Annotated[
        float | None, flag(METHOD, "--clip-guidance-scale", "Weight of the words.", "X", scale)
    ] = None,
    range_guidance_scale: Annotated[
        float | None, flag(METHOD, "--range-guidance-scale", "Weight against colours out of range.", "X", scale)
    ] = None,
    num_augmentations: Annotated[
        int | None,
        flag(METHOD, "--num-augmentations", "Copies CLIP sees: one plain, the others warped.", "N", whole_number(0)),
    ] = None,
    guidance_gradient: Annotated[
        str | None,
        flag(
            METHOD,
            "--guidance-gradient",
            "sample: through the model, as released. estimate: as the paper writes it, faster.",
            "sample|estimate",
            one_of("sample", "estimate"),
        ),
    ] = None,
    ranking: Annotated[
        str,
        flag(
            METHOD,
            "--ranking",
            "What decides the order. surroundings: the region and the picture round it. region: the region alone, as"
            " released.",
            "surroundings|region",
            one_of("surroundings", "region"),
        ),
    ] = EditSettings.ranking,
    context: Annotated[
        float,
        flag(
            METHOD,
            "--context",
            "Margin of the square round the mask, as a share of the mask's longer side; 99 takes in all there is.",
            "X",
            scale,
        ),
    ] = EditSettings.context,
    ddim: Annotated[bool, flag(METHOD, "--ddim", "Take the steps with DDIM.")] = False,
    local_clip_guided_diffusion: Annotated[
        bool, flag(METHOD, "--local_clip_guided_diffusion", "The paper's baseline: do not blend in the background.")
    ] = False,
    background_preservation_loss: Annotated[
        bool, flag(METHOD, "--background_preservation_loss", "Guide the background towards the photo instead or too.")
    ] = False,
    lpips_sim_lambda: Annotated[
        float | None,
        flag(METHOD, "--lpips_sim_lambda", "Weight of the perceptual part of that. [default: 1000]", "X", scale),
    ] = None,
    l2_sim_lambda: Annotated[
        float | None,
        flag(METHOD, "--l2_sim_lambda", "Weight of the squared part of that. [default: 10000]", "X", scale),
    ] = None,
    no_enforce_background: Annotated[
        bool, flag(METHOD, "--no_enforce_background", "Do not put the photo's own pixels back outside the mask.")
    ] = False,
    match_release: Annotated[
        bool, flag(METHOD, "--match-release", "Do as the released code where it differs from the paper.")
    ] = False,
    timestep_respacing: Annotated[
        int | None, flag(RELEASED, "--timestep_respacing", "As --num-inference-steps.", "N", count)
    ] = None,
    skip_timesteps: Annotated[
        int | None,
        flag(RELEASED, "--skip_timesteps", "Skip the first K of N steps: --strength (N−K)/N.", "K", whole_number(0)),
    ] = None,
    clip_guidance_lambda: Annotated[
        float | None, flag(RELEASED, "--clip_guidance_lambda", "As --clip-guidance-scale.", "X", scale)
    ] = None,
    range_lambda: Annotated[
        float | None, flag(RELEASED, "--range_lambda", "As --range-guidance-scale.", "X", scale)
    ] = None,
    aug_num: Annotated[
        int | None, flag(RELEASED, "--aug_num", "As --num-augmentations.", "N", whole_number(0))
    ] = None,
    iterations_num: Annotated[
        int | None, flag(RELEASED, "--iterations_num", "As --num-images, in batches of --batch_size.", "N", count)
    ] = None,
    model_output_size: Annotated[
        int | None, flag(RELEASED, "--model_output_size", "Refuse a --model of another size.", "PIXELS", count)
    ] = None,
    gpu_id: Annotated[
        int | None, flag(RELEASED, "--gpu_id", "As --device cuda:N; without CUDA, the CPU.", "N", whole_number(0))
    ] = None,
    model: Annotated[
        str, flag(MACHINE, "--model", "The bundled one, a converted model's folder, or a Hub id.", "NAME")
    ] = "bundled",
    batch_size: Annotated[
        int, flag(MACHINE, "--batch_size", "Candidates computed together; halved when memory runs out.", "N", count)
    ] = 4,
    device: Annotated[
        str | None, flag(MACHINE, "--device", "cpu, cuda, cuda:1, mps … [default: what there is]", "NAME")
    ] = None,
    dtype: Annotated[
        str | None,
        flag(
            MACHINE,
            "--dtype",
            "Of the networks. [default: accelerate's mixed precision, else float32]",
            "float32|bfloat16|float16",
            one_of("float32", "bfloat16", "float16"),
        ),
    ] = None,
    quiet: Annotated[bool, flag(MACHINE, "--quiet", "No progress and no summary.")] = False,
) -> None:
    steps = either(**{"--num-inference-steps": num_inference_steps, "--timestep_respacing": timestep_respacing})
    either(**{"--strength": strength, "--skip_timesteps": skip_timesteps})
    clip_scale = either(
        **{"--clip-guidance-scale": clip_guidance_scale, "--clip_guidance_lambda": clip_guidance_lambda}
    )
    range_scale = either(**{"--range-guidance-scale": range_guidance_scale, "--range_lambda": range_lambda})
    copies = either(**{"--num-augmentations": num_augmentations, "--aug_num": aug_num})
    either(**{"--num-images": num_images, "--iterations_num": iterations_num})
    total = num_images or (4 if iterations_num is None else iterations_num * batch_size)
    either(**{"--device": device, "--gpu_id": gpu_id})
    stem = stem_of(output_file)
    if invert_mask and mask is None:
        raise ValueError("--invert_mask needs a --mask to invert.")
    if not background_preservation_loss and (lpips_sim_lambda, l2_sim_lambda) != (None, None):
        show("note: --lpips_sim_lambda and --l2_sim_lambda do nothing without --background_preservation_loss")

    # what is wrong with the files is said before torch is waited for
    from blended_diffusion import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if mask is None else inputs.read_mask(mask, photo.image.size, invert_mask, "--mask")

    from blended_diffusion import candidates, machine
    from blended_diffusion.records import Run

    folder = Path(output_path)
    earlier = candidates.find_run(folder, "--output_path") if resume else None
    place = machine.find_device(machine.released_device(gpu_id) if gpu_id is not None else device, "--device")
    machine.be_reproducible(None if earlier is None else earlier.made_with.threads)
    loaded = load(model, machine.find_dtype(dtype, "--dtype"), place)
    if model_output_size not in (None, loaded.size):
        raise ValueError(
            f"--model_output_size {model_output_size}: --model {loaded.name!r} makes pictures of"
            f" {loaded.size}×{loaded.size}; give --model one of {model_output_size} pixels, made by `blended-diffusion"
            " convert` from the published checkpoint of that size."
        )
    if loaded.name == "bundled":
        hint_at_words(prompt)
    if skip_timesteps is not None:
        whole = steps or loaded.pipe.config.default_num_inference_steps
        if skip_timesteps >= whole:
            raise ValueError(
                f"--skip_timesteps {skip_timesteps} leaves none of {whole} steps; give less than {whole}."
            )
        strength = (whole - skip_timesteps) / whole

    settings = EditSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        strength=strength,
        clip_guidance_scale=clip_scale,
        range_guidance_scale=range_scale,
        num_augmentations=copies,
        guidance_gradient=guidance_gradient,
        blend=not local_clip_guided_diffusion,
        enforce_background=not no_enforce_background,
        match_release=match_release,
        ddim=ddim,
        invert_mask=invert_mask,
        ranking=ranking,
        context=context,
    )
    if background_preservation_loss:
        settings = replace(
            settings,
            background_lpips_scale=1000.0 if lpips_sim_lambda is None else lpips_sim_lambda,
            background_mse_scale=10000.0 if l2_sim_lambda is None else l2_sim_lambda,
        )
    job = candidates.Edit.prepare(loaded, photo, region, settings)
    seeds = list(range(seed, seed + total))
    run = Run(
        settings=job.settings,
        **job.origins,
        seed=seed,
        batch_size=batch_size,
        stem=stem,
        film=vid_format if vid else None,
        assets=export_assets,
        batches=candidates.split(seeds, batch_size),
        made_with=machine.describe(place, loaded.pipe.unet.dtype),
    )
    results = candidates.Results.open(folder, run, resume, "--output_path")
    if earlier is not None and (changed := earlier.made_with.differences(run.made_with)):
        show(
            f"note: what is finished was made with another {', '.join(changed)}; the rest may differ in its last bits"
        )
    make_all(job, results, seeds, keep=resume, quiet=quiet)


@app.command()
def replay(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A PNG that `edit` made.")],
    init_image: Annotated[
        str | None, flag(INPUT, "--init_image -i", "The photo. [default: where it was]", "FILE")
    ] = None,
    mask: Annotated[str | None, flag(INPUT, "--mask", "The mask. [default: where it was]", "FILE")] = None,
    output_path: Annotated[
        str | None, flag(OUTPUT, "--output_path", "What to write. [default: PICTURE_replay.png, beside it]", "FILE")
    ] = None,
    model: Annotated[
        str | None, flag(MACHINE, "--model", "The model. [default: the one that was used]", "NAME")
    ] = None,
    device: Annotated[
        str | None, flag(MACHINE, "--device", "cpu, cuda, cuda:1, mps … [default: what there is]", "NAME")
    ] = None,
    quiet: Annotated[bool, flag(MACHINE, "--quiet", "No progress and no summary.")] = False,
) -> None:
    """Make a picture again from what it remembers of its making, and say whether the pixels are equal.

    They are on the same kind of machine. The photo, the mask and the model must be unchanged.
    """
    from PIL import Image

    from blended_diffusion import inputs

    record = inputs.read_record(picture, "PICTURE")
    photo = inputs.read_photo(init_image or record.photo.name, recorded(init_image, "--init_image"))
    refuse_changed(record.photo, photo.sha256, photo.path, "--init_image")
    region = None
    if record.mask is not None:
        size, invert = photo.image.size, record.settings.invert_mask
        region = inputs.read_mask(mask or record.mask.name, size, invert, recorded(mask, "--mask"))
        refuse_changed(record.mask, region.sha256, region.path, "--mask")
    files = [Path(picture), photo.path] + ([] if region is None else [region.path])
    target = replay_target(Path(picture), output_path, files)

    from blended_diffusion import candidates, gallery, machine
    from blended_diffusion.records import to_json

    place = machine.find_device(device, "--device")
    machine.be_reproducible(record.made_with.threads)
    loaded = load(model or record.model.name, machine.find_dtype(record.made_with.dtype), place)
    refuse_changed(record.model, loaded.sha256, loaded.name, "--model")

    job = candidates.Edit.prepare(loaded, photo, region, record.settings)
    job.model.pipe.set_progress_bar_config(disable=quiet, desc="steps")
    candidate = candidates.make_again(job, record)
    made_with = machine.describe(place, loaded.pipe.unet.dtype)
    again = job.finish(candidate)
    gallery.write_png(again, target, photo.icc_profile, to_json(job.record(candidate, made_with)))
    if not quiet:
        with Image.open(picture) as original:
            difference = candidates.largest_difference(original, again)
        typer.echo(f"{target}: {verdict(difference, record.made_with.differences(made_with))}")


app.command("convert")(convert_command)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments (`list[str]`, *optional*): the command line without the program's name; `sys.argv`'s if left out.

    Returns:
        `int`: the exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(as_flags(arguments) or ["--help"], prog_name="blended-diffusion", standalone_mode=False) or 0
    except TyperException as error:
        return fail(error.format_message(), error.exit_code)
    except ValueError as error:
        return fail(str(error), 2)
    except (ArithmeticError, ImportError, MemoryError, OSError) as error:
        return fail(str(error), 1)


def fail(message: str, exit_code: int) -> int:
    show(f"blended-diffusion: error: {' '.join(message.split())}")
    return exit_code
