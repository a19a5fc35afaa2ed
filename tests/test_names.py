"""A name means one thing in the whole house: no public class or function is defined in two of its modules."""

import ast
from collections import defaultdict
from pathlib import Path

from house import MODULES, ROOT


# what every module of a kind has
OF_EVERY_MODULE = {"main", "parse", "app", "logger"}


def defined_in(path: Path) -> set[str]:
    """The public classes and functions at the top of a module, in whatever branch."""
    names, nodes = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return {name for name in names if not name.startswith("_")} - OF_EVERY_MODULE


def defined_twice(paths: list[Path]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for path in paths:
        for name in defined_in(path):
            places[name].append(path.name if ROOT not in path.parents else str(path.relative_to(ROOT)))
    return {name: sorted(found) for name, found in sorted(places.items()) if len(found) > 1}


def test_no_name_is_defined_twice():
    others = [path for folder in ("training", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert defined_twice([*MODULES.values(), *others]) == {}


def test_a_second_definition_is_seen(tmp_path):
    (tmp_path / "one.py").write_text("class Step: ...\ndef main(): ...\ndef _own(): ...\n")
    (tmp_path / "two.py").write_text("if True:\n    def Step(): ...\ndef main(): ...\ndef _own(): ...\n")
    assert defined_twice([tmp_path / "one.py", tmp_path / "two.py"]) == {"Step": ["one.py", "two.py"]}
