"""A picture, a mask and words in; edited pictures out, best first: in memory, or into a folder.

What belongs here is the one call that every application is built of. How candidates are made is the
business of `edit` and `candidates`, and what an application asks for its own.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from diffusers import DiffusionPipeline

from blended_diffusion.editing.candidates import make_candidates
from blended_diffusion.editing.edit import Edit
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.processes import ALONE, Team
from blended_diffusion.editing.records import Run, in_batches
from blended_diffusion.editing.results import Results, writing_to
from blended_diffusion.models import Model, load_model
from blended_diffusion.painters.choice import painter_for
from blended_diffusion.painters.painter import Painter
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.inputs import Mask, Photo


Make = Callable[[Edit, Results, list[int], bool], list[gallery.Entry]]


@dataclass(frozen=True)
class Edited:
    """What came of one edit, best first.

    Attributes:
        images (`list[PIL.Image.Image]`): of the size and mode of what was edited.
        clip_distances (`list[float]`): lower is better.
        seeds (`list[int]`): the pictures' own.
    """

    images: list[PIL.Image.Image]
    clip_distances: list[float]
    seeds: list[int]

    @property
    def best(self) -> PIL.Image.Image:
        return self.images[0]


class Editor:
    """Edits pictures in memory.

    Args:
        model ([`Model`], `DiffusionPipeline` or [`Painter`], *optional*): what fills the regions: a
            [`BlendedDiffusionPipeline`], or any pipeline of diffusers that takes an image and a mask; the bundled
            model if left out.
        seed (`int`): of the first candidate of every edit; the next ones count on.
        num_images (`int`): how many candidates each edit makes.
        batch_size (`int`): how many of them are computed together.
    """

    def __init__(
        self,
        model: Model | DiffusionPipeline | Painter | None = None,
        seed: int = 404,
        num_images: int = 4,
        batch_size: int = 4,
    ):
        self.painter = painter_for(load_model() if model is None else model)
        self.seed, self.num_images, self.batch_size = seed, num_images, batch_size

    @property
    def model(self) -> Model:
        """What its painter paints with."""
        return self.painter.model

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_images))

    def edit(
        self,
        image: PIL.Image.Image | Photo,
        mask: PIL.Image.Image | Mask | None,
        settings: EditSettings | str,
        name: str = "",
    ) -> Edited:
        """Edits one region of one picture.

        Args:
            image (`PIL.Image.Image` or [`Photo`]): the picture, of mode `RGB` or `RGBA`.
            mask (`PIL.Image.Image` or [`Mask`], *optional*): of mode `L` and the picture's size, 255 = edit, 0 = keep.
                Without it all is edited.
            settings ([`EditSettings`] or `str`): what is wanted, or just its prompt.
            name (`str`): of this edit among those of one application, where things are written.

        Raises:
            ValueError: the mask is too thin for the model, or it does not accept the settings.
        """
        job = self.prepare(image, mask, settings, name)
        made = [one for batch in in_batches(self.seeds, self.batch_size) for one in job.make(batch)]
        made.sort(key=lambda candidate: (candidate.clip_distance, candidate.seed))
        return Edited(
            [job.finish(candidate) for candidate in made],
            [candidate.clip_distance for candidate in made],
            [candidate.seed for candidate in made],
        )

    def prepare(
        self,
        image: PIL.Image.Image | Photo,
        mask: PIL.Image.Image | Mask | None,
        settings: EditSettings | str,
        name: str,
    ) -> Edit:
        photo = image if isinstance(image, Photo) else self.keep_photo(image, name)
        region = mask if mask is None or isinstance(mask, Mask) else self.keep_mask(mask, name)
        settings = EditSettings(prompt=settings) if isinstance(settings, str) else settings
        return Edit.prepare(self.painter, photo, region, settings)

    def keep_photo(self, image: PIL.Image.Image, name: str, icc_profile: bytes | None = None) -> Photo:
        """A picture that came from no file, as one that did."""
        return Photo(image, icc_profile, Path("in memory"), hashlib.sha256(image.tobytes()).hexdigest())

    def keep_mask(self, mask: PIL.Image.Image, name: str) -> Mask:
        """A mask that came from no file, as one that did."""
        return Mask(mask, Path("in memory"), hashlib.sha256(mask.tobytes()).hexdigest())


def make_quietly(job: Edit, results: Results, seeds: list[int], keep: bool) -> list[gallery.Entry]:
    """Makes what is missing, then the sheets; returns all that is finished, best first."""
    for _ in make_candidates(job, results, seeds, keep):
        pass
    return results.write_sheets(job)


class FolderEditor(Editor):
    """Edits pictures and writes all there is of each edit: see [`Results`].

    What came from no file is written to `inputs/` first, so that `replay` finds it.

    Args:
        model ([`Model`] or [`Painter`]): on its device.
        folder (`Path`): where to write; each edit has the subfolder of its name, the one without a name `folder`.
        made_with ([`MadeWith`]): the machine.
        seed, num_images, batch_size: as in [`Editor`].
        resume (`bool`): keep what an interrupted run has finished.
        stem (`str`): part of the pictures' names.
        film (`str`, *optional*): the format of each picture's film.
        strip (`int`, *optional*): how many steps of each picture's making to show side by side.
        assets (`bool`): whether to write what the model saw and made.
        make (`Callable`): makes one edit's pictures; the place for progress bars.
        argument (`str`): what to call `folder` in error messages.
        team ([`Team`]): the processes that make the pictures, all with the model.
    """

    def __init__(
        self,
        model: Model | Painter,
        folder: Path,
        made_with: MadeWith,
        seed: int = 404,
        num_images: int = 4,
        batch_size: int = 4,
        resume: bool = False,
        stem: str = "output",
        film: str | None = None,
        assets: bool = False,
        make: Make = make_quietly,
        argument: str = "folder",
        strip: int | None = None,
        team: Team = ALONE,
    ):
        super().__init__(model, seed, num_images, batch_size)
        self.folder, self.made_with, self.resume = folder, made_with, resume
        self.stem, self.film, self.assets, self.make, self.argument = stem, film, assets, make, argument
        self.strip, self.team = strip, team

    def edit(
        self,
        image: PIL.Image.Image | Photo,
        mask: PIL.Image.Image | Mask | None,
        settings: EditSettings | str,
        name: str = "",
    ) -> Edited:
        job = self.prepare(image, mask, settings, name)
        run = Run(
            settings=job.settings,
            **job.origins,
            seed=self.seed,
            batch_size=self.batch_size,
            stem=self.stem,
            film=self.film,
            assets=self.assets,
            batches=in_batches(self.seeds, self.batch_size),
            made_with=self.made_with,
            strip=self.strip,
        )
        results = Results.open(self.folder / name, run, self.resume, self.argument, self.team)
        entries = self.make(job, results, self.seeds, self.resume)
        images = []
        for entry in entries:
            with PIL.Image.open(entry.path) as picture:
                images.append(picture.copy())
        return Edited(images, [entry.clip_distance for entry in entries], [entry.seed for entry in entries])

    def keep_photo(self, image: PIL.Image.Image, name: str, icc_profile: bytes | None = None) -> Photo:
        path = self._write(image, name, "photo", icc_profile)
        return Photo(image, icc_profile, path, hashlib.sha256(path.read_bytes()).hexdigest())

    def keep_mask(self, mask: PIL.Image.Image, name: str) -> Mask:
        path = self._write(mask, name, "mask")
        return Mask(mask, path, hashlib.sha256(path.read_bytes()).hexdigest())

    def _write(self, image: PIL.Image.Image, name: str, what: str, icc_profile: bytes | None = None) -> Path:
        # named by what is in it: nothing that a finished picture was made from is ever overwritten
        about = f"{image.mode} {image.size}".encode() + (icc_profile or b"")
        digest = hashlib.sha256(about + image.tobytes()).hexdigest()
        path = (self.folder / name / "inputs" / f"{what}_{digest[:12]}.png").absolute()
        with writing_to(self.folder, self.argument):
            path.parent.mkdir(parents=True, exist_ok=True)
            gallery.write_png(image, path, icc_profile)
        return path
