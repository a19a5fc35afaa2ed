"""`blended-diffusion batch`: many photos."""

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from blended_diffusion.commands.flags import Context, MachineFlags, MethodFlags, Quiet, ResumingOutputFlags
from blended_diffusion.commands.groups import INPUT, flag, with_groups
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.parsers import Places
from blended_diffusion.commands.running import hint_at_words, open_editor, show
from blended_diffusion.painters.settings import EditSettings


@dataclass(frozen=True)
class SearchedMaskFlags(MaskFlags):
    """What to look for in photos without a mask."""

    # there are no such flags
    mask: str | None = None
    mask_alpha: str | None = None
    mask_difference: str | None = None
    box: Places | None = None
    polygon: Places | None = None
    click: Places | None = None
    mask_threshold: float | None = None
    invert_mask: bool = False
    click_model: str | None = None

    def __post_init__(self) -> None:
        if self.mask_prompt is None and (self.grow or self.mask_prompt_model):
            name = "--grow" if self.grow else "--mask-prompt-model"
            raise ValueError(f"{name} needs --mask-prompt, which says what to look for in photos without a mask.")

    @property
    def described(self) -> dict[str, str | float | None] | None:
        """The mask as a job describes it."""
        if self.mask_prompt is None:
            return None
        return {"words": self.mask_prompt, "model": self.mask_prompt_model, "grow": self.grow}


@with_groups
def batch_command(
    jobs: Annotated[
        str,
        typer.Argument(
            metavar="JOBS",
            help="A CSV, JSONL, YAML or JSON file, or a folder of photos, each with a NAME_mask.png beside it.",
        ),
    ],
    prompt: Annotated[
        str | None, flag(INPUT, "--prompt -p", "What regions should show where a job does not say.", "WORDS")
    ] = None,
    *,
    method: MethodFlags,
    mask: SearchedMaskFlags,
    output: ResumingOutputFlags,
    context: Context = EditSettings.context,
    machine: MachineFlags,
    quiet: Quiet = False,
) -> None:
    """Edit many photos: each job into a folder of its own, and a summary with the best picture of each.

    What is finished is kept and only looked up. A job that cannot be done is told in one sentence and does not stop
    the others; if there are any, the exit code is 1. Flags are for jobs that do not say otherwise.
    """
    from blended_diffusion.applications.job_files import read_jobs

    defaults = {"prompt": prompt, **method.settings, "context": context, "mask": mask.described}
    found = read_jobs(jobs, {key: value for key, value in defaults.items() if value is not None}, "JOBS")
    refused = {job.where: job.complaint for job in found if job.complaint is not None}
    for complaint in refused.values():
        show(f"failed: {complaint}")

    from tqdm.auto import tqdm

    from blended_diffusion.applications.batch import JobOutcome, run_jobs, write_summary
    from blended_diffusion.editing.editor import make_quietly

    folder = output.folder
    editor = open_editor(output, machine, quiet)
    editor.make = make_quietly
    editor.model.pipe.set_progress_bar_config(disable=quiet, desc="steps", leave=False)
    hint_at_words(editor.model, " ".join(words for job in found for step in job.steps for words in step.words))
    outcomes = {job.where: JobOutcome(job.name, job.where, str(job.image or ""), "waiting") for job in found}
    counts = dict.fromkeys(("made", "kept", "failed"), 0)
    with tqdm(total=len(found), desc="jobs", unit="job", disable=quiet) as bar:
        try:
            for outcome in run_jobs(editor, found):
                if outcome.status == "failed" and outcome.where not in refused:
                    bar.write(f"failed: {outcome.message}", file=sys.stderr)
                outcomes[outcome.where] = outcome
                counts[outcome.status] += 1
                bar.set_postfix_str(", ".join(f"{count} {status}" for status, count in counts.items()), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            done = counts["made"] + counts["kept"]
            show(f"interrupted: {done} of {len(found)} jobs are finished; the same command goes on")
            raise
        finally:
            write_summary(list(outcomes.values()), folder)
    if not quiet:
        typer.echo(f"{', '.join(f'{count} {status}' for status, count in counts.items())}: {folder / 'summary.csv'}")
    if counts["failed"]:
        raise typer.Exit(1)
