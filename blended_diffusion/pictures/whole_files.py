"""Files that are whole or not there: whoever reads a folder while it is written to, or after an accident.

What belongs here is how a file gets its name, and what is said where none can be written. What is in it belongs to the
modules that write it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives another path to write to, and what is written there the name `path` when the block has ended.

    Several processes may write the same file at once; the last one's stays. Nothing is left of a block that fails; one
    that is killed leaves a hidden folder `.….part` beside `path`.

    Args:
        path (`Path`): in a folder that exists.

    Returns:
        a context manager that gives a `Path` of the same name in a folder of its own.
    """
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        os.replace(part, path)


@contextmanager
def writing_to(folder: Path, argument: str = "folder") -> Iterator[None]:
    """Says in one sentence what the system has against writing to `folder`, if what is within fails for that.

    Args:
        folder (`Path`): where all that is written within the `with` goes.
        argument (`str`): what to call `folder` in error messages.

    Raises:
        ValueError: it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{argument} {str(folder)!r} cannot be written to ({error.strerror}).") from None
