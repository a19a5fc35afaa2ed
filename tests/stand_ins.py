"""Tiny random networks in the places of published ones that tests and documents name: real classes, saved as folders.

A folder of the Hub id's name in the current folder is what `from_pretrained` loads, so that the documents run as they
are, without a network. What is shown is that all is called rightly, not how well it sees or paints.
"""

import string
from functools import partial
from pathlib import Path

import tiny_diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from tiny import tiny_clip, tiny_feature_extractor, tiny_tokenizer, tiny_unet
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    Sam2Config,
    Sam2Model,
    Sam2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTImageProcessor,
)
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)
from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor


TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP_WORDS = {"vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}


def save_clip(folder: Path) -> None:
    for part in (tiny_clip(), tiny_tokenizer(), tiny_feature_extractor()):
        part.save_pretrained(folder)


def tiny_siglip() -> SiglipModel:
    torch.manual_seed(2)
    text = {"vocab_size": 64, "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {**TRANSFORMER, "image_size": 16, "patch_size": 4}
    return SiglipModel(SiglipConfig(text_config={**TRANSFORMER, **text}, vision_config=vision)).eval()


def tiny_siglip_tokenizer() -> Siglip2Tokenizer:
    """Letters as tokens, padded to 16, with an end, as the published one."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase]
    vocab = {token: index for index, token in enumerate(tokens)}
    return Siglip2Tokenizer(
        vocab=vocab, merges=[], add_bos_token=False, add_eos_token=True, padding_side="right", model_max_length=16
    )


def tiny_siglip_processor() -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": 16, "width": 16})


def save_siglip(folder: Path) -> None:
    for part in (tiny_siglip(), tiny_siglip_tokenizer(), tiny_siglip_processor()):
        part.save_pretrained(folder)


def save_clipseg(folder: Path) -> None:
    torch.manual_seed(0)
    vision = {**TRANSFORMER, "image_size": 32, "patch_size": 8}
    decoder = {"reduce_dim": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    text = {**TRANSFORMER, **CLIP_WORDS}
    config = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=24, extract_layers=[0, 1], **decoder)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(processor, tiny_tokenizer()).save_pretrained(folder)


def save_sam2(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32, num_hidden_layers=1
    )
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    Sam2Model(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Sam2Processor(Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16})).save_pretrained(folder)


def tiny_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**TRANSFORMER, **CLIP_WORDS, projection_dim=32)).eval()


def tiny_autoencoder(levels: int) -> AutoencoderKL:
    """That makes pictures smaller by 2^(levels − 1)."""
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.08333,
    ).eval()


def tiny_conditional_unet(in_channels: int, **changes) -> UNet2DConditionModel:
    config = {
        "sample_size": 32,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def save_inpainting(folder: Path) -> None:
    torch.manual_seed(3)
    StableDiffusionInpaintPipeline(
        vae=tiny_autoencoder(2),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_conditional_unet(9),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_upscaler(folder: Path) -> None:
    torch.manual_seed(4)
    StableDiffusionUpscalePipeline(
        vae=tiny_autoencoder(3),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_conditional_unet(7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    ).save_pretrained(folder)


def save_ddpm(folder: Path) -> None:
    """With fixed variances and clipping, as the first DDPMs."""
    DDPMPipeline(tiny_unet(out_channels=3), DDPMScheduler(beta_end=0.005)).save_pretrained(folder)


STAND_INS = {
    "google/ddpm-ema-church-256": save_ddpm,
    "openai/clip-vit-base-patch16": save_clip,
    "openai/clip-vit-large-patch14": save_clip,
    "google/siglip2-base-patch16-224": save_siglip,
    "CIDAS/clipseg-rd64-refined": save_clipseg,
    "facebook/sam2.1-hiera-tiny": save_sam2,
    "stable-diffusion-v1-5/stable-diffusion-inpainting": save_inpainting,
    "stabilityai/stable-diffusion-x4-upscaler": save_upscaler,
    "stabilityai/stable-diffusion-xl-base-1.0": partial(tiny_diffusers.save, "sdxl"),
    "DeepFloyd/IF-I-XL-v1.0": partial(tiny_diffusers.save, "if"),
    "DeepFloyd/IF-II-L-v1.0": partial(tiny_diffusers.save, "if-upscaler"),
}


def save_stand_ins(folder: Path, text: str) -> None:
    """Saves those whose Hub ids `text` names into `folder`."""
    for name, save in STAND_INS.items():
        if name in text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save(folder / name)
