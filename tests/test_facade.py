"""What somebody who imports the package needs, by name: looked up when asked for, and enough for an edit."""

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import blended_diffusion


ROOT = Path(__file__).parents[1]


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, blended_diffusion\n"
        "dir(blended_diffusion), blended_diffusion.__version__\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'accelerate'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_is_there():
    assert set(blended_diffusion.__all__) == {
        "EditSettings", "Editor", "Mask", "Photo", "__version__", "edit", "fill", "load_model",
    }  # fmt: skip
    assert set(blended_diffusion.__all__) <= set(dir(blended_diffusion))
    for name in blended_diffusion.__all__:
        assert inspect.getdoc(getattr(blended_diffusion, name))
    assert blended_diffusion.__version__ == version("blended-diffusion")


def test_other_names_are_not():
    assert not hasattr(blended_diffusion, "painting")
