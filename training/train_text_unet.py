"""Trains the UNet that draws what a caption says, in an autoencoder's latents, and the encoder of captions.

    python -m training.train_text_unet --data data --autoencoder autoencoder --output runs/text-unet --steps 40000 \\
        --tokenizer path/to/clip

Every picture is composed and encoded anew. The empty caption is that of plain photos, and of a few other pictures
(`--empty-captions`), which classifier-free guidance needs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import make_image_grid
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.captions import EMPTY, Fact, Vocabulary
from training.loop import Training, add_arguments, to_signal
from training.losses import Diffusion, draw_timesteps, noise_loss, scaled_linear_schedule
from training.pictures import open_data


HEAD_WIDTH = 32
NORM_GROUPS = 16
EMPTY_SHARE_OF_PLAIN = 0.7  # of the captions of plain photos; the rest say that there is nothing
SAMPLES, SAMPLE_COLUMNS, SAMPLING_STEPS, GUIDANCE = 16, 8, 20, 4.0


def make_text_unet(
    size: int, latent_channels: int, channels: Sequence[int], layers: int, text_width: int
) -> UNet2DConditionModel:
    """A small UNet of Stable Diffusion's kind, with attention everywhere but at the full size.

    Args:
        size (`int`): of a side of the latents.
        channels (`Sequence[int]`): the width at each resolution, multiples of 32, from the full size downwards.
        layers (`int`): residual blocks at each resolution.
        text_width (`int`): of the captions' embeddings.
    """
    deeper = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        layers_per_block=layers,
        attention_head_dim=[width // HEAD_WIDTH for width in channels],  # which is how many heads, despite the name
        cross_attention_dim=text_width,
        norm_num_groups=NORM_GROUPS,
    )


def make_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """A small text tower of CLIP's kind with the whole vocabulary of the real one."""
    config = CLIPTextConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class TextConditioned(torch.nn.Module):
    """The UNet and the encoder of its captions as one network, which is how they are learned.

    Args:
        unet (`UNet2DConditionModel`), text_encoder (`CLIPTextModel`): trained in place.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    @classmethod
    def from_pretrained(cls, folder: Path) -> "TextConditioned":
        """From the `unet` and the `text_encoder` in a folder: a Stable Diffusion model's, or a checkpoint's."""
        return cls(
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32),
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
        )

    def save_pretrained(self, folder: Path) -> None:
        self.unet.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The noise in `noisy`, of its shape `(B, C, H, W)`; `tokens` has shape `(B, L)`."""
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample


def captions_of_pictures(
    vocabulary: Vocabulary, facts: torch.Tensor, empty_share: float, rng: np.random.Generator
) -> list[str]:
    """A true caption for every picture.

    Args:
        facts (`torch.Tensor` of shape `(B, 3)`): what is on each.
        empty_share (`float`): of the captions of things that are left empty.
    """
    texts = []
    for fact in (Fact(*fact) for fact in facts.tolist()):
        share = EMPTY_SHARE_OF_PLAIN if fact.word == EMPTY else empty_share
        text = vocabulary.describe(fact, rng)[0]
        texts.append("" if rng.random() < share else text)
    return texts


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Captions as Stable Diffusion's pipelines give them to the encoder: all of the tokenizer's greatest length."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def check_lengths(tokenizer: CLIPTokenizer, vocabulary: Vocabulary) -> None:
    """Refuses captions, or words, that the tokenizer's greatest length would cut, with a `ValueError`."""
    for text in vocabulary.words:
        length = len(tokenizer(text).input_ids)
        if length > tokenizer.model_max_length:
            raise ValueError(
                f"{text!r} has {length} tokens, and --tokens {tokenizer.model_max_length} would cut it: give --tokens"
                f" {length} or more, 77 at most, or shorten it."
            )


def make_text_pipeline(
    network: TextConditioned, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The stock pipeline of what was trained."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=network.text_encoder,
        tokenizer=tokenizer,
        unet=network.unet,
        scheduler=scaled_linear_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sample_captions(vocabulary: Vocabulary) -> list[str]:
    """As many as a sheet has pictures: words and coloured words from all over the vocabulary, and the empty one."""
    said = [*vocabulary.words, *(f"{colour} {word}" for word, colour in vocabulary.pairs)]
    chosen = np.linspace(0, len(said) - 1, SAMPLES - 1).round().astype(int)
    return [*(said[number] for number in chosen), ""]


def write_samples(run: Training, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    """What the averaged weights draw, one picture of each caption; their order stands in `samples.txt`."""
    pipeline = make_text_pipeline(run.network, autoencoder, tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
    with run.averaged():
        drawn = pipeline(captions, num_inference_steps=SAMPLING_STEPS, guidance_scale=GUIDANCE, generator=generators)
    output = run.options.output
    rows = -(-len(captions) // SAMPLE_COLUMNS)
    make_image_grid(drawn.images, rows, SAMPLE_COLUMNS).save(output / f"samples-{run.progress.step + 1:07d}.png")
    (output / "samples.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, size=128, batch_size=16, learning_rate=2e-3, weight_decay=1e-2)
    flag = parser.add_argument
    flag("--autoencoder", type=Path, required=True, help="folder that train_autoencoder exported")
    flag("--tokenizer", required=True, help="folder or Hub id of a CLIP tokenizer, such as a model's own `tokenizer`")
    flag("--tokens", type=int, default=16, help="of the longest caption")
    flag("--channels", type=int, nargs="+", default=[96, 160, 224], help="width at each resolution")
    flag("--layers", type=int, default=1, help="residual blocks at each resolution")
    flag("--text-width", type=int, default=64)
    flag("--text-layers", type=int, default=2)
    flag("--empty-captions", type=float, default=0.1, help="share of the captions of things that are left empty")
    flag("--snr-range", type=float, nargs=2, default=[0.01, 5.0], help="bounds of the weight by SNR; see losses.py")
    flag("--timestep-focus", type=float, nargs=2, default=[0.25, 1.2], help="mean and width of the timesteps' logit")
    flag("--sample-steps", type=int, default=1000, help="training steps between sample grids; 0 for none")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    data = open_data(options.data, options.size, options.words, seed=options.seed)
    tokenizer = CLIPTokenizer.from_pretrained(options.tokenizer, model_max_length=options.tokens)
    check_lengths(tokenizer, data.vocabulary)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    autoencoder = AutoencoderKL.from_pretrained(options.autoencoder, torch_dtype=dtype)
    autoencoder.eval().requires_grad_(False)
    config = autoencoder.config
    if options.start_from:
        network = TextConditioned.from_pretrained(options.start_from)
    else:
        side = options.size // 2 ** (len(config.block_out_channels) - 1)
        network = TextConditioned(
            make_text_unet(side, config.latent_channels, options.channels, options.layers, options.text_width),
            make_text_encoder(tokenizer, options.text_width, options.text_layers),
        )
    diffusion = Diffusion(scaled_linear_schedule())
    run = Training(network, options)
    diffusion.to(run.device)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    autoencoder.to(run.device, memory_format=memory_format)
    tokenizer.save_pretrained(options.output / "tokenizer")
    (options.output / "words.txt").write_text("\n".join(data.vocabulary.words) + "\n", encoding="utf-8")

    for batch, generator in run.batches(data):
        pictures = to_signal(batch["image"]).to(dtype).contiguous(memory_format=memory_format)
        with torch.no_grad():
            clean = autoencoder.encode(pictures).latent_dist.mode().float() * config.scaling_factor
        rng = np.random.default_rng((options.seed, run.progress.step))
        texts = captions_of_pictures(data.vocabulary, batch["fact"], options.empty_captions, rng)
        noise = torch.randn(clean.shape, generator=generator, device=run.device)
        timesteps = draw_timesteps(len(clean), options.timestep_focus, generator)
        noisy = diffusion.noised(clean, noise, timesteps).contiguous(memory_format=memory_format)
        predicted = run.forward(noisy, timesteps, tokenize(tokenizer, texts).to(run.device))
        loss = noise_loss(diffusion, predicted.float(), noise, timesteps, options.snr_range).mean()
        run.learn(loss)
        run.log(loss=loss)
        if run.samples_due(options.sample_steps):
            write_samples(run, autoencoder, tokenizer, sample_captions(data.vocabulary))


if __name__ == "__main__":
    main()
