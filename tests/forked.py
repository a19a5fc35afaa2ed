"""New processes without the seconds in which torch, transformers and diffusers are imported.

They are forked from a process that has imported these and this package, and has done nothing with them. For what a new
process would be: nothing that a test has changed or loaded, a folder, an environment, what it says and how it ends.
Where it is the start that is tested, start a Python.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch.distributed.run",
        "peft",
        "diffusers.modular_pipelines.modular_pipeline",
        "blended_diffusion.commands.edit",
        "blended_diffusion.editing.candidates",
        "blended_diffusion.applications.batch",
        "blended_diffusion.checkpoints",
    ]
)

PACKAGE = ("blended_diffusion", "pipeline_blended_diffusion")
LIBRARIES = ("huggingface_hub", "transformers", "diffusers", "accelerate", "peft")


@dataclass(frozen=True)
class Ended:
    """How a process has ended: its exit code, minus the number of the signal that killed it, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Hidden:
    """As if the package were not installed."""

    @staticmethod
    def find_spec(name: str, *_) -> None:
        if name.split(".")[0] in PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Forked:
    """A new process that calls `function(*arguments)`; what that raises or exits with is how the process ends.

    Args:
        function: of a module.
        arguments: which can be pickled.
        folder (`Path`): its working folder, which gets two files of what it says.
        environment: all of its environment; by default as here.
        package (`bool`): whether this package can be imported there.
    """

    def __init__(
        self,
        function: Callable,
        *arguments: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        package: bool = True,
    ):
        environment = dict(os.environ if environment is None else environment)
        self.said = Path(folder, "stdout.txt").absolute(), Path(folder, "stderr.txt").absolute()
        begin = (function, arguments, folder, self.said, environment, package)
        self.process = FORKS.Process(target=_begin, args=begin)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def wait(self, timeout: float = 300) -> Ended:
        """How it ends; after `timeout` seconds it is killed, which fails."""
        self.process.join(timeout)
        in_time = not self.is_alive()
        self.process.kill()
        self.process.join()
        out, err = (path.read_text() if path.exists() else "" for path in self.said)
        assert in_time, out + err
        return Ended(self.process.exitcode, out, err)


def run_forked(function: Callable, *arguments: Any, **where: Any) -> Ended:
    """How a process that calls `function(*arguments)` ends: see [`Forked`]."""
    return Forked(function, *arguments, **where).wait()


def _begin(function, arguments, folder, said, environment, package) -> None:
    os.chdir(folder)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    read_environment_again()
    if not package:
        for name in list(sys.modules):
            if name.split(".")[0] in PACKAGE:
                del sys.modules[name]
        sys.meta_path.insert(0, Hidden)
    # as in a new Python: tests that run in the background inherit an ignored Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(function(*arguments))


def read_environment_again() -> None:
    """What libraries read in the environment when they are imported, and hand from module to module."""
    for name in ("huggingface_hub.constants", "diffusers.utils.constants"):
        constants = sys.modules[name]
        before = dict(vars(constants))
        after = vars(importlib.reload(constants))
        changed = {name: value for name, value in before.items() if name.isupper() and after[name] != value}
        for module in list(sys.modules.values()):
            if module.__name__.split(".")[0] in LIBRARIES:
                held = vars(module)
                held.update({name: after[name] for name, value in changed.items() if held.get(name) == value})
    hub = sys.modules["huggingface_hub.hf_api"]
    hub.api.__init__()  # its methods are what `huggingface_hub` gives as functions
