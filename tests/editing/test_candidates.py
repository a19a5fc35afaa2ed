"""One edit, many candidates: each has its seed, rounding is accounted for, nothing finished is lost or made twice."""

import gc
import json
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import PIL.Image
import pytest
import torch

from blended_diffusion.editing.candidates import make_candidates
from blended_diffusion.editing.edit import Edit, largest_difference, make_again
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import Record, Run, from_json, in_batches, read_record
from blended_diffusion.editing.results import Results
from blended_diffusion.models import load_model
from blended_diffusion.pictures import gallery


MADE_WITH = MadeWith("0.1", "2.15", "0.42", "5.23", "3.11", "cpu", "x86_64", "float32", 1)


def run_of(edit, count=5, batch_size=2, **changes) -> Run:
    batches = in_batches(list(range(7, 7 + count)), batch_size)
    run = Run(
        edit.settings, **edit.origins, seed=7, batch_size=batch_size, stem="out", film=None, assets=False,
        batches=batches, made_with=MADE_WITH,
    )  # fmt: skip
    return replace(run, **changes)


def make(edit, folder, run, keep=False) -> list[gallery.Entry]:
    results = Results.open(folder, run, resume=keep)
    return list(make_candidates(edit, results, run.seeds, keep))


def pixels(folder) -> dict[str, bytes]:
    """The names and pixels of all that was made."""
    found = {}
    for path in sorted((folder / "ranked").glob("*.png")):
        with PIL.Image.open(path) as picture:
            found[path.name] = picture.tobytes()
    return found


class TestMakeCandidates:
    def test_every_seed_is_written_and_ranked(self, edit, tmp_path):
        entries = make(edit, tmp_path, run_of(edit))
        assert [entry.seed for entry in entries] == [7, 8, 9, 10, 11]
        finished = Results(tmp_path, run_of(edit)).finished()
        assert sorted(entry.seed for entry in finished) == [7, 8, 9, 10, 11]
        assert [entry.clip_distance for entry in finished] == sorted(entry.clip_distance for entry in finished)
        for entry in finished:
            assert entry.path.name == f"{entry.clip_distance:.4f}_out_seed_{entry.seed}.png"

    def test_nothing_outside_the_mask_changes(self, edit, tmp_path):
        outside = np.asarray(edit.mask.image) == 0
        for entry in make(edit, tmp_path, run_of(edit, count=2)):
            with PIL.Image.open(entry.path) as picture:
                np.testing.assert_array_equal(np.asarray(picture)[outside], np.asarray(edit.photo.image)[outside])
                assert (np.asarray(picture) != np.asarray(edit.photo.image)).any()
                assert picture.info["icc_profile"] == edit.photo.icc_profile

    def test_a_picture_is_written_before_the_next_batch_begins(self, edit, tmp_path):
        results = Results.open(tmp_path, run_of(edit, count=4), resume=False)
        making = make_candidates(edit, results, [7, 8, 9, 10], keep=False)
        next(making)
        assert len(pixels(tmp_path)) == 1 and len(results.finished()) == 1

    def test_the_record_is_in_the_picture_and_beside_it(self, edit, tmp_path):
        entry = make(edit, tmp_path, run_of(edit, count=3))[1]
        inside = read_record(entry.path)
        assert inside == from_json(Record, entry.path.with_suffix(".json").read_text())
        assert (inside.seed, inside.batch, inside.settings) == (8, [7, 8], edit.settings)
        assert inside.photo.name == str(edit.photo.path)

    def test_films_and_assets_are_written_if_wanted(self, edit, tmp_path):
        entry = make(edit, tmp_path, run_of(edit, count=1, film="mp4", assets=True))[0]
        # half a second of the source, four steps and the result, which rests for a second and a half
        assert len(imageio.imread(tmp_path / "films" / f"{entry.path.stem}.mp4")) == 6 + 4 + 1 + 18
        names = {path.name for path in (tmp_path / "assets").iterdir()}
        assert names == {"out.png", "out_mask.png", "out_seed_7.png"}
        make(edit, tmp_path / "plain", run_of(edit, count=1))
        assert {path.name for path in (tmp_path / "plain").iterdir()} == {"ranked", "run.json"}

    @pytest.mark.full_sheets
    def test_sheets_show_what_is_finished(self, edit, tmp_path):
        make(edit, tmp_path, run_of(edit, count=3))
        results = Results(tmp_path, run_of(edit, count=3))
        assert results.write_sheets(edit) == results.finished()
        for name in ("contact_sheet.png", "before_after.png"):
            with PIL.Image.open(tmp_path / name) as sheet:
                assert sheet.width > 600 and sheet.info["icc_profile"] == edit.photo.icc_profile


class TestResume:
    @pytest.fixture
    def whole(self, edit, tmp_path):
        """An uninterrupted run."""
        make(edit, tmp_path / "whole", run_of(edit))
        return pixels(tmp_path / "whole")

    @pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5])
    def test_wherever_it_stopped_the_set_is_that_of_an_uninterrupted_run(self, edit, tmp_path, whole, stop_after):
        results = Results.open(tmp_path / "cut", run_of(edit), resume=False)
        making = make_candidates(edit, results, run_of(edit).seeds, keep=False)
        for _ in range(stop_after):
            next(making)
        making.close()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/ranked").iterdir()}
        made = make(edit, tmp_path / "cut", run_of(edit), keep=True)
        assert len(made) == 5 - stop_after
        assert pixels(tmp_path / "cut") == whole
        assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    def test_only_batches_with_something_missing_are_computed(self, edit, tmp_path):
        entries = make(edit, tmp_path, run_of(edit))
        entries[2].path.unlink()
        sizes = []
        edit.model.pipe.unet.register_forward_pre_hook(lambda unet, args: sizes.append(len(args[0])))
        make(edit, tmp_path, run_of(edit), keep=True)
        assert sizes == [2] * 4

    def test_half_a_pair_is_not_finished(self, edit, tmp_path, whole):
        make(edit, tmp_path / "cut", run_of(edit))
        records = sorted((tmp_path / "cut/ranked").glob("*.json"))
        records[0].unlink()  # killed between the picture and its record
        records[1].with_suffix(".png").unlink()  # deleted by hand
        records[2].write_text(records[2].read_text()[:100])  # not ours
        part = tmp_path / "cut/ranked/.abc.part/0.5_out_seed_7.json"
        part.parent.mkdir()
        part.write_text("killed while writing")
        assert len(make(edit, tmp_path / "cut", run_of(edit), keep=True)) == 3
        assert pixels(tmp_path / "cut") == whole

    def test_more_can_be_asked_for(self, edit, tmp_path):
        make(edit, tmp_path, run_of(edit, count=3))
        before = pixels(tmp_path)
        made = make(edit, tmp_path, run_of(edit, count=6), keep=True)
        assert [entry.seed for entry in made] == [10, 11, 12]
        assert before.items() <= pixels(tmp_path).items()
        assert from_json(Run, (tmp_path / "run.json").read_text()).batches == [[7, 8], [9], [10, 11], [12]]

    def test_fewer_can_be_asked_for(self, edit, tmp_path):
        results = Results.open(tmp_path, run_of(edit, count=6), resume=False)
        next(making := make_candidates(edit, results, [7], keep=False))
        making.close()
        made = make(edit, tmp_path, run_of(edit, count=2), keep=True)
        assert [entry.seed for entry in made] == [8]

    def test_without_it_all_is_made_again(self, edit, tmp_path, whole):
        make(edit, tmp_path / "again", run_of(edit))
        assert len(make(edit, tmp_path / "again", run_of(edit))) == 5
        assert pixels(tmp_path / "again") == whole

    def test_another_edit_is_refused_and_nothing_touched(self, edit, tmp_path):
        make(edit, tmp_path, run_of(edit, count=1))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        other = run_of(edit, count=1, settings=replace(edit.settings, prompt="cat"), seed=9)
        for resume in (True, False):
            with pytest.raises(ValueError, match=r"holds another edit \('a rock'; different are: prompt, seed\)"):
                Results.open(tmp_path, other, resume)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before

    def test_another_edit_that_came_to_nothing_is_replaced(self, edit, tmp_path):
        Results.open(tmp_path, run_of(edit, settings=replace(edit.settings, prompt="cat")), resume=False)
        assert len(make(edit, tmp_path, run_of(edit, count=1), keep=True)) == 1
        assert from_json(Run, (tmp_path / "run.json").read_text()).settings.prompt == "a rock"

    def test_pictures_of_another_edit_do_not_count(self, edit, tmp_path):
        make(edit, tmp_path, run_of(edit, count=2))
        other = run_of(edit, count=2, settings=replace(edit.settings, strength=0.5))
        assert Results(tmp_path, other).finished() == []

    def test_a_damaged_run_is_one_sentence(self, edit, tmp_path):
        make(edit, tmp_path, run_of(edit, count=1))
        (tmp_path / "run.json").write_text(json.dumps({"settings": {}}))
        with pytest.raises(ValueError, match="damaged run.json"):
            Results.open(tmp_path, run_of(edit), resume=True)

    def test_a_file_in_the_way_is_one_sentence(self, edit, tmp_path):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(ValueError, match="--output_path .* cannot be written to"):
            Results.open(tmp_path / "out", run_of(edit), False, "--output_path")


class TestOutOfMemory:
    @pytest.fixture
    def room_for(self, edit):
        """A UNet that runs out of memory as CUDA's do."""

        def limit(size):
            def check(unet, args):
                if len(args[0]) > size:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

            edit.model.pipe.unet.register_forward_pre_hook(check)

        return limit

    def test_the_batch_is_halved_and_said_so(self, edit, tmp_path, room_for, caplog):
        room_for(2)
        entries = make(edit, tmp_path, run_of(edit, count=10, batch_size=8))
        assert [entry.seed for entry in entries] == list(range(7, 17))
        records = [from_json(Record, entry.path.with_suffix(".json").read_text()) for entry in entries]
        assert [record.batch for record in records[::2]] == [[7, 8], [9, 10], [11, 12], [13, 14], [15, 16]]
        assert from_json(Run, (tmp_path / "run.json").read_text()).batches == [record.batch for record in records[::2]]
        assert "8 pictures at once do not fit into memory: going on with 4" in caplog.text
        assert "4 pictures at once do not fit into memory: going on with 2" in caplog.text

    def test_it_makes_what_a_run_of_that_batch_size_makes(self, edit, tmp_path, room_for):
        make(edit, tmp_path / "small", run_of(edit, count=4, batch_size=2))
        room_for(2)
        make(edit, tmp_path / "halved", run_of(edit, count=4, batch_size=4))
        assert pixels(tmp_path / "halved") == pixels(tmp_path / "small")

    def test_resumed_it_keeps_to_the_smaller_batches(self, edit, files, tiny_model_dir, tmp_path, room_for):
        """Also if there is enough memory by then: the set is that of the uninterrupted run."""
        room_for(2)
        run = run_of(edit, count=4, batch_size=4)
        make(edit, tmp_path / "whole", run)
        results = Results.open(tmp_path / "cut", run, resume=False)
        next(making := make_candidates(edit, results, run.seeds, keep=False))
        making.close()
        model = load_model(str(tiny_model_dir))
        model.pipe.set_progress_bar_config(disable=True)
        make(Edit.prepare(model, edit.photo, edit.mask, edit.settings), tmp_path / "cut", run, keep=True)
        assert pixels(tmp_path / "cut") == pixels(tmp_path / "whole")

    def test_if_one_alone_does_not_fit_what_is_finished_stays(self, edit, tmp_path, room_for):
        make(edit, tmp_path, run_of(edit, count=2))
        room_for(0)
        with pytest.raises(MemoryError, match="One picture alone does not fit"):
            make(edit, tmp_path, run_of(edit, count=4), keep=True)
        assert len(Results(tmp_path, run_of(edit)).finished()) == 2

    def test_other_errors_are_not_taken_for_it(self, edit, tmp_path):
        def fail(unet, args):
            raise RuntimeError("a bug")

        edit.model.pipe.unet.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="a bug"):
            make(edit, tmp_path, run_of(edit))

    def test_what_did_not_fit_is_let_go(self, edit, tmp_path):
        """The tensors of the failed batch must be gone before the smaller one begins."""
        alive = []

        def check(unet, args):
            if len(args[0]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if not alive:
                gc.collect()
                alive.append(any(type(o) is torch.Tensor and o.shape == (2, 3, 16, 16) for o in gc.get_objects()))

        edit.model.pipe.unet.register_forward_pre_hook(check)
        make(edit, tmp_path, run_of(edit, count=2))
        assert alive and not alive[0]


def test_a_picture_is_made_again_from_its_record(edit, tmp_path):
    for entry in make(edit, tmp_path, run_of(edit, count=3, batch_size=3)):
        record = read_record(entry.path)
        again = make_again(edit, record)
        with PIL.Image.open(entry.path) as picture:
            assert largest_difference(edit.finish(again), picture) == 0
