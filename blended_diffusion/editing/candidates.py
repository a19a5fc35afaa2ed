"""One edit is many candidates: seeds, batches, the folder they are written to, resuming, ranking, making one again.

What belongs here decides which pictures are made together and when they count as finished. The method is the
pipeline's, the layout of pictures the gallery's.
"""

import copy
import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import PIL.Image
import PIL.ImageChops
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import DDIMScheduler
from diffusers.utils import logging

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.memory import MemorySaving, make_room
from blended_diffusion.editing.processes import ALONE, EXPECTED_ERRORS, Done, LostProcessError, Team, Worker, problems
from blended_diffusion.editing.records import Origin, Record, Run, from_json, to_json
from blended_diffusion.models import Model
from blended_diffusion.painters.object_scale import scale_penalties
from blended_diffusion.painters.regions import RegionMask, RegionsPipeline, read_regions, region_arguments
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.shrinking_masks import ShrinkingMask, growth_of
from blended_diffusion.painters.windows import REFINING_STRENGTH, WindowedPipeline, enlarged
from blended_diffusion.painters.words import blended_embeds, prompt_arguments
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask, Photo
from pipeline_blended_diffusion import BlendedDiffusionPipeline


logger = logging.get_logger(__name__)

# the settings of these names are the pipeline's business, the others ours
PIPELINE_ARGUMENTS = frozenset(inspect.signature(BlendedDiffusionPipeline.__call__).parameters)


@dataclass(frozen=True)
class Candidate:
    """One picture as the model made it.

    Attributes:
        seed (`int`): its own.
        batch (`list[int]`): the seeds of the batch it was computed in.
        clip_distance (`float`): lower is better.
        image (`PIL.Image.Image`): of the model's size, or `detail` times that.
        steps (`list[PIL.Image.Image]`): the clean estimate after each step, if it was watched.
    """

    seed: int
    batch: list[int]
    clip_distance: float
    image: PIL.Image.Image
    steps: list[PIL.Image.Image]


@dataclass(frozen=True)
class Edit:
    """What all candidates of an edit share.

    Attributes:
        model (`Model`): on its device.
        photo (`Photo`), mask (`Mask`, *optional*): without a mask all of the photo is edited.
        settings (`EditSettings`): with the model's defaults filled in.
        canvas (`Canvas`): the photo, the mask and the square round it, for pictures of the model's size.
    """

    model: Model
    photo: Photo
    mask: Mask | None
    settings: EditSettings
    canvas: Canvas

    @classmethod
    def prepare(cls, model: Model, photo: Photo, mask: Mask | None, settings: EditSettings) -> "Edit":
        """Fills in the model's defaults, gives it the scheduler that is wanted, and finds the square.

        Raises:
            ValueError: the mask is too thin for the model, there is no step to take, or windows cannot refine this.
        """
        if settings.detail < 1:
            raise ValueError(f"`detail` is {settings.detail}; expected a whole number of at least 1.")
        if settings.detail > 1 and (settings.region_prompts is not None or not settings.blend):
            what = "several regions at once" if settings.blend else "local CLIP-guided diffusion"
            raise ValueError(f"`detail` {settings.detail} does not go with {what}; give 1.")
        if settings.object_scale and (settings.region_prompts is not None or settings.prompt == ""):
            what = "several regions at once" if settings.region_prompts is not None else "no words"
            raise ValueError(f"`object_scale` {settings.object_scale} does not go with {what}; give 0.")
        pipe = model.pipe
        if settings.ddim:
            # for this edit alone: others take the model's own steps
            pipe = copy.copy(pipe)
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        if settings.region_prompts is not None:
            pipe = RegionsPipeline.of(pipe)
            mask = mask if isinstance(mask, RegionMask) else read_regions(mask)
        model = replace(model, pipe=pipe)
        defaults = {
            key.removeprefix("default_"): value for key, value in pipe.config.items() if key.startswith("default_")
        }
        defaults["guidance_gradient"] = pipe.gradient_left_out(settings.match_release)
        chosen = {key: value for key, value in asdict(settings).items() if value is not None}
        settings = replace(settings, **{**defaults, **chosen})
        pipe.check_steps(settings.num_inference_steps, settings.strength)
        mask_image = PIL.Image.new("L", photo.image.size, 255) if mask is None else mask.image
        canvas = Canvas.around(photo.image, mask_image, model.size, settings.context)
        canvas = replace(canvas, rise=settings.feather)
        if settings.initial_mask_growth is None:
            # the released editor has none, and without words there is no object to make room for
            grows = settings.prompt != "" and not settings.match_release
            settings = replace(settings, initial_mask_growth=growth_of(canvas.model_mask) if grows else 0.0)
        return cls(model, photo, mask, settings, canvas)

    @cached_property
    def fine(self) -> Canvas:
        """The canvas for the pictures as they are made in the end."""
        return self.canvas if self.settings.detail == 1 else replace(self.canvas, size=self.windowed.sample_size[0])

    @cached_property
    def windowed(self) -> WindowedPipeline:
        """The pipeline that refines what the model's own has made."""
        return WindowedPipeline.of(self.model.pipe, self.settings.detail)

    @property
    def keep_background(self) -> bool:
        """Whether the photo's own pixels are put back outside the mask; the released baseline does not."""
        return self.settings.enforce_background and (self.settings.blend or not self.settings.match_release)

    def make(self, seeds: list[int], watch: bool = False) -> list[Candidate]:
        """Makes the pictures of these seeds in one batch.

        Each has a CPU generator of its own, so that it depends neither on the device nor, but for rounding, on the
        others.

        Args:
            seeds (`list[int]`): one for each picture.
            watch (`bool`): keep the clean estimate after each step.

        Raises:
            ValueError: the pipeline does not accept the settings.
            ArithmeticError: the numbers left the range of the model's number format.
        """
        steps: list[list[PIL.Image.Image]] = [[] for _ in seeds]

        shrinking = ShrinkingMask(self.canvas.model_mask, self.settings.initial_mask_growth)

        def keep_estimate(pipe, step: int, timestep, tensors: dict) -> dict:
            if watch:
                estimate = tensors["pred_original_sample"].float()
                pictures = pipe.image_processor.postprocess(estimate, do_denormalize=[True] * len(estimate))
                for own, picture in zip(steps, pictures, strict=True):
                    own.append(picture)
            return {}

        def after_step(*arguments) -> dict:
            return keep_estimate(*arguments) | shrinking(*arguments)

        arguments = {key: value for key, value in asdict(self.settings).items() if key in PIPELINE_ARGUMENTS}
        words = (self.settings.prompt, self.settings.prompt_templates, self.settings.typographic_defence)
        arguments |= prompt_arguments(self.model.pipe, *words)
        if self.settings.prompt_to is not None:
            ends = (self.settings.prompt, self.settings.prompt_to)
            arguments |= {
                "prompt": None,
                "prompt_embeds": blended_embeds(self.model.pipe, *ends, self.settings.prompt_blend),
            }
        if self.settings.region_prompts is not None:
            arguments |= region_arguments(self.model.pipe, self.canvas, self.mask.labels, self.settings)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        out = self.model.pipe(
            image=self.canvas.model_image,
            mask_image=shrinking.first,
            num_images_per_prompt=len(seeds),
            generator=generators,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["pred_original_sample", "mask"],
            **arguments,
        )
        if self.settings.detail > 1:
            out = self.windowed(
                image=[enlarged(image, self.fine) for image in out.images],
                mask_image=self.fine.model_mask,
                generator=generators,
                callback_on_step_end=keep_estimate,
                callback_on_step_end_tensor_inputs=["pred_original_sample"],
                **{**arguments, "strength": max(REFINING_STRENGTH, 1 / self.settings.num_inference_steps)},
            )
        if not all(math.isfinite(distance) for distance in out.clip_distances):
            dtype = str(self.model.pipe.unet.dtype).removeprefix("torch.")
            raise ArithmeticError(f"The pictures came out as NaN in {dtype}; use float32 or a smaller guidance scale.")
        distances = out.clip_distances
        if weight := self.settings.object_scale:
            penalties = scale_penalties(self.model.pipe, out.images, self.fine.model_mask, self.settings.prompt)
            distances = [own + weight * penalty for own, penalty in zip(distances, penalties, strict=True)]
        rows = zip(seeds, distances, out.images, steps, strict=True)
        return [Candidate(seed, seeds, distance, image, own) for seed, distance, image, own in rows]

    def finish(self, candidate: Candidate) -> PIL.Image.Image:
        """The photo at its own size with the candidate put into it."""
        grain_seed = candidate.seed if self.settings.match_grain else None
        return self.fine.paste(candidate.image, self.keep_background, grain_seed)

    def record(self, candidate: Candidate, made_with: MadeWith) -> Record:
        """What the candidate's picture has to remember."""
        return Record(
            settings=self.settings,
            **self.origins,
            seed=candidate.seed,
            batch=candidate.batch,
            clip_distance=candidate.clip_distance,
            made_with=made_with,
        )

    @property
    def origins(self) -> dict[str, Origin | None]:
        photo, mask = self.photo, self.mask
        return {
            "photo": Origin(str(photo.path), photo.sha256),
            "mask": None if mask is None else Origin(str(mask.path), mask.sha256),
            "model": Origin(self.model.name, self.model.sha256),
        }


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
        try:
            (folder / "ranked").mkdir(parents=True, exist_ok=True)
            earlier = find_run(folder, argument)
            if earlier is not None and (differences := earlier.differences(run)):
                if cls(folder, earlier).finished():
                    raise ValueError(
                        f"{argument} {str(folder)!r} holds another edit ({earlier.settings.prompt!r}; different are:"
                        f" {', '.join(differences)}); give another folder."
                    )
                earlier = None  # it came to nothing and stands in nobody's way
            if earlier is not None and resume:
                new = [seed for seed in run.seeds if seed not in earlier.seeds]
                run = replace(run, batches=cls(folder, earlier).batches_as_made() + split(new, run.batch_size))
            results = cls(folder, run, team)
            results.write_run()
        except OSError as error:
            raise ValueError(f"{argument} {str(folder)!r} cannot be written to ({error.strerror}).") from None
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
                part = made.get(batch[0]) if made.get(batch[0]) in parts else batch[:smallest]
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
            gallery.write_png(edit.canvas.model_mask, assets / f"{run.stem}_mask.png")
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


def find_run(folder: Path, argument: str = "folder") -> Run | None:
    """The run that `folder` holds, if any.

    Raises:
        ValueError: its `run.json` is damaged.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        return from_json(Run, path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{argument} {str(folder)!r} has a damaged run.json ({error}); give another folder."
        ) from None


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
    shown, problem, said = set(), None, None
    try:
        for own in make_batches(edit, results, dealt(batches, team), missing, made_with):
            others = [entry for entry in results.finished() if entry.seed in missing - before - shown - {own.seed}]
            shown.update(entry.seed for entry in (own, *others))
            yield from (own, *others)
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

    What makes a batch fit into the free memory is switched on first: see [`make_room`]. One that does not fit all the
    same is halved, and so are all after it.

    Args:
        edit ([`Edit`]), results ([`Results`]): what to make, and where to write it.
        batches (`list[list[int]]`): the seeds of each.
        missing (`set[int]`): the seeds of the pictures to write.
        made_with ([`MadeWith`]): this process's machine.

    Raises:
        MemoryError: not even a single picture fits.
    """
    left = list(batches)
    # by the largest batch of all processes, so that they take the same way
    if batches and (note := make_room(edit.model.pipe, edit.settings, max(map(len, results.run.batches)))):
        logger.warning(note)
    made_with = replace(made_with, **asdict(MemorySaving.of(edit.model.pipe)))
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
            left = [part for whole in too_large for part in split(whole, size)]
            parts = [split(whole, size) if whole in too_large else [whole] for whole in results.run.batches]
            results.run = replace(results.run, batches=[part for own in parts for part in own])
            results.write_run()
            logger.warning(f"{len(batch)} pictures at once do not fit into memory: going on with {size}.")
            continue
        for candidate in made:
            if candidate.seed in missing:
                yield results.write(edit, candidate, made_with)


def split(seeds: list[int], size: int) -> list[list[int]]:
    """`seeds` in batches of at most `size`."""
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def make_again(edit: Edit, record: Record) -> Candidate:
    """The picture of `record`, computed in the batch it was born in."""
    return edit.make(record.batch)[record.batch.index(record.seed)]


def largest_difference(image: PIL.Image.Image, other: PIL.Image.Image) -> int | None:
    """The largest difference of any channel of any pixel, in 0…255; `None` for pictures of different size or mode."""
    if (image.mode, image.size) != (other.mode, other.size):
        return None
    extrema = PIL.ImageChops.difference(image, other).getextrema()
    return max(high for _, high in (extrema if image.mode != "L" else [extrema]))
