"""How much memory an edit needs, how much there is, and what to do where it is too little.

What belongs here counts and decides. Halving a batch that does not fit all the same is left to whoever makes batches.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blended_diffusion.machine import GIB, free_memory
from blended_diffusion.painters.settings import EditSettings
from pipeline_blended_diffusion import NUM_WARP_PARAMETERS, BlendedDiffusionPipeline, Guidance, noise_level


_counted: weakref.WeakKeyDictionary[BlendedDiffusionPipeline, dict[tuple, int]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class MemorySaving:
    """How a step is taken where memory is short. The pictures are the same but for the last bits.

    Attributes:
        gradient_checkpointing (`bool`): the UNet's blocks keep their inputs alone, and are computed once more when the
            gradient comes back to them.
        clip_chunk_size (`int`, *optional*): how many pictures CLIP looks at together; all if left out.
        vae_tiling (`bool`), vae_slicing (`bool`): an autoencoder goes over a picture in tiles, and over a batch one by
            one.
    """

    gradient_checkpointing: bool = False
    clip_chunk_size: int | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False

    @classmethod
    def of(cls, pipe: BlendedDiffusionPipeline) -> "MemorySaving":
        """How `pipe` takes its steps now."""
        return cls(pipe.unet.is_gradient_checkpointing, pipe.clip_chunk_size)

    def apply(self, pipe: BlendedDiffusionPipeline) -> None:
        """Has `pipe` take its steps so from here on."""
        if self.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        else:
            pipe.unet.disable_gradient_checkpointing()
        pipe.clip_chunk_size = self.clip_chunk_size

    def __str__(self) -> str:
        named = ["gradient checkpointing"] * self.gradient_checkpointing
        if self.clip_chunk_size is not None:
            named.append(f"CLIP looking at {self.clip_chunk_size} at a time")
        return " and ".join(named)


class Tally(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it and live at the same time.

    Attributes:
        now (`int`), peak (`int`): bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._known.update(_storages((args, kwargs)))  # what is made of weights may be a view of them
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class AnyLevel(DDPMScheduler):
    """Says without computing that half of every sample's variance is noise."""

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.5**0.5])


class WithoutNumbers(BlendedDiffusionPipeline):
    """[`BlendedDiffusionPipeline`] whose tensors have sizes and no numbers."""

    def loss_gradient(self, losses: torch.Tensor, wrt: torch.Tensor, largest_scale: float) -> torch.Tensor:
        # in fp16 the graph is kept for another pass, and whether there is one depends on numbers
        retain = torch.float16 in (self.unet.dtype, *(model.dtype for model, _, _ in self.clips))
        return torch.autograd.grad(losses.sum(), wrt, retain_graph=retain)[0]


def weights_bytes(pipe: BlendedDiffusionPipeline) -> int:
    """What the networks' weights take."""
    networks = [pipe.unet, *(model for model, _, _ in pipe.clips)]
    return sum(parameter.nbytes for network in networks for parameter in network.parameters())


def count_step(
    pipe: BlendedDiffusionPipeline,
    batch_size: int,
    num_augmentations: int,
    guidance_gradient: str | None,
    saving: MemorySaving | None = None,
) -> int:
    """The most that a step needs at once besides the weights, in bytes.

    It is a count and no measurement: the step is taken by networks like those of `pipe` whose tensors have sizes and
    no numbers, and the tensors that live at the same time are added up. What libraries use while they compute one of
    them is not in it, nor the network of the perceptual distance (`background_lpips_scale`).

    Args:
        pipe (`BlendedDiffusionPipeline`): left as it is.
        batch_size (`int`): how many pictures are made together.
        num_augmentations (`int`): how many copies of each CLIP sees.
        guidance_gradient (`str`, *optional*): `"sample"` or `"estimate"`; a step without guidance if left out.
        saving ([`MemorySaving`], *optional*): how `pipe` takes its steps if left out.
    """
    saving = MemorySaving.of(pipe) if saving is None else saving
    counted = _counted.setdefault(pipe, {})
    step = (batch_size, num_augmentations, guidance_gradient)
    key = (saving, step, pipe.unet.dtype, *(model.dtype for model, _, _ in pipe.clips))
    if key not in counted:
        with FakeTensorMode(), torch.no_grad():
            twin = _without_numbers(pipe, saving)
            tally = Tally()
            with tally, twin.frozen():
                _take_step(twin, *step)
        counted[key] = tally.peak
    return counted[key]


def _without_numbers(pipe: BlendedDiffusionPipeline, saving: MemorySaving) -> BlendedDiffusionPipeline:
    parts = {**pipe.components, "scheduler": AnyLevel()}
    parts["unet"] = _cast(UNet2DModel.from_config(pipe.unet.config), pipe.unet.dtype)
    for name in ("clip_model", "clip_model_2"):
        if (clip := parts[name]) is not None:
            parts[name] = _cast(type(clip)(clip.config), clip.dtype)
    twin = WithoutNumbers(**parts)
    saving.apply(twin)
    return twin


def _cast(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    # `to` refuses tensors without numbers
    weights = {name: torch.empty(weight.shape, dtype=dtype) for name, weight in network.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _take_step(
    pipe: BlendedDiffusionPipeline, batch_size: int, num_augmentations: int, guidance_gradient: str | None
) -> None:
    shape = (batch_size, 3, *pipe.sample_size)
    embeds, weights = torch.empty(batch_size, sum(pipe.embed_dims)), torch.empty(batch_size)
    guidance = Guidance(
        text_embeds=embeds,
        weights=weights,
        negative_embeds=embeds,
        negative_weights=weights,
        rival_embeds=embeds,
        rival_weights=weights,
        image=torch.empty(shape),
        mask=torch.empty(batch_size, 1, *pipe.sample_size),
        gradient=guidance_gradient or "estimate",
        clip_scale=1.0,
        range_scale=1.0,
        mse_scale=0.0,
        lpips_scale=0.0,
        match_release=False,
    )
    labels = None if pipe.unet.config.num_class_embeds is None else torch.zeros(batch_size, dtype=torch.long)
    warps = torch.empty(batch_size, max(num_augmentations - 1, 0), NUM_WARP_PARAMETERS)
    latents, timestep = torch.empty(shape), torch.tensor(0)
    sample, *_, estimate = pipe.estimate(latents, timestep, labels, differentiable=guidance_gradient == "sample")
    if guidance_gradient is not None:
        pipe.guide(sample, estimate, *noise_level(pipe.scheduler, timestep), guidance, warps)


def at_most(
    pipe: BlendedDiffusionPipeline, batch_size: int, num_augmentations: int, guidance_gradient: str | None
) -> int:
    """More than a step needs at once besides the weights, in bytes, by multiplying alone.

    [`count_step`] takes as long as several steps of a small network; where this much is free, nothing need be counted.

    Args:
        pipe, batch_size, num_augmentations, guidance_gradient: as in [`count_step`].
    """
    unet, (height, width) = pipe.unet.config, pipe.sample_size
    layers = 2 * unet.layers_per_block + 3
    numbers = sum(layers * c * height * width // 4**level for level, c in enumerate(unet.block_out_channels))
    # counted were up to 1.8 without a gradient, 10.1 with
    numbers *= 16 if guidance_gradient == "sample" else 4
    if guidance_gradient is not None:
        copies = 20 * 3 * height * width
        for clip, _, _ in pipe.clips:
            seen = clip.config.vision_config
            tokens = (seen.image_size // seen.patch_size) ** 2 + 1
            token = 8 * seen.hidden_size + 2 * seen.intermediate_size + seen.num_attention_heads * tokens
            copies += 4 * seen.num_hidden_layers * tokens * token
        numbers += num_augmentations * copies
    return batch_size * numbers * torch.float32.itemsize


def make_room(pipe: BlendedDiffusionPipeline, settings: EditSettings, batch_size: int) -> str | None:
    """Switches on what makes a step fit into the free memory, the cheapest first.

    First the UNet's gradient checkpointing, if the gradient goes through the UNet; then CLIP looks at fewer pictures
    at a time, each computed once more for the gradient. What is on stays on.

    Args:
        pipe (`BlendedDiffusionPipeline`): on its device.
        settings ([`EditSettings`]): with the model's defaults filled in.
        batch_size (`int`): how many pictures are made together.

    Returns:
        `str`, *optional*: what was done and why, if anything.
    """
    gradient = None if settings.prompt == "" else settings.guidance_gradient
    # each region is seen by itself
    copies = max(settings.num_augmentations or 0, 1) * len(settings.region_prompts or [settings.prompt])
    free = free_memory(pipe._execution_device)
    if at_most(pipe, batch_size, copies, gradient) <= free:
        return None
    begun = saving = MemorySaving.of(pipe)
    first = needed = count_step(pipe, batch_size, copies, gradient, saving)
    left = _savings_after(begun, batch_size * copies, gradient)
    while needed > free and left:
        saving = left.pop(0)
        needed = count_step(pipe, batch_size, copies, gradient, saving)
    if saving == begun:
        return None
    saving.apply(pipe)
    note = f"A step needs {first / GIB:.3g} GiB and {free / GIB:.3g} are free: {saving} makes it {needed / GIB:.3g}."
    return note if needed <= free else f"{note} That is still too much; make fewer pictures at once (--batch_size)."


def _savings_after(begun: MemorySaving, total: int, gradient: str | None) -> list[MemorySaving]:
    """What saves more, the cheapest first. CLIP sees `total` pictures."""
    checkpointing = begun.gradient_checkpointing or gradient == "sample"
    savings = [MemorySaving(checkpointing, begun.clip_chunk_size)]
    size = begun.clip_chunk_size or total
    while gradient is not None and size > 1:
        size //= 2
        savings.append(MemorySaving(checkpointing, size))
    return [saving for saving in savings if saving != begun]
