"""What memory a guided step of the full-size 256×256 network needs: counted, and measured once on the CPU.

python -m benchmarks.memory

The count is [`blended_diffusion.painters.memory.count_step`]'s: the tensors that live at the same time, for one
candidate and eight copies for a CLIP ViT-B/16. It is made without weights and without a GPU. With `--measure` a step
of each way is taken on the CPU in fp32, in a process of its own, and its peak memory is set against the count.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict

import psutil
import torch
from diffusers import DDPMScheduler, UNet2DModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from benchmarks import results
from blended_diffusion.checkpoints import PRESETS
from blended_diffusion.checkpoints.stock_unet import scheduler_config, unet_config
from blended_diffusion.demo import MODEL_FOLDER
from blended_diffusion.machine import GIB, peak_memory
from blended_diffusion.painters.memory import MemorySaving, count_step, weights_bytes
from pipeline_blended_diffusion import BlendedDiffusionPipeline


PRESET = "256x256_diffusion_uncond"
COPIES = 8
DTYPES = {"fp32": torch.float32, "half": torch.float16}
WAYS = {
    "sample": [MemorySaving(), MemorySaving(True), MemorySaving(True, 2)],
    "estimate": [MemorySaving(), MemorySaving(False, 2)],
}


def counted_pipeline(dtype: torch.dtype, device: str = "meta") -> BlendedDiffusionPipeline:
    """The full-size network and CLIP, with random weights or, on `"meta"`, with none."""
    architecture = PRESETS[PRESET].architecture
    with torch.device(device):
        unet = UNet2DModel.from_config(unet_config(architecture))
        clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    return BlendedDiffusionPipeline(
        unet.to(dtype).eval(),
        DDPMScheduler(**scheduler_config(architecture)),
        clip.to(dtype).eval(),
        CLIPTokenizer.from_pretrained(MODEL_FOLDER, subfolder="tokenizer"),
        CLIPImageProcessor(),
    )


def measured(gradient: str, way: MemorySaving) -> dict[str, int]:
    """Bytes of this process on the CPU: before a step, and at the most in it."""
    pipe = counted_pipeline(torch.float32, "cpu")
    pipe.set_progress_bar_config(disable=True)
    way.apply(pipe)
    before = psutil.Process().memory_info().rss
    pipe(
        "rock",
        torch.rand(3, 256, 256),
        torch.ones(1, 256, 256),
        num_inference_steps=100,
        strength=0.01,
        ranking="region",
        guidance_gradient=gradient,
        num_augmentations=COPIES,
    )
    return {"before": before, "peak": peak_memory(torch.device("cpu"))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what memory a guided step of the full-size network needs.")
    parser.add_argument("--measure", action="store_true", help="take the steps on the CPU too; needs 10 GiB")
    parser.add_argument("--alone", nargs=2, metavar=("GRADIENT", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        gradient, way = options.alone
        print(json.dumps(measured(gradient, MemorySaving(**json.loads(way)))))
        return

    rows = []
    for name, dtype in DTYPES.items():
        pipe = counted_pipeline(dtype)
        weights = weights_bytes(pipe)
        for gradient, ways in WAYS.items():
            for way in ways:
                step = count_step(pipe, 1, COPIES, gradient, way)
                row = {"dtype": name, "gradient": gradient, **asdict(way)}
                rows.append({**row, "weights_gib": weights / GIB, "step_gib": step / GIB})
                print(f"{(weights + step) / GIB:5.2f} GiB counted: {name}, {gradient}, {way or 'plain'}", flush=True)
    if options.measure:
        for row in rows:
            if row["dtype"] != "fp32" or row["clip_chunk_size"] is not None:
                continue
            way = json.dumps({"gradient_checkpointing": row["gradient_checkpointing"]})
            command = [sys.executable, "-m", "benchmarks.memory", "--alone", row["gradient"], way]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            row["measured_step_gib"] = (found["peak"] - found["before"]) / GIB
            row["measured_process_gib"] = found["peak"] / GIB
            print(
                f"{row['measured_process_gib']:5.2f} GiB measured, the whole process; what the step added is"
                f" {row['measured_step_gib'] / row['step_gib']:.2f} × the count: {row['gradient']}, {way}",
                flush=True,
            )
    results.write("memory", {"copies": COPIES, "candidates": 1, "ways": rows})


if __name__ == "__main__":
    main()
