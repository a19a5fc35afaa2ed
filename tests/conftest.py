"""How the tests run: what processes are told, which tests are slow, and what a run says at its end.

Of what tests build there is nothing here, so that the process of pytest-xdist that only deals them out imports neither
torch nor diffusers: functions are in `tiny.py`, fixtures in `shared_fixtures.py`.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest


# Processes of tests side by side must not write into one folder: into this one diffusers copies the pipelines that it
# loads, and reads its name when it is imported. (Tests import this file a second time.)
if "diffusers" not in sys.modules:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
    # those that tests start have one thread too, and find this checkout before what is installed
    os.environ["OMP_NUM_THREADS"] = "1"
    checkout = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])

RECORDED_TRACES = "test_follows_a_recorded_trace"


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("dsession"):  # which deals tests out
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: one process for each core, 2 GB for each, and no more than eight.

    Every process spends the first seconds on importing, which many do not make shorter.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().total // 2**31, 8))


# a model in a folder is what commands load, and a desk is where documents are run
WHOLE = {"tiny_model_dir", "desk"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what runs whole commands, applications or documents, wherever it is."""
    for item in items:
        applies = "applications" in item.path.parts and "tiny_pipe" in item.fixturenames
        if applies or WHOLE.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """Nobody should take a run without the recorded traces for one that has compared with the released editor."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if RECORDED_TRACES in report.nodeid]
    if skipped:
        terminalreporter.write_sep("!", "NOT TESTED: the released editor's recorded traces", red=True, bold=True)
        terminalreporter.write_line(f"{skipped[0].longrepr[-1]}: no edit was compared with what the released one did.")


def quick_first(values: Iterable) -> list:
    """The values of a parameter; with all but the first of them a test counts as slow."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
