"""Jobs as people write them down: which there are, and what is said about wrong ones."""

import json
from pathlib import Path

import pytest

from blended_diffusion.applications.job_files import read_jobs


pytestmark = pytest.mark.usefixtures("folder")


class TestJobs:
    def test_a_table(self):
        Path("jobs.csv").write_text("image,mask,prompt,strength\na.png,a_mask.png,rock,0.5\nb.png,,rose,\n")
        first, second = read_jobs("jobs.csv")
        assert (first.name, first.image, first.where) == ("a", Path("a.png").absolute(), "line 2")
        assert first.steps[0].settings == {"prompt": "rock", "strength": 0.5}
        assert (second.steps[0].mask, second.steps[0].settings) == (None, {"prompt": "rose"})

    def test_lines_of_json_may_have_steps(self):
        steps = [{"mask": "a_mask.png"}, {"prompt": "rose", "mask": "b_mask.png"}]
        Path("jobs.jsonl").write_text(json.dumps({"image": "a.png", "steps": steps, "strength": 0.5}) + "\n\n{oops\n")
        job, broken = read_jobs("jobs.jsonl", {"prompt": "rock"})
        assert [step.settings["prompt"] for step in job.steps] == ["rock", "rose"]
        assert all(step.settings["strength"] == 0.5 for step in job.steps) and job.several
        assert broken.complaint.startswith("line 3 is '{oops'; give keys and values")

    def test_a_folder(self):
        Path("b.txt").write_text("rose\n")
        jobs = read_jobs(".", {"prompt": "rock"})
        assert [(job.name, job.steps[0].settings["prompt"]) for job in jobs] == [("a", "rock"), ("b", "rose")]
        assert [job.complaint for job in read_jobs(".")] == ["a.png: prompt is missing; give it a value.", None]

    def test_a_folder_with_a_mask_for_all(self):
        """A photo's own mask is the better one."""
        jobs = read_jobs(".", {"prompt": "rock", "mask": {"words": "the dog", "model": None}})
        assert [job.name for job in jobs] == ["a", "b", "c"]
        assert [getattr(job.steps[0].mask, "kind", "own") for job in jobs] == ["own", "own", "words"]

    def test_every_job_has_a_folder_of_its_own(self):
        rows = [
            {"image": "a.png"},
            {"image": "a.png"},
            {"image": "b.png", "name": "x"},
            {"image": "c.png", "name": "x"},
        ]
        Path("jobs.json").write_text(json.dumps(rows))
        jobs = read_jobs("jobs.json", {"prompt": "rock"})
        assert [job.name for job in jobs[:3]] == ["a", "a_2", "x"]
        assert jobs[3].complaint == "job 4: name is 'x', which job 3 has too; give each its own."

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ({"prompt": "r"}, "job 1: image is missing"),
            ({"image": "z.png", "prompt": "r"}, "job 1: image is 'z.png': there is no file"),
            ({"image": "a.png", "prompt": "r", "name": "../x"}, "job 1: name is '../x': give a plain name"),
            ({"image": "a.png", "prompt": "r", "strength": 3}, "job 1: strength is 3; it should be"),
            ({"image": "a.png", "steps": []}, r"job 1: steps is \[\]; give a list"),
            ({"image": "a.png", "steps": [{"prompt": "r"}, {}]}, "job 1, step 2: prompt is missing"),
            ([1], r"job 1 is \[1\]; give keys and values"),
        ],
    )
    def test_a_bad_job_does_not_hide_the_others(self, row, complaint):
        Path("jobs.json").write_text(json.dumps([row, {"image": "b.png", "prompt": "r"}]))
        bad, good = read_jobs("jobs.json")
        assert good.complaint is None and bad.complaint.startswith(complaint.replace("\\", ""))

    @pytest.mark.parametrize(
        ("name", "text", "complaint"),
        [
            ("a.csv", "photo,prompt\na.png,rock\n", "has the head line 'photo, prompt'; give it one such as image,"),
            ("a.csv", "image,prompt\n", "holds no job"),
            ("a.jsonl", "\n", "holds no job"),
            ("a.txt", "a", "ends in '.txt'"),
        ],
    )
    def test_a_file_without_jobs_is_refused(self, name, text, complaint):
        Path(name).write_text(text)
        with pytest.raises(ValueError, match=f"JOBS '{name}' {complaint}"):
            read_jobs(name, argument="JOBS")

    def test_a_folder_without_jobs_is_refused(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="holds no job; .* a NAME_mask.png beside each photo"):
            read_jobs(tmp_path / "empty")
