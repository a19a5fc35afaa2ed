"""The plan of the house: what a module imports stands under it, or beside it on the same floor.

Not only `import` counts, but also whatever a string names, such as `"blended_diffusion.applications.x:y"` for an
`importlib.import_module` or a `pkgutil.resolve_name` later.
"""

import ast
import re
from collections.abc import Iterator
from importlib.util import resolve_name

import pytest
from house import MODULES, PACKAGE


# from the top to the ground; a module imports from its own line and from those under it
FLOORS = [
    ["blended_diffusion.cli", "blended_diffusion.__main__"],
    ["blended_diffusion.commands", "blended_diffusion.app"],
    ["blended_diffusion.applications"],
    ["blended_diffusion.evaluation"],
    ["blended_diffusion.editing"],
    ["blended_diffusion.painters"],
    ["blended_diffusion.masks", "blended_diffusion.pictures"],
    [
        "blended_diffusion.models",
        "blended_diffusion.inpainting_models",
        "blended_diffusion.model_files",
        "blended_diffusion.machine",
    ],
    ["blended_diffusion.checkpoints"],
    ["modular_blended_diffusion"],
    ["pipeline_blended_diffusion", "pipeline_imagic"],
    ["blended_diffusion.demo"],
]
# beside the house: it may use all of the house, and nothing in the house uses it
OUTSIDE = ("training", "benchmarks", "tests", "docs")
# the façade holds every floor's names by name, lazily; of it the house asks nothing but this
OF_THE_FACADE = ("__version__",)

NAMED = re.compile(
    r"(?:blended_diffusion|(?:pipeline|modular)_\w+|training|benchmarks|tests|docs)(?:\.\w+)+(?::[\w.]+)?"
)


def floor_of(module: str) -> int | None:
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that `source` imports or names in a string."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value.strip(".")):
            yield node.lineno, node.value.strip(".").replace(":", ".")


def find_wrong_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """What `module` must not import, as sentences."""
    wrong = []
    for line, name in imports_of(source, module, is_package):
        top, _, rest = name.partition(".")
        target = floor_of(name)
        if top in OUTSIDE:
            wrong.append(f"{module}:{line} imports {name}, which is outside the house")
        elif target is not None and target < floor_of(module):
            wrong.append(f"{module}:{line} imports {name}, {floor_of(module) - target} floors above it")
        elif top == PACKAGE and target is None and rest not in OF_THE_FACADE and rest not in ("", "__init__"):
            wrong.append(f"{module}:{line} imports {name}, which is the façade's or stands on no floor")
    return wrong


def test_every_module_stands_on_a_floor():
    assert len(MODULES) > 60
    assert [module for module in MODULES if floor_of(module) is None] == [PACKAGE]


@pytest.mark.parametrize("module", [module for module in MODULES if module != PACKAGE])
def test_nothing_is_imported_from_a_higher_floor(module):
    path = MODULES[module]
    assert find_wrong_imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


def test_the_facade_imports_no_floor_until_it_is_asked():
    """What is at its module level is all that `import blended_diffusion` costs."""
    body = ast.parse(MODULES[PACKAGE].read_text(encoding="utf-8")).body
    eager = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [name for node in eager for _, name in imports_of(ast.unparse(node), PACKAGE, is_package=True)]
    assert [name for name in names if floor_of(name) is not None] == []


@pytest.mark.parametrize(
    "source",
    [
        "import blended_diffusion.commands.edit",
        "from blended_diffusion.editing import editor",
        "from blended_diffusion import applications",
        "from ..editing.editor import Editor",
        "from .. import cli",
        "def late():\n    from blended_diffusion.evaluation.judge import Judge",
        "if TYPE_CHECKING:\n    from blended_diffusion.editing.editor import Editor",
        "TASK = 'blended_diffusion.applications.extend:extend'",
        "importlib.import_module('blended_diffusion.applications')",
        "importlib.import_module('.editing', 'blended_diffusion.editing')",
        "pkgutil.resolve_name(f'blended_diffusion.applications.{name}')",
        "from blended_diffusion import Editor",
        "from training.losses import l1",
        "import benchmarks.table",
        "from tests import conftest",
    ],
)
def test_what_comes_from_above_is_seen(source):
    assert find_wrong_imports(source, "blended_diffusion.painters.windows")


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from blended_diffusion import __version__, machine, masks",
        "from .settings import EditSettings",
        "from ..pictures import canvas",
        "from pipeline_blended_diffusion import BlendedDiffusionPipeline",
        "'''Called by blended_diffusion.editing.editor.'''",
        "KEY = 'blended_diffusion'",
    ],
)
def test_what_stands_beside_or_below_is_not(source):
    assert find_wrong_imports(source, "blended_diffusion.painters.windows") == []
