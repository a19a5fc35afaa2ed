"""diffusers' own inpainting pipelines as painters: every family fills its region, and nothing else changes."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny_diffusers
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw
from tiny import make_tiny_pipe
from tiny_diffusers import FAMILIES, SIZES

from blended_diffusion.editing.editor import Editor
from blended_diffusion.inpainting_models import inpainting_class
from blended_diffusion.masks.regions import RegionMask, label
from blended_diffusion.models import Model, load_model
from blended_diffusion.painters.choice import painter_for
from blended_diffusion.painters.fitted_decoder import decode_fitted
from blended_diffusion.painters.inpainting import InpaintingPainter
from blended_diffusion.painters.memory import MemorySaving
from blended_diffusion.painters.settings import EditSettings


PAGE = Path(__file__).parents[2] / "docs" / "any-model.md"
# what the page calls them
TITLES = {
    "Stable Diffusion 1": "sd",
    "Stable Diffusion 2": "sd2",
    "Stable Diffusion 1 and 2, nine channels": "sd-inpainting",
    "SDXL": "sdxl",
    "SDXL, nine channels": "sdxl-inpainting",
    "Stable Diffusion 3": "sd3",
    "FLUX": "flux",
    "FLUX Fill": "flux-fill",
    "Kandinsky 2.2": "kandinsky",
    "DeepFloyd IF": "if",
}


@pytest.fixture(scope="module")
def models(family_folder):
    made = {}

    def model(family):
        if family not in made:
            upscaler = str(family_folder("if-upscaler")) if family == "if" else None
            made[family] = load_model(str(family_folder(family)), clip=str(family_folder("clip")), upscaler=upscaler)
        return made[family]

    return model


@pytest.fixture
def scene():
    """A 100×70 photo of noise, and a mask with something on all sides of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    mask = Image.new("L", (100, 70))
    ImageDraw.Draw(mask).ellipse((25, 15, 70, 55), fill=255)
    return Image.fromarray(pixels), mask


def wanted(family="sd", **changes):
    return EditSettings("a rock", **{"num_inference_steps": 2, "size": SIZES.get(family), **changes})


def painted(model, scene, num_images=1, seed=404, **changes):
    return Editor(model, seed, num_images, num_images).edit(*scene, wanted(**changes))


def difference(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_region_is_filled_and_nothing_else(models, scene, family):
    photo, mask = scene
    edited = painted(models(family), scene, 2, family=family)
    inside = np.asarray(mask) > 0
    for image in edited.images:
        changed = difference(image, photo)
        assert not changed[~inside].any() and changed[inside].mean() > 3
    assert edited.clip_distances == sorted(edited.clip_distances) and len(set(edited.clip_distances)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_the_same_alone_and_in_a_batch(models, scene, family):
    together = painted(models(family), scene, 3, family=family)
    for seed in (404, 406):
        alone = painted(models(family), scene, seed=seed, family=family)
        assert difference(alone.best, together.images[together.seeds.index(seed)]).max() <= 2
    first, second, _ = together.images
    assert difference(first, second).max() > 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_its_steps(models, scene, family):
    job = Editor(models(family)).prepare(*scene, wanted(family), "")
    stages = [len(one.steps) for one in job.make([1, 2], watch=True)]
    assert stages == ([3, 3] if family == "if" else [1, 1] if family.startswith("sdxl") else [2, 2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StableDiffusionPipeline", StableDiffusionInpaintPipeline),
        ("StableDiffusionInpaintPipeline", StableDiffusionInpaintPipeline),
        ("StableDiffusionXLImg2ImgPipeline", diffusers.StableDiffusionXLInpaintPipeline),
        ("StableDiffusion3Pipeline", diffusers.StableDiffusion3InpaintPipeline),
        ("FluxFillPipeline", diffusers.FluxFillPipeline),
        ("FluxPipeline", diffusers.FluxInpaintPipeline),
        ("StableDiffusionControlNetPipeline", None),
        ("PaintByExamplePipeline", None),
        # it is the decoder alone, and needs another repository's prior
        ("KandinskyV22InpaintPipeline", diffusers.KandinskyV22InpaintCombinedPipeline),
        ("IFPipeline", diffusers.IFInpaintingPipeline),
        ("KandinskyV22InpaintCombinedPipeline", diffusers.KandinskyV22InpaintCombinedPipeline),
        (["pipeline", "BlendedDiffusionPipeline"], None),
        ("DDPMPipeline", None),
        ("os", None),
        (None, None),
    ],
)
def test_which_pipeline_paints(name, expected):
    assert inpainting_class({"_class_name": name}) is expected


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("kandinsky", "strength", 0.5),
        ("flux-fill", "negative_prompt", "a tree"),
        ("sd-inpainting", "initial_mask_growth", 0.1),
        ("if", "size", 64),
        ("if", "fit_decoder", True),
        ("sd", "clip_guidance_scale", 10.0),
        ("sd", "detail", 2),
        ("sd", "blend", False),
    ],
)
def test_what_means_nothing_to_a_pipeline_is_refused_by_name(models, scene, family, setting, value):
    name = type(models(family).pipe).__name__
    with pytest.raises(ValueError, match=f"`{setting}` is {value!r}, which means nothing to {name}"):
        Editor(models(family)).prepare(*scene, EditSettings("a rock", **{setting: value}), "")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"strength": 0.1, "num_inference_steps": 5}, "`strength` 0.1 of `num_inference_steps` 5 leaves no step"),
        ({"scheduler": "system"}, "`scheduler` is 'system', which does not suit this model; give one of DDIM"),
        ({"size": 33}, "`size` is 33; StableDiffusionInpaintPipeline needs a multiple of 4"),
        ({"ranking": "none", "candidate_labels": ["a"]}, "`candidate_labels` needs a ranking"),
    ],
)
def test_bad_settings_are_one_sentence(models, scene, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Editor(models("sd")).prepare(*scene, wanted(**changes), "")


class TestSettings:
    def test_every_setting_makes_another_picture(self, models, scene):
        plain = painted(models("sd"), scene).best
        for changes in (
            {"guidance_scale": 1.5},
            {"negative_prompt": "a tree"},
            {"num_inference_steps": 3},
            {"strength": 0.5},
            {"scheduler": "EulerAncestralDiscreteScheduler"},
            {"size": 32},
            {"fit_decoder": True},
        ):
            other = painted(models("sd"), scene, **changes).best
            assert difference(plain, other).any(), changes

    def test_a_scheduler_is_one_edits_own(self, models, scene):
        before = models("sd").pipe.scheduler
        painted(models("sd"), scene, scheduler="DPMSolverMultistepScheduler", num_inference_steps=4)
        assert models("sd").pipe.scheduler is before

    @pytest.mark.slow
    @pytest.mark.parametrize("family", ["if", "kandinsky"])
    def test_another_scheduler_takes_the_steps_of_pipelines_of_several_networks(self, models, scene, family):
        """Also where the network predicts a variance that the scheduler does not know."""
        plain = painted(models(family), scene).best
        other = painted(models(family), scene, scheduler="EulerAncestralDiscreteScheduler").best
        assert difference(plain, other).any()
        assert difference(plain, painted(models(family), scene).best).max() == 0

    @pytest.mark.slow
    def test_negative_words_count_alike_alone_and_in_a_batch(self, models, scene):
        """Kandinsky's prior has twice as many pictures then."""
        together = painted(models("kandinsky"), scene, 2, negative_prompt="a tree")
        alone = painted(models("kandinsky"), scene, seed=405, negative_prompt="a tree").best
        assert difference(alone, together.images[together.seeds.index(405)]).max() <= 2
        assert difference(alone, painted(models("kandinsky"), scene, seed=405).best).any()

    def test_the_models_own_numbers_are_recorded(self, models, scene):
        job = Editor(models("sd")).prepare(*scene, "a rock", "")
        assert (job.settings.num_inference_steps, job.settings.guidance_scale, job.settings.strength) == (50, 7.5, 1.0)

    def test_a_folder_may_recommend_numbers(self, family_folder, tmp_path, scene):
        folder = shutil.copytree(family_folder("sd"), tmp_path / "sd")
        (folder / "edit_defaults.json").write_text(json.dumps({"num_inference_steps": 3, "guidance_scale": 4.0}))
        model = load_model(str(folder), clip="none")
        settings = Editor(model).prepare(*scene, EditSettings("a rock", guidance_scale=2.0), "").settings
        assert (settings.num_inference_steps, settings.guidance_scale, settings.ranking) == (3, 2.0, "none")
        (folder / "edit_defaults.json").write_text("[")
        with pytest.raises(ValueError, match="has an unreadable edit_defaults.json"):
            load_model(str(folder), clip="none")

    def test_a_growing_mask_ends_as_the_wanted_one(self, models, scene):
        photo, mask = scene
        grown = painted(models("sd"), scene, initial_mask_growth=0.3, num_inference_steps=4).best
        inside = np.asarray(mask) > 0
        assert not difference(grown, photo)[~inside].any()
        assert difference(grown, painted(models("sd"), scene, num_inference_steps=4).best)[inside].any()

    @pytest.mark.parametrize("family", ["sd", "sd-inpainting", "sdxl"])
    def test_a_map_of_change_holds_what_is_dark_to_the_photo(self, models, scene, family):
        photo, mask = scene

        def change(grey):
            settings = {"mask_is_change_map": True, "num_inference_steps": 6}
            level = mask.point([0] + [grey] * 255)
            edited = painted(models(family), (photo, level), 2, **settings)
            changed = [difference(image, photo) for image in edited.images]
            assert not any(one[np.asarray(mask) == 0].any() for one in changed)
            # as it was painted: what is pasted is weighted by the greys too
            job = Editor(models(family)).prepare(photo, level, wanted(**settings), "")
            return edited, difference(job.make([404])[0].image, job.canvas.model_image).mean()

        assert change(60)[1] < change(255)[1]
        plain = painted(models(family), scene, 2, num_inference_steps=6)
        whole, _ = change(255)
        assert [difference(*pair).max() for pair in zip(whole.images, plain.images, strict=True)] == [0, 0]

    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_words_between_two_prompts(self, models, scene, family):
        def between(share):
            return painted(models(family), scene, prompt_to="a pear", prompt_blend=share).best

        assert not difference(between(0.0), painted(models(family), scene).best).any()
        ends = [between(0.0), between(1.0)]
        assert all(difference(between(0.5), end).any() for end in ends)

    def test_regions_are_painted_one_after_another(self, models, scene):
        photo, _ = scene
        left, right = Image.new("L", photo.size), Image.new("L", photo.size)
        ImageDraw.Draw(left).rectangle((10, 20, 40, 50), fill=255)
        ImageDraw.Draw(right).rectangle((60, 20, 90, 50), fill=255)
        labels = label([left, right])
        union = Image.fromarray(np.maximum(np.asarray(left), np.asarray(right)))
        mask = RegionMask(union, None, "", labels)

        def made(*prompts):
            settings = wanted(region_prompts=list(prompts))
            return Editor(models("sd"), num_images=1).edit(photo, mask, settings).best

        both, other = made("a rock", "a pear"), made("a rock", "a tree")
        assert not difference(both, photo)[np.asarray(union) == 0].any()
        apart = difference(both, other)
        assert not apart[np.asarray(left) > 0].any() and apart[np.asarray(right) > 0].any()


class TestFittedDecoder:
    def test_what_lies_outside_comes_nearer_to_the_photo(self):
        vae = tiny_diffusers.autoencoder()
        before = {name: weight.clone() for name, weight in vae.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        photo = torch.rand(3, 16, 16, generator=generator) * 2 - 1
        mask = torch.zeros(1, 16, 16)
        mask[:, 4:12, 4:12] = 1
        latents = vae.encode(photo[None]).latent_dist.mode()

        def error(steps):
            return ((decode_fitted(vae, latents, photo, mask, steps)[0] - photo) * (1 - mask)).square().mean()

        assert error(60) < 0.8 * error(0)
        torch.testing.assert_close(decode_fitted(vae, latents, photo, mask, 0), vae.decode(latents).sample)
        for name, weight in vae.state_dict().items():
            assert torch.equal(weight, before[name])


class TestAnyPipeline:
    def test_one_in_memory_paints_without_a_ranking(self, scene):
        pipe = StableDiffusionInpaintPipeline(**tiny_diffusers.stable_diffusion().components)
        edited = Editor(pipe, num_images=2, batch_size=2).edit(*scene, wanted())
        assert (edited.seeds, edited.clip_distances) == ([404, 405], [0.0, 0.0])

    def test_one_that_takes_no_mask_is_refused(self):
        with pytest.raises(TypeError, match="`model` is a StableDiffusionPipeline, for which there is no painter"):
            painter_for(tiny_diffusers.stable_diffusion())

    def test_numbers_that_are_none_are_said(self, scene):
        pipe = StableDiffusionInpaintPipeline(**tiny_diffusers.stable_diffusion().components)
        pipe.unet.conv_out.weight.data[:] = float("nan")
        with pytest.raises(ArithmeticError, match="NaN in float32"):
            Editor(pipe, num_images=1).edit(*scene, wanted())

    def test_memory_is_saved_in_an_autoencoder_alone(self):
        pipe = StableDiffusionInpaintPipeline(**tiny_diffusers.stable_diffusion().components)
        painter = InpaintingPainter(Model(pipe, "tiny", ""))
        painter.save_memory(MemorySaving(vae_tiling=True, vae_slicing=True))
        assert painter.memory_saving() == MemorySaving(vae_tiling=True, vae_slicing=True)
        with pytest.raises(ValueError, match="Gradient checkpointing means nothing to StableDiffusionInpaintPipeline"):
            painter.save_memory(MemorySaving(gradient_checkpointing=True))
        with pytest.raises(ValueError, match="Blended Diffusion has no autoencoder"):
            painter_for(make_tiny_pipe()).save_memory(MemorySaving(vae_tiling=True))


class TestLoading:
    def test_networks_and_clip_are_known_by_their_hashes(self, models):
        parts = models("sd").parts
        assert [(part.kind, part.name) for part in parts[:3]] == [
            ("network", "text_encoder"),
            ("network", "unet"),
            ("network", "vae"),
        ]
        assert parts[3].kind == "clip" and len({part.sha256 for part in parts}) == 4

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"upscaler": "x"}, "upscaler 'x' is for DeepFloyd IF, and model .* is a StableDiffusionInpaintPipeline"),
            ({"clip": "/no/such"}, "clip '/no/such' cannot be loaded .*; give a folder or a Hub id, or 'none'"),
            (
                {"loras": [("/no/such.safetensors", 1.0)]},
                "lora '/no/such.safetensors' is neither a folder nor a Hub id",
            ),
        ],
    )
    def test_bad_options_are_one_sentence(self, family_folder, options, complaint):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_model(str(family_folder("sd")), **{"clip": "none", **options})
        assert "\n" not in str(caught.value)

    def test_blended_diffusion_has_a_clip_of_its_own(self, tiny_model_dir):
        with pytest.raises(ValueError, match="`clip` is 'bundled', which means nothing to model"):
            load_model(str(tiny_model_dir), clip="bundled")
        model = load_model(str(tiny_model_dir), clip="none")
        with pytest.raises(ValueError, match="`ranking` 'none' is for models without a CLIP; give 'surroundings' or"):
            painter_for(model).check(EditSettings("a rock", ranking="none"), None)

    def test_what_needs_more_than_words_a_photo_and_a_mask_is_refused(self, tmp_path):
        index = {"_class_name": "StableDiffusionControlNetPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(
            ValueError, match="nor has diffusers an inpainting pipeline for it that needs words, a photo"
        ):
            load_model(str(tmp_path), clip="none")

    @pytest.mark.slow
    def test_a_network_from_elsewhere_is_refused(self, models, tmp_path):
        """It would have no hash in the records."""
        whole = models("kandinsky").pipe
        parts = {name.removeprefix("prior_"): part for name, part in whole.components.items() if "prior_" in name}
        diffusers.KandinskyV22PriorPipeline(**parts).save_pretrained(tmp_path / "prior")
        decoder = diffusers.KandinskyV22InpaintPipeline(unet=whole.unet, scheduler=whole.scheduler, movq=whole.movq)
        decoder.save_pretrained(tmp_path / "decoder")
        with pytest.raises(ValueError, match="cannot be loaded as a KandinskyV22InpaintCombinedPipeline"):
            load_model(str(tmp_path / "decoder"), clip="none")
        (tmp_path / "decoder" / "README.md").write_text(f"---\nprior:\n- {tmp_path / 'prior'}\n---\n")
        with pytest.raises(ValueError, match="has its prior_prior from elsewhere, .*; save the whole Kandinsky"):
            load_model(str(tmp_path / "decoder"), clip="none")

    def test_code_that_comes_with_a_model_is_not_run(self, family_folder, tmp_path):
        folder = shutil.copytree(family_folder("sd"), tmp_path / "sd")
        marker = tmp_path / "executed"
        (folder / "unet" / "my_unet.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["my_unet", "MyUNet"]}))
        with pytest.raises(ValueError, match="cannot be loaded as a StableDiffusionInpaintPipeline"):
            load_model(str(folder), clip="none")
        assert not marker.exists()

    def test_pickles_are_refused(self, family_folder, tmp_path):
        folder = shutil.copytree(family_folder("sd"), tmp_path / "sd")
        for path in folder.glob("unet/*.safetensors"):
            path.unlink()
        torch.save(tiny_diffusers.text_unet().state_dict(), folder / "unet/diffusion_pytorch_model.bin")
        with pytest.raises(ValueError, match="cannot be loaded as a StableDiffusionInpaintPipeline"):
            load_model(str(folder), clip="none")

    def test_a_lora_counts_as_much_as_it_is_weighted(self, family_folder, models, scene, tmp_path):
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        pipe = StableDiffusionInpaintPipeline(**tiny_diffusers.stable_diffusion().components)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        layers = get_peft_model_state_dict(pipe.unet)
        StableDiffusionInpaintPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
        plain = painted(models("sd"), scene).best

        def with_weight(weight):
            model = load_model(str(family_folder("sd")), clip="none", loras=[(str(tmp_path / "lora"), weight)])
            assert [(part.kind, part.weight) for part in model.parts[3:]] == [("lora", weight)]
            return painted(model, scene).best

        assert difference(with_weight(0.0), plain).max() <= 1
        assert difference(with_weight(2.0), plain).max() > difference(with_weight(1.0), plain).max() > 1


class TestPage:
    """What `docs/any-model.md` says of each family is what the code does."""

    @pytest.fixture
    def tables(self):
        """Each table as rows of cells."""
        blocks = re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(encoding="utf-8"), flags=re.M)
        rows = [[row.strip("|").split("|") for row in block.splitlines()] for block in blocks]
        return [[[cell.strip() for cell in row] for row in table] for table in rows]

    def test_every_family_has_a_row(self):
        assert sorted(TITLES.values()) == sorted(FAMILIES)

    def test_which_settings_work(self, tables, models):
        (head, _, *rows) = next(table for table in tables if "`--strength`" in table[0])
        assert [row[0] for row in rows] == list(TITLES)
        for title, *cells in rows:
            model = models(TITLES[title])
            known = set(InpaintingPainter(model).known_settings)
            known |= {"interpolate"} if "prompt_to" in known else set()
            known |= {"lora"} if hasattr(model.pipe, "load_lora_weights") else set()
            known |= {"vae_tiling"} if hasattr(getattr(model.pipe, "vae", None), "enable_tiling") else set()
            names = [name.strip("`-").replace("-", "_") for name in head[1:]]
            assert cells == ["✓" if name in known else "–" for name in names], title

    def test_what_is_taken_where_nothing_is_said(self, tables, models, scene):
        (_, _, *rows) = next(table for table in tables if "guidance scale" in table[0])
        found = []
        for title, kind, *numbers in rows:
            for family in [TITLES[name] for name in title.split("; ")]:
                model = models(family)
                settings = Editor(model).prepare(*scene, wanted(family, num_inference_steps=None), "").settings
                values = (settings.num_inference_steps, settings.strength, settings.guidance_scale)
                assert (kind, numbers) == (
                    f"`{type(model.pipe).__name__}`",
                    ["–" if value is None else f"{value:g}" for value in values],
                )
                found.append(family)
        assert sorted(found) == sorted(FAMILIES)

    def test_what_means_nothing_to_any(self, models):
        text = PAGE.read_text(encoding="utf-8")
        (named,) = re.findall(r"^- \*\*Of CLIP's guidance\*\*(.*?)^- ", text, flags=re.M | re.S)
        refused = {name.replace("-", "_") for name in re.findall(r"`--([\w-]+)`", named)}
        known = set().union(*(InpaintingPainter(models(family)).known_settings for family in FAMILIES))
        assert len(refused) > 5 and not refused & known
        for name in ("num_inference_steps", "guidance_scale", "ranking", "region_prompts"):
            assert all(name in InpaintingPainter(models(family)).known_settings for family in FAMILIES)
