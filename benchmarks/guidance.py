"""What guidance and candidates cost, as ratios of times taken alternately in one process.

python -m benchmarks.guidance
"""

import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from blended_diffusion.models import load_model


EXAMPLES = Path(__file__).parents[1] / "examples"
ROUNDS = 3
CASES = {
    "4 candidates, gradient through the network": {"num_images_per_prompt": 4, "guidance_gradient": "sample"},
    "4 candidates, gradient at the estimate": {"num_images_per_prompt": 4, "guidance_gradient": "estimate"},
    "1 candidate, gradient at the estimate": {"num_images_per_prompt": 1, "guidance_gradient": "estimate"},
}


def main() -> None:
    pipe = load_model().pipe
    pipe.set_progress_bar_config(disable=True)
    photo, mask = Image.open(EXAMPLES / "coffee.jpg"), Image.open(EXAMPLES / "coffee_mask.png")

    def seconds(arguments: dict) -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in range(arguments["num_images_per_prompt"])]
        start = time.perf_counter()
        pipe("tangerine", photo, mask, padding_mask_crop=65, generator=generators, **arguments)
        return time.perf_counter() - start

    seconds(CASES["1 candidate, gradient at the estimate"])  # the first call warms up
    times = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, arguments in CASES.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{median / first:5.2f}  {name}")


if __name__ == "__main__":
    main()
