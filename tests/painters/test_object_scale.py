"""Objects too small or too big for their mask are ranked down."""

import pytest
import torch
from PIL import Image
from tiny import assert_close

from blended_diffusion.editing.editor import Editor
from blended_diffusion.evaluation.benchmark import COMPOSITES_PER_EDIT, load_benchmark, real_composites
from blended_diffusion.models import load_model
from blended_diffusion.painters.object_scale import SCALE_TEMPLATES, scale_penalties
from blended_diffusion.painters.settings import EditSettings


def test_the_penalty_is_that_of_zero_shot_classification(tiny_pipe, photo, mask):
    [penalty] = scale_penalties(tiny_pipe, [photo], mask, "rock")
    [turned] = scale_penalties(tiny_pipe, [photo], mask, SCALE_TEMPLATES[0].format("rock"))
    assert penalty > 0
    assert penalty != turned  # it is the words that decide
    out = tiny_pipe(
        "rock",
        photo,
        mask,
        strength=0.2,
        clip_guidance_scale=0,
        candidate_labels=[template.format("rock") for template in SCALE_TEMPLATES],
        generator=torch.Generator().manual_seed(0),
    )
    assert_close(torch.tensor(scale_penalties(tiny_pipe, out.images, mask, "rock")), torch.tensor(out.clip_distances))


@pytest.mark.slow
def test_it_is_added_to_what_candidates_are_ranked_by(tiny_pipe, photo, mask):
    editor, seeds = Editor(tiny_pipe), list(range(4))
    made = {}
    for weight in (0.0, 3.0):
        edit = editor.prepare(photo, mask, EditSettings("rock", object_scale=weight), "")
        made[weight] = edit.make(seeds)
    penalties = scale_penalties(tiny_pipe, [one.image for one in made[0.0]], edit.canvas.model_mask, "rock")
    expected = [one.clip_distance + 3 * penalty for one, penalty in zip(made[0.0], penalties, strict=True)]
    assert_close(torch.tensor([one.clip_distance for one in made[3.0]]), torch.tensor(expected))
    assert [one.image.tobytes() for one in made[0.0]] == [one.image.tobytes() for one in made[3.0]]


@pytest.mark.slow
def test_the_bundled_model_sees_what_misses_and_what_fills_its_mask():
    pipe = load_model().pipe
    tasks, composites = load_benchmark(), real_composites()
    right = []
    for task in tasks[::6]:
        whole = composites[task.number * COMPOSITES_PER_EDIT]
        side = whole.width
        # the mask takes the middle half of these squares
        part = whole.crop((side // 3, side // 3, side - side // 3, side - side // 3)).resize(whole.size)
        far = whole.resize((1, 1)).resize(whole.size)
        far.paste(whole.resize((side // 3, side // 3)), (side // 3, side // 3))
        mask = Image.new("L", whole.size)
        mask.paste(255, (side // 6, side // 6, side - side // 6, side - side // 6))
        fits, fills, misses = scale_penalties(pipe, [whole, part, far], mask, task.word)
        right += [fits < fills, fits < misses]
    assert sum(right) >= 0.8 * len(right)


@pytest.mark.parametrize("settings", [{"prompt": ""}, {"prompt": "two", "region_prompts": ["rock", "tree"]}])
def test_what_it_does_not_go_with_is_said(tiny_pipe, photo, mask, settings):
    with pytest.raises(ValueError, match="`object_scale` 1.0 does not go with (no words|several regions at once)"):
        Editor(tiny_pipe).edit(photo, mask, EditSettings(**settings, object_scale=1.0))
