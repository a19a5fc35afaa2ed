"""`blended-diffusion batch`: many photos."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from blended_diffusion.commands.flags import (
    INPUT,
    BatchSize,
    ClipScale,
    Context,
    Device,
    Dtype,
    Grow,
    MaskPrompt,
    MaskPromptModel,
    ModelName,
    NegativePrompt,
    NumImages,
    OutputPath,
    Quiet,
    Seed,
    Steps,
    Strength,
    flag,
)
from blended_diffusion.commands.running import hint_at_words, open_editor, show
from blended_diffusion.commands.steps import KeepFinished
from blended_diffusion.painters.settings import EditSettings


def batch(
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
    negative_prompt: NegativePrompt = None,
    mask_prompt: MaskPrompt = None,
    grow: Grow = 0.0,
    output_path: OutputPath = "output",
    num_images: NumImages = 4,
    seed: Seed = 404,
    resume: KeepFinished = True,
    num_inference_steps: Steps = None,
    strength: Strength = None,
    clip_guidance_scale: ClipScale = None,
    context: Context = EditSettings.context,
    mask_prompt_model: MaskPromptModel = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Edit many photos: each job into a folder of its own, and a summary with the best picture of each.

    What is finished is kept and only looked up. A job that cannot be done is told in one sentence and does not stop
    the others; if there are any, the exit code is 1. Flags are for jobs that do not say otherwise.
    """
    from blended_diffusion.applications.job_files import read_jobs

    if mask_prompt is None and (grow or mask_prompt_model):
        name = "--grow" if grow else "--mask-prompt-model"
        raise ValueError(f"{name} needs --mask-prompt, which says what to look for in photos without a mask.")
    defaults = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "strength": strength,
        "clip_guidance_scale": clip_guidance_scale,
        "context": context,
        "mask": None if mask_prompt is None else {"words": mask_prompt, "model": mask_prompt_model, "grow": grow},
    }
    wanted = read_jobs(jobs, {key: value for key, value in defaults.items() if value is not None}, "JOBS")
    told = {job.where: job.complaint for job in wanted if job.complaint is not None}
    for complaint in told.values():
        show(f"failed: {complaint}")

    from tqdm.auto import tqdm

    from blended_diffusion.applications.batch import JobOutcome, run_jobs, write_summary
    from blended_diffusion.editing.editor import make_quietly

    folder = Path(output_path)
    editor = open_editor(folder, model, device, dtype, seed, num_images, batch_size, resume, quiet)
    editor.make = make_quietly
    editor.model.pipe.set_progress_bar_config(disable=quiet, desc="steps", leave=False)
    hint_at_words(editor.model, " ".join(words for job in wanted for step in job.steps for words in step.words))
    outcomes = {job.where: JobOutcome(job.name, job.where, str(job.image or ""), "waiting") for job in wanted}
    counts = dict.fromkeys(("made", "kept", "failed"), 0)
    with tqdm(total=len(wanted), desc="jobs", unit="job", disable=quiet) as bar:
        try:
            for outcome in run_jobs(editor, wanted):
                if outcome.status == "failed" and outcome.where not in told:
                    bar.write(f"failed: {outcome.message}", file=sys.stderr)
                outcomes[outcome.where] = outcome
                counts[outcome.status] += 1
                bar.set_postfix_str(", ".join(f"{count} {status}" for status, count in counts.items()), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            done = counts["made"] + counts["kept"]
            show(f"interrupted: {done} of {len(wanted)} jobs are finished; the same command goes on")
            raise
        finally:
            write_summary(list(outcomes.values()), folder)
    if not quiet:
        typer.echo(f"{', '.join(f'{count} {status}' for status, count in counts.items())}: {folder / 'summary.csv'}")
    if counts["failed"]:
        raise typer.Exit(1)
