"""Who fills a region: Blended Diffusion and its variants.

- `painter`: all that `editing` asks of whoever fills a region; `choice`: which painter a model is for.
- `blended_diffusion`: Blended Diffusion as a painter, in one window or several, for one region or several.
- `settings`: what can be wanted of an edit; `limits`: which values that may have.
- `variants`: the one way to make a pipeline of another; `regions`: one for several regions in one denoising pass;
  `windows`: one for a region larger than the network's pictures.
- `changing_masks`: a mask for each step; `shrinking_masks`: one that begins larger and shrinks over the steps;
  `change_maps`: one whose greys say how much of the way a pixel may change.
- `memory`: how much a step needs, and what to do where it is too little.
- `words`: what CLIP is given for the words; `object_scale`: whether an object has the size its mask asks for.

What belongs here makes pictures of the network's size. Which pictures are made and where they are kept belongs to
`editing`.
"""
