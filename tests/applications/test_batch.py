"""Many photos: bad jobs do not stop the others, finished ones are only looked up, and a summary tells all."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from blended_diffusion.applications import batch as jobs_module
from blended_diffusion.applications.batch import run_jobs, write_summary
from blended_diffusion.applications.job_files import read_jobs
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import FolderEditor
from blended_diffusion.editing.records import read_record
from blended_diffusion.pictures.inputs import read_photo


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """`a.png`, `b.png` and `c.png`, a mask, and `broken.png`."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(f"{name}.png")
    mask = PIL.Image.new("L", (24, 20))
    mask.paste(255, (6, 5, 18, 15))
    mask.save("mask.png")
    Path("broken.png").write_bytes(Path("a.png").read_bytes()[:200])
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def editor(folder_editor) -> FolderEditor:
    return folder_editor(num_images=1)


def write(*rows: dict) -> str:
    Path("jobs.json").write_text(json.dumps([{"mask": "mask.png", "prompt": "rock", **row} for row in rows]))
    return "jobs.json"


def statuses(editor: FolderEditor, file: str = "jobs.json") -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in run_jobs(editor, read_jobs(file))}


def test_every_job_has_its_best_picture(editor):
    write({"image": "a.png"}, {"image": "b.png", "name": "second", "num_images": 2, "seed": 7, "strength": 0.5})
    first, second = run_jobs(editor, read_jobs("jobs.json"))
    assert (first.name, first.status, second.name, second.status) == ("a", "made", "second", "made")
    record = read_record(Path("out", second.picture))
    assert (record.settings.strength, record.clip_distance, record.seed) == (0.5, second.clip_distance, second.seed)
    assert len(list(Path("out/second/ranked").glob("*.png"))) == 2
    outside = np.asarray(PIL.Image.open("mask.png")) == 0
    for outcome, name in ((first, "a.png"), (second, "b.png")):
        edited, photo = (np.asarray(PIL.Image.open(path)) for path in (Path("out", outcome.picture), name))
        np.testing.assert_array_equal(edited[outside], photo[outside])
        assert (edited != photo).any()


def test_a_bad_job_does_not_stop_the_others(editor):
    write({"image": "broken.png"}, {"image": "nothing.png"}, {"image": "a.png", "strength": 9}, {"image": "b.png"})
    outcomes = {outcome.where: outcome for outcome in run_jobs(editor, read_jobs("jobs.json"))}
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "failed", "failed", "made"]
    assert outcomes["job 1"].message.startswith("job 1: image '") and "is damaged" in outcomes["job 1"].message
    assert "there is no file" in outcomes["job 2"].message and "strength is 9" in outcomes["job 3"].message


def test_a_failure_on_the_way_does_not_stop_the_others(editor, monkeypatch):
    write({"image": "a.png"}, {"image": "b.png"})
    read = jobs_module.read_photo

    def refuse_a(path, argument):
        if path.name == "a.png":
            raise MemoryError("too large")
        return read(path, argument)

    monkeypatch.setattr(jobs_module, "read_photo", refuse_a)
    assert statuses(editor) == {"a": "failed", "b": "made"}


class TestResume:
    def test_the_finished_are_looked_up_without_opening_a_picture(self, editor, monkeypatch):
        steps = [{"prompt": "rock", "mask": "mask.png"}]
        Path("jobs.json").write_text(
            json.dumps([{"image": "a.png", "prompt": "rock", "mask": "mask.png"}, {"image": "b.png", "steps": steps}])
        )
        before = list(run_jobs(editor, read_jobs("jobs.json")))
        monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("a picture was opened"))
        monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("a file was hashed"))
        after = list(run_jobs(editor, read_jobs("jobs.json")))
        assert [outcome.status for outcome in after] == ["kept", "kept"]
        assert [outcome.picture for outcome in after] == [outcome.picture for outcome in before]

    def test_they_come_first(self, editor):
        write({"image": "b.png"})
        statuses(editor)
        outcomes = list(run_jobs(editor, read_jobs(write({"image": "c.png"}, {"image": "b.png"}))))
        assert [outcome.name for outcome in outcomes] == ["b", "c"]

    def test_a_file_of_another_date_is_kept_by_its_contents(self, editor):
        write({"image": "a.png"})
        statuses(editor)
        os.utime("a.png", (1, 1))
        assert statuses(editor) == {"a": "kept"}

    @pytest.mark.parametrize("what", ["photo", "mask", "prompt"])
    def test_what_has_changed_is_refused_and_nothing_lost(self, editor, what):
        write({"image": "a.png"})
        statuses(editor)
        before = {path: path.read_bytes() for path in Path("out").rglob("ranked/*")}
        if what == "photo":
            PIL.Image.open("b.png").save("a.png")
        elif what == "mask":
            PIL.Image.new("L", (24, 20), 255).save("mask.png")
        write({"image": "a.png", **({"prompt": "cat"} if what == "prompt" else {})})
        (outcome,) = run_jobs(editor, read_jobs("jobs.json"))
        assert outcome.status == "failed"
        assert re.search(f"job 1: .*holds another edit .'rock'; different are: .*{what}", outcome.message)
        assert {path: path.read_bytes() for path in Path("out").rglob("ranked/*")} == before

    def test_more_candidates_are_added(self, editor):
        write({"image": "a.png"})
        statuses(editor)
        write({"image": "a.png", "num_images": 3})
        assert statuses(editor) == {"a": "made"}
        assert len(list(Path("out/a/ranked").glob("*.png"))) == 3

    def test_what_was_taken_away_is_made_again(self, editor):
        write({"image": "a.png"})
        (outcome,) = run_jobs(editor, read_jobs("jobs.json"))
        picture = Path("out", outcome.picture)
        whole = picture.read_bytes()
        picture.unlink()
        assert statuses(editor) == {"a": "made"}
        assert picture.read_bytes() == whole

    def test_without_it_all_is_made_again(self, editor):
        write({"image": "a.png"})
        statuses(editor)
        editor.resume = False
        assert statuses(editor) == {"a": "made"}


class TestCommand:
    @pytest.fixture
    def batch(self, tiny_model_dir):
        def run(*arguments: str) -> int:
            given = ["--model", str(tiny_model_dir), "--device", "cpu", "--output_path", "out", "--num-images", "1"]
            return main(["batch", *arguments, *given])

        return run

    def summary(self) -> list[dict]:
        with open("out/summary.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["status"] for row in rows] == [
            row["status"] for row in json.loads(Path("out/summary.json").read_text())
        ]
        return rows

    def test_the_summary_tells_what_became_of_each(self, batch, capsys):
        Path("jobs.csv").write_text(
            "image,mask,prompt\na.png,mask.png,rock\nbroken.png,mask.png,rock\nb.png,mask.png,\n"
        )
        assert batch("jobs.csv", "-p", "cat") == 1
        out, err = capsys.readouterr()
        assert "2 made, 0 kept, 1 failed: out/summary.csv" in out
        assert sum(line.startswith("failed: line 3: image '") for line in err.replace("\r", "\n").splitlines()) == 1
        assert PIL.Image.open("out/overview.png").width > 2 * 320
        rows = self.summary()
        assert [(row["name"], row["where"], row["status"]) for row in rows] == [
            ("a", "line 2", "made"), ("broken", "line 3", "failed"), ("b", "line 4", "made"),
        ]  # fmt: skip
        assert "is damaged" in rows[1]["message"] and rows[1]["picture"] == ""
        assert read_record(Path("out", rows[2]["picture"])).settings.prompt == "cat"
        assert batch("jobs.csv", "-p", "cat", "--quiet") == 1
        assert [row["status"] for row in self.summary()] == ["kept", "failed", "kept"]

    def test_a_folder_of_photos(self, batch):
        for name in "ac":
            PIL.Image.open("mask.png").save(f"{name}_mask.png")
        assert batch(".", "-p", "rock", "--quiet") == 0
        assert [row["name"] for row in self.summary()] == ["a", "c"]

    def test_interrupted_it_goes_on_as_if_nothing_had_happened(self, batch, editor, monkeypatch, capsys):
        write({"image": "a.png"}, {"image": "b.png"}, {"image": "c.png"})
        read = read_photo

        def interrupt_at_b(path, argument):
            if path.name == "b.png":
                raise KeyboardInterrupt
            return read(path, argument)

        monkeypatch.setattr(jobs_module, "read_photo", interrupt_at_b)
        assert batch("jobs.json", "--quiet") == 130
        assert "interrupted: 1 of 3 jobs are finished; the same command goes on" in capsys.readouterr().err
        assert [row["status"] for row in self.summary()] == ["made", "waiting", "waiting"]
        monkeypatch.setattr(jobs_module, "read_photo", read)
        assert batch("jobs.json", "--quiet") == 0
        rows = self.summary()
        assert [row["status"] for row in rows] == ["kept", "made", "made"]
        editor.folder = Path("whole")
        for row, outcome in zip(rows, run_jobs(editor, read_jobs("jobs.json")), strict=True):
            here, there = (
                PIL.Image.open(Path(*path)) for path in (("out", row["picture"]), ("whole", outcome.picture))
            )
            np.testing.assert_array_equal(np.asarray(here), np.asarray(there))

    @pytest.mark.parametrize(
        ("file", "complaint"),
        [("nothing.csv", "JOBS 'nothing.csv' does not exist"), ("a.png", "JOBS 'a.png' is not text")],
    )
    def test_bad_input_is_one_sentence(self, batch, capsys, file, complaint):
        assert batch(file) == 2
        assert complaint in capsys.readouterr().err and not Path("out").exists()


def test_the_summary_may_hold_anything(tmp_path):
    outcome = jobs_module.JobOutcome("a", "line 1", "a.png", "failed", message='ümläut, "quoted",\nsecond line')
    write_summary([outcome], tmp_path)
    with open(tmp_path / "summary.csv", newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["message"] == outcome.message
