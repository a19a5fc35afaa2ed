"""What the machine has, and what of it decides the last bits of a picture.

What belongs here asks about devices, number formats, threads and memory. Models and pictures do not.
"""

import ctypes
import os
import platform
import sys

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import parse_choice_from_env


GIB = 2**30

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MIXED_PRECISIONS = {"fp16": "float16", "bf16": "bfloat16"}
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # of x86; those of ARM have not been measured


def find_device(name: str | None = None, argument: str = "device") -> torch.device:
    """The device called `name` (`"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"` …), or the one accelerate takes.

    Raises:
        ValueError: this machine has no such device.
    """
    if name is None:
        return PartialState().device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"{argument} {name!r} is not here; this machine's default is {str(PartialState().device)!r}."
        ) from None
    return device


def find_dtype(name: str | None = None, argument: str = "dtype") -> torch.dtype | None:
    """The number format called `name`, or the one accelerate's environment asks for, if any.

    Raises:
        ValueError: there is no such format.
    """
    if name is None:
        precision = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "no":  # what `accelerate launch` sets by itself
            return None
        if precision not in MIXED_PRECISIONS:
            raise ValueError(f"accelerate is set to {precision!r}; give {argument}, one of {', '.join(DTYPES)}.")
        name = MIXED_PRECISIONS[precision]
    if name not in DTYPES:
        raise ValueError(f"{argument} {name!r} is unknown; give one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def half_precision(device: torch.device) -> torch.dtype | None:
    """The number format of 16 bits that `device` multiplies several times as fast as float32, if it has one."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS):
        return torch.bfloat16
    return None


def released_device(gpu_id: int) -> str:
    """The name of the device that the released editor takes for `--gpu_id`."""
    return f"cuda:{gpu_id}" if torch.cuda.is_available() else "cpu"


def be_reproducible(threads: int | None = None) -> None:
    """Asks torch for algorithms that give the same bits every time; it warns of those that have none.

    Args:
        threads (`int`, *optional*): how many to use on the CPU, where sums are split among them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # cuBLAS reads this when it starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed on the CPU for the next step.

    By default glibc hands large blocks back to the system at once, which zeroes every page before it gives them out
    again: a third of a guided step of a full-size network. The process stays as large as its peak. Other C libraries
    are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        never, trim_threshold, mmap_max = -1, -1, -4  # of malloc.h
        libc.mallopt(trim_threshold, never)
        libc.mallopt(mmap_max, 0)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps what was freed, and gives that out first
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # launchers say how many processes share the machine
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def forget_peak(device: torch.device) -> None:
    """From here on counts what [`peak_memory`] says of a GPU; a process's peak stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use at once: of the tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
