"""The judge: the bundled one loads as it is, and a training makes one that does not mind sizes and batches."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import assert_close

from blended_diffusion.evaluation.judge import JUDGE_FOLDER, NOTHING, Judge, prepare
from training import train_judge
from training.captions import EMPTY
from training.loop import latest_checkpoint


EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = {"apple": (220, 10, 30), "rock": (120, 120, 120)}


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "no_network")


@pytest.fixture
def data(tmp_path):
    """A data set in miniature: two words by two artists on a photo of each split."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    objects, backgrounds = [], []
    (folder / "objects").mkdir(parents=True)
    (folder / "backgrounds").mkdir()
    for split in ("training", "evaluation"):
        for rank, (word, colour) in enumerate(WORDS.items()):
            pixels = np.zeros((24, 24, 4), np.uint8)
            pixels[2:22, 2:22] = (*colour, 255)
            row = {"file_name": f"{split}-{word}.png", "text": word, "word": word, "rank": rank, "colour": ""}
            Image.fromarray(pixels).save(folder / "objects" / row["file_name"])
            objects.append({**row, "split": split})
        photo = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        photo.save(folder / "backgrounds" / f"{split}.png")
        backgrounds.append({"file_name": f"{split}.png", "text": "background", "split": split})
    for name, rows in {"objects": objects, "backgrounds": backgrounds}.items():
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def train(data, output, *flags: str) -> dict[str, torch.Tensor]:
    shared = ["--data", data, "--output", output, "--size", "16", "--batch-size", "4", "--cpu", "--log-steps", "1"]
    small = ["--widths", "32", "32", "--blocks", "1", "1", "--warmup-steps", "2"]
    finish = ["--statistics", "8", "--evaluate", "40"]
    train_judge.main([str(part) for part in [*shared, *small, *finish, *flags]])
    return load_file(latest_checkpoint(output) / "averaged" / "model.safetensors")


def pictures(count: int, size: int) -> list[Image.Image]:
    rng = np.random.default_rng(size)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def test_from_pictures_to_a_judge(data, tmp_path, capsys):
    train(data, tmp_path / "run", "--steps", "3", "--export", str(tmp_path / "judge"))
    judge = Judge.load(tmp_path / "judge")
    assert judge.words == list(WORDS) and NOTHING not in judge.words
    probabilities = judge.probabilities(pictures(5, 16))
    assert probabilities.shape == (5, 3) and probabilities.dtype == torch.float32
    assert_close(probabilities.sum(dim=1), torch.ones(5))
    assert judge.features(pictures(5, 16)).shape == (5, 32)

    report = json.loads((tmp_path / "judge" / "accuracy.json").read_text())
    assert json.loads(capsys.readouterr().out.split("\n", 3)[3]) == report
    assert report["fluent"]["pictures"] + report["noto"]["pictures"] + report["plain photos"]["pictures"] == 80
    assert all(
        part["accuracy"] == pytest.approx(part["right"] / part["pictures"], abs=1e-4) for part in report.values()
    )


def test_a_judge_is_kept_in_half_precision_and_computes_in_single(data, tmp_path):
    averaged = train(data, tmp_path / "run", "--steps", "2", "--export", str(tmp_path / "judge"))
    stored = load_file(tmp_path / "judge" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}  # batch norms count batches
    assert json.loads((tmp_path / "judge" / "config.json").read_text())["dtype"] == "float32"
    loaded = Judge.load(tmp_path / "judge").model.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values() if tensor.is_floating_point())
    weights = "classifier.1.weight"
    assert_close(loaded[weights], averaged[weights], torch.float16)


def test_a_judges_training_in_pieces_is_the_training_in_one(data, tmp_path):
    whole = train(data, tmp_path / "whole", "--steps", "3")
    for _ in range(3):  # no time at all is enough for one step
        torch.rand(1)  # what others draw from the global generator is of no matter
        pieces = train(data, tmp_path / "pieces", "--steps", "3", "--max-minutes", "0")
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


def test_both_artists_and_plain_photos_in_turn(data):
    judged = train_judge.JudgedPictures(data, 16, seed=5)
    assert judged.words == list(WORDS)
    for index, (artist, number) in {0: (0, 0), 1: (1, 0), 3: (0, 1), 4: (1, 1)}.items():
        assert np.array_equal(judged[index]["image"], judged.artists[artist][number]["image"])
    assert all(judged[index]["fact"][0] == EMPTY and not judged[index]["mask"].any() for index in (2, 5))
    assert not np.array_equal(judged[2]["image"], judged[5]["image"])


def test_artists_of_different_words_are_refused(data):
    path = data / "objects" / "metadata.jsonl"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "evaluation-apple" not in line))
    with pytest.raises(ValueError, match="same words"):
        train_judge.JudgedPictures(data, 16)


def test_a_judge_is_measured_on_its_own_words_only(data, tmp_path):
    train(data, tmp_path / "run", "--steps", "1", "--words", "1", "--export", str(tmp_path / "judge"))
    judge = Judge.load(tmp_path / "judge")
    judge.words = ["rock"]
    with pytest.raises(ValueError, match="words are not the first 1"):
        train_judge.accuracy(judge, data, count=4)


def test_disturbed_pictures():
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures(16, 32)])
    disturbance = train_judge.make_disturbance(32)
    before = torch.random.get_rng_state()
    once, again = (train_judge.disturbed(pixels, disturbance, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(once, again) and once.shape == pixels.shape
    assert once.min() >= -1 and once.max() <= 1
    assert not torch.equal(once, train_judge.disturbed(pixels, disturbance, seed=4))


def test_plain_photos_have_the_last_label():
    facts = torch.tensor([[1, -1, 0], [-1, -1, 0], [0, 2, 1]])
    assert train_judge.labels_of(facts, num_words=2).tolist() == [1, 2, 0]


@pytest.fixture(scope="module")
def bundled() -> Judge:
    return Judge.load()


def test_the_bundled_judge_is_as_its_card_says(bundled):
    report = json.loads((JUDGE_FOLDER / "accuracy.json").read_text())
    assert set(report["fluent"]["words"]) == set(report["noto"]["words"]) == set(bundled.words)
    assert min(report["fluent"]["accuracy"], report["noto"]["accuracy"]) > 0.97
    assert report["plain photos"]["accuracy"] > 0.95
    assert bundled.model.config.id2label[len(bundled.words)] == bundled.nothing
    assert (JUDGE_FOLDER / "model.safetensors").stat().st_size < 4e6
    card = (JUDGE_FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"{part['right']} of {part['pictures']}" in card for part in report.values())
    assert ", ".join(sorted(bundled.words)) in " ".join(card.split())


def test_the_bundled_judge_sees_nothing_on_a_plain_photo_and_something_where_there_is(bundled):
    plain = Image.open(EXAMPLES / "dandelions.jpg").convert("RGB")
    squares = [plain.crop((left, 0, left + side, side)) for side in (100, 200) for left in (0, 50, 100)]
    assert (bundled.probabilities(squares).argmax(dim=1) == len(bundled.words)).all()


def test_the_bundled_judge_needs_nothing_of_the_training(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("training", "blended_diffusion")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "training", None)
    judge = importlib.import_module("blended_diffusion.evaluation.judge")
    assert judge.Judge is not Judge
    assert judge.Judge.load().probabilities([Image.new("RGB", (80, 80))]).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_batch_does_not_matter(bundled):
    photos = pictures(70, 64)  # more than are computed at once
    alone = torch.cat([bundled.probabilities([photo]) for photo in photos[::23]])
    assert_close(bundled.probabilities(photos)[::23], alone)


def test_the_size_hardly_matters(bundled):
    ramp = np.linspace(0, 255, 64)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 255 - ramp[:, None]), axis=-1).astype(np.uint8)
    small = Image.fromarray(smooth)
    large = small.resize((256, 256), Image.Resampling.BICUBIC)
    assert_close(bundled.probabilities([small]), bundled.probabilities([large]), torch.bfloat16)


def test_pictures_are_reduced_with_antialiasing():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    prepared = prepare([Image.fromarray(stripes)], 16)
    assert prepared.shape == (1, 3, 16, 16) and prepared.abs().max() < 0.1


def test_a_judge_is_never_in_training_mode_and_keeps_no_gradients(bundled):
    assert not bundled.model.training
    assert not bundled.probabilities(pictures(1, 64)).requires_grad
    assert not bundled.features(pictures(1, 64)).requires_grad


@pytest.mark.parametrize("image", [Image.new("RGB", (64, 48)), Image.new("RGBA", (64, 64)), Image.new("L", (64, 64))])
def test_pictures_that_are_not_square_or_not_rgb_are_refused(bundled, image):
    with pytest.raises(ValueError, match="Picture 1 is .* square RGB"):
        bundled.probabilities([*pictures(1, 64), image])


def test_no_pictures_are_refused(bundled):
    with pytest.raises(ValueError, match="no pictures"):
        bundled.features([])


def test_a_folder_without_a_judge_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no judge"):
        Judge.load(tmp_path)
