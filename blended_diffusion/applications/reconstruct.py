"""What the diffusion model keeps of a picture that is noised and denoised without words: the released code's check.

What belongs here compares reconstructions. Making them is the editor's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import torch
from kornia.metrics import psnr

from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask, Photo, picture_of


STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Reconstruction:
    """A picture that went to a noise level and back.

    Attributes:
        strength (`float`): the share of the way to pure noise; 0 stands for the model's resolution alone.
        image (`PIL.Image.Image`): of the size and mode of the source.
        psnr (`float`): peak signal-to-noise ratio in dB, higher is nearer; the mean of all candidates. At strength 0
            it compares with the source, at others with the picture of strength 0: what the model saw.
    """

    strength: float
    image: PIL.Image.Image
    psnr: float


def reconstruct(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    mask: PIL.Image.Image | Mask | None = None,
    strengths: Sequence[float] = STRENGTHS,
    settings: EditSettings | None = None,
) -> list[Reconstruction]:
    """Noises a picture to several levels and denoises each without guidance.

    The edits' names are `strength_0.20`, `strength_0.40` …

    Args:
        editor ([`Editor`]): makes the pictures; the one of its first seed is shown.
        image (`PIL.Image.Image` or [`Photo`]): of mode `RGB` or `RGBA`.
        mask (`PIL.Image.Image` or [`Mask`], *optional*): of mode `L` and the picture's size, 255 = reconstruct, with
            the surroundings blended in as in an edit; all is reconstructed without it.
        strengths (`Sequence[float]`): in (0, 1].
        settings ([`EditSettings`], *optional*): whose prompt and strength do not count.

    Returns:
        `list[Reconstruction]`: what the model's resolution keeps, then one for each of `strengths`.

    Raises:
        ValueError: a strength leaves no step to take.
    """
    settings = replace(EditSettings(prompt="") if settings is None else settings, prompt="")
    photo = picture_of(image)
    region = PIL.Image.new("L", photo.size, 255) if mask is None else picture_of(mask)
    canvas = Canvas.around(photo, region, editor.painter.size, settings.context)
    seen = photo.copy()
    shrunk = canvas.model_image.resize((canvas.square[2] - canvas.square[0],) * 2, PIL.Image.Resampling.BICUBIC)
    alone = PIL.Image.new(photo.mode, photo.size)
    alone.paste(shrunk, canvas.square[:2])
    if photo.mode == "RGBA":
        alone.putalpha(photo.getchannel("A"))
    seen.paste(alone, mask=region)

    found = [Reconstruction(0.0, seen, region_psnr(seen, photo, region))]
    for strength in strengths:
        made = editor.edit(image, mask, replace(settings, strength=strength), f"strength_{strength:.2f}")
        ratios = [region_psnr(picture, seen, region) for picture in made.images]
        shown = made.images[made.seeds.index(editor.seed)]
        found.append(Reconstruction(strength, shown, float(np.mean(ratios))))
    return found


def region_psnr(image: PIL.Image.Image, target: PIL.Image.Image, region: PIL.Image.Image) -> float:
    """10·log10(255² / mean squared difference) of the colours where `region` is not 0, in dB; infinite for equal ones.

    Args:
        image, target (`PIL.Image.Image`): of mode `RGB` or `RGBA` and one size.
        region (`PIL.Image.Image`): of mode `L` and that size.
    """
    inside = np.asarray(region) > 0
    one, other = (torch.from_numpy(np.asarray(each.convert("RGB"))[inside]) for each in (image, target))
    return psnr(one, other, 255.0).item()
