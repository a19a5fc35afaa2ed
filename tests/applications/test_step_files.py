"""Steps as people write them down: which there are, and what is said about wrong ones."""

import json
from pathlib import Path

import pytest
from PIL import Image

from blended_diffusion.applications.keys import application_keys
from blended_diffusion.applications.registry import APPLICATIONS, application_of
from blended_diffusion.applications.step_files import parse_step, parse_steps, read_steps


pytestmark = pytest.mark.usefixtures("folder")


class TestStep:
    def test_values_of_a_table_become_what_they_mean(self):
        step = parse_step({"prompt": "rock", "mask": "a_mask.png", "strength": "0.5", "blend": "false", "seed": "7"})
        assert step.settings == {"prompt": "rock", "strength": 0.5, "blend": False}
        assert (step.mask, step.seed, step.num_images) == (Path("a_mask.png").absolute(), 7, None)

    def test_files_are_looked_for_beside_the_steps(self, tmp_path, monkeypatch):
        monkeypatch.chdir("/")
        assert parse_step({"prompt": "rock", "mask": "a_mask.png"}, tmp_path).mask == tmp_path / "a_mask.png"

    def test_regions_have_masks_and_words(self):
        step = parse_step(
            {"regions": [{"mask": "a_mask.png", "prompt": "rock"}, {"mask": "b_mask.png", "prompt": ""}]}
        )
        assert [(mask.name, prompt) for mask, prompt in step.regions] == [("a_mask.png", "rock"), ("b_mask.png", "")]
        assert step.title == "rock"
        assert [path.name for path in step.files] == ["a_mask.png", "b_mask.png"]

    @pytest.mark.parametrize(
        ("mask", "kind", "value"),
        [
            ({"box": [1, 2, 3, 4]}, "box", (1, 2, 3, 4)),
            ("{box: [1, 2, 3, 4]}", "box", (1, 2, 3, 4)),
            ({"polygon": [[1, 2], [3, 4], [5, 6]], "grow": 2}, "polygon", [(1, 2), (3, 4), (5, 6)]),
            ({"words": "the dog", "threshold": 0.3}, "words", "the dog"),
        ],
    )
    def test_a_mask_may_be_described(self, mask, kind, value):
        drawn = parse_step({"prompt": "rock", "mask": mask}).mask
        assert (drawn.kind, getattr(drawn, kind)) == (kind, value)
        assert drawn.needs_network == (kind == "words")

    def test_a_described_mask_may_need_files(self):
        step = parse_step({"prompt": "rock", "mask": {"difference": "b.png", "grow": 3}})
        assert step.files == [Path("b.png").absolute()]

    def test_defaults_fill_what_is_left_out_where_it_fits(self):
        step = parse_step(
            {"regions": [{"mask": "a_mask.png", "prompt": "rock"}]}, defaults={"prompt": "x", "strength": 1}
        )
        assert step.settings == {"strength": 1.0}
        assert parse_step({"strength": 0.5}, defaults={"prompt": "x", "strength": 1}).settings["strength"] == 0.5

    def test_an_application_has_its_own_keys(self, monkeypatch):
        def shade(editor, image: Image.Image, amount: int, settings: str = ""):
            pass

        monkeypatch.setitem(APPLICATIONS, "shade", shade)
        step = parse_step({"application": "shade", "amount": "3", "strength": 0.5})
        assert (step.application, step.arguments, step.settings) == ("shade", {"amount": 3}, {"strength": 0.5})
        with pytest.raises(ValueError, match="step: amount is missing"):
            parse_step({"application": "shade"})
        with pytest.raises(ValueError, match="step: amonut is no key here; did you mean amount?"):
            parse_step({"application": "shade", "amonut": 3, "amount": 3})

    @pytest.mark.parametrize("name", sorted(APPLICATIONS))
    def test_the_registered_applications_are_there(self, name):
        assert callable(application_of(name))
        with pytest.raises(ValueError, match="strenght is no key here; did you mean strength?"):
            needed = {"prompt": "x", "mask": "a_mask.png", "foreground": "a_mask.png", "painted": "a.png", "left": 1}
            keys = application_keys(name).model_fields
            given = {key: value for key, value in needed.items() if key in keys}
            parse_step({"application": name, "strenght": 1, **given})

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            ({"prompt": "r", "strength": 1.5}, "strength is 1.5; it should be less than or equal to 1."),
            ({"prompt": "r", "strength": "nan"}, "strength is 'nan'; it should be "),
            ({"prompt": "r", "clip_guidance_scale": float("inf")}, "clip_guidance_scale is inf; it should be"),
            ({"prompt": "r", "context": -1}, "context is -1; it should be greater than or equal to 0"),
            ({"prompt": "r", "num_inference_steps": 2.5}, "num_inference_steps is 2.5; it should be a valid integer"),
            ({"prompt": "r", "num_images": 0}, "num_images is 0; it should be greater than or equal to 1"),
            ({"prompt": "r", "ranking": "size"}, "ranking is 'size'; it should be 'surroundings', 'region' or 'none'"),
            ({"prompt": 7}, "prompt is 7; it should be a valid string"),
            ({"mask": "a_mask.png"}, "prompt is missing"),
            ({"prompt": "r", "mask": "z.png"}, "mask is 'z.png': there is no file '.*z.png'; give the name of"),
            ({"prompt": "r", "mask": 3}, "mask is 3: give the name of a picture file"),
            ({"prompt": "r", "mask": {"box": [1, 2, 3]}}, "mask is .*: in it: box.4 is missing"),
            ({"prompt": "r", "mask": {"bxo": [1, 2, 3, 4]}}, "mask is .*: give one of file, .*, words, not none."),
            ({"prompt": "r", "mask": {"box": [1, 2, 3, 4], "words": "a"}}, "give one of .*, not box and words"),
            ({"prompt": "r", "mask": {"alpha": "z.png"}}, "mask is .*: in it: alpha is 'z.png': there is no file"),
            ({"prompt": "r", "strenght": 1}, "strenght is no key here; did you mean strength?"),
            ({"prompt": "r", "xyzzy": 1}, "xyzzy is no key here; there are mask, prompt, "),
            ({"application": "fly"}, "application is 'fly'; give one of "),
            ({"regions": []}, r"regions is \[\]; give at least one"),
            ({"regions": "a"}, "regions is 'a'; it should be a valid list"),
            ({"regions": [{"prompt": "r"}]}, "regions.1.mask is missing"),
            ({"regions": [{"prompt": "r", "mask": "a_mask.png", "seed": 1}]}, "seed is no key here"),
            ({"regions": [{"prompt": "r", "mask": "a_mask.png"}], "prompt": "x"}, "prompt is no key here"),
            ("rock", "step 1 is 'rock'; give keys and values"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_one_sentence_with_the_number(self, data, complaint):
        with pytest.raises(ValueError, match=complaint) as raised:
            parse_steps([data])
        text = str(raised.value)
        assert text.startswith("step 1") and text.endswith((".", "?")) and "\n" not in text


class TestStepFiles:
    @pytest.mark.parametrize("name", ["steps.yaml", "steps.yml", "steps.json"])
    def test_yaml_and_json_say_the_same(self, name):
        data = [{"prompt": "rock", "mask": "a_mask.png", "strength": 0.5}, {"prompt": ""}]
        yaml = "- {prompt: rock, mask: a_mask.png, strength: 0.5}\n- prompt: ''\n"
        Path(name).write_text(json.dumps(data) if name.endswith("json") else yaml)
        assert read_steps(name) == parse_steps(data)

    @pytest.mark.parametrize(
        ("name", "text", "complaint"),
        [
            ("a.yaml", "- {prompt: rock", "'a.yaml' cannot be understood"),
            ("a.json", "[1,", "'a.json' cannot be understood"),
            ("a.yaml", "prompt: rock", "holds .*; give a list"),
            ("a.yaml", "", "holds None; give a list"),
            ("a.yaml", "[]", r"the steps are \[\]; give a list of one or more"),
            ("a.txt", "[]", "ends in '.txt'; this program reads .yaml and .json"),
            ("a.yaml", "- {prompt: rock, strength: 2}", "FILE 'a.yaml', step 1: strength is 2"),
            ("a.yaml", b"\xff\xfe\x00", "is not text"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, name, text, complaint):
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=complaint):
            read_steps(name, "FILE")

    def test_a_file_that_is_not_there_is_named(self):
        with pytest.raises(ValueError, match="FILE 'nothing.yaml' does not exist"):
            read_steps("nothing.yaml", "FILE")
        with pytest.raises(ValueError, match="FILE '.*' cannot be read"):
            read_steps(Path.cwd(), "FILE")
