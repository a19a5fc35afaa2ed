"""A guided-diffusion network said with diffusers' own `UNet2DModel` and `DDPMScheduler`: configs and the weights' map.

Belongs here: where every number of one layout lies in the other, once, for both directions. Does not: files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .architecture import Architecture


# ---------------------------------------------------------------------------------------------------------------------
# The map's entries: one tensor of guided-diffusion each, one or several of the UNet
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """
    A tensor of the UNet as a selection from a tensor of guided-diffusion.

    Args:
        rows, columns (`torch.Tensor`, *optional*):
            For every index of the UNet tensor's first and second axis the index it comes from, -1 for zeros; `None`
            where the axes are the same.
        scale (`float`): Factor of the values.
        ndim (`int`, *optional*): Number of axes, where it is less than guided-diffusion's (1×1 convolutions).
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    scale: float = 1.0
    ndim: int | None = None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        for axis, source in enumerate((self.rows, self.columns)):
            if source is not None:
                taken = tensor.index_select(axis, source.clamp(min=0))
                tensor = taken if (source >= 0).all() else taken.index_fill_(axis, (source < 0).nonzero()[:, 0], 0)
        tensor = tensor if self.scale == 1.0 else tensor * self.scale
        return tensor if self.ndim is None else tensor.reshape(tensor.shape[: self.ndim])

    def put(self, tensor: torch.Tensor, into: torch.Tensor) -> None:
        """Writes the UNet's `tensor` to where it comes from in guided-diffusion's `into`."""
        tensor = tensor.reshape(tensor.shape + (1,) * (into.ndim - tensor.ndim))
        tensor = tensor if self.scale == 1.0 else tensor / self.scale
        index: list[Any] = [slice(None), slice(None)][: into.ndim]
        for axis, source in enumerate((self.rows, self.columns)):
            if source is not None:
                tensor = tensor.index_select(axis, (source >= 0).nonzero()[:, 0])
                index[axis] = source[source >= 0]
        if self.rows is not None and self.columns is not None:
            index[0] = index[0][:, None]
        into[tuple(index)] = tensor


@dataclass(frozen=True)
class KeyEntry:
    """
    A tensor of guided-diffusion and the tensors of the UNet that hold it.

    Args:
        name (`str`): Its key in guided-diffusion's state dict.
        shape (`tuple[int, ...]`): Its shape there.
        parts (`dict[str, Part]`): The UNet's keys.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, Part]

    def to_unet(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """The UNet's tensor `key`."""
        return self.parts[key].take(tensor)

    def to_guided_diffusion(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        guided-diffusion's tensor from those of the UNet, by key.

        Raises:
            `ValueError`: If a repeated channel or a padding zero, which guided-diffusion does not have, has changed.
        """
        joined = next(iter(tensors.values())).new_empty(self.shape)
        for key, part in self.parts.items():
            part.put(tensors[key], joined)
        for key, part in self.parts.items():
            tolerance = 4 * torch.finfo(joined.dtype).eps if part.scale != 1.0 else 0.0
            if not torch.allclose(part.take(joined), tensors[key], rtol=tolerance, atol=0.0):
                raise ValueError(
                    f"{key} has been trained in places that guided-diffusion's network does not have (repeated or"
                    " padded channels); this UNet cannot be written back."
                )
        return joined


@dataclass(frozen=True)
class FoldedSinusoid:
    """
    The first timestep layer of a network whose sinusoid is wider than its first level.

    `UNet2DModel` ties the two widths unless the embedding is a table. Over the integers the sinusoid's table `T` has
    a numerical rank far below its width, so `T = A·Vᵀ` with as few columns as the first level has: `A` is the table,
    and the layer's weight `W` becomes `W·V`, since `W·Tᵀ = (W·V)·Aᵀ`.
    """

    name: str
    shape: tuple[int, ...]
    steps: int
    width: int

    @property
    def parts(self) -> tuple[str, str]:
        return "time_proj.weight", "time_embedding.linear_1.weight"

    def to_unet(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        left, values, right = _sinusoid_svd(self.shape[1], self.steps)
        if key == "time_proj.weight":
            return (left * values)[:, : self.width].to(tensor.dtype)
        return (tensor.double() @ right[:, : self.width]).to(tensor.dtype)

    def to_guided_diffusion(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Raises:
            `ValueError`: If the table is no longer a sinusoid's.
        """
        table, weight = (tensors[key] for key in self.parts)
        # The decomposition is not unique across machines, so the weight is solved for, from what the layer gives.
        # Directions the sinusoid hardly has would only blow up the table's own rounding.
        left, values, right = _sinusoid_svd(self.shape[1], self.steps)
        output = table.double() @ weight.double().T
        rounding = torch.finfo(table.dtype).eps * table.abs().max().item()
        kept = values > 10 * rounding
        solution = right[:, kept] @ ((left[:, kept].T @ output) / values[kept, None])
        error = (_sinusoid(self.shape[1], self.steps).double() @ solution - output).abs().max().item()
        if error > 100 * rounding:
            raise ValueError(
                f"time_proj.weight has been trained (its output is {error:.1e} away from any sinusoid's), and"
                " guided-diffusion has no trainable timestep table; this UNet cannot be written back."
            )
        return solution.T.to(weight.dtype)


def _sinusoid(width: int, steps: int) -> torch.Tensor:
    """guided-diffusion's timestep embedding of 0…steps-1, shape `(steps, width)`, with its rounding in fp32."""
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(torch.arange(steps), width, flip_sin_to_cos=True, downscale_freq_shift=0)


@lru_cache(maxsize=4)
def _sinusoid_svd(width: int, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(_sinusoid(width, steps).double(), full_matrices=False)
    return left, values, right.T


def _folds(width: int, steps: int, into: int) -> bool:
    """Whether the sinusoid fits a table of `into` columns without loss."""
    left, values, right = _sinusoid_svd(width, steps)
    folded = (left * values)[:, :into] @ right[:, :into].T
    return (folded - _sinusoid(width, steps)).abs().max().item() <= 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# What UNet2DModel cannot say directly
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache
def duplication(architecture: Architecture) -> int:
    """
    How often every channel has to be repeated for `UNet2DModel` to hold the network exactly; 1 for nearly all.

    `UNet2DModel` has one head width for all levels. With `num_heads` fixed, head widths differ from level to level
    (128, 192 and 256 in the published 128×128 checkpoint), which no head width says. Repeated channels leave every
    group norm as it is, and make room in each level for `num_heads` heads of the largest width, padded with zeros.
    """
    times = 1
    while not (_heads_fit(architecture, times) and _timestep_fits(architecture, times)):
        times += 1
    return times


def _heads_fit(architecture: Architecture, times: int) -> bool:
    if architecture.num_head_channels != -1 or (architecture.num_heads == 1 and times == 1):
        return True
    head = architecture.head_channels(architecture.attention_widths[-1])
    return all(times * width // head >= architecture.num_heads for width in architecture.attention_widths)


def _timestep_fits(architecture: Architecture, times: int) -> bool:
    width = times * architecture.widths[0]
    return width % architecture.num_channels == 0 or _folds(
        architecture.num_channels, architecture.diffusion_steps, width
    )


def _attention_head_dim(architecture: Architecture) -> int | None:
    """`UNet2DModel`'s head width; `None` is one head everywhere."""
    if architecture.num_head_channels == -1 and architecture.num_heads == 1 and duplication(architecture) == 1:
        return None
    return architecture.head_channels(architecture.attention_widths[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Configs
# ---------------------------------------------------------------------------------------------------------------------


def unet_config(architecture: Architecture) -> dict[str, Any]:
    """The `UNet2DModel` config that computes what guided-diffusion's network computes."""
    times = duplication(architecture)
    widths = [times * width for width in architecture.widths]
    kind = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet")
    if not architecture.resblock_updown:
        kind = ("DownBlock2D", "UpBlock2D", "conv")
    plain_down, plain_up, resample = kind
    levels = range(len(widths))
    attention = architecture.attention_levels
    config: dict[str, Any] = {
        "sample_size": architecture.image_size,
        "in_channels": 3,
        "out_channels": 6 if architecture.learn_sigma else 3,
        "block_out_channels": widths,
        "layers_per_block": architecture.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if level in attention else plain_down for level in levels],
        "up_block_types": ["AttnUpBlock2D" if level in attention else plain_up for level in reversed(levels)],
        "downsample_type": resample,
        "upsample_type": resample,
        "resnet_time_scale_shift": "scale_shift" if architecture.use_scale_shift_norm else "default",
        "attention_head_dim": _attention_head_dim(architecture),
        "attn_norm_num_groups": 32,  # left out, the middle attention silently has no norm
        "dropout": architecture.dropout,
        "time_embedding_type": "positional",
        "time_embedding_dim": architecture.time_embed_dim,
        "num_class_embeds": architecture.num_classes if architecture.class_cond else None,
    }
    if widths[0] % architecture.num_channels:
        config |= {"time_embedding_type": "learned", "num_train_timesteps": architecture.diffusion_steps}
    return config


def scheduler_config(architecture: Architecture) -> dict[str, Any]:
    """The `DDPMScheduler` config with guided-diffusion's betas, variance and respaced timesteps."""
    config: dict[str, Any] = {
        "num_train_timesteps": architecture.diffusion_steps,
        "variance_type": "learned_range" if architecture.learn_sigma else "fixed_large",
        "clip_sample": False,
        "timestep_spacing": "linspace",
    }
    if architecture.noise_schedule == "cosine":
        return config | {"beta_schedule": "squaredcos_cap_v2"}
    scale = 1000 / architecture.diffusion_steps
    return config | {"beta_schedule": "linear", "beta_start": scale * 0.0001, "beta_end": scale * 0.02}


# ---------------------------------------------------------------------------------------------------------------------
# The map
# ---------------------------------------------------------------------------------------------------------------------


def key_map(architecture: Architecture) -> tuple[KeyEntry | FoldedSinusoid, ...]:
    """Every tensor of the guided-diffusion state dict with the `UNet2DModel` tensors that hold it."""
    return tuple(_Walk(architecture).entries())


class _Walk:
    """Walks through both networks in guided-diffusion's order."""

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self.times = duplication(architecture)

    def repeated(self, count: int) -> torch.Tensor | None:
        """Outputs: each channel, repeated."""
        return None if self.times == 1 else torch.arange(count).repeat_interleave(self.times)

    def first_of(self, count: int, times: int | None = None) -> torch.Tensor | None:
        """Inputs: the first of each channel's copies, nothing of the others."""
        times = times or self.times
        if times == 1:
            return None
        source = torch.full((count * times,), -1)
        source[::times] = torch.arange(count)
        return source

    def layer(
        self,
        name: str,
        key: str,
        outputs: int,
        inputs: int,
        kernel: int | None = None,
        wide: tuple[bool, bool] = (True, True),
    ) -> list[KeyEntry]:
        """A convolution or, without `kernel`, a linear layer; `wide` tells which of its sides are channels."""
        rows = self.repeated(outputs) if wide[0] else None
        columns = self.first_of(inputs) if wide[1] else None
        shape = (outputs, inputs) if kernel is None else (outputs, inputs, kernel, kernel)
        return [
            KeyEntry(f"{name}.weight", shape, {f"{key}.weight": Part(rows, columns)}),
            KeyEntry(f"{name}.bias", (outputs,), {f"{key}.bias": Part(rows)}),
        ]

    def norm(self, name: str, key: str, channels: int) -> list[KeyEntry]:
        rows = self.repeated(channels)
        return [KeyEntry(f"{name}.{kind}", (channels,), {f"{key}.{kind}": Part(rows)}) for kind in ("weight", "bias")]

    def entries(self) -> list[KeyEntry | FoldedSinusoid]:
        arch = self.architecture
        blocks_per_level = arch.num_res_blocks + 1
        last = len(arch.widths) - 1
        entries = self.embeddings()
        entries += self.layer("input_blocks.0.0", "conv_in", arch.widths[0], 3, 3, wide=(True, False))

        width = arch.widths[0]
        skips = [width]
        for level, level_width in enumerate(arch.widths):
            down = f"down_blocks.{level}"
            for index in range(arch.num_res_blocks):
                name = f"input_blocks.{1 + level * blocks_per_level + index}"
                entries += self.res_block(f"{name}.0", f"{down}.resnets.{index}", width, level_width)
                if level in arch.attention_levels:
                    entries += self.attention(f"{name}.1", f"{down}.attentions.{index}", level_width)
                width = level_width
                skips.append(width)
            if level < last:
                name = f"input_blocks.{(level + 1) * blocks_per_level}.0"
                entries += self.resample(f"{name}", f"{name}.op", f"{down}.downsamplers.0", width)
                skips.append(width)

        entries += self.res_block("middle_block.0", "mid_block.resnets.0", width, width)
        entries += self.attention("middle_block.1", "mid_block.attentions.0", width)
        entries += self.res_block("middle_block.2", "mid_block.resnets.1", width, width)

        for step, level in enumerate(range(last, -1, -1)):
            up = f"up_blocks.{step}"
            for index in range(blocks_per_level):
                name = f"output_blocks.{step * blocks_per_level + index}"
                level_width = arch.widths[level]
                entries += self.res_block(f"{name}.0", f"{up}.resnets.{index}", width + skips.pop(), level_width)
                width = level_width
                if level in arch.attention_levels:
                    entries += self.attention(f"{name}.1", f"{up}.attentions.{index}", width)
            if level > 0:
                name = f"{name}.{2 if level in arch.attention_levels else 1}"
                entries += self.resample(name, f"{name}.conv", f"{up}.upsamplers.0", width)

        entries += self.norm("out.0", "conv_norm_out", width)
        entries += self.layer("out.2", "conv_out", 6 if arch.learn_sigma else 3, width, 3, wide=(False, True))
        return entries

    def embeddings(self) -> list[KeyEntry | FoldedSinusoid]:
        arch = self.architecture
        inner, sinusoid = arch.time_embed_dim, arch.num_channels
        unfolded, second = self.layer("time_embed.0", "time_embedding.linear_1", inner, sinusoid, wide=(False, False))
        ratio, rest = divmod(self.times * arch.widths[0], sinusoid)
        first: KeyEntry | FoldedSinusoid
        if rest:
            first = FoldedSinusoid(unfolded.name, unfolded.shape, arch.diffusion_steps, self.times * arch.widths[0])
        else:
            # a sinusoid `ratio` times as wide has the narrower one's frequencies at every `ratio`-th place
            first = KeyEntry(
                unfolded.name,
                unfolded.shape,
                {key: Part(None, self.first_of(sinusoid, ratio)) for key in unfolded.parts},
            )
        entries: list[KeyEntry | FoldedSinusoid] = [first, second]
        entries += self.layer("time_embed.2", "time_embedding.linear_2", inner, inner, wide=(False, False))
        if arch.class_cond:
            entries.append(KeyEntry("label_emb.weight", (arch.num_classes, inner), {"class_embedding.weight": Part()}))
        return entries

    def res_block(self, name: str, key: str, inputs: int, outputs: int) -> list[KeyEntry]:
        arch = self.architecture
        projected = 2 * outputs if arch.use_scale_shift_norm else outputs
        entries = [
            *self.norm(f"{name}.in_layers.0", f"{key}.norm1", inputs),
            *self.layer(f"{name}.in_layers.2", f"{key}.conv1", outputs, inputs, 3),
            *self.layer(
                f"{name}.emb_layers.1", f"{key}.time_emb_proj", projected, arch.time_embed_dim, wide=(True, False)
            ),
            *self.norm(f"{name}.out_layers.0", f"{key}.norm2", outputs),
            *self.layer(f"{name}.out_layers.3", f"{key}.conv2", outputs, outputs, 3),
        ]
        if inputs != outputs:
            entries += self.layer(f"{name}.skip_connection", f"{key}.conv_shortcut", outputs, inputs, 1)
        return entries

    def resample(self, block: str, convolution: str, key: str, width: int) -> list[KeyEntry]:
        if self.architecture.resblock_updown:
            return self.res_block(block, key, width, width)
        return self.layer(convolution, f"{key}.conv", width, width, 3)

    def attention(self, name: str, key: str, width: int) -> list[KeyEntry]:
        arch = self.architecture
        head = arch.head_channels(width)
        heads = width // head
        # the UNet's heads: at least as many and as wide; what they have beyond is zero
        unet_head = _attention_head_dim(arch) or width
        unet_heads = self.times * width // unet_head
        places = torch.full((unet_heads, unet_head), -1)
        places[:heads, :head] = torch.arange(width).reshape(heads, head)
        places = places.flatten()

        weights, biases = {}, {}
        for index, projection in enumerate(("to_q", "to_k", "to_v")):
            # qkv's rows run (3, heads, head) in the new order and (heads, 3, head) in the legacy one
            rows = index * width + places
            if not arch.use_new_attention_order:
                rows = (places // head * 3 + index) * head + places % head
            rows = rows.where(places >= 0, -1)
            # attention divides by the root of the head width, the padded one in the UNet
            scale = (unet_head / head) ** 0.5 if projection == "to_q" else 1.0
            weights[f"{key}.{projection}.weight"] = Part(rows, self.first_of(width), scale, ndim=2)
            biases[f"{key}.{projection}.bias"] = Part(rows, scale=scale)
        columns = None if unet_heads * unet_head == width else places
        return [
            *self.norm(f"{name}.norm", f"{key}.group_norm", width),
            KeyEntry(f"{name}.qkv.weight", (3 * width, width, 1), weights),
            KeyEntry(f"{name}.qkv.bias", (3 * width,), biases),
            KeyEntry(
                f"{name}.proj_out.weight",
                (width, width, 1),
                {f"{key}.to_out.0.weight": Part(self.repeated(width), columns, ndim=2)},
            ),
            KeyEntry(f"{name}.proj_out.bias", (width,), {f"{key}.to_out.0.bias": Part(self.repeated(width))}),
        ]
