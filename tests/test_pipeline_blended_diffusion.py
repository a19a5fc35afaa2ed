import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import UserCpuOffloadHook
from conftest import quick_first
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image
from tiny import TOLERANCES, assert_close, make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer, tiny_unet
from torch.autograd import gradcheck
from transformers import CLIPConfig, CLIPModel

import pipeline_blended_diffusion
import pipeline_blended_diffusion as method
from pipeline_blended_diffusion import BlendedDiffusionPipeline


SCHEDULERS = [
    DDPMScheduler,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def as_tensor(image: Image.Image) -> torch.Tensor:
    return method.to_tensor(image)


# --- the formulas ----------------------------------------------------------------------------------------------------


def test_spherical_distance_is_half_the_squared_angle():
    for degrees in (0, 1, 45, 90, 179):
        angle = torch.tensor(float(degrees)).deg2rad()
        u, v = torch.tensor([3.0, 0.0]), torch.stack([angle.cos(), angle.sin()])
        assert_close(method.spherical_distance(u, v), angle**2 / 2)


def test_spherical_distance_of_opposite_vectors_has_a_finite_gradient():
    u = torch.tensor([1.0, 0.0], requires_grad=True)
    method.spherical_distance(u, -u.detach()).backward()
    assert u.grad.isfinite().all()


def test_range_penalty_counts_only_what_is_outside():
    inside = torch.full((1, 3, 2, 2), 0.9)
    assert method.range_penalty(inside) == 0
    assert_close(method.range_penalty(inside + 0.6), torch.tensor([0.25]))


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: method.spherical_distance(x.flatten(1), double(3, 48).roll(1, 0)),
        method.range_penalty,
        lambda x: method.background_mse(x, double(3, 3, 4, 4).roll(1, 0)),
        lambda x: method.warp(x, torch.rand(3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3))),
    ],
    ids=["spherical_distance", "range_penalty", "background_mse", "warp"],
)
def test_gradients(loss):
    assert gradcheck(loss, (2 * double(3, 3, 4, 4)).requires_grad_())


def warp_parameters(**values: float) -> torch.Tensor:
    """Nothing is done, except for what `values` say."""
    names = ["affine", "angle", "right", "down", "perspective"] + [f"corner_{i}" for i in range(8)]
    neutral = {"affine": 1.0, "angle": 0.5, "right": 0.5, "down": 0.5, "perspective": 1.0}
    return torch.tensor([[{**neutral, **values}.get(name, 0.0) for name in names]])


def test_warp_leaves_alone_what_is_not_chosen():
    images = torch.rand(1, 3, 20, 20)
    assert torch.equal(method.warp(images, warp_parameters()), images)


def test_warp_shifts_by_a_tenth_and_repeats_the_edge():
    images = torch.rand(1, 3, 20, 20)
    moved = method.warp(images, warp_parameters(affine=0.0, right=1.0))
    assert_close(moved[..., 2:], images[..., :-2])
    assert_close(moved[..., :2], images[..., :1].expand(-1, -1, -1, 2))


def test_warp_rotates_by_at_most_fifteen_degrees():
    images = torch.zeros(1, 1, 41, 41)
    images[..., 20, 36] = 1.0  # 16 pixels right of the centre
    turned = method.warp(images, warp_parameters(affine=0.0, angle=1.0))[0, 0]
    row, column = divmod(turned.argmax().item(), 41)
    found = np.degrees(np.arctan2(20 - row, column - 20))
    assert abs(abs(found) - 15) < 3


def test_warp_perspective_pulls_a_corner_in_and_leaves_grey():
    images = torch.ones(1, 3, 20, 20)
    tilted = method.warp(images, warp_parameters(perspective=0.0, corner_0=1.0, corner_1=1.0))
    assert (tilted[..., 0, 0] == 0).all()
    assert_close(tilted[..., -2, -2], torch.ones(1, 3))


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_noise_level_agrees_with_the_scheduler(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[3]
    image, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    sample = scheduler.add_noise(image, noise, timestep.expand(2))
    signal, level = method.noise_level(scheduler, timestep)
    assert_close(method.clean_estimate(sample, noise, signal, level), image)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("index", [0, 3])
def test_unguided_ddpm_step_is_the_schedulers_own(variance_type, index):
    pipe = make_tiny_pipe(scheduler=DDPMScheduler(variance_type=variance_type, clip_sample=False))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    t, prev_t = scheduler.timesteps[index], scheduler.timesteps[index + 1]
    sample, output = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4).tanh()
    expected_input = output if variance_type == "learned_range" else output[:, :3]
    expected = scheduler.step(expected_input, t, sample, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    estimate = method.clean_estimate(sample, output[:, :3], *method.noise_level(scheduler, t))
    prev_sample, _ = pipe.step(sample, t, prev_t, output[:, :3], output[:, 3:], estimate, None, noise, {})
    assert_close(prev_sample, expected.prev_sample)


def test_unguided_ddim_step_is_the_schedulers_own():
    pipe = make_tiny_pipe(scheduler=DDIMScheduler(clip_sample=False))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    t, prev_t = scheduler.timesteps[4], scheduler.timesteps[5]
    sample, noise_pred = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = scheduler.step(noise_pred, t, sample).prev_sample
    estimate = method.clean_estimate(sample, noise_pred, *method.noise_level(scheduler, t))
    prev_sample, _ = pipe.step(sample, t, prev_t, noise_pred, None, estimate, None, None, {})
    assert_close(prev_sample, expected)


def test_guided_step_shifts_the_mean_by_variance_times_gradient():
    pipe = make_tiny_pipe(scheduler=DDPMScheduler(variance_type="fixed_large", clip_sample=False))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    t, prev_t = scheduler.timesteps[2], scheduler.timesteps[3]
    sample, noise_pred, gradient = torch.randn(3, 1, 3, 4, 4)
    zero = torch.zeros_like(sample)
    estimate = method.clean_estimate(sample, noise_pred, *method.noise_level(scheduler, t))
    plain, _ = pipe.step(sample, t, prev_t, noise_pred, None, estimate, None, zero, {})
    guided, _ = pipe.step(sample, t, prev_t, noise_pred, None, estimate, gradient, zero, {})
    beta = 1 - scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[prev_t]
    assert_close(guided - plain, beta * gradient)


# --- the background --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, EulerDiscreteScheduler])
def test_background_is_unchanged_to_the_last_bit(photo, mask, output_type, scheduler_class):
    pipe = make_tiny_pipe(scheduler=scheduler_class())
    inside = np.asarray(mask) > 0
    image = {"pil": photo, "np": np.asarray(photo, dtype=np.float32) / 255, "pt": as_tensor(photo)}[output_type]
    result = pipe("rock", image, mask, output_type=output_type).images[0]
    if output_type == "pt":
        before, after = image.permute(1, 2, 0).numpy(), result.permute(1, 2, 0).numpy()
    else:
        before, after = np.asarray(image), np.asarray(result)
    assert np.array_equal(before[~inside], after[~inside])
    assert not np.array_equal(before[inside], after[inside])


def test_background_of_a_resized_photo_is_the_resized_photo(tiny_pipe, photo, mask):
    large, large_mask = photo.resize((40, 24)), mask.resize((40, 24))
    result = np.asarray(tiny_pipe("rock", large, large_mask).images[0])
    resized = np.asarray(large.resize((16, 16), Image.Resampling.LANCZOS))
    outside = np.asarray(large_mask.resize((16, 16), Image.Resampling.LANCZOS)) < 128
    assert result.shape == (16, 16, 3)
    assert np.array_equal(result[outside], resized[outside])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_padding_mask_crop_returns_the_photo_at_its_own_size(tiny_pipe, output_type):
    rng = np.random.default_rng(0)
    pixels = rng.random((50, 70, 3), dtype=np.float32)
    white = np.zeros((50, 70), dtype=np.float32)
    white[20:32, 30:44] = 1
    before = np.round(pixels * 255).astype(np.uint8) if output_type == "pil" else pixels
    image = Image.fromarray(before) if output_type == "pil" else pixels
    out = tiny_pipe("rock", image, white, padding_mask_crop=4, num_images_per_prompt=2, output_type=output_type)
    for picture in out.images:
        after = picture.permute(1, 2, 0).numpy() if output_type == "pt" else np.asarray(picture)
        assert after.shape == (50, 70, 3)
        assert np.array_equal(before[white == 0], after[white == 0])
        assert not np.array_equal(before[white == 1], after[white == 1])


def test_padding_mask_crop_works_on_the_crop(tiny_pipe):
    """A crop of exactly the network's size needs no resizing, so it equals the edit of the crop itself."""
    image, white = torch.rand(3, 40, 40), torch.zeros(40, 40)
    white[10:18, 12:20] = 1
    whole = tiny_pipe("rock", image, white, padding_mask_crop=4, generator=seeded(0), output_type="pt").images[0]
    # the network sees 8 bits of the crop
    window = torch.round(image[:, 6:22, 8:24] * 255) / 255
    part = tiny_pipe("rock", window, white[6:22, 8:24], generator=seeded(0), output_type="pt").images[0]
    inside = white[6:22, 8:24] == 1
    assert_close(whole[:, 6:22, 8:24][:, inside], part[:, inside])


@pytest.mark.parametrize("match_release", [False, True])
def test_the_background_is_noised_to_the_level_the_sample_has_reached(tiny_pipe, photo, mask, match_release):
    """q(x_{t−1} | x) with a draw for each picture; as released q(x_t | x) with one draw for all."""
    outside = as_tensor(mask)[0] == 0
    source = (2 * as_tensor(photo) - 1)[:, outside]
    levels = []

    def callback(pipe, step, timestep, callback_kwargs):
        following = [749, 500, 250, 0, None][step + (not match_release)]
        if following is not None:
            signal, noise = method.noise_level(pipe.scheduler, torch.tensor(following))
            levels.append((callback_kwargs["latents"][:, :, outside] - signal * source) / noise)
        return callback_kwargs

    tiny_pipe(
        "rock",
        photo,
        mask,
        num_images_per_prompt=2,
        generator=seeded(0, 1),
        match_release=match_release,
        callback_on_step_end=callback,
    )
    assert len(levels) == 3 + match_release
    for unit in levels[:3]:
        assert abs(unit.std() - 1) < 0.06
    first, second = levels[0]
    assert torch.equal(first, second) == match_release


def test_enforce_background_off_leaves_the_last_sample(tiny_pipe, photo, mask):
    """Without blending and pasting the background is the network's own."""
    result = tiny_pipe("rock", photo, mask, blend=False, enforce_background=False).images[0]
    outside = np.asarray(mask) == 0
    assert not np.array_equal(np.asarray(result)[outside], np.asarray(photo)[outside])


def test_grey_is_cut_at_a_half_unless_the_mask_is_soft(tiny_pipe, photo):
    grey = np.zeros((16, 16), dtype=np.float32)
    grey[4:8, 4:12], grey[8:12, 4:12] = 0.4, 0.6
    before = as_tensor(photo)
    hard = tiny_pipe("rock", photo, grey, output_type="pt", generator=seeded(0)).images[0]
    assert torch.equal(hard[:, grey < 0.5], before[:, grey < 0.5])
    soft = tiny_pipe("rock", photo, grey, output_type="pt", generator=seeded(0), soft_mask=True).images[0]
    assert torch.equal(soft[:, grey == 0], before[:, grey == 0])
    assert not torch.equal(soft[:, grey == 0.4], before[:, grey == 0.4])


def test_soft_paste_is_the_weighted_mean():
    source, result = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    assert_close(method.paste(source, result, torch.full((1, 1, 4, 4), 0.25)), 0.75 * source + 0.25 * result)


# --- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_picture_depends_on_its_own_generator_alone(tiny_pipe, photo, mask):
    def edit(*seeds: int) -> torch.Tensor:
        return tiny_pipe(
            "rock", photo, mask, num_images_per_prompt=len(seeds), generator=seeded(*seeds), output_type="pt"
        ).images

    alone = edit(7)[0]
    for seeds in [(7, 1, 2), (1, 7), (1, 2, 3, 7, 4)]:
        assert_close(edit(*seeds)[seeds.index(7)], alone)
    assert not torch.allclose(edit(8)[0], alone, atol=1e-2)


def test_several_prompts_and_photos_equal_one_after_another(tiny_pipe, photo, mask):
    photos = [photo, photo.rotate(90), photo.rotate(180)]
    together = tiny_pipe(
        ["rock", "cat", ""], photos, mask, num_images_per_prompt=2, generator=seeded(*range(6)), output_type="pt"
    )
    for i, prompt in enumerate(["rock", "cat", ""]):
        alone = tiny_pipe(
            prompt, photos[i], mask, num_images_per_prompt=2, generator=seeded(2 * i, 2 * i + 1), output_type="pt"
        )
        assert_close(together.images[2 * i : 2 * i + 2], alone.images)
        assert_close(together.clip_distances[2 * i : 2 * i + 2], alone.clip_distances)
        assert [index - 2 * i for index in together.ranking[2 * i : 2 * i + 2]] == alone.ranking


def test_a_single_generator_makes_the_same_first_pictures_whatever_the_number(tiny_pipe, photo, mask):
    def edit(number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return tiny_pipe(
            "rock", photo, mask, num_images_per_prompt=number, generator=generator, output_type="pt"
        ).images

    one, three = edit(1), edit(3)
    assert_close(three[:1], one)
    assert_close(edit(2), three[:2])
    assert_close(tiny_pipe("rock", photo, mask, generator=seeded(3), output_type="pt").images, one)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


def test_a_generator_that_moves_on_makes_other_pictures(tiny_pipe, photo, mask):
    generator = torch.Generator().manual_seed(3)
    first, second = (
        tiny_pipe("rock", photo, mask, num_images_per_prompt=2, generator=generator, output_type="pt").images
        for _ in range(2)
    )
    assert not torch.allclose(first[0], second[0], atol=1e-2)
    assert not torch.allclose(first[1], second[1], atol=1e-2)


def test_the_global_generator_is_used_only_without_a_generator(tiny_pipe, photo, mask):
    state = torch.get_rng_state()
    tiny_pipe("rock", photo, mask, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(11)
    first = tiny_pipe("rock", photo, mask, output_type="pt").images
    torch.manual_seed(11)
    assert torch.equal(tiny_pipe("rock", photo, mask, output_type="pt").images, first)


def test_latents_take_the_place_of_the_first_draw(tiny_pipe, photo, mask):
    generator = torch.Generator().manual_seed(0)
    drawn = tiny_pipe("rock", photo, mask, generator=torch.Generator().manual_seed(0), output_type="pt").images
    noise = torch.randn(1, 3, 16, 16, generator=generator)
    given = tiny_pipe("rock", photo, mask, latents=noise, generator=generator, output_type="pt").images
    assert torch.equal(drawn, given)


# --- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
@pytest.mark.parametrize("scheduler_class", quick_first([DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler]))
def test_guidance_brings_the_picture_closer_to_the_prompt(tiny_pipe, photo, mask, guidance_gradient, scheduler_class):
    tiny_pipe.scheduler = scheduler_class.from_config(tiny_pipe.scheduler.config)
    common = {"num_images_per_prompt": 4, "generator": seeded(0, 1, 2, 3), "num_inference_steps": 10}
    guided = tiny_pipe("rock", photo, mask, guidance_gradient=guidance_gradient, clip_guidance_scale=1000.0, **common)
    common["generator"] = seeded(0, 1, 2, 3)
    unguided = tiny_pipe("rock", photo, mask, clip_guidance_scale=0.0, range_guidance_scale=0.0, **common)
    assert np.mean(guided.clip_distances) < np.mean(unguided.clip_distances) - 0.01


def test_the_gradient_at_the_estimate_is_the_losses_own(tiny_pipe):
    """For the range term it can be written down: −2·(x̂_0 − clamp(x̂_0)) / number of values."""
    estimate = 2 * torch.randn(2, 3, 16, 16)
    guidance = method.Guidance(
        text_embeds=torch.zeros(2, 24),
        weights=torch.tensor([1.0, 0.0]),
        negative_embeds=torch.zeros(2, 24),
        negative_weights=torch.zeros(2),
        rival_embeds=torch.zeros(2, 24),
        rival_weights=torch.zeros(2),
        image=torch.zeros(2, 3, 16, 16),
        mask=torch.ones(2, 1, 16, 16),
        gradient="estimate",
        clip_scale=0.0,
        range_scale=7.0,
        mse_scale=0.0,
        lpips_scale=0.0,
        match_release=False,
    )
    direction = tiny_pipe.guide(torch.randn_like(estimate), estimate, 0.6, 0.8, guidance, torch.rand(2, 0, 13))
    expected = -7 * 2 * (estimate - estimate.clamp(-1, 1)) / estimate[0].numel()
    expected[1] = 0  # an empty prompt: no guidance at all
    assert_close(direction, expected)


def test_negative_prompt_pushes_away(tiny_pipe, photo, mask):
    def distance_to_cat(negative_prompt):
        out = tiny_pipe(
            "rock",
            photo,
            mask,
            negative_prompt=negative_prompt,
            num_images_per_prompt=4,
            generator=seeded(0, 1, 2, 3),
            output_type="pt",
        )
        cat = tiny_pipe.encode_prompt(["cat"])
        return tiny_pipe.clip_distance(out.images, as_tensor(mask)[None], cat).mean()

    assert distance_to_cat("cat") > distance_to_cat(None) + 1e-3


def test_an_empty_negative_prompt_is_none(tiny_pipe, photo, mask):
    empty, none = (
        tiny_pipe("rock", photo, mask, negative_prompt=text, generator=seeded(0), output_type="pt").images
        for text in ("", None)
    )
    assert torch.equal(empty, none)


def test_the_negative_prompt_is_each_pictures_own(tiny_pipe, photo, mask):
    together = tiny_pipe("rock", photo, mask, negative_prompt=["cat", ""], generator=seeded(0, 1), output_type="pt")
    for index, text in enumerate(["cat", None]):
        alone = tiny_pipe("rock", photo, mask, negative_prompt=text, generator=seeded(index), output_type="pt")
        assert_close(together.images[index], alone.images[0])


def view_embeds(pipe, photo, mask) -> torch.Tensor:
    """Where CLIP sees the masked photo, shape `(1, D)`: a prompt that every edit of it is close to."""
    with torch.no_grad():
        return pipe.clip_embed(((2 * as_tensor(photo) - 1) * as_tensor(mask) / 2 + 0.5)[None])


def test_a_rival_that_is_further_away_than_the_prompt_costs_nothing(tiny_pipe, photo, mask):
    near, far = view_embeds(tiny_pipe, photo, mask), tiny_pipe.encode_prompt(["rock"])

    def edit(prompt, rival=None) -> torch.Tensor:
        words = {"prompt_embeds": prompt, "rival_prompt_embeds": rival}
        return tiny_pipe(image=photo, mask_image=mask, generator=seeded(0), output_type="pt", **words).images

    assert torch.equal(edit(near), edit(near, far))
    assert not torch.equal(edit(far), edit(far, near))


def test_a_rival_that_is_closer_than_the_prompt_is_pushed_away(tiny_pipe, photo, mask):
    rival = view_embeds(tiny_pipe, photo, mask)
    prompt = tiny_pipe.encode_prompt(["rock"])

    def excess(scale: float) -> torch.Tensor:
        out = tiny_pipe(
            image=photo,
            mask_image=mask,
            prompt_embeds=prompt,
            rival_prompt_embeds=rival,
            rival_guidance_scale=scale,
            num_images_per_prompt=4,
            generator=seeded(0, 1, 2, 3),
            output_type="pt",
        )
        to_prompt, to_rival = (
            tiny_pipe.clip_distance(out.images, as_tensor(mask)[None], embeds) for embeds in (prompt, rival)
        )
        return (to_prompt - to_rival).mean()

    assert 0 < excess(4.0) < excess(0.0) - 1e-2


def test_the_rivals_loss_is_the_difference_where_it_is_positive(tiny_pipe, photo, mask):
    """For each copy by itself: one that looks like the rival is not outweighed by one that does not."""
    estimate = (2 * as_tensor(photo) - 1)[None].expand(2, -1, -1, -1)
    region = as_tensor(mask)[None].expand(2, -1, -1, -1)
    warps = torch.rand(2, 3, method.NUM_WARP_PARAMETERS, generator=torch.Generator().manual_seed(0))
    text = tiny_pipe.encode_prompt(["rock", "rock"])
    rival = tiny_pipe.encode_prompt(["tree", "tree"])

    def loss(warps, rival_weights):
        guidance = method.Guidance(
            text_embeds=text,
            weights=torch.ones(2),
            negative_embeds=rival,
            negative_weights=torch.zeros(2),
            rival_embeds=rival,
            rival_weights=torch.tensor(rival_weights),
            image=estimate,
            mask=region,
            gradient="estimate",
            clip_scale=1.0,
            range_scale=0.0,
            mse_scale=0.0,
            lpips_scale=0.0,
            match_release=False,
        )
        return tiny_pipe.clip_loss(estimate, guidance, warps).detach()

    plain = F.adaptive_avg_pool2d(estimate * region, tiny_pipe.clip_size)
    copies = torch.stack([plain] + [method.warp(plain, warps[:, n]) for n in range(3)])
    with torch.no_grad():
        embeds = [tiny_pipe.clip_embed(copy / 2 + 0.5) for copy in copies]
    differences = [method.spherical_distance(e, text) - method.spherical_distance(e, rival) for e in embeds]
    expected = torch.stack(differences).clamp(min=0).mean(dim=0)
    found = loss(warps, [3.0, 0.0]) - loss(warps, [0.0, 0.0])
    assert_close(found, expected * torch.tensor([3.0, 0.0]))


def test_the_empty_prompt_is_no_guidance_at_all(tiny_pipe, photo, mask):
    empty = tiny_pipe("", photo, mask, generator=seeded(0), output_type="pt").images
    unguided = tiny_pipe(
        "rock", photo, mask, clip_guidance_scale=0, range_guidance_scale=0, generator=seeded(0), output_type="pt"
    )
    assert torch.equal(empty, unguided.images)


def test_augmentations_zero_and_one_are_the_plain_copy(tiny_pipe, photo, mask):
    zero, one, two = (
        tiny_pipe("rock", photo, mask, num_augmentations=n, generator=seeded(0), output_type="pt").images
        for n in (0, 1, 2)
    )
    assert torch.equal(zero, one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
def test_one_forward_a_step_and_a_backward_only_for_the_sample(tiny_pipe, photo, mask, guidance_gradient):
    grad_enabled = []
    tiny_pipe.unet.register_forward_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled()))
    tiny_pipe("rock", photo, mask, num_inference_steps=5, strength=0.8, guidance_gradient=guidance_gradient)
    assert grad_enabled == [guidance_gradient == "sample"] * 4


@pytest.mark.parametrize("scale", quick_first(["background_mse_scale", "background_lpips_scale"]))
def test_background_losses_hold_the_background(tiny_pipe, photo, mask, scale):
    """Algorithm 1: without blending, the background term alone keeps the picture near the photo."""
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    tiny_pipe._lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    outside = as_tensor(mask)[0] == 0

    def drift(**scales) -> float:
        images = tiny_pipe(
            "rock",
            photo,
            mask,
            blend=False,
            enforce_background=False,
            num_inference_steps=20,
            generator=seeded(0),
            output_type="pt",
            **scales,
        ).images
        return (images[0] - as_tensor(photo))[:, outside].square().mean().item()

    assert drift(**{scale: 2000.0}) < 0.9 * drift()


def test_lpips_without_its_backbone_says_what_to_do(tiny_pipe, photo, mask, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(OSError, match="vgg16-397923af.pth"):
        tiny_pipe("rock", photo, mask, background_lpips_scale=1.0)


# --- life in diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler_class", quick_first(SCHEDULERS))
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_schedulers(tiny_pipe, photo, mask, scheduler_class, strength):
    tiny_pipe.scheduler = scheduler_class.from_config(tiny_pipe.scheduler.config)
    out = tiny_pipe("rock", photo, mask, num_inference_steps=10, strength=strength, output_type="np")
    outside = np.asarray(mask) == 0
    assert np.isfinite(out.images).all()
    assert np.array_equal(out.images[0][outside], (np.asarray(photo, dtype=np.float32) / 255)[outside])
    # the way from noise to picture ends at the photo: an empty region would show it again
    reconstructed = tiny_pipe("rock", photo, mask, num_inference_steps=10, strength=strength, output_type="latent")
    drift = (reconstructed.images[0] / 2 + 0.5 - as_tensor(photo))[:, outside].abs().max()
    assert drift < TOLERANCES[torch.float32][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()}, "alphas_cumprod"),
        (lambda: {"scheduler": DDPMScheduler(prediction_type="v_prediction")}, "v_prediction"),
        (lambda: {"scheduler": DDPMScheduler(thresholding=True)}, "thresholding"),
        (lambda: {"unet": tiny_unet(out_channels=3)}, "learned_range"),
        (lambda: {"unet": tiny_unet(in_channels=4)}, "4"),
        (lambda: {"unet": tiny_unet(sample_size=None)}, "sample_size"),
        (lambda: {"unet": tiny_unet(time_embedding_type="fourier")}, "Fourier"),
    ],
)
def test_unsuitable_components_are_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_pipe(**changes())


def test_a_text_conditional_unet_is_refused_at_construction():
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        norm_num_groups=8,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        make_tiny_pipe(unet=unet)


def test_stored_defaults_are_used(tiny_pipe, photo, mask):
    explicit = {
        "num_inference_steps": 5,
        "strength": 0.8,
        "clip_guidance_scale": 20.0,
        "range_guidance_scale": 50.0,
        "num_augmentations": 3,
    }
    left_out = tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    given = tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt", **explicit).images
    assert torch.equal(left_out, given)
    assert tiny_pipe.num_timesteps == 4


def test_outputs(tiny_pipe, photo, mask):
    out = tiny_pipe("rock", photo, mask, num_images_per_prompt=3)
    assert [image.size for image in out.images] == [(16, 16)] * 3
    assert out.ranking == sorted(range(3), key=lambda index: out.clip_distances[index])
    images, clip_distances, ranking = tiny_pipe("rock", photo, mask, output_type="np", return_dict=False)
    assert images.shape == (1, 16, 16, 3) and len(clip_distances) == 1 and ranking == [0]
    assert tiny_pipe("rock", photo, output_type="pt").images.shape == (1, 3, 16, 16)


def test_the_gradient_left_out_is_the_checkpoints_own(photo, mask):
    own = make_tiny_pipe(default_guidance_gradient="estimate")

    def edit(pipe, **arguments):
        return pipe("rock", photo, mask, generator=seeded(0), output_type="pt", **arguments).images

    assert torch.equal(edit(own), edit(own, guidance_gradient="estimate"))
    assert not torch.equal(edit(own), edit(own, guidance_gradient="sample"))
    released = {"match_release": True, "num_inference_steps": 10, "strength": 0.5}
    assert torch.equal(edit(own, **released), edit(own, guidance_gradient="sample", **released))


def test_the_surroundings_count_and_so_do_warps(tiny_pipe, photo, mask, monkeypatch):
    image, region = tiny_pipe.prepare_image(photo), as_tensor(mask)[None]
    text_embeds = tiny_pipe.encode_prompt(["rock"])
    elsewhere = image * region + (1 - image) * (1 - region)
    plain, other = (tiny_pipe.clip_distance(picture, region, text_embeds) for picture in (image, elsewhere))
    assert_close(plain, other)
    around = tiny_pipe.surroundings_distance(image, region, text_embeds)
    assert (around - tiny_pipe.surroundings_distance(elsewhere, region, text_embeds)).abs() > 1e-4
    monkeypatch.setattr(pipeline_blended_diffusion, "NUM_RANKING_WARPS", 0)
    whole = tiny_pipe.clip_distance(image, torch.ones_like(region), text_embeds)
    unwarped = tiny_pipe.surroundings_distance(image, region, text_embeds)
    assert_close(unwarped, (plain + whole) / 2)
    assert (around - unwarped).abs() > 1e-5


def test_what_ranks_is_chosen_and_changes_nothing_else(tiny_pipe, photo, mask):
    common = {"num_images_per_prompt": 3, "generator": seeded(0, 1, 2), "output_type": "pt"}
    region = tiny_pipe("rock", photo, mask, ranking="region", **common)
    common["generator"] = seeded(0, 1, 2)
    around = tiny_pipe("rock", photo, mask, **common)
    assert torch.equal(region.images, around.images)
    text_embeds, masks = tiny_pipe.encode_prompt(["rock"]), as_tensor(mask)[None].expand(3, -1, -1, -1)
    assert_close(torch.tensor(region.clip_distances), tiny_pipe.clip_distance(region.images, masks, text_embeds))
    expected = tiny_pipe.surroundings_distance(region.images, masks, text_embeds)
    assert_close(torch.tensor(around.clip_distances), expected)
    alone = tiny_pipe("rock", photo, mask, generator=seeded(1), output_type="pt")
    assert_close(alone.clip_distances[0], around.clip_distances[1])


@pytest.mark.slow
def test_all_kinds_of_pictures_are_the_same_picture(tiny_pipe, photo, mask):
    reference = tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    array, tensor = np.asarray(photo), as_tensor(photo)
    white = np.asarray(mask) > 0
    for image, mask_image in [
        (array, white),
        (array.astype(np.float64) / 255, white[..., None].astype(np.float32)),
        (array[None], [mask]),
        (tensor, torch.from_numpy(white)),
        (tensor[None], torch.from_numpy(white)[None, None]),
        ([photo.convert("RGBA")], mask.convert("RGB")),
    ]:
        assert_close(tiny_pipe("rock", image, mask_image, generator=seeded(0), output_type="pt").images, reference)


@pytest.mark.slow
def test_masks_may_be_a_batch_of_three_dimensions(tiny_pipe, photo, mask):
    white = as_tensor(mask)[0]
    both = [white, 1 - white]
    expected = [
        tiny_pipe("rock", photo, one, generator=seeded(seed), output_type="pt").images[0]
        for seed, one in enumerate(both)
    ]
    for masks in (torch.stack(both), np.stack(both), torch.stack(both) > 0.5, both):
        out = tiny_pipe("rock", photo, masks, generator=seeded(0, 1), output_type="pt")
        assert_close(out.images, torch.stack(expected))
    one = tiny_pipe("rock", photo, white[None], generator=seeded(0), output_type="pt").images
    assert_close(one[0], expected[0])
    with pytest.raises(ValueError, match="`image` is a list of 2; expected 1 or 3"):
        tiny_pipe("rock", [photo] * 2, torch.stack([white] * 3))


@pytest.mark.parametrize(
    ("scheduler_class", "arguments", "taken"),
    [
        (DDPMScheduler, {"timesteps": [900, 600, 300, 0]}, [900, 600, 300, 0]),
        (DDPMScheduler, {"timesteps": [900, 600, 300, 0], "strength": 0.5}, [300, 0]),
        (EulerDiscreteScheduler, {"timesteps": [900, 600, 300, 10], "strength": 0.5}, [300, 10]),
        (DPMSolverMultistepScheduler, {"timesteps": [900, 600, 300, 10], "strength": 0.75}, [600, 300, 10]),
        (HeunDiscreteScheduler, {"timesteps": [900, 600, 300, 10], "strength": 0.5}, [300, 10, 10]),
    ],
)
def test_the_way_may_be_given_in_timesteps(tiny_pipe, photo, mask, scheduler_class, arguments, taken):
    tiny_pipe.scheduler = scheduler_class.from_config(tiny_pipe.scheduler.config)
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        seen.append(round(float(timestep)))
        return {}

    out = tiny_pipe(
        "rock",
        photo,
        mask,
        generator=seeded(0),
        output_type="pt",
        callback_on_step_end=callback,
        **{"strength": 1.0, **arguments},
    )
    assert seen == taken and tiny_pipe.num_timesteps == len(taken)
    outside = as_tensor(mask)[0] == 0
    assert torch.equal(out.images[0][:, outside], as_tensor(photo)[:, outside])


def test_timesteps_that_the_scheduler_would_take_itself_change_nothing(tiny_pipe, photo, mask):
    tiny_pipe.scheduler.set_timesteps(5)
    own = tiny_pipe.scheduler.timesteps.tolist()
    given = tiny_pipe("rock", photo, mask, timesteps=own, generator=seeded(0), output_type="pt").images
    assert torch.equal(given, tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images)


def test_the_way_may_be_given_in_noise_levels(tiny_pipe, photo, mask):
    """After each step the sample is at the next level of those given, inside the mask and outside it."""
    tiny_pipe.scheduler = EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    sigmas = [1.9, 1.2, 0.6, 0.2]
    outside = as_tensor(mask)[0] == 0
    source = (2 * as_tensor(photo) - 1)[:, outside]
    levels = []

    def callback(pipe, step, timestep, callback_kwargs):
        levels.append((callback_kwargs["latents"][0][:, outside] - source).std().item())
        return {}

    tiny_pipe("rock", photo, mask, sigmas=sigmas, strength=1.0, generator=seeded(0), callback_on_step_end=callback)
    assert levels[:2] == pytest.approx(sigmas[1:3], rel=0.1)


def test_height_and_width_are_the_networks_own(tiny_pipe, photo, mask):
    given = tiny_pipe("rock", photo, mask, height=16, width=16, generator=seeded(0), output_type="pt").images
    assert torch.equal(given, tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images)


def test_pictures_from_minus_one_to_one_are_taken_with_a_warning(tiny_pipe, photo, mask, caplog, monkeypatch):
    monkeypatch.setattr(method.logger.parent, "propagate", True)
    reference = tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    assert not caplog.text
    signal = 2 * as_tensor(photo) - 1
    assert_close(tiny_pipe("rock", signal, mask, generator=seeded(0), output_type="pt").images, reference)
    assert "[-1, 1]" in caplog.text


def test_prompt_embeds_stand_for_words(tiny_pipe, photo, mask):
    words = tiny_pipe("rock", photo, mask, negative_prompt="tree", num_images_per_prompt=2, generator=seeded(1, 2))
    embeds = tiny_pipe(
        image=photo,
        mask_image=mask,
        prompt_embeds=tiny_pipe.encode_prompt(["rock"]),
        negative_prompt_embeds=tiny_pipe.encode_prompt(["tree"]) * 3,  # only the direction counts
        num_images_per_prompt=2,
        generator=seeded(1, 2),
    )
    assert_close(torch.tensor(words.clip_distances), torch.tensor(embeds.clip_distances))
    for one, other in zip(words.images, embeds.images, strict=True):
        assert_close(as_tensor(one), as_tensor(other))


def test_a_row_of_prompt_embeds_is_a_prompt(tiny_pipe, photo, mask):
    embeds = tiny_pipe.encode_prompt(["rock", "tree"])
    out = tiny_pipe(image=photo, mask_image=mask, prompt_embeds=embeds, generator=seeded(1, 2))
    alone = tiny_pipe("tree", photo, mask, generator=seeded(2))
    assert len(out.images) == 2
    assert_close(as_tensor(out.images[1]), as_tensor(alone.images[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`prompt` is missing"),
        ({"prompt": "rock", "prompt_embeds": torch.ones(1, 24)}, "`prompt` and `prompt_embeds` say the same"),
        ({"prompt_embeds": torch.ones(24)}, r"`prompt_embeds` is \(24,\); expected a tensor of shape"),
        ({"prompt_embeds": torch.ones(1, 23)}, r"`prompt_embeds` is \(1, 23\); expected .* 24\)"),
        ({"prompt": "rock", "negative_prompt_embeds": [1.0]}, "`negative_prompt_embeds` is list"),
        ({"prompt": "rock", "rival_prompt_embeds": torch.ones(1, 23)}, r"`rival_prompt_embeds` is \(1, 23\)"),
        (
            {"prompt": ["rock", "tree"], "rival_prompt_embeds": torch.ones(3, 24)},
            "`(prompt|rival_prompt_embeds)` is a list of .; expected 1 or 3",
        ),
        ({"prompt": "rock", "rival_guidance_scale": -1}, "`rival_guidance_scale` is -1"),
    ],
)
def test_what_stands_for_words_is_checked(tiny_pipe, photo, mask, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipe(image=photo, mask_image=mask, **arguments)


def test_a_missing_photo_is_named(tiny_pipe):
    with pytest.raises(ValueError, match="`image` is missing"):
        tiny_pipe("rock")


def test_callback_changes_the_mask_from_the_next_step_on(tiny_pipe, photo, mask):
    masks, inside = [], []

    def callback(pipe, step, timestep, callback_kwargs):
        masks.append(callback_kwargs["mask"].clone())
        inside.append(callback_kwargs["latents"])
        last = step == pipe.num_timesteps - 1
        return {"mask": masks[0] if last else torch.ones_like(masks[0])}

    out = tiny_pipe(
        "rock",
        photo,
        mask,
        generator=seeded(1),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["mask", "latents"],
        output_type="pt",
    )
    assert [bool(m.all()) for m in masks] == [False] + [True] * (len(masks) - 1)
    outside = (masks[0] == 0).expand_as(out.images)
    # the sample has left the photo outside the wanted mask, the result has not
    assert not torch.equal(inside[-1][outside], (2 * as_tensor(photo)[None] - 1)[outside])
    assert torch.equal(out.images[outside], as_tensor(photo)[None][outside])


def test_candidate_labels_rank_by_what_sets_the_prompt_apart(tiny_pipe, photo, mask):
    arguments = {"mask_image": mask, "num_images_per_prompt": 6, "generator": seeded(*range(6)), "output_type": "pt"}
    labels = ["tree", "sky"]
    out = tiny_pipe("rock", photo, candidate_labels=labels, **arguments)
    at_half = tiny_pipe.prepare_mask(mask, 0.5, False)
    distances = {}
    for word in ("rock", *labels):
        distances[word] = tiny_pipe.surroundings_distance(out.images, at_half, tiny_pipe.encode_prompt([word]))
    # the mean over views of −log p is at least −log of the mean's p, and near it where views agree
    logits = -tiny_pipe.clip_model.logit_scale.exp() * torch.stack(list(distances.values()), dim=1)
    expected = -logits.log_softmax(dim=1)[:, 0]
    assert (torch.tensor(out.clip_distances) >= expected - 1e-4).all()
    plain = tiny_pipe("rock", photo, candidate_labels=[], **{**arguments, "generator": seeded(*range(6))})
    assert_close(torch.tensor(plain.clip_distances), distances["rock"])
    assert torch.equal(plain.images, out.images)


def test_the_distance_among_labels_is_that_of_zero_shot_classification(tiny_pipe, photo, monkeypatch):
    monkeypatch.setattr(method, "NUM_RANKING_WARPS", 0)  # without a mask all that is left to see is one view
    labels = ["tree", "sky"]
    arguments = {"num_images_per_prompt": 3, "generator": seeded(1, 2, 3), "output_type": "pt"}
    out = tiny_pipe("rock", photo, candidate_labels=labels, **arguments)
    image_embeds = tiny_pipe.clip_embed(out.images)
    texts = tiny_pipe.encode_prompt(["rock", *labels])
    distances = method.spherical_distance(image_embeds[:, None], texts)
    chances = (-tiny_pipe.clip_model.logit_scale.exp() * distances).softmax(dim=1)
    assert_close(torch.tensor(out.clip_distances), -chances[:, 0].log())


def test_the_prompt_is_no_rival_of_its_own(tiny_pipe, photo, mask):
    arguments = {"mask_image": mask, "num_images_per_prompt": 3}
    without = tiny_pipe("rock", photo, candidate_labels=["tree"], generator=seeded(*range(3)), **arguments)
    among = tiny_pipe("rock", photo, candidate_labels=["rock", "tree"], generator=seeded(*range(3)), **arguments)
    assert_close(torch.tensor(among.clip_distances), torch.tensor(without.clip_distances))
    alone = tiny_pipe("rock", photo, candidate_labels=["rock"], generator=seeded(*range(3)), **arguments)
    assert alone.clip_distances == [0, 0, 0]


def test_candidate_labels_have_a_default(photo, mask):
    pipe = make_tiny_pipe(default_candidate_labels=["tree"])
    by_default = pipe("rock", photo, mask, generator=seeded(1))
    given = make_tiny_pipe()("rock", photo, mask, generator=seeded(1), candidate_labels=["tree"])
    assert by_default.clip_distances == given.clip_distances
    with pytest.raises(TypeError, match="`candidate_labels` must be a list of strings, not 'tree'"):
        pipe("rock", photo, mask, candidate_labels="tree")


def test_callback_sees_and_changes_the_sample(tiny_pipe, photo, mask):
    steps = []

    def callback(pipe, step, timestep, callback_kwargs):
        steps.append((step, int(timestep)))
        assert set(callback_kwargs) == {"latents", "pred_original_sample"}
        if step == pipe.num_timesteps - 1:
            callback_kwargs["latents"] = torch.zeros_like(callback_kwargs["latents"])
        return callback_kwargs

    out = tiny_pipe(
        "rock",
        photo,
        mask,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
        output_type="pt",
    )
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert [t for _, t in steps] == [749, 500, 250, 0]
    assert (out.images[0][:, as_tensor(mask)[0] > 0] == 0.5).all()


def test_interrupt_ends_with_the_last_clean_estimate(tiny_pipe, photo, mask):
    seen = {}

    def callback(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = step == 1
        seen[step] = callback_kwargs["pred_original_sample"]
        return callback_kwargs

    out = tiny_pipe(
        "rock",
        photo,
        mask,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
        output_type="latent",
    )
    assert list(seen) == [0, 1]
    assert torch.equal(out.images, seen[1])
    tiny_pipe("rock", photo, mask)
    assert not tiny_pipe.interrupt


def test_weights_need_no_gradients_meanwhile(tiny_pipe, photo, mask):
    needed = []

    def note(network, *_):
        if torch.is_grad_enabled():
            needed.extend(parameter.requires_grad for parameter in network.parameters())

    tiny_pipe.unet.register_forward_hook(note)
    tiny_pipe.clip_model.vision_model.register_forward_hook(note)
    tiny_pipe("rock", photo, mask)
    assert needed and not any(needed)


def test_a_call_changes_no_component(tiny_pipe, photo, mask):
    tiny_pipe.unet.conv_in.requires_grad_(False)

    def snapshot() -> dict:
        tensors = {
            (name, key): (tensor.clone(), tensor.requires_grad, tensor.grad)
            for name in ("unet", "clip_model")
            for key, tensor in getattr(tiny_pipe, name).named_parameters()
        }
        configs = {name: dict(getattr(tiny_pipe, name).config) for name in ("unet", "scheduler")}
        return tensors | configs | {"training": (tiny_pipe.unet.training, tiny_pipe.clip_model.training)}

    before = snapshot()
    tiny_pipe("rock", photo, mask)
    with pytest.raises(RuntimeError, match="stop"):
        tiny_pipe("rock", photo, mask, callback_on_step_end=lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    after = snapshot()
    for key, value in before.items():
        if isinstance(key, tuple):
            assert torch.equal(value[0], after[key][0])
            assert value[1:] == after[key][1:]
        else:
            assert value == after[key]


@pytest.mark.parametrize("dtype", quick_first([torch.bfloat16, torch.float16]))
@pytest.mark.parametrize("guidance_gradient", ["sample", "estimate"])
def test_half_precision(photo, mask, dtype, guidance_gradient):
    common = {"guidance_gradient": guidance_gradient, "output_type": "pt", "clip_guidance_scale": 5.0}
    full = make_tiny_pipe()("rock", photo, mask, generator=seeded(0), **common)
    pipe = make_tiny_pipe().to(dtype)
    dtypes = []

    def callback(pipe, step, timestep, callback_kwargs):
        dtypes.append(callback_kwargs["latents"].dtype)
        return callback_kwargs

    half = pipe("rock", photo, mask, generator=seeded(0), callback_on_step_end=callback, **common)
    assert set(dtypes) == {torch.float32}
    assert (half.images - full.images).abs().mean() < TOLERANCES[dtype][1]
    assert torch.equal(half.images[:, :, as_tensor(mask)[0] == 0], full.images[:, :, as_tensor(mask)[0] == 0])


def test_model_offload_keeps_the_unet_until_its_backward_is_done(photo, mask, monkeypatch):
    plain = make_tiny_pipe()("rock", photo, mask, generator=seeded(0), output_type="pt").images
    pipe = make_tiny_pipe()
    pipe.enable_model_cpu_offload(device="cpu")
    offloads, forwards = [], []
    offload = UserCpuOffloadHook.offload
    monkeypatch.setattr(UserCpuOffloadHook, "offload", lambda hook: (offloads.append(len(forwards)), offload(hook)))
    pipe.unet.register_forward_hook(lambda *_: forwards.append(1))
    assert torch.equal(pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images, plain)
    assert len(forwards) == 4 and set(offloads) <= {4}


@pytest.mark.slow
def test_saved_folder_loads_by_itself(tiny_pipe, photo, mask, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "pipeline_blended_diffusion.py").read_text() == inspect.getsource(method)
    expected = tiny_pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    for arguments in ({}, {"custom_pipeline": str(tmp_path / "saved")}, {"custom_pipeline": method.__file__}):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True, **arguments)
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe).__name__ == "BlendedDiffusionPipeline" and type(pipe) is not BlendedDiffusionPipeline
        assert pipe.config.default_num_inference_steps == 5
        assert_close(pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images, expected)
    pipe.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True, dtype=torch.bfloat16)
    assert again.unet.dtype == again.clip_model.dtype == torch.bfloat16


def class_conditional() -> BlendedDiffusionPipeline:
    return make_tiny_pipe(unet=tiny_unet(num_class_embeds=10))


def test_class_conditional_networks(photo, mask):
    pipe = class_conditional()
    labels = []
    pipe.unet.register_forward_pre_hook(lambda _, __, kwargs: labels.append(kwargs["class_labels"]), with_kwargs=True)
    pipe("rock", photo, mask, class_labels=3, num_images_per_prompt=2)
    assert [label.tolist() for label in labels] == [[3, 3]] * 4
    labels.clear()
    pipe("rock", photo, mask, num_images_per_prompt=2, generator=seeded(0, 1))
    assert len({tuple(label.tolist()) for label in labels}) > 1
    drawn = torch.stack(labels)
    assert drawn.min() >= 0 and drawn.max() < 10
    labels.clear()
    pipe("rock", photo, mask, generator=seeded(1))
    assert [label.item() for label in labels] == drawn[:, 1].tolist()


def test_a_long_prompt_is_cut_with_a_warning(tiny_pipe, photo, mask, caplog, monkeypatch):
    monkeypatch.setattr(method.logger.parent, "propagate", True)
    tiny_pipe(" ".join("abcdefghijklmnopqrstuvwxyz"), photo, mask)
    assert "truncated" in caplog.text and "16 tokens" in caplog.text


NAN = np.full((16, 16, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": 3}, TypeError, "`prompt`"),
        ({"prompt": []}, TypeError, "`prompt`"),
        ({"negative_prompt": 3}, TypeError, "`negative_prompt`"),
        ({"image": "photo.png"}, TypeError, "`image` must be .* not str"),
        ({"image": []}, ValueError, "`image` is an empty list"),
        ({"image": np.zeros((16, 16), dtype=np.float32)}, ValueError, r"`image` .*\(16, 16\)"),
        ({"image": torch.zeros(16, 16, 3)}, ValueError, r"`image` .*expected \(3, height, width\)"),
        ({"image": NAN}, ValueError, "`image` holds NaN"),
        ({"image": NAN * 0}, ValueError, "`image` holds NaN"),
        ({"image": np.full((16, 16, 3), -1.5)}, ValueError, r"`image` .* expected \[0, 1\]"),
        ({"image": np.full((16, 16, 3), 255.0)}, ValueError, r"`image` .* expected \[0, 1\]"),
        ({"mask_image": np.full((16, 16), -1.0)}, ValueError, r"`mask_image` .* expected \[0, 1\]"),
        ({"image": np.zeros((16, 16, 3), dtype=np.int64)}, TypeError, "`image` has the dtype int64"),
        ({"mask_image": np.zeros((16, 16))}, ValueError, "`mask_image` has nothing white"),
        ({"mask_image": np.ones((16, 8))}, ValueError, "8×16 .* 16×16"),
        ({"mask_image": np.full((16, 16), np.nan)}, ValueError, "`mask_image` holds NaN"),
        ({"prompt": ["a", "b"], "image": [NAN[..., :3] * 0 + 1] * 3}, ValueError, "`image` holds NaN"),
        ({"prompt": ["a", "b"], "negative_prompt": ["a", "b", "c"]}, ValueError, "`prompt` is a list of 2"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps`"),
        ({"num_inference_steps": 2.5}, ValueError, "`num_inference_steps`"),
        ({"num_inference_steps": 1001}, ValueError, "`num_inference_steps` is 1001"),
        ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt`"),
        ({"strength": 0}, ValueError, "`strength` is 0"),
        ({"strength": 1.1}, ValueError, "`strength` is 1.1"),
        ({"strength": float("nan")}, ValueError, "`strength` is nan"),
        ({"strength": 0.1, "num_inference_steps": 5}, ValueError, "no step"),
        ({"clip_guidance_scale": -1.0}, ValueError, "`clip_guidance_scale` is -1.0"),
        ({"clip_guidance_scale": float("nan")}, ValueError, "`clip_guidance_scale` is nan"),
        ({"num_augmentations": -1}, ValueError, "`num_augmentations`"),
        ({"guidance_gradient": "both"}, ValueError, "`guidance_gradient` is 'both'"),
        ({"ranking": "best"}, ValueError, "`ranking` is 'best'"),
        ({"padding_mask_crop": -1}, ValueError, "`padding_mask_crop`"),
        ({"padding_mask_crop": 4, "mask_image": None}, ValueError, "`padding_mask_crop` needs"),
        ({"padding_mask_crop": 4, "output_type": "latent"}, ValueError, "`padding_mask_crop`"),
        ({"generator": seeded(0, 1)}, ValueError, "`generator` is a list of 2; expected 1"),
        ({"generator": 3}, TypeError, "`generator`"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, ValueError, "`latents`"),
        ({"latents": torch.full((1, 3, 16, 16), torch.nan)}, ValueError, "`latents` holds NaN"),
        ({"class_labels": 3}, ValueError, "`class_labels`"),
        ({"output_type": "jpeg"}, ValueError, "`output_type` is 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "noise"),
        ({"timesteps": [3, 900]}, ValueError, r"`timesteps` is \[3, 900\]; expected falling ones of 0…999"),
        ({"timesteps": [1000, 3]}, ValueError, r"`timesteps` is \[1000, 3\]"),
        ({"timesteps": [9, 9]}, ValueError, r"`timesteps` is \[9, 9\]"),
        ({"timesteps": 5}, TypeError, "`timesteps` must be a list of numbers, not 5"),
        ({"timesteps": [900, 5], "sigmas": [1.0]}, ValueError, "`timesteps` and `sigmas` say the same"),
        ({"sigmas": [2.0, 1.0]}, ValueError, "`sigmas` given, but DDPMScheduler takes none"),
        ({"timesteps": [5], "strength": 0.5}, ValueError, "leaves no step"),
        ({"timesteps": [900, 5], "match_release": True}, ValueError, "`timesteps` given with `match_release=True`"),
        ({"height": 512}, ValueError, "`height` is 512; the network's pictures have 16 pixels"),
        ({"width": 8}, ValueError, "`width` is 8"),
        ({"mask_image": np.zeros((16, 16, 3))}, ValueError, r"`mask_image` has the shape \(16, 16, 3\)"),
    ],
)
def test_bad_input_gets_one_sentence(tiny_pipe, photo, mask, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        tiny_pipe(**{"prompt": "rock", "image": photo, "mask_image": mask, **arguments})
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_bad_class_labels_get_one_sentence(photo, mask):
    for labels in (10, -1, [1, 2, 3], 0.5):
        with pytest.raises(ValueError, match="`class_labels`"):
            class_conditional()("rock", photo, mask, class_labels=labels)
    for labels in ("dog", ["dog"], {3}):
        with pytest.raises(
            TypeError, match="^`class_labels` must be a whole number, or a list or tensor of them, not"
        ):
            class_conditional()("rock", photo, mask, class_labels=labels)


def test_a_mask_that_vanishes_says_how_to_keep_it(tiny_pipe):
    white = np.zeros((400, 400))
    white[200, 200] = 1
    with pytest.raises(ValueError, match="padding_mask_crop"):
        tiny_pipe("rock", Image.new("RGB", (400, 400)), Image.fromarray((white * 255).astype(np.uint8)))


def test_an_all_white_mask_edits_everything(tiny_pipe, photo):
    white = tiny_pipe("rock", photo, np.ones((16, 16)), generator=seeded(0), output_type="pt").images
    none = tiny_pipe("rock", photo, generator=seeded(0), output_type="pt").images
    assert torch.equal(white, none)


def test_match_release_needs_a_released_sampler(tiny_pipe, photo, mask):
    tiny_pipe.scheduler = EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
        tiny_pipe("rock", photo, mask, match_release=True)


def test_the_call_signature_is_the_promised_one():
    """The public interface: change it on purpose or not at all."""
    assert str(inspect.signature(BlendedDiffusionPipeline.__call__)).startswith("(self, prompt:")
    assert list(inspect.signature(BlendedDiffusionPipeline.__call__).parameters) == [
        "self",
        "prompt",
        "image",
        "mask_image",
        "negative_prompt",
        "num_inference_steps",
        "strength",
        "num_images_per_prompt",
        "clip_guidance_scale",
        "range_guidance_scale",
        "num_augmentations",
        "guidance_gradient",
        "blend",
        "background_mse_scale",
        "background_lpips_scale",
        "enforce_background",
        "match_release",
        "padding_mask_crop",
        "class_labels",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "soft_mask",
        "ranking",
        "prompt_embeds",
        "negative_prompt_embeds",
        "rival_prompt_embeds",
        "rival_guidance_scale",
        "candidate_labels",
        "timesteps",
        "sigmas",
        "height",
        "width",
    ]


def test_the_file_reads_from_top_to_bottom():
    """The call comes early, and what it names stands below it in its order: steps, preparation, ranking, checks."""
    lines = {name: inspect.getsourcelines(vars(BlendedDiffusionPipeline)[name])[1] for name in READING_ORDER}
    assert list(lines.values()) == sorted(lines.values())
    assert lines["__call__"] < 450
    assert inspect.getsourcelines(method.spherical_distance)[1] < lines["__init__"]
    assert BlendedDiffusionPipeline.__bases__ == (DiffusionPipeline,)


READING_ORDER = [
    "__init__",
    "__call__",
    *("draw", "estimate", "guide", "step", "noised_background", "paste_back"),
    *("encode_prompt", "prepare_edits", "get_timesteps", "prepare_latents"),
    *("rank", "finish"),
    *("check_components", "check_inputs"),
    *("frozen", "save_pretrained"),
]


# --- two CLIPs -------------------------------------------------------------------------------------------------------


def other_clip() -> CLIPModel:
    """Another CLIP than the tiny one: other weights, smaller pictures, shorter embeddings."""
    config = tiny_clip(image_size=8).config
    torch.manual_seed(2)
    return CLIPModel(CLIPConfig(**{**config.to_dict(), "projection_dim": 20})).eval()


def with_second(clip_model: CLIPModel, **changes) -> BlendedDiffusionPipeline:
    size = clip_model.config.vision_config.image_size
    second = {"tokenizer_2": tiny_tokenizer(), "feature_extractor_2": tiny_feature_extractor(size)}
    return make_tiny_pipe(clip_model_2=clip_model, **{**second, **changes})


@pytest.mark.parametrize("guidance_gradient", quick_first(["sample", "estimate"]))
@pytest.mark.parametrize("arguments", [{}, {"match_release": True}, {"ranking": "region", "negative_prompt": "cat"}])
def test_the_same_clip_twice_is_the_one_clip(tiny_pipe, photo, mask, guidance_gradient, arguments):
    one, two = (
        pipe(
            "rock",
            photo,
            mask,
            guidance_gradient=guidance_gradient,
            generator=seeded(0),
            output_type="pt",
            **arguments,
        )
        for pipe in (tiny_pipe, with_second(tiny_clip()))
    )
    assert_close(one.images, two.images)
    assert_close(torch.tensor(one.clip_distances), torch.tensor(two.clip_distances))


def test_two_clips_guide_and_rank_by_the_mean_of_their_distances(photo, mask):
    both, first = with_second(other_clip()), make_tiny_pipe()
    second = make_tiny_pipe(clip_model=other_clip(), feature_extractor=tiny_feature_extractor(8))
    image, region = as_tensor(photo)[None], as_tensor(mask)[None]
    for measure in ("clip_distance", "surroundings_distance"):
        alone = [getattr(pipe, measure)(image, region, pipe.encode_prompt(["rock"])) for pipe in (first, second)]
        together = getattr(both, measure)(image, region, both.encode_prompt(["rock"]))
        if measure == "clip_distance":  # the warps of the other are made at the larger one's size
            assert_close(together, (alone[0] + alone[1]) / 2)
        assert (together - alone[0]).abs() > 1e-4
    pictures = [pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images for pipe in (both, first)]
    assert not torch.equal(*pictures)


def test_embeddings_of_two_clips_stand_side_by_side(photo, mask):
    pipe = with_second(other_clip())
    embeds = pipe.encode_prompt(["rock"])
    assert embeds.shape == (1, 24 + 20)
    words = pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    given = pipe(image=photo, mask_image=mask, prompt_embeds=embeds, generator=seeded(0), output_type="pt").images
    assert_close(words, given)
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(number of prompts, 44\)"):
        pipe(image=photo, mask_image=mask, prompt_embeds=torch.ones(1, 24))


@pytest.mark.slow
def test_a_second_clip_is_saved_and_loaded(photo, mask, tmp_path):
    pipe = with_second(other_clip())
    expected = pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images
    for name in ("once", "twice"):
        pipe.save_pretrained(tmp_path / name)
        pipe = DiffusionPipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe.clip_model_2) is CLIPModel
        assert_close(pipe("rock", photo, mask, generator=seeded(0), output_type="pt").images, expected)


def test_a_second_clip_comes_with_all_its_parts():
    with pytest.raises(ValueError, match="`tokenizer_2` is missing; a second CLIP needs all of"):
        with_second(tiny_clip(), tokenizer_2=None)


def test_the_second_clips_weights_need_no_gradients_either(photo, mask):
    pipe, needed = with_second(tiny_clip()), []
    pipe.clip_model_2.vision_model.register_forward_hook(
        lambda network, *_: needed.extend(parameter.requires_grad for parameter in network.parameters())
    )
    pipe("rock", photo, mask, ranking="region")
    assert needed and not any(needed[: len(needed) // 2])
    assert all(parameter.requires_grad for parameter in pipe.clip_model_2.parameters())
