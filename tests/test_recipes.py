"""What `docs/recipes.md` claims of each recipe. That its code runs is in `test_documents`."""

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import dispatch_model
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DModel,
)
from stand_ins import save_inpainting, save_upscaler, tiny_siglip, tiny_siglip_processor, tiny_siglip_tokenizer
from tiny import assert_close, make_tiny_pipe, tiny_clip, tiny_feature_extractor, tiny_tokenizer, tiny_unet
from torch._subclasses.fake_tensor import FakeTensorMode

from blended_diffusion.masks import grow
from blended_diffusion.models import load_model
from pipeline_blended_diffusion import BlendedDiffusionPipeline, Guidance


SIGLIP = {
    "clip_model": tiny_siglip,
    "tokenizer": tiny_siglip_tokenizer,
    "feature_extractor": tiny_siglip_processor,
}


@pytest.fixture
def edit(photo, mask):
    """One edit by a pipeline, the same seed every time: `(1, 3, 16, 16)` in [0, 1]."""

    def edit(pipe: BlendedDiffusionPipeline, **arguments) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("apple", photo, mask, generator=generator, output_type="pt", **arguments).images

    return edit


class TestPlainSampling:
    def test_ddpm_takes_the_learned_variance(self, tiny_pipe):
        sampler = DDPMPipeline(tiny_pipe.unet, tiny_pipe.scheduler)
        pictures = sampler(batch_size=2, num_inference_steps=3, output_type="np").images
        assert pictures.shape == (2, 16, 16, 3) and np.isfinite(pictures).all()

    def test_the_first_three_channels_are_the_noise(self, tiny_pipe):
        """The UNet without its variances paints with DDIM what the pipeline itself would, unguided, from nothing."""
        noise_only = UNet2DModel.from_config({**tiny_pipe.unet.config, "out_channels": 3})
        weights = tiny_pipe.unet.state_dict()
        for name in ("conv_out.weight", "conv_out.bias"):
            weights[name] = weights[name][:3]
        noise_only.load_state_dict(weights)
        scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config, timestep_spacing="trailing")
        noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
        painted = DDIMPipeline(noise_only, scheduler)(
            num_inference_steps=4, generator=torch.Generator().manual_seed(5), output_type="np"
        ).images
        sample = noise
        scheduler.set_timesteps(4)
        for timestep in scheduler.timesteps:
            with torch.no_grad():
                predicted = tiny_pipe.unet(sample, timestep).sample[:, :3]
            sample = scheduler.step(predicted, timestep, sample).prev_sample
        assert_close(torch.from_numpy(painted), (sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))


class TestOtherPipelines:
    def test_stable_diffusion_goes_on_from_the_edit(self, edit, mask, tiny_pipe, tmp_path):
        save_inpainting(tmp_path)
        inpaint = StableDiffusionInpaintPipeline.from_pretrained(tmp_path)
        edited = tiny_pipe.image_processor.postprocess(edit(tiny_pipe), "pil")[0].resize((64, 64))
        mask = mask.resize((64, 64), PIL.Image.Resampling.NEAREST)
        again = inpaint(
            "apple",
            edited,
            mask,
            strength=0.5,
            num_inference_steps=4,
            padding_mask_crop=8,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        assert again.size == edited.size
        difference = np.abs(np.asarray(again, float) - np.asarray(edited, float)).max(axis=2)
        inside, near = np.asarray(mask) > 0, np.asarray(grow(mask, 4)) > 0
        assert difference[inside].mean() > 5 and not difference[~near].any()

    def test_an_upscaler_makes_it_four_times_as_large(self, edit, tiny_pipe, tmp_path):
        save_upscaler(tmp_path)
        upscale = StableDiffusionUpscalePipeline.from_pretrained(tmp_path)
        edited = tiny_pipe.image_processor.postprocess(edit(tiny_pipe), "pil")[0]
        assert upscale("apple", edited, num_inference_steps=2).images[0].size == (64, 64)


class TestLora:
    @pytest.mark.slow
    def test_merged_it_is_a_stock_network_and_does_the_same(self, edit, tiny_pipe, tmp_path):
        peft = pytest.importorskip("peft")
        without = edit(tiny_pipe)
        config = peft.LoraConfig(
            r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"], init_lora_weights=False
        )
        lora = peft.get_peft_model(tiny_unet(), config)
        lora.save_pretrained(tmp_path / "lora")
        with_layers = edit(make_tiny_pipe(unet=lora))
        assert (with_layers - without).abs().max() > 0.05

        tiny_pipe.unet = peft.PeftModel.from_pretrained(tiny_unet(), tmp_path / "lora").merge_and_unload()
        assert type(tiny_pipe.unet) is UNet2DModel
        assert_close(edit(tiny_pipe), with_layers)
        tiny_pipe.save_pretrained(tmp_path / "pipe")
        assert_close(edit(quietly(load_model(str(tmp_path / "pipe")).pipe)), with_layers)


def quietly(pipe: BlendedDiffusionPipeline) -> BlendedDiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def num_bytes(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


class TestSmallerAndFaster:
    @pytest.mark.parametrize("gradient", ["estimate", "sample"])
    def test_weights_of_eight_bits_make_nearly_the_same_picture(self, gradient, edit, tiny_pipe):
        before, size = edit(tiny_pipe, guidance_gradient=gradient), num_bytes(tiny_pipe.unet)
        tiny_pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        after = edit(tiny_pipe, guidance_gradient=gradient)
        assert num_bytes(tiny_pipe.unet) < 0.3 * size
        assert 0 < (after - before).abs().mean() < 0.02

    @pytest.mark.parametrize("gradient", ["estimate", "sample"])
    def test_a_clip_of_integers_guides(self, gradient, edit, tiny_pipe):
        quantization = pytest.importorskip("torchao.quantization")
        before = edit(tiny_pipe, guidance_gradient=gradient)
        quantization.quantize_(tiny_pipe.clip_model, quantization.Int8WeightOnlyConfig())
        after = edit(tiny_pipe, guidance_gradient=gradient)
        assert 0 < (after - before).abs().mean() < 0.01

    def test_a_compiled_network_makes_the_same_picture(self, edit, tiny_pipe):
        before = [edit(tiny_pipe, guidance_gradient=gradient) for gradient in ("estimate", "sample")]
        tiny_pipe.unet.compile(backend="aot_eager")  # all of compiling but C++
        after = [edit(tiny_pipe, guidance_gradient=gradient) for gradient in ("estimate", "sample")]
        assert tiny_pipe.unet._compiled_call_impl is not None
        assert_close(torch.cat(after), torch.cat(before))


def siglip_pipe(**changes) -> BlendedDiffusionPipeline:
    return make_tiny_pipe(**{name: make() for name, make in SIGLIP.items()}, **changes)


class TestAnotherClip:
    @pytest.mark.parametrize("size", [8, 32])
    def test_its_pictures_may_have_another_size(self, size, edit):
        pipe = make_tiny_pipe(clip_model=tiny_clip(size), feature_extractor=tiny_feature_extractor(size))
        assert pipe.clip_size == size
        unguided = edit(pipe, clip_guidance_scale=0.0, range_guidance_scale=0.0)
        assert (edit(pipe) - unguided).abs().max() > 1e-3

    def test_siglip_guides_towards_the_words(self, photo, mask):
        pipe = siglip_pipe()
        distances = [
            pipe(
                ["apple"] * 4,
                photo,
                mask,
                generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
                clip_guidance_scale=scale,
                ranking="region",
            ).clip_distances
            for scale in (0.0, 200.0)
        ]
        assert all(guided < unguided for unguided, guided in zip(*distances, strict=True))

    def test_siglips_own_preparation_is_done(self):
        """Its mean, its standard deviation, and words padded as in its training."""
        pipe = siglip_pipe()
        picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        inputs = pipe.feature_extractor(picture, return_tensors="pt")
        words = pipe.tokenizer(["apple"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = pipe.clip_model(input_ids=words, **inputs)
            image_embeds = pipe.clip_embed(torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1)[None].float())
            text_embeds = pipe.encode_prompt(["apple"])
        normalized = torch.nn.functional.normalize
        assert_close(normalized(image_embeds), normalized(expected.image_embeds))
        assert_close(normalized(text_embeds), normalized(expected.text_embeds))

    def test_siglips_bias_makes_no_difference_among_labels(self, photo, mask):
        pipe = siglip_pipe()

        def distances() -> list[float]:
            generator = torch.Generator().manual_seed(0)
            return pipe("apple", photo, mask, generator=generator, candidate_labels=["pear", "car"]).clip_distances

        plain = distances()
        torch.nn.init.constant_(pipe.clip_model.logit_bias, -10.0)
        assert distances() == plain
        torch.nn.init.constant_(pipe.clip_model.logit_scale, 4.0)
        assert distances() != plain

    def test_siglip_and_clip_guide_together(self, edit):
        second = {f"{name}_2": make() for name, make in SIGLIP.items()}
        both = make_tiny_pipe(**second)
        assert both.embed_dims == [24, 32]
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(2, 3, 16, 16, generator=generator)
        region = torch.ones(2, 1, 16, 16)
        with torch.no_grad():
            found = [
                pipe.clip_distance(pictures, region, pipe.encode_prompt(["apple"]))
                for pipe in (both, make_tiny_pipe(), siglip_pipe())
            ]
        assert_close(found[0], (found[1] + found[2]) / 2)
        assert torch.isfinite(edit(both)).all()

    @pytest.mark.parametrize("second", [False, True])
    def test_it_is_saved_and_loaded_with_the_rest(self, second, edit, tmp_path):
        parts = {f"{name}_2": make() for name, make in SIGLIP.items()}
        pipe = make_tiny_pipe(**parts) if second else siglip_pipe()
        pipe.save_pretrained(tmp_path)
        expected = edit(pipe)
        for again in (
            DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
            load_model(str(tmp_path)).pipe,
        ):
            assert_close(edit(quietly(again)), expected)


class TestTwoDevices:
    def test_balanced_on_one_device_changes_nothing(self, edit, tiny_pipe, tiny_model_dir):
        again = DiffusionPipeline.from_pretrained(tiny_model_dir, trust_remote_code=True, device_map="balanced")
        assert_close(edit(quietly(again)), edit(tiny_pipe))

    def test_accelerates_hooks_change_nothing(self, edit, tiny_pipe):
        expected = edit(tiny_pipe, guidance_gradient="sample")
        for network in (tiny_pipe.unet, tiny_pipe.clip_model):
            dispatch_model(network, {"": "cpu"}, force_hooks=True)
        assert torch.equal(edit(tiny_pipe, guidance_gradient="sample"), expected)

    @pytest.mark.parametrize("two_clips", [False, True])
    def test_every_tensor_comes_back_to_the_unets_device(self, two_clips):
        """With devices that torch imitates: operations on tensors of two of them are refused, as on real ones."""
        parts = {"clip_model": tiny_clip, "tokenizer": tiny_tokenizer, "feature_extractor": tiny_feature_extractor}
        with FakeTensorMode(allow_non_fake_inputs=True):
            with torch.device("cuda:0"):
                unet = tiny_unet()
            with torch.device("cuda:1"):
                clips = {name: make() for name, make in parts.items()}
                clips |= {f"{name}_2": make() for name, make in parts.items()} if two_clips else {}
            pipe = make_tiny_pipe(unet=unet, **clips)
            for network, device in [(pipe.unet, "cuda:0"), *((model, "cuda:1") for model, _, _ in pipe.clips)]:
                dispatch_model(network, {"": torch.device(device)}, force_hooks=True)
            expected = torch.device("cuda:0")
            assert pipe._execution_device == expected

            prompt = pipe.encode_prompt(["apple"])
            sample = torch.rand(1, 3, 16, 16, device=expected)
            noise_pred, _ = pipe.predict(sample, torch.tensor(3), None)
            one = torch.ones(1, device=expected)
            guidance = Guidance(
                text_embeds=prompt,
                weights=one,
                negative_embeds=prompt,
                negative_weights=one,
                rival_embeds=prompt,
                rival_weights=one,
                image=sample,
                mask=sample[:, :1],
                gradient="estimate",
                clip_scale=20.0,
                range_scale=50.0,
                mse_scale=0.0,
                lpips_scale=0.0,
                match_release=False,
            )
            # warped copies need an operation that torch imitates on CPUs only
            loss = pipe.clip_loss(sample, guidance, torch.rand(1, 0, 13, device=expected))
            distance = pipe.clip_distance(sample, sample[:, :1], prompt)
            assert {item.device for item in (prompt, noise_pred, loss, distance)} == {expected}
