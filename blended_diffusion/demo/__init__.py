"""The small model in the box: where it is and which words it knows.

Its card is `model_card.md` at the top of the repository, and its pipeline the file there: in `model/` both are links,
which an installation turns into files.

Only data belongs here; it is loaded like any other model.
"""

from pathlib import Path


MODEL_FOLDER = Path(__file__).parent / "model"
KNOWN_WORDS = tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split("\n")[:-1])
