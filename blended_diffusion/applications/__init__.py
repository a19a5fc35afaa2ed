"""What people do with an edit: each application is a composition of edits, a picture in and a picture out.

What belongs here decides which region of which picture is edited with which words. Each takes an
[`~blended_diffusion.editing.editor.Editor`], in memory or writing to a folder. The method and its tensors do not
belong here.

- `steps`: several edits one after another, applications among them; `batch`: many photos. What people write down for
  them: `step_files`, `job_files`, `keys`. Which applications a step may name: `registry`.
- `extend`: past the picture's border; `reconstruct`: what the model keeps of it; `interpolate`: from one prompt to
  another.
- `scribble`: from rough paint; `background`: behind a foreground; `remove`: a thing away; `strengths`: how much of
  what is there stays.
- `video`: every frame of a clip.
"""
