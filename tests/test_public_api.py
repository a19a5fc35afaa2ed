"""The public API does not change by accident: `tests/public_api.txt` is what it was when somebody last agreed to it.

After a change that is meant:

    python tests/test_public_api.py

writes the file anew; read its difference before committing it.
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Iterator

from house import MODULES, PACKAGE, ROOT


SNAPSHOT = ROOT / "tests" / "public_api.txt"
# modules, and packages with all that is in them; of the façade it is the names
PUBLIC = [
    "pipeline_blended_diffusion",
    "pipeline_imagic",
    "modular_blended_diffusion",
    f"{PACKAGE}.models",
    f"{PACKAGE}.editing.editor",
    f"{PACKAGE}.painters.settings",
    f"{PACKAGE}.pictures.fill",
    f"{PACKAGE}.masks",
    f"{PACKAGE}.applications",
]
# what these say without being called
PROPERTIES = ("property", "cached_property")


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def one_line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def describe_function(node: ast.FunctionDef, indent: str = "") -> Iterator[str]:
    """Its signature, one line for each parameter: so that a difference shows which one has changed."""
    decorators = [one_line(decorator) for decorator in node.decorator_list]
    if any(name in PROPERTIES for name in decorators):
        yield f"{indent}{node.name}: {one_line(node.returns) if node.returns else ''}  (property)"
        return
    kind = "".join(f"{name} " for name in decorators if name in ("staticmethod", "classmethod"))
    arguments, lines = node.args, []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        lines.append(one_line(argument) + (f" = {one_line(default)}" if default else ""))
        if arguments.posonlyargs and argument is arguments.posonlyargs[-1]:
            lines.append("/")
    if arguments.vararg:
        lines.append(f"*{one_line(arguments.vararg)}")
    elif arguments.kwonlyargs:
        lines.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        lines.append(one_line(argument) + (f" = {one_line(default)}" if default else ""))
    if arguments.kwarg:
        lines.append(f"**{one_line(arguments.kwarg)}")
    if lines[:1] in (["self"], ["cls"]):
        del lines[0]
    yield f"{indent}{kind}{node.name}()" + (f" -> {one_line(node.returns)}" if node.returns else "")
    yield from (f"{indent}    {line}" for line in lines)


def describe_class(node: ast.ClassDef) -> Iterator[str]:
    yield f"class {node.name}" + (f"({', '.join(map(one_line, node.bases))})" if node.bases else "")
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and is_public(one_line(child.target)):
            default = f" = {one_line(child.value)}" if child.value else ""
            yield f"    {one_line(child.target)}: {one_line(child.annotation)}{default}"
        elif isinstance(child, ast.FunctionDef) and is_public(child.name):
            yield from describe_function(child, "    ")


def describe_module(source: str) -> Iterator[str]:
    """Its public classes and functions."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from describe_class(node)
        elif isinstance(node, ast.FunctionDef) and is_public(node.name):
            yield from describe_function(node)


def describe_api() -> str:
    exported = getattr(importlib.import_module(PACKAGE), "__all__", [])
    lines = [f"# {PACKAGE}", "", *sorted(exported), ""]
    for name, path in MODULES.items():
        if any(name == public or name.startswith(f"{public}.") for public in PUBLIC):
            found = list(describe_module(path.read_text(encoding="utf-8")))
            lines += [f"# {name}", "", *found, ""] if found else []
    return "\n".join(lines)


def test_the_api_is_what_was_agreed():
    agreed = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    changed = difflib.unified_diff(agreed, describe_api().splitlines(), "agreed", "now", lineterm="", n=1)
    assert "\n".join(changed) == "", "if this is meant, run: python tests/test_public_api.py"


def test_the_snapshot_has_what_people_call():
    text = SNAPSHOT.read_text(encoding="utf-8")
    for wanted in ("class BlendedDiffusionPipeline", "class Editor", "class EditSettings", "load_model()"):
        assert wanted in text


def test_every_change_of_a_signature_is_seen():
    plain = "def paint(photo: Image, words: str = 'rock', *, seed: int = 0) -> Image: ..."
    changes = [
        "def fill(photo: Image, words: str = 'rock', *, seed: int = 0) -> Image: ...",
        "def paint(photo: Image, prompt: str = 'rock', *, seed: int = 0) -> Image: ...",
        "def paint(photo: Image, words: str, *, seed: int = 0) -> Image: ...",
        "def paint(photo: Image, words: str = 'rock', seed: int = 0) -> Image: ...",
        "def paint(photo: Image, words: str = 'rock', *, seed: int = 1) -> Image: ...",
        "def paint(photo: str, words: str = 'rock', *, seed: int = 0) -> Image: ...",
        "def paint(photo: Image, words: str = 'rock', *, seed: int = 0) -> str: ...",
        "def paint(photo: Image, words: str = 'rock', *, seed: int = 0, **more) -> Image: ...",
    ]
    assert len({"\n".join(describe_module(source)) for source in (plain, *changes)}) == len(changes) + 1
    assert list(describe_module(f"{plain}\ndef _own(): ...\nimport os")) == list(describe_module(plain))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    SNAPSHOT.write_text(describe_api(), encoding="utf-8")
