"""Everything round the pipeline of `pipeline_blended_diffusion.py`: from files and flags to ranked pictures.

```py
import blended_diffusion

edited = blended_diffusion.edit("photo.jpg", "mask.png", "rock")
edited.best.save("edited.png")
```

`edit` is for one photo; an `Editor` edits many with one model, which `load_model` finds; `EditSettings` says all that
can be wanted; `Photo` and `Mask` are pictures that came from files. `fill` has any function of your own paint a
region.

Each folder may use those below it in this list, and none above:

- `cli`, `commands`: the command line; it parses, calls and shows.
- `applications`: what people do with edits: scribble, extend, remove, replace the background, film, many photos.
- `evaluation`: the benchmark, its judge and its figures.
- `editing`: one edit is many candidates: seeds, batches, resuming, ranking, records, several processes.
- `painters`: who fills a region: Blended Diffusion, in one window or several, for one region or several; any of
  diffusers' inpainting pipelines.
- `masks`: from a box, a click, words …; `pictures`: pictures in and out, the crop round the mask and the way back.
- `models`: a pipeline from a folder, a Hub id or the bundled model; `inpainting_models` loads diffusers' own, and
  `model_files` finds the files; `machine`: what the machine can do.
- `checkpoints`: guided-diffusion's weights to `UNet2DModel` and back.
- `demo`: the bundled model.

The method itself does not belong here: it is in the pipeline file. What belongs in this file is the names above, each
looked up when it is asked for: importing the package is quick, and needs neither torch nor an installation.
"""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from blended_diffusion.editing.editor import Editor
    from blended_diffusion.editing.one_photo import edit_photo as edit
    from blended_diffusion.models import load_model
    from blended_diffusion.painters.settings import EditSettings
    from blended_diffusion.pictures.fill import fill
    from blended_diffusion.pictures.inputs import Mask, Photo

    __version__: str

_DEFINED_IN = {
    "EditSettings": "painters.settings:EditSettings",
    "Editor": "editing.editor:Editor",
    "Mask": "pictures.inputs:Mask",
    "Photo": "pictures.inputs:Photo",
    "edit": "editing.one_photo:edit_photo",
    "fill": "pictures.fill:fill",
    "load_model": "models:load_model",
}

__all__ = ["EditSettings", "Editor", "Mask", "Photo", "__version__", "edit", "fill", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("blended-diffusion")
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, defined = _DEFINED_IN[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), defined)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
