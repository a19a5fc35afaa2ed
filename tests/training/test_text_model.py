"""A text model: its autoencoder, its UNet with the encoder of captions, and the stock pipelines that load it."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from transformers import CLIPTokenizer

from training import export, measure_text_model, train_autoencoder, train_judge, train_text_unet
from training.captions import NOTHING, ORDINARY, UNSAID, Fact, Vocabulary
from training.loop import latest_checkpoint
from training.train_autoencoder import draw_crops, latent_scale, make_autoencoder, psnr
from training.train_text_unet import captions_of_pictures, check_lengths, sample_captions


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "no_network")


@pytest.fixture
def data(tmp_path):
    """A folder of one's own pictures: a red and a blue one."""
    folder = tmp_path / "data"
    folder.mkdir()
    for text in ("red", "blue"):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        pixels[10:30, 10:30] = (255, 0, 0) if text == "red" else (0, 0, 255)
        Image.fromarray(pixels).save(folder / f"{text}.png")
    lines = [json.dumps({"file_name": f"{text}.png", "text": text}) for text in ("red", "blue")]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def shared(data, output) -> list:
    flags = ["--data", data, "--output", output, "--size", 32, "--batch-size", 2, "--cpu", "--log-steps", 1]
    return [*flags, "--warmup-steps", 1]


def train_an_autoencoder(data, output, *flags) -> None:
    small = ["--channels", 16, 32, "--crop", 16, "--evaluate", 3]
    train_autoencoder.main([str(part) for part in [*shared(data, output), *small, *flags]])


def train_a_unet(data, output, autoencoder, *flags) -> dict[str, torch.Tensor]:
    tiny_tokenizer().save_pretrained(output.parent / "tokenizer")
    small = ["--channels", 32, 32, "--text-width", 32, "--text-layers", 1, "--tokens", 8, "--sample-steps", 0]
    parts = ["--autoencoder", autoencoder, "--tokenizer", output.parent / "tokenizer"]
    train_text_unet.main([str(part) for part in [*shared(data, output), *small, *parts, *flags]])
    averaged = latest_checkpoint(output) / "averaged"
    unet = load_file(averaged / "unet" / "diffusion_pytorch_model.safetensors")
    return unet | load_file(averaged / "text_encoder" / "model.safetensors")


def test_from_pictures_to_stable_diffusion(data, tmp_path, photo, monkeypatch):
    train_an_autoencoder(data, tmp_path / "ae", "--steps", 2, "--export", tmp_path / "autoencoder")
    report = json.loads((tmp_path / "autoencoder" / "psnr.json").read_text())
    assert report["seen pictures"]["pictures"] == 3 and 0 < report["seen pictures"]["psnr"] < 40
    run, folder = tmp_path / "unet", tmp_path / "model"
    before = train_a_unet(data, run, tmp_path / "autoencoder", "--steps", 1)
    monkeypatch.setattr(train_text_unet, "SAMPLING_STEPS", 2)
    after = train_a_unet(data, run, tmp_path / "autoencoder", "--steps", 2, "--sample-steps", 2)
    assert Image.open(run / "samples-0000002.png").size == (8 * 32, 2 * 32)
    assert (run / "samples.txt").read_text().splitlines()[0] == "red"
    both = ("mid_block.resnets.0.conv1.weight", "embeddings.position_embedding.weight")
    assert not any(torch.equal(before[key], after[key]) for key in both)  # the encoder of captions learns too

    export.main(["--text-unet", str(run), "--autoencoder", str(tmp_path / "autoencoder"), "--output", str(folder)])
    assert (folder / "words.txt").read_text() == "red\nblue\n"
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        assert {tensor.dtype for tensor in load_file(folder / part / f"{name}.safetensors").values()} == {
            torch.float16
        }
        assert str(tmp_path) not in (folder / part / "config.json").read_text()
    assert str(tmp_path) not in (folder / "text_encoder" / "config.json").read_text()
    texts = ["red", "blue and something longer", ""]
    tokenizers = [CLIPTokenizer.from_pretrained(where / "tokenizer") for where in (run, folder)]
    assert torch.equal(*(train_text_unet.tokenize(tokenizer, texts) for tokenizer in tokenizers))
    assert b"\n" not in (folder / "tokenizer" / "tokenizer.json").read_bytes()
    photo, mask = photo.resize((32, 32)), Image.new("L", (32, 32), 255)
    for kind, inputs in (
        (StableDiffusionPipeline, {}),
        (StableDiffusionImg2ImgPipeline, {"image": photo}),
        (StableDiffusionInpaintPipeline, {"image": photo, "mask_image": mask, "height": 32, "width": 32}),
    ):
        pipe = kind.from_pretrained(folder, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        assert pipe("red", num_inference_steps=2, **inputs).images[0].size == (32, 32)

    torch.manual_seed(0)
    train_judge.make_model(["red", "blue"], 32, [8, 16], [1, 1]).save_pretrained(tmp_path / "judge")
    report = tmp_path / "report"
    flags = ["--judge", str(tmp_path / "judge"), "--pictures", "3", "--steps", "2"]
    measure_text_model.main(["--model", str(folder), "--output", str(report), *flags])
    figures = json.loads((report / "report.json").read_text())
    assert figures["words"].keys() == {"red", "blue"}
    judge, strips = (
        measure_text_model.Judge.load(tmp_path / "judge"),
        [report / "pictures" / "red.png", report / "pictures" / "nothing.png"],
    )
    for strip, share in zip(strips, (figures["words"]["red"], figures["plain"]), strict=True):
        images = [Image.open(strip).crop((32 * number, 0, 32 * number + 32, 32)) for number in range(3)]
        assert judge.verdicts(images).count(strip.stem) / 3 == share


def test_a_text_run_in_pieces_is_the_run_in_one(data, tmp_path):
    make_autoencoder(32, [16, 32], 1, 4).save_pretrained(tmp_path / "autoencoder")
    whole = train_a_unet(data, tmp_path / "whole", tmp_path / "autoencoder", "--steps", 2)
    for _ in range(2):
        pieces = train_a_unet(data, tmp_path / "pieces", tmp_path / "autoencoder", "--steps", 2, "--max-minutes", 0)
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[key], pieces[key]) for key in whole)


def test_a_better_decoder_leaves_the_latents_as_they_are(data, tmp_path):
    start = make_autoencoder(32, [16, 32], 1, 4)
    start.register_to_config(scaling_factor=0.5)
    start.save_pretrained(tmp_path / "start")
    flags = ("--steps", 2, "--start-from", tmp_path / "start", "--decoder-only", "--export", tmp_path / "end")
    train_an_autoencoder(data, tmp_path / "ae", *flags)
    end = AutoencoderKL.from_pretrained(tmp_path / "end")
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    latents = [network.eval().encode(picture).latent_dist.parameters for network in (start, end)]
    assert torch.equal(*latents) and end.config.scaling_factor == 0.5
    assert not torch.equal(start.decode(latents[0][:, :4]).sample, end.decode(latents[0][:, :4]).sample)


def test_flags_that_do_not_go_together(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_an_autoencoder(data, tmp_path / "ae", "--steps", 1, "--decoder-only")
    assert "--start-from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_an_autoencoder(data, tmp_path / "ae", "--steps", 1, "--size", 33)
    assert "multiples of 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export.main(["--unet", "runs/unet", "--autoencoder", "runs/autoencoder", "--output", "model"])
    assert "--text-unet and --autoencoder" in capsys.readouterr().err


def test_a_caption_that_would_be_cut_is_refused():
    tokenizer = tiny_tokenizer()  # a token for each letter, one before and one after
    tokenizer.model_max_length = 7
    check_lengths(tokenizer, Vocabulary(["apple"], [], []))
    with pytest.raises(ValueError, match="'apples' has 8 tokens.*--tokens 8 or more"):
        check_lengths(tokenizer, Vocabulary(["apple", "apples"], [], []))


class Halved(torch.nn.Module):
    """Stands where an autoencoder does, with an error that is known: it gives everything back half as strong."""

    device = torch.device("cpu")

    def forward(self, pictures: torch.Tensor):
        return type("Decoded", (), {"sample": pictures / 2})


def test_psnr_is_that_of_eight_bit_pixels():
    picture = np.full((3, 8, 8), 255, np.uint8)  # comes back as 191 or 192
    assert psnr(Halved(), [picture])[0] == pytest.approx(20 * np.log10(255 / 64), abs=0.1)


def test_latents_of_the_scale_have_unit_variance(data):
    autoencoder = make_autoencoder(32, [16, 32], 1, 4).eval()
    pictures = train_autoencoder.open_data(data, 32)
    scale = latent_scale(autoencoder, pictures, 5)
    images = torch.stack([torch.from_numpy(pictures[index]["image"]) for index in range(5)])
    with torch.no_grad():
        latents = autoencoder.encode(train_autoencoder.to_signal(images)).latent_dist.mean
    assert (latents * scale).std().item() == pytest.approx(1, rel=1e-3)


def test_crops_are_parts_of_their_pictures():
    pictures = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    crops = draw_crops(pictures, 4, torch.Generator().manual_seed(0))
    for picture, crop in zip(pictures, crops, strict=True):
        top, left = divmod(int(crop[0, 0, 0] - picture[0, 0, 0]), 8)
        assert torch.equal(crop, picture[:, top : top + 4, left : left + 4])
    several = {int(draw_crops(pictures, 4, torch.Generator().manual_seed(seed))[0, 0, 0, 0]) for seed in range(30)}
    assert len(several) > 10


def test_captions_of_plain_photos_are_mostly_empty():
    vocabulary, rng = Vocabulary(["apple"], [], []), np.random.default_rng(0)
    apple = torch.tensor([Fact(0, UNSAID, ORDINARY)] * 500)
    texts = captions_of_pictures(vocabulary, apple, 0.1, rng)
    assert 25 < texts.count("") < 80 and all("apple" in text for text in texts if text)
    assert "" not in captions_of_pictures(vocabulary, apple, 0.0, rng)
    plain = captions_of_pictures(vocabulary, torch.tensor([NOTHING] * 500), 0.0, rng)
    assert plain.count("") > 300 and "background" in plain


def test_a_sheet_shows_words_from_all_over_and_the_empty_caption():
    vocabulary = Vocabulary([f"word {number}" for number in range(40)], ["red"], [("word 3", "red")])
    captions = sample_captions(vocabulary)
    assert len(set(captions)) == len(captions) == train_text_unet.SAMPLES
    assert captions[0] == "word 0" and captions[-2:] == ["red word 3", ""]
