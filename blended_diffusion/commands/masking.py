"""What commands with mask flags have in common: the flags, the mask that they ask for, and the files it leaves.

What belongs here turns flags into a mask and writes it. How masks are found is `masks`' business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from blended_diffusion.commands.groups import INPUT, MACHINE, flag
from blended_diffusion.commands.parsers import Places, pixels, places, setting


if TYPE_CHECKING:
    import PIL.Image
    import torch

    from blended_diffusion.masks.source import MaskSource
    from blended_diffusion.pictures.inputs import Mask, Photo


# the flags that make a mask, by what a mask's source calls it
SOURCES = {
    "file": "mask",
    "alpha": "mask_alpha",
    "difference": "mask_difference",
    "box": "box",
    "polygon": "polygon",
    "click": "click",
    "words": "mask_prompt",
}


@dataclass(frozen=True)
class MaskFlags:
    """The mask flags as they were given, under their own names. At most one of the first seven is.

    Raises:
        ValueError: more are, or there is no mask to grow or to invert.
    """

    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is edited, black is kept; of the photo's size. [default: all is edited]", "FILE"),
    ] = None
    mask_alpha: Annotated[
        str | None, flag(INPUT, "--mask-alpha", "Edit where this picture, of the photo's size, is opaque.", "FILE")
    ] = None
    mask_difference: Annotated[
        str | None, flag(INPUT, "--mask-difference", "Edit where this changed copy differs from the photo.", "FILE")
    ] = None
    box: Annotated[
        Places | None,
        flag(
            INPUT,
            "--box",
            "Edit a rectangle: left, top, right, bottom in pixels or percent.",
            "X,Y,X,Y",
            places(lambda points: points == 2, "left,top,right,bottom, such as 40,30,200,120 or 10%,10%,50%,60%"),
        ),
    ] = None
    polygon: Annotated[
        Places | None,
        flag(
            INPUT,
            "--polygon",
            "Edit what these corners enclose.",
            "'X,Y X,Y …'",
            places(lambda points: points >= 3, "three or more corners, such as '40,30 200,60 120,150'"),
        ),
    ] = None
    click: Annotated[
        Places | None,
        flag(
            INPUT,
            "--click",
            "Edit the thing at this point, or at all of these, as SAM 2 sees it.",
            "'X,Y …'",
            places(lambda points: points >= 1, "one or more points on the thing, such as 120,80 or 50%,50%"),
        ),
    ] = None
    mask_prompt: Annotated[
        str | None, flag(INPUT, "--mask-prompt", "Edit what these words name, as CLIPSeg sees it.", "WORDS")
    ] = None
    mask_threshold: Annotated[
        float | None,
        flag(
            INPUT,
            "--mask-threshold",
            "How sure of --mask-prompt, up to 1: less takes in more. [default: 0.4]",
            "X",
            setting("strength"),
        ),
    ] = None
    grow: Annotated[
        float,
        flag(
            INPUT,
            "--grow",
            "Make the mask larger by so many of the photo's pixels all round; smaller, if negative.",
            "N",
            pixels,
        ),
    ] = 0.0
    feather: float | None = None  # a flag of `edit` alone, and so is
    mask_is_change_map: bool = False
    invert_mask: Annotated[
        bool, flag(INPUT, "--invert_mask --invert", "Edit what would be kept, and keep the rest.")
    ] = False
    mask_prompt_model: Annotated[
        str | None,
        flag(
            MACHINE,
            "--mask-prompt-model",
            "A CLIPSeg model's folder or Hub id. [default: CIDAS/clipseg-rd64-refined]",
            "NAME",
        ),
    ] = None
    click_model: Annotated[
        str | None,
        flag(
            MACHINE,
            "--click-model",
            "A SAM 2 model's folder or Hub id. [default: facebook/sam2.1-hiera-tiny]",
            "NAME",
        ),
    ] = None

    def __post_init__(self) -> None:
        if len(self.sources) > 1:
            first, second, *_ = self.sources
            raise ValueError(f"{first} and {second} both say where to edit; give one of them.")
        if not self.sources and (self.invert_mask or self.grow):
            name = "--invert_mask" if self.invert_mask else "--grow"
            raise ValueError(f"{name} needs a --mask, or another flag that says where to edit, such as --box.")

    @property
    def sources(self) -> list[str]:
        """The flags that were given and make a mask."""
        names = [name for name in SOURCES.values() if getattr(self, name) is not None]
        return ["--" + name.replace("_", "-") for name in names]

    @property
    def files(self) -> list[str]:
        """The files that they name."""
        return [path for path in (self.mask, self.mask_alpha, self.mask_difference) if path is not None]

    @property
    def is_file(self) -> bool:
        """Whether the mask, but for its inversion, is a file of its own."""
        return self.mask is not None and self.grow == 0

    @property
    def needs_network(self) -> bool:
        """Whether a network has to find the mask."""
        return self.click is not None or self.mask_prompt is not None

    def source(self, size: tuple[int, int]) -> "MaskSource":
        """What the mask of a photo of this `(width, height)` is made of."""
        from blended_diffusion.masks.source import MaskSource

        ((kind, value),) = [
            (kind, value) for kind, name in SOURCES.items() if (value := getattr(self, name)) is not None
        ]
        if isinstance(value, Places):
            points = value.on(size)
            value = (*points[0], *points[1]) if kind == "box" else points
        elif kind != "words":
            value = Path(value)
        given: dict[str, Any] = {kind: value}
        model = self.click_model if kind == "click" else self.mask_prompt_model
        return MaskSource(**given, model=model, threshold=self.mask_threshold, grow=self.grow)

    def read(self, photo: "Photo", device: "torch.device | str" = "cpu") -> "Mask | PIL.Image.Image":
        """The mask, as the file that it is or else as a picture. One of [`MaskFlags.sources`] has to be given.

        Args:
            photo ([`Photo`]): what it is a mask of.
            device (`torch.device` or `str`): where networks compute that find it.

        Raises:
            ValueError: it cannot be made, or leaves nothing to edit.
        """
        from blended_diffusion import masks
        from blended_diffusion.masks.source import make_mask
        from blended_diffusion.pictures import inputs

        if self.mask is not None and self.is_file:
            return inputs.read_mask(self.mask, photo.image.size, self.invert_mask, "--mask", self.mask_is_change_map)
        if self.needs_network:
            from transformers.utils import logging

            # neither a bar for each file nor a word on SAM 2's video checkpoints, which hold the picture's network
            logging.disable_progress_bar()
            logging.set_verbosity_error()
        names = {"file": "--mask", "alpha": "--mask-alpha", "difference": "--mask-difference"}
        names["model"] = "--mask-prompt-model" if self.click is None else "--click-model"
        mask = make_mask(self.source(photo.image.size), photo.image, device, names)
        if mask.getbbox() is None:
            raise ValueError(f"--grow {self.grow:g} leaves nothing of the mask; give a number nearer to 0.")
        if self.invert_mask:
            mask = masks.invert(mask)
            if mask.getbbox() is None:
                raise ValueError("--invert_mask leaves nothing to edit: the mask covers all of the photo.")
        return mask


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
    from blended_diffusion.pictures.whole_files import writing_to

    image, folder = inputs.picture_of(mask), target.parent
    with writing_to(folder, argument):
        folder.mkdir(parents=True, exist_ok=True)
        if not (isinstance(mask, inputs.Mask) and target.exists() and target.samefile(mask.path)):
            if not inputs.shows(target, image):
                if target.name == "mask.png" and target.exists():
                    from blended_diffusion.editing.results import refuse_if_used

                    refuse_if_used(folder, f"another edit, of which {target.name} is the mask", argument)
                gallery.write_png(image, target)
        region = image.point([0] + [255] * 255)  # of greys all that may change
        gallery.write_png(gallery.outlined(photo.image, region), preview_of(target), photo.icc_profile)
    return mask if isinstance(mask, inputs.Mask) else inputs.read_mask(target, image.size)


def preview_of(target: Path) -> Path:
    """Where the preview of a mask is."""
    return target.with_name(f"{target.stem}_preview.png")
