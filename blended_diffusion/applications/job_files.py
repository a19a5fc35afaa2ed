"""Jobs on many photos as people write them down: read, and checked beforehand.

What belongs here turns a table, a list or a folder of photos into [`Job`]s; what is wrong with one is kept with it.
Doing them belongs to `batch`, the steps of a job to `step_files`.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from blended_diffusion.applications.keys import STRICT, PictureFile, check_keys, shortened
from blended_diffusion.applications.step_files import Step, parse_step, read_list, read_text


PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Job:
    """One photo and what is to be done with it.

    Attributes:
        name (`str`): of its folder.
        where (`str`): where it was read, for messages.
        image (`Path`, *optional*): the photo; missing if that is what is wrong.
        steps (`list[Step]`): one or several.
        several (`bool`): whether they were given as a list, and so have folders of their own.
        as_written (`dict[str, Any]`): all of it as it was written, to be compared with.
        complaint (`str`, *optional*): a sentence about what is wrong with it.
    """

    name: str
    where: str
    image: Path | None
    steps: list[Step]
    several: bool
    as_written: dict[str, Any]
    complaint: str | None = None


def _plain_name(value: str) -> str:
    if value in ("", ".", "..") or Path(value).name != value:
        raise ValueError("give a plain name without slashes")
    return value


class JobKeys(BaseModel):
    model_config = STRICT
    image: PictureFile
    name: Annotated[str, AfterValidator(_plain_name)] = ""


def read_jobs(path: str | Path, defaults: Mapping[str, Any] | None = None, argument: str = "jobs") -> list[Job]:
    """Reads jobs: from a CSV file with a head line, JSON Lines, a YAML or JSON list, or a folder of photos.

    A job has an `image`, a `name` if need be, and the keys of a step, or `steps`. In a folder every photo that has a
    mask beside it is one, `NAME_mask.png`, or every photo if `defaults` has a mask for all; its prompt is in
    `NAME.txt`, unless `defaults` has one. Files in a file are looked for beside it.

    Args:
        path (`str` or `Path`): the file or folder.
        defaults (`dict`, *optional*): values of keys that jobs leave out.
        argument (`str`): what to call `path` in error messages.

    Returns:
        `list[Job]`: those with which something is wrong have a `complaint`.

    Raises:
        ValueError: there is no such file, it is none of these, or it holds no job.
    """
    path = Path(path)
    rows = _folder_rows(path, "mask" in (defaults or {})) if path.is_dir() else _file_rows(path, argument)
    if not rows:
        raise ValueError(
            f"{argument} {str(path)!r} holds no job; give a file with one in each line, or a folder with a"
            " NAME_mask.png beside each photo."
        )
    folder = path if path.is_dir() else path.parent
    return _name_apart([_parse_job(row, folder, where, defaults or {}) for where, row in rows])


def _parse_job(row: Any, folder: Path, where: str, defaults: Mapping[str, Any]) -> Job:
    name, several = "", False
    image: Path | None = None
    steps: list[Step] = []
    as_written = {"job": row, "defaults": dict(defaults)}
    try:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where} is {shortened(row)}; give keys and values, such as an image and a prompt.")
        several = "steps" in row
        rest = {key: value for key, value in row.items() if key not in ("image", "name", "steps")}
        head = check_keys(JobKeys, {key: row[key] for key in ("image", "name") if key in row}, folder, where)
        image = head["image"]
        name = head.get("name", image.stem)
        if not several:
            steps = [parse_step(rest, folder, where, defaults)]
        elif not isinstance(row["steps"], list) or not row["steps"]:
            raise ValueError(f"{where}: steps is {shortened(row['steps'])}; give a list of one or more steps.")
        else:
            shared = {**defaults, **rest}
            steps = [
                parse_step(one, folder, f"{where}, step {number}", shared)
                for number, one in enumerate(row["steps"], start=1)
            ]
    except ValueError as error:
        return Job(name, where, image, steps, several, as_written, str(error))
    return Job(name, where, image, steps, several, as_written)


def _name_apart(jobs: list[Job]) -> list[Job]:
    """Jobs with a folder each: what was named twice is an error, what takes its photo's name gets a number."""
    taken: dict[str, Job] = {}
    counts: dict[str, int] = defaultdict(lambda: 1)
    named = []
    for job in jobs:
        if job.complaint is None:
            name = job.name
            if "name" in job.as_written["job"] and name in taken:
                complaint = f"{job.where}: name is {name!r}, which {taken[name].where} has too; give each its own."
                job = replace(job, complaint=complaint)
            else:
                while name in taken:
                    counts[job.name] += 1
                    name = f"{job.name}_{counts[job.name]}"
                job = replace(job, name=name)
                taken[name] = job
        named.append(job)
    return named


def _file_rows(path: Path, argument: str) -> list[tuple[str, Any]]:
    text, ending = read_text(path, argument), path.suffix.lower()
    if ending == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""), restkey="more than the head line has")
        rows = []
        for row in table:
            cells = {key: value for key, value in row.items() if value not in (None, "")}
            rows.append((f"line {table.line_num}", cells))
        if table.fieldnames is None or "image" not in table.fieldnames:
            found = ", ".join(table.fieldnames or [])
            raise ValueError(
                f"{argument} {str(path)!r} has the head line {found!r}; give it one such as image,mask,prompt."
            )
        return rows
    if ending == ".jsonl":
        lines = [(f"line {number}", line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        return [(where, _json_line(line)) for where, line in lines]
    return [(f"job {number}", row) for number, row in enumerate(read_list(path, text, argument), start=1)]


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # refused as what it is, together with all else that is wrong


def _folder_rows(folder: Path, without_masks: bool) -> list[tuple[str, Any]]:
    names = {path.name for path in folder.iterdir()}
    rows = []
    for name in sorted(names):
        stem, ending = Path(name).stem, Path(name).suffix.lower()
        if ending not in PICTURE_ENDINGS or name.endswith("_mask.png"):
            continue
        if without_masks or f"{stem}_mask.png" in names:
            row = {"image": name} | ({"mask": f"{stem}_mask.png"} if f"{stem}_mask.png" in names else {})
            if f"{stem}.txt" in names:
                row["prompt"] = (folder / f"{stem}.txt").read_text(encoding="utf-8").strip()
            rows.append((name, row))
    return rows
