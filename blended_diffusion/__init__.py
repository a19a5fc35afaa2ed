"""Everything round the pipeline of `pipeline_blended_diffusion.py`: from files and flags to ranked pictures.

Each module does one thing and knows nothing of those above it:

- `cli`, `commands`: the command line; it parses, calls and shows.
- `jobs`: many photos; `tasks`: what steps and jobs people may write down.
- `applications`: what people do with edits: scribble, extend, remove, replace the background, film.
- `editor`: a picture, a mask and words in, edited pictures out; what applications are built of.
- `candidates`: one edit is many candidates: seeds, batches, resuming, ranking; `processes`: several that make them.
- `regions`: several regions in one denoising pass; `windows`: a region larger than the network's pictures;
  `small_masks`: one that shrinks over the steps; `prompts`: phrasings, the way between two, the written word.
- `canvas`, `grain`: the photo's own resolution: the crop round the mask and the way back.
- `masks`: from a box, a click, words …; `inputs`, `gallery`: reading what people give; making what people look at.
- `records`: what a picture remembers of its making; `machine`: what the machine has.
- `models`: a pipeline from a folder, a Hub id or the bundled model.
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
