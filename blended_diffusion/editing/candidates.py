"""The candidates of an edit: which of them are made together, by which process, and which are still missing.

What belongs here goes through batches, on one process or several, and halves those that do not fit into memory. What a
candidate is belongs to `edit`, where it is written to `results`.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.utils import logging

from blended_diffusion.editing.edit import Edit
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.processes import EXPECTED_ERRORS, Done, LostProcessError, Team, Worker, problems
from blended_diffusion.editing.records import Run, in_batches
from blended_diffusion.editing.results import Results, find_run
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.inputs import Mask, Photo


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Share:
    """What another process is asked for: every `count`-th of the batches, from its own number on.

    Attributes:
        photo, mask, settings: as in [`Edit`].
        folder (`Path`), run ([`Run`]): as in [`Results`].
        batches (`list[list[int]]`), missing (`set[int]`): as in [`make_batches`], of all processes.
    """

    photo: Photo
    mask: Mask | None
    settings: EditSettings
    folder: Path
    run: Run
    batches: list[list[int]]
    missing: set[int]

    def __call__(self, worker: Worker) -> None:
        """Makes it, with the model and for the machine among the worker's tools."""
        model, made_with = worker.tools
        if find_run(self.folder) != self.run:
            raise OSError(
                f"The folder {str(self.folder)!r} is another one here; processes on several machines need one that all"
                " of them see."
            )
        edit = Edit.prepare(model, self.photo, self.mask, self.settings)
        results = Results(self.folder, self.run, worker.team)
        for entry in make_batches(edit, results, dealt(self.batches, worker.team), self.missing, made_with):
            worker.written.append(entry.path.name)


def dealt(batches: list[list[int]], team: Team) -> list[list[int]]:
    """Those of the batches that are this process's."""
    return batches[team.index :: team.count]


def make_candidates(edit: Edit, results: Results, seeds: list[int], keep: bool) -> Iterator[gallery.Entry]:
    """Makes and writes the pictures of `seeds`, batch by batch as `results.run` says; yields each when it is written.

    The batches are dealt out to the processes of `results.team`: how many they are makes no difference to the
    pictures.

    Args:
        edit ([`Edit`]), results ([`Results`]): what to make, and where to write it.
        seeds (`list[int]`): the pictures that are wanted.
        keep (`bool`): leave out what is finished. A batch of which a part is missing is made as a whole, because
            rounding depends on its size, and only the missing part is written.

    Raises:
        MemoryError: not even a single picture fits.
        ChildProcessError: another process could not make all of its pictures. The others are finished.
        LostProcessError: another process has died. The others are finished.
    """
    team, made_with = results.team, results.run.made_with
    before = {entry.seed for entry in results.finished()}
    missing = set(seeds) - (before if keep else set())
    batches = [batch for batch in results.run.batches if not missing.isdisjoint(batch)]
    if team.count == 1:
        yield from make_batches(edit, results, batches, missing, made_with)
        return
    team.ask(Share(edit.photo, edit.mask, edit.settings, results.folder.absolute(), results.run, batches, missing))
    shown: set[int] = set()
    problem: Exception | None = None
    said: list[Done] | None = None
    try:
        for entry in make_batches(edit, results, dealt(batches, team), missing, made_with):
            not_shown = missing - before - shown - {entry.seed}
            by_others = [other for other in results.finished() if other.seed in not_shown]
            shown.update(one.seed for one in (entry, *by_others))
            yield from (entry, *by_others)
    except EXPECTED_ERRORS as error:
        problem = error
    try:
        said = team.say(Done(problem))
        entries = when_listed(results, {name for done in said for name in done.written})
    except LostProcessError:
        entries = results.finished()
    yield from (entry for entry in entries if entry.seed in missing - shown)
    if (batches := results.batches_as_made()) != results.run.batches:
        results.run = replace(results.run, batches=batches)
        results.write_run()
    reasons = ["a process has died"] if said is None else problems(said)
    left = sorted(set(seeds) - {entry.seed for entry in entries})
    if not left and (said is None or not reasons):
        return
    if problem is not None and not (left and entries):
        raise problem
    if entries:
        results.write_sheets(edit)
    why = "; ".join(reasons) or "they are not in the folder"
    if left:
        seeds_left = ", ".join(map(str, left))
        why = f"{len(left)} of {len(seeds)} pictures are missing, of seed {seeds_left} ({why}); --resume makes them."
    raise (LostProcessError if said is None else ChildProcessError)(why)


def when_listed(results: Results, names: set[str], patience: float = 120) -> list[gallery.Entry]:
    """What is finished, once the pictures of these names are among it.

    A folder on another machine is listed as it was up to a minute ago.
    """
    deadline = time.monotonic() + patience
    while True:
        entries = results.finished()
        if names <= {entry.path.name for entry in entries} or time.monotonic() > deadline:
            return entries
        time.sleep(0.2)


def make_batches(
    edit: Edit, results: Results, batches: list[list[int]], missing: set[int], made_with: MadeWith
) -> Iterator[gallery.Entry]:
    """Makes these batches in this process and writes their pictures; yields each when it is written.

    What makes a batch fit into the free memory is switched on first: see [`Painter.make_room`]. One that does not fit
    all the same is halved, and so are all after it.

    Args:
        edit ([`Edit`]), results ([`Results`]): what to make, and where to write it.
        batches (`list[list[int]]`): the seeds of each.
        missing (`set[int]`): the seeds of the pictures to write.
        made_with ([`MadeWith`]): this process's machine.

    Raises:
        MemoryError: not even a single picture fits.
    """
    left = list(batches)
    # by the largest batch of all processes, so that they save memory alike
    if batches and (note := edit.painter.make_room(edit.settings, max(map(len, results.run.batches)))):
        logger.warning(note)
    made_with = replace(made_with, **asdict(edit.painter.memory_saving()))
    while left:
        batch = left.pop(0)
        if missing.isdisjoint(batch):
            continue  # part of one that was halved
        try:
            made = edit.make(batch, watch=results.run.film is not None or results.run.strip is not None)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            made = None  # what the error's traceback holds is freed when this clause ends
        if made is None:
            clear_device_cache(garbage_collection=True)
            if len(batch) == 1:
                raise MemoryError("One picture alone does not fit into the memory of the device.")
            size, too_large = len(batch) // 2, [batch, *left]
            left = [part for whole in too_large for part in in_batches(whole, size)]
            parts = [in_batches(whole, size) if whole in too_large else [whole] for whole in results.run.batches]
            results.run = replace(results.run, batches=[part for whole in parts for part in whole])
            results.write_run()
            logger.warning(f"{len(batch)} pictures at once do not fit into memory: going on with {size}.")
            continue
        for candidate in made:
            if candidate.seed in missing:
                yield results.write(edit, candidate, made_with)
