"""What the networks learn by: guided-diffusion's hybrid loss for the UNet in pixels, the noise's error for the one in
latents, what an autoencoder should give back, and the contrastive loss for the CLIP."""

import math

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling


def linear_schedule() -> DDPMScheduler:
    """The diffusion of guided-diffusion: 1000 steps, linear betas, a learned variance between β̃ and β."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
    )


def scaled_linear_schedule() -> DDIMScheduler:
    """The diffusion of Stable Diffusion 1: 1000 steps, betas linear in their roots; the network predicts the noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        # the first step is at the noisiest timestep, which is what sampling starts from
        timestep_spacing="trailing",
        steps_offset=1,  # which "trailing" does not use and Stable Diffusion's pipelines insist on
    )


def draw_timesteps(count: int, focus: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Timesteps in 0…999, most of them in the middle, where shapes are decided: logit-normal (Esser et al. 2024)."""
    mean, width = focus
    share = compute_density_for_timestep_sampling(
        "logit_normal", count, logit_mean=mean, logit_std=width, device=generator.device, generator=generator
    )
    return (1000 * share).long().clamp(max=999)


class Diffusion(torch.nn.Module):
    """The numbers of a schedule that the loss needs, one for each timestep, in double precision."""

    def __init__(self, scheduler: DDPMScheduler | DDIMScheduler) -> None:
        super().__init__()
        alpha_bar = scheduler.alphas_cumprod.double()
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / alpha_bar_prev
        posterior = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
        numbers = {
            "alpha_bar": alpha_bar,
            # β̃ is 0 at the first timestep; guided-diffusion repeats the next one there
            "log_small": torch.cat([posterior[1:2], posterior[1:]]).log(),
            "log_large": beta.log(),
            "mean_clean": alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
            "mean_noisy": (alpha_bar / alpha_bar_prev).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        }
        for name, number in numbers.items():
            self.register_buffer(name, number, persistent=False)

    def at(self, name: str, timesteps: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)[timesteps].float().view(-1, 1, 1, 1)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε."""
        alpha_bar = self.at("alpha_bar", timesteps)
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    def clean_estimate(self, noisy: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x̂_0 = (x_t − √(1−ᾱ_t)·ε) / √ᾱ_t."""
        alpha_bar = self.at("alpha_bar", timesteps)
        return (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def noise_loss(
    diffusion: Diffusion,
    predicted: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_range: tuple[float, float] | None = None,
) -> torch.Tensor:
    """L_simple: the squared error of the predicted noise.

    Args:
        predicted, noise (`torch.Tensor` of shape `(B, C, H, W)`): ε̂ and ε.
        snr_range (`tuple[float, float]`, *optional*): weigh it as if the error of x̂_0 counted SNR times, the SNR kept
            within these bounds. The upper one is the γ of min-SNR (Hang et al. 2023). The lower one makes the noisiest
            timesteps count, where the colours of the whole picture are decided.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    simple = (predicted - noise).square().mean(dim=(1, 2, 3))
    if snr_range is None:
        return simple
    alpha_bar = diffusion.at("alpha_bar", timesteps).flatten()
    snr = alpha_bar / (1 - alpha_bar)
    return simple * snr.clamp(*snr_range) / snr


def hybrid_loss(
    diffusion: Diffusion,
    output: torch.Tensor,
    clean: torch.Tensor,
    noisy: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_range: tuple[float, float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_simple and L_vlb of Improved DDPM (eqs. 14–16), whose sum is L_hybrid. The latter teaches the variance alone.

    Args:
        output (`torch.Tensor` of shape `(B, 6, H, W)`): the predicted noise and the raw variance.
        clean, noisy, noise (`torch.Tensor` of shape `(B, 3, H, W)`): x_0, x_t and ε.
        snr_range (`tuple[float, float]`, *optional*): of L_simple; see [`noise_loss`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: each of shape `(B,)`; L_vlb in bits per dimension, × 1000 / 1000 steps.
    """
    predicted, raw_variance = output.float().chunk(2, dim=1)
    simple = noise_loss(diffusion, predicted, noise, timesteps, snr_range)

    # the mean is held fixed, so that this term does not disturb the prediction of the noise
    estimate = diffusion.clean_estimate(noisy, predicted.detach(), timesteps)
    log_small, log_large = diffusion.at("log_small", timesteps), diffusion.at("log_large", timesteps)
    fraction = (raw_variance + 1) / 2
    log_variance = fraction * log_large + (1 - fraction) * log_small

    def mean(start: torch.Tensor) -> torch.Tensor:
        return diffusion.at("mean_clean", timesteps) * start + diffusion.at("mean_noisy", timesteps) * noisy

    divergence = gaussian_divergence(mean(clean), log_small, mean(estimate), log_variance).mean(dim=(1, 2, 3))
    likelihood = discretized_likelihood(clean, mean(estimate), log_variance / 2).mean(dim=(1, 2, 3))
    bound = torch.where(timesteps == 0, -likelihood, divergence) / math.log(2)
    return simple, bound


def gaussian_divergence(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL(N₁ ‖ N₂) of two normal distributions, elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def discretized_likelihood(pixels: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log p of 8-bit `pixels` in [−1, 1] under a normal distribution cut into 256 bins (DDPM, eq. 13), in nats."""

    def below(value: torch.Tensor) -> torch.Tensor:
        # the released code's approximation of the normal distribution function
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    upper = below((pixels - mean + 1 / 255) * torch.exp(-log_scale))
    lower = below((pixels - mean - 1 / 255) * torch.exp(-log_scale))
    share = torch.where(pixels < -0.999, upper, torch.where(pixels > 0.999, 1 - lower, upper - lower))
    return share.clamp(min=1e-12).log()


def reconstruction_loss(decoded: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """How far a decoded picture is from the picture: L1 of the values and of their differences to the next pixels.

    Args:
        decoded, clean (`torch.Tensor` of shape `(B, C, H, W)`).

    Returns:
        `torch.Tensor` of shape `()`. The second part keeps edges sharp.
    """
    error = decoded - clean
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def contrastive_loss(similarity: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy where several captions may be true of a picture and the other way round.

    Args:
        similarity (`torch.Tensor` of shape `(P, C)`): scaled cosines of pictures and captions.
        true (`torch.Tensor` of shape `(P, C)`): [`training.captions.truth`]; at least one in every row.
    """

    def one_way(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
        positives = positives[used := positives.any(dim=1)].float()
        target = positives / positives.sum(dim=1, keepdim=True)
        return -(target * F.log_softmax(logits[used], dim=1)).sum(dim=1).mean()

    return (one_way(similarity, true) + one_way(similarity.T, true.T)) / 2
