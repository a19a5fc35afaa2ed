"""One edit: what all its candidates share, how some of them are made, and how one becomes a finished picture.

What belongs here lays out the square that a painter fills, and puts what it made into the photo. Which pictures are
made together and where they are written belongs to `candidates` and `results`, how a region is filled to `painters`.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import PIL.Image
import PIL.ImageChops
from diffusers import DiffusionPipeline

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, Record
from blended_diffusion.models import Model
from blended_diffusion.painters.choice import painter_for
from blended_diffusion.painters.painter import Painter
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask, Photo


# what is wanted whoever paints, and how the picture is put into the photo
SETTINGS_OF_EVERY_EDIT = {"prompt", "enforce_background", "invert_mask", "context", "feather", "match_grain"}


@dataclass(frozen=True)
class Candidate:
    """One picture as the painter made it.

    Attributes:
        seed (`int`): its own.
        batch (`list[int]`): the seeds of the batch it was computed in.
        clip_distance (`float`): lower is better.
        image (`PIL.Image.Image`): of the painter's size, or larger.
        steps (`list[PIL.Image.Image]`): what it looked like after each step, if it was watched.
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
        painter ([`Painter`]): fills the region; this edit's own.
        photo (`Photo`), mask (`Mask`, *optional*): without a mask all of the photo is edited.
        settings (`EditSettings`): with the painter's defaults filled in.
        canvas (`Canvas`): the photo, the mask and the square round it, for pictures of the painter's size.
    """

    painter: Painter
    photo: Photo
    mask: Mask | None
    settings: EditSettings
    canvas: Canvas
    _canvases: dict[int, Canvas] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def prepare(
        cls,
        model: Model | DiffusionPipeline | Painter,
        photo: Photo,
        mask: Mask | None,
        settings: EditSettings,
    ) -> "Edit":
        """Finds the square, and has the painter of `model` look at what is wanted and fill in its defaults.

        Raises:
            ValueError: the mask is too thin for the painter, or it cannot do what the settings say.
        """
        painter = painter_for(model)
        refuse_unknown_settings(painter, settings)
        painter.check(settings, mask)
        mask_image = PIL.Image.new("L", photo.image.size, 255) if mask is None else mask.image
        greys = None
        if settings.mask_is_change_map:
            if mask is None:
                raise ValueError("`mask_is_change_map` needs a mask whose greys say how much; give one.")
            # whatever is not black may change
            mask_image, greys = mask_image.point([0] + [255] * 255), mask_image
        canvas = Canvas.around(photo.image, mask_image, settings.size or painter.size, settings.context)
        canvas = replace(canvas, rise=settings.feather, greys=greys)
        settings = painter.with_defaults(settings, canvas)
        return cls(painter.for_edit(settings), photo, mask, settings, canvas)

    @property
    def model(self) -> Model:
        """What the painter paints with."""
        return self.painter.model

    @property
    def keep_background(self) -> bool:
        """Whether the photo's own pixels are put back outside the mask; the released baseline does not."""
        return self.settings.enforce_background and (self.settings.blend or not self.settings.match_release)

    def make(self, seeds: list[int], watch: bool = False) -> list[Candidate]:
        """Makes the pictures of these seeds in one batch.

        Args:
            seeds (`list[int]`): one for each picture.
            watch (`bool`): keep what they look like after each step.

        Raises:
            ValueError: the painter does not accept the settings.
            ArithmeticError: the numbers left the range of the model's number format.
        """
        made = self.painter.make(self.canvas, self.mask, self.settings, seeds, watch)
        return [
            Candidate(seed, seeds, one.distance, one.image, one.steps) for seed, one in zip(seeds, made, strict=True)
        ]

    def finish(self, candidate: Candidate) -> PIL.Image.Image:
        """The photo at its own size with the candidate put into it."""
        grain_seed = candidate.seed if self.settings.match_grain else None
        size = candidate.image.width
        # kept, with what it has found out about the mask's edge and the photo's grain
        if size not in self._canvases:
            self._canvases[size] = self.canvas if size == self.canvas.size else replace(self.canvas, size=size)
        return self._canvases[size].paste(candidate.image, self.keep_background, grain_seed)

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
    def origins(self) -> dict[str, Any]:
        """The fields of a record that say what it is made from: [`Origin`]s, without a mask `None`, and the parts."""
        photo, mask = self.photo, self.mask
        return {
            "photo": Origin(str(photo.path), photo.sha256),
            "mask": None if mask is None else Origin(str(mask.path), mask.sha256),
            "model": Origin(self.model.name, self.model.sha256),
            "parts": list(self.model.parts),
        }


def refuse_unknown_settings(painter: Painter, settings: EditSettings) -> None:
    """Raises a `ValueError` if something is wanted of the painter that means nothing to it."""
    wanted = asdict(settings)
    for setting in fields(EditSettings):
        value = wanted[setting.name]
        if setting.name not in painter.known_settings | SETTINGS_OF_EVERY_EDIT and value != setting.default:
            raise ValueError(f"`{setting.name}` is {value!r}, which means nothing to {painter.title}; leave it out.")


def make_again(edit: Edit, record: Record) -> Candidate:
    """The picture of `record`, computed in the batch it was born in."""
    return edit.make(record.batch)[record.batch.index(record.seed)]


def largest_difference(image: PIL.Image.Image, other: PIL.Image.Image) -> int | None:
    """The largest difference of any channel of any pixel, in 0…255; `None` for pictures of different size or mode."""
    if (image.mode, image.size) != (other.mode, other.size):
        return None
    extrema: Any = PIL.ImageChops.difference(image, other).getextrema()
    return max(high for _, high in (extrema if image.mode != "L" else [extrema]))
