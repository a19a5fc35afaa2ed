"""The released editor's step, on guided-diffusion's own network and sampler, for comparison.

What belongs here is the other side of the benchmarks: the package `guided-diffusion-sdk` and what the released code
does with it. It calls the network twice a step, once for the step and once, with gradients, for the guidance.
"""

import warnings

import torch
import torch.nn.functional as F

from blended_diffusion.checkpoints import Architecture
from pipeline_blended_diffusion import (
    NUM_WARP_PARAMETERS,
    BlendedDiffusionPipeline,
    range_penalty,
    spherical_distance,
    uniform,
    warp,
)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from guided_diffusion import gaussian_diffusion, respace, unet


def reference_network(architecture: Architecture) -> torch.nn.Module:
    """guided-diffusion's network, as it is made before training, frozen."""
    return (
        unet.UNetModel(
            image_size=architecture.image_size,
            in_channels=3,
            model_channels=architecture.num_channels,
            out_channels=6 if architecture.learn_sigma else 3,
            num_res_blocks=architecture.num_res_blocks,
            attention_resolutions=[architecture.image_size // side for side in architecture.attention_resolutions],
            dropout=architecture.dropout,
            channel_mult=architecture.channel_mult,
            num_classes=architecture.num_classes if architecture.class_cond else None,
            num_heads=architecture.num_heads,
            num_head_channels=architecture.num_head_channels,
            use_scale_shift_norm=architecture.use_scale_shift_norm,
            resblock_updown=architecture.resblock_updown,
            use_new_attention_order=architecture.use_new_attention_order,
        )
        .eval()
        .requires_grad_(False)
    )


class ReleasedStep:
    """One guided step of the released editor after the other, with the weights of a pipeline's CLIP.

    Args:
        network (`torch.nn.Module`): of [`reference_network`].
        pipe ([`BlendedDiffusionPipeline`]): whose CLIP guides.
        prompt (`str`), image (`torch.Tensor` of shape `(B, 3, H, W)`, in [−1, 1]), mask (`(B, 1, H, W)`): the edit.
        num_augmentations (`int`): copies that CLIP sees, one of them plain.
        clip_guidance_scale, range_guidance_scale (`float`): as released.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        pipe: BlendedDiffusionPipeline,
        prompt: str,
        image: torch.Tensor,
        mask: torch.Tensor,
        num_augmentations: int = 8,
        clip_guidance_scale: float = 1000.0,
        range_guidance_scale: float = 50.0,
    ) -> None:
        self.network, self.pipe, self.image, self.mask = network, pipe, image, mask
        self.scales, self.num_warps = (clip_guidance_scale, range_guidance_scale), num_augmentations - 1
        self.generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.text_embeds = pipe.encode_prompt([prompt])
        self.diffusion = respace.SpacedDiffusion(
            use_timesteps=respace.space_timesteps(1000, [100]),
            betas=gaussian_diffusion.get_named_beta_schedule("linear", 1000),
            model_mean_type=gaussian_diffusion.ModelMeanType.EPSILON,
            model_var_type=gaussian_diffusion.ModelVarType.LEARNED_RANGE,
            loss_type=gaussian_diffusion.LossType.MSE,
        )

    def guide(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """−∇ of the losses with respect to x_t, by a forward pass of its own."""
        index = self.index
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self.diffusion.p_mean_variance(self.network, x, index, clip_denoised=False, model_kwargs={})
            share = float(self.diffusion.sqrt_one_minus_alphas_cumprod[index[0].item()])
            seen = (share * out["pred_xstart"] + (1 - share) * x) * self.mask
            plain = F.adaptive_avg_pool2d(seen, self.pipe.clip_size)
            warps = uniform(self.generator, (len(x), self.num_warps, NUM_WARP_PARAMETERS), x.device)
            copies = [plain] + [warp(plain, warps[:, number]) for number in range(self.num_warps)]
            embeds = self.pipe.clip_embed(torch.cat(copies).add(1).div(2)).unflatten(0, (len(copies), -1))
            clip_scale, range_scale = self.scales
            loss = clip_scale * spherical_distance(embeds, self.text_embeds).mean(dim=0).sum()
            loss = loss + range_scale * range_penalty(out["pred_xstart"]).sum()
            return -torch.autograd.grad(loss, x)[0]

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """x_t at step `index` (99 first, 0 last) → the blended next sample."""
        self.index = torch.full((len(x),), index, device=x.device)
        out = self.diffusion.p_sample(
            self.network, x, self.index, clip_denoised=False, cond_fn=self.guide, model_kwargs={}
        )
        background = self.diffusion.q_sample(self.image, self.index)
        return out["sample"] * self.mask + background * (1 - self.mask)
