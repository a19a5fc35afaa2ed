"""Tiny real pipelines of the families that diffusers has inpainting pipelines for, as somebody would have saved them.

What belongs here is components: small enough to run in milliseconds, of the very classes that users load.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    IFSuperResolutionPipeline,
    KandinskyV22InpaintCombinedPipeline,
    PriorTransformer,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from tiny import make_tiny_pipe, tiny_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


SIZE = 16  # of the pictures; of the latents half


def autoencoder(latent_channels: int = 4, **changes) -> AutoencoderKL:
    torch.manual_seed(2)
    config = {
        "block_out_channels": (16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": latent_channels,
        "norm_num_groups": 4,
        "sample_size": SIZE,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def text_unet(in_channels: int = 4, out_channels: int = 4, size: int = SIZE // 2, **changes) -> UNet2DConditionModel:
    torch.manual_seed(3)
    config = {
        "sample_size": size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def clip_text(kind: type = CLIPTextModel, projection_dim: int = 32):
    torch.manual_seed(4)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=514,
        max_position_embeddings=16,
        bos_token_id=512,
        eos_token_id=513,
        projection_dim=projection_dim,
    )
    return kind(config).eval()


def t5() -> T5EncoderModel:
    torch.manual_seed(5)
    return T5EncoderModel(T5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)).eval()


def t5_tokenizer() -> T5Tokenizer:
    """Letters as tokens."""
    letters = [chr(code) for code in range(32, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, model_max_length=16, extra_ids=0)


def stable_diffusion(in_channels: int = 4, prediction_type: str = "epsilon") -> DiffusionPipeline:
    parts = {
        "vae": autoencoder(),
        "text_encoder": clip_text(),
        "tokenizer": tiny_tokenizer(),
        "unet": text_unet(in_channels),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    kind = StableDiffusionPipeline if in_channels == 4 else StableDiffusionInpaintPipeline
    return kind(**parts, requires_safety_checker=False)


def stable_diffusion_xl(in_channels: int = 4) -> DiffusionPipeline:
    unet = text_unet(
        in_channels,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    kind = StableDiffusionXLPipeline if in_channels == 4 else StableDiffusionXLInpaintPipeline
    return kind(
        vae=autoencoder(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def deepfloyd_if() -> IFPipeline:
    unet = text_unet(
        3,
        6,
        size=SIZE // 2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="positional",
        act_fn="gelu",
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        encoder_hid_dim=32,
    )
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet,
        scheduler=DDPMScheduler(variance_type="learned_range", thresholding=True, prediction_type="epsilon"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def deepfloyd_if_upscaler() -> IFSuperResolutionPipeline:
    unet = text_unet(
        6,
        6,
        size=SIZE,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        encoder_hid_dim=32,
        class_embed_type="timestep",
        mid_block_scale_factor=1.414,
    )
    noising = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}
    return IFSuperResolutionPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet,
        scheduler=DDPMScheduler(**noising),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    torch.manual_seed(8)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=1,
        in_channels=16,  # with fewer the pipeline does not paint
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=32,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_autoencoder(16),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flow_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    changes = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}
    return autoencoder(latent_channels, **changes)


def flux(fill: bool = False) -> DiffusionPipeline:
    torch.manual_seed(6)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        # latents; to fill, masked latents too, and a mask of (2·scale)² values; all packed by two
        in_channels=4 * 4 * 2 + 4 * 4 if fill else 4 * 4,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    kind = FluxFillPipeline if fill else FluxPipeline
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_autoencoder(),
        text_encoder=clip_text(),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def kandinsky() -> KandinskyV22InpaintCombinedPipeline:
    torch.manual_seed(7)
    movq = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
        layers_per_block=1,
    ).eval()
    unet = text_unet(
        9,
        8,
        addition_embed_type="image",
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        patch_size=16,
    )
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1, num_embeddings=16
    ).eval()
    prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))
    return KandinskyV22InpaintCombinedPipeline(
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
        ),
        movq=movq,
        prior_prior=prior,
        prior_image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        prior_text_encoder=clip_text(CLIPTextModelWithProjection),
        prior_tokenizer=tiny_tokenizer(),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
        ),
        prior_image_processor=CLIPImageProcessor(crop_size=32, size=32, resample=3, do_center_crop=True),
    )


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd": stable_diffusion,
    "sd-inpainting": lambda: stable_diffusion(9),
    "sd2": lambda: stable_diffusion(prediction_type="v_prediction"),
    "sdxl": stable_diffusion_xl,
    "sdxl-inpainting": lambda: stable_diffusion_xl(9),
    "sd3": stable_diffusion_3,
    "if": deepfloyd_if,
    "flux": flux,
    "flux-fill": lambda: flux(fill=True),
    "kandinsky": kandinsky,
}

# in which they paint, where their own size is large for a test
SIZES = {"flux": 32, "flux-fill": 32}


def save(name: str, folder: Path) -> None:
    """A family's tiny pipeline in a folder, the second stage of IF (`if-upscaler`), or a CLIP that ranks (`clip`)."""
    if name == "clip":  # as transformers has them
        pipe = make_tiny_pipe()
        for part in (pipe.clip_model, pipe.tokenizer, pipe.feature_extractor):
            part.save_pretrained(folder)
        return
    {**FAMILIES, "if-upscaler": deepfloyd_if_upscaler}[name]().save_pretrained(folder)
