"""Video: a clip with one mask, or a mask for each frame, edited so that what is painted moves with the picture.

- `clips`: clips from video files and folders, and back.
- `flow`: how far everything moves between two frames, and what is left of a difference then.
- `edit`: which frame is edited from what.
- `results`: the folder that a clip is edited into.

What belongs here joins edits of single frames over time. An edit itself is the editor's.
"""
