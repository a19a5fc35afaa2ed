"""One photo edited in one call, for who imports the package and wants pictures back.

What belongs here opens files, finds the model and the device, and leaves the rest to the editor. Who edits more than
one photo, or into a folder, has an editor of their own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline

from blended_diffusion import machine
from blended_diffusion.editing.editor import Edited, Editor
from blended_diffusion.models import BUNDLED, Model, load_model
from blended_diffusion.painters.painter import Painter
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import Mask, Photo, as_mask, as_photo


def edit_photo(
    photo: str | Path | PIL.Image.Image | Photo,
    mask: str | Path | PIL.Image.Image | Mask | None,
    prompt: str | EditSettings,
    model: str | Model | DiffusionPipeline | Painter = BUNDLED,
    seed: int = 404,
    num_images: int = 4,
    batch_size: int = 4,
    device: torch.device | str | None = None,
    **settings: Any,
) -> Edited:
    """Edits one region of one photo; known as `blended_diffusion.edit`.

    ```py
    import blended_diffusion

    edited = blended_diffusion.edit("photo.jpg", "mask.png", "rock")
    edited.best.save("edited.png")
    ```

    Args:
        photo (`str`, `Path`, `PIL.Image.Image` or [`Photo`]): a picture's file, which is turned as its EXIF says, or a
            picture, which is taken as it is.
        mask (`str`, `Path`, `PIL.Image.Image` or [`Mask`], *optional*): of the photo's size; white is edited, black is
            kept, greys fall to the nearer of the two, unless `mask_is_change_map=True`. With `None` all is edited.
        prompt (`str` or [`EditSettings`]): what the region should show, or all that is wanted.
        model (`str`, [`Model`], `DiffusionPipeline` or [`Painter`]): a bundled one's name, a folder or a Hub id, which
            is loaded for this call alone; or what [`load_model`] gave, or any inpainting pipeline, used where it is.
        seed (`int`): of the first candidate; the next ones count on.
        num_images (`int`): how many candidates to make.
        batch_size (`int`): how many of them are computed together.
        device (`torch.device` or `str`, *optional*): where a model that is loaded here computes; accelerate's choice
            if left out.
        settings: fields of [`EditSettings`] besides the prompt, such as `strength=0.8`.

    Returns:
        [`Edited`]: the pictures, best first, each of the photo's size; outside the mask they are the photo.

    Raises:
        ValueError: a file cannot be used, sizes differ, or the model does not accept the settings.
        TypeError: there is no setting of a name.
    """
    wanted = EditSettings(prompt) if isinstance(prompt, str) else prompt
    wanted = replace(wanted, **settings)
    photo = as_photo(photo)
    greys = (wanted.invert_mask, wanted.mask_is_change_map)
    region = None if mask is None else as_mask(mask, photo.image.size, *greys)
    if isinstance(model, str):
        device = machine.find_device(None if device is None else str(device))
        model = load_model(model, device=device)
        model.to(device)
    return Editor(model, seed, num_images, batch_size).edit(photo, region, wanted)
