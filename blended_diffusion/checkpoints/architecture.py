"""What a guided-diffusion network is: its flags, and reading them off a state dict.

Belongs here: guided-diffusion's own names and rules. Does not: anything of diffusers, and anything that needs torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

# What no state dict tells and what is taken for it when nobody says; each is reported by `convert`.
ASSUMED = {"use_new_attention_order": False, "noise_schedule": "linear", "diffusion_steps": 1000, "dropout": 0.0}

NOISE_SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True)
class Architecture:
    """
    A guided-diffusion UNet and its noise schedule, under guided-diffusion's own flag names.

    Args:
        image_size (`int`): Side of the square pictures it was trained on.
        num_channels (`int`): Base width.
        num_res_blocks (`int`): Residual blocks of a level.
        channel_mult (`tuple[float, ...]`): Width of each level as a multiple of `num_channels`.
        attention_resolutions (`tuple[int, ...]`): Sides, in pixels, of the levels that have attention.
        num_heads (`int`): Attention heads of every attention layer; ignored where `num_head_channels` is given.
        num_head_channels (`int`): Width of an attention head, -1 for "as `num_heads` says".
        use_new_attention_order (`bool`): `qkv` rows run (3, heads, head width) if true, (heads, 3, head width) if not.
        use_scale_shift_norm (`bool`): The timestep scales and shifts the second norm (true) or is added before it.
        resblock_updown (`bool`): Residual blocks change the resolution (true) or plain convolutions do.
        learn_sigma (`bool`): Six output channels, noise and variance (true), or three.
        class_cond (`bool`): Conditioned on a class.
        num_classes (`int`): Number of classes where `class_cond`; 1000 in all published checkpoints.
        dropout (`float`): Dropout it was trained with.
        diffusion_steps (`int`): Number of timesteps it was trained on.
        noise_schedule (`str`): `"linear"` or `"cosine"`.

    Raises:
        `ValueError`: If a value is out of range or attention widths cannot be divided into heads.
    """

    image_size: int
    num_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int = 4
    num_head_channels: int = -1
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    num_classes: int = 1000
    dropout: float = 0.0
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"

    def __post_init__(self) -> None:
        if self.noise_schedule not in NOISE_SCHEDULES:
            raise ValueError(f"noise_schedule={self.noise_schedule!r} is not known; use 'linear' or 'cosine'.")
        smallest = 2 ** (len(self.channel_mult) - 1)
        if self.image_size <= 0 or self.image_size % smallest:
            raise ValueError(
                f"image_size={self.image_size} does not fit a network of {len(self.channel_mult)} levels; use a"
                f" multiple of {smallest}."
            )
        if any(width % 32 or width == 0 for width in self.widths):
            raise ValueError(
                f"num_channels={self.num_channels} gives levels of {', '.join(map(str, self.widths))} channels;"
                " guided-diffusion's group norms need multiples of 32."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is out of range; use a number from 0 to less than 1.")
        if self.diffusion_steps < 1:
            raise ValueError(f"diffusion_steps={self.diffusion_steps} is out of range; use a positive number.")
        per_head, name = (
            (self.num_head_channels, "num_head_channels")
            if self.num_head_channels != -1
            else (self.num_heads, "num_heads")
        )
        for width in self.attention_widths:
            if per_head < 1 or width % per_head:
                raise ValueError(
                    f"{name}={per_head} does not divide the attention width {width}; use a positive divisor of"
                    f" {', '.join(map(str, self.attention_widths))}."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the largest resolution first."""
        return tuple(round(mult * self.num_channels) for mult in self.channel_mult)

    @property
    def attention_levels(self) -> frozenset[int]:
        """Indices of the levels that have attention."""
        factors = {self.image_size // resolution for resolution in self.attention_resolutions}
        return frozenset(level for level in range(len(self.channel_mult)) if 2**level in factors)

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """The different channel counts attention works on, the middle block's included, ascending."""
        return tuple(sorted({*(self.widths[level] for level in self.attention_levels), self.widths[-1]}))

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.num_channels

    def head_channels(self, width: int) -> int:
        """Width of one head of an attention layer of `width` channels."""
        return self.num_head_channels if self.num_head_channels != -1 else width // self.num_heads


FLAGS = frozenset(field.name for field in fields(Architecture)) - {"num_classes"}


def infer_architecture(
    state_dict: Mapping[str, "torch.Tensor"], flags: Mapping[str, Any] | None = None, preset: str | None = None
) -> Architecture:
    """
    Reads the architecture off a guided-diffusion state dict, with the flags for what a state dict cannot tell.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The tensors by name; only their shapes are looked at.
        flags (`Mapping[str, Any]`, *optional*):
            Fields of [`Architecture`]. `image_size` and one of `num_heads` and `num_head_channels` are needed;
            `use_new_attention_order`, `noise_schedule`, `diffusion_steps` and `dropout` default to [`ASSUMED`]; what
            the state dict does tell is checked against the flag.
        preset (`str`, *optional*):
            Name of the preset the flags come from, for messages.

    Returns:
        [`Architecture`]

    Raises:
        `ValueError`: If it is another kind of network, if a needed flag is missing or if a flag contradicts it.
    """
    flags = dict(flags or {})
    unknown = sorted(flags.keys() - FLAGS)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no architecture flag; use one of {', '.join(sorted(FLAGS))}.")
    told = _told_by({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    origin = f" of the preset {preset!r}" if preset else ""

    if "image_size" not in flags:
        raise ValueError("image_size cannot be read off a state dict; give the side the model was trained at.")
    if "num_heads" not in flags and flags.get("num_head_channels", -1) == -1:
        raise ValueError(
            "the number of attention heads cannot be read off a state dict; give num_heads or num_head_channels."
        )
    levels = told.pop("attention_levels")
    told["attention_resolutions"] = tuple(flags["image_size"] // 2**level for level in levels)
    if "attention_resolutions" in flags:
        # the order is free, and so are resolutions the network does not have
        reached = {flags["image_size"] // 2**level for level in range(len(told["channel_mult"]))}
        flags["attention_resolutions"] = tuple(
            sorted(reached.intersection(flags["attention_resolutions"]), reverse=True)
        )
    for name, value in told.items():
        if name in flags and flags[name] != value:
            raise ValueError(f"{name}={flags[name]}{origin} contradicts the checkpoint, whose tensors say {value}.")
    return Architecture(**{**ASSUMED, **flags, **told})


def _told_by(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The fields that shapes alone decide, with `attention_levels` in place of `attention_resolutions`."""
    depths = [int(match[1]) for key in shapes if (match := re.match(r"output_blocks\.(\d+)\.", key))]
    if "input_blocks.0.0.weight" in shapes and not depths:
        raise ValueError(
            "this is a guided-diffusion classifier; a diffusion model, which has output_blocks, is needed."
        )

    def shape(key: str, ndim: int) -> Sequence[int]:
        if key not in shapes or len(shapes[key]) != ndim or 0 in shapes[key]:
            found = ", ".join(list(shapes)[:3]) or "no tensor"
            raise ValueError(
                f"this is no guided-diffusion UNet: it lacks a {ndim}-dimensional {key!r}; found {found} and so on,"
                f" {len(shapes)} in all; expected time_embed.*, input_blocks.*, middle_block.*, output_blocks.*, out.*"
            )
        return shapes[key]

    num_channels = shape("time_embed.0.weight", 2)[1]
    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    if in_channels != 3:
        raise ValueError(
            f"this network takes {in_channels} channels; one that takes 3 is needed, so guided-diffusion's upsamplers"
            " cannot be used."
        )
    # the last block of every level but the topmost ends in an upsampler: a plain convolution or another residual block
    ends = ("1.conv.weight", "2.conv.weight", "1.in_layers.0.weight", "2.in_layers.0.weight")
    depth = max(depths) + 1
    per_level = next(
        (index + 1 for index in range(depth) if any(f"output_blocks.{index}.{end}" in shapes for end in ends)), depth
    )
    if depth % per_level or per_level < 2:
        raise ValueError(
            f"this is no guided-diffusion UNet: its {depth} output_blocks cannot be divided into levels of"
            f" {per_level}."
        )
    firsts = [f"input_blocks.{1 + start}" for start in range(0, depth, per_level)]
    widths = [shape(f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    multiples = [width / num_channels for width in widths]
    told = {
        "num_channels": num_channels,
        "num_res_blocks": per_level - 1,
        "channel_mult": tuple(int(mult) if mult == int(mult) else mult for mult in multiples),
        "attention_levels": tuple(level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes),
        "use_scale_shift_norm": shape(f"{firsts[0]}.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
        "learn_sigma": shape("out.2.weight", 4)[0] == 6,
        "class_cond": "label_emb.weight" in shapes,
    }
    if told["class_cond"]:
        told["num_classes"] = shape("label_emb.weight", 2)[0]
    if len(firsts) > 1:  # a single level has nothing that goes up or down
        told["resblock_updown"] = f"input_blocks.{per_level}.0.op.weight" not in shapes
    return told
