"""Many photos: jobs done one after another into a folder each, one bad one not stopping the others.

What belongs here decides what is done already, what becomes of failures, and the summary. What a job may ask for
belongs to `job_files`, how its steps are taken to `applications.steps`.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from blended_diffusion.applications.job_files import Job
from blended_diffusion.applications.steps import (
    RESULT,
    keep_result,
    overview,
    ranked_picture,
    run_step,
    run_steps,
    step_folder,
    within,
)
from blended_diffusion.editing.editor import Edited, FolderEditor
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.inputs import read_photo


# of a finished job, in its folder; written last
NOTE = "job.json"

# of the jobs, on the overview
JOBS_SHOWN = 20


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job: a line of the summary.

    Attributes:
        name (`str`): of its folder.
        where (`str`): where it was read.
        image (`str`): the photo.
        status (`str`): `"made"`, `"kept"` (it was finished before), `"failed"` or, before it is its turn, `"waiting"`.
        picture (`str`): its best picture, relative to the summary.
        clip_distance (`float`, *optional*), seed (`int`, *optional*): of that picture; several steps have their own.
        message (`str`): why it failed.
    """

    name: str
    where: str
    image: str
    status: str
    picture: str = ""
    clip_distance: float | None = None
    seed: int | None = None
    message: str = ""


def run_jobs(editor: FolderEditor, jobs: Sequence[Job]) -> Iterator[JobOutcome]:
    """Does the jobs, each in the subfolder of its name; those that are finished are only looked up, and come first.

    A job counts as finished while what it asks for, the model, and the size and date (or else the contents) of its
    files are what they were and its best picture is there. `editor.resume=False` makes all again.

    Args:
        editor ([`FolderEditor`]): makes the pictures.
        jobs (`Sequence[Job]`): as from [`~blended_diffusion.applications.job_files.read_jobs`].

    Yields:
        [`JobOutcome`]: of each job when it is done.
    """
    left = []
    for job in jobs:
        outcome = finished(editor, job) if job.complaint is None and editor.resume else None
        if outcome is None:
            left.append(job)
        else:
            yield outcome
    for job in left:
        if job.complaint is not None:
            yield failure(job, job.complaint)
            continue
        try:
            yield run_job(editor, job)
        except (ValueError, ArithmeticError, MemoryError, OSError) as error:
            yield failure(job, f"{job.where}: {' '.join(str(error).split())}")


def run_job(editor: FolderEditor, job: Job) -> JobOutcome:
    """Does one job and notes it down as finished.

    Raises:
        ValueError, ArithmeticError, MemoryError, OSError: it cannot be done.
    """
    if job.image is None:
        raise ValueError(job.complaint)
    photo = read_photo(job.image, "image")
    inputs = fingerprints(job)
    job_editor = within(editor, job.name, None if job.several else job.steps[0])
    distance = seed = None
    if job.several:
        run_steps(job_editor, photo, job.steps, job.name)
        picture = job_editor.folder / step_folder(len(job.steps)) / RESULT
    else:
        done = run_step(job_editor, photo, job.steps[0])
        is_edit = job.steps[0].application is None
        ranked = ranked_picture(job_editor, done) if is_edit and isinstance(done, Edited) else None
        if ranked is None:
            keep_result(job_editor, done, photo)
        picture = ranked or job_editor.folder / RESULT
        if isinstance(done, Edited):
            distance, seed = done.clip_distances[0], done.seeds[0]
    shown = str(picture.relative_to(editor.folder))
    best = {"picture": shown, "clip_distance": distance, "seed": seed}
    note = {"wish": request_of(editor, job), "inputs": inputs, "best": best}
    gallery.write_text(json.dumps(note, indent=2) + "\n", job_editor.folder / NOTE)
    return JobOutcome(job.name, job.where, str(job.image), "made", shown, distance, seed)


def finished(editor: FolderEditor, job: Job) -> JobOutcome | None:
    """What became of a job that is finished, without decoding a picture; `None` if it is not or has changed."""
    try:
        note = json.loads((editor.folder / job.name / NOTE).read_text(encoding="utf-8"))
        best, inputs, request = note["best"], note["inputs"], note["wish"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if request != json.loads(json.dumps(request_of(editor, job))) or not (editor.folder / best["picture"]).exists():
        return None
    if set(inputs) != {str(path) for path in files_of(job)}:
        return None
    if not all(is_unchanged(Path(path), before) for path, before in inputs.items()):
        return None
    return JobOutcome(job.name, job.where, str(job.image), "kept", **best)


def request_of(editor: FolderEditor, job: Job) -> dict[str, Any]:
    """All that decides a job's pictures, but for its files' contents."""
    shared = {"model": editor.model.sha256, "seed": editor.seed, "num_images": editor.num_images, "stem": editor.stem}
    return {**job.as_written, **shared}


def files_of(job: Job) -> list[Path]:
    images = [] if job.image is None else [job.image]
    return images + [path for step in job.steps for path in step.files]


def fingerprints(job: Job) -> dict[str, dict[str, Any]]:
    """Of each file of a job its size, its date and its contents' hash."""
    return {str(path): {**_stat(path), "sha256": _sha256_of(path)} for path in files_of(job)}


def is_unchanged(path: Path, before: dict[str, Any]) -> bool:
    """Whether a file has the size and date it had, or else the contents."""
    if not path.exists():
        return False
    now = _stat(path)
    return now == {name: before.get(name) for name in now} or _sha256_of(path) == before.get("sha256")


def _stat(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def failure(job: Job, message: str) -> JobOutcome:
    return JobOutcome(job.name, job.where, "" if job.image is None else str(job.image), "failed", message=message)


def write_summary(outcomes: Sequence[JobOutcome], folder: Path) -> None:
    """Writes `summary.csv` and `summary.json`, a line or an object for each job, and the first pictures as one."""
    rows = [asdict(outcome) for outcome in outcomes]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(JobOutcome.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    gallery.write_text(table.getvalue(), folder / "summary.csv")
    gallery.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", folder / "summary.json")
    pictures: list[PIL.Image.Image] = []
    labels = []
    for outcome in outcomes:
        if outcome.picture and len(pictures) < JOBS_SHOWN:
            with PIL.Image.open(folder / outcome.picture) as picture:
                pictures.append(picture.copy())
            labels.append(outcome.name)
    if pictures:
        note = f"{len(pictures)} of {len(outcomes)} jobs"
        gallery.write_png(overview(pictures, labels, folder.name, note), folder / "overview.png")
