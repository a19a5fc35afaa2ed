"""Trains the UNet that draws: unconditional, in pixels, with guided-diffusion's architecture and learned variance.

python -m training.train_unet --data data --output runs/unet --steps 40000
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import torch
from diffusers import UNet2DModel
from torchvision.utils import save_image

from blended_diffusion.checkpoints import Architecture, unet_config
from blended_diffusion.checkpoints.conversion import RECORD
from training.loop import Training, add_arguments, to_signal
from training.losses import Diffusion, draw_timesteps, hybrid_loss, linear_schedule
from training.pictures import open_data


HEAD_WIDTH = 32
SAMPLES, SAMPLING_STEPS = 32, 50


def make_unet(size: int, channels: Sequence[int], layers: int, attention: Sequence[int]) -> UNet2DModel:
    """A network of guided-diffusion's, as the stock class; it can be exported in guided-diffusion's own layout.

    Args:
        channels (`Sequence[int]`): the width at each resolution, multiples of 32, from the full size downwards. The
            first should be 64 or more: the norms have 32 groups, and one that holds a single channel takes away that
            channel's mean, which leaves the network blind to how bright and what colour the whole picture is.
        layers (`int`): residual blocks at each resolution.
        attention (`Sequence[int]`): the resolutions with self-attention.
    """
    architecture = Architecture(
        image_size=size,
        num_channels=channels[0],
        num_res_blocks=layers,
        channel_mult=tuple(width / channels[0] for width in channels),
        attention_resolutions=tuple(attention),
        num_head_channels=HEAD_WIDTH,
        resblock_updown=True,
        learn_sigma=True,
    )
    return UNet2DModel.from_config({**unet_config(architecture), RECORD: asdict(architecture)})


@torch.no_grad()
def draw_from_noise(unet: UNet2DModel, count: int, steps: int, seed: int = 0) -> torch.Tensor:
    """Pictures from nothing, in [0, 1], by `steps` steps of DDPM."""
    scheduler = linear_schedule()
    scheduler.set_timesteps(steps)
    generator = torch.Generator(unet.device).manual_seed(seed)
    shape = (count, 3, unet.config.sample_size, unet.config.sample_size)
    sample = torch.randn(shape, generator=generator, device=unet.device)
    for timestep in scheduler.timesteps:
        output = unet(sample, timestep).sample
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
    return sample.add(1).div(2).clamp(0, 1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, batch_size=16, learning_rate=2e-3, weight_decay=1e-2)
    flag = parser.add_argument
    flag("--channels", type=int, nargs="+", default=[64, 64, 128, 192], help="width at each resolution")
    flag("--layers", type=int, default=1, help="residual blocks at each resolution")
    flag("--attention", type=int, nargs="*", default=[8], help="resolutions with self-attention")
    flag("--snr-range", type=float, nargs=2, default=[0.01, 1.5], help="bounds of the weight by SNR; see losses.py")
    flag("--timestep-focus", type=float, nargs=2, default=[0.25, 1.2], help="mean and width of the timesteps' logit")
    flag("--bound-weight", type=float, default=1.0, help="of L_vlb beside L_simple")
    flag("--sample-steps", type=int, default=1000, help="training steps between sample grids; 0 for none")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    data = open_data(options.data, options.size, options.words, seed=options.seed)
    if options.start_from:
        unet = UNet2DModel.from_pretrained(options.start_from)
    else:
        unet = make_unet(options.size, options.channels, options.layers, options.attention)
    diffusion = Diffusion(linear_schedule())
    run = Training(unet, options)
    diffusion.to(run.device)

    for batch, generator in run.batches(data):
        clean = to_signal(batch["image"])
        noise = torch.randn(clean.shape, generator=generator, device=run.device)
        timesteps = draw_timesteps(len(clean), options.timestep_focus, generator)
        noisy = diffusion.noised(clean, noise, timesteps)
        if options.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        output = run.forward(noisy, timesteps).sample
        simple, bound = hybrid_loss(diffusion, output, clean, noisy, noise, timesteps, options.snr_range)
        loss = simple.mean() + options.bound_weight * bound.mean()
        run.learn(loss)
        run.log(loss=loss, simple=simple.mean(), bound=bound.mean())
        if run.samples_due(options.sample_steps):
            with run.averaged():
                grid = draw_from_noise(run.network, SAMPLES, SAMPLING_STEPS)
            save_image(grid, options.output / f"samples-{run.progress.step + 1:07d}.png", nrow=8)


if __name__ == "__main__":
    main()
