"""What every benchmark writes: its figures with the machine and the versions they belong to.

What belongs here is shared by the benchmarks; what they measure does not.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor or GPU, the threads and the versions."""
    names = ("torch", "diffusers", "transformers", "kornia", "blended-diffusion")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def write(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `figures` and the machine to `NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))
