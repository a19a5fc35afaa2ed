"""The method as blocks of Modular Diffusers: the pipeline's very pictures, from blocks that can be changed."""

import ast
import inspect
import json
import os
import textwrap

import lpips
import pytest
import torch
from conftest import quick_first
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, ModularPipeline
from diffusers.modular_pipelines import ComponentsManager, ModularPipelineBlocks, OutputParam
from forked import run_forked
from hub_server import TOKEN, serve
from tiny import make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer, tiny_unet

from blended_diffusion.demo import MODEL_FOLDER
from pipeline_blended_diffusion import RENAMED, BlendedDiffusionBlocks, BlendedDiffusionPipeline


CALL = inspect.signature(BlendedDiffusionPipeline.__call__).parameters


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def modular(pipe: DiffusionPipeline, blocks: ModularPipelineBlocks | None = None) -> ModularPipeline:
    """Blocks on the very components and defaults of a pipeline."""
    other = (blocks or BlendedDiffusionBlocks()).init_pipeline()
    defaults = {name: value for name, value in pipe.config.items() if name.startswith("default_")}
    other.update_components(**pipe.components, **defaults)
    other.set_progress_bar_config(disable=True)
    return other


def without(*path: str) -> BlendedDiffusionBlocks:
    """All blocks but the one with this name, or with these from the outermost on."""
    blocks = parent = BlendedDiffusionBlocks()
    for name in path[:-1]:
        parent = parent.sub_blocks[name]
    del parent.sub_blocks[path[-1]]
    return blocks


def results(out) -> tuple:
    """All that a pipeline's output or a modular pipeline's state says of the result, ready to compare."""
    pictures = [p.tolist() if isinstance(p, torch.Tensor) else (p.size, p.tobytes()) for p in out.images]
    return pictures, out.clip_distances, out.ranking


def assert_same(pipe: DiffusionPipeline, other: ModularPipeline, number: int = 1, **call) -> None:
    """The same call gives the same of both, bit for bit."""
    call = {"prompt": "rock", "output_type": "pt", **call}
    if "generator" not in call:
        call["generator"] = seeded(*range(number))
    states = [generator.get_state() for generator in call["generator"]]
    expected = results(pipe(**call))
    for generator, state in zip(call["generator"], states, strict=True):
        generator.set_state(state)
    assert results(other(**{RENAMED.get(name, name): value for name, value in call.items()})) == expected


CALLS = {
    "defaults": {},
    "several": {"number": 4, "prompt": ["rock", "tree"], "negative_prompt": ["", "sky"], "num_images_per_prompt": 2},
    "no prompt": {"prompt": ""},
    "sample": {"guidance_gradient": "sample"},
    "estimate": {"guidance_gradient": "estimate", "negative_prompt": "sky"},
    "algorithm 1": {"blend": False, "background_mse_scale": 50.0},
    "unpasted": {"enforce_background": False, "output_type": "np", "ranking": "region"},
    "soft": {"soft_mask": True},
    "pil": {"output_type": "pil"},
    "released": {"number": 2, "match_release": True, "num_images_per_prompt": 2},
    "released, algorithm 1": {"match_release": True, "blend": False, "background_mse_scale": 50.0},
    "labels": {"number": 2, "candidate_labels": ["tree", "sky"], "num_images_per_prompt": 2},
    "settings": {"num_inference_steps": 4, "strength": 0.5, "num_augmentations": 1, "clip_guidance_scale": 3.0},
    "latent": {"output_type": "latent"},
    "timesteps": {"timesteps": [900, 500, 0], "strength": 1.0, "height": 16, "width": 16},
}


@pytest.mark.parametrize("call", quick_first(CALLS.values()), ids=CALLS)
def test_the_same_pictures(tiny_pipe, photo, mask, call):
    mask = mask.point(lambda value: value // 2 + 20) if "soft_mask" in call else mask
    assert_same(tiny_pipe, modular(tiny_pipe), image=photo, mask_image=mask, **call)


@pytest.mark.slow
def test_the_same_pictures_of_crops(tiny_pipe, photo, mask):
    photos, masks = ([picture.resize(size) for size in ((40, 30), (24, 50))] for picture in (photo, mask))
    call = {"padding_mask_crop": 2, "num_images_per_prompt": 2, "output_type": "pil"}
    assert_same(tiny_pipe, modular(tiny_pipe), 4, image=photos, mask_image=masks, **call)


@pytest.mark.parametrize("scheduler", quick_first([DDIMScheduler, EulerDiscreteScheduler]))
def test_the_same_pictures_with_another_scheduler(tiny_pipe, photo, mask, scheduler):
    other = modular(tiny_pipe)
    tiny_pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config)
    other.update_components(scheduler=tiny_pipe.scheduler)
    assert_same(tiny_pipe, other, image=photo, mask_image=mask)


@pytest.mark.slow
def test_the_same_pictures_with_two_clips_and_classes(photo, mask):
    second = {"clip_model_2": tiny_clip(8), "tokenizer_2": tiny_tokenizer()}
    pipe = make_tiny_pipe(unet=tiny_unet(num_class_embeds=10), feature_extractor_2=tiny_feature_extractor(8), **second)
    assert_same(pipe, modular(pipe), image=photo, mask_image=mask)
    assert_same(pipe, modular(pipe), image=photo, mask_image=mask, class_labels=3)


@pytest.mark.slow
def test_the_same_pictures_from_one_generator_and_given_noise(tiny_pipe, photo, mask):
    call = {"prompt": "rock", "image": photo, "mask_image": mask, "num_images_per_prompt": 2, "output_type": "pt"}
    call["latents"] = torch.randn(2, 3, 16, 16, generator=seeded(0)[0])
    for match_release in (False, True):
        one, other = (
            results(method(**call, match_release=match_release, generator=seeded(1)[0]))
            for method in (tiny_pipe, modular(tiny_pipe))
        )
        assert one == other


@pytest.mark.slow
def test_the_perceptual_network_is_made_once(tiny_pipe, photo, mask, monkeypatch):
    made = []

    def untrained(**options) -> torch.nn.Module:
        made.append(LPIPS(pnet_rand=True, **options))
        return made[-1]

    LPIPS = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", untrained)
    other = modular(tiny_pipe)
    call = {"image": photo, "mask_image": mask, "blend": False, "background_lpips_scale": 5.0, "strength": 0.4}
    other(prompt="rock", **call)
    tiny_pipe.lpips = made[0]
    assert_same(tiny_pipe, other, **call)
    assert len(made) == 1


def test_embeddings_take_the_place_of_the_text_encoder(tiny_pipe, photo, mask):
    rock, sky = (tiny_pipe.encode_prompt([word]) for word in ("rock", "sky"))
    embeds = {"prompt_embeds": rock, "negative_prompt_embeds": sky, "rival_prompt_embeds": rock + sky}
    other = modular(tiny_pipe, without("text_encoder"))
    assert_same(tiny_pipe, other, image=photo, mask_image=mask, prompt=None, **embeds)


def test_blocks_say_of_themselves_what_the_pipeline_says():
    renamed = {other: name for name, other in RENAMED.items()}
    inputs = {param.name: param for param in BlendedDiffusionBlocks().inputs}
    missing = set(CALL) - {renamed.get(name, name) for name in inputs}
    assert missing == {
        "self",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "prompt_embeds",
        "negative_prompt_embeds",
    }
    for name, param in inputs.items():
        assert param.default == CALL[renamed.get(name, name)].default and len(param.description) > 10
    assert {name for name, param in inputs.items() if param.required} == {"prompt", "image"}
    text = BlendedDiffusionBlocks().doc
    assert "Weight of the CLIP distance." in text and "TODO" not in text
    assert [param.name for param in BlendedDiffusionBlocks().outputs] == ["images", "clip_distances", "ranking"]


class Order(ast.NodeVisitor):
    """The names of `names` in the order in which a piece of code calls them as methods or functions."""

    def __init__(self, names: list[str]):
        self.names, self.found = names, []

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in self.names and name not in self.found:
            self.found.append(name)


def test_the_blocks_are_the_steps_of_the_call_in_its_order():
    """Each block of the loop calls the method that the call's loop calls in its place, and no other of them."""
    methods = ["draw", "estimate", "guide", "step", "noised_background"]
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(BlendedDiffusionPipeline.__call__)))
    order = Order(methods)
    order.visit(ast.parse(source))
    assert order.found == methods
    blocks = BlendedDiffusionBlocks().sub_blocks["denoise"].sub_blocks
    assert list(blocks) == ["draw", "estimate", "guide", "step", "blend"]
    for block, method in zip(blocks.values(), methods, strict=True):
        own = Order(methods)
        own.visit(ast.parse(textwrap.dedent(inspect.getsource(type(block).run))))
        assert own.found == [method]


def test_without_a_tokenizer_embeddings_do(tiny_pipe, photo, mask):
    embeds = tiny_pipe.encode_prompt(["rock"])
    pipe = make_tiny_pipe(tokenizer=None)
    call = {"image": photo, "mask_image": mask, "prompt": None, "prompt_embeds": embeds}
    assert_same(pipe, modular(pipe, without("text_encoder")), **call)
    with pytest.raises(ValueError, match="^`tokenizer` is not loaded"):
        modular(pipe)(prompt="rock", image=photo)


def test_inference_mode_around_the_call_and_the_loading(tiny_model_dir, tiny_pipe, photo, mask):
    with torch.inference_mode():
        other = BlendedDiffusionBlocks().init_pipeline(str(tiny_model_dir))
        other.load_components()
        other.set_progress_bar_config(disable=True)
        call = {"prompt": "rock", "image": photo, "mask_image": mask, "output_type": "pt"}
        out = other(**call, generator=seeded(0))
    assert torch.equal(out.images, tiny_pipe(**call, generator=seeded(0)).images)


def test_each_block_needs_what_those_before_it_make():
    known = {"prompt", "image"}
    for name, block in BlendedDiffusionBlocks().sub_blocks.items():
        assert {param.name for param in block.inputs if param.required} <= known, name
        known |= {param.name for param in block.intermediate_outputs}


def test_without_the_guide_there_is_no_guidance(tiny_pipe, photo, mask):
    call = {"prompt": "rock", "image": photo, "mask_image": mask, "output_type": "pt"}
    unguided = tiny_pipe(**call, clip_guidance_scale=0.0, range_guidance_scale=0.0, generator=seeded(0)).images
    for gradient in ("sample", "estimate"):
        blocks = without("denoise", "guide")
        out = modular(tiny_pipe, blocks)(**call, guidance_gradient=gradient, generator=seeded(0))
        assert torch.equal(out.images, unguided)
        assert not out.latents.requires_grad and not out.pred_original_sample.requires_grad


def test_without_the_blend_there_is_no_blending(tiny_pipe, photo, mask):
    call = {"prompt": "rock", "image": photo, "mask_image": mask, "output_type": "pt"}
    unblended = tiny_pipe(**call, blend=False, generator=seeded(0)).images
    assert torch.equal(modular(tiny_pipe, without("denoise", "blend"))(**call, generator=seeded(0)).images, unblended)


class Look(ModularPipelineBlocks):
    """A block that somebody adds behind the blending: it looks, and from the third step on makes the mask smaller."""

    description = "looks"

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("film", list)]

    def __call__(self, components, block_state, i, t):
        block_state.film = [*getattr(block_state, "film", []), (i, int(t), block_state.pred_original_sample)]
        if i == 1:
            block_state.mask = block_state.mask * (torch.arange(16) > 7)
        return components, block_state


def test_a_block_in_the_loop_does_what_a_callback_does(tiny_pipe, photo, mask):
    film = []

    def look(pipe, i, t, kwargs):
        film.append((i, int(t), kwargs["pred_original_sample"]))
        return {"mask": kwargs["mask"] * (torch.arange(16) > 7)} if i == 1 else {}

    blocks = BlendedDiffusionBlocks()
    blocks.sub_blocks["denoise"].sub_blocks.insert("look", Look(), 5)
    call = {"prompt": "rock", "image": photo, "mask_image": mask, "output_type": "pt"}
    tensors = ["pred_original_sample", "mask"]
    expected = tiny_pipe(
        **call, generator=seeded(0), callback_on_step_end=look, callback_on_step_end_tensor_inputs=tensors
    )
    state = modular(tiny_pipe, blocks)(**call, generator=seeded(0))
    assert results(state) == results(expected)
    assert [(i, t, x.tolist()) for i, t, x in state.film] == [(i, t, x.tolist()) for i, t, x in film]
    assert len(film) == 4 and "sample" not in state.values and "gradient" not in state.values


class Grey(ModularPipelineBlocks):
    """Another way to treat what is outside the mask."""

    description = "greys"

    def __call__(self, components, block_state, i, t):
        block_state.latents = block_state.latents * block_state.mask
        return components, block_state


def test_a_block_can_be_replaced(tiny_pipe, photo, mask):
    blocks = BlendedDiffusionBlocks()
    blocks.sub_blocks["denoise"].sub_blocks["blend"] = Grey()
    out = modular(tiny_pipe, blocks)(prompt="rock", image=photo, mask_image=mask, output_type="latent")
    assert (out.images[out.mask.expand_as(out.images) == 0] == 0).all() and out.images.any()


def test_intermediate_results_can_be_read(tiny_pipe, photo, mask):
    other = modular(tiny_pipe)
    call = {"prompt": "rock", "image": photo, "mask_image": mask, "num_images_per_prompt": 2}
    names = ["images", "ranking", "mask", "timesteps", "prompt_embeds", "pred_original_sample"]
    out = other(**call, output=names)
    assert list(out) == names and len(out["images"]) == 2 and sorted(out["ranking"]) == [0, 1]
    assert out["mask"].shape == (2, 1, 16, 16) and len(out["timesteps"]) == 4
    assert torch.equal(out["prompt_embeds"], tiny_pipe.encode_prompt(["rock"]))
    assert other(**call, output="ranking") in ([0, 1], [1, 0])
    assert other.config.default_strength == 0.8 and other(**call).strength == 0.8


def test_the_text_encoder_works_alone(tiny_pipe, tiny_model_dir):
    alone = BlendedDiffusionBlocks().sub_blocks["text_encoder"].init_pipeline(str(tiny_model_dir))
    alone.load_components()
    assert set(alone.components) & {"unet", "scheduler"} == set() and alone.clip_model is not None
    embeds = alone(prompt=["rock", ""], output=["prompt_embeds", "prompt_weights"])
    torch.testing.assert_close(embeds["prompt_embeds"], tiny_pipe.encode_prompt(["rock", ""]))
    assert embeds["prompt_weights"].tolist() == [1, 0]


def test_what_is_wrong_is_said_as_by_the_pipeline(tiny_pipe, photo, mask):
    other = modular(tiny_pipe)
    for wrong in (
        {"strength": 2},
        {"prompt": 3},
        {"negative_prompt": []},
        {"num_images_per_prompt": 0},
        {"mask_image": mask.resize((8, 8))},
        {"candidate_labels": "tree"},
        {"clip_guidance_scale": -1},
        {"generator": seeded(0, 1)},
        {"output_type": "jpg"},
        {"soft_mask": True, "mask_image": mask.point(lambda _: 0)},
    ):
        call = {"prompt": "rock", "image": photo, "mask_image": mask, **wrong}
        with pytest.raises((ValueError, TypeError)) as expected:
            tiny_pipe(**call)
        with pytest.raises(expected.type) as found:
            other(**call)
        assert str(found.value) == str(expected.value)
    with pytest.raises(ValueError, match="`ranking` is 'best'"):
        other(prompt="rock", image=photo, rank_by="best")


def test_a_component_that_is_not_loaded_is_named(tiny_model_dir, photo):
    other = BlendedDiffusionBlocks().init_pipeline(str(tiny_model_dir))
    other.load_components(["clip_model", "tokenizer", "feature_extractor", "scheduler"])
    with pytest.raises(ValueError, match="`unet` is not loaded"):
        other(prompt="rock", image=photo)


def test_components_are_loaded_managed_and_updated(tiny_model_dir, photo, mask):
    manager = ComponentsManager()
    load = ModularPipeline.from_pretrained
    other = load(str(tiny_model_dir), trust_remote_code=True, components_manager=manager, collection="edit")
    assert other.unet is None
    other.load_components(torch_dtype=torch.bfloat16)
    assert other.unet.dtype == other.clip_model.dtype == torch.bfloat16
    assert {name.rsplit("_", 1)[0] for name in manager.components} >= {"unet", "clip_model", "scheduler"}
    pipe = DiffusionPipeline.from_pretrained(tiny_model_dir, trust_remote_code=True, dtype=torch.bfloat16)
    assert_same(pipe, other, image=photo, mask_image=mask)
    other.update_components(unet=tiny_unet().bfloat16(), default_strength=0.4)
    assert other(prompt="rock", image=photo, mask_image=mask).strength == 0.4
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(str(tiny_model_dir))


def test_what_blocks_save_is_complete(tiny_model_dir, tmp_path, photo, mask):
    other = ModularPipeline.from_pretrained(str(tiny_model_dir), trust_remote_code=True)
    other.load_components()
    other.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    other.blocks.save_pretrained(str(tmp_path))
    again = ModularPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    again.load_components()
    again.set_progress_bar_config(disable=True)
    assert_same(other, again, image=photo, mask_image=mask)


def test_a_state_can_go_on(tiny_pipe, photo, mask):
    """The results of one call can be the inputs of the next one; what that one leaves out is as before."""
    other = modular(tiny_pipe)
    state = other(prompt="rock", image=photo, mask_image=mask, num_images_per_prompt=2, strength=0.4)
    again = other(state, prompt="tree", latents=None, generator=seeded(0, 1), output_type="pt")
    call = {"image": photo, "mask_image": mask, "num_images_per_prompt": 2, "strength": 0.4, "output_type": "pt"}
    assert results(again) == results(tiny_pipe(prompt="tree", generator=seeded(0, 1), **call))


def test_the_bundled_model_has_what_saving_it_would_write(tmp_path):
    pipe = DiffusionPipeline.from_pretrained(MODEL_FOLDER, trust_remote_code=True)
    pipe.save_config(tmp_path)
    for name in ("modular_config.json", "modular_model_index.json"):
        ours, saved = (json.loads((folder / name).read_text()) for folder in (MODEL_FOLDER, tmp_path))
        assert ours | {"_diffusers_version": ""} == saved | {"_diffusers_version": ""}


# ---------------------------------------------------------------------------------------------------------------------
# Without the package, in a process of its own
# ---------------------------------------------------------------------------------------------------------------------

FRESH = """
import numpy as np, torch
from diffusers import DiffusionPipeline, ModularPipeline
from huggingface_hub import HfApi, constants, model_info, snapshot_download
from PIL import Image

photo = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
mask = Image.fromarray(np.pad(np.full((7, 7), 255, np.uint8), (5, 4)))

def edited(model):
    model.set_progress_bar_config(disable=True)
    out = model(prompt="rock", image=photo, mask_image=mask, generator=torch.Generator().manual_seed(0))
    return out.images[0].tobytes()

def modular(place, **options):
    model = ModularPipeline.from_pretrained(place, trust_remote_code=True, **options)
    model.load_components(**options)
    return model

pipe = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
expected = edited(pipe)
first = modular("saved")
assert edited(first) == expected

# another version of the file in the same process; the first one stays what it was
changed = edited(modular("other"))
assert changed != expected
assert changed == edited(DiffusionPipeline.from_pretrained("other", trust_remote_code=True))
assert edited(first) == expected == edited(modular("saved"))

# over the Hub, from one repository for both
pipe.push_to_hub("somebody/tiny")
assert edited(modular("somebody/tiny")) == expected
assert edited(DiffusionPipeline.from_pretrained("somebody/tiny", trust_remote_code=True)) == expected
revision = model_info("somebody/tiny").sha
pipe.unet.conv_out.weight.data.zero_()
pipe.push_to_hub("somebody/tiny")
assert edited(modular("somebody/tiny")) != expected
assert edited(modular("somebody/tiny", revision=revision)) == expected

# a folder as it is, uploaded by hand: weights are found once it is downloaded, also where there is no Hub
HfApi().create_repo("somebody/hand")
HfApi().upload_folder(repo_id="somebody/hand", folder_path="saved")
assert modular("somebody/hand").unet is None
folder = snapshot_download("somebody/hand")
constants.HF_HUB_OFFLINE = True
assert snapshot_download("somebody/hand") == folder and edited(modular(folder)) == expected
"""


@pytest.mark.slow
def test_loads_without_the_package_from_folders_and_the_hub(tmp_path):
    tiny_pipe = make_tiny_pipe(default_candidate_labels=["tree", "sky"])
    tiny_pipe.save_pretrained(tmp_path / "saved")
    tiny_pipe.save_pretrained(tmp_path / "other")
    line = "    return foreground * mask + background * (1 - mask)\n"
    file = tmp_path / "other" / "pipeline_blended_diffusion.py"
    source = file.read_text(encoding="utf-8")
    assert source.count(line) == 1
    file.write_text(source.replace(line, line.replace("(1 - mask)", "(1 - mask) * 0.5")), encoding="utf-8")
    with serve() as hub:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        hub_variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        environment = {**variables, **hub_variables, **quiet}
        ended = run_forked(exec, FRESH, {}, folder=tmp_path, environment=environment, package=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        index = json.loads(hub.repositories["somebody/tiny"].files["modular_model_index.json"].content)
    assert index["unet"][2]["pretrained_model_name_or_path"] == "somebody/tiny"
    saved = json.loads((tmp_path / "saved" / "modular_model_index.json").read_text())
    assert saved["unet"][2]["pretrained_model_name_or_path"] is None
