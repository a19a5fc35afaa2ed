"""What the weights of the families take that diffusers' inpainting pipelines come in: counted, not measured.

python -m benchmarks.families

Each published architecture is built on torch's meta device, where tensors have sizes and no numbers, and its
parameters are counted. How many the published weights have stands beside each, and another count is an error. What a
step needs besides the weights is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks import results
from blended_diffusion.machine import GIB


@dataclass(frozen=True)
class Network:
    """A published architecture.

    Attributes:
        build (`Callable`): makes it.
        published (`int`): how many parameters the published weights have.
    """

    build: Callable[[], torch.nn.Module]
    published: int

    def count(self) -> int:
        """How many parameters it has.

        Raises:
            ArithmeticError: not as many as were published.
        """
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in self.build().parameters())
        if found != self.published:
            raise ArithmeticError(f"{found} parameters were counted, and {self.published} published.")
        return found


def text_encoder(kind: type, width: int, layers: int, heads: int, **changes) -> torch.nn.Module:
    config = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return kind(CLIPTextConfig(**config, num_attention_heads=heads, projection_dim=width, **changes))


def autoencoder(latent_channels: int, **changes) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
        **changes,
    )


def unet_of_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def t5_xxl() -> torch.nn.Module:
    widths = {"d_model": 4096, "d_kv": 64, "d_ff": 10240}
    return T5EncoderModel(T5Config(**widths, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"))


CLIP_L = Network(lambda: text_encoder(CLIPTextModel, 768, 12, 12), 123_060_480)
CLIP_L_PROJECTED = Network(lambda: text_encoder(CLIPTextModelWithProjection, 768, 12, 12), 123_650_304)
CLIP_H = Network(lambda: text_encoder(CLIPTextModel, 1024, 23, 16), 340_387_840)
CLIP_G = Network(lambda: text_encoder(CLIPTextModelWithProjection, 1280, 32, 20), 694_659_840)
T5_XXL = Network(t5_xxl, 4_762_310_656)
VAE = Network(lambda: autoencoder(4), 83_653_863)
VAE_OF_16 = Network(lambda: autoencoder(16, use_quant_conv=False, use_post_quant_conv=False), 83_819_683)

FAMILIES: dict[str, dict[str, Network]] = {
    "Stable Diffusion 1": {
        "unet": Network(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8), 859_520_964),
        "text_encoder": CLIP_L,
        "vae": VAE,
    },
    "Stable Diffusion 2": {
        "unet": Network(
            lambda: UNet2DConditionModel(
                cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
            ),
            865_910_724,
        ),
        "text_encoder": CLIP_H,
        "vae": VAE,
    },
    "Stable Diffusion XL": {
        "unet": Network(unet_of_xl, 2_567_463_684),
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "vae": VAE,
    },
    "Stable Diffusion 3 Medium": {
        "transformer": Network(
            lambda: SD3Transformer2DModel(
                num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
            ),
            2_028_328_000,
        ),
        "text_encoder": CLIP_L_PROJECTED,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "vae": VAE_OF_16,
    },
    "FLUX.1 dev": {
        "transformer": Network(lambda: FluxTransformer2DModel(guidance_embeds=True), 11_901_408_320),
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "vae": VAE_OF_16,
    },
    "FLUX.1 Fill": {
        "transformer": Network(
            lambda: FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True), 11_902_391_360
        ),
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "vae": VAE_OF_16,
    },
}


def main() -> None:
    counted = {family: {name: one.count() for name, one in parts.items()} for family, parts in FAMILIES.items()}
    for family, parts in counted.items():
        painter, total, largest = next(iter(parts)), sum(parts.values()), max(parts, key=lambda part: parts[part])
        print(
            f"{family}: its {painter} has {parts[painter] / 1e9:.2f} billion parameters; all take"
            f" {4 * total / GIB:.1f} GiB in fp32 and {2 * total / GIB:.1f} in half precision, its {largest} alone"
            f" {2 * parts[largest] / GIB:.1f}"
        )
    results.write("families", {"parameters": counted})


if __name__ == "__main__":
    main()
