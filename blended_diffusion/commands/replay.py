"""`blended-diffusion replay`: a picture again, from what it remembers of its making."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blended_diffusion.commands.flags import Device, Quiet
from blended_diffusion.commands.groups import INPUT, MACHINE, OUTPUT, flag
from blended_diffusion.commands.model_request import ModelRequest
from blended_diffusion.commands.running import load
from blended_diffusion.editing.made_with import MadeWith


if TYPE_CHECKING:
    from collections.abc import Sequence

    from blended_diffusion.editing.records import Origin, Record
    from blended_diffusion.model_files import ModelPart


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


def requested(record: "Record", model: str | None, trust_remote_code: bool) -> ModelRequest:
    """The model that a picture was made with, and what was loaded beside it."""
    of_kind: dict[str, list[ModelPart]] = {"clip": [], "lora": [], "upscaler": []}
    for part in record.parts:
        of_kind.setdefault(part.kind, []).append(part)
    without = None if not record.parts else "none"
    return ModelRequest(
        name=model or record.model.name,
        clip=of_kind["clip"][0].name if of_kind["clip"] else without,
        loras=tuple((part.name, part.weight if part.weight is not None else 1.0) for part in of_kind["lora"]),
        upscaler=of_kind["upscaler"][0].name if of_kind["upscaler"] else None,
        trust_remote_code=trust_remote_code,
    )


def refuse_changed_parts(recorded: "Sequence[ModelPart]", loaded: "Sequence[ModelPart]") -> None:
    """Raises a `ValueError` that names the first part of a model that is not the one a picture was made with."""
    for before, now in zip(recorded, loaded, strict=False):
        if before.sha256 != now.sha256:
            raise ValueError(
                f"The {before.kind} {now.name!r} is not what the picture was made with (SHA-256 {now.sha256[:12]}…,"
                f" then {before.sha256[:12]}…); give the one that it was made with."
            )


def verdict(difference: int | None, changed: list[str]) -> str:
    if difference == 0:
        return "pixel for pixel the same"
    reason = f"; another {', '.join(changed)} than then" if changed else ""
    if difference is None:
        return f"not the same: the picture has been resized or converted since{reason}"
    return f"not the same: pixels differ by up to {difference} of 255{reason}"


def replay_command(
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
    trust_remote_code: Annotated[
        bool, flag(MACHINE, "--trust-remote-code", "Run code that comes with a model whose parts are no stock ones.")
    ] = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make a picture again from what it remembers of its making, and say whether the pixels are equal.

    They are on the same kind of machine. The photo, the mask and the model must be unchanged.
    """
    from PIL import Image

    from blended_diffusion.editing.records import read_record
    from blended_diffusion.pictures import inputs

    record = read_record(picture, "PICTURE")
    photo = inputs.read_photo(init_image or record.photo.name, recorded(init_image, "--init_image"))
    refuse_changed(record.photo, photo.sha256, photo.path, "--init_image")
    region = None
    if record.mask is not None:
        region = inputs.read_mask(
            mask or record.mask.name,
            photo.image.size,
            record.settings.invert_mask,
            recorded(mask, "--mask"),
            record.settings.mask_is_change_map,
        )
        refuse_changed(record.mask, region.sha256, region.path, "--mask")
    files = [Path(picture), photo.path] + ([] if region is None else [region.path])
    target = replay_target(Path(picture), output_path, files)

    from blended_diffusion import machine
    from blended_diffusion.editing.edit import Edit, largest_difference, make_again
    from blended_diffusion.editing.records import to_json
    from blended_diffusion.painters.memory import MemorySaving
    from blended_diffusion.pictures import gallery

    found_device = machine.find_device(device, "--device")
    machine.be_reproducible(record.made_with.threads)
    request = requested(record, model, trust_remote_code)
    loaded = load(request, machine.find_dtype(record.made_with.dtype), found_device)
    refuse_changed_parts(record.parts, loaded.parts)
    refuse_changed(record.model, loaded.sha256, loaded.name, "--model")

    job = Edit.prepare(loaded, photo, region, record.settings)
    memory_saving = MemorySaving(
        record.made_with.gradient_checkpointing,
        record.made_with.clip_chunk_size,
        record.made_with.vae_tiling,
        record.made_with.vae_slicing,
    )
    job.painter.save_memory(memory_saving)
    job.model.pipe.set_progress_bar_config(disable=quiet, desc="steps")
    candidate = make_again(job, record)
    made_with = replace(MadeWith.on(found_device, loaded.dtype), **asdict(memory_saving))
    again = job.finish(candidate)
    gallery.write_png(again, target, photo.icc_profile, to_json(job.record(candidate, made_with)))
    if not quiet:
        with Image.open(picture) as original:
            difference = largest_difference(original, again)
        typer.echo(f"{target}: {verdict(difference, record.made_with.differences(made_with))}")
