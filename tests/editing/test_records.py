"""What a picture remembers: it comes back from JSON as it was, and a damaged record is one sentence."""

import json
from dataclasses import replace

import pytest

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, Record, Run, from_json, to_json
from blended_diffusion.painters.settings import EditSettings


MADE_WITH = MadeWith("0.1", "2.15", "0.42", "5.23", "3.11", "cpu", "x86_64", "float32", 1)
RECORD = Record(
    settings=EditSettings("ein Stein → 猫", strength=11 / 15, num_inference_steps=15),
    photo=Origin("/photos/a.png", "aa"),
    mask=None,
    model=Origin("bundled", "cc"),
    seed=5,
    batch=[4, 5],
    clip_distance=0.1 + 0.2,
    made_with=MADE_WITH,
)
RUN = Run(
    settings=RECORD.settings,
    photo=RECORD.photo,
    mask=None,
    model=RECORD.model,
    seed=4,
    batch_size=2,
    stem="output",
    film=None,
    assets=False,
    batches=[[4, 5], [6]],
    made_with=MADE_WITH,
)


@pytest.mark.parametrize("thing", [RECORD, RUN])
def test_json_gives_back_an_equal_object(thing):
    text = to_json(thing)
    assert text.isascii()
    assert from_json(type(thing), text) == thing


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data.pop("seed"), "^seed: .*required"),
        (lambda data: data.update(seed="many"), "^seed: "),
        (lambda data: data["settings"].update(blend="perhaps"), "^settings.blend: "),
        (lambda data: data.update(batch=[1, None]), "^batch.1: "),
    ],
)
def test_a_damaged_record_is_named(change, complaint):
    data = json.loads(to_json(RECORD))
    change(data)
    with pytest.raises(ValueError, match=complaint):
        from_json(Record, json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ValueError):
        from_json(Record, text)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 9}, ["seed"]),
        ({"settings": replace(RUN.settings, prompt="cat", strength=0.5)}, ["prompt", "strength"]),
        ({"photo": Origin("/photos/a.png", "changed")}, ["photo"]),
        ({"mask": Origin("/masks/a.png", "bb")}, ["mask"]),
        ({"film": "gif"}, ["film"]),
        ({"batch_size": 8}, ["batch_size"]),
        ({"photo": Origin("/moved/a.png", "aa")}, []),
        ({"batches": [[4]]}, []),
        ({"made_with": replace(MADE_WITH, torch="3.0")}, []),
    ],
)
def test_runs_differ_by_what_is_wanted(change, names):
    assert RUN.differences(replace(RUN, **change)) == names


def test_a_record_belongs_to_its_run():
    assert RUN.differences(RECORD) == []
    assert RUN.differences(replace(RECORD, settings=EditSettings("cat"))) != []


def test_machines_differ_by_name():
    assert MADE_WITH.differences(MADE_WITH) == []
    assert MADE_WITH.differences(replace(MADE_WITH, torch="3.0", threads=2)) == ["torch", "threads"]
