"""What a step needs, what there is, and that the ways to need less make the same pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import UNet2DModel
from PIL import Image
from tiny import assert_close, make_tiny_pipe
from transformers import CLIPConfig, CLIPModel

from blended_diffusion.checkpoints import PRESETS
from blended_diffusion.checkpoints.stock_unet import unet_config
from blended_diffusion.cli import main
from blended_diffusion.editing.edit import largest_difference
from blended_diffusion.editing.records import read_record
from blended_diffusion.machine import GIB, peak_memory
from blended_diffusion.models import load_model
from blended_diffusion.painters import memory
from blended_diffusion.painters.memory import MemorySaving, Tally, count_step, make_room, weights_bytes
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.windows import WindowedPipeline
from pipeline_blended_diffusion import BlendedDiffusionBlocks, BlendedDiffusionPipeline, pipeline_of, recomputed


CPU = torch.device("cpu")
SETTINGS = EditSettings(
    "rock",
    num_inference_steps=5,
    strength=0.8,
    clip_guidance_scale=20.0,
    range_guidance_scale=50.0,
    num_augmentations=3,
    guidance_gradient="sample",
)


def edit(pipe: BlendedDiffusionPipeline, photo, mask, **arguments) -> torch.Tensor:
    """Two pictures in two steps."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    common = {"num_images_per_prompt": 2, "generator": generators, "output_type": "pt", "strength": 0.4}
    return pipe("rock", photo, mask, **{**common, "guidance_gradient": "sample", **arguments}).images


# --- gradient checkpointing, and CLIP in chunks ----------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing(tiny_pipe, photo, mask):
    plain = edit(tiny_pipe, photo, mask)
    tiny_pipe.unet.enable_gradient_checkpointing()
    passes = []
    tiny_pipe.unet.down_blocks[0].resnets[0].register_forward_hook(lambda *_: passes.append(1))
    assert_close(edit(tiny_pipe, photo, mask), plain)
    assert len(passes) > tiny_pipe.num_timesteps  # it is computed again for the gradient
    tiny_pipe.unet.disable_gradient_checkpointing()
    assert torch.equal(edit(tiny_pipe, photo, mask), plain)


def to_disk(offload_type: str):
    def offload(pipe, folder):
        options = {"offload_type": offload_type, "num_blocks_per_group": 1 if offload_type == "block_level" else None}
        pipe.enable_group_offload(CPU, offload_to_disk_path=str(folder), **options)

    return offload


OFFLOADING = {
    "model": lambda pipe, folder: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe, folder: cpu_offload(pipe.unet, CPU),
    "leaf_level": to_disk("leaf_level"),
    "block_level": to_disk("block_level"),
    "layerwise casting": lambda pipe, folder: pipe.unet.enable_layerwise_casting(torch.float16, torch.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("offloading", OFFLOADING)
@pytest.mark.parametrize("detail", [1, 2])
def test_what_takes_weights_away_goes_with_recomputing(photo, mask, tmp_path, offloading, detail, checkpointing):
    """With gradient checkpointing, with windows, and with both."""
    pipe = make_tiny_pipe()
    arguments = {"num_images_per_prompt": 1, "generator": torch.Generator().manual_seed(0), "strength": 0.2}
    if offloading == "layerwise casting":
        pipe.unet.half().float()  # what it rounds is rounded
    plain = edit(WindowedPipeline.of(pipe, detail), photo, mask, **arguments)
    OFFLOADING[offloading](pipe, tmp_path)
    if checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if checkpointing and offloading == "block_level":
        with pytest.raises(ValueError, match="^`unet` is offloaded by whole blocks, .* use `offload_type=.leaf_level"):
            edit(pipe, photo, mask)
        return
    windowed = WindowedPipeline.of(pipe, detail)
    for seed in (0, 0):
        arguments["generator"] = torch.Generator().manual_seed(seed)
        assert_close(edit(windowed, photo, mask, **arguments), plain)


def test_a_failed_call_leaves_the_switch_as_it_was(tiny_pipe, photo, mask):
    tiny_pipe.unet.enable_gradient_checkpointing()
    functions = [block._gradient_checkpointing_func for block in tiny_pipe.unet.down_blocks]

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(tiny_pipe, photo, mask, callback_on_step_end=fail)
    assert [block._gradient_checkpointing_func for block in tiny_pipe.unet.down_blocks] == functions
    assert all(parameter.requires_grad for parameter in tiny_pipe.unet.parameters())


def test_recomputed_has_the_gradient_of_what_it_computes():
    """Of the inputs that want one; also twice, as where a scaled loss overflowed."""

    def function(a, b, c):
        return torch.sin(a * b) + c

    a, b, c = (torch.rand(3, dtype=torch.float64, requires_grad=number < 2) for number in range(3))
    assert torch.autograd.gradcheck(lambda a, b: recomputed(function, a, b, c), (a, b))
    result = recomputed(function, a, b, c).sum()
    once = torch.autograd.grad(result, (a, b), retain_graph=True)
    expected = torch.autograd.grad(function(a, b, c).sum(), (a, b))
    for gradients in (once, torch.autograd.grad(result, (a, b))):
        assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 100])
def test_clip_in_chunks_has_the_same_gradient(tiny_pipe, size):
    pictures = torch.rand(6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tiny_pipe.to(torch.float64)
    target = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for chunk_size in (None, size):
        tiny_pipe.clip_chunk_size = chunk_size
        leaf = pictures.clone().requires_grad_()
        loss = (tiny_pipe.prompt_distance(tiny_pipe.clip_embed(leaf), target) ** 2).sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_pictures_with_clip_in_chunks(tiny_pipe, photo, mask, guidance_gradient, checkpointing):
    plain = edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient)
    if checkpointing:
        tiny_pipe.unet.enable_gradient_checkpointing()
    tiny_pipe.clip_chunk_size = 2
    seen = []
    tiny_pipe.clip_model.vision_model.register_forward_hook(lambda module, args, out: seen.append(len(out[0])))
    assert_close(edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient), plain)
    assert set(seen) <= {1, 2}


def test_what_is_made_of_a_pipeline_looks_in_chunks_too(tiny_pipe):
    modular = BlendedDiffusionBlocks().init_pipeline()
    modular.update_components(**tiny_pipe.components)
    for chunk_size in (None, 2):
        tiny_pipe.clip_chunk_size = modular.clip_chunk_size = chunk_size
        assert WindowedPipeline.of(tiny_pipe, 2).clip_chunk_size == chunk_size
        assert pipeline_of(modular, ["unet", "clip_model"]).clip_chunk_size == chunk_size


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_tally_counts_what_lives_at_the_same_time():
    kept = torch.zeros(1000)
    with Tally() as tally:
        first = torch.ones(250)
        view = first[:100].view(10, 10)
        assert tally.now == 1000
        second = first + 1
        assert tally.now == 2000
        del first
        assert tally.now == 2000  # the view holds it
        del view
        assert tally.now == 1000
        second.add_(kept[:250])
        third = torch.empty(10, dtype=torch.float64)
    assert (tally.now, tally.peak) == (1080, 2000)
    assert len(second) + len(third) == 260


@pytest.mark.slow
@pytest.mark.parametrize(
    "saving", [MemorySaving(), MemorySaving(True), MemorySaving(True, 2), MemorySaving(False, 1)], ids=str
)
@pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
def test_the_count_is_what_an_edit_allocates(tiny_pipe, photo, mask, guidance_gradient, saving):
    saving.apply(tiny_pipe)
    counted = count_step(tiny_pipe, 2, 8, guidance_gradient)
    with Tally() as tally:
        edit(tiny_pipe, photo, mask, guidance_gradient=guidance_gradient, num_augmentations=8, ranking="region")
    assert counted == pytest.approx(tally.peak, rel=0.15)


@pytest.mark.slow
def test_what_makes_a_step_need_less(tiny_pipe):
    def count(**arguments) -> int:
        common = {"batch_size": 2, "num_augmentations": 4, "guidance_gradient": "sample", "saving": MemorySaving()}
        return count_step(tiny_pipe, **{**common, **arguments})

    plain = count()
    assert count(saving=MemorySaving(True)) < 0.8 * plain
    assert count(saving=MemorySaving(True, 2)) < count(saving=MemorySaving(True))
    assert count(guidance_gradient=None) < count(guidance_gradient="estimate") < plain
    assert count(batch_size=4) == pytest.approx(2 * plain, rel=0.05)
    tiny_pipe.to(torch.bfloat16)
    assert 0.5 * plain <= count() < 0.8 * plain  # what the losses are made of stays fp32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "bundled", "full-size"])
def test_more_than_a_step_needs_is_known_without_counting(name):
    """And not so much more that it would always be counted."""
    pipe = {"tiny": make_tiny_pipe, "bundled": lambda: load_model().pipe, "full-size": full_size_pipe}[name]()
    for batch_size, copies, gradient in ((2, 1, None), (1, 1, "sample"), (1, 8, "estimate"), (4, 4, "sample")):
        counted = count_step(pipe, batch_size, copies, gradient)
        assert 1.15 * counted < memory.at_most(pipe, batch_size, copies, gradient) < 10 * counted


def full_size_pipe() -> BlendedDiffusionPipeline:
    """OpenAI's 256×256 network and a CLIP ViT-B/16, without numbers."""
    architecture = PRESETS["256x256_diffusion_uncond"].architecture
    config, parts = unet_config(architecture), make_tiny_pipe().components
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        return BlendedDiffusionPipeline(**{**parts, "unet": UNet2DModel.from_config(config), "clip_model": clip})


def test_plenty_is_not_counted(tiny_pipe, monkeypatch):
    monkeypatch.delattr(memory, "count_step")
    monkeypatch.setattr(memory, "free_memory", lambda device: memory.at_most(tiny_pipe, 2, 3, "sample"))
    assert make_room(tiny_pipe, SETTINGS, 2) is None


@pytest.mark.slow
def test_counting_leaves_everything_alone(tiny_pipe, photo, mask):
    before = edit(tiny_pipe, photo, mask)
    state = torch.get_rng_state()
    count_step(tiny_pipe, 2, 3, "sample", MemorySaving(True, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert MemorySaving.of(tiny_pipe) == MemorySaving()
    assert torch.equal(edit(tiny_pipe, photo, mask), before)


def test_weights(tiny_pipe):
    networks = (tiny_pipe.unet, tiny_pipe.clip_model)
    number = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert weights_bytes(tiny_pipe) == 4 * number
    assert weights_bytes(tiny_pipe.to(torch.float16)) == 2 * number


# --- what is done about it -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_making_room(tiny_pipe, monkeypatch):
    settings = replace(SETTINGS, num_augmentations=6)
    savings = [MemorySaving(), MemorySaving(True), MemorySaving(True, 6), MemorySaving(True, 3)]
    needs = [count_step(tiny_pipe, 2, 6, "sample", saving) for saving in savings]

    def with_free(free: int, settings: EditSettings = settings) -> tuple[str | None, MemorySaving]:
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        return make_room(tiny_pipe, settings, 2), MemorySaving.of(tiny_pipe)

    assert with_free(needs[0]) == (None, MemorySaving())
    note, saving = with_free(needs[0] - 1)  # less than `at_most` says: it is counted
    assert saving == MemorySaving(True)
    assert note.endswith(f"gradient checkpointing makes it {needs[1] / GIB:.3g}.")
    assert with_free(needs[0]) == (None, MemorySaving(True))  # what is on stays on
    for index in (2, 3):
        assert with_free(needs[index - 1] - 1)[1] == savings[index]
    note, saving = with_free(1, SETTINGS)
    assert saving == MemorySaving(True, 1)
    assert note.endswith("That is still too much; make fewer pictures at once (--batch_size).")


@pytest.mark.slow
def test_without_a_gradient_through_the_unet_checkpointing_is_no_use(tiny_pipe, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    for settings in (EditSettings("", num_augmentations=3), EditSettings("rock", num_augmentations=3)):
        make_room(tiny_pipe, settings, 2)
        assert not tiny_pipe.unet.is_gradient_checkpointing


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, tiny_model_dir, photo, mask, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    mask.save("mask.png")

    def edit(*flags: str) -> int:
        given = ["--prompt", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir)]
        return main(["edit", *given, "--device", "cpu", "--num-images", "2", "--guidance-gradient", "sample", *flags])

    yield edit
    torch.use_deterministic_algorithms(False)


def by_seed(folder: str) -> list[Path]:
    return sorted(Path(folder, "ranked").glob("*.png"), key=lambda path: path.stem.split("_")[-1])


def test_the_flag_and_what_the_command_says(run, capfd):
    assert run("--output_path", "plain") == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.startswith("peak memory: ") and last.endswith(" GiB")
    assert float(last.split()[2]) == pytest.approx(peak_memory(CPU) / GIB, rel=0.1)
    assert run("--output_path", "less", "--gradient-checkpointing", "--quiet") == 0
    assert capfd.readouterr().out == ""
    assert len(by_seed("plain")) == len(by_seed("less")) == 2
    for path, other in zip(by_seed("plain"), by_seed("less"), strict=True):
        assert largest_difference(Image.open(path), Image.open(other)) <= 1
        assert not read_record(str(path), "PICTURE").made_with.gradient_checkpointing
        assert read_record(str(other), "PICTURE").made_with.gradient_checkpointing


def test_short_memory_is_said_and_remembered(run, capfd, caplog, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    assert run("--output_path", "short") == 0
    assert "gradient checkpointing and CLIP looking at 1 at a time makes it" in caplog.text
    picture = next(Path("short/ranked").glob("*.png"))
    made_with = read_record(str(picture), "PICTURE").made_with
    assert (made_with.gradient_checkpointing, made_with.clip_chunk_size) == (True, 1)
    assert main(["replay", str(picture), "--device", "cpu"]) == 0
    assert "pixel for pixel the same" in capfd.readouterr().out
