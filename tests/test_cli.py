"""The command as people use it: its flags, what it writes, what it says, and with which exit code it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import quick_first
from forked import Forked, run_forked

import blended_diffusion
from blended_diffusion.cli import main
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.editing.records import read_record, to_json
from blended_diffusion.pictures.gallery import write_png


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


pytestmark = pytest.mark.usefixtures("as_in_a_new_process")


@pytest.fixture
def files(tmp_path) -> Path:
    """A 40×30 photo, a mask, and things that are neither."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("photo.png")
    mask = PIL.Image.new("L", (40, 30))
    mask.save("black.png")
    mask.paste(255, (12, 8, 26, 22))
    mask.save("mask.png")
    mask.resize((30, 40)).save("turned.png")
    Path("words.png").write_text("no picture")
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:2000])
    Path("folder").mkdir()
    return tmp_path


@pytest.fixture
def edit(files, tiny_model_dir):
    """Runs `edit` in this process; gives the exit code."""

    def run(*arguments: str) -> int:
        given = ["-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir)]
        return main(["edit", *given, "--device", "cpu", *arguments])

    return run


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "blended_diffusion", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # tests that run in the background inherit an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ranked(folder: str) -> list[Path]:
    return sorted(Path(folder, "ranked").glob("*.png"))


def pixels(folder: str) -> dict[str, bytes]:
    found = {}
    for path in ranked(folder):
        with PIL.Image.open(path) as picture:
            found[path.name] = picture.tobytes()
    return found


def settings_of(folder: str) -> dict:
    return json.loads(Path(folder, "run.json").read_text())["settings"]


class TestEdit:
    def test_it_writes_what_it_promises(self, edit, capsys):
        assert edit("--num-images", "3", "--vid", "--export_assets", "-o", "rock.png") == 0
        names = {str(path.relative_to("output")) for path in Path("output").rglob("*") if path.is_file()}
        stems = [path.stem for path in ranked("output")]
        assert [re.sub(r"^\d\.\d{4}_", "", stem) for stem in sorted(stems, key=lambda stem: stem[-3:])] == [
            f"rock_seed_{seed}" for seed in (404, 405, 406)
        ]
        assert names == {
            "run.json",
            "contact_sheet.png",
            "before_after.png",
            "mask.png",
            "mask_preview.png",
            "assets/rock.png",
            "assets/rock_mask.png",
            *(f"assets/rock_seed_{seed}.png" for seed in (404, 405, 406)),
            *(f"films/{stem}.mp4" for stem in stems),
            *(f"ranked/{stem}.{ending}" for stem in stems for ending in ("png", "json")),
        }
        out, err = capsys.readouterr()
        assert stems[0] in out and "contact_sheet.png" in out
        assert "pictures: 100%" in err and "steps:" in err

    def test_nothing_outside_the_mask_changes(self, edit):
        assert edit("--num-images", "1", "--quiet") == 0
        before, after = (np.asarray(PIL.Image.open(path)) for path in ("photo.png", ranked("output")[0]))
        outside = np.asarray(PIL.Image.open("mask.png")) == 0
        np.testing.assert_array_equal(after[outside], before[outside])
        assert (after != before).any()

    def test_inverted_the_inside_is_kept(self, edit):
        assert edit("--num-images", "1", "--quiet", "--invert_mask") == 0
        before, after = (np.asarray(PIL.Image.open(path)) for path in ("photo.png", ranked("output")[0]))
        inside = np.asarray(PIL.Image.open("mask.png")) > 0
        np.testing.assert_array_equal(after[inside], before[inside])
        assert (after[~inside] != before[~inside]).any()

    def test_quiet_says_nothing(self, edit, capsys):
        assert edit("--num-images", "1", "--quiet") == 0
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("flags", "settings"),
        [
            ("--timestep_respacing 10 --skip_timesteps 4", {"num_inference_steps": 10, "strength": 0.6}),
            ("--timestep-respacing 10 --skip-timesteps 0", {"num_inference_steps": 10, "strength": 1.0}),
            ("--skip_timesteps 2", {"num_inference_steps": 5, "strength": 0.6}),
            ("--num-inference-steps 6 --strength 0.5", {"num_inference_steps": 6, "strength": 0.5}),
            ("--clip_guidance_lambda 10 --range_lambda 0", {"clip_guidance_scale": 10, "range_guidance_scale": 0}),
            ("--clip-guidance-scale 10 --range-guidance-scale 5", {"clip_guidance_scale": 10}),
            ("--aug_num 2", {"num_augmentations": 2}),
            ("--num_augmentations 2", {"num_augmentations": 2}),
            ("--ddim --negative-prompt cat", {"ddim": True, "negative_prompt": "cat"}),
            ("--candidate-labels tree,sky,", {"candidate_labels": ["tree", "sky"]}),
            ("--guidance-gradient estimate --match-release", {"guidance_gradient": "estimate", "match_release": True}),
            ("--no_enforce_background", {"enforce_background": False}),
            (
                "--local_clip_guided_diffusion",
                {"blend": False, "background_mse_scale": 0, "background_lpips_scale": 0},
            ),
            (
                "--background_preservation_loss --lpips_sim_lambda 0",
                {"background_lpips_scale": 0, "background_mse_scale": 10000},
            ),
            (
                "--background_preservation_loss --lpips_sim_lambda 0 --l2_sim_lambda 7",
                {"background_lpips_scale": 0, "background_mse_scale": 7},
            ),
            ("--context 1.5", {"context": 1.5}),
            ("--ranking region", {"ranking": "region"}),
            ("", {"num_inference_steps": 5, "strength": 0.8, "clip_guidance_scale": 20, "num_augmentations": 3}),
        ],
    )
    def test_flags_become_settings(self, edit, flags, settings):
        assert edit("--num-images", "1", "--quiet", *flags.split()) == 0
        made = settings_of("output")
        assert {name: made[name] for name in settings} == settings

    @pytest.mark.parametrize(
        ("flags", "batches"),
        [
            ("", [[404, 405, 406, 407]]),
            ("--num-images 3 --batch_size 2 --seed 7", [[7, 8], [9]]),
            ("--iterations_num 2 --batch-size 1", [[404], [405]]),
            ("--gpu_id 0 --num_images 1", [[404]]),
            ("--model_output_size 16 --num_images 1", [[404]]),
        ],
    )
    def test_flags_become_batches(self, edit, tiny_model_dir, flags, batches):
        # without --device, which --gpu_id contradicts
        given = ["-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir), "--quiet"]
        assert main(["edit", *given, *flags.split()]) == 0
        assert json.loads(Path("output/run.json").read_text())["batches"] == batches

    def test_the_photos_kind_is_kept(self, edit):
        """Transparent, turned by its EXIF orientation, with a colour profile."""
        from PIL import ImageCms

        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        rgba = np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)
        PIL.Image.fromarray(rgba).save("turned_photo.png", exif=exif, icc_profile=profile)
        assert edit("--num-images", "1", "--quiet", "-i", "turned_photo.png") == 0
        with PIL.Image.open(ranked("output")[0]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (40, 30))
            assert picture.info["icc_profile"] == profile
            assert 0x0112 not in picture.getexif()
            upright = np.rot90(rgba, -1)
            outside = np.asarray(PIL.Image.open("mask.png")) == 0
            np.testing.assert_array_equal(np.asarray(picture)[outside], upright[outside])
            np.testing.assert_array_equal(np.asarray(picture)[..., 3], upright[..., 3])

    def test_running_out_of_memory_is_a_failure(self, edit, monkeypatch, capsys, caplog):
        from pipeline_blended_diffusion import BlendedDiffusionPipeline

        def no_room(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(BlendedDiffusionPipeline, "predict", no_room)
        assert edit("--num-images", "4", "--quiet") == 1
        assert "going on with 2" in caplog.text and "going on with 1" in caplog.text
        assert "blended-diffusion: error: One picture alone does not fit" in capsys.readouterr().err

    def test_weights_without_effect_are_pointed_out(self, edit, capsys):
        assert edit("--num-images", "1", "--quiet", "--l2_sim_lambda", "3") == 0
        assert "do nothing without --background_preservation_loss" in capsys.readouterr().err


class TestResume:
    def test_the_finished_are_kept(self, edit, capsys):
        assert edit("--num-images", "3", "--batch_size", "2") == 0
        whole = pixels("output")
        for path in ranked("output")[:2]:
            path.unlink()
        kept = ranked("output")[0]
        written = kept.stat().st_mtime_ns
        capsys.readouterr()
        assert edit("--num-images", "3", "--batch_size", "2", "--resume") == 0
        assert pixels("output") == whole and kept.stat().st_mtime_ns == written

    def test_without_it_the_finished_are_pointed_out(self, edit, capsys):
        assert edit("--num-images", "1") == 0
        assert edit("--num-images", "1") == 0
        assert "--resume would keep the 1 that are finished" in capsys.readouterr().err

    def test_another_machine_is_pointed_out(self, edit, capsys):
        assert edit("--num-images", "1") == 0
        run = json.loads(Path("output/run.json").read_text())
        run["made_with"]["torch"] = "1.13"
        Path("output/run.json").write_text(json.dumps(run))
        assert edit("--num-images", "2", "--resume") == 0
        assert "made with another torch;" in capsys.readouterr().err

    def test_the_number_format_is_the_one_it_began_with(self, edit, capsys):
        assert edit("--num-images", "1", "--dtype", "bfloat16") == 0
        assert edit("--num-images", "2", "--resume") == 0
        assert "made with another" not in capsys.readouterr().err
        records = [json.loads(path.with_suffix(".json").read_text()) for path in ranked("output")]
        assert [record["made_with"]["dtype"] for record in records] == ["bfloat16"] * 2

    def test_another_edit_in_the_folder_is_refused(self, edit, capsys):
        assert edit("--num-images", "1", "--quiet") == 0
        assert edit("--num-images", "1", "--quiet", "--seed", "5", "--strength", "0.5") == 2
        assert "holds another edit ('rock'; different are: strength, seed)" in capsys.readouterr().err
        assert len(ranked("output")) == 1

    def test_killed_and_resumed_it_is_as_if_nothing_had_happened(self, edit, tiny_model_dir):
        flags = "--num-images 6 --batch_size 2 --num-inference-steps 20 --quiet".split()
        given = ["-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir)]
        edit_killed = ["edit", *given, "--device", "cpu", "--output_path", "killed", *flags]
        process = Forked(main, edit_killed, folder=Path.cwd())
        wait_for_pictures(process.is_alive, "killed", 2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finished = {path: path.stat().st_mtime_ns for path in ranked("killed")}
        assert 2 <= len(finished) < 6
        assert edit("--output_path", "killed", "--resume", *flags) == 0
        assert edit("--output_path", "whole", *flags) == 0
        assert pixels("killed") == pixels("whole") and len(ranked("killed")) == 6
        records = [Path(path).with_suffix(".json").is_file() for path in ranked("killed")]
        assert all(records)
        assert all(path.stat().st_mtime_ns == then for path, then in finished.items() if is_whole(path))

    def test_ctrl_c_ends_it_with_130(self, files, tiny_model_dir):
        given = ["-p", "rock", "-i", "photo.png", "--mask", "mask.png", "--model", str(tiny_model_dir)]
        process = start("edit", *given, *"--device cpu --batch_size 1 --num-inference-steps 60".split())
        wait_for_pictures(lambda: process.poll() is None, "output", 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert re.search(r"interrupted: [1-3] of 4 pictures are finished; --resume makes the others", err)
        assert "Traceback" not in err


def is_whole(path: Path) -> bool:
    return path.with_suffix(".json").is_file()


def wait_for_pictures(is_alive: Callable[[], bool], folder: str, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(Path(folder, "ranked").glob("*.json"))) < number:
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


class TestReplay:
    @pytest.fixture
    def picture(self, edit) -> Path:
        """The second of a batch of three."""
        assert edit("--num-images", "3", "--quiet") == 0
        return next(path for path in ranked("output") if path.stem.endswith("405"))

    def test_it_makes_the_picture_again(self, picture, capsys):
        assert main(["replay", str(picture), "--device", "cpu"]) == 0
        again = picture.with_name(f"{picture.stem}_replay.png")
        np.testing.assert_array_equal(PIL.Image.open(again), PIL.Image.open(picture))
        assert f"{again}: pixel for pixel the same" in capsys.readouterr().out
        assert read_record(again) == read_record(picture)

    def test_in_another_process_too(self, picture):
        replay = ["replay", str(picture), "--output_path", "again.png", "--device", "cpu"]
        ended = run_forked(main, replay, folder=Path.cwd())
        assert ended.returncode == 0, ended.stderr
        assert "pixel for pixel the same" in ended.stdout

    def test_files_may_have_moved(self, picture, tiny_model_dir, capsys):
        Path("elsewhere").mkdir()
        for name in ("photo.png", "mask.png"):
            Path(name).rename(f"elsewhere/{name}")
        assert main(["replay", str(picture)]) == 2
        assert "the record's file (it may be elsewhere now: say where with --init_image)" in capsys.readouterr().err
        model = shutil.copytree(tiny_model_dir, "elsewhere/model")
        flags = ["-i", "elsewhere/photo.png", "--mask", "elsewhere/mask.png", "--model", str(model), "--device", "cpu"]
        assert main(["replay", str(picture), *flags, "--output_path", "elsewhere"]) == 0
        assert f"{Path('elsewhere', picture.stem)}_replay.png: pixel for pixel the same" in capsys.readouterr().out

    def test_a_picture_changed_since_is_told(self, picture, capsys):
        with PIL.Image.open(picture) as image:
            changed = image.copy()
        changed.putpixel((0, 0), tuple((value + 9) % 256 for value in changed.getpixel((0, 0))))
        write_png(changed, picture, text=to_json(read_record(picture)))
        assert main(["replay", str(picture), "--device", "cpu", "--quiet", "--output_path", "a.png"]) == 0
        assert main(["replay", str(picture), "--device", "cpu", "--output_path", "a.png"]) == 0
        assert re.search(r"not the same: pixels differ by up to (9|2..) of 255", capsys.readouterr().out)

    @pytest.mark.parametrize("name", ["photo.png", "mask.png", "model"])
    def test_what_has_changed_since_is_refused(self, picture, capsys, tmp_path, tiny_model_dir, name):
        flags = []
        if name == "model":
            model = shutil.copytree(tiny_model_dir, tmp_path / "model")
            weights = next((model / "unet").glob("*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
            flags = ["--model", str(model)]
        else:
            with PIL.Image.open(name) as image:
                changed = image.copy()
            changed.putpixel((20, 15), 0 if name == "mask.png" else (1, 2, 3))
            changed.save(name)
        assert main(["replay", str(picture), *flags]) == 2
        flag = {"photo.png": "--init_image", "mask.png": "--mask", "model": "--model"}[name]
        assert re.search(
            f"error: {flag} '.*{name}' is not what the picture was made from",
            " ".join(capsys.readouterr().err.split()),
        )

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            ("photo.png", "photo.png' holds no record"),
            ("nothing.png", "nothing.png' does not exist"),
            ("folder", "folder' is a folder"),
            ("words.png", "words.png' is not a picture"),
            ("PICTURE --output_path PICTURE", "is what the replay is made from"),
            ("PICTURE --output_path photo.png", "--output_path 'photo.png' is what the replay is made from"),
            ("PICTURE --output_path mask.png", "--output_path 'mask.png' is what the replay is made from"),
            ("PICTURE --output_path nowhere/a.png", "'nowhere/a.png' is in a folder that cannot be written to"),
            ("PICTURE --output_path a.jpg", "'a.jpg' is neither a folder nor a PNG's name"),
            ("", "Missing argument 'PICTURE'"),
            ("PICTURE --seed 3", "No such option: --seed"),
        ],
    )
    def test_bad_input_is_one_sentence(self, picture, capsys, flags, complaint):
        capsys.readouterr()
        arguments = [str(picture) if word == "PICTURE" else word for word in flags.split()]
        assert main(["replay", *arguments]) == 2
        out, err = capsys.readouterr()
        assert complaint in err and out == ""
        assert len(err.splitlines()) == 1

    def test_a_damaged_record_is_one_sentence(self, picture, capsys):
        write_png(PIL.Image.open(picture), Path("bad.png"), text='{"seed": 1}')
        assert main(["replay", "bad.png"]) == 2
        assert "bad.png' has a damaged record (settings: Field required)" in capsys.readouterr().err


BAD_INPUT = [
    ("-i nothing.png", "--init_image '.*nothing.png' does not exist"),
    ("-i folder", "--init_image '.*folder' is a folder"),
    ("-i words.png", "--init_image '.*words.png' is not a picture"),
    ("-i half.png", "--init_image '.*half.png' is damaged"),
    ("--mask nothing.png", "--mask '.*nothing.png' does not exist"),
    ("--mask folder", "--mask '.*folder' is a folder"),
    ("--mask words.png", "--mask '.*words.png' is not a picture"),
    ("--mask half.png", "--mask '.*half.png' is damaged"),
    ("--mask black.png", "--mask '.*black.png' leaves nothing to edit"),
    ("--mask turned.png", "--mask '.*turned.png' is 30×40 pixels .* the photo is 40×30"),
    ("--model nothing/at/all", "--model 'nothing/at/all' is neither a folder nor a Hub id"),
    ("--model folder", "--model 'folder' has no model_index.json"),
    ("--model photo.png", "--model 'photo.png' is a file"),
    ("--strength 0", "'--strength': 0 is out of range; give a number above 0 and at most 1"),
    ("--strength 1.5", "'--strength': 1.5 is out of range"),
    ("--strength nan", "'--strength': nan is out of range"),
    ("--strength much", "'--strength': 'much' is not a number"),
    ("--num-images 0", "'--num-images': 0 is out of range; give a whole number of at least 1"),
    ("--num-images 2.5", "'--num-images': '2.5' is not a whole number"),
    ("--num-inference-steps -3", "'--num-inference-steps': -3 is out of range"),
    ("--num-inference-steps 1001", "`num_inference_steps` is 1001; the network knows at most 1000"),
    ("--num-inference-steps 2 --strength 0.1", "leaves no step to take"),
    ("--timestep_respacing 10 --skip_timesteps 10", "--skip_timesteps 10 leaves none of 10 steps"),
    ("--skip_timesteps 25", "--skip_timesteps 25 leaves none of 5 steps"),
    ("--skip_timesteps -1", "'--skip_timesteps': -1 is out of range"),
    ("--clip-guidance-scale -1", "'--clip-guidance-scale': -1 is out of range"),
    ("--clip_guidance_lambda inf", "'--clip_guidance_lambda': inf is out of range"),
    ("--aug_num -1", "'--aug_num': -1 is out of range"),
    ("--batch_size 0", "'--batch_size': 0 is out of range"),
    ("--seed -1", "'--seed': -1 is out of range"),
    ("--context -0.5", "'--context': -0.5 is out of range"),
    ("--guidance-gradient both", "'--guidance-gradient': 'both' is unknown; give sample or estimate"),
    ("--vid-format avi", "'--vid-format': 'avi' is unknown; give mp4 or gif"),
    ("--dtype float8", "'--dtype': 'float8' is unknown"),
    ("--device toaster", "--device 'toaster' is not here"),
    ("--gpu_id 0", "--device cpu and --gpu_id 0 say the same thing twice"),
    ("--num-images 2 --iterations_num 1", "--num-images 2 and --iterations_num 1 say the same thing twice"),
    ("--strength 0.5 --skip_timesteps 1", "--strength 0.5 and --skip_timesteps 1 say the same thing twice"),
    (
        "--num-inference-steps 5 --timestep_respacing 6",
        "--num-inference-steps 5 and --timestep_respacing 6 say the same thing twice",
    ),
    ("--clip-guidance-scale 1 --clip_guidance_lambda 1", "say the same thing twice"),
    ("--range-guidance-scale 1 --range_lambda 1", "say the same thing twice"),
    ("--num-augmentations 1 --aug_num 1", "say the same thing twice"),
    ("--model_output_size 512", "--model_output_size 512: --model '.*' makes pictures of 16×16; give --model one of"),
    ("--output_path photo.png", "--output_path 'photo.png' cannot be written to"),
    ("-o results/a.png", "--output_file 'results/a.png' is not a plain name"),
    ("-o a.jpg", "--output_file 'a.jpg' ends in '.jpg'; results are lossless"),
    ("--strenght 0.5", "No such option: --strenght .*--strength"),
    ("--strength 0.01", "leaves no step to take"),
    ("--num-inference-steps 2000", "`num_inference_steps` is 2000; the network knows at most 1000"),
    ("extra", "unexpected extra argument"),
    ("-p", "Option '-p' requires an argument"),
]


@pytest.mark.parametrize(("flags", "complaint"), BAD_INPUT, ids=[flags for flags, _ in BAD_INPUT])
def test_bad_input_is_one_sentence(edit, capsys, flags, complaint):
    assert edit(*flags.split()) == 2
    out, err = capsys.readouterr()
    sentences = [line for line in err.splitlines() if "error: " in line]
    assert len(sentences) == 1 and sentences[0].startswith("blended-diffusion: error: ")
    assert re.search(complaint, sentences[0])
    assert out == "" and "Traceback" not in err
    assert not list(Path().rglob("*_seed_*")) and not Path("output").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("edit -i photo.png", "Missing option '--prompt' / '-p'"),
        ("edit -p rock", "Missing option '--init_image' / '-i'"),
        ("edti", "No such command 'edti'. Did you mean 'edit'?"),
        ("edit -p rock -i nothing.png", "--init_image '.*nothing.png' does not exist"),
    ],
)
def test_from_the_shell_bad_input_is_one_line(files, arguments, complaint):
    process = start(*arguments.split())
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1 and re.search(complaint, err)


@pytest.mark.parametrize(
    "arguments",
    quick_first(
        [["edit", "-p", "rock", "-i", "nothing.png"], ["--help"], ["edit", "--help"], ["replay", "nothing.png"]]
    ),
)
def test_what_is_said_at_once_does_not_wait_for_torch(arguments):
    code = (
        f"import sys; from blended_diffusion.cli import main; main({arguments});"
        " print([name for name in ('torch', 'diffusers', 'transformers', 'scipy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT).stdout
    assert out.splitlines()[-1] == "[]"


class TestHelp:
    @pytest.fixture
    def help(self, capsys, monkeypatch) -> str:
        monkeypatch.setenv("COLUMNS", "200")
        assert main(["edit", "--help"]) == 0
        return capsys.readouterr().out

    def test_it_names_every_flag_of_the_released_editor(self, help):
        for flag in (
            "-p --prompt -i --init_image --mask --skip_timesteps --timestep_respacing --ddim"
            " --local_clip_guided_diffusion --model_output_size --aug_num --clip_guidance_lambda --range_lambda"
            " --lpips_sim_lambda --l2_sim_lambda --background_preservation_loss --invert_mask --no_enforce_background"
            " --seed --gpu_id --output_path -o --output_file --iterations_num --batch_size --vid --export_assets"
        ).split():
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help), flag

    def test_it_is_grouped(self, help):
        places = [
            help.index(group) for group in ("Input", "Output", "Method", "The released editor's names", "Machine")
        ]
        assert places == sorted(places)

    def test_it_is_honest_about_the_bundled_model(self, help):
        words = " ".join(help.split())
        assert "64×64" in words
        for word in KNOWN_WORDS:
            assert word in words

    def test_without_arguments_it_is_shown(self, capsys):
        assert main([]) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in ("edit", "replay", "convert"))

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"blended-diffusion {blended_diffusion.__version__}\n"


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("a photo of a rock", None),
        ("a roze", "hint: the bundled model does not know 'roze'; it knows rose, "),
        ("a red castle", "hint: the bundled model does not know 'red', 'castle'; it knows "),
    ],
)
def test_words_the_bundled_model_does_not_know_are_pointed_out(edit, capsys, prompt, hint):
    # refused right after, so that nothing is made
    assert edit("-p", prompt, "--model", "bundled", "--model_output_size", "64", "--skip_timesteps", "999") == 2
    err = capsys.readouterr().err
    if hint is None:
        assert "hint" not in err
    else:
        assert hint in err and all(word in err for word in KNOWN_WORDS)


def test_other_models_words_are_not_judged(edit, capsys):
    assert edit("-p", "a castle", "--num-images", "1") == 0
    assert "hint" not in capsys.readouterr().err


def test_without_a_mask_there_is_nothing_to_invert(files, capsys):
    assert main(["edit", "-p", "rock", "-i", "photo.png", "--invert_mask"]) == 2
    assert "--invert_mask needs a --mask" in capsys.readouterr().err


def test_convert_is_a_command(capsys):
    assert main(["convert", "--help"]) == 0
    assert "guided-diffusion" in capsys.readouterr().out
