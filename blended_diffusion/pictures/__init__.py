"""Pictures in and out.

- `inputs`: reading what people give; `gallery`: making what people look at.
- `canvas`, `grain`: the photo's own resolution: the crop round the mask and the way back; `fill`:
  both in one call, for any function that paints.
- `whole_files`: files that are there as a whole or not at all.

What belongs here knows pixels and files. Networks do not belong here.
"""

# left, top, right, bottom, in pixels
Box = tuple[int, int, int, int]

# of the PNG text chunk that holds a picture's record
TEXT_KEY = "blended_diffusion"
