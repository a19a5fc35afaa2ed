"""Everything round the pipeline of `pipeline_blended_diffusion.py`: from files and flags to ranked pictures.

Each folder may use those below it in this list, and none above:

- `cli`, `commands`: the command line; it parses, calls and shows.
- `applications`: what people do with edits: scribble, extend, remove, replace the background, film, many photos.
- `evaluation`: the benchmark, its judge and its figures.
- `editing`: one edit is many candidates: seeds, batches, resuming, ranking, records, several processes.
- `painters`: who fills a region: Blended Diffusion, in one window or several, for one region or several.
- `masks`: from a box, a click, words …; `pictures`: pictures in and out, the crop round the mask and the way back.
- `models`: a pipeline from a folder, a Hub id or the bundled model; `machine`: what the machine can do.
- `checkpoints`: guided-diffusion's weights to `UNet2DModel` and back.
- `demo`: the bundled model.

The method itself does not belong here: it is in the pipeline file.
"""

from importlib.metadata import version


def __getattr__(name: str) -> str:
    # asked for only when needed: the modules also work in a checkout that is not installed
    if name == "__version__":
        return version("blended-diffusion")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
