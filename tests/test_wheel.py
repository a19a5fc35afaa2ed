"""What is installed is what is tested: the wheel, file by file, is the checkout."""

import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import pytest
from house import PACKAGE, ROOT


pytestmark = pytest.mark.slow

NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "output")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, since building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "checkout"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_the_wheel_is_the_checkout(wheel):
    package = [path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    modules = [*ROOT.glob("pipeline_*.py"), *ROOT.glob("modular_*.py")]
    expected = {path.relative_to(ROOT).as_posix(): path for path in (*package, *modules)}
    held = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held - set(expected) == set(), "the wheel holds what the checkout does not"
    assert set(expected) - held == set(), "the wheel lacks what the checkout holds"
    different = [name for name, path in expected.items() if wheel.read(name) != path.read_bytes()]
    assert different == []


def test_it_holds_the_data(wheel):
    """Models, words, judge and benchmark, which nothing imports."""
    names = set(wheel.namelist())
    model, evaluation = f"{PACKAGE}/demo/model", f"{PACKAGE}/evaluation"
    assert {
        f"{PACKAGE}/py.typed",
        f"{PACKAGE}/demo/words.txt",
        f"{model}/README.md",
        f"{model}/model_index.json",
        f"{model}/unet/diffusion_pytorch_model.safetensors",
        f"{model}/clip_model/model.safetensors",
        f"{model}/tokenizer/tokenizer.json",
        f"{evaluation}/judge_model/model.safetensors",
        f"{evaluation}/benchmark/edits.csv",
    } <= names
    assert sum(name.startswith(f"{evaluation}/benchmark/photos/") for name in names) == 24


def test_its_links_are_files(wheel):
    """So that the model's folder is complete wherever it is copied to."""
    links = [path for path in (ROOT / PACKAGE / "demo" / "model").iterdir() if path.is_symlink()]
    assert links, "the checkout has no links: git made text files of them (core.symlinks=false)"
    for link in links:
        name = link.relative_to(ROOT).as_posix()
        assert not stat.S_ISLNK(wheel.getinfo(name).external_attr >> 16)
        assert wheel.read(name) == link.resolve().read_bytes()


def test_its_command_and_its_licence(wheel):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "blended-diffusion = blended_diffusion.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
