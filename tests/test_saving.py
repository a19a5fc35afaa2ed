"""What a saved folder holds, that it loads by itself in every form, and that saving it again changes nothing."""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import check_imports
from forked import run_forked
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from tiny import make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer

import pipeline_blended_diffusion as method


SOURCES = ("pipeline.py", "pipeline_blended_diffusion.py")
SECOND_CLIP = ("clip_model_2", "tokenizer_2", "feature_extractor_2")


def load(folder: Path, **options) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file by its path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def edited(pipe: DiffusionPipeline, photo, mask) -> torch.Tensor:
    return pipe("rock", photo, mask, generator=torch.Generator().manual_seed(0), output_type="pt").images


def second_clip() -> dict:
    return dict(zip(SECOND_CLIP, (tiny_clip(), tiny_tokenizer(), tiny_feature_extractor()), strict=True))


def changed_source() -> str:
    """The method in another version: what is behind the mask is half as bright at every step."""
    source = Path(method.__file__).read_text(encoding="utf-8")
    line = "    return foreground * mask + background * (1 - mask)\n"
    assert source.count(line) == 1
    return source.replace(line, line.replace("(1 - mask)", "(1 - mask) * 0.5"))


@pytest.fixture
def other_version(tmp_path, tiny_pipe) -> Path:
    """A saved folder with a changed source file."""
    tiny_pipe.save_pretrained(tmp_path / "other")
    for name in SOURCES:
        (tmp_path / "other" / name).write_text(changed_source(), encoding="utf-8")
    return tmp_path / "other"


@pytest.fixture
def weights_alone(tmp_path, tiny_pipe) -> Path:
    """A saved folder without a source file."""
    tiny_pipe.save_pretrained(tmp_path / "weights")
    for name in SOURCES:
        (tmp_path / "weights" / name).unlink()
    return tmp_path / "weights"


def test_a_saved_folder_is_complete(tiny_model_dir):
    assert set(contents(tiny_model_dir)) == {
        "README.md",
        "clip_model/config.json",
        "clip_model/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
        "modular_config.json",
        "modular_model_index.json",
        *SOURCES,
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((tiny_model_dir / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_blended_diffusion", "BlendedDiffusionPipeline"]
    assert index["default_num_inference_steps"] == 5 and index["default_strength"] == 0.8
    for name in SOURCES:
        assert (tiny_model_dir / name).read_bytes() == Path(method.__file__).read_bytes()


def test_stored_labels_are_no_list(tmp_path):
    """On the Hub diffusers would take a list for a component of that name, and not load."""
    for labels in ([], ["a cat, sitting", "a dog"]):
        make_tiny_pipe(default_candidate_labels=labels).save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        components = {name for name, value in index.items() if isinstance(value, list)}
        assert components - {"_class_name"} == set(make_tiny_pipe().components)
        assert load(tmp_path).config.default_candidate_labels == labels


@pytest.mark.parametrize("has_second_clip", [False, True])
def test_saving_what_was_loaded_changes_nothing(tmp_path, has_second_clip):
    pipe = make_tiny_pipe(**(second_clip() if has_second_clip else {}))
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        pipe.save_pretrained(folder)
        pipe = load(folder)
    first, second, third = map(contents, folders)
    assert third == second and set(second) == set(first)
    # transformers notes in these how a part was loaded
    noted = {f"{part}{suffix}" for part in ("clip_model", "tokenizer") for suffix in ("", "_2")}
    assert {path.split("/")[0] for path in first if first[path] != second[path]} <= noted
    for part in SECOND_CLIP:
        assert (folders[2] / part).exists() == has_second_clip == (getattr(pipe, part) is not None)


def test_no_path_of_this_machine_is_saved(tmp_path, tiny_pipe):
    tiny_pipe.save_pretrained(tmp_path / "first")
    load(tmp_path / "first").save_pretrained(tmp_path / "second")
    for path in (tmp_path / "second").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


def test_half_precision_lies_beside_full_precision(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path)
    make_tiny_pipe().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("clip_model", "model")):
        assert {path.name for path in (tmp_path / part).glob("*.safetensors")} == {
            f"{stem}.safetensors",
            f"{stem}.fp16.safetensors",
        }
    half = load(tmp_path, variant="fp16", dtype=torch.float16)
    full = load(tmp_path, dtype=torch.float32)
    for name in ("unet", "clip_model"):
        kept, rounded = getattr(full, name).state_dict(), getattr(half, name).state_dict()
        assert all(torch.equal(rounded[key], kept[key].to(rounded[key].dtype)) for key in kept)
        assert getattr(half, name).dtype == torch.float16 and getattr(full, name).dtype == torch.float32


def test_pickled_weights_load_too(tmp_path, tiny_pipe):
    tiny_pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").exists()
    loaded = load(tmp_path).unet.state_dict()
    assert all(torch.equal(loaded[name], weights) for name, weights in tiny_pipe.unet.state_dict().items())


def test_the_source_may_come_from_elsewhere(weights_alone, other_version, tiny_pipe, photo, mask, tmp_path):
    with pytest.raises((AttributeError, OSError, TypeError, ValueError)):
        load(weights_alone)
    expected = edited(tiny_pipe, photo, mask)
    for custom in (method.__file__, other_version, other_version / "pipeline_blended_diffusion.py"):
        result = edited(load(weights_alone, custom_pipeline=str(custom)), photo, mask)
        assert torch.allclose(result, expected, atol=1e-5) == (custom == method.__file__), custom


def test_a_loaded_pipeline_goes_on_in_another_source(other_version, tmp_path, tiny_pipe, photo, mask):
    """Where a folder has its own file, diffusers takes that one whatever `custom_pipeline` says; this is the way."""
    tiny_pipe.save_pretrained(tmp_path / "own")
    pipe = load(tmp_path / "own")
    file = str(other_version / "pipeline.py")
    other = type(pipe).from_pipe(pipe, custom_pipeline=file, trust_remote_code=True)
    other.set_progress_bar_config(disable=True)
    assert other.unet is pipe.unet and other.config.default_num_inference_steps == 5
    assert torch.equal(edited(other, photo, mask), edited(load(other_version), photo, mask))


def test_two_versions_in_one_process(other_version, tmp_path, tiny_pipe, photo, mask):
    """diffusers runs both files in the module of one name; each pipeline keeps its functions and its source."""
    tiny_pipe.save_pretrained(tmp_path / "own")
    first = load(tmp_path / "own")
    before = edited(first, photo, mask)
    second = load(other_version)
    assert not torch.allclose(edited(second, photo, mask), before, atol=1e-3)
    assert torch.equal(edited(first, photo, mask), before)
    for pipe, folder in ((first, tmp_path / "own"), (second, other_version)):
        pipe.save_pretrained(tmp_path / "again")
        for name in SOURCES:
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_subclass_is_saved_with_its_own_file(tmp_path, tiny_pipe, monkeypatch):
    (tmp_path / "darker.py").write_text(
        "from pipeline_blended_diffusion import BlendedDiffusionPipeline\n\n\n"
        "class DarkerPipeline(BlendedDiffusionPipeline):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from darker import DarkerPipeline

    DarkerPipeline(**tiny_pipe.components).save_pretrained(tmp_path / "saved")
    assert type(load(tmp_path / "saved")).__name__ == "DarkerPipeline"
    for name in ("darker.py", "pipeline.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "darker.py").read_bytes()


SUBCLASS = """
if __package__:
    from .pipeline_blended_diffusion import BlendedDiffusionPipeline
else:
    from pipeline_blended_diffusion import BlendedDiffusionPipeline


class DarkerPipeline(BlendedDiffusionPipeline):
    def paste_back(self, result, *arguments):
        return super().paste_back(result, *arguments) / 2
"""
ABSOLUTE = SUBCLASS.replace("if __package__", "if False")

WITHOUT_THE_PACKAGE = """
import sys

import torch
from diffusers import DiffusionPipeline
from PIL import Image

try:
    pipe = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
except ImportError as error:
    sys.exit(str(error))
pipe("rock", Image.new("RGB", (16, 16)), generator=torch.Generator().manual_seed(0)).images[0].save("loaded.png")
pipe.save_pretrained("again")
"""


@pytest.mark.parametrize("how", ["relative", "absolute"])
def test_a_saved_subclass_loads_without_the_package_or_says_what_is_missing(tmp_path, tiny_pipe, monkeypatch, how):
    (tmp_path / "darker.py").write_text(SUBCLASS if how == "relative" else ABSOLUTE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "darker", raising=False)
    from darker import DarkerPipeline

    defaults = {name: value for name, value in tiny_pipe.config.items() if name.startswith("default_")}
    pipe = DarkerPipeline(**tiny_pipe.components, **defaults)
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "pipeline_blended_diffusion.py").read_bytes() == Path(method.__file__).read_bytes()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    ended = run_forked(exec, WITHOUT_THE_PACKAGE, {}, folder=tmp_path, environment=environment, package=False)
    if how == "absolute":
        assert ended.returncode == 1
        assert "No module named 'pipeline_blended_diffusion'" in ended.stderr.strip().splitlines()[-1]
        return
    assert ended.returncode == 0, ended.stderr
    expected = pipe("rock", Image.new("RGB", (16, 16)), generator=torch.Generator().manual_seed(0)).images[0]
    with Image.open(tmp_path / "loaded.png") as found:
        assert found.tobytes() == expected.tobytes()
    for name in ("darker.py", "pipeline.py", "pipeline_blended_diffusion.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path, tiny_pipe):
    peft = pytest.importorskip("peft")
    base = tiny_pipe.unet
    tiny_pipe.unet = peft.get_peft_model(base, peft.LoraConfig(target_modules=["to_q"]))
    with pytest.raises(
        ValueError, match=r"^`unet` is PeftModel, which cannot .*`pipe.unet.*merge_and_unload\(\)` fir"
    ):
        tiny_pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    tiny_pipe.unet = tiny_pipe.unet.merge_and_unload()
    tiny_pipe.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").unet is not None
    names = {}
    exec("class Typed(Base):\n    pass", {"Base": method.BlendedDiffusionPipeline, "__name__": "typed"}, names)
    with pytest.raises(ValueError, match="^Typed is in no file, and cannot be saved with its source"):
        names["Typed"](**tiny_pipe.components).save_pretrained(tmp_path / "typed")
    assert not (tmp_path / "typed").exists()


def test_a_compiled_network_is_saved_as_it_was(tmp_path, tiny_pipe):
    weights = tiny_pipe.unet.state_dict()
    tiny_pipe.unet = torch.compile(tiny_pipe.unet)
    tiny_pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path).unet.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_loading_says_nothing_of_packages_that_no_edit_needs(tmp_path, monkeypatch, caplog):
    """diffusers reads the imports in the file, those in functions too, and says which packages are not there."""
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    (tmp_path / "needing.py").write_text("def function():\n    import lpips\n")
    for file, said in ((tmp_path / "needing.py", True), (method.__file__, False)):
        check_imports(file)
        assert ("were not found in your environment: lpips" in caplog.text) == said
        caplog.clear()


def test_saving_into_a_folder_of_links_leaves_what_they_lead_to(tmp_path, tiny_pipe):
    (tmp_path / "mine.py").write_text("# work in progress\n")
    (tmp_path / "saved").mkdir()
    for name in SOURCES:
        (tmp_path / "saved" / name).symlink_to(tmp_path / "mine.py")
    tiny_pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "mine.py").read_text() == "# work in progress\n"
    load(tmp_path / "saved")


def test_the_card_says_what_it_can(tiny_model_dir):
    card = ModelCard.load(tiny_model_dir / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "image-to-image"
    assert "blended-diffusion" in card.data.tags and card.data.base_model is None and card.data.license is None
    assert "at 16×16 pixels" in card.text and "| `clip_model` | `CLIPModel` |" in card.text
    assert "| `default_strength` | `0.8` |" in card.text and "{" not in card.text
    code = card.text.split("```py\n")[1].split("```")[0]
    compile(code, "README.md", "exec")


def test_the_card_names_the_models_on_the_hub_that_it_was_made_of(tmp_path, tiny_pipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    for name, expected in (("somebody/clip", ["somebody/clip"]), ("models/clip", None), ("/models/clip", None)):
        tiny_pipe.clip_model.config._name_or_path = name
        tiny_pipe.save_pretrained(tmp_path / "saved")
        assert ModelCard.load(tmp_path / "saved" / "README.md").data.base_model == expected
        (tmp_path / "saved" / "README.md").unlink()
    tiny_pipe.register_to_config(_name_or_path="somebody/edits")
    tiny_pipe.save_pretrained(tmp_path / "saved")
    assert ModelCard.load(tmp_path / "saved" / "README.md").data.base_model == ["somebody/edits"]


def test_a_card_stays_with_its_model(tmp_path, tiny_pipe):
    """What somebody wrote is never written over, and goes along, with its pictures and nothing else."""
    tiny_pipe.save_pretrained(tmp_path / "own")
    widget = [{"text": "rock", "output": {"url": "pictures/rock.jpg"}}]
    text = f"---\n{ModelCardData(license='mit', widget=widget)}\n---\n\n![secret](../secret.png) ![grey](grey.png)\n"
    (tmp_path / "own" / "README.md").write_text(text, encoding="utf-8")
    (tmp_path / "own" / "pictures").mkdir()
    for name in ("own/pictures/rock.jpg", "own/grey.png", "own/other.png", "secret.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    pipe = load(tmp_path / "own")
    pipe.save_pretrained(tmp_path / "own")
    pipe.save_pretrained(tmp_path / "below" / "copy")
    for folder in (tmp_path / "own", tmp_path / "below" / "copy"):
        assert (folder / "README.md").read_text(encoding="utf-8") == text
    pictures = {path for path in contents(tmp_path / "below") if Path(path).suffix in (".jpg", ".png")}
    assert pictures == {"copy/pictures/rock.jpg", "copy/grey.png"}
