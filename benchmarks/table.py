"""Writes README's tables of speed from what the benchmarks found.

python -m benchmarks.table
"""

from pathlib import Path

from benchmarks import results


README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->\n", "<!-- benchmarks: end -->\n"
STEPS = {
    "released editor": "the released editor's, on guided-diffusion's own code, float32",
    "sample, bf16": "ours, gradient through the network, bfloat16",
    "estimate, bf16": "ours, gradient at the estimate, bfloat16",
    "sample": "ours, gradient through the network, float32",
    "estimate": "ours, gradient at the estimate, float32",
}


def step_table(figures: dict) -> str:
    """One row for each way of taking a step."""
    lines = ["| one guided step, full-size 256×256 network | speed | peak memory |", "|---|---|---|"]
    for name, title in STEPS.items():
        way = figures["ways"][name]
        lines.append(f"| {title} | {way['times_faster']:.1f} × | {way['peak_gib']:.1f} GiB |")
    return "\n".join(lines) + "\n"


def edit_table(figures: dict) -> str:
    """One row for each preset."""
    lines = [
        "| a whole edit, bundled model | speed | all candidates right | first-ranked right | background difference |",
        "|---|---|---|---|---|",
    ]
    for name, way in figures["presets"].items():
        every, first = way["mean"]["all"], way["top1"]["all"]
        lines.append(
            f"| `--preset {name}` | {1 / way['share_of_release']:.1f} × | {every['right']} of {every['of']} |"
            f" {first['right']} of {first['of']} | {way['background_largest']} |"
        )
    return "\n".join(lines) + "\n"


def section() -> str:
    """What stands between the two marks."""
    step, edit = results.read("step"), results.read("edit")
    machine, rounds = step["machine"], len(step["ways"]["sample"]["seconds"])
    return (
        f"{step_table(step)}\n{edit_table(edit)}\n"
        f"Measured on {machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, torch"
        f" {machine['torch']}: `python -m benchmarks.step` (medians of {rounds} steps of each way, in turn),"
        " `python -m benchmarks.edit`. On such a processor a large model is in bfloat16 unless told otherwise.\n"
    )


def main() -> None:
    before, rest = README.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    README.write_text(before + BEGIN + section() + END + after, "utf-8")


if __name__ == "__main__":
    main()
