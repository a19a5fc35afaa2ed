"""The pipeline on the Hub: real clients, in processes of their own, against the Hub of `hub_server`.

The functions that return a dictionary run in such a process (see [`in_process`]); the tests look at
what they returned, at what the Hub holds and at what it was asked.
"""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from forked import PACKAGE, run_forked
from hub_server import TOKEN, Fault, Hub, Repository, serve


ROOT = Path(__file__).parents[1]
UNET = "unet/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.slow


def in_process(function, folder: Path, hub: Hub, package: bool = True, **environment: str) -> dict:
    """What `function()` returns in a fresh process that knows this Hub and no other.

    Args:
        function: of this module.
        folder (`Path`): the process's working folder; its Hub cache is in there too.
        hub (`Hub`): where `HF_ENDPOINT` leads.
        package (`bool`): whether this package can be imported there.
        environment: more of its environment.
    """
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    ended = run_forked(write_result, function, folder=folder, environment=variables, package=package)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads((folder / "result.json").read_text())


def write_result(function) -> None:
    """The other side of [`in_process`]."""
    Path("result.json").write_text(json.dumps(function()))


def error_of(function, *arguments, **options) -> str | None:
    """The kind and the words of what it raises."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def edited(pipe) -> list:
    """The pixels of an edit of a photo: rows of pixels of channels."""
    import numpy as np
    import torch
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    with Image.open(ROOT / "examples/coffee.jpg") as photo, Image.open(ROOT / "examples/coffee_mask.png") as mask:
        size = (150, 100)
        out = pipe(
            "watermelon",
            photo.convert("RGB").resize(size),
            mask.convert("L").resize(size),
            num_inference_steps=3,
            num_augmentations=2,
            generator=torch.Generator().manual_seed(404),
            padding_mask_crop=8,
        )
    return np.asarray(out.images[0]).astype(int).tolist()


def assert_same_pixels(actual: list, expected: list) -> None:
    """But for rounding."""
    import numpy as np

    assert np.abs(np.asarray(actual) - np.asarray(expected)).max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# In processes of their own
# ---------------------------------------------------------------------------------------------------------------------


def push() -> dict:
    """Pushes in every way, with and without the right; then edits with models of the Hub."""
    import contextlib
    import io

    from diffusers import DiffusionPipeline
    from huggingface_hub import HfApi
    from tiny import make_tiny_pipe

    from blended_diffusion.cli import main
    from blended_diffusion.demo import MODEL_FOLDER

    bundled = DiffusionPipeline.from_pretrained(MODEL_FOLDER, trust_remote_code=True)
    pixels = edited(bundled)
    bundled.push_to_hub("somebody/bundled")

    import torch

    tiny = make_tiny_pipe()
    tiny.save_pretrained("tiny", push_to_hub=True, repo_id="somebody/tiny")
    card = Path("tiny/README.md").read_text(encoding="utf-8")
    Path("tiny/README.md").write_text("mine")
    tiny.save_pretrained("tiny", push_to_hub=True, repo_id="somebody/carded")
    tiny.push_to_hub("somebody/carded")
    make_tiny_pipe().to(torch.float16).push_to_hub("somebody/tiny", variant="fp16")
    # a second version of the source, and one without weights
    source = Path("tiny/pipeline_blended_diffusion.py").read_text(encoding="utf-8")
    line = "    return foreground * mask + background * (1 - mask)\n"
    changed = source.replace(line, line.replace("(1 - mask)", "(1 - mask) * 0.5"))
    assert changed != source
    api = HfApi()
    api.upload_file(path_or_fileobj=changed.encode(), path_in_repo=f"{PACKAGE[1]}.py", repo_id="somebody/tiny")
    api.create_repo("somebody/source")
    api.upload_file(path_or_fileobj=source.encode(), path_in_repo="pipeline.py", repo_id="somebody/source")

    refused = {
        "without a token": error_of(tiny.push_to_hub, "somebody/mine", token=False),
        "with a wrong token": error_of(tiny.push_to_hub, "somebody/mine", token="hf_wrong"),
        "in another's name": error_of(tiny.push_to_hub, "anybody/mine"),
        "in another's repository": error_of(tiny.push_to_hub, "anybody/theirs"),
        "with a broken card": error_of(push_card, tiny),
    }

    def edit(name: str) -> tuple[int, str]:
        given = f"-p rock --num-images 1 --num-inference-steps 4 --device cpu --output_path {name[9:]}".split()
        given += ["-i", str(ROOT / "examples/coffee.jpg"), "--mask", str(ROOT / "examples/coffee_mask.png")]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(["edit", "--model", name, *given])
        return code, said.getvalue()

    names = ("tiny", "dropped-once", "dropped", "flipped", "short", "nothing")
    commands = {name: edit(f"somebody/{name}") for name in names}
    # as the sentence says
    Path(re.search(r"delete (\S+) and", commands["flipped"][1]).group(1)).unlink()
    spare(api, "somebody/flipped")
    commands["flipped, again"] = edit("somebody/flipped")
    return {"pixels": pixels, "card": card, "refused": refused, "commands": commands}


def push_card(pipe) -> None:
    Path("broken").mkdir()
    Path("broken/README.md").write_text("---\ntags: one, two\n---\n")
    pipe.save_pretrained("broken", push_to_hub=True, repo_id="somebody/broken")


def spare(api, name: str) -> None:
    """From now on downloads of this repository go well."""
    from huggingface_hub.utils import get_session

    get_session().delete(f"{api.endpoint}/faults/{name}").raise_for_status()


def load() -> dict:
    """Loads in every way that needs a Hub, and over bad connections."""
    import torch
    from diffusers import DiffusionPipeline
    from huggingface_hub import HfApi, snapshot_download

    assert all(error_of(importlib.util.find_spec, name) for name in PACKAGE)

    def load(name, **options) -> DiffusionPipeline:
        return DiffusionPipeline.from_pretrained(name, trust_remote_code=True, **options)

    result = {"pixels": edited(load("somebody/bundled"))}

    # two versions, one behind the other
    api = HfApi()
    first, last = (commits := [commit.commit_id for commit in api.list_repo_commits("somebody/tiny")])[-2], commits[0]
    one = load("somebody/tiny", revision=first)
    before = edited(one)
    two = load("somebody/tiny", revision=last)
    result["versions"] = [before, edited(two), edited(one)]
    half = load("somebody/tiny", variant="fp16", dtype=torch.float16)
    result["half"] = [str(half.unet.dtype), str(half.clip_model.dtype)]

    # the source from elsewhere
    weights = Path(snapshot_download("somebody/tiny", local_dir="weights", ignore_patterns=["*.py"]))
    assert not list(weights.glob("*.py"))
    for name in ("source", "carded"):
        result[name] = edited(load("weights", custom_pipeline=f"somebody/{name}"))
    result["a source for weights on the Hub"] = edited(
        load("somebody/carded", custom_pipeline="somebody/source", cache_dir="fresh")
    )
    result["without trust"] = error_of(DiffusionPipeline.from_pretrained, "somebody/bundled")

    # bad connections
    result["faults"] = {}
    for name in ("dropped-once", "dropped", "short"):
        cache = Path(name).absolute()
        error = error_of(load, f"somebody/{name}", cache_dir=cache)
        left = [str(path) for path in cache.rglob("*") if path.suffix == ".incomplete" or path.name == Path(UNET).name]
        spare(api, f"somebody/{name}")
        pixels = edited(load(f"somebody/{name}", cache_dir=cache))
        result["faults"][name] = {"error": error, "left": left, "pixels": pixels}
    load("somebody/flipped", cache_dir="flipped")
    found = api.verify_repo_checksums("somebody/flipped", cache_dir="flipped")
    result["flipped"] = [mismatch["path"] for mismatch in found.mismatches]

    snapshot_download("somebody/bundled")
    return result


def load_by_class() -> dict:
    """Loads through the class that is imported, which is trusted already, and through diffusers'."""
    from diffusers import DiffusionPipeline

    from pipeline_blended_diffusion import BlendedDiffusionPipeline

    own = BlendedDiffusionPipeline.from_pretrained("anybody/theirs")
    theirs = DiffusionPipeline.from_pretrained("anybody/theirs", trust_remote_code=True)
    return {"classes": [type(pipe).__module__ for pipe in (own, theirs)], "pixels": [edited(own), edited(theirs)]}


def load_offline() -> dict:
    """Loads from what [`load`] has left in the cache."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    def load(name, **options) -> DiffusionPipeline:
        return DiffusionPipeline.from_pretrained(name, trust_remote_code=True, **options)

    folder_of_bundled = snapshot_download("somebody/bundled")
    file = Path(folder_of_bundled) / "pipeline.py"
    return {
        "folder": edited(load(folder_of_bundled)),
        "id": edited(load("somebody/bundled", custom_pipeline=str(file))),
        "missing": error_of(load, "somebody/nothing", custom_pipeline=str(file)),
    }


def run_document() -> dict:
    """All Python of `docs/hub.md`, in order."""
    text = (ROOT / "docs/hub.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/hub.md", "exec"), names)
    return {"blocks": len(blocks), "marked": text.count("<!-- runs: hub -->\n```python\n")}


def edit_with_families() -> dict:
    """Models of diffusers' own classes by their ids: what each is, and the first row of what it paints."""
    import numpy as np
    from PIL import Image
    from tiny_diffusers import FAMILIES, SIZES

    from blended_diffusion.editing.editor import Editor
    from blended_diffusion.models import load_model
    from blended_diffusion.painters.settings import EditSettings

    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    mask = Image.new("L", (40, 30))
    mask.paste(255, (10, 5, 32, 26))
    done = {}
    for family in FAMILIES:
        upscaler = "somebody/if-upscaler" if family == "if" else None
        model = load_model(f"somebody/{family}", clip="somebody/clip", upscaler=upscaler)
        wanted = EditSettings("rock", num_inference_steps=2, size=SIZES.get(family))
        made = np.asarray(Editor(model, num_images=1).edit(photo, mask, wanted).best)
        kept = np.asarray(mask) == 0
        done[family] = {
            "name": model.name,
            "sha256": model.sha256,
            "parts": [[part.kind, part.name] for part in model.parts],
            "kept": bool((made[kept] == np.asarray(photo)[kept]).all()),
            "pixels": made[15].tolist(),
        }
    missing = error_of(load_model, "somebody/no-such-model", clip="none")
    return {"families": done, "missing": missing}


# ---------------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tiny_model_dir):
    with serve() as hub:
        hub.repositories["somebody/dropped-once"] = Repository.of(ROOT / "blended_diffusion/demo/model")
        for name in ("dropped", "flipped", "short"):
            hub.repositories[f"somebody/{name}"] = Repository.of(tiny_model_dir)
        hub.repositories["anybody/theirs"] = Repository.of(tiny_model_dir)
        yield hub


def spoil(hub: Hub) -> None:
    hub.faults["somebody/dropped-once"] = Fault(UNET, "drop", times=1)
    for name, kind in (("dropped", "drop"), ("flipped", "flip"), ("short", "short")):
        hub.faults[f"somebody/{name}"] = Fault(UNET, kind)


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> dict:
    spoil(hub)
    return in_process(push, tmp_path_factory.mktemp("push"), hub)


@pytest.fixture(scope="module")
def loading(hub, pushed, tmp_path_factory) -> Path:
    """The folder of the process that loads."""
    return tmp_path_factory.mktemp("load")


@pytest.fixture(scope="module")
def loaded(hub, pushed, loading) -> dict:
    spoil(hub)
    return in_process(load, loading, hub, package=False)


def test_a_pushed_repository_is_complete(hub, pushed):
    files = hub.repositories["somebody/bundled"].files
    assert set(files) == {
        "README.md",
        "clip_model/config.json",
        "clip_model/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
        "pictures/frog.jpg",
        "pipeline.py",
        "pipeline_blended_diffusion.py",
        "modular_config.json",
        "modular_model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        UNET,
    }
    source = (ROOT / "pipeline_blended_diffusion.py").read_bytes()
    assert files["pipeline.py"].content == files["pipeline_blended_diffusion.py"].content == source
    assert json.loads(files["model_index.json"].content)["_class_name"] == [PACKAGE[1], "BlendedDiffusionPipeline"]
    assert {path for path, file in files.items() if file.lfs} == {
        "clip_model/model.safetensors",
        "pictures/frog.jpg",
        UNET,
    }


def test_a_push_brings_the_card(hub, pushed):
    """diffusers would push an empty form."""
    card = hub.repositories["somebody/bundled"].files["README.md"].content
    assert card == (ROOT / "blended_diffusion/demo/model/README.md").read_bytes()
    assert b"license: mit" in card and b"url: pictures/frog.jpg" in card
    tiny = hub.repositories["somebody/tiny"].files["README.md"].content.decode()
    assert "pipeline_tag: image-to-image" in tiny and "at 16×16 pixels" in tiny and tiny == pushed["card"]


def test_a_card_that_somebody_wrote_is_pushed_and_kept(hub, pushed):
    _, *commits = hub.repositories["somebody/carded"].commits.values()
    first, *later = [files["README.md"].content for files in commits]
    assert first == b"mine" and later and all(card.endswith(b"mine") for card in later)


def test_a_push_is_one_commit_and_a_variant_another(hub, pushed):
    assert hub.repositories["somebody/bundled"].messages == ["initial commit", "Upload BlendedDiffusionPipeline"]
    tiny = hub.repositories["somebody/tiny"]
    weights = {path for path in tiny.files if path.startswith("unet/diffusion")}
    assert weights == {UNET, "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert tiny.messages.count("Upload BlendedDiffusionPipeline") == 2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("without a token", "401"),
        ("with a wrong token", "401"),
        ("in another's name", "403 Forbidden: You don't have the rights to write under the namespace"),
        ("in another's repository", "403 Forbidden: You don't have the rights to write under the namespace"),
        ("with a broken card", "Invalid metadata in README.md"),
    ],
)
def test_a_push_without_the_right_is_refused(hub, pushed, how, words):
    assert words in pushed["refused"][how]
    for name in ("somebody/mine", "anybody/mine"):
        assert name not in hub.repositories
    for name in ("anybody/theirs", "somebody/broken"):
        assert hub.repositories[name].messages[1:] in ([], ["uploaded"])


def test_the_command_takes_models_of_the_hub(pushed):
    assert [pushed["commands"][name][0] for name in ("tiny", "dropped-once", "flipped, again")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropped", "the Hugging Face Hub did not give it"),
        ("short", "the Hugging Face Hub did not give it (Consistency check failed"),
        ("flipped", f"has a damaged file {UNET}: its sha256 is not the one that the Hub gave"),
        ("nothing", "the Hugging Face Hub did not give it (404"),
    ],
)
def test_the_command_says_in_a_sentence_what_failed(pushed, name, words):
    code, said = pushed["commands"][name]
    assert code == 2 and words in said and f"--model 'somebody/{name}'" in said
    assert "Traceback" not in said and said.strip().splitlines()[-1].startswith("blended-diffusion: error: ")


def test_what_was_pushed_edits_as_before(pushed, loaded):
    """In a process that has nothing of this package."""
    assert_same_pixels(loaded["pixels"], pushed["pixels"])


def test_two_revisions_in_one_process(loaded):
    before, other, after = loaded["versions"]
    assert before == after != other


def test_a_variant_loads(loaded):
    assert loaded["half"] == ["torch.float16", "torch.float16"]


def test_the_source_may_be_a_repository(loaded):
    expected = loaded["versions"][0]
    for name in ("source", "carded", "a source for weights on the Hub"):
        assert_same_pixels(loaded[name], expected)


def test_code_is_run_only_where_it_is_trusted(loaded):
    assert "trust_remote_code=True" in loaded["without trust"]


def test_the_imported_class_needs_no_trust(hub, tmp_path):
    loaded = in_process(load_by_class, tmp_path, hub)
    own, theirs = loaded["classes"]
    assert own == "pipeline_blended_diffusion" and theirs.startswith("diffusers_modules.")
    assert_same_pixels(*loaded["pixels"])


def test_a_broken_connection_is_taken_up_again(hub, loaded):
    fault = loaded["faults"]["dropped-once"]
    assert fault["error"] is None
    assert_same_pixels(fault["pixels"], loaded["pixels"])
    assert any(re.search(r"GET /somebody/dropped-once/.* 206$", request) for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "words"), [("dropped", "RemoteProtocolError"), ("short", "Consistency check failed")]
)
def test_nothing_half_written_is_used(loaded, name, words):
    fault = loaded["faults"][name]
    assert words in fault["error"] and fault["left"] == []
    assert_same_pixels(fault["pixels"], loaded["versions"][0])


def test_a_changed_byte_can_be_found(loaded):
    assert loaded["flipped"] == [UNET]


def test_offline(hub, pushed, loaded, loading):
    asked = len(hub.requests)
    offline = in_process(load_offline, loading, hub, package=False, HF_HUB_OFFLINE="1")
    assert hub.requests[asked:] == []
    for name in ("folder", "id"):
        assert_same_pixels(offline[name], pushed["pixels"])
    assert "somebody/nothing" in offline["missing"]


def test_the_document_runs(hub, tmp_path):
    for name in ("my-model", "weights"):
        assert not (tmp_path / name).exists()
    ran = in_process(run_document, tmp_path, hub)
    assert ran["blocks"] == 8 and ran["marked"] == 4
    assert "somebody/my-model" in hub.repositories


def test_diffusers_own_pipelines_come_from_the_hub_and_from_its_cache(hub, family_folder, tmp_path):
    from tiny_diffusers import FAMILIES

    from blended_diffusion.models import load_model

    for name in (*FAMILIES, "if-upscaler", "clip"):
        folder = shutil.copytree(family_folder(name), tmp_path / "pushed" / name)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")  # diffusers reads Kandinsky's
        hub.repositories[f"somebody/{name}"] = Repository.of(folder)
    online = in_process(edit_with_families, tmp_path, hub)
    asked = len(hub.requests)
    offline = in_process(edit_with_families, tmp_path, hub, HF_HUB_OFFLINE="1")
    assert hub.requests[asked:] == [] and offline["families"] == online["families"]
    for family, made in online["families"].items():
        assert made["kept"] and made["name"] == f"somebody/{family}"
        assert made["sha256"] == load_model(str(family_folder(family)), clip="none").sha256 or family == "if"
        assert made["parts"][-1] == ["clip", "somebody/clip"]
    assert ["upscaler", "somebody/if-upscaler"] in online["families"]["if"]["parts"]
    for said in (online["missing"], offline["missing"]):
        assert said.startswith("ValueError: model 'somebody/no-such-model' is no folder here, and the")
