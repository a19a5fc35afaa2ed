"""What the documents say: their Python runs, and what they claim about the model in the box is so."""

import re
from pathlib import Path

import pytest
from PIL import Image

from blended_diffusion.demo import KNOWN_WORDS, MODEL_FOLDER


ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", MODEL_FOLDER / "README.md"]


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```py(?:thon)?\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=["README", "model card"])
def test_python_runs(document, tmp_path, monkeypatch):
    for name in ("examples", "blended_diffusion"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(document)
    assert blocks
    for block in blocks:
        exec(compile(block, str(document), "exec"), {})
    with Image.open("edited.png") as edited, Image.open("examples/coffee.jpg") as photo:
        assert edited.size == photo.size


@pytest.mark.parametrize("document", DOCUMENTS, ids=["README", "model card"])
def test_the_known_words_are_named(document):
    text = " ".join(document.read_text(encoding="utf-8").replace(">", " ").split())
    assert ", ".join(KNOWN_WORDS) in text


def test_links_within_the_repository_lead_somewhere():
    others = [ROOT / "CREDITS.md", ROOT / "CHANGELOG.md", ROOT / "training" / "README.md", *ROOT.glob("docs/*.md")]
    for document in [ROOT / "README.md", *others]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
