"""Where the house's modules are, for the tests that read its source."""

from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGE = "blended_diffusion"


def find_modules() -> dict[str, Path]:
    """The files of the package and of the pipelines by their dotted names; what is in the model's folder is data."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *ROOT.glob("pipeline_*.py"), *ROOT.glob("modular_*.py")]
    model = ROOT / PACKAGE / "demo" / "model"
    modules = {}
    for file in sorted(file for file in files if model not in file.parents):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


MODULES = find_modules()
