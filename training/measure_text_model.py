"""Asks a judge which words a text model draws so that they are recognised.

    python -m training.measure_text_model --model text-model --judge runs/judge-model --output report

Pictures are drawn from nothing by the stock pipeline, a few for each word that the judge knows and a few for the empty
caption, which should show nothing. `report.json` holds how often the judge said the word, `pictures/` a strip of each.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image

from blended_diffusion.evaluation.judge import JUDGE_FOLDER, Judge


def draw_pictures(
    pipeline: StableDiffusionPipeline, caption: str, count: int, steps: int, guidance_scale: float, first_seed: int
) -> list[Image.Image]:
    """`count` pictures of a caption, each from its own seed."""
    generators = [torch.Generator().manual_seed(first_seed + number) for number in range(count)]
    return pipeline(
        [caption] * count, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators
    ).images


def measure(
    pipeline: StableDiffusionPipeline, judge: Judge, output: Path, count: int, steps: int, guidance_scale: float
) -> dict:
    """Draws, judges, and writes what was drawn.

    Args:
        output (`Path`): gets `pictures/WORD.png`, a strip of `count` pictures for each word.
        count (`int`): pictures of each word.

    Returns:
        `dict`: `accuracy` over all words, `words` with that of each, `plain` for the empty caption.
    """
    folder = output / "pictures"
    folder.mkdir(parents=True)
    accuracy = {}
    for number, word in enumerate([*judge.words, judge.nothing]):
        caption = "" if word == judge.nothing else word
        images = draw_pictures(pipeline, caption, count, steps, guidance_scale, first_seed=1000 * number)
        accuracy[word] = judge.verdicts(images).count(word) / count
        make_image_grid(images, 1, count).save(folder / f"{word.replace(' ', '-')}.png")
        print(f"{word}: {accuracy[word]:.0%}", flush=True)
    plain = accuracy.pop(judge.nothing)
    settings = {"pictures": count, "steps": steps, "guidance_scale": guidance_scale}
    return {**settings, "accuracy": sum(accuracy.values()) / len(accuracy), "plain": plain, "words": accuracy}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="folder of a Stable Diffusion model")
    flag(
        "--judge", type=Path, default=JUDGE_FOLDER, help="folder of train_judge's --export (default: the bundled one)"
    )
    flag("--output", type=Path, required=True, help="folder for the report; must not exist")
    flag("--pictures", type=int, default=8, help="of each word")
    flag("--steps", type=int, default=25)
    flag("--guidance-scale", type=float, default=4.0)
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    judge = Judge.load(options.judge)
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    report = measure(pipeline, judge, options.output, options.pictures, options.steps, options.guidance_scale)
    text = json.dumps(report, indent=2) + "\n"
    (options.output / "report.json").write_text(text, encoding="utf-8")
    print(f"all words: {report['accuracy']:.1%}, plain photos: {report['plain']:.0%}")


if __name__ == "__main__":
    main()
