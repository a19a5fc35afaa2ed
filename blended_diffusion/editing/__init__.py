"""One edit is many candidates: seeds, batches, the folder they are written to, resuming, ranking, making one again.

- `editor`: a picture, a mask and words in; edited pictures out, in memory or into a folder; `one_photo`: in one call.
- `edit`: one edit and its candidates; `candidates`: which are made together, and which are still missing.
- `results`: the folder they are written to, and whether a folder may be written to at all.
- `records`: what a picture remembers of its making; `presets`: settings that go together under one word.
- `processes`: several processes that make candidates.

What belongs here is the same whoever fills the region. Filling it belongs to `painters`, what people do with edits to
`applications`.
"""
