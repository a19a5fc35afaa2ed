"""Makes the pictures of these pages by the commands that stand above them.

    python docs/make_pictures.py [--only NAME …]

A picture is announced in a page by a line

    <!-- picture: pictures/NAME.jpg = output/NAME/before_after.png -->

followed by the block of shell commands that makes it. The commands run in an empty folder beside a link to `examples/`
and what they write is brought to the width of a page and stored as JPEG. What is made here is the bundled model's.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image


DOCS = Path(__file__).parent
ANNOUNCED = r"<!-- picture: (\S+) = (\S+) -->\s*"
BLOCK = re.compile(rf"((?:{ANNOUNCED})+)```(?:bash|sh)\n(.*?)```".replace(r"(\S+)", r"\S+"), re.DOTALL)
WIDTH = 1000


def pictures(page: Path) -> list[tuple[list[tuple[str, str]], str]]:
    """The pictures of a page: pairs of names in `docs/` and of files, and the commands that write those files."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(re.findall(ANNOUNCED, announced), commands) for announced, commands in blocks]


def make(targets: list[tuple[str, str]], commands: str, folder: Path) -> None:
    """Runs `commands` in `folder` and stores what they wrote."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, check=True)
    for target, source in targets:
        with Image.open(folder / source) as image:
            picture = image.convert("RGB")
        if picture.width > WIDTH:
            height = round(picture.height * WIDTH / picture.width)
            picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        (DOCS / target).parent.mkdir(exist_ok=True)
        picture.save(DOCS / target, quality=90, optimize=True)
        print(DOCS / target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the documents by the commands beside them.")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="pages (extend) or pictures (pictures/extend.jpg)")
    wanted = parser.parse_args().only
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "examples").symlink_to(DOCS.parent / "examples")
        for page in sorted(DOCS.glob("*.md")):
            for targets, commands in pictures(page):
                names = {page.stem, *(target for target, _ in targets)}
                if wanted is None or names.intersection(wanted):
                    make(targets, commands, Path(scratch))


if __name__ == "__main__":
    main()
