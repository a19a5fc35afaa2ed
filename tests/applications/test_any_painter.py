"""What people do with edits, done by networks that understand words: each works, or says in a sentence why not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blended_diffusion.applications.background import replace_background
from blended_diffusion.applications.extend import extend
from blended_diffusion.applications.interpolate import interpolate
from blended_diffusion.applications.prompts import over_prompts, sheet_of_prompts
from blended_diffusion.applications.reconstruct import reconstruct
from blended_diffusion.applications.regions import Region, edit_regions
from blended_diffusion.applications.remove import remove
from blended_diffusion.applications.scribble import scribble
from blended_diffusion.applications.steps import run_steps
from blended_diffusion.applications.strengths import over_strengths
from blended_diffusion.applications.video.edit import edit_video
from blended_diffusion.editing.editor import Editor
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings


pytestmark = pytest.mark.slow

WANTED = EditSettings("a rock", num_inference_steps=4)


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)


def box(*edges):
    mask = Image.new("L", (96, 64))
    ImageDraw.Draw(mask).rectangle(edges, fill=255)
    return mask


MASK, LEFT, RIGHT = box(30, 14, 70, 50), box(4, 10, 40, 50), box(56, 10, 90, 50)


@pytest.fixture(scope="module")
def editors(family_folder):
    made = {}

    def editor(family):
        if family not in made:
            made[family] = Editor(
                load_model(str(family_folder(family)), clip=str(family_folder("clip"))), num_images=1
            )
        return made[family]

    return editor


def assert_kept(image, photo, mask):
    outside = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(image)[outside], np.asarray(photo)[outside])
    assert (np.asarray(image)[~outside] != np.asarray(photo)[~outside]).any()


# pipelines that keep their latents in different ways: blended, given the mask, packed
@pytest.fixture(params=["sd", "sd-inpainting"])
def editor(request, editors):
    return editors(request.param)


def test_remove(editor, photo):
    assert_kept(remove(editor, photo, MASK, EditSettings("", num_inference_steps=4)).best, photo, MASK)


def test_replace_background(editor, photo):
    made = replace_background(editor, photo, MASK, WANTED).best
    inside = np.asarray(MASK) > 0
    assert (np.asarray(made)[~inside] != np.asarray(photo)[~inside]).any()
    middle = (slice(28, 36), slice(45, 55))
    np.testing.assert_array_equal(np.asarray(made)[middle], np.asarray(photo)[middle])


def test_extend(editor, photo):
    grown = extend(editor, photo, right=24, settings=WANTED)
    assert grown.size == (120, 64)
    np.testing.assert_array_equal(np.asarray(grown)[:, :96], np.asarray(photo))


def test_scribble(editor, photo):
    paint = photo.copy()
    ImageDraw.Draw(paint).ellipse((36, 20, 64, 44), fill=(255, 0, 0))
    made = scribble(editor, photo, paint, WANTED).best
    np.testing.assert_array_equal(np.asarray(made)[:8], np.asarray(photo)[:8])


def test_several_regions(editor, photo):
    made = edit_regions(
        editor, photo, [Region(LEFT, "a rock"), Region(RIGHT, "a pear")], EditSettings("", num_inference_steps=4)
    )
    assert_kept(made.best, photo, np.maximum(np.asarray(LEFT), np.asarray(RIGHT)))


def test_several_prompts_and_strengths(editor, photo):
    by_prompt = over_prompts(editor, photo, MASK, WANTED, ["a rock", "a pear"])
    assert (np.asarray(by_prompt["a rock"].best) != np.asarray(by_prompt["a pear"].best)).any()
    assert sheet_of_prompts(photo, MASK, by_prompt).height > 64
    by_strength = over_strengths(editor, photo, MASK, WANTED, [0.5, 1.0])
    assert (np.asarray(by_strength[0.5].best) != np.asarray(by_strength[1.0].best)).any()


def test_interpolate(editor, photo):
    frames = interpolate(editor, photo, MASK, WANTED, "a pear", 3)
    assert len(frames) == 3
    assert_kept(frames[1], photo, MASK)


def test_steps(editor, photo):
    steps = [{"mask": LEFT, "prompt": "a rock"}, {"mask": RIGHT, "prompt": "a pear"}]
    pictures = run_steps(editor, photo, [{**step, "num_inference_steps": 4} for step in steps])
    assert_kept(pictures[0], photo, LEFT)
    assert_kept(pictures[1], pictures[0], RIGHT)


def test_video(editor, photo):
    frames = [photo, photo.transform(photo.size, Image.Transform.AFFINE, (1, 0, 2, 0, 1, 0))]
    for made, frame in zip(edit_video(editor, frames, MASK, WANTED), frames, strict=True):
        assert_kept(made.image, frame, MASK)


def test_reconstruct(editor, photo):
    found = reconstruct(editor, photo, MASK, [0.5], EditSettings("", num_inference_steps=4))
    assert [one.strength for one in found] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("act", "setting"),
    [
        (lambda editor, photo: remove(editor, photo, MASK), "strength"),
        (lambda editor, photo: interpolate(editor, photo, MASK, WANTED, "a pear", 2), "prompt_to"),
        (lambda editor, photo: over_strengths(editor, photo, MASK, WANTED, [0.5]), "strength"),
    ],
)
def test_what_a_pipeline_cannot_do_is_one_sentence(editors, photo, act, setting):
    with pytest.raises(
        ValueError, match=rf"`{setting}` is .*, which means nothing to KandinskyV22InpaintCombinedPipeline"
    ):
        act(editors("kandinsky"), photo)
