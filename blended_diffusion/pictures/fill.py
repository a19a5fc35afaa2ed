"""The way into a square and back for whoever can paint one: any function, any pipeline.

What belongs here is one call that lays out the square, asks for it to be painted, and puts it back into the photo. The
geometry is the canvas's. Candidates, ranking, records and folders are an editor's business.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import PIL.Image

from blended_diffusion.pictures.canvas import Canvas
from blended_diffusion.pictures.inputs import Mask, Photo, as_mask, as_photo


def fill(
    photo: str | Path | PIL.Image.Image | Photo,
    mask: str | Path | PIL.Image.Image | Mask,
    paint: Callable[[PIL.Image.Image, PIL.Image.Image, int], PIL.Image.Image],
    size: int = 512,
    seed: int = 0,
    context: float = 0.25,
    feather: float | None = None,
    match_grain: bool = True,
) -> PIL.Image.Image:
    """Has a region of a photo of any size painted by a function of your own; known as `blended_diffusion.fill`.

    ```py
    pipe = AutoPipelineForInpainting.from_pretrained("stable-diffusion-v1-5/stable-diffusion-inpainting")
    paint = lambda image, mask, seed: pipe("a cat", image, mask, generator=torch.manual_seed(seed)).images[0]
    blended_diffusion.fill("photo.jpg", "mask.png", paint).save("edited.png")
    ```

    The function sees the square round the mask. Of what it paints the part inside the mask is put back at the photo's
    own size, the seam hidden and grain added as in every edit of this package: see [`Canvas.paste`].

    Args:
        photo (`str`, `Path`, `PIL.Image.Image` or [`Photo`]): a picture's file, which is turned as its EXIF says, or a
            picture, which is taken as it is.
        mask (`str`, `Path`, `PIL.Image.Image` or [`Mask`]): of the photo's size; white is painted, black is kept,
            greys fall to the nearer of the two.
        paint (`Callable`): called once, as `paint(image, mask, seed)`, with the square, of mode `RGB`, its mask, of
            mode `L`, 255 = paint, 0 = keep, both of `size`×`size` pixels, and the seed. It returns the painted square,
            of that size or a whole multiple of it; what it makes of the rest of the square is not looked at.
        size (`int`): the width and height in pixels in which it paints.
        seed (`int`): handed to it, and the grain's.
        context (`float`): margin of the square round the mask, as a share of the mask's longer side.
        feather (`float`, *optional*): over how many of the photo's pixels inside the mask's edge what is painted fades
            in. `None` takes the width of one of the square's pixels.
        match_grain (`bool`): give what is enlarged the grain that the photo has round the mask.

    Returns:
        `PIL.Image.Image` of the photo's size, of mode `RGB`, or `RGBA` if the photo knows transparency; outside the
        mask it is the photo, bit for bit. The photo's colour profile is in its `info["icc_profile"]`.

    Raises:
        ValueError: a file cannot be used, sizes differ, the mask is too thin for the square, a number is too small, or
            `paint` returns a picture of another size.
        TypeError: `paint` returns something that is no picture.
    """
    for name, value, least in (("size", size, 1), ("context", context, 0), ("feather", feather or 0, 0)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; give a number of at least {least}.")
    source = as_photo(photo)
    region = as_mask(mask, source.image.size)
    canvas = replace(Canvas.around(source.image, region.image, size, context), rise=feather)
    painted = paint(canvas.model_image, canvas.model_mask, seed)
    if not isinstance(painted, PIL.Image.Image):
        raise TypeError(
            f"`paint` returned a {type(painted).__name__}; return one picture (`PIL.Image.Image`), as pipelines have"
            " it in `.images[0]`."
        )
    if painted.width != painted.height or painted.width % size:
        raise ValueError(
            f"`paint` returned a picture of {painted.width}×{painted.height} pixels; return one of {size}×{size}, or"
            " of a whole multiple of that."
        )
    result = canvas.paste(painted.convert("RGB"), grain_seed=seed if match_grain else None)
    result.info = {} if source.icc_profile is None else {"icc_profile": source.icc_profile}
    return result
