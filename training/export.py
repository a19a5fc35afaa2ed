"""Makes a pipeline folder of what was trained: of a UNet and a CLIP, or of a text model's UNet and its autoencoder.

    python -m training.export --unet runs/unet --clip runs/clip --output model
    python -m training.export --text-unet runs/text-unet --autoencoder autoencoder --output model

The first is a `BlendedDiffusionPipeline`, whose UNet `--guided-diffusion FILE` also writes in guided-diffusion's own
layout. The second is a `StableDiffusionPipeline` without a safety checker.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DModel
from transformers import CLIPModel, CLIPTokenizer

from blended_diffusion.checkpoints import load_clip_in_full_precision, to_guided_diffusion
from blended_diffusion.inpainting_models import DEFAULTS_FILE
from pipeline_blended_diffusion import BlendedDiffusionPipeline
from training.loop import latest_checkpoint
from training.losses import linear_schedule
from training.train_clip import make_image_processor
from training.train_text_unet import TextConditioned, make_text_pipeline


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


def compact(path: Path) -> None:
    """Writes a JSON file anew without the space between its parts, which is half of a tokenizer's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def mend_config(path: Path, **changes: str) -> None:
    """Takes out of a network's config where on this machine it was loaded from, and makes the changes."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export_blended_diffusion(options: argparse.Namespace) -> None:
    words = (options.clip / "words.txt").read_text(encoding="utf-8")
    pipeline = make_pipeline(
        options.unet,
        options.clip,
        half=not options.full_precision,
        default_num_inference_steps=options.steps or 30,
        default_strength=options.strength,
        default_clip_guidance_scale=options.clip_guidance_scale,
        default_num_augmentations=options.augmentations,
        default_guidance_gradient=options.guidance_gradient,
        default_candidate_labels=words.splitlines(),
    )
    pipeline.save_pretrained(options.output)
    load_clip_in_full_precision(options.output)
    mend_config(options.output / "unet" / "config.json")
    (options.output / "words.txt").write_text(words, encoding="utf-8")
    if options.guided_diffusion:
        to_guided_diffusion(options.output, options.guided_diffusion)


def export_stable_diffusion(options: argparse.Namespace) -> None:
    run = options.text_unet
    pipeline: StableDiffusionPipeline = make_text_pipeline(
        TextConditioned.from_pretrained(averaged(run)),
        AutoencoderKL.from_pretrained(options.autoencoder, torch_dtype=torch.float32),
        CLIPTokenizer.from_pretrained(run / "tokenizer"),
    )
    pipeline.to(torch.float32 if options.full_precision else torch.float16)
    pipeline.save_pretrained(options.output)
    for part in ("unet", "vae"):
        mend_config(options.output / part / "config.json")
    # transformers loads what the config says and diffusers float32, whatever the files hold: one precision for all
    mend_config(options.output / "text_encoder" / "config.json", dtype="float32")
    compact(options.output / "tokenizer" / "tokenizer.json")
    shutil.copy(run / "words.txt", options.output)
    # what whoever gives no numbers gets
    defaults = {"num_inference_steps": options.steps or 25, "guidance_scale": options.guidance_scale}
    (options.output / DEFAULTS_FILE).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--unet", type=Path, help="output folder of train_unet; needs --clip")
    flag("--clip", type=Path, help="output folder of train_clip")
    flag("--text-unet", type=Path, help="output folder of train_text_unet; needs --autoencoder")
    flag("--autoencoder", type=Path, help="the autoencoder that it was trained with, or one with another decoder")
    flag("--output", type=Path, required=True, help="folder for the pipeline; must not exist")
    flag("--guided-diffusion", type=Path, help="also write the UNet here, as guided-diffusion keeps it (.pt)")
    flag("--full-precision", action="store_true", help="fp32 weights instead of fp16")
    flag("--steps", type=int, help="the default number of steps (default: 30, of a text model 25)")
    flag("--guidance-scale", type=float, default=4.0, help="of a text model: its default guidance scale")
    flag("--strength", type=float, default=0.95, help="its default strength")
    flag("--clip-guidance-scale", type=float, default=160.0, help="its default guidance scale")
    flag("--guidance-gradient", choices=["sample", "estimate"], default="estimate", help="its default gradient")
    flag("--augmentations", type=int, default=6, help="its default number of augmentations")
    options = parser.parse_args(arguments)
    given = [name for name in ("unet", "clip", "text_unet", "autoencoder") if getattr(options, name)]
    if given not in (["unet", "clip"], ["text_unet", "autoencoder"]):
        parser.error("give --unet and --clip, or --text-unet and --autoencoder")
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    if options.unet:
        export_blended_diffusion(options)
    else:
        export_stable_diffusion(options)


if __name__ == "__main__":
    main()
