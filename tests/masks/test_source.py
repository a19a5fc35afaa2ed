"""One description of a mask, whoever writes it: as a flag, in a job file or in a step."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from blended_diffusion import masks
from blended_diffusion.applications.step_files import parse_step
from blended_diffusion.commands.masking import SOURCES, MaskFlags
from blended_diffusion.commands.parsers import Places
from blended_diffusion.masks.source import MASK_KINDS, MaskSource, look_at_mask, make_mask


SIZE = (40, 30)
BOX = (12, 8, 26, 22)


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> PIL.Image.Image:
    """A photo, and beside it a mask, a layer and a changed copy that say the same region."""
    monkeypatch.chdir(tmp_path)
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    mask, layer, copy = PIL.Image.new("L", SIZE), PIL.Image.new("RGBA", SIZE), photo.copy()
    mask.paste(255, BOX)
    layer.paste((1, 2, 3, 255), BOX)
    copy.paste((255, 0, 255), BOX)
    for name, picture in (("mask", mask), ("layer", layer), ("copy", copy)):
        picture.save(f"{name}.png")
    return photo


def test_there_is_a_flag_for_each_kind():
    assert tuple(SOURCES) == MASK_KINDS


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        (MaskFlags(mask="mask.png", grow=2), {"file": "mask.png", "grow": 2}),
        (MaskFlags(mask_alpha="layer.png"), {"alpha": "layer.png"}),
        (MaskFlags(mask_difference="copy.png"), {"difference": "copy.png"}),
        (MaskFlags(box=Places(("30%", "8", "26", "22"))), {"box": BOX}),
        (MaskFlags(polygon=Places(("4", "3", "90%", "3", "20", "27"))), {"polygon": [[4, 3], [36, 3], [20, 27]]}),
    ],
)
def test_flags_and_steps_mean_the_same_mask(pictures, flags, written):
    described = parse_step({"prompt": "rock", "mask": written}).mask
    one, other = make_mask(flags.source(SIZE), pictures), make_mask(described, pictures)
    assert one.mode == "L" and one.size == SIZE and one.getextrema() == (0, 255)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (
            MaskFlags(mask_prompt="dog", mask_threshold=0.3, mask_prompt_model="a", grow=2),
            MaskSource(words="dog", threshold=0.3, model="a", grow=2),
        ),
        (MaskFlags(click=Places(("50%", "3")), click_model="b"), MaskSource(click=[(20.0, 3.0)], model="b")),
    ],
)
def test_what_a_network_finds_is_described_alike(flags, source):
    assert flags.source(SIZE) == source and source.needs_network


def test_messages_name_what_was_written(pictures):
    with pytest.raises(ValueError, match="^The picture has no transparency"):
        make_mask(MaskSource(alpha=Path("copy.png")), pictures)
    PIL.Image.new("L", (30, 40), 255).save("turned.png")
    with pytest.raises(ValueError, match="^mask '.*turned.png' is 30×40 pixels"):
        make_mask(MaskSource(file=Path("turned.png")), pictures)
    with pytest.raises(ValueError, match="^--mask-alpha '.*turned.png' is 30×40 pixels"):
        make_mask(MaskSource(alpha=Path("turned.png")), pictures, names={"alpha": "--mask-alpha"})
    with pytest.raises(ValueError, match="^model 'no/such-model' cannot be loaded"):
        make_mask(MaskSource(words="dog", model="no/such-model"), pictures)


def test_a_mask_is_looked_at_in_memory(pictures):
    mask = look_at_mask(MaskSource(box=BOX), pictures, invert=True)
    np.testing.assert_array_equal(np.asarray(mask.image) == 0, np.asarray(masks.from_box(SIZE, BOX)) > 0)
    with pytest.raises(ValueError, match="^foreground leaves nothing to edit; paint white what is to be."):
        look_at_mask(PIL.Image.new("L", SIZE), pictures, argument="foreground")
    with pytest.raises(ValueError, match="^mask is 8×8 pixels .* and the picture is 40×30"):
        look_at_mask(PIL.Image.new("L", (8, 8), 255), pictures)
