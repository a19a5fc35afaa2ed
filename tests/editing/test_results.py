"""Output folders: what one holds is found, what somebody may want to keep is not overwritten, what fails is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Origin, Record, Run, to_json
from blended_diffusion.editing.results import Results, find_run, read_if_there, refusal, refuse_if_used, writing_to
from blended_diffusion.painters.settings import EditSettings


MADE_WITH = MadeWith("0.1", "2.15", "0.42", "5.23", "3.11", "cpu", "x86_64", "float32", 1)
SHARED = {
    "settings": EditSettings("rock"),
    "photo": Origin("/photos/a.png", "aa"),
    "mask": None,
    "model": Origin("bundled", "cc"),
    "seed": 4,
    "made_with": MADE_WITH,
}
RUN = Run(**SHARED, batch_size=2, stem="output", film=None, assets=False, batches=[[4, 5]])


@pytest.fixture
def folder(tmp_path):
    """Where a run has begun."""
    Results.open(tmp_path / "out", RUN, resume=False)
    return tmp_path / "out"


def finish_one(folder: Path, record: Record = Record(**SHARED, batch=[4, 5], clip_distance=0.5)) -> Path:  # noqa: B008
    path = folder / "ranked" / "0.5_output_seed_4.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    path.with_suffix(".json").write_text(to_json(record))
    return path


class TestRefuseIfUsed:
    def test_what_has_a_finished_picture_is_refused(self, folder):
        finish_one(folder)
        with pytest.raises(ValueError) as caught:
            refuse_if_used(folder, "another edit (cat)", "--output_path")
        assert str(caught.value) == f"--output_path '{folder}' holds another edit (cat); give another folder."
        assert str(refusal(folder, "another edit (cat)", "--output_path")) == str(caught.value)

    def test_what_came_to_nothing_is_not(self, folder, tmp_path):
        refuse_if_used(tmp_path / "nowhere", "another edit")
        refuse_if_used(folder, "another edit")
        picture = finish_one(folder)
        picture.unlink()
        refuse_if_used(folder, "another edit")
        finish_one(folder, replace(Record(**SHARED, batch=[4, 5], clip_distance=0.5), settings=EditSettings("cat")))
        refuse_if_used(folder, "another edit")

    def test_pictures_of_any_run_below_count_if_asked_for(self, tmp_path):
        finish_one(tmp_path / "step_01")
        refuse_if_used(tmp_path, "another edit")
        with pytest.raises(ValueError, match="holds pictures of another photo; give another folder"):
            refuse_if_used(tmp_path, "pictures of another photo", below=True)
        with pytest.raises(ValueError, match="holds pictures"):
            refuse_if_used(tmp_path / "step_01", "pictures", below=True)


def test_what_the_system_refuses_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^folder '.*/file' cannot be written to \(Not a directory\)\.$"):
        with writing_to(tmp_path / "file"):
            (tmp_path / "file" / "ranked").mkdir(parents=True)
    with pytest.raises(KeyError):  # what else goes wrong is none of its business
        with writing_to(tmp_path):
            raise KeyError


def test_a_damaged_file_is_named_by_its_folder(folder):
    assert find_run(folder) == RUN and read_if_there(Run, folder / "video.json") is None
    (folder / "run.json").write_text(json.dumps({"settings": {}}))
    for ask in (find_run, lambda folder, argument: refuse_if_used(folder, "another edit", argument)):
        with pytest.raises(ValueError, match=r"^--output_path '.*/out' has a damaged run\.json \(.*give another"):
            ask(folder, "--output_path")
