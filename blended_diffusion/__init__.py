"""Everything round the pipeline of `pipeline_blended_diffusion.py`: from files and flags to ranked pictures.

Each module does one thing and knows nothing of those above it:

- `cli`: the command; it parses, calls and shows.
- `candidates`: one edit is many candidates: seeds, batches, resuming, ranking.
- `canvas`: the photo's own resolution: the crop round the mask and the way back.
- `inputs`, `gallery`: reading what people give; making what people look at.
- `models`: a pipeline from a folder, a Hub id or the bundled model.
- `checkpoints`: guided-diffusion's weights to `UNet2DModel` and back.
- `demo`: the bundled model.

The method itself does not belong here: it is in the pipeline file.
"""

from importlib.metadata import version


__version__ = version("blended-diffusion")
