"""Writes `docs/reference.md` from the docstrings of what is public.

    python docs/make_reference.py

What belongs here is the list of what is public and how a docstring looks in Markdown. What is said is in the code.
"""

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any


PAGE = Path(__file__).with_name("reference.md")
INTRODUCTION = """# Reference

Made from the docstrings by `python docs/make_reference.py`; edit those. The command's flags are in
`blended-diffusion COMMAND --help`.
"""

# (module, title, names); a name with `.*` stands for a class with all its public methods that have a docstring
PUBLIC = [
    (
        "pipeline_blended_diffusion",
        "The pipeline",
        ["BlendedDiffusionPipeline.*", "BlendedDiffusionPipelineOutput", "Guidance"],
    ),
    (
        "pipeline_blended_diffusion",
        "The formulas",
        [
            "noise_level",
            "clean_estimate",
            "ddpm_posterior",
            "composite",
            "paste",
            "spherical_distance",
            "range_penalty",
            "background_mse",
            "warp",
            "generators_per_image",
            "released_timesteps",
        ],
    ),
    (
        "pipeline_imagic",
        "Imagic",
        ["ImagicPipeline.*", "ImagicPipelineOutput", "ImagicEdit.*", "find_knee", "EtaPoint"],
    ),
    ("blended_diffusion.editing.one_photo", "One photo in one call", ["edit_photo"]),
    ("blended_diffusion.pictures.fill", "A function of your own that paints", ["fill"]),
    ("blended_diffusion.editing.editor", "Photos of any size", ["Editor", "Editor.edit", "Edited", "FolderEditor"]),
    ("blended_diffusion.painters.settings", "What is wanted of an edit", ["EditSettings"]),
    ("blended_diffusion.painters.painter", "Whoever fills a region", ["Painter.*", "PaintedSquare"]),
    ("blended_diffusion.models", "Models from a name", ["load_model", "Model"]),
    ("blended_diffusion.masks.shapes", "Masks", ["from_box", "from_polygon", "from_alpha", "from_difference", "grow"]),
    ("blended_diffusion.masks.networks", "Masks that networks find", ["from_words", "from_click"]),
    ("blended_diffusion.applications.scribble", "Applications: rough paint", ["scribble"]),
    ("blended_diffusion.applications.remove", "Applications: a thing away", ["remove"]),
    ("blended_diffusion.applications.background", "Applications: another background", ["replace_background"]),
    ("blended_diffusion.applications.extend", "Applications: past the border", ["extend"]),
    ("blended_diffusion.applications.regions", "Applications: several regions", ["edit_regions", "Region"]),
    ("blended_diffusion.applications.steps", "Applications: several steps", ["run_steps"]),
    ("blended_diffusion.applications.strengths", "Applications: several strengths", ["over_strengths"]),
    ("blended_diffusion.applications.reconstruct", "Applications: what the model keeps", ["reconstruct"]),
    ("blended_diffusion.applications.interpolate", "Applications: between two prompts", ["interpolate"]),
    ("blended_diffusion.applications.video.edit", "Applications: a clip", ["edit_video", "EditedFrame"]),
    ("blended_diffusion.applications.batch", "Many photos", ["run_jobs"]),
    (
        "blended_diffusion.painters.regions",
        "The pipeline for several regions",
        ["RegionsPipeline", "RegionsPipeline.of"],
    ),
    (
        "blended_diffusion.painters.windows",
        "The pipeline for large regions",
        ["WindowedPipeline", "WindowedPipeline.of"],
    ),
    (
        "blended_diffusion.painters.changing_masks",
        "Masks that change over the steps",
        ["ChangingMask", "ChangingMask.at"],
    ),
    ("blended_diffusion.painters.shrinking_masks", "A mask that shrinks", ["ShrinkingMask", "growth_of"]),
    (
        "blended_diffusion.painters.change_maps",
        "A mask that says how much",
        ["ChangeMap", "ChangeMap.reach", "ChangeMap.brightened"],
    ),
]

SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def reference() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for module_name, title, names in PUBLIC:
        module = importlib.import_module(module_name)
        parts.append(f"## {title}\n\n`{module_name}`\n")
        for name in names:
            for path in members(module, name):
                parts.append(entry(path, find(module, path)))
    return "\n".join(parts)


def members(module: Any, name: str) -> list[str]:
    """What a name of `PUBLIC` stands for, in the order of the source."""
    class_name, _, every = name.partition(".*")
    if class_name == name:
        return [name]
    ours = [base for base in find(module, class_name).__mro__ if base.__module__ == module.__name__]
    methods = [key for base in ours for key, value in vars(base).items() if is_public(key, value)]
    paths = [f"{class_name}.{key}" for key in dict.fromkeys(methods)]
    return [class_name, *sorted(paths, key=lambda path: path != f"{class_name}.__call__")]


def is_public(name: str, value: Any) -> bool:
    return (
        bool(inspect.getdoc(value))
        and (callable(value) or isinstance(value, (property, staticmethod)))
        and (name == "__call__" or not name.startswith("_"))
    )


def find(module: Any, path: str) -> Any:
    value = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def entry(path: str, value: Any) -> str:
    """One class, function or property."""
    title = "Calling it" if path.endswith(".__call__") else path
    level = "####" if "." in path else "###"
    signature = "" if isinstance(value, property) else f"```\n{signature_of(path, value)}\n```\n\n"
    # diffusers' decorator puts an example with an indentation of its own into the docstring
    docstring = re.sub(r"\n *Examples:\n *```py\n.*?```\n", "", value.__doc__, flags=re.DOTALL)
    return f"{level} {title}\n\n{signature}{to_markdown(inspect.cleandoc(docstring))}\n"


def signature_of(path: str, value: Any) -> str:
    """As one would write it, without types, which the docstring has; in several lines where one is too short."""
    name = "pipe" if path.endswith(".__call__") else path.rpartition(".")[2]
    parameters = [one.replace(annotation=one.empty) for one in inspect.signature(value).parameters.values()]
    signature = inspect.Signature([one for one in parameters if one.name != "self"])
    return name + "\n".join(
        textwrap.wrap(
            re.sub(r"<function (\S+) at 0x\w+>", r"\1", str(signature)).replace("'", '"'),
            100,
            initial_indent="",
            subsequent_indent="    ",
        )
    )


def to_markdown(docstring: str) -> str:
    """A docstring of diffusers' form."""
    blocks = re.split(rf"^({'|'.join(SECTIONS)}):$\n?", docstring, flags=re.MULTILINE)
    parts = [blocks[0].strip()]
    for section, block in zip(blocks[1::2], blocks[2::2], strict=True):
        indented = re.match(r"(?: .*\n?|\n)*", block)[0]
        text, after = textwrap.dedent(indented).strip("\n"), block[len(indented) :].strip()
        if section == "Returns":
            parts.append(f"**{section}** {' '.join(text.split())}")
        elif section in SECTIONS:
            parts.append(f"**{section}**\n\n{items(text)}")
        parts.append(after)
    parts = [part.replace("```py\n", "```\n") for part in parts]  # no page to copy from
    return re.sub(r"\[`(?:~[\w.]*\.)?([\w.]+)`\]", r"`\1`", "\n\n".join(part for part in parts if part))


def items(text: str) -> str:
    """The entries of a section, each a line that is not indented and those below it that are."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(" ") or not line.strip():
            entries[-1].append(line.strip())
        # an entry of several names may go on for a line before its colon
        elif entries and not entries[-1][-1].endswith((":", ".")) and not any(":" in part for part in entries[-1]):
            entries[-1].append(line)
        else:
            entries.append([line])
    return "\n".join(f"- {' '.join(' '.join(lines).split())}" for lines in entries)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
