"""Trains the judge: the classifier that says what an edited picture shows, and never takes part in an edit.

    python -m training.train_judge --data data --output runs/judge --words 20 --steps 3000 --export judge_model

A judge that shared its training with the CLIP that guides would share its blind spots, and an edit that fools the one
would fool the other. So this is another architecture on other random pictures, disturbed in other ways; and half of
the drawings are the second artist's, which the guidance and the bundled UNet never saw. Every third picture is a plain
photo: a judge must not see words where there are none.

`--export` writes the judge in half precision with its accuracy on photos that are not trained on (`accuracy.json`).
"""

import argparse
import json
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import ResNetConfig, ResNetForImageClassification

from blended_diffusion.evaluation.judge import NOTHING, Judge
from training.captions import EMPTY
from training.captions import NOTHING as NOTHING_ON_IT
from training.loop import Training, add_arguments, latest_checkpoint, to_signal
from training.pictures import LARGEST, SMALLEST, Composites, example, paste_cutout


SEED = 7919  # far from the other trainings' 0, so that no picture is shared
EVALUATION_SEED = 104729
ARTISTS = {"fluent": "training", "noto": "evaluation"}  # whose drawings, and what the data set calls their split
FILLED_SHARE = 0.4  # of the plain photos have a part of another photo in the outline of a drawing
STRANGE_SHARE = 0.4  # of them have their colours exchanged, as there are few photos
LABEL_SMOOTHING = 0.05
SOFT_SHARE = 0.5
SOFTNESS = (1.25, 1.5, 2, 2.5, 3)  # how many pixels melt into one: edits by a 64×64 model come out soft


class JudgedPictures(Dataset):
    """In turn: a composite with one artist's drawing, one with the other's, a plain photo.

    Args:
        folder (`Path`): of [`training.prepare_data`].
        size (`int`): pixels of a side.
        num_words (`int`, *optional*): only the first so many words; all of them by default.
        seed (`int`): one seed, one endless sequence of examples.
    """

    def __init__(self, folder: Path, size: int, num_words: int | None = None, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self.artists = [
            Composites(folder, size, num_words, cutouts=cutouts, seed=seed + number)
            for number, cutouts in enumerate(ARTISTS.values())
        ]
        self.words = self.artists[0].vocabulary.words
        if any(artist.vocabulary.words != self.words for artist in self.artists):
            raise ValueError(f"The two artists in {folder} did not draw the same words in the same order.")

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, turn = divmod(index, len(self.artists) + 1)
        if turn < len(self.artists):
            return self.artists[turn][number]
        photo = self.draw_plain(np.random.default_rng((self.seed, index)))
        return example(photo, np.zeros((self.size, self.size), np.uint8), NOTHING_ON_IT)

    def draw_plain(self, rng: np.random.Generator) -> np.ndarray:
        """A photo, or two: the second in the outline of a drawing, as an outline alone is not the thing."""
        artist = self.artists[rng.integers(len(self.artists))]
        photo = artist.draw_background(rng)
        if rng.random() < FILLED_SHARE:
            outline = artist.prepare_cutout(artist.draw_cutout(rng).image, rng.uniform(SMALLEST, LARGEST), rng)
            mask = paste_cutout(photo, outline, *artist.draw_place(outline, rng))[1][..., None] / 255
            photo = np.round(photo * (1 - mask) + artist.draw_background(rng) * mask).astype(np.uint8)
        return photo[..., rng.permutation(3)] if rng.random() < STRANGE_SHARE else photo


def make_model(words: list[str], size: int, widths: list[int], blocks: list[int]) -> ResNetForImageClassification:
    """A small ResNet with a label for each word and one for nothing."""
    labels = [*words, NOTHING]
    config = ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=blocks,
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        image_size=size,
    )
    return ResNetForImageClassification(config)


def make_disturbance(size: int) -> K.AugmentationSequential:
    """What may happen to a picture, each picture on its own: what happens to photos, not to a diffusion's steps."""
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomResizedCrop((size, size), scale=(0.8, 1.0), ratio=(0.9, 1.1), p=0.5),
        K.RandomAffine(10, translate=(0.08, 0.08), scale=(0.8, 1.2), shear=6, padding_mode="reflection", p=0.6),
        K.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.3, hue=0.02, p=0.7),
        K.RandomGaussianBlur((7, 7), (0.1, 1.8), p=0.3),
        K.RandomGaussianNoise(std=0.04, p=0.4),
        K.RandomJPEG((30.0, 95.0), p=0.4),
        K.RandomErasing((0.02, 0.12), value=0.5, p=0.2),
        data_keys=["input"],
    )


def soften_pictures(images: torch.Tensor) -> torch.Tensor:
    """Some of the pictures reduced and enlarged again."""
    size = images.shape[-1]
    levels = [images]
    for factor in SOFTNESS:
        small = F.interpolate(images, size=round(size / factor), mode="bilinear", antialias=True)
        levels.append(F.interpolate(small, size=size, mode="bicubic"))
    level = torch.randint(1, len(levels), (len(images),)) * (torch.rand(len(images)) < SOFT_SHARE)
    return torch.stack(levels)[level.to(images.device), torch.arange(len(images), device=images.device)]


def disturbed(pixels: torch.Tensor, disturbance: K.AugmentationSequential, seed: int) -> torch.Tensor:
    """`uint8` pictures as the judge learns them, in [−1, 1]; the same seed disturbs them in the same way."""
    with torch.no_grad(), torch.random.fork_rng():  # kornia draws from the global generator
        torch.manual_seed(seed)
        images = disturbance(soften_pictures(pixels.float() / 255)).clamp(0, 1)
    return to_signal(images * 255)


def labels_of(facts: torch.Tensor, num_words: int) -> torch.Tensor:
    """The label of each picture: its word, or the last one."""
    words = facts[:, 0]
    return torch.where(words == EMPTY, num_words, words)


def export_judge(averaged: Path, folder: Path, data: Dataset, options: argparse.Namespace) -> None:
    """Writes a judge in half precision.

    Args:
        averaged (`Path`): the averaged weights. The statistics of their batch norms are those of other weights, so
            they are measured again.
        folder (`Path`): for `config.json` and `model.safetensors`.
        data (`Dataset`): of the training.
    """
    model = ResNetForImageClassification.from_pretrained(averaged)
    disturbance = make_disturbance(options.size)
    pictures = DataLoader(Subset(data, range(options.statistics)), options.batch_size)
    update_bn((disturbed(batch["image"], disturbance, number) for number, batch in enumerate(pictures)), model)
    model.save_pretrained(folder)  # in fp32, which is what the config says and what it is loaded as
    weights = load_file(folder / "model.safetensors")
    halved = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})


def accuracy(judge: Judge, folder: Path, count: int, seed: int = EVALUATION_SEED) -> dict[str, dict]:
    """How often the judge is right about composites with photos that were never trained on.

    Args:
        judge (`Judge`): whose words are the first of the data set.
        folder (`Path`): of [`training.prepare_data`].
        count (`int`): composites of each artist's drawings, the plain photos among them included.

    Returns:
        `dict[str, dict]`: `pictures`, `right` and `accuracy` for each artist's drawings and for plain photos, and for
        the drawings also the accuracy on each word (`words`).
    """
    guessed, true = {}, {}
    for number, (artist, cutouts) in enumerate(ARTISTS.items()):
        data = Composites(folder, judge.size, len(judge.words), "evaluation", cutouts, seed + number)
        if data.vocabulary.words != judge.words:
            raise ValueError(f"The judge's words are not the first {len(judge.words)} of {folder}.")
        examples = [data[index] for index in range(count)]
        images = [Image.fromarray(one["image"].transpose(1, 2, 0)) for one in examples]
        guessed[artist] = judge.probabilities(images).argmax(dim=1)
        true[artist] = labels_of(torch.tensor(np.stack([one["fact"] for one in examples])), len(judge.words))
    plain = {artist: labels == len(judge.words) for artist, labels in true.items()}
    right = {artist: guessed[artist] == true[artist] for artist in ARTISTS}
    report = {}
    for artist in ARTISTS:
        report[artist] = figures(right[artist][~plain[artist]])
        of_word = {word: right[artist][true[artist] == number] for number, word in enumerate(judge.words)}
        report[artist]["words"] = {word: figures(some)["accuracy"] for word, some in of_word.items() if len(some)}
    report["plain photos"] = figures(torch.cat([right[artist][plain[artist]] for artist in ARTISTS]))
    return report


def figures(right: torch.Tensor) -> dict[str, float]:
    return {"pictures": len(right), "right": int(right.sum()), "accuracy": round(right.float().mean().item(), 4)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
    parser.set_defaults(seed=SEED, ema=0.999)
    flag = parser.add_argument
    flag("--widths", type=int, nargs="+", default=[48, 96, 192], help="channels at each resolution")
    flag("--blocks", type=int, nargs="+", default=[2, 2, 2], help="residual blocks at each resolution")
    flag("--export", type=Path, help="at the end, write the judge and its accuracy into this folder")
    flag("--statistics", type=int, default=6400, help="pictures to measure the exported batch norms' statistics on")
    flag("--evaluate", type=int, default=5000, help="pictures of each artist to measure the exported accuracy on")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    data = JudgedPictures(Path(options.data), options.size, options.words, seed=options.seed)
    if options.start_from:
        model = ResNetForImageClassification.from_pretrained(options.start_from)
    else:
        model = make_model(data.words, options.size, options.widths, options.blocks)
    run = Training(model, options)
    disturbance = make_disturbance(options.size)
    model.train()
    for batch, generator in run.batches(data):
        images = disturbed(batch["image"], disturbance, generator.initial_seed())
        labels = labels_of(batch["fact"], len(data.words))
        if options.channels_last:
            images = images.to(memory_format=torch.channels_last)
        logits = run.forward(images).logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        run.learn(loss)
        right = (logits.argmax(dim=1) == labels).float()
        plain = labels == len(data.words)
        run.log(loss=loss, accuracy_words=right[~plain].mean(), accuracy_plain=right[plain].mean())

    if options.export and run.accelerator.is_main_process:
        export_judge(latest_checkpoint(options.output) / "averaged", options.export, data, options)
        report = json.dumps(accuracy(Judge.load(options.export), Path(options.data), options.evaluate), indent=2)
        (options.export / "accuracy.json").write_text(report + "\n", encoding="utf-8")
        print(report)


if __name__ == "__main__":
    main()
