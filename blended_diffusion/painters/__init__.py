"""Who fills a region: Blended Diffusion and its variants.

- `settings`: what can be wanted of an edit.
- `regions`: several regions in one denoising pass; `windows`: a region larger than the network's pictures;
  `shrinking_masks`: one that begins larger and shrinks over the steps.
- `words`: what CLIP is given for the words; `object_scale`: whether an object has the size its mask asks for.

What belongs here makes pictures of the network's size. Which pictures are made and where they are kept belongs to
`editing`.
"""
