"""Makes a pipeline folder of a trained UNet and a trained CLIP.

    python -m training.export --unet runs/unet --clip runs/clip --output model

With `--guided-diffusion FILE` the UNet is also written in guided-diffusion's own layout.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from transformers import CLIPModel, CLIPTokenizer

from blended_diffusion.checkpoints import load_clip_in_full_precision, to_guided_diffusion
from pipeline_blended_diffusion import BlendedDiffusionPipeline
from training.loop import latest_checkpoint
from training.losses import linear_schedule
from training.train_clip import make_image_processor


def averaged(run: Path) -> Path:
    """The averaged weights in a run's last checkpoint.

    Raises:
        ValueError: there is no checkpoint.
    """
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} holds no checkpoint: train first.")
    return checkpoint / "averaged"


def make_pipeline(
    unet: Path, clip: Path, tokenizer: str | Path | None = None, half: bool = True, **defaults: Any
) -> BlendedDiffusionPipeline:
    """The pipeline of two runs.

    Args:
        unet, clip (`Path`): the output folders of the two trainings.
        tokenizer (`str` or `Path`, *optional*): a CLIP tokenizer; by default the one the CLIP was trained with.
        half (`bool`): weights in half precision.
        defaults: the pipeline's `default_…` arguments.
    """
    dtype = torch.float16 if half else torch.float32
    clip_model = CLIPModel.from_pretrained(averaged(clip), dtype=dtype)
    return BlendedDiffusionPipeline(
        unet=UNet2DModel.from_pretrained(averaged(unet), torch_dtype=dtype),
        scheduler=linear_schedule(),
        clip_model=clip_model,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer or clip / "tokenizer"),
        feature_extractor=make_image_processor(clip_model.config.vision_config.image_size),
        **defaults,
    )


def forget_origin(path: Path) -> None:
    """Takes out of a config where on this machine the network was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--unet", type=Path, required=True, help="output folder of train_unet")
    flag("--clip", type=Path, required=True, help="output folder of train_clip")
    flag("--output", type=Path, required=True, help="folder for the pipeline; must not exist")
    flag("--guided-diffusion", type=Path, help="also write the UNet here, as guided-diffusion keeps it (.pt)")
    flag("--full-precision", action="store_true", help="fp32 weights instead of fp16")
    flag("--steps", type=int, default=30, help="the pipeline's default number of steps")
    flag("--strength", type=float, default=0.95, help="its default strength")
    flag("--clip-guidance-scale", type=float, default=160.0, help="its default guidance scale")
    flag("--guidance-gradient", choices=["sample", "estimate"], default="estimate", help="its default gradient")
    flag("--augmentations", type=int, default=6, help="its default number of augmentations")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    words = (options.clip / "words.txt").read_text(encoding="utf-8")
    pipeline = make_pipeline(
        options.unet,
        options.clip,
        half=not options.full_precision,
        default_num_inference_steps=options.steps,
        default_strength=options.strength,
        default_clip_guidance_scale=options.clip_guidance_scale,
        default_num_augmentations=options.augmentations,
        default_guidance_gradient=options.guidance_gradient,
        default_candidate_labels=words.splitlines(),
    )
    pipeline.save_pretrained(options.output)
    load_clip_in_full_precision(options.output)
    forget_origin(options.output / "unet" / "config.json")
    (options.output / "words.txt").write_text(words, encoding="utf-8")
    if options.guided_diffusion:
        to_guided_diffusion(options.output, options.guided_diffusion)


if __name__ == "__main__":
    main()
