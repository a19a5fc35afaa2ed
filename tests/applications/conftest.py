"""A model from a folder and an editor without sheets, for lists of edits; the files that such lists name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from blended_diffusion.editing.candidates import make_candidates
from blended_diffusion.editing.editor import FolderEditor
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.models import load_model


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Photos `a.png` and `b.png` with a mask, `c.png` without, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "a_mask", "b_mask"):
        Image.new("L" if "mask" in name else "RGB", (8, 8), "white").save(f"{name}.png")
    return tmp_path


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    model = load_model(str(tiny_model_dir))
    model.pipe.set_progress_bar_config(disable=True)
    return model


def make_without_sheets(job, results, seeds, keep):
    for _ in make_candidates(job, results, seeds, keep):
        pass
    return results.finished()


@pytest.fixture
def folder_editor(model) -> Callable[..., FolderEditor]:
    """Makes an editor that writes into `out`."""

    def make(**options) -> FolderEditor:
        made_with = MadeWith.on(torch.device("cpu"), torch.float32)
        return FolderEditor(model, Path("out"), made_with, **{"resume": True, "make": make_without_sheets, **options})

    return make
