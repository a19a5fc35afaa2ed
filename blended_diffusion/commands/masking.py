"""What commands with mask flags have in common: the mask that the flags ask for, and the files it leaves.

What belongs here turns flags into a mask and writes it. How masks are found is `masks`' business.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from blended_diffusion.commands.flags import Places


if TYPE_CHECKING:
    import PIL.Image
    import torch

    from blended_diffusion.pictures.inputs import Mask, Photo


@dataclass(frozen=True)
class MaskFlags:
    """The mask flags as they were given, under their own names. At most one of the first seven is.

    Raises:
        ValueError: more are, or there is no mask for the last two.
    """

    mask: str | None = None
    mask_alpha: str | None = None
    mask_difference: str | None = None
    box: Places | None = None
    polygon: Places | None = None
    click: Places | None = None
    mask_prompt: str | None = None
    mask_prompt_model: str | None = None
    mask_threshold: float | None = None
    click_model: str | None = None
    grow: float = 0.0
    invert_mask: bool = False

    def __post_init__(self):
        if len(self.sources) > 1:
            first, second, *_ = self.sources
            raise ValueError(f"{first} and {second} both say where to edit; give one of them.")
        if not self.sources and (self.invert_mask or self.grow):
            name = "--invert_mask" if self.invert_mask else "--grow"
            raise ValueError(f"{name} needs a --mask, or another flag that says where to edit, such as --box.")

    @property
    def sources(self) -> list[str]:
        """The flags that were given and make a mask."""
        names = [field.name for field in fields(self)[:7] if getattr(self, field.name) is not None]
        return ["--" + name.replace("_", "-") for name in names]

    @property
    def is_file(self) -> bool:
        """Whether the mask, but for its inversion, is a file of its own."""
        return self.mask is not None and self.grow == 0

    @property
    def needs_network(self) -> bool:
        """Whether a network has to find the mask."""
        return self.click is not None or self.mask_prompt is not None

    def read(self, photo: "Photo", device: "torch.device | str" = "cpu") -> "Mask | PIL.Image.Image | None":
        """The mask, as the file that it is or else as a picture; `None` if there is to be none.

        Args:
            photo ([`Photo`]): what it is a mask of.
            device (`torch.device` or `str`): where networks compute that find it.

        Raises:
            ValueError: it cannot be made, or leaves nothing to edit.
        """
        from blended_diffusion import masks
        from blended_diffusion.pictures import inputs

        if not self.sources:
            return None
        if self.is_file:
            return inputs.read_mask(self.mask, photo.image.size, self.invert_mask, "--mask")
        mask = masks.grow(self._find(photo, device), self.grow)
        if mask.getbbox() is None:
            raise ValueError(f"--grow {self.grow:g} leaves nothing of the mask; give a number nearer to 0.")
        if self.invert_mask:
            mask = masks.invert(mask)
            if mask.getbbox() is None:
                raise ValueError("--invert_mask leaves nothing to edit: the mask covers all of the photo.")
        return mask

    def _find(self, photo: "Photo", device: "torch.device | str") -> "PIL.Image.Image":
        from blended_diffusion import masks
        from blended_diffusion.pictures import inputs

        image, size = photo.image, photo.image.size
        if self.mask is not None:
            return inputs.read_mask(self.mask, size, argument="--mask").image
        if self.mask_alpha is not None:
            return masks.from_alpha(inputs.read_photo(self.mask_alpha, "--mask-alpha", size).image)
        if self.mask_difference is not None:
            other = inputs.read_photo(self.mask_difference, "--mask-difference", size).image
            return masks.from_difference(image, other)
        if self.box is not None:
            (left, top), (right, bottom) = self.box.on(size)
            return masks.from_box(size, (left, top, right, bottom))
        if self.polygon is not None:
            return masks.from_polygon(size, self.polygon.on(size))

        from transformers.utils import logging

        # neither a bar for each file nor a word on SAM 2's video checkpoints, which hold the picture's network
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        if self.click is not None:
            model = self.click_model or masks.CLICK_MODEL
            return masks.from_click(image, self.click.on(size), model, device, "--click-model")
        threshold = masks.THRESHOLD if self.mask_threshold is None else self.mask_threshold
        model = self.mask_prompt_model or masks.WORDS_MODEL
        return masks.from_words(image, self.mask_prompt, model, threshold, device, "--mask-prompt-model")


def keep(mask: "Mask | PIL.Image.Image", photo: "Photo", target: Path, argument: str) -> "Mask":
    """Writes a mask as `target` and, outlined on the photo, beside it as `…_preview.png`.

    Args:
        mask ([`Mask`] or `PIL.Image.Image`): as [`MaskFlags.read`] gives it.
        photo ([`Photo`]): what it is a mask of.
        target (`Path`): a PNG's name. What is there is left alone if it is the same mask, or the very file that the
            mask was read from.
        argument (`str`): what to call its folder in error messages.

    Returns:
        [`Mask`]: the file that it was read from, or else `target`.

    Raises:
        ValueError: the folder holds pictures that were made with another mask, or cannot be written to.
    """
    from blended_diffusion.pictures import gallery, inputs

    image = inputs.picture_of(mask)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (isinstance(mask, inputs.Mask) and target.exists() and target.samefile(mask.path)):
            if not _holds(target, image):
                _refuse_to_forget(target, argument)
                gallery.write_png(image, target)
        gallery.write_png(gallery.outlined(photo.image, image), preview_of(target), photo.icc_profile)
    except OSError as error:
        raise ValueError(f"{argument} {str(target.parent)!r} cannot be written to ({error.strerror}).") from None
    return mask if isinstance(mask, inputs.Mask) else inputs.read_mask(target, image.size)


def preview_of(target: Path) -> Path:
    """Where the preview of a mask is."""
    return target.with_name(f"{target.stem}_preview.png")


def _holds(target: Path, image: "PIL.Image.Image") -> bool:
    from PIL import Image

    if not target.exists():
        return False
    with Image.open(target) as there:
        return there.mode == "L" and there.size == image.size and there.tobytes() == image.tobytes()


def _refuse_to_forget(target: Path, argument: str) -> None:
    from blended_diffusion.editing.results import Results, find_run

    run = find_run(target.parent, argument) if target.name == "mask.png" and target.exists() else None
    if run is not None and Results(target.parent, run).finished():
        raise ValueError(
            f"{argument} {str(target.parent)!r} holds another edit, of which {target.name} is the mask; give another"
            " folder."
        )
