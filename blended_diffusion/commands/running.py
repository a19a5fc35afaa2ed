"""What commands that edit have in common: loading the model, opening the folder, making pictures under progress bars.

What belongs here shows and calls. The flags are in `flags`.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import typer

from blended_diffusion.commands.model_request import ModelRequest
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.editing.made_with import MadeWith


if TYPE_CHECKING:
    import torch

    from blended_diffusion.commands.flags import FilmFlags, MachineFlags, OutputFlags
    from blended_diffusion.editing.edit import Edit
    from blended_diffusion.editing.editor import FolderEditor
    from blended_diffusion.editing.processes import Team, Worker
    from blended_diffusion.editing.results import Results
    from blended_diffusion.models import Model
    from blended_diffusion.pictures.gallery import Entry


def show(text: str) -> None:
    typer.echo(text, err=True)


def load(request: ModelRequest, dtype: "torch.dtype | None", device: "torch.device") -> "Model":
    """The model that is asked for, on `device`.

    Raises:
        ValueError: there is none, or it cannot save memory so.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    from blended_diffusion import machine
    from blended_diffusion.models import load_model
    from blended_diffusion.painters.choice import painter_for
    from blended_diffusion.painters.memory import MemorySaving

    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    if device.type == "cpu":
        machine.keep_freed_memory()
    model = load_model(
        request.name,
        dtype,
        "--model",
        device,
        request.clip,
        request.loras,
        request.upscaler,
        request.trust_remote_code,
    )
    if request.offload is None:
        model.to(device)
    else:
        model.offload(device, request.offload)
    saving = MemorySaving(
        request.gradient_checkpointing, vae_tiling=request.vae_tiling, vae_slicing=request.vae_slicing
    )
    painter_for(model).save_memory(saving)
    return model


@dataclass(frozen=True)
class Load:
    """What the other processes are asked for first: the model, each on its own device.

    Attributes:
        request ([`ModelRequest`]): which model.
        dtype (`torch.dtype`, *optional*): of its networks; what suits the device if left out.
        device (`str`, *optional*): the kind that was asked for.
        threads (`int`): how many the first process uses on the CPU, where sums are split among them.
    """

    request: ModelRequest
    dtype: "torch.dtype | None"
    device: str | None
    threads: int

    def __call__(self, worker: "Worker") -> None:
        from blended_diffusion import machine

        device = machine.find_device(self.device, "--device")
        machine.be_reproducible(self.threads)
        model = load(self.request, self.dtype, device)
        model.pipe.set_progress_bar_config(disable=True)
        worker.tools = (model, MadeWith.on(device, model.dtype))


def find_team(device: str | None, gpu_id: int | None = None) -> "Team":
    """The processes that this command was started in.

    Raises:
        ValueError: one device is named for all of them.
    """
    from blended_diffusion.editing import processes

    team = processes.join()
    named = f"--gpu_id {gpu_id}" if gpu_id is not None else f"--device {device}"
    if team.count > 1 and (gpu_id is not None or ":" in (device or "")):
        raise ValueError(
            f"{named} is one device, and there are {team.count} processes; leave it out: each takes its own."
        )
    return team


def load_in_all(
    team: "Team",
    request: ModelRequest,
    dtype: "torch.dtype | None",
    asked_device: str | None,
    device: "torch.device",
) -> "Model":
    """The model, on `device` in this process, and in each of the others on its own of the kind asked for.

    Raises:
        ValueError: there is no such model.
        ChildProcessError: another process could not load it.
    """
    import torch

    from blended_diffusion.editing.processes import EXPECTED_ERRORS, Done, problems

    team.ask(Load(request, dtype, asked_device, torch.get_num_threads()))
    try:
        model = load(request, dtype, device)
    except EXPECTED_ERRORS as error:
        team.say(Done(error))
        raise
    if reasons := problems(team.say(Done())):
        raise ChildProcessError("; ".join(reasons))
    return model


def hint_at_words(model: "Model", prompt: str) -> None:
    """Says which words of `prompt` the bundled model does not know, and which it does; of other models nothing."""
    from blended_diffusion.models import BUNDLED
    from blended_diffusion.pictures.inputs import closest_first, unknown_words

    if model.name != BUNDLED:
        return
    if unknown := unknown_words(prompt, KNOWN_WORDS):
        show(
            f"hint: the bundled model does not know {', '.join(map(repr, unknown))}; it knows"
            f" {', '.join(closest_first(unknown, KNOWN_WORDS))}"
        )


def make_all(job: "Edit", results: "Results", seeds: list[int], keep: bool, quiet: bool) -> "list[Entry]":
    """Makes what is missing under two progress bars, then the sheets, and says where they are.

    Returns:
        `list[Entry]`: all that is finished, best first.
    """
    from tqdm.auto import tqdm

    from blended_diffusion import machine
    from blended_diffusion.editing.candidates import make_candidates

    machine.forget_peak(job.model.pipe._execution_device)
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
            finished.update(entry.seed for entry in results.finished())
            done = len(finished.intersection(seeds))
            show(f"interrupted: {done} of {len(seeds)} pictures are finished; --resume makes the others")
            raise
    entries = results.write_sheets(job)
    if not quiet:
        typer.echo(
            f"{len(entries)} picture{'s' * (len(entries) > 1)} in {results.folder / 'ranked'}, the best of them:"
        )
        for entry in entries[:3]:
            typer.echo(f"  {entry.clip_distance:.4f}  seed {entry.seed}  {entry.path.name}")
        typer.echo(f"to look at: {results.folder / 'contact_sheet.png'}, {results.folder / 'before_after.png'}")
        typer.echo(f"peak memory: {machine.peak_memory(job.model.pipe._execution_device) / machine.GIB:.3g} GiB")
    return entries


def note_another_machine(earlier: MadeWith, now: MadeWith) -> None:
    """Says in what the machine of an earlier run differs, whose pictures are kept."""
    if changed := earlier.differences(now):
        show(
            f"note: what is finished was made with another {', '.join(changed)}; the rest may differ in its last bits"
        )


def open_editor(
    output: "OutputFlags", machine: "MachineFlags", quiet: bool, films: "FilmFlags | None" = None
) -> "FolderEditor":
    """The editor that writes where the flags say, with the model on its device.

    Args:
        output ([`OutputFlags`]), machine ([`MachineFlags`]): as they were given.
        quiet (`bool`): no progress bars.
        films ([`FilmFlags`], *optional*): of a command that has such flags.

    Raises:
        ValueError: there is no such model, device or number format.
        ChildProcessError: another process could not load the model.
    """
    from blended_diffusion import machine as machines
    from blended_diffusion.editing.editor import FolderEditor

    team = find_team(machine.device)
    device = machines.find_device(machine.device, "--device")
    machines.be_reproducible()
    dtype = machines.find_dtype(machine.dtype, "--dtype")
    model = load_in_all(team, machine.request, dtype, machine.device, device)
    return FolderEditor(
        model,
        output.folder,
        MadeWith.on(device, model.dtype),
        seed=output.seed,
        num_images=output.num_images,
        batch_size=machine.batch_size,
        resume=output.resume,
        film=None if films is None else films.film,
        strip=None if films is None else films.strip,
        make=partial(make_all, quiet=quiet),
        argument="--output_path",
        team=team,
    )
