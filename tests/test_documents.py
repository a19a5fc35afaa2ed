"""What the documents say: their code runs, their links lead somewhere, and what they claim of the bundled model is so.

Every page is run from top to bottom as a reader would who copies its blocks, in a folder with links to `examples/` and
the bundled model. So that it takes minutes rather than an hour, the bundled model is a tiny one with five steps as
its default in place of thirty, commands make one candidate, PNGs are hardly compressed, what comes from the Hub is a
tiny random network of the same class, in a folder of its name, and compiling stops short of C++.
`docs/make_pictures.py` runs the commands in full.

A line above a block says where another rule holds: `<!-- runs: no: WHY -->`, `<!-- runs: needs PACKAGE -->`,
`<!-- runs: hub -->` (by the tests of the Hub) and `<!-- ci: … -->` (by the repository's checks, on a bare machine).
"""

import glob
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial, partialmethod
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import typer
from guided_diffusion_reference import SMALL, random_state
from PIL import Image
from stand_ins import save_stand_ins
from tiny import make_tiny_pipe, tiny_unet

import pipeline_blended_diffusion
from blended_diffusion import models
from blended_diffusion.applications.registry import APPLICATIONS
from blended_diffusion.checkpoints import PRESETS
from blended_diffusion.checkpoints.presets import DEFAULT_CLIP
from blended_diffusion.cli import app, main
from blended_diffusion.demo import KNOWN_WORDS, MODEL_FOLDER
from pipeline_blended_diffusion import BlendedDiffusionPipeline


ROOT = Path(__file__).parents[1]
README, CARD = ROOT / "README.md", MODEL_FOLDER / "README.md"
DOCS = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")
PAGES = {"README": README, "model card": CARD, **{page.stem: page for page in DOCS}}
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CREDITS.md", ROOT / "CHANGELOG.md", ROOT / "training" / "README.md"]

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>runs|ci): (?P<rule>.*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
PYTHON, SHELL = ("python", "py"), ("bash", "sh")

# a pipeline of 32 pixels in the place of the published checkpoint
CHECKPOINT = "256x256_diffusion_uncond"
SHORTER = {
    "--frames": "3",
    "--num-images": "1",
    "--iterations_num": "1",
    "--num-inference-steps": "5",
    "--timestep_respacing": "27",
}
SAME = {"--num-images": "--iterations_num", "--num-inference-steps": "--timestep_respacing", "--frames": "--frames"}


@dataclass(frozen=True)
class Block:
    language: str
    code: str

    @classmethod
    def all_of(cls, page: Path) -> "list[Block]":
        """The page's blocks of Python and shell, but for those that are run elsewhere or not at all."""
        found = []
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            mark, rule = match["mark"], match["rule"] or ""
            if match["language"] not in (*PYTHON, *SHELL) or mark == "ci" or rule == "hub":
                continue
            if rule.startswith("needs "):
                if importlib.util.find_spec(rule.removeprefix("needs ")) is None:
                    continue
            elif mark is not None:
                assert re.fullmatch(r"no: \w.*", rule), f"{page.name}: {rule!r} is no rule for a block"
                continue
            found.append(cls(match["language"], match["code"]))
        return found

    def run(self, namespace: dict) -> None:
        if self.language in PYTHON:
            exec(compile(self.code, "<page>", "exec"), namespace)
            return
        others = []
        for line in self.code.replace("\\\n", " ").splitlines():
            line = line.replace("python convert_checkpoint.py", "blended-diffusion convert")
            if not line.startswith("blended-diffusion "):
                others.append(line)
                continue
            run_by_bash(others)
            others = []
            arguments = [name for part in shlex.split(line, comments=True)[1:] for name in glob.glob(part) or [part]]
            assert main(shorter(arguments)) == 0, line
        run_by_bash(others)


def run_by_bash(lines: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def shorter(arguments: list[str]) -> list[str]:
    """The same command with few steps, candidates and frames, where it has flags for them: the last one counts."""
    known = {name for flag in typer.main.get_command(app).commands[arguments[0]].params for name in flag.opts}
    for name, released in SAME.items():
        name = released if released in arguments else name
        arguments = [*arguments, name, SHORTER[name]] if name in known else arguments
    return arguments


@pytest.fixture(scope="session")
def small_bundled_model(tmp_path_factory) -> Path:
    """In the place of the bundled model: half its size in pixels, with far fewer weights."""
    folder = tmp_path_factory.mktemp("models") / "small"
    defaults = {"default_num_inference_steps": 5, "default_candidate_labels": list(KNOWN_WORDS)}
    make_tiny_pipe(unet=tiny_unet(sample_size=32), **defaults).save_pretrained(folder)
    for part in MODEL_FOLDER.iterdir():
        if part.name not in ("model_index.json", "modular_model_index.json") and not (folder / part.name).exists():
            (folder / part.name).symlink_to(part)
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch, small_bundled_model) -> Path:
    """A folder to run pages in, in a state of torch's that is set back."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    model = tmp_path / "blended_diffusion" / "demo" / "model"
    model.mkdir(parents=True)
    for part in small_bundled_model.iterdir():
        (model / part.name).symlink_to(part)
    monkeypatch.setitem(models.IN_THE_BOX, "bundled", model)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(Image.Image, "save", partialmethod(Image.Image.save, compress_level=1))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with patch.dict(APPLICATIONS):
        yield tmp_path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, desk, monkeypatch):
    text = PAGES[page].read_text(encoding="utf-8")
    save_stand_ins(desk, text + DEFAULT_CLIP * (CHECKPOINT in text))
    if CHECKPOINT in text:
        tiny = replace(SMALL["three channels"], image_size=32, channel_mult=(1, 2), attention_resolutions=(16,))
        monkeypatch.setitem(PRESETS, CHECKPOINT, replace(PRESETS[CHECKPOINT], architecture=tiny))
        torch.save(random_state(tiny), desk / f"{CHECKPOINT}.pt")
    if 'custom_pipeline="blended_diffusion"' in text:
        # as diffusers finds it under this name once it is among the community's
        shutil.copy(ROOT / "pipeline_blended_diffusion.py", desk / "blended_diffusion" / "pipeline.py")
    if "photo.jpg" in text:
        shutil.copy(ROOT / "examples" / "coffee.jpg", "photo.jpg")
        shutil.copy(ROOT / "examples" / "coffee_mask.png", "mask.png")
    blocks, namespace = Block.all_of(PAGES[page]), {"__name__": "__main__"}
    for block in blocks:
        block.run(namespace)
    if page in ("README", "model card"):
        with Image.open("edited.png") as edited, Image.open("examples/coffee.jpg") as photo:
            assert edited.size == photo.size


def test_a_block_that_fails_is_noticed(desk):
    for block in (Block("python", "1 / 0"), Block("bash", "false\ntrue"), Block("bash", "blended-diffusion edit")):
        with pytest.raises((ZeroDivisionError, subprocess.CalledProcessError, AssertionError)):
            block.run({})


@pytest.mark.parametrize("page", ["README", "model card"])
def test_the_known_words_are_named(page):
    text = " ".join(PAGES[page].read_text(encoding="utf-8").replace(">", " ").split())
    assert ", ".join(KNOWN_WORDS) in text


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_within_the_repository_lead_somewhere():
    for page in [README, *OTHERS, *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: {target}#{anchor}"


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in DOCS:
        assert f"]({page.name})" in contents, page.name
    assert "](docs/README.md)" in README.read_text(encoding="utf-8")


def test_the_reference_is_what_the_docstrings_say():
    """After a change of docstrings: `python docs/make_reference.py`."""
    found = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.reference()


def test_the_method_names_functions_that_there_are():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    lines = re.findall(r"^In code: (.*?)\n\n", text, flags=re.M | re.S)
    names = [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]
    arguments = inspect.signature(BlendedDiffusionPipeline.__call__).parameters
    assert len(lines) == text.count("\n$$")
    for name in names:
        owner, _, method = name.rpartition(".")
        assert not owner or owner == "BlendedDiffusionPipeline"
        known = hasattr(BlendedDiffusionPipeline, method) if owner else hasattr(pipeline_blended_diffusion, name)
        assert known or name in arguments, name


# the released editor's flags with values of theirs
RELEASED = {
    "--prompt": "rock",
    "--init_image": "photo.jpg",
    "--mask": "mask.png",
    "--skip_timesteps": 25,
    "--local_clip_guided_diffusion": True,
    "--ddim": True,
    "--timestep_respacing": 50,
    "--model_output_size": 512,
    "--aug_num": 4,
    "--clip_guidance_lambda": 900.0,
    "--range_lambda": 60.0,
    "--lpips_sim_lambda": 800.0,
    "--l2_sim_lambda": 9000.0,
    "--background_preservation_loss": True,
    "--invert_mask": True,
    "--no_enforce_background": True,
    "--seed": 405,
    "--gpu_id": 1,
    "--output_path": "elsewhere",
    "--output_file": "other.png",
    "--iterations_num": 3,
    "--batch_size": 2,
    "--vid": True,
    "--export_assets": True,
}
SHORT = {"-p": "--prompt", "-i": "--init_image", "-o": "--output_file"}


def parsed(arguments: list[str]) -> dict:
    """What `edit` makes of a command line, before it does anything."""
    program = typer.main.get_command(app)
    context = program.make_context("blended-diffusion", ["edit"])
    return program.commands["edit"].make_context("edit", arguments, parent=context).params


@pytest.mark.parametrize("short", [False, True])
def test_every_released_flag_is_accepted_and_told(short):
    table = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    told = re.findall(r"`(-[\w-]+)`", " ".join(re.findall(r"^\| (`-.*?) \|", table, flags=re.M)))
    assert sorted(told) == sorted([*RELEASED, *SHORT])
    names = {flag: letter for letter, flag in SHORT.items()} if short else {}
    arguments = []
    for flag, value in RELEASED.items():
        arguments += [names.get(flag, flag)] + ([] if value is True else [str(value)])
    found = parsed(arguments)
    (found["prompt"],) = found["prompt"]  # may be repeated here
    assert {flag: found[flag.removeprefix("--")] for flag in RELEASED} == RELEASED
