"""The small models in the box: where they are and which words they know.

Its card is `model_card.md` at the top of the repository, and its pipeline the file there: in `model/` both are links,
which an installation turns into files.

Only data belongs here; it is loaded like any other model.
"""

from pathlib import Path


MODEL_FOLDER = Path(__file__).parent / "model"
TEXT_MODEL_FOLDER = Path(__file__).parent / "text-model"
KNOWN_WORDS = tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split("\n")[:-1])


def known_text_words() -> tuple[str, ...]:
    """The things that `bundled-text` knows."""
    return tuple((TEXT_MODEL_FOLDER / "words.txt").read_text(encoding="utf-8").split("\n")[:-1])
