"""Trains the autoencoder of a text model: pictures to latents of a quarter of their side, and back.

    python -m training.train_autoencoder --data data --output runs/autoencoder --steps 20000 --export autoencoder

It learns on square parts of pictures (`--crop`): nothing in it looks further than its convolutions reach. With
`--decoder-only` the latents stay as they are, so that a UNet which was trained on them fits the better decoder too.

`--export` writes what was learned as one `AutoencoderKL`, with the `scaling_factor` that gives its latents unit
variance, and how well it gives back pictures that it never saw (`psnr.json`).
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.captions import NOTHING
from training.loop import Training, add_arguments, latest_checkpoint, to_signal
from training.losses import reconstruction_loss
from training.pictures import CaptionedPictures, Composites, open_data


EVALUATION_SEED = 104729


def make_autoencoder(size: int, channels: Sequence[int], layers: int, latent_channels: int) -> AutoencoderKL:
    """A small autoencoder of Stable Diffusion's kind, without attention.

    Args:
        channels (`Sequence[int]`): the width at each resolution, from the full size downwards; each after the first
            halves the side of the latents.
        layers (`int`): residual blocks at each resolution.
    """
    return AutoencoderKL(
        sample_size=size,
        latent_channels=latent_channels,
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def draw_crops(pictures: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A square of `side` pixels at a random place of each picture of shape `(B, C, H, W)`."""
    height, width = pictures.shape[2:]
    tops = torch.randint(height - side + 1, (len(pictures),), generator=generator, device=pictures.device)
    lefts = torch.randint(width - side + 1, (len(pictures),), generator=generator, device=pictures.device)
    places = zip(pictures, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([picture[:, top : top + side, left : left + side] for picture, top, left in places])


class ReconstructionLoss(torch.nn.Module):
    """There and back in one pass, with the divergence of the latents' distribution; what a training step runs."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pictures: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.autoencoder.encode(pictures).latent_dist
        decoded = self.autoencoder.decode(latents.mean + latents.std * noise).sample
        return decoded, latents.kl() / pictures[0].numel()

    def save_pretrained(self, folder: Path) -> None:
        self.autoencoder.save_pretrained(folder)


@torch.no_grad()
def psnr(autoencoder: AutoencoderKL, pictures: Iterable[np.ndarray]) -> list[float]:
    """How well each picture is given back, in dB: 10·log₁₀(255² / mean squared error of its 8-bit pixels).

    Args:
        pictures (`Iterable[np.ndarray]`): each `uint8` of shape `(3, H, W)`.
    """
    figures = []
    for picture in pictures:
        pixels = torch.from_numpy(picture)[None].to(autoencoder.device)
        decoded = autoencoder(to_signal(pixels)).sample
        error = decoded.add(1).mul(127.5).round().clamp(0, 255) - pixels
        figures.append(20 * np.log10(255) - 10 * np.log10(error.square().mean().clamp(min=1e-4).item()))
    return figures


def quality(autoencoder: AutoencoderKL, folder: Path, size: int, words: int | None, count: int) -> dict[str, dict]:
    """The mean PSNR of pictures that no training sees.

    Args:
        folder (`Path`): of [`training.prepare_data`], or with pictures of one's own: those have no unseen ones, so
            that the pictures themselves are measured, cut out anew.
        count (`int`): pictures.

    Returns:
        `dict[str, dict]`: `pictures` and `psnr` of each kind of picture there is.
    """
    data = open_data(folder, size, words, seed=EVALUATION_SEED)
    if isinstance(data, CaptionedPictures):
        kinds = {"seen pictures": [data[index]["image"] for index in range(count)]}
    else:
        data = Composites(folder, size, words, split="evaluation", seed=EVALUATION_SEED)
        examples = (data[index] for index in range(count))
        composites = [one["image"] for one in examples if tuple(one["fact"]) != NOTHING]
        rngs = (np.random.default_rng((EVALUATION_SEED, index)) for index in range(count))
        photos = [np.ascontiguousarray(data.draw_background(rng).transpose(2, 0, 1)) for rng in rngs]
        kinds = {"composites": composites, "plain photos": photos}
    return {
        kind: {"pictures": len(pictures), "psnr": round(float(np.mean(psnr(autoencoder, pictures))), 3)}
        for kind, pictures in kinds.items()
    }


@torch.no_grad()
def latent_scale(autoencoder: AutoencoderKL, data: Composites | CaptionedPictures, count: int) -> float:
    """1 / the standard deviation of the latents of `count` pictures."""
    pictures = (to_signal(torch.from_numpy(data[index]["image"])[None]) for index in range(count))
    latents = [autoencoder.encode(picture.to(autoencoder.device)).latent_dist.mean for picture in pictures]
    return 1 / torch.cat(latents).std().item()


def export_autoencoder(averaged: Path, folder: Path, options: argparse.Namespace) -> dict[str, dict]:
    """Writes the autoencoder and `psnr.json`, and returns what stands in the latter."""
    autoencoder = AutoencoderKL.from_pretrained(averaged).eval()
    if not options.decoder_only:
        data = open_data(options.data, options.size, options.words, seed=EVALUATION_SEED)
        autoencoder.register_to_config(scaling_factor=latent_scale(autoencoder, data, options.evaluate))
    report = quality(autoencoder, Path(options.data), options.size, options.words, options.evaluate)
    autoencoder.save_pretrained(folder)
    (folder / "psnr.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=128, batch_size=8, learning_rate=2e-3, weight_decay=1e-3)
    parser.set_defaults(ema=0.999)
    flag = parser.add_argument
    flag("--channels", type=int, nargs="+", default=[32, 64, 128], help="width at each resolution")
    flag("--layers", type=int, default=1, help="residual blocks at each resolution")
    flag("--latent-channels", type=int, default=4)
    flag("--crop", type=int, default=64, help="pixels of a side of the parts that are learned on")
    flag("--kl-weight", type=float, default=1e-5, help="how much the latents are drawn towards a normal distribution")
    flag("--decoder-only", action="store_true", help="leave the latents as they are; needs --start-from")
    flag("--export", type=Path, help="at the end, write the autoencoder and its PSNR into this folder")
    flag("--evaluate", type=int, default=400, help="pictures to measure the exported autoencoder on")
    options = parser.parse_args(arguments)
    if options.decoder_only and not options.start_from:
        parser.error("--decoder-only needs an autoencoder to start from: --start-from FOLDER")
    factor = 2 ** (len(options.channels) - 1)
    if options.size % factor or options.crop % factor:
        parser.error(f"--size and --crop must be multiples of {factor}, which is how far --channels reduce a side")
    if options.crop > options.size:
        parser.error(f"--crop {options.crop} does not fit into pictures of --size {options.size}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    data = open_data(options.data, options.size, options.words, seed=options.seed)
    if options.start_from:
        autoencoder = AutoencoderKL.from_pretrained(options.start_from, torch_dtype=torch.float32)
    else:
        autoencoder = make_autoencoder(options.size, options.channels, options.layers, options.latent_channels)
    if options.decoder_only:
        autoencoder.encoder.requires_grad_(False)
        autoencoder.quant_conv.requires_grad_(False)
    run = Training(ReconstructionLoss(autoencoder), options)
    side = options.crop // 2 ** (len(autoencoder.config.block_out_channels) - 1)

    for batch, generator in run.batches(data):
        clean = to_signal(draw_crops(batch["image"], options.crop, generator))
        if options.channels_last:
            clean = clean.contiguous(memory_format=torch.channels_last)
        shape = (len(clean), autoencoder.config.latent_channels, side, side)
        noise = torch.randn(shape, generator=generator, device=run.device)
        decoded, divergence = run.forward(clean, noise)
        decoded = decoded.float()
        error = reconstruction_loss(decoded, clean)
        run.learn(error + options.kl_weight * divergence.mean())
        with torch.no_grad():
            decibels = -10 * ((decoded - clean) / 2).square().mean(dim=(1, 2, 3)).log10()
        run.log(error=error, divergence=divergence.mean(), psnr=decibels.mean())

    if options.export and run.accelerator.is_main_process:
        report = export_autoencoder(latest_checkpoint(options.output) / "averaged", options.export, options)
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
