"""Tiny real components for every test: small enough to run in milliseconds, of the very classes that users load."""

import string

import torch
from diffusers import DDPMScheduler, UNet2DModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from pipeline_blended_diffusion import BlendedDiffusionPipeline


# the one table of tolerances, (relative, absolute), for every comparison of numbers
TOLERANCES = {
    torch.float64: (1e-7, 1e-8),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float16: (1e-2, 1e-2),
}


def assert_close(actual, expected, dtype: torch.dtype = torch.float32) -> None:
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)


def tiny_unet(**changes) -> UNet2DModel:
    """A 16×16 network of guided-diffusion's kind with learned variance."""
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "attention_head_dim": 16,
    }
    return UNet2DModel(**{**config, **changes}).eval()


def tiny_clip(image_size: int = 16) -> CLIPModel:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}
    vision = {**shape, "image_size": image_size, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def tiny_tokenizer() -> CLIPTokenizer:
    """Letters and digits as tokens, padded to 16."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: index for index, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def tiny_feature_extractor(size: int = 16) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def tiny_scheduler() -> DDPMScheduler:
    """Little noise at the end, so that a network which was never trained does not throw the estimate far away."""
    return DDPMScheduler(beta_end=0.005, variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")


def make_tiny_pipe(**changes) -> BlendedDiffusionPipeline:
    components = {
        "unet": tiny_unet(),
        "scheduler": tiny_scheduler(),
        "clip_model": tiny_clip(),
        "tokenizer": tiny_tokenizer(),
        "feature_extractor": tiny_feature_extractor(),
        "default_num_inference_steps": 5,
        "default_strength": 0.8,
        "default_clip_guidance_scale": 20.0,
        "default_num_augmentations": 3,
    }
    pipe = BlendedDiffusionPipeline(**{**components, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe
