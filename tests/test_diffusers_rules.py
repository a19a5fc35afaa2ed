"""What diffusers' own tests ask of every pipeline, asked of this one.

Of `PipelineTesterMixin` and its companions these do not apply: classifier-free guidance (`test_cfg`,
`test_callback_cfg`: there is no `guidance_scale`), everything about a VAE, `StableDiffusionMixin`, FreeU and fused QKV
(there is no latent space), xFormers (needs CUDA and the package), IP-Adapters, LoRA and the caches of video
transformers (`UNet2DModel` has none of them). Pushing is tested with the Hub's protocol.
"""

import copy
import inspect
import pickle
import re
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from conftest import quick_first
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
    schedulers,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image
from stand_ins import tiny_text_encoder
from tiny import assert_close, make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer, tiny_unet

from blended_diffusion.painters.regions import RegionsPipeline
from blended_diffusion.painters.windows import WindowedPipeline
from pipeline_blended_diffusion import BlendedDiffusionPipeline, to_tensor


GRADIENTS = quick_first(["sample", "estimate"])
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edit(pipe: BlendedDiffusionPipeline, photo, mask, **arguments) -> torch.Tensor:
    """The pictures `(B, 3, H, W)` of the same generators every time."""
    number = arguments.get("num_images_per_prompt", 1)
    common = {"image": photo, "mask_image": mask, "generator": seeded(*range(number)), "output_type": "pt"}
    return pipe(**{"prompt": "rock", **common, **arguments}).images


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path, **arguments) -> BlendedDiffusionPipeline:
    return quiet(BlendedDiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **arguments))


def networks(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_save_load_local(tiny_pipe, photo, mask, tmp_path):
    tiny_pipe.save_pretrained(tmp_path)
    assert_close(edit(load(tmp_path), photo, mask), edit(tiny_pipe, photo, mask))


def test_optional_components_stay_left_out(tiny_pipe, photo, mask, tmp_path):
    for name in tiny_pipe._optional_components:
        setattr(tiny_pipe, name, None)
    tiny_pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert all(getattr(loaded, name) is None for name in loaded._optional_components)
    assert_close(edit(loaded, photo, mask), edit(tiny_pipe, photo, mask))


@pytest.mark.slow
def test_optional_components_that_are_there_stay_and_can_be_left_out_when_loading(photo, mask, tmp_path):
    second = {"tokenizer_2": tiny_tokenizer(), "feature_extractor_2": tiny_feature_extractor(8)}
    pipe = make_tiny_pipe(clip_model_2=tiny_clip(8), **second)
    pipe.save_pretrained(tmp_path)
    assert_close(edit(load(tmp_path), photo, mask), edit(pipe, photo, mask))
    one = load(tmp_path, clip_model_2=None, tokenizer_2=None, feature_extractor_2=None)
    assert_close(edit(one, photo, mask), edit(make_tiny_pipe(), photo, mask))


def test_variants(tiny_pipe, tmp_path):
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for name in networks(tiny_pipe):
        assert [path.suffixes for path in (tmp_path / name).glob("*.safetensors")] == [[".fp16", ".safetensors"]]
    loaded = load(tmp_path, variant="fp16", dtype=torch.float16)
    for name, network in networks(tiny_pipe).items():
        other = getattr(loaded, name).state_dict()
        for key, weights in network.state_dict().items():
            assert other[key].dtype == torch.float16
            assert torch.equal(weights, other[key])


def test_a_variant_that_is_not_there_is_named(tiny_model_dir):
    with pytest.raises((ValueError, OSError), match="fp16"):
        load(tiny_model_dir, variant="fp16")


def test_a_dtype_for_each_component(tiny_model_dir, photo, mask):
    loaded = load(tiny_model_dir, dtype={"unet": torch.bfloat16, "default": torch.float32})
    assert loaded.unet.dtype == torch.bfloat16 and loaded.clip_model.dtype == torch.float32
    full = edit(make_tiny_pipe(), photo, mask, clip_guidance_scale=5.0)
    assert (edit(loaded, photo, mask, clip_guidance_scale=5.0) - full).abs().mean() < 0.05


def test_the_imported_class_loads_without_running_the_folders_code(tiny_pipe, photo, mask, tmp_path):
    tiny_pipe.save_pretrained(tmp_path)
    for name in ("pipeline.py", "pipeline_blended_diffusion.py"):
        (tmp_path / name).write_text("raise AssertionError('this was run')\n")
    for cls in (BlendedDiffusionPipeline, Darker):
        loaded = quiet(cls.from_pretrained(tmp_path))
        assert type(loaded) is cls
    assert_close(
        edit(quiet(BlendedDiffusionPipeline.from_pretrained(tmp_path)), photo, mask), edit(tiny_pipe, photo, mask)
    )
    for options, error in (({}, ValueError), ({"trust_remote_code": True}, AssertionError)):
        with pytest.raises(error, match="trust_remote_code" if error is ValueError else "this was run"):
            DiffusionPipeline.from_pretrained(tmp_path, **options)


class Darker(BlendedDiffusionPipeline):
    """Somebody's subclass."""


# --- the call --------------------------------------------------------------------------------------------------------


def test_call_signature():
    parameters = inspect.signature(BlendedDiffusionPipeline.__call__).parameters
    assert {"prompt", "image", "mask_image", "negative_prompt", "prompt_embeds", "strength"} <= set(parameters)
    for name in ("num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"):
        assert parameters[name].default is not inspect.Parameter.empty


def test_every_argument_is_documented():
    documented = re.findall(r"^ {12}(\w[\w, ]*) \(", BlendedDiffusionPipeline.__call__.__doc__, re.MULTILINE)
    names = {name for line in documented for name in line.split(", ")}
    assert names == set(inspect.signature(BlendedDiffusionPipeline.__call__).parameters) - {"self"}


def test_dict_and_tuple_are_the_same(tiny_pipe, photo, mask):
    arguments = {"mask_image": mask, "output_type": "np", "num_images_per_prompt": 2}
    named = tiny_pipe("rock", photo, generator=seeded(0, 1), **arguments)
    plain = tiny_pipe("rock", photo, generator=seeded(0, 1), return_dict=False, **arguments)
    assert list(named.keys()) == ["images", "clip_distances", "ranking"]
    assert np.array_equal(named[0], plain[0])
    assert tuple(named[1:]) == plain[1:]


def test_a_batch_of_unequal_prompts_is_each_by_itself(tiny_pipe, photo, mask):
    prompts = ["rock", "ro", 100 * "very long"]
    together = edit(tiny_pipe, photo, mask, prompt=prompts, generator=seeded(0, 1, 2))
    for index, prompt in enumerate(prompts):
        assert_close(together[index], edit(tiny_pipe, photo, mask, prompt=prompt, generator=seeded(index))[0])


@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize("num_images_per_prompt", [1, 2])
@pytest.mark.parametrize("output_type", quick_first(["pil", "np", "pt", "latent"]))
def test_how_many_pictures(tiny_pipe, photo, mask, num_prompts, num_images_per_prompt, output_type):
    out = tiny_pipe(
        ["rock"] * num_prompts,
        [photo] * num_prompts,
        [mask] * num_prompts,
        num_images_per_prompt=num_images_per_prompt,
        output_type=output_type,
    )
    assert len(out.images) == len(out.clip_distances) == len(out.ranking) == num_prompts * num_images_per_prompt


@pytest.mark.parametrize("names", [[], ["latents"], BlendedDiffusionPipeline._callback_tensor_inputs])
def test_callbacks_get_what_they_declare(tiny_pipe, photo, mask, names):
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        seen.append(sorted(callback_kwargs))
        return callback_kwargs

    arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    assert torch.equal(edit(tiny_pipe, photo, mask, **arguments), edit(tiny_pipe, photo, mask))
    assert seen == [sorted(names)] * tiny_pipe.num_timesteps


def test_the_latents_a_callback_changes_last_are_the_result(tiny_pipe, photo, mask):
    def callback(pipe, step, timestep, callback_kwargs):
        last = step == pipe.num_timesteps - 1
        return {"latents": torch.zeros_like(callback_kwargs["latents"])} if last else {}

    assert not edit(tiny_pipe, photo, mask, callback_on_step_end=callback, output_type="latent").any()


class Watch(PipelineCallback):
    """Notes what it is given, and has no guidance by words after `cutoff_step_index`."""

    tensor_inputs = ["latents", "mask"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen = [*getattr(self, "seen", []), sorted(callback_kwargs)]
        if step_index == self.config.cutoff_step_index:
            pipeline._clip_guidance_scale = 0.0
        return callback_kwargs


class WatchEstimate(Watch):
    tensor_inputs = ["pred_original_sample"]


def test_callbacks_of_diffusers_say_themselves_which_tensors_they_want(tiny_pipe, photo, mask):
    watch = Watch(cutoff_step_ratio=None, cutoff_step_index=1)
    fading = edit(tiny_pipe, photo, mask, callback_on_step_end=watch)
    assert watch.seen == [["latents", "mask"]] * tiny_pipe.num_timesteps
    both = [Watch(1.0), WatchEstimate(1.0)]
    full = edit(tiny_pipe, photo, mask, callback_on_step_end=MultiPipelineCallbacks(both))
    for one in both:
        assert one.seen == [["latents", "mask", "pred_original_sample"]] * tiny_pipe.num_timesteps
    assert torch.equal(full, edit(tiny_pipe, photo, mask)) and not torch.equal(fading, full)


SCALES = {
    "clip_guidance_scale": {},
    "range_guidance_scale": {},
    "background_mse_scale": {"blend": False, "enforce_background": False, "background_mse_scale": 900.0},
    "background_lpips_scale": {"blend": False, "enforce_background": False, "background_lpips_scale": 900.0},
    "rival_guidance_scale": {"rival_guidance_scale": 50.0},
}


@pytest.mark.parametrize("name", quick_first(SCALES))
@pytest.mark.parametrize("hidden", [False, True])
def test_a_callback_sets_guidance_scales_from_the_next_step_on(tiny_pipe, photo, mask, name, hidden):
    """Set to 0 after the first step, a scale is what a loop says that stops there and goes on without it."""
    found, after_first = {}, {}
    if name == "background_lpips_scale":
        tiny_pipe.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()

    def switch_off(pipe, step, timestep, callback_kwargs):
        found.setdefault(step, getattr(pipe, name))
        after_first.setdefault(step, callback_kwargs["latents"].clone())
        setattr(pipe, f"_{name}" if hidden else name, 0.0)
        return {}

    with torch.no_grad():  # what CLIP sees of the masked photo is closer to it than to the prompt
        seen = tiny_pipe.clip_embed(((2 * to_tensor(photo) - 1) * to_tensor(mask) / 2 + 0.5)[None])
    arguments = {"rival_prompt_embeds": seen, "output_type": "latent", **SCALES[name]}
    arguments["callback_on_step_end"] = switch_off
    switched = edit(tiny_pipe, photo, mask, **arguments)
    given = SCALES[name].get(name, tiny_pipe.config.get(f"default_{name}"))
    assert found == {0: given, **dict.fromkeys(range(1, 4), 0.0)}
    assert getattr(tiny_pipe, name) == 0.0

    with_it, without = [], []
    for kept, scale in ((with_it, given), (without, 0.0)):
        keep = lambda pipe, step, timestep, tensors, kept=kept: kept.append(tensors["latents"].clone()) or {}  # noqa: E731
        result = edit(tiny_pipe, photo, mask, **{**arguments, name: scale, "callback_on_step_end": keep})
        assert not torch.equal(switched, result)
    assert torch.equal(after_first[0], with_it[0]) and not torch.equal(after_first[0], without[0])
    assert not torch.equal(after_first[1], with_it[1])


def test_a_guidance_scale_that_is_none_is_refused(tiny_pipe):
    assert tiny_pipe.clip_guidance_scale == 20.0 and tiny_pipe.range_guidance_scale == 50.0
    with pytest.raises(ValueError, match="^`clip_guidance_scale` is -1; expected a finite number of at least 0.$"):
        tiny_pipe.clip_guidance_scale = -1


def test_before_the_first_call_and_interrupting_it(tiny_pipe, photo, mask):
    assert tiny_pipe.num_timesteps == 0 and tiny_pipe.interrupt is False
    steps = []

    def callback(pipe, step, timestep, callback_kwargs):
        steps.append(step)
        pipe.interrupt = True
        return {}

    edit(tiny_pipe, photo, mask, callback_on_step_end=callback)
    assert steps == [0] and tiny_pipe.num_timesteps == 4


# --- inference mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
def test_inference_mode_around_the_call(tiny_pipe, photo, mask, guidance_gradient):
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    with torch.inference_mode():
        inside = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
        embeds = tiny_pipe.encode_prompt(["rock"])
        tensors = {"prompt": None, "prompt_embeds": embeds, "mask_image": to_tensor(mask).clone()}
        from_tensors = edit(tiny_pipe, to_tensor(photo).clone(), mask, **tensors, guidance_gradient=guidance_gradient)
        edit(tiny_pipe, photo, mask, negative_prompt_embeds=embeds, rival_prompt_embeds=embeds)
    assert torch.equal(inside, plain)
    assert_close(from_tensors, plain)
    assert not inside.is_inference() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, EulerDiscreteScheduler])
def test_a_pipeline_that_was_loaded_in_inference_mode(tiny_model_dir, photo, mask, guidance_gradient, scheduler_class):
    with torch.inference_mode():
        pipe = load(tiny_model_dir)
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    assert all(weights.is_inference() for weights in pipe.unet.parameters())
    before = {name: weights.clone() for name, weights in pipe.unet.state_dict().items()}
    plain = load(tiny_model_dir)
    plain.scheduler = scheduler_class.from_config(plain.scheduler.config)
    expected = edit(plain, photo, mask, guidance_gradient=guidance_gradient)
    assert torch.equal(edit(pipe, photo, mask, guidance_gradient=guidance_gradient), expected)
    assert all(torch.equal(weights, before[name]) for name, weights in pipe.unet.state_dict().items())


# --- components that are not there, or others ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet", "scheduler", "clip_model", "feature_extractor", "tokenizer"])
def test_a_component_that_is_not_loaded_is_named_at_the_call(tiny_model_dir, photo, mask, name, tmp_path):
    for load_one in (load, lambda *a, **k: quiet(DiffusionPipeline.from_pretrained(*a, trust_remote_code=True, **k))):
        pipe = load_one(tiny_model_dir, **{name: None})
        assert getattr(pipe, name) is None
        with pytest.raises(ValueError, match=rf"^`{name}` is not loaded[^\n]+\.$"):
            edit(pipe, photo, mask)
        pipe.save_pretrained(tmp_path)
        setattr(pipe, name, getattr(load(tiny_model_dir), name))
        assert torch.equal(edit(pipe, photo, mask), edit(load(tiny_model_dir), photo, mask))


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("unet", tiny_clip, "a UNet2DModel"),
        ("clip_model", tiny_text_encoder, "a CLIPModel or SiglipModel"),
        ("clip_model", tiny_unet, "a CLIPModel or SiglipModel"),
        ("tokenizer", tiny_feature_extractor, "a tokenizer such as CLIPTokenizer"),
        ("feature_extractor", tiny_tokenizer, "a CLIPImageProcessor or SiglipImageProcessor"),
        ("scheduler", tiny_tokenizer, "a scheduler such as DDPMScheduler"),
    ],
)
def test_a_component_of_another_class_is_named(tiny_pipe, photo, mask, name, part, expected):
    sentence = rf"^`{name}` is {type(part()).__name__}; expected {expected}\.$"
    with pytest.raises(ValueError, match=sentence):
        make_tiny_pipe(**{name: part()})
    setattr(tiny_pipe, name, part())
    with pytest.raises(ValueError, match=sentence):
        edit(tiny_pipe, photo, mask)


class WithMore(BlendedDiffusionPipeline):
    """Somebody's subclass with a component of its own."""

    def __init__(self, judge, **others):
        super().__init__(**others)
        self.register_modules(judge=judge)

    # diffusers reads from it which components there are
    __init__.__signature__ = inspect.Signature(
        [
            *inspect.signature(BlendedDiffusionPipeline.__init__).parameters.values(),
            inspect.Parameter("judge", inspect.Parameter.KEYWORD_ONLY),
        ]
    )


def test_a_subclass_may_have_more_components(tiny_pipe, photo, mask):
    defaults = {name: value for name, value in tiny_pipe.config.items() if name.startswith("default_")}
    pipe = quiet(WithMore(**tiny_pipe.components, judge=tiny_clip(), **defaults))
    assert torch.equal(edit(pipe, photo, mask), edit(tiny_pipe, photo, mask))


def test_without_a_tokenizer_embeddings_do(tiny_pipe, photo, mask):
    words = tiny_pipe("rock", photo, mask, num_images_per_prompt=3, generator=seeded(0, 1, 2), output_type="pt")
    embeds = tiny_pipe.encode_prompt(["rock"])
    # labels would need words, and nobody has asked for any
    without = make_tiny_pipe(tokenizer=None, default_candidate_labels=["tree"])
    call = {"image": photo, "mask_image": mask, "prompt_embeds": embeds, "num_images_per_prompt": 3}
    out = without(**call, generator=seeded(0, 1, 2), output_type="pt")
    assert torch.equal(out.images, words.images) and out.clip_distances == words.clip_distances
    for wrong in ({"candidate_labels": ["tree"]}, {"negative_prompt": "tree"}):
        with pytest.raises(ValueError, match="^`tokenizer` is not loaded, which words need; pass embeddings"):
            without(**call, **wrong)


def test_encode_prompt_works_in_isolation(tiny_pipe, photo, mask):
    """A pipeline of CLIP and tokenizer reads the words, one without the tokenizer edits with what it has read."""
    parts = dict(tiny_pipe.components)
    reader = BlendedDiffusionPipeline(**{**parts, "unet": None, "scheduler": None, "feature_extractor": None})
    embeds = {f"{name}_embeds": reader.encode_prompt([word]) for name, word in WORDS.items()}
    defaults = {name: value for name, value in tiny_pipe.config.items() if name.startswith("default_")}
    editor = quiet(BlendedDiffusionPipeline(**{**parts, "tokenizer": None}, **defaults))
    assert_close(edit(editor, photo, mask, prompt=None, **embeds), edit(tiny_pipe, photo, mask, **WORDS))
    with pytest.raises(ValueError, match="^`clip_model` is not loaded; set `pipe.clip_model` to a CLIPModel or"):
        BlendedDiffusionPipeline(**{**parts, "clip_model": None}).encode_prompt(["rock"])


WORDS = {"prompt": "rock", "negative_prompt": "tree"}


# --- dtypes and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{"dtype": torch.float16}, {"device": "cpu", "dtype": torch.bfloat16}, {"dtype": torch.float64}]
)
def test_to_moves_every_network(tiny_pipe, photo, mask, arguments):
    assert tiny_pipe.to(**arguments) is tiny_pipe
    assert {network.dtype for network in networks(tiny_pipe).values()} == {arguments["dtype"]}
    pictures = edit(tiny_pipe, photo, mask)
    assert pictures.dtype == torch.float32 and pictures.isfinite().all()


@pytest.mark.parametrize("component", ["unet", "clip_model"])
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
def test_one_network_alone_in_half_precision(tiny_pipe, photo, mask, component, guidance_gradient):
    arguments = {"guidance_gradient": guidance_gradient, "clip_guidance_scale": 5.0}
    full = edit(tiny_pipe, photo, mask, **arguments)
    getattr(tiny_pipe, component).to(torch.bfloat16)
    assert (edit(tiny_pipe, photo, mask, **arguments) - full).abs().mean() < 0.05


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_map(tiny_model_dir, photo, mask, device_map):
    """Where there is no GPU, "balanced" leaves everything on the CPU."""
    if device_map == "balanced" and torch.cuda.is_available():
        pytest.skip("on this machine it places networks on GPUs")
    loaded = load(tiny_model_dir, device_map=device_map)
    assert {network.device.type for network in networks(loaded).values()} == {"cpu"}
    assert_close(edit(loaded, photo, mask), edit(make_tiny_pipe(), photo, mask))


@pytest.mark.slow
def test_attention_slicing_changes_nothing(tiny_pipe, photo, mask):
    plain = edit(tiny_pipe, photo, mask)
    for slice_size in ("auto", "max", 1):
        tiny_pipe.enable_attention_slicing(slice_size)
        assert_close(edit(tiny_pipe, photo, mask), plain)
    tiny_pipe.disable_attention_slicing()
    assert_close(edit(tiny_pipe, photo, mask), plain)


# Offloading and layerwise casting take the weights from the network as soon as its forward pass is over, when the
# gradient through it is still to come.


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
def test_model_offload(tiny_pipe, photo, mask, guidance_gradient):
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    for _ in range(2):
        tiny_pipe.enable_model_cpu_offload(device="cpu")
        assert tiny_pipe._execution_device == torch.device("cpu:0")
        for _ in range(2):
            assert torch.equal(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)
        assert isinstance(tiny_pipe.unet._hf_hook, CpuOffload)
        assert not hasattr(tiny_pipe.clip_model, "_hf_hook")
    tiny_pipe.remove_all_hooks()
    assert torch.equal(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)


@pytest.mark.slow
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
def test_sequential_offload(tiny_pipe, photo, mask, guidance_gradient):
    """With accelerate's own call: diffusers' names a device by number, which the CPU has none of."""
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    cpu_offload(tiny_pipe.unet, torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)
        assert {parameter.device.type for parameter in tiny_pipe.unet.parameters()} == {"meta"}
        assert all(parameter.requires_grad for parameter in tiny_pipe.unet.parameters())
    tiny_pipe.remove_all_hooks()
    assert torch.equal(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)


@pytest.mark.slow
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize(
    "arguments", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload(tiny_pipe, photo, mask, tmp_path, guidance_gradient, arguments):
    """To disk, since on one device nothing would be taken away."""
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    tiny_pipe.enable_group_offload(torch.device("cpu"), offload_to_disk_path=str(tmp_path), **arguments)
    for _ in range(2):
        assert_close(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)
    assert list(tmp_path.iterdir())
    assert not any(hasattr(module, "_diffusers_hook") for module in tiny_pipe.clip_model.modules())


@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
def test_layerwise_casting_is_rounding_the_weights(tiny_pipe, photo, mask, guidance_gradient):
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    tiny_pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = tiny_pipe.unet.state_dict()
    assert {weights.dtype for weights in stored.values()} == {torch.float8_e4m3fn, torch.float32}
    rounded = make_tiny_pipe()
    rounded.unet.load_state_dict({key: weights.float() for key, weights in stored.items()})
    pictures = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    assert torch.equal(pictures, edit(rounded, photo, mask, guidance_gradient=guidance_gradient))
    assert not torch.equal(pictures, plain)


# --- on a GPU --------------------------------------------------------------------------------------------------------


@on_cuda
def test_on_cuda_with_generators_of_the_cpu(photo, mask):
    pipe = make_tiny_pipe()
    before = edit(pipe, photo, mask)
    pipe.to("cuda")
    assert {network.device.type for network in networks(pipe).values()} == {"cuda"}
    after = edit(pipe, photo, mask)
    assert after.device.type == "cuda"
    assert (after.cpu() - before).abs().mean() < 1e-3
    pipe.to("cpu")
    assert torch.equal(edit(pipe, photo, mask), before)


@on_cuda
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_cuda(photo, mask, tmp_path, dtype, guidance_gradient):
    pipe = make_tiny_pipe().to("cuda", dtype)
    pictures = edit(pipe, photo, mask, guidance_gradient=guidance_gradient)
    assert pictures.isfinite().all()
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=dtype).to("cuda")
    assert {network.dtype for network in networks(loaded).values()} == {dtype}
    assert (edit(loaded, photo, mask, guidance_gradient=guidance_gradient) - pictures).abs().mean() < 1e-2


@on_cuda
@pytest.mark.parametrize("guidance_gradient", GRADIENTS)
@pytest.mark.parametrize("offloading", ["model", "sequential", "leaf_level", "block_level"])
def test_offloading_from_cuda(photo, mask, offloading, guidance_gradient):
    pipe = make_tiny_pipe().to("cuda")
    plain = edit(pipe, photo, mask, guidance_gradient=guidance_gradient)
    pipe.to("cpu")
    if offloading == "model":
        pipe.enable_model_cpu_offload()
    elif offloading == "sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload(torch.device("cuda"), offload_type=offloading, num_blocks_per_group=1)
    assert pipe._execution_device.type == "cuda"
    pictures = edit(pipe, photo, mask, guidance_gradient=guidance_gradient)
    assert (pictures - plain).abs().mean() < 1e-3
    assert pipe.unet.conv_in.weight.device.type in ("cpu", "meta")


# --- components, copies and pipelines made of pipelines --------------------------------------------------------------


def test_components_make_the_same_pipeline(tiny_pipe, photo, mask):
    parameters = inspect.signature(BlendedDiffusionPipeline.__init__).parameters
    assert set(tiny_pipe.components) == {name for name in parameters if not name.startswith("default_")} - {"self"}
    defaults = {name: value for name, value in tiny_pipe.config.items() if name.startswith("default_")}
    again = quiet(BlendedDiffusionPipeline(**tiny_pipe.components, **defaults))
    assert torch.equal(edit(again, photo, mask), edit(tiny_pipe, photo, mask))


def test_components_alone_have_the_released_defaults(tiny_pipe):
    assert BlendedDiffusionPipeline(**tiny_pipe.components).config.default_num_inference_steps == 100


def test_from_pipe_keeps_the_defaults(tiny_pipe, photo, mask):
    again = quiet(BlendedDiffusionPipeline.from_pipe(tiny_pipe))
    assert all(again.components[name] is part for name, part in tiny_pipe.components.items())
    assert again.config.default_num_inference_steps == 5
    assert torch.equal(edit(again, photo, mask), edit(tiny_pipe, photo, mask))
    changed = BlendedDiffusionPipeline.from_pipe(tiny_pipe, default_strength=0.4)
    assert changed.config.default_strength == 0.4 and tiny_pipe.config.default_strength == 0.8


@pytest.mark.slow
def test_from_pipe_by_way_of_plain_sampling(photo, mask):
    """`DDPMPipeline` knows nothing of CLIP or of the defaults, and hands them on all the same."""
    pipe = make_tiny_pipe(unet=tiny_unet(out_channels=3), scheduler=DDPMScheduler(clip_sample=False))
    expected = edit(pipe, photo, mask)
    plain = quiet(DDPMPipeline.from_pipe(pipe))
    assert plain.unet is pipe.unet
    assert plain(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    clip = {name: pipe.components[name] for name in ("clip_model", "tokenizer", "feature_extractor")}
    back = quiet(BlendedDiffusionPipeline.from_pipe(plain, **clip))
    assert {name: back.config[name] for name in back.config if name.startswith("default_")} == {
        name: pipe.config[name] for name in pipe.config if name.startswith("default_")
    }
    assert torch.equal(edit(back, photo, mask), expected)
    assert torch.equal(edit(pipe, photo, mask), expected)


def test_a_copy_with_another_scheduler_leaves_the_first_alone(tiny_pipe, photo, mask):
    before = edit(tiny_pipe, photo, mask)
    other = copy.copy(tiny_pipe)
    other.scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    assert not torch.equal(edit(other, photo, mask), before)
    assert type(tiny_pipe.scheduler) is DDPMScheduler
    assert tiny_pipe.config.scheduler == ("diffusers", "DDPMScheduler")
    assert torch.equal(edit(tiny_pipe, photo, mask), before)


@pytest.mark.parametrize("duplicate", quick_first([copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))]))
def test_duplicates_stand_by_themselves(tiny_pipe, photo, mask, duplicate):
    before = edit(tiny_pipe, photo, mask)
    other = duplicate(tiny_pipe)
    assert torch.equal(edit(other, photo, mask), before)
    torch.nn.init.zeros_(tiny_pipe.unet.conv_in.weight)
    assert not torch.equal(edit(tiny_pipe, photo, mask), before)
    assert torch.equal(edit(other, photo, mask), before)


@pytest.mark.parametrize(
    "derive", quick_first([copy.copy, lambda pipe: WindowedPipeline.of(pipe, 2), RegionsPipeline.of])
)
def test_no_progress_bar_where_it_is_switched_off(photo, mask, capfd, derive):
    pipe = make_tiny_pipe()
    pipe.set_progress_bar_config(disable=True)
    derived = derive(pipe)
    arguments = {"mask_image": mask}
    if isinstance(derived, RegionsPipeline):
        arguments = {"prompt": ["rock"], "region_masks": [mask]}
    derived(image=photo, **{"prompt": "rock", **arguments})
    assert capfd.readouterr() == ("", "")
    derived.set_progress_bar_config(disable=False, desc="steps")
    derived(image=photo, **{"prompt": "rock", **arguments})
    assert "steps" in capfd.readouterr().err
    pipe("rock", photo, mask)
    assert capfd.readouterr() == ("", "")


# --- schedulers ------------------------------------------------------------------------------------------------------

SIZE = 64
PAGE = Path(__file__).parent.parent / "docs" / "schedulers.md"
NAMES = sorted(
    name
    for name in dir(schedulers)
    if isinstance(found := getattr(schedulers, name), type) and name.endswith("Scheduler") and name != "SchedulerMixin"
)


class IdealUNet(UNet2DModel):
    """Knows that every picture is of the one grey `CLEAN`: predicts the very noise, by the timestep it is told."""

    CLEAN = 0.6  # in [−1, 1]

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        sigmas = ((1 - alphas_cumprod()) / alphas_cumprod()) ** 0.5
        sigma = float(np.interp(float(timestep), range(len(sigmas)), sigmas))
        signal, noise = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
        predicted = (sample - signal * self.CLEAN) / noise
        return UNet2DOutput(sample=torch.cat([predicted, torch.full_like(predicted, -1)], dim=1))


def network_scheduler(**changes) -> DDPMScheduler:
    """The network's own, as loaded from a folder: every option is written out, so that `from_config` hands all on."""
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
    options = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return DDPMScheduler(**{**options, **changes})


def alphas_cumprod() -> np.ndarray:
    return DDPMScheduler().alphas_cumprod.double().numpy()


def ideal_pipe() -> BlendedDiffusionPipeline:
    config = {key: value for key, value in tiny_unet(sample_size=SIZE).config.items() if not key.startswith("_")}
    return make_tiny_pipe(unet=IdealUNet(**config), scheduler=network_scheduler())


def levels(pipe: BlendedDiffusionPipeline, num_inference_steps: int, strength: float) -> tuple[list, torch.Tensor]:
    """After each step but the last the mean and deviation inside and outside the mask, and the last sample."""
    grey = Image.new("RGB", (SIZE, SIZE), 3 * (round(255 * (IdealUNet.CLEAN + 1) / 2),))
    left = np.zeros((SIZE, SIZE), dtype=np.float32)
    left[:, : SIZE // 2] = 1
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        halves = callback_kwargs["latents"].split(SIZE // 2, dim=-1)
        seen.append([(half.mean().item(), half.std().item()) for half in halves])
        return {}

    result = pipe(
        "",
        grey,
        left,
        num_inference_steps=num_inference_steps,
        strength=strength,
        generator=seeded(0),
        output_type="latent",
        callback_on_step_end=callback,
    ).images
    return seen[:-1], result


def assert_keeps_to_the_level(pipe: BlendedDiffusionPipeline) -> None:
    """With a network that makes no mistake, what is inside the mask is noised as the photo outside it is."""
    for num_inference_steps, strength in [(10, 1.0), (10, 0.5), (23, 0.7)]:
        seen, result = levels(pipe, num_inference_steps, strength)
        assert len(seen) >= num_inference_steps * strength - 2
        for (mean_inside, noise_inside), (mean_outside, noise_outside) in seen:
            # these are estimates from 6144 numbers each; some schedulers round the timestep that they tell the network
            assert abs(noise_inside - noise_outside) < 0.06 * noise_outside + 0.01
            assert abs(mean_inside - mean_outside) < 0.06 * noise_outside + 0.01
        # the least noise that the network knows may be left, which is a grey level
        assert (result - IdealUNet.CLEAN).abs().mean() < 0.02


def verdict(name: str) -> str:
    """`"works"`, `"refused"`, or `"not made"` where diffusers makes no such scheduler of a DDPM scheduler's config."""
    try:
        scheduler = getattr(schedulers, name).from_config(network_scheduler().config)
    except ImportError:
        pytest.skip(f"{name} needs a package that is not installed")
    except (TypeError, ValueError):
        return "not made"
    pipe = ideal_pipe()
    pipe.scheduler = scheduler
    steps = []
    try:
        pipe("", Image.new("RGB", (SIZE, SIZE)), callback_on_step_end=lambda *_: steps.append(1) or {})
    except ValueError as error:
        assert not steps
        assert re.fullmatch(rf"`scheduler` is {name}, [^\n]+[^.]\.", str(error))
        with pytest.raises(ValueError, match=name):
            make_tiny_pipe(scheduler=scheduler)
        return "refused"
    return "works"


def said() -> dict[str, str]:
    """What the page says of each scheduler: the heading of the section it stands in."""
    heading, found = "", {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("|"):
            found |= dict.fromkeys(re.findall(r"`(\w+Scheduler)`", line.split("|")[1]), heading)
    return found


HEADINGS = {"works": "These work", "refused": "These are refused", "not made": "These cannot be swapped in"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_of_diffusers_works_or_is_refused_at_once(name):
    found = verdict(name)
    assert said().get(name) == HEADINGS[found], "docs/schedulers.md says otherwise"
    if found != "works":
        return
    pipe = ideal_pipe()
    pipe.scheduler = getattr(schedulers, name).from_config(pipe.scheduler.config)
    assert_keeps_to_the_level(pipe)


INVERSE = [name for name in NAMES if name.endswith("InverseScheduler")]


@pytest.mark.parametrize("name", INVERSE)
def test_a_scheduler_from_picture_to_noise_is_refused_for_that(name):
    assert {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"} <= set(INVERSE)
    scheduler = getattr(schedulers, name).from_config(network_scheduler().config)
    sentence = rf"^`scheduler` is {name}, which goes from picture to noise; one that goes from noise to picture is "
    with pytest.raises(ValueError, match=sentence):
        make_tiny_pipe(scheduler=scheduler)


WORKING = [name for name in NAMES if said().get(name) == HEADINGS["works"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_with_every_scheduler_words_guide_and_pictures_are_their_own_generators(photo, mask, name):
    pipe = make_tiny_pipe()
    options = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    pipe.scheduler = getattr(schedulers, name).from_config(options)
    common = {"prompt": "rock", "image": photo, "mask_image": mask, "num_inference_steps": 10, "output_type": "pt"}
    together = pipe(num_images_per_prompt=3, generator=seeded(0, 1, 2), clip_guidance_scale=500.0, **common)
    alone = pipe(generator=seeded(1), clip_guidance_scale=500.0, **common)
    assert_close(together.images[1], alone.images[0])
    unguided = pipe(
        num_images_per_prompt=3,
        generator=seeded(0, 1, 2),
        clip_guidance_scale=0.0,
        range_guidance_scale=0.0,
        **common,
    )
    assert np.mean(together.clip_distances) < np.mean(unguided.clip_distances)
    outside = to_tensor(mask)[0] == 0
    assert torch.equal(together.images[..., outside], to_tensor(photo)[:, outside].expand(3, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler_class", "options"),
    [
        (DDPMScheduler, {"timestep_spacing": "leading", "steps_offset": 1, "variance_type": "fixed_small"}),
        (DDPMScheduler, {"timestep_spacing": "trailing"}),
        (DDIMScheduler, {"timestep_spacing": "leading", "set_alpha_to_one": False}),
        (DDIMScheduler, {"timestep_spacing": "trailing"}),
        (DEISMultistepScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        (DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"use_lu_lambdas": True, "euler_at_final": True}),
        (DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}),
        (DPMSolverMultistepScheduler, {"use_beta_sigmas": True, "timestep_spacing": "trailing"}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
        (HeunDiscreteScheduler, {"use_karras_sigmas": True}),
        (UniPCMultistepScheduler, {"use_karras_sigmas": True, "solver_order": 3}),
        (UniPCMultistepScheduler, {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}),
    ],
    ids=str,
)
def test_options_of_schedulers(scheduler_class, options):
    pipe = ideal_pipe()
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **options)
    assert_keeps_to_the_level(pipe)


@pytest.mark.parametrize(
    ("scheduler_class", "option"),
    [
        (DDPMScheduler, "rescale_betas_zero_snr"),
        (EulerDiscreteScheduler, "rescale_betas_zero_snr"),
        (DPMSolverMultistepScheduler, "use_flow_sigmas"),
        (DDIMScheduler, "thresholding"),
    ],
)
def test_options_that_do_not_go_with_noise_are_refused(tiny_pipe, photo, mask, scheduler_class, option):
    tiny_pipe.scheduler = scheduler_class.from_config(tiny_pipe.scheduler.config, **{option: True})
    with pytest.raises(ValueError, match=rf"^`scheduler` has {option}=True, [^.]+\.$"):
        tiny_pipe("rock", photo, mask)


def test_a_config_in_full_is_what_keeps_the_networks_noise():
    """Why the page says so: diffusers leaves out what the first class has by default, and the second has another."""
    short = schedulers.LCMScheduler.from_config(DDPMScheduler().config)
    full = schedulers.LCMScheduler.from_config(network_scheduler().config)
    assert not torch.allclose(short.alphas_cumprod, DDPMScheduler().alphas_cumprod)
    assert torch.equal(full.alphas_cumprod, DDPMScheduler().alphas_cumprod)
