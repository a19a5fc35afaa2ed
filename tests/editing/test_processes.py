"""Several processes make the pictures of one: the same ones, whatever becomes of some of the processes.

One test starts its processes as people do. The others fork them from one that has imported what is slow to import.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from forked import FORKS, Forked, run_forked

from blended_diffusion.cli import main
from blended_diffusion.editing import processes
from blended_diffusion.editing.candidates import Share, when_listed
from blended_diffusion.editing.edit import Edit
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.processes import Worker
from blended_diffusion.editing.records import Run, from_json, to_json
from blended_diffusion.editing.results import Results
from blended_diffusion.models import load_model
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures.inputs import read_mask, read_photo


# what the others write is compared byte by byte
pytestmark = [pytest.mark.usefixtures("as_in_a_new_process", "compressed_as_ever"), pytest.mark.full_sheets]


@pytest.fixture
def edit(tmp_path, tiny_model_dir) -> list[str]:
    """A command that makes seven pictures in batches of two."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("photo.png")
    mask = PIL.Image.new("L", (40, 30))
    mask.paste(255, (12, 8, 26, 22))
    mask.save("mask.png")
    command = ["edit", "-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir)]
    return [*command, "--num-images", "7", "--batch_size", "2", "--device", "cpu"]


def files(folder: str, what: str = "*") -> dict[str, bytes]:
    """All that was written, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob(what) if path.is_file()}


def free_port() -> str:
    """One that the system does not give to anybody who has not asked for it."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


def process(index: int, count: int, port: str, folder: Path, command: list[str], accident) -> None:
    """One of several processes, as a launcher starts them; what it says is written to `said_N.txt`."""
    os.chdir(folder)
    said = os.open(f"said_{index}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    numbers = {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count)}
    os.environ.update(numbers, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    accident(index)
    sys.exit(main(command))


def nothing(index: int) -> None:
    pass


def run(command: list[str], count: int = 2, accident=nothing) -> list[int]:
    """The exit codes of all the processes of a command; one that is killed by a signal has minus its number."""
    port = free_port()
    started = [
        FORKS.Process(target=process, args=(index, count, port, Path.cwd(), command, accident))
        for index in range(count)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join(120)
        assert one.exitcode is not None, said()
    return [one.exitcode for one in started]


def said(index: int = 0) -> str:
    return Path(f"said_{index}.txt").read_text()


def before_each_batch(do) -> None:
    """Lets something happen in this process before each batch is made."""
    make = Edit.make

    def made(edit, seeds, watch=False):
        do(seeds)
        return make(edit, seeds, watch)

    Edit.make = made


def die_in_the_second_batch(index: int) -> None:
    batches = []

    def do(seeds):
        batches.append(seeds)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if index == 1:
        before_each_batch(do)


def no_memory(seeds: list[int]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory_in_the_second_process(index: int) -> None:
    if index == 1:
        before_each_batch(no_memory)


def memory_for_one(index: int) -> None:
    before_each_batch(lambda seeds: no_memory(seeds) if len(seeds) > 1 else None)


def memory_for_one_in_the_second_process(index: int) -> None:
    if index == 1:
        memory_for_one(index)


def nan_everywhere(index: int) -> None:
    def do(seeds):
        raise ArithmeticError("The pictures came out as NaN.")

    before_each_batch(do)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_however_many_they_are_everything_written_is_the_same(edit, count):
    """The pictures, what they remember, the sheets and `run.json`."""
    command = [*edit, "--export_assets"]
    assert main([*command, "--output_path", "one", "--quiet"]) == 0
    assert run([*command, "--output_path", "several"], count) == [0] * count
    assert files("several") == files("one") and len(files("one/ranked", "*.png")) == 7
    # one speaks: its bars, and where things are
    assert "7 pictures in several/ranked" in said(0)
    assert [said(index) for index in range(1, count)] == [""] * (count - 1)


def accelerate(arguments: list[str]) -> None:
    """`accelerate ARGUMENTS`"""
    from accelerate.commands import accelerate_cli

    sys.argv = ["accelerate", *arguments]
    accelerate_cli.main()


def test_accelerate_launch(edit):
    assert main([*edit, "--output_path", "one", "--quiet"]) == 0
    launch = ["launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "blended_diffusion"]
    ended = run_forked(accelerate, [*launch, *edit, "--output_path", "two", "--quiet"], folder=Path.cwd())
    assert ended.returncode == 0, ended.stderr
    assert files("two") == files("one")


def stay_in_the_second_batch(command: list[str]) -> int:
    """The command, of which each process says its id and waits before its second batch."""
    batches = []

    def do(seeds):
        batches.append(seeds)
        if len(batches) == 2:
            Path(f"stays_{os.environ['RANK']}").write_text(str(os.getpid()))
            time.sleep(300)

    before_each_batch(do)
    sys.exit(main(command))


def launch(command: list[str]) -> None:
    """As `torchrun --standalone --nproc-per-node 2` does, but for forking."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, 2, run_id="0", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
    )
    elastic_launch(config, stay_in_the_second_batch)(command)


def test_a_worker_killed_under_torchrun(edit):
    """The launcher ends the others; what is finished is kept, and one process goes on."""
    command = [*edit, "--quiet"]
    launcher = Forked(launch, [*command, "--output_path", "killed"], folder=Path.cwd())
    deadline = time.monotonic() + 120
    while len(stay := [*Path().glob("stays_?")]) < 2 or not all(path.read_text() for path in stay):
        assert launcher.is_alive() and time.monotonic() < deadline, launcher.wait(1)
        time.sleep(0.01)
    os.kill(int(Path("stays_1").read_text()), signal.SIGKILL)
    ended = launcher.wait(60)
    assert ended.returncode == 1
    assert "interrupted: 4 of 7 pictures are finished; --resume makes the others" in ended.stderr, ended
    finished = {path: path.stat().st_mtime_ns for path in Path("killed/ranked").glob("*.json")}
    assert len(finished) == 4
    assert main([*command, "--output_path", "killed", "--resume"]) == 0
    assert main([*command, "--output_path", "one"]) == 0
    assert files("killed/ranked") == files("one/ranked")
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())


class TestAnAccident:
    def test_one_that_dies_loses_only_what_it_had_not_finished(self, edit):
        """Where no launcher ends the others. They are waited for and what there is is ranked."""
        assert main([*edit, "--output_path", "one", "--quiet"]) == 0
        assert run([*edit, "--output_path", "some", "--quiet"], 2, die_in_the_second_batch) == [1, -signal.SIGKILL]
        # its batches were [406, 407] and [410]
        assert said() == (
            "blended-diffusion: error: 1 of 7 pictures are missing, of seed 410 (a process has died); --resume"
            " makes them.\n"
        )
        whole, some = files("one/ranked"), files("some/ranked")
        assert some.items() < whole.items() and len(some) == 12
        assert Path("some/contact_sheet.png").exists()
        # with another number of processes
        assert run([*edit, "--output_path", "some", "--quiet", "--resume"], 3) == [0, 0, 0]
        assert files("some") == files("one")

    def test_one_that_fails_does_not_stop_the_others(self, edit):
        assert main([*edit, "--output_path", "one", "--quiet"]) == 0
        codes = run([*edit, "--output_path", "some", "--quiet"], 2, no_memory_in_the_second_process)
        assert codes == [1, 0]
        assert "of seed 406, 407, 410 (process 1: One picture alone does not fit into the memory" in said()
        assert len(said().splitlines()) == 1 and said(1) == ""
        assert len(files("some/ranked", "*.png")) == 4
        assert main([*edit, "--output_path", "some", "--quiet", "--resume"]) == 0
        assert files("some") == files("one")

    def test_if_none_can_do_it_it_is_said_once(self, edit):
        assert run([*edit, "--quiet"], 3, nan_everywhere) == [1, 0, 0]
        assert said() == "blended-diffusion: error: The pictures came out as NaN.\n"
        assert said(1) == said(2) == ""

    def test_batches_are_halved_as_by_one(self, edit):
        assert main([*edit, "--output_path", "one", "--quiet", "--batch_size", "1"]) == 0
        assert run([*edit, "--output_path", "two", "--quiet"], 2, memory_for_one) == [0, 0]
        assert files("two/ranked", "*.json").keys() == files("one/ranked", "*.json").keys()
        run_json = from_json(Run, Path("two/run.json").read_text())
        assert run_json.batches == [[seed] for seed in range(404, 411)]

    def test_a_run_remembers_the_batches_of_all_processes(self, edit):
        """Though only the first one writes `run.json`: what is missing is made in the batch that it would have had."""
        assert run([*edit, "--output_path", "two", "--quiet"], 2, memory_for_one_in_the_second_process) == [0, 0]
        run_json = Path("two/run.json")
        batches = [[404, 405], [406], [407], [408, 409], [410]]
        assert from_json(Run, run_json.read_text()).batches == batches
        whole = files("two")
        # as if all had been killed before the last picture
        undone = from_json(Run, run_json.read_text())
        undone = replace(undone, batches=[[404, 405], [406, 407], [408, 409], [410]])
        run_json.write_text(to_json(undone))
        next(Path("two/ranked").glob("*_407.json")).unlink()
        assert main([*edit, "--output_path", "two", "--quiet", "--resume"]) == 0
        assert files("two") == whole


class TestBadInput:
    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            (["--strength", "2"], "--strength"),  # before the processes have met
            (["--model", "nothing/here/at/all"], "nothing/here/at/all"),  # after
            (["--gpu_id", "0"], "--gpu_id 0 is one device, and there are 2 processes"),
            (["--device", "cuda:0"], "--device cuda:0 is one device, and there are 2 processes"),
        ],
    )
    def test_it_is_said_once(self, edit, flags, complaint):
        command = edit[: edit.index("--device")] if "--gpu_id" in flags else edit
        assert run([*command, *flags], 2) == [2, 0]
        assert len(said().splitlines()) == 1 and complaint in said() and said(1) == ""
        assert not Path("output").exists()

    @pytest.mark.slow
    def test_other_commands_are_the_first_ones_alone(self):
        assert run(["--version"], 2) == [0, 0]
        assert said().startswith("blended-diffusion ") and said(1) == ""

    def test_what_the_launcher_did_not_say_is_named(self, monkeypatch, capsys):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", "0")
        assert main(["--version"]) == 2
        assert "WORLD_SIZE is 4 in the environment, but not LOCAL_RANK, MASTER_ADDR" in capsys.readouterr().err
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert processes.process_count() == 1 and main(["--version"]) == 0


def test_batches_of_jobs_are_spread_too(edit, tiny_model_dir):
    jobs = [
        {"image": "photo.png", "mask": "mask.png", "prompt": "rock"},
        {"image": "nothing.png", "mask": "mask.png", "prompt": "rock"},
        {"image": "photo.png", "mask": "mask.png", "prompt": "frog", "seed": 5},
    ]
    Path("jobs.json").write_text(json.dumps(jobs))
    flags = ["--model", str(tiny_model_dir), "--num-images", "3", "--batch_size", "1", "--device", "cpu"]
    command = ["batch", "jobs.json", *flags]
    assert main([*command, "--output_path", "one", "--quiet"]) == 1
    assert run([*command, "--output_path", "two", "--quiet"], 2) == [1, 0]
    assert files("two", "ranked/*") == files("one", "ranked/*") and len(files("two", "ranked/*.png")) == 6
    assert files("two").keys() == files("one").keys()
    assert len(said().splitlines()) == 1 and "nothing.png" in said()


def test_steps_are_taken_by_all(edit, tiny_model_dir):
    steps = [{"mask": "mask.png", "prompt": "rock"}, {"mask": "mask.png", "prompt": "frog", "strength": 0.4}]
    Path("steps.json").write_text(json.dumps(steps))
    flags = ["--model", str(tiny_model_dir), "--num-images", "4", "--batch_size", "1", "--device", "cpu", "--quiet"]
    command = ["steps", "steps.json", "-i", "photo.png", *flags]
    assert main([*command, "--output_path", "one"]) == 0
    assert run([*command, "--output_path", "two"], 2) == [0, 0]
    for name in ("step_01/result.png", "step_02/result.png"):
        with PIL.Image.open(Path("one", name)) as one, PIL.Image.open(Path("two", name)) as other:
            assert one.tobytes() == other.tobytes()
    assert len(files("two/step_02/ranked", "*.png")) == 4


@pytest.fixture
def share(edit, tiny_model_dir):
    model = load_model(str(tiny_model_dir))
    photo = read_photo("photo.png")
    job = Edit.prepare(model, photo, read_mask("mask.png", photo.image.size), EditSettings("rock"))
    made_with = MadeWith.on(torch.device("cpu"), torch.float32)
    run = Run(
        job.settings, **job.origins, seed=1, batch_size=1, stem="out", film=None, assets=False,
        batches=[[1], [2]], made_with=made_with,
    )  # fmt: skip
    Results.open(Path("here"), run, resume=False)
    worker = Worker(processes.ALONE, (model, made_with))
    return worker, Share(photo, job.mask, job.settings, Path("here"), run, run.batches, {1, 2})


def test_a_worker_says_what_it_has_written(share):
    worker, task = share
    task(worker)
    assert sorted(worker.written) == sorted(files("here/ranked", "*.png"))


def test_a_folder_that_not_all_see_is_told(share):
    worker, task = share
    Path("elsewhere").mkdir()
    for changes in ({"folder": Path("elsewhere")}, {"run": replace(task.run, seed=2)}):
        with pytest.raises(OSError, match="is another one here; processes on several machines need one that all"):
            replace(task, **changes)(worker)


def test_pictures_that_are_not_listed_yet_are_waited_for(share):
    worker, task = share
    results = Results(Path("here"), task.run)
    started = time.monotonic()
    assert when_listed(results, {"0.5_out_seed_1.png"}, patience=0.5) == []
    assert 0.5 <= time.monotonic() - started < 5
    task(worker)
    assert len(when_listed(results, set(worker.written))) == 2
