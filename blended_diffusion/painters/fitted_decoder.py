"""An autoencoder's decoder fitted to one photo, so that what it gives back outside the mask is the photo.

Latents hold a photo only roughly: decoded, it is a little off everywhere, and at the mask's edge that is a seam.
Avrahami et al. 2023 ("Blended Latent Diffusion") fit the decoder's weights for each picture. What belongs here is that
fit; the exact paste comes after it all the same.
"""

import copy

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F


# of the paper's own code: Adam steps, their rate, and how much more the background counts than the painting
STEPS, LEARNING_RATE, BACKGROUND_WEIGHT = 75, 1e-4, 100.0


def decode_fitted(
    vae: AutoencoderKL, latents: torch.Tensor, photo: torch.Tensor, mask: torch.Tensor, num_steps: int = STEPS
) -> torch.Tensor:
    """Decodes each latent by a decoder of its own that was fitted to the photo.

    It minimises ‖(D(z) − D₀(z))·m‖² + λ‖(D(z) − x)·(1 − m)‖² over the weights of the decoder D, which begins as the
    given one D₀.

    Args:
        vae (`AutoencoderKL`): left as it is.
        latents (`torch.Tensor` of shape `(B, C, h, w)`): as the decoder takes them.
        photo (`torch.Tensor` of shape `(3, H, W)`): x, in [-1, 1].
        mask (`torch.Tensor` of shape `(1, H, W)`): m, 1 where the picture was painted.
        num_steps (`int`): of Adam.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`, fp32, about in [-1, 1].
    """
    pictures = []
    with torch.inference_mode(False), torch.enable_grad():
        photo, mask = photo.float().clone(), mask.float().clone()
        for latent in latents.detach().float().clone():
            decoder = copy.deepcopy(torch.nn.ModuleList([vae.post_quant_conv or torch.nn.Identity(), vae.decoder]))
            decoder = decoder.float().requires_grad_(True)

            def decoded(latent: torch.Tensor, decoder: torch.nn.ModuleList = decoder) -> torch.Tensor:
                return decoder[1](decoder[0](latent[None]))[0]

            with torch.no_grad():
                painted = decoded(latent)
            optimizer = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
            for _ in range(num_steps):
                picture = decoded(latent)
                inside = F.mse_loss(picture * mask, painted * mask)
                outside = F.mse_loss(picture * (1 - mask), photo * (1 - mask))
                optimizer.zero_grad()
                (inside + BACKGROUND_WEIGHT * outside).backward()
                optimizer.step()
            with torch.no_grad():
                pictures.append(decoded(latent))
    return torch.stack(pictures)
