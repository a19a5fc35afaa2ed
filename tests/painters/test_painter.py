"""The seam to whoever fills a region: any painter will do, and variants of the pipeline forget nothing."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from plain_painter import PlainPainter
from tiny import tiny_unet

from blended_diffusion import editing
from blended_diffusion.editing.edit import SETTINGS_OF_EVERY_EDIT, make_again
from blended_diffusion.editing.editor import Editor, FolderEditor
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.records import read_record
from blended_diffusion.models import Model
from blended_diffusion.painters.blended_diffusion import BlendedDiffusionPainter
from blended_diffusion.painters.choice import painter_for
from blended_diffusion.painters.painter import Painter
from blended_diffusion.painters.regions import RegionsPipeline
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.painters.variants import variant_of
from blended_diffusion.painters.windows import WindowedPipeline
from pipeline_blended_diffusion import BlendedDiffusionPipeline


@pytest.fixture
def plain():
    pipe = DDPMPipeline(tiny_unet(out_channels=3), DDPMScheduler())
    return PlainPainter(Model(pipe, "plain", "0" * 64))


@pytest.fixture
def scene(photo, mask):
    return photo.resize((40, 30)), mask.resize((40, 30), PIL.Image.Resampling.NEAREST)


def test_blended_diffusion_is_a_painter(tiny_pipe):
    painter = painter_for(tiny_pipe)
    assert isinstance(painter, Painter) and painter_for(painter) is painter
    assert (painter.size, painter.model.name, painter.model.sha256) == (16, "in memory", "")
    model = Model(tiny_pipe, "tiny", "aa")
    assert painter_for(model) == BlendedDiffusionPainter(model)


def test_what_nobody_can_paint_with_is_named():
    other = DDPMPipeline(tiny_unet(out_channels=3), DDPMScheduler())
    for given, found in ((3, "int"), (other, "DDPMPipeline"), (Model(other, "other", ""), "DDPMPipeline")):
        with pytest.raises(TypeError, match=f"`model` is a {found}, for which there is no painter"):
            Editor(given)


class TestAnyPainter:
    def test_it_fills_the_region_and_nothing_else(self, plain, scene):
        photo, mask = scene
        edited = Editor(plain, num_images=3, batch_size=2).edit(photo, mask, EditSettings("rock", match_grain=False))
        assert edited.clip_distances == sorted(edited.clip_distances) and len(set(edited.seeds)) == 3
        inside = np.asarray(mask) > 0
        for image in edited.images:
            np.testing.assert_array_equal(np.asarray(image)[~inside], np.asarray(photo)[~inside])
            assert (np.asarray(image) != np.asarray(photo))[inside].any()

    @pytest.mark.slow
    def test_what_it_made_is_kept_and_made_again(self, plain, scene, tmp_path):
        made_with = MadeWith.on(torch.device("cpu"), torch.float32)
        editor = FolderEditor(plain, tmp_path, made_with, num_images=2, batch_size=2, film="gif", stem="plain")
        edited = editor.edit(*scene, "rock")
        record = read_record(min(tmp_path.glob("ranked/*.png")))
        assert (record.model.name, record.settings.num_inference_steps) == ("plain", 3)
        job = editor.prepare(*scene, record.settings, "")
        np.testing.assert_array_equal(np.asarray(job.finish(make_again(job, record))), np.asarray(edited.best))
        assert len(list(tmp_path.glob("films/*.gif"))) == 2

    def test_what_it_cannot_do_is_said_before_anything_is_made(self, plain, scene):
        with pytest.raises(ValueError, match="`num_inference_steps` is 0; give at least 1"):
            Editor(plain).edit(*scene, EditSettings("rock", num_inference_steps=0))

    @pytest.mark.parametrize(
        "wanted",
        [{"clip_guidance_scale": 5.0}, {"detail": 2}, {"region_prompts": ["a"]}, {"blend": False}, {"strength": 0.5}],
    )
    def test_what_means_nothing_to_it_is_refused_by_name(self, plain, scene, wanted):
        ((name, value),) = wanted.items()
        with pytest.raises(ValueError) as caught:
            Editor(plain).edit(*scene, EditSettings("rock", **wanted))
        assert str(caught.value) == f"`{name}` is {value!r}, which means nothing to PlainPainter; leave it out."

    def test_what_every_edit_has_is_not_the_painters_to_know(self, plain, scene):
        wanted = {"enforce_background": False, "context": 0.1, "feather": 2.0, "match_grain": False}
        assert {"prompt", "invert_mask", *wanted} == SETTINGS_OF_EVERY_EDIT
        assert Editor(plain, num_images=1).edit(*scene, EditSettings("rock", **wanted)).images

    def test_blended_diffusion_knows_all_but_those_of_networks_that_understand_words(self):
        unknown = set(EditSettings.__dataclass_fields__) - BlendedDiffusionPainter.known_settings
        assert unknown == {"guidance_scale", "fit_decoder", "size"}


VARIANTS = {
    "regions": RegionsPipeline.of,
    "windows": lambda pipe: WindowedPipeline.of(pipe, 2),
    "ddim": lambda pipe: painter_for(pipe).for_edit(EditSettings("rock", ddim=True)).model.pipe,
}


@pytest.mark.parametrize("derive", VARIANTS.values(), ids=VARIANTS)
class TestVariants:
    def test_what_was_set_on_the_pipeline_is_not_forgotten(self, tiny_pipe, derive):
        tiny_pipe.clip_chunk_size = 2
        tiny_pipe.lpips = torch.nn.Identity()
        tiny_pipe.set_progress_bar_config(disable=True, desc="steps")
        variant = derive(tiny_pipe)
        assert variant.clip_chunk_size == 2
        assert variant.lpips is tiny_pipe.lpips
        assert vars(variant)["_progress_bar_config"] == {"disable": True, "desc": "steps"}
        assert variant.unet is tiny_pipe.unet and variant.clip_model is tiny_pipe.clip_model
        for name, value in tiny_pipe.config.items():
            assert name == "scheduler" or variant.config[name] == value, name

    def test_what_is_set_on_it_is_not_set_on_the_pipeline(self, tiny_pipe, derive):
        variant = derive(tiny_pipe)
        variant.clip_chunk_size = 1
        variant.lpips = torch.nn.Identity()
        variant.set_progress_bar_config(desc="others")
        assert tiny_pipe.clip_chunk_size is None and tiny_pipe._lpips is None
        assert type(tiny_pipe) is BlendedDiffusionPipeline and type(tiny_pipe.scheduler) is DDPMScheduler
        assert tiny_pipe._progress_bar_config == {"disable": True}


def test_a_variant_of_the_same_class_paints_the_same_picture(tiny_pipe, photo, mask):
    pictures = [
        pipe("rock", photo, mask, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipe in (tiny_pipe, variant_of(tiny_pipe, BlendedDiffusionPipeline))
    ]
    assert torch.equal(*pictures)


def test_an_edit_knows_painters_alone():
    """Not even by name: any pipeline can stand behind a painter."""
    for path in Path(editing.__file__).parent.glob("*.py"):
        assert "pipeline_blended_diffusion" not in path.read_text(encoding="utf-8"), path.name
