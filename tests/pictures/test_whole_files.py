"""A file is whole or not there, whoever writes it and whatever becomes of them."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from blended_diffusion.pictures.whole_files import whole_file


def write_again_and_again(path: Path, letter: str) -> None:
    for _ in range(200):
        with whole_file(path) as part:
            part.write_text(letter * 1000)


@pytest.mark.slow
def test_several_processes_may_write_the_same_file(tmp_path):
    """One name for what is still being written would be taken from under the others."""
    path = tmp_path / "same.txt"
    fresh = multiprocessing.get_context("spawn")
    writers = [fresh.Process(target=write_again_and_again, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            text = path.read_text()
            assert len(text) == 1000 and len(set(text)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["same.txt"]


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text("half")
        # whoever looks for files of this kind meanwhile finds the earlier one alone
        assert list(tmp_path.glob("*.json")) == [path]
        raise KeyboardInterrupt
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["file.json"]


def test_it_may_be_read_by_whoever_may_read_files_made_otherwise(tmp_path):
    (tmp_path / "plain.txt").write_text("")
    with whole_file(tmp_path / "whole.txt") as part:
        part.write_text("")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain.txt", "whole.txt")}
    assert len(modes) == 1
