"""The folder that an edit is written to: what it holds, what is finished in it, and whether it may be used.

What belongs here decides when a picture counts as finished, what is written of it, and that nothing which somebody
might want to keep is overwritten. Making pictures does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from blended_diffusion.editing.edit import Candidate, Edit
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.processes import ALONE, Team
from blended_diffusion.editing.records import Record, Run, from_json, in_batches, to_json
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.whole_files import writing_to


T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------------
# Any folder that something is written to: may it be, and what does it hold
# ---------------------------------------------------------------------------------------------------------------------


def read_if_there(kind: type[T], path: Path, argument: str = "folder") -> T | None:
    """What a folder's JSON file remembers, as the dataclass `kind`; `None` if there is no such file.

    Args:
        kind (`type`): such as [`Run`].
        path (`Path`): of the file.
        argument (`str`): what to call its folder in error messages.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return from_json(kind, path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{argument} {str(path.parent)!r} has a damaged {path.name} ({error}); give another folder."
        ) from None


def find_run(folder: Path, argument: str = "folder") -> Run | None:
    """The run that `folder` holds, if any.

    Raises:
        ValueError: its `run.json` is damaged.
    """
    return read_if_there(Run, folder / "run.json", argument)


def refusal(folder: Path, held: str, argument: str = "folder") -> ValueError:
    """What to raise where `folder` holds something, such as `"another edit"`, that must not be overwritten."""
    return ValueError(f"{argument} {str(folder)!r} holds {held}; give another folder.")


def refuse_if_used(folder: Path, held: str, argument: str = "folder", below: bool = False) -> None:
    """Raises the [`refusal`] if `folder` holds finished pictures of the run that its `run.json` describes.

    Args:
        folder (`Path`): what is to be written to. What came to nothing stands in nobody's way.
        held (`str`): what it then holds, for the message.
        argument (`str`): what to call `folder` in error messages.
        below (`bool`): ask for pictures of any run instead, in it or in its subfolders.

    Raises:
        ValueError: it does, or its `run.json` is damaged.
    """
    if below:
        used = next(folder.rglob("ranked/*.json"), None) is not None
    else:
        run = find_run(folder, argument)
        used = run is not None and next(Results(folder, run).records(), None) is not None
    if used:
        raise refusal(folder, held, argument)


# ---------------------------------------------------------------------------------------------------------------------
# The folder of one edit
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """A folder of results: `run.json`, `ranked/`, `films/`, `assets/`, `contact_sheet.png`, `before_after.png`.

    A picture is finished when its JSON file is there, which is written last. Nothing finished is ever deleted.

    Attributes:
        folder (`Path`), run ([`Run`]): where it is and what it is about.
        team ([`Team`]): the processes that make its pictures; their first one opens it.
    """

    folder: Path
    run: Run
    team: Team = ALONE

    @classmethod
    def open(cls, folder: Path, run: Run, resume: bool, argument: str = "folder", team: Team = ALONE) -> "Results":
        """Opens `folder` for `run`, making it if need be.

        Args:
            folder (`Path`): where to write.
            run (`Run`): what is wanted.
            resume (`bool`): go on with the run that is there, in its batches, so that what is still to be made comes
                out as it would have without the interruption.
            argument (`str`): what to call `folder` in error messages.
            team ([`Team`]): as above.

        Raises:
            ValueError: the folder holds a different run, or cannot be written to.
        """
        with writing_to(folder, argument):
            (folder / "ranked").mkdir(parents=True, exist_ok=True)
            earlier = find_run(folder, argument)
            if earlier is not None and (differences := earlier.differences(run)):
                held = f"another edit ({earlier.settings.prompt!r}; different are: {', '.join(differences)})"
                refuse_if_used(folder, held, argument)
                earlier = None  # it came to nothing and stands in nobody's way
            if earlier is not None and resume:
                new = [seed for seed in run.seeds if seed not in earlier.seeds]
                run = replace(run, batches=cls(folder, earlier).batches_as_made() + in_batches(new, run.batch_size))
            results = cls(folder, run, team)
            results.write_run()
        return results

    def write_run(self) -> None:
        """Writes `run.json`, in the first process."""
        if self.team.index == 0:
            gallery.write_text(to_json(self.run, indent=2) + "\n", self.folder / "run.json")

    def records(self) -> Iterator[tuple[Path, Record]]:
        """The pictures of this run that are whole."""
        for path in (self.folder / "ranked").glob("*.json"):
            try:
                record = from_json(Record, path.read_bytes())
            except ValueError:
                continue  # not one of ours
            picture = path.with_suffix(".png")
            if picture.exists() and not self.run.differences(record):
                yield picture, record

    def finished(self) -> list[gallery.Entry]:
        """The pictures of this run that are whole, best first."""
        entries = [gallery.Entry(path, record.clip_distance, record.seed) for path, record in self.records()]
        return sorted(entries, key=lambda entry: (entry.clip_distance, entry.seed))

    def batches_as_made(self) -> list[list[int]]:
        """The run's batches, those split that a process has found too large for its memory.

        Only the first process writes `run.json`, but each picture remembers its batch.
        """
        made = {record.seed: record.batch for _, record in self.records()}
        batches = []
        for batch in self.run.batches:
            parts = [made[seed] for seed in batch if seed in made and set(made[seed]) < set(batch)]
            smallest = min(map(len, parts), default=len(batch))
            while batch:
                part = made[batch[0]] if batch[0] in made and made[batch[0]] in parts else batch[:smallest]
                batches.append(part)
                batch = batch[len(part) :]
        return batches

    def write(self, edit: Edit, candidate: Candidate, made_with: MadeWith) -> gallery.Entry:
        """Writes all there is of one candidate, its JSON file last."""
        run, profile = self.run, edit.photo.icc_profile
        name = f"{candidate.clip_distance:.4f}_{run.stem}_seed_{candidate.seed}"
        if run.film is not None or run.strip is not None:
            films = self.folder / "films"
            films.mkdir(exist_ok=True)
            near = edit.canvas.close_up(512)
            steps = [near.paste(step, edit.keep_background) for step in (*candidate.steps, candidate.image)]
            if run.film is not None:
                gallery.write_film(gallery.film(near.photo, steps), films / f"{name}.{run.film}")
            if run.strip is not None:
                strip = gallery.strip_of_steps(near.photo, steps[:-1], run.strip, edit.settings.prompt)
                gallery.write_png(strip, films / f"{name}.png", profile)
        if run.assets:
            assets = self.folder / "assets"
            assets.mkdir(exist_ok=True)
            gallery.write_png(edit.canvas.model_image, assets / f"{run.stem}.png", profile)
            gallery.write_png(edit.canvas.model_greys, assets / f"{run.stem}_mask.png")
            gallery.write_png(candidate.image, assets / f"{run.stem}_seed_{candidate.seed}.png", profile)
        record = edit.record(candidate, made_with)
        picture = self.folder / "ranked" / f"{name}.png"
        gallery.write_png(edit.finish(candidate), picture, profile, to_json(record))
        gallery.write_text(to_json(record, indent=2) + "\n", picture.with_suffix(".json"))
        return gallery.Entry(picture, candidate.clip_distance, candidate.seed)

    def write_sheets(self, edit: Edit) -> list[gallery.Entry]:
        """Writes the contact sheet and before/after of all that is finished, and returns it, best first."""
        entries, canvas, title = self.finished(), edit.canvas, edit.settings.prompt
        shown = (canvas.photo, canvas.mask, canvas.view)
        sheet = gallery.contact_sheet(*shown, entries, title)
        gallery.write_png(sheet, self.folder / "contact_sheet.png", edit.photo.icc_profile)
        strip = gallery.before_after(*shown, entries[0].path, title)
        gallery.write_png(strip, self.folder / "before_after.png", edit.photo.icc_profile)
        return entries
