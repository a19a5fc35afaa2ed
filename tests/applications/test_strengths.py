import numpy as np

from blended_diffusion.applications.strengths import over_strengths, strip_of_strengths
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings


def test_each_strength_is_the_edit_of_that_strength(tiny_pipe, photo, mask):
    editor = Editor(tiny_pipe, num_images=2)
    edits = over_strengths(editor, photo, mask, "rock", [0.8, 0.4])
    assert list(edits) == [0.8, 0.4]
    alone = editor.edit(photo, mask, EditSettings(prompt="rock", strength=0.4))
    assert (np.asarray(edits[0.4].best) == np.asarray(alone.best)).all()
    assert (np.asarray(edits[0.8].best) != np.asarray(alone.best)).any()


def test_the_strip_shows_the_start_and_each_best(tiny_pipe, photo, mask):
    edits = over_strengths(Editor(tiny_pipe, num_images=1), photo, mask, "rock", [0.4, 0.8])
    one, two = (
        strip_of_strengths(photo, mask, {s: edits[s] for s in chosen}, "rock") for chosen in ([0.4], [0.4, 0.8])
    )
    assert two.width > one.width and two.height == one.height
    changed = edits[0.4].best.copy()
    changed.paste((255, 0, 255), (6, 6, 9, 9))
    edits[0.4].images[0] = changed
    other = strip_of_strengths(photo, mask, {0.4: edits[0.4]}, "rock")
    assert (np.asarray(other) != np.asarray(one)).any()


def test_without_a_mask_all_is_shown(tiny_pipe, photo):
    edits = over_strengths(Editor(tiny_pipe, num_images=1), photo, None, "rock", [0.4])
    wide = photo.resize((32, 16))
    assert (
        strip_of_strengths(photo, None, edits, "rock").size[1]
        > strip_of_strengths(wide, None, {0.4: edits[0.4]}, "rock").size[1]
    )
