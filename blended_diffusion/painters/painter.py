"""The seam between an edit and whoever fills its region.

What belongs here is what `editing` asks of a painter, and nothing of how one paints. A painter is found for a model by
`choice`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import PIL.Image

from blended_diffusion.models import Model
from blended_diffusion.painters.memory import MemorySaving
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask


@dataclass(frozen=True)
class PaintedSquare:
    """One picture as a painter made it.

    Attributes:
        image (`PIL.Image.Image`): the square, of mode `RGB`; as wide and high as the painter's size, or larger.
        distance (`float`): what pictures are ranked by; lower is better.
        steps (`list[PIL.Image.Image]`): what it looked like after each step, if it was watched.
    """

    image: PIL.Image.Image
    distance: float
    steps: list[PIL.Image.Image]


@runtime_checkable
class Painter(Protocol):
    """Whoever fills a region: all that an edit asks of it.

    An edit checks what is wanted, lays out its [`Canvas`] at the painter's size, has the settings filled in, takes the
    painter for this edit, and lets it make pictures, batch by batch. Everything else is the edit's: the photo round
    the square, seeds and batches, ranking, records and folders.
    """

    @property
    def title(self) -> str:
        """What people know its kind by."""

    @property
    def model(self) -> Model:
        """The pipeline that paints, its name, and the hash of its weights, by which records know it."""

    @property
    def size(self) -> int:
        """The width and height in pixels of the square that it works in."""

    @property
    def default_num_inference_steps(self) -> int:
        """How many steps it takes by itself."""

    @property
    def known_settings(self) -> frozenset[str]:
        """The fields of [`EditSettings`] that mean something to it, besides those that are the edit's own."""

    def check(self, settings: EditSettings, mask: Mask | None) -> None:
        """Says what it cannot do, before anything is made or written.

        Args:
            settings ([`EditSettings`]): what is wanted; `None` stands for its own default.
            mask ([`Mask`], *optional*): without one all of the photo is edited.

        Raises:
            ValueError: something is wrong; the sentence names the setting and its value.
        """

    def with_defaults(self, settings: EditSettings, canvas: Canvas) -> EditSettings:
        """The settings as they are recorded: whatever it decides itself is decided, so that they say everything."""

    def for_edit(self, settings: EditSettings) -> "Painter":
        """The painter for one edit with these settings; what is changed about it stays with that edit."""

    def make(
        self, canvas: Canvas, mask: Mask | None, settings: EditSettings, seeds: list[int], watch: bool
    ) -> list[PaintedSquare]:
        """Paints one square once for each seed, all of them together.

        A picture depends on its own seed and, but for rounding, on no other.

        Args:
            canvas ([`Canvas`]): the square and its mask, at the painter's size.
            mask ([`Mask`], *optional*): the photo's, as it was given.
            settings ([`EditSettings`]): filled in by [`Painter.with_defaults`].
            seeds (`list[int]`): one for each picture.
            watch (`bool`): keep what the pictures look like after each step.

        Returns:
            `list[PaintedSquare]`: in the order of the seeds.

        Raises:
            ValueError: it does not accept the settings.
            ArithmeticError: the numbers left the range of the model's number format.
            RuntimeError: they do not fit into memory together.
        """

    def make_room(self, settings: EditSettings, batch_size: int) -> str | None:
        """Saves memory, if so many pictures would not fit otherwise; returns a sentence about it, if it did."""

    def memory_saving(self) -> MemorySaving:
        """How it saves memory now, for the records."""

    def save_memory(self, saving: MemorySaving) -> None:
        """Has it save memory so from here on.

        Raises:
            ValueError: it cannot.
        """
