import json
import subprocess
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import make_tiny_pipe

from blended_diffusion.applications.video.clips import read_clip, read_masks, write_video
from blended_diffusion.applications.video.edit import (
    EditedFrame,
    PaintedFrame,
    carry_over,
    edit_frame,
    edit_video,
    steady_squares,
)
from blended_diffusion.applications.video.flow import dense_flow, flicker, follow, move_along
from blended_diffusion.cli import main
from blended_diffusion.editing.editor import Editor
from blended_diffusion.painters.settings import EditSettings
from pipeline_blended_diffusion import BlendedDiffusionPipeline


SIZE = (64, 48)


pytestmark = pytest.mark.usefixtures("as_in_a_new_process")


def ground(width: int = 96, height: int = 64) -> Image.Image:
    """Something to follow: coarse random patches."""
    patches = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def scene() -> tuple[list[Image.Image], list[Image.Image]]:
    """A camera that moves to the right by three pixels a frame, and a mask that stays on one thing."""
    frames, masks = [], []
    for index in range(6):
        frames.append(ground().crop((3 * index, index, 3 * index + SIZE[0], index + SIZE[1])))
        mask = Image.new("L", SIZE)
        ImageDraw.Draw(mask).ellipse((32 - 3 * index, 12 - index, 55 - 3 * index, 35 - index), fill=255)
        masks.append(mask)
    return frames, masks


@pytest.fixture
def editor(tiny_pipe) -> Editor:
    return Editor(tiny_pipe, num_images=2)


def save(pictures, folder: str) -> str:
    Path(folder).mkdir()
    for index, picture in enumerate(pictures):
        picture.save(Path(folder, f"{index + 1}.png"))
    return folder


def mean_flicker(pictures, scene) -> float:
    frames, masks = scene
    return np.mean(
        [
            flicker(pictures[index], pictures[index - 1], masks[index], dense_flow(frames[index], frames[index - 1]))
            for index in range(1, len(frames))
        ]
    )


class TestFlow:
    def test_a_shift_is_found(self, scene):
        flow = dense_flow(scene[0][1], scene[0][0])
        assert flow.shape == (48, 64, 2)
        assert np.abs(np.median(flow, axis=(0, 1)) - (3, 1)).max() < 0.1

    def test_what_is_warped_lies_on_the_next_frame(self, scene):
        before, now = (np.asarray(frame, float) for frame in scene[0][:2])
        moved, known = move_along(np.asarray(scene[0][0]), dense_flow(scene[0][1], scene[0][0]))
        assert np.abs(moved - now)[known].mean() < 0.1 * np.abs(before - now).mean()
        assert not known[:, -2:].any() and not known[-1].any() and known[:-2, :-5].all()

    def test_flicker_is_the_change_that_movement_does_not_explain(self, scene):
        (before, now, *_), (_, mask, *_) = scene
        still = np.zeros((48, 64, 2), np.float32)
        assert flicker(now, now, mask, still) == 0
        assert flicker(now.point(lambda value: value // 2), now.point(lambda value: value // 2 + 7), mask, still) == 7
        assert flicker(now, before, mask, dense_flow(now, before)) < 0.1 * flicker(now, before, mask, still)
        assert flicker(now, before, mask, still + 100) is None

    def test_tiny_frames_are_refused(self):
        with pytest.raises(ValueError, match="8×40 pixels; .* from 12×12 on"):
            dense_flow(Image.new("RGB", (8, 40)), Image.new("RGB", (8, 40)))

    def test_flows_add_up(self, scene):
        flow = follow(dense_flow(scene[0][2], scene[0][1]), dense_flow(scene[0][1], scene[0][0]))
        assert np.abs(np.median(flow, axis=(0, 1)) - (6, 2)).max() < 0.1


class TestClips:
    def test_frames_come_in_the_order_of_their_numbers(self):
        save([Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in range(12)], "frames")
        Path("frames/notes.txt").write_text("no frame")
        clip = read_clip("frames")
        assert [frame.getpixel((0, 0))[0] for frame in clip] == list(range(12)) and len(clip) == 12
        assert len(list(clip)) == 12  # and again

    @pytest.mark.slow
    def test_a_film_is_read_back(self, scene):
        write_video(scene[0], Path("film.mp4"), 12.5, None)
        clip = read_clip("film.mp4")
        assert (clip.count, clip.size, clip.frames_per_second, clip.sound) == (6, SIZE, 12.5, False)
        for read, frame in zip(clip, scene[0], strict=True):
            # colours are stored at half the size: these patches of random ones suffer, their brightness does not
            assert np.abs(np.asarray(read.convert("L"), float) - np.asarray(frame.convert("L"))).mean() < 3

    def test_odd_frames_and_transparent_ones_make_a_film(self):
        write_video([Image.new("RGBA", (33, 25), (200, 0, 0, 0))] * 2, Path("film.mp4"), 5, None)
        clip = read_clip("film.mp4")
        assert clip.size == (34, 26)
        assert np.asarray(next(iter(clip))).min() > 240

    @pytest.mark.slow
    def test_sound_goes_along(self):
        sound = "-f lavfi -i testsrc=duration=1:size=32x24:rate=6 -f lavfi -i sine=duration=1 loud.mp4"
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *sound.split()], check=True)
        clip = read_clip("loud.mp4")
        assert clip.sound
        write_video(clip, Path("film.mp4"), clip.frames_per_second, clip.path)
        assert read_clip("film.mp4").sound

    def test_masks_are_one_or_one_for_each_frame(self, scene):
        clip = read_clip(save(scene[0], "frames"))
        for mask in (save(scene[1], "masks"), save(scene[1][:1], "one"), "one/1.png"):
            masks = read_masks(mask, clip)
            wanted = scene[1] if mask == "masks" else scene[1][:1] * 6
            assert len(masks) == 6
            assert [mask.tobytes() for mask in masks] == [mask.tobytes() for mask in wanted]
        (inverted, *_) = read_masks("masks", clip, invert=True)
        assert (np.asarray(inverted) == 255 - np.asarray(scene[1][0])).all()

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda: "nowhere", "clip '.*nowhere' does not exist; give a video file or a folder of frames"),
            (lambda: save([], "empty"), "'.*empty' is a folder without pictures"),
            (lambda: Path("bad.mp4").write_text("words") and "bad.mp4", "'.*bad.mp4' cannot be read .no video that"),
            (lambda: save([Image.new("L", (4, 4)), Image.new("L", (4, 5))], "two"), "2.png' is 4×5 .* frame is 4×4;"),
        ],
    )
    def test_what_is_no_clip_is_said_in_a_sentence(self, make, message):
        with pytest.raises(ValueError, match=message):
            read_clip(make())

    @pytest.mark.parametrize(
        "masks, message",
        [
            ([Image.new("L", SIZE, 255)] * 4, "mask '.*masks' has 4 masks for 6 frames; give one, or one for each"),
            ([Image.new("L", (9, 9), 255)] * 6, "masks of 9×9 pixels .* the frames are 64×48; they must be the same"),
            ([Image.new("L", SIZE)] * 6, "leaves nothing to edit in any frame; paint white"),
        ],
    )
    def test_what_are_no_masks_is_said_in_a_sentence(self, scene, masks, message):
        clip = read_clip(save(scene[0], "frames"))
        with pytest.raises(ValueError, match=message):
            read_masks(save(masks, "masks"), clip)


class TestSquares:
    def test_they_hold_every_mask_have_one_size_and_move_smoothly(self):
        random = np.random.default_rng(0)
        boxes = []
        for index in range(40):
            x, y = 20 + 5 * index + random.integers(-2, 3), 60 + random.integers(-2, 3)
            width, height = random.integers(30, 41, 2)
            boxes.append(None if index in (11, 12) else (x, y, x + width, y + height))
        squares = steady_squares(boxes, (400, 200), 0.25)
        starts = np.array([square[:2] for square in squares])
        for box, (left, top, right, bottom) in zip(boxes, squares, strict=True):
            assert right - left == bottom - top == squares[0][2] - squares[0][0]
            assert 0 <= left and 0 <= top and right <= 400 and bottom <= 200
            if box is not None:
                assert left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
        # twice the difference is how unevenly they move; the boxes do by several pixels
        assert np.abs(np.diff(starts[3:-3], 2, axis=0)).mean() < 1.5

    def test_one_mask_has_one_square(self):
        assert len(set(steady_squares([(10, 5, 30, 44)] * 9, (64, 48), 0.25))) == 1

    @pytest.mark.parametrize("box", [(0, 10, 64, 30), (2, 0, 60, 48)])
    def test_a_mask_longer_than_the_frame_is_high_is_held_too(self, editor, scene, box):
        mask = Image.new("L", SIZE)
        mask.paste(255, box)
        (square,) = steady_squares([box], SIZE, 0.25)
        assert square[0] <= box[0] and square[2] >= box[2] and square[1] < 0
        picture = edit_frame(editor, scene[0][0], mask, square, EditSettings("rock")).image
        outside = np.asarray(mask) == 0
        assert (np.asarray(picture)[outside] == np.asarray(scene[0][0])[outside]).all()
        assert (np.asarray(picture) != np.asarray(scene[0][0])).any()


class TestEditVideo:
    def test_it_flickers_at_most_half_as_much_as_independent_frames(self, editor, scene):
        frames, masks = scene = scene[0][:3], scene[1][:3]
        made = list(edit_video(editor, frames, masks, "rock"))
        squares = steady_squares([mask.getbbox() for mask in masks], SIZE, 0.25)
        alone = [
            edit_frame(Editor(editor.model, seed, num_images=1), frame, mask, square, EditSettings("rock")).image
            for seed, (frame, mask, square) in enumerate(zip(frames, masks, squares, strict=True))
        ]
        ours = mean_flicker([frame.image for frame in made], scene)
        assert ours <= mean_flicker(alone, scene) / 2
        assert ours == pytest.approx(np.mean([frame.flicker for frame in made[1:]]))

    def test_the_background_is_exact_in_every_frame(self, editor, scene):
        frames, masks = scene[0][:3], scene[1][:3]
        for made, frame, mask in zip(edit_video(editor, frames, masks, "rock"), frames, masks, strict=True):
            different = (np.asarray(made.image) != np.asarray(frame)).any(axis=-1)
            assert different.any() and not different[np.asarray(mask) == 0].any()

    def test_the_best_first_candidate_gives_the_seed(self, tiny_pipe, scene):
        editor = Editor(tiny_pipe, num_images=4)
        frames, masks = scene[0][:3], scene[1][0]
        made = list(edit_video(editor, frames, masks, "rock"))
        square = steady_squares([masks.getbbox()], SIZE, 0.25)[0]
        settings = EditSettings("rock", context=50.0)
        best = editor.edit(frames[0].crop(square), masks.crop(square), settings)
        assert made[0].image.crop(square).tobytes() == best.best.tobytes()
        assert (made[0].seed, made[0].clip_distance) == (best.seeds[0], best.clip_distances[0])
        assert [frame.seed for frame in made] == [best.seeds[0]] * 3
        assert [frame.strength for frame in made] == [None, 0.25, 0.25]

    def test_the_same_place_has_the_same_noise(self, scene):
        draws = []

        class Recording(BlendedDiffusionPipeline):
            def draw_noise(self, like, generators):
                draws.append(super().draw_noise(like, generators))
                return draws[-1]

        pipe = Recording(**{**make_tiny_pipe().components, "default_num_inference_steps": 5})
        pipe.set_progress_bar_config(disable=True)
        made = edit_video(Editor(pipe, num_images=1), *scene, "")
        next(made)
        draws.clear()
        next(made)
        first = list(draws)
        draws.clear()
        next(made)
        assert first and len(first) == len(draws)
        assert all(torch.equal(one, other) for one, other in zip(first, draws, strict=True))

    def test_frames_with_nothing_to_edit_stay_and_the_edit_begins_again_after_them(self, editor, scene):
        frames, masks = scene
        black = Image.new("L", SIZE)
        made = list(edit_video(editor, frames, [black, masks[1], black, black, masks[4], masks[5]], "rock"))
        for index in (0, 2, 3):
            assert made[index].image.tobytes() == frames[index].tobytes()
            assert made[index].seed is None
        assert [frame.strength for frame in made] == [None, None, None, None, None, 0.25]
        assert len({made[index].seed for index in (1, 4, 5)}) == 1
        assert [frame.flicker is None for frame in made] == [True, True, True, True, True, False]

    def test_a_mask_too_thin_for_the_model_leaves_its_frame(self, editor, scene):
        frames, masks = scene
        line = Image.new("L", SIZE)
        line.paste(255, (10, 20, 50, 21))
        made = list(edit_video(editor, frames[:2], [masks[0], line], "rock"))
        assert made[1].image.tobytes() == frames[1].tobytes() and made[1].seed is None
        with pytest.raises(ValueError, match="nothing to edit at the model's size of 16×16"):
            list(edit_video(editor, frames[:2], [line, line], "rock"))

    def test_what_was_painted_is_moved_and_the_rest_is_the_frame(self, scene):
        (before, *_, frame), (mask_before, *_, mask) = scene
        (square,) = steady_squares([mask_before.getbbox()], SIZE, 0.25)
        made = EditedFrame(before, Image.new("RGB", (16, 16), "white"), 1, 0, 0, 0)
        way = np.full((48, 64, 2), (15, 5), np.float32)
        start = np.asarray(carry_over(frame, mask, PaintedFrame(before, mask_before, square, made, way)))
        inside = np.asarray(mask) == 255
        assert (start[inside] == 255).all()
        assert (start[~inside] == np.asarray(frame)[~inside]).all()
        assert carry_over(frame, mask, PaintedFrame(before, mask_before, square, made, -way)) is None

    def test_later_frames_start_from_what_was_painted(self, editor, scene):
        frames, masks = scene[0][:3], scene[1][:3]
        made = list(edit_video(editor, frames, masks, "rock"))
        squares = steady_squares([mask.getbbox() for mask in masks], SIZE, 0.25)
        way = follow(dense_flow(frames[2], frames[1]), dense_flow(frames[1], frames[0]))
        start = carry_over(frames[2], masks[2], PaintedFrame(frames[0], masks[0], squares[0], made[0], way))
        single = Editor(editor.model, made[0].seed, num_images=1)
        settings = EditSettings("rock", strength=0.25, initial_mask_growth=0.0)
        again, other = (
            edit_frame(single, frames[2], masks[2], squares[2], settings, start=picture).image.tobytes()
            for picture in (start, frames[2])
        )
        assert made[2].image.tobytes() == again != other

    def test_a_still_clip_comes_to_rest(self, editor, scene):
        made = list(edit_video(editor, scene[0][:1] * 4, scene[1][0], "rock"))
        assert made[1].image.tobytes() == made[2].image.tobytes() == made[3].image.tobytes()

    def test_the_frame_before_takes_the_first_ones_place_when_that_is_out_of_reach(self, editor, scene):
        mask = Image.new("L", SIZE)
        mask.paste(255, (20, 10, 44, 34))
        still = np.zeros((48, 64, 2), np.float32)
        way = iter([8, 8, 8])
        made = edit_video(editor, scene[0][:4], mask, "rock", flow=lambda *_: still + (next(way), 0))
        assert [frame.strength for frame in made] == [None, 0.25, 0.25, 0.25]

    def test_transparency_is_the_clips_own(self, editor, scene):
        frames = [frame.copy() for frame in scene[0][:2]]
        for frame in frames:
            frame.putalpha(Image.linear_gradient("L").resize(SIZE))
        masks = scene[1][:2]
        for made, frame, mask in zip(edit_video(editor, frames, masks, "rock"), frames, masks, strict=True):
            assert made.image.mode == "RGBA"
            assert made.image.getchannel("A").tobytes() == frame.getchannel("A").tobytes()
            outside = np.asarray(mask) == 0
            assert (np.asarray(made.image)[outside] == np.asarray(frame)[outside]).all()

    def test_finished_frames_are_not_made_again(self, editor, scene):
        frames, masks = scene[0][:5], scene[1][:5]
        whole = list(edit_video(editor, frames, masks, "rock"))
        kept = {index: whole[index] for index in (0, 1, 3)}
        again = list(edit_video(editor, frames, masks, "rock", finished=kept.get))
        assert again[3] is whole[3]
        for one, other in zip(whole, again, strict=True):
            assert one.image.tobytes() == other.image.tobytes()
            assert replace(one, image=None, painted=None) == replace(other, image=None, painted=None)

    @pytest.mark.parametrize(
        "masks, message",
        [
            ([Image.new("L", SIZE, 255)] * 2, "`masks` are 2 for 6 `frames`; give one, or one for each"),
            (
                [Image.new("L", (32, 32), 255)] * 6,
                "Frame 1 is 64×48 pixels .* its mask 32×32 .* must be the same size",
            ),
            ([Image.new("L", SIZE)] * 6, "`masks` are black in every frame; paint white"),
        ],
    )
    def test_bad_masks_are_said_in_a_sentence(self, editor, scene, masks, message):
        with pytest.raises(ValueError, match=message):
            next(edit_video(editor, scene[0], masks, "rock"))


class TestCommand:
    @pytest.fixture
    def run(self, scene, tiny_model_dir):
        save(scene[0][:3], "frames"), save(scene[1][:3], "masks")

        def call(*arguments: str, prompt: str = "rock") -> int:
            given = [
                "-p",
                prompt,
                "-i",
                "frames",
                "--mask",
                "masks",
                "--model",
                str(tiny_model_dir),
                "--device",
                "cpu",
            ]
            return main(["video", *given, "--num-images", "2", "--quiet", *arguments])

        return call

    def test_it_writes_what_it_promises(self, run, scene):
        assert run("--fps", "6") == 0
        names = sorted(path.name for path in Path("output/frames").iterdir())
        assert names == [f"{index + 1:06}.png" for index in range(3)]
        for name, frame, mask in zip(names, scene[0][:3], scene[1][:3], strict=True):
            outside = np.asarray(mask) == 0
            with Image.open(Path("output/frames", name)) as made:
                assert (np.asarray(made)[outside] == np.asarray(frame)[outside]).all()
        film = read_clip("output/result.mp4")
        assert (film.count, film.frames_per_second, film.size) == (3, 6, SIZE)
        assert Path("output/contact_strip.png").exists() and Path("output/first_frame/contact_sheet.png").exists()
        record = json.loads(Path("output/video.json").read_text())
        assert record["settings"]["prompt"] == "rock" and record["frame_strength"] == 0.25
        assert len(record["frames"]) == 3 and len({frame["seed"] for frame in record["frames"]}) == 1

    def test_a_run_goes_on_where_it_was(self, run):
        assert run() == 0
        pictures = {path: path.read_bytes() for path in Path("output/frames").iterdir()}
        first, *_, last = sorted(pictures)
        last.unlink(), Path("output/result.mp4").unlink()
        stamp = first.stat().st_mtime_ns
        assert run("--resume") == 0
        assert first.stat().st_mtime_ns == stamp and Path("output/result.mp4").exists()
        assert {path: path.read_bytes() for path in Path("output/frames").iterdir()} == pictures

    def test_the_first_frame_can_be_made_again(self, run, capsys):
        assert run("--invert_mask") == 0
        picture = next(Path("output/first_frame/ranked").glob("*.png"))
        assert main(["replay", str(picture), "--device", "cpu"]) == 0
        assert "pixel for pixel the same" in capsys.readouterr().out

    def test_another_video_is_not_overwritten(self, run, capsys):
        assert run() == 0
        assert run(prompt="sand") == 2
        assert "holds another video ('rock'; different are: prompt); give another folder" in capsys.readouterr().err

    def test_bad_input_ends_with_2_and_one_sentence(self, run, capsys):
        Path("masks/3.png").unlink()
        assert run() == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("blended-diffusion: error: --mask") and "2 masks for 3 frames" in error
        assert not Path("output").exists()
