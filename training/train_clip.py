"""Trains the CLIP that guides: on edited regions as they look during the diffusion, at every noise level.

    python -m training.train_clip --data data --tokenizer path/to/clip --output runs/clip --steps 6000

During an edit CLIP never sees a finished picture. It sees the network's estimate of one, soft at first and sharp at
last, mixed with the noisy sample, grey outside the mask, and warped. Its gradient is only right for what it was
trained on, so every picture here goes through the same: see [`as_seen`].

Each batch is learned several times, every time moved a little in the direction that confuses the network most: "free"
adversarial training (Shafahi et al. 2019). The gradients of networks trained so look like the things themselves, which
is what guidance needs (Kawar et al. 2022).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pipeline_blended_diffusion import NUM_WARP_PARAMETERS, warp
from training.captions import Fact, Vocabulary, truth
from training.loop import Training, add_arguments, to_signal
from training.losses import Diffusion, contrastive_loss, linear_schedule
from training.pictures import open_data


LARGEST_LOGIT_SCALE = 100.0
WHOLE_SHARE = 0.15  # of the pictures are seen without a mask
WARPED_SHARE = 0.7
FINISHED_SHARE = 0.2  # are seen as they are, without noise
REAL_SHARE = 0.7  # of the unfinished, if there is a network to make them
ESTIMATE_SHARE = 0.7  # of the rest are the estimate alone, as guidance at the estimate sees it
NOISE_BUCKETS = 5
COARSENESS = (1, 1.5, 2, 3, 4.5, 6.5, 10, 16)  # how many pixels melt into one in estimates, from little noise to much


def make_clip(tokenizer: CLIPTokenizer, size: int, patch: int, width: int, layers: int, text_width: int) -> CLIPModel:
    """A small CLIP with the whole vocabulary of the real one."""
    text = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": 2,
        "num_attention_heads": max(1, text_width // 32),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": size,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def make_image_processor(size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )


def draw_regions(objects: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Masks as a user might paint them round the objects.

    Args:
        objects (`torch.Tensor` of shape `(B, 1, H, W)`): where the objects are, in [0, 1]. A picture without one gets
            a mask anywhere.

    Returns:
        `torch.Tensor` of that shape: 1 in a box, an ellipse, or the object's own outline grown a little.
    """
    count, _, height, width = objects.shape
    device = objects.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator, device=device)

    grid = torch.stack(
        torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    ).float()
    inside = objects[:, 0] > 0.2
    empty = ~inside.flatten(1).any(dim=1)
    far = torch.where(inside[:, None], grid, -1e6).flatten(2).amax(dim=2)
    near = torch.where(inside[:, None], grid, 1e6).flatten(2).amin(dim=2)
    extent = grid.new_tensor([height, width])
    anywhere = uniform(0.2, 0.8, 2) * extent
    centre = torch.where(empty[:, None], anywhere, (near + far) / 2)
    radius = torch.where(empty[:, None], uniform(0.12, 0.5, 2) * extent, (far - near + 1) / 2)
    grown = radius * uniform(0.95, 1.5, 2)
    centre = centre + (grown - radius) * uniform(-0.7, 0.7, 2)
    offset = (grid[None] - centre[..., None, None]) / grown[..., None, None]
    box = (offset.abs() <= 1).all(dim=1)
    ellipse = offset.square().sum(dim=1) <= 1.35  # so that it holds most of an object that fills its box
    reach = 2 * max(1, height // 32) + 1
    outline = F.max_pool2d(objects, reach, stride=1, padding=reach // 2)[:, 0] > 0.1
    outline = torch.where(empty[:, None, None], ellipse, outline)
    kind = uniform(0, 1, 1, 1)
    region = torch.where(kind < 0.45, box, torch.where(kind < 0.8, ellipse, outline))
    region = region | (uniform(0, 1, 1, 1) < WHOLE_SHARE)
    return region[:, None].to(objects.dtype)


def soften(clean: torch.Tensor, timesteps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What an estimate of `clean` from its noisy version looks like, roughly: the noisier, the softer and paler."""
    size = clean.shape[-1]
    coarser = [F.interpolate(clean, size=round(size / factor), mode="area") for factor in COARSENESS[1:]]
    back = [F.interpolate(image, size=size, mode="bicubic") for image in coarser]
    levels = torch.stack([clean, *back])
    share = (timesteps / 1000) ** 1.5 * (0.6 + 0.6 * torch.rand(len(clean), generator=generator, device=clean.device))
    position = share.clamp(0, 0.999) * (len(levels) - 1)
    lower, rest = position.long(), (position % 1).view(-1, 1, 1, 1)
    rows = torch.arange(len(clean), device=clean.device)
    return (1 - rest) * levels[lower, rows] + rest * levels[lower + 1, rows]


def as_seen(
    clean: torch.Tensor,
    regions: torch.Tensor,
    timesteps: torch.Tensor,
    diffusion: Diffusion,
    generator: torch.Generator,
    clip_size: int,
    denoiser: UNet2DModel | None = None,
) -> torch.Tensor:
    """Pictures as the guidance shows them to CLIP in the middle of an edit.

    Args:
        clean (`torch.Tensor` of shape `(B, 3, H, W)`): finished pictures in [−1, 1].
        regions (`torch.Tensor` of shape `(B, 1, H, W)`): the masks.
        timesteps (`torch.Tensor` of shape `(B,)`): how far from finished each is; −1 for finished.
        denoiser (`UNet2DModel`, *optional*): makes the estimates; without it they are imitated by [`soften`].

    Returns:
        `torch.Tensor` of shape `(B, 3, clip_size, clip_size)` in [−1, 1], or beyond it by noise.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand((len(clean), *shape), generator=generator, device=clean.device)

    finished = (timesteps < 0).view(-1, 1, 1, 1)
    timesteps = timesteps.clamp(min=0)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    noisy = diffusion.noised(clean, noise, timesteps)
    estimate = soften(clean, timesteps, generator)
    if denoiser is not None:
        rows = (~finished.flatten() & (uniform() < REAL_SHARE)).nonzero()[:, 0]
        predicted = denoiser(noisy[rows].to(denoiser.dtype), timesteps[rows]).sample[:, :3].float()
        estimate[rows] = diffusion.clean_estimate(noisy[rows], predicted, timesteps[rows]).clamp(-1.5, 1.5)
    # under guidance estimates come out too vivid, or too pale
    estimate = estimate * (0.7 + 0.7 * uniform(1, 1, 1))
    share = (1 - diffusion.at("alpha_bar", timesteps)).sqrt()
    mixed = share * estimate + (1 - share) * noisy
    seen = torch.where(uniform(1, 1, 1) < ESTIMATE_SHARE, estimate, mixed)
    seen = torch.where(finished, clean, seen)
    seen = F.adaptive_avg_pool2d(seen * regions, clip_size)
    warped = warp(seen, uniform(NUM_WARP_PARAMETERS))
    return torch.where(uniform(1, 1, 1) < WARPED_SHARE, warped, seen)


def worst_shift(shift: torch.Tensor, radius: float) -> torch.Tensor:
    """`shift` moved up its gradient by `radius`, and back into the ball of that radius: both by the norm of a picture.

    Args:
        shift (`torch.Tensor` of shape `(B, 3, H, W)`): with a gradient.
    """
    moved = shift.detach() + radius * F.normalize(shift.grad.flatten(1), dim=1).view_as(shift)
    norm = moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return moved * (radius / norm.clamp(min=1e-12)).clamp(max=1)


def write_captions(
    vocabulary: Vocabulary, facts: torch.Tensor, step: int, seed: int
) -> tuple[list[str], torch.Tensor]:
    """A true caption for every picture, then one for everything there is to say; and what each of them says."""
    rng = np.random.default_rng((seed, step))
    everything = [Fact(*fact) for fact in facts.tolist()] + vocabulary.everything()
    texts, said = zip(*(vocabulary.describe(fact, rng) for fact in everything), strict=True)
    return list(texts), torch.tensor(said)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
    flag = parser.add_argument
    flag("--tokenizer", required=True, help="folder or Hub id of a CLIP tokenizer, such as a model's own `tokenizer`")
    flag("--denoiser", type=Path, help="folder of a trained UNet whose estimates to learn from")
    flag("--replays", type=int, default=3, help="how often each batch is learned")
    flag("--adversary", type=float, default=1.0, help="how far, in L2 of [-1, 1], pictures are moved between replays")
    flag("--clip-size", type=int, default=64, help="pixels of a side that CLIP sees")
    flag("--patch", type=int, default=8)
    flag("--width", type=int, default=192)
    flag("--layers", type=int, default=6)
    flag("--text-width", type=int, default=64)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    data = open_data(options.data, options.size, options.words, seed=options.seed)
    tokenizer = CLIPTokenizer.from_pretrained(options.tokenizer)
    if options.start_from:
        clip = CLIPModel.from_pretrained(options.start_from)
    else:
        clip = make_clip(
            tokenizer, options.clip_size, options.patch, options.width, options.layers, options.text_width
        )
    if options.cpu:
        clip.set_attn_implementation("eager")  # half the time: the backward pass of the other is slow there
    run = Training(clip, options, updates=options.replays)
    tokenizer.save_pretrained(options.output / "tokenizer")
    (options.output / "words.txt").write_text("\n".join(data.vocabulary.words) + "\n", encoding="utf-8")
    diffusion = Diffusion(linear_schedule()).to(run.device)
    denoiser = None
    if options.denoiser:
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        denoiser = UNet2DModel.from_pretrained(options.denoiser, torch_dtype=dtype).to(run.device)
        denoiser = denoiser.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    mean, std = (
        torch.tensor(numbers, device=run.device).view(1, 3, 1, 1) for numbers in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )

    for batch, generator in run.batches(data):
        clean, facts = to_signal(batch["image"]), batch["fact"]
        count = len(clean)
        timesteps = torch.randint(1000, (count,), generator=generator, device=run.device)
        finished = torch.rand(count, generator=generator, device=run.device) < FINISHED_SHARE
        timesteps = torch.where(finished, -1, timesteps)
        with torch.no_grad():  # and in full precision: warps need it
            regions = draw_regions(batch["mask"].float() / 255, generator)
            seen = as_seen(clean, regions, timesteps, diffusion, generator, options.clip_size, denoiser)
        texts, said = write_captions(data.vocabulary, facts, run.progress.step, options.seed)
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(run.device)
        true = truth(facts, said.to(run.device))
        seen = seen.float()
        shift = torch.zeros_like(seen)
        for _ in range(options.replays):
            shift.requires_grad_()
            output = run.forward(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=((seen + shift + 1) / 2 - mean) / std,
            )
            loss = contrastive_loss(output.logits_per_image.float(), true)
            run.learn(loss)
            shift = worst_shift(shift, options.adversary)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=float(np.log(LARGEST_LOGIT_SCALE)))
            # asked about every word, does the right one win? At each noise level, as one does not show in the mean
            right = true[:, count:].gather(1, output.logits_per_image[:, count:].argmax(dim=1, keepdim=True))[:, 0]
            bucket = torch.where(finished, -1, timesteps * NOISE_BUCKETS // 1000)
            accuracy = {
                f"accuracy_{'finished' if b < 0 else b}": right[bucket == b].float().mean()
                for b in range(-1, NOISE_BUCKETS)
            }
        run.log(loss=loss, logit_scale=clip.logit_scale.exp(), **accuracy)


if __name__ == "__main__":
    main()
