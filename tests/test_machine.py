"""What the machine has: accelerate decides unless told otherwise."""

import mmap
import platform
import subprocess
import sys

import psutil
import pytest
import torch
from accelerate import PartialState

from blended_diffusion import machine
from blended_diffusion.editing.made_with import MadeWith


def test_the_device_is_accelerates():
    assert machine.find_device() == PartialState().device


def test_a_device_can_be_named():
    assert machine.find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:x", "xla"])
def test_a_device_that_is_not_here_is_one_sentence(name):
    with pytest.raises(ValueError, match=f"^--device '{name}' is not here; this machine's default is '") as caught:
        machine.find_device(name, "--device")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [(None, None), ("no", None), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_the_number_format_is_accelerates(monkeypatch, setting, dtype):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if setting is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", setting)
    assert machine.find_dtype() == dtype
    assert machine.find_dtype("float32") == torch.float32


def test_an_unknown_number_format_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="--dtype 'float8' is unknown; give one of float32, float16, bfloat16"):
        machine.find_dtype("float8", "--dtype")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="accelerate is set to 'fp8'; give --dtype"):
        machine.find_dtype(None, "--dtype")


@pytest.mark.parametrize(
    ("instructions", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16)]
    + [({"avx512_bf16": False, "avx2": True}, None), ({}, None)],
)
def test_half_precision_is_for_processors_that_have_it(monkeypatch, instructions, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert machine.half_precision(torch.device("cpu")) == dtype
    assert machine.half_precision(torch.device("meta")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_half_precision_of_a_gpu():
    assert machine.half_precision(torch.device("cuda")) in (torch.bfloat16, torch.float16)


def test_the_released_gpu_id_falls_back_to_the_cpu():
    assert machine.released_device(0) == ("cuda:0" if torch.cuda.is_available() else "cpu")


def test_being_reproducible_takes_the_threads_of_then():
    threads = torch.get_num_threads()
    try:
        machine.be_reproducible(3)
        assert torch.are_deterministic_algorithms_enabled()
        described = MadeWith.on(torch.device("cpu"), torch.bfloat16)
        assert (described.threads, described.dtype, described.device) == (3, "bfloat16", "cpu")
        assert described.torch == torch.__version__.partition("+")[0]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_kept():
    """Blocks of 256 MB, one after the other, share their pages."""
    code = (
        "import resource, sys, torch; from blended_diffusion.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): torch.ones(2**26)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )

    def faults(word: str) -> int:
        command = [sys.executable, "-c", code, word]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    kept, given_back = faults("keep"), faults("")
    if given_back == 0:
        pytest.skip("this system does not count page faults")
    assert kept < given_back / 2


def test_memory_of_this_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = machine.free_memory(torch.device("cpu"))
    assert 0 < alone < 2**50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)


def test_the_peak_is_that_of_the_process():
    """It grows by as much as is in use beyond it, and stays when that is let go."""
    cpu = torch.device("cpu")
    room, more = machine.peak_memory(cpu) - psutil.Process().memory_info().rss, 2**26
    with mmap.mmap(-1, room + more) as block:  # which goes back to the system, whatever is kept of freed memory
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        grown = psutil.Process().memory_info().rss
        assert machine.peak_memory(cpu) == pytest.approx(grown, abs=2**23)
    assert psutil.Process().memory_info().rss < grown - more / 2
    assert machine.peak_memory(cpu) == pytest.approx(grown, abs=2**23)
