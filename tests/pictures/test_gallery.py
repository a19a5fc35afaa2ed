"""What people look at: files that are whole and say how they were made, sheets on which the pictures can be judged."""

import imageio.v3 as imageio
import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest

from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.gallery import Entry, before_after, contact_sheet, film, write_film, write_png


pytestmark = pytest.mark.full_sheets

RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 160, 40), (30, 40, 200), (128, 128, 128)


def plain(colour, size=(60, 40), mode="RGB"):
    return PIL.Image.new(mode, size, colour)


def colours(image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(maxcolors=image.width * image.height)}


@pytest.fixture
def mask():
    mask = plain(0, mode="L")
    mask.paste(255, (20, 10, 40, 30))
    return mask


@pytest.fixture
def entries(tmp_path):
    made = []
    for index, colour in enumerate((RED, GREEN, BLUE)):
        write_png(plain(colour), tmp_path / f"{index}.png")
        made.append(Entry(tmp_path / f"{index}.png", 0.1 + index, 404 + index))
    return made


class TestFiles:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_a_png_holds_pixels_profile_and_text(self, tmp_path, mode):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 4, len(mode)), dtype=np.uint8)
        write_png(PIL.Image.fromarray(pixels), tmp_path / "a.png", icc_profile=b"a profile", text='{"seed": 1}')
        with PIL.Image.open(tmp_path / "a.png") as read:
            np.testing.assert_array_equal(read, pixels)
            assert read.info["icc_profile"] == b"a profile"
            assert read.text == {"blended_diffusion": '{"seed": 1}'}
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_what_cannot_be_written_whole_leaves_the_old_file(self, tmp_path):
        write_png(plain(RED), tmp_path / "a.png")
        before = (tmp_path / "a.png").read_bytes()
        with pytest.raises(UnicodeEncodeError):
            write_png(plain(BLUE), tmp_path / "a.png", text="no room in a tEXt chunk for → and 猫\ud800")
        assert (tmp_path / "a.png").read_bytes() == before


class TestContactSheet:
    def test_it_shows_the_source_the_mask_and_every_picture(self, mask, entries):
        sheet = contact_sheet(plain(GREY), mask, (0, 0, 60, 40), entries, "a rock")
        assert {GREY, RED, GREEN, BLUE} <= colours(sheet)
        white = (255, 255, 255)
        assert white in colours(sheet)  # the outline of the mask

    def test_the_best_comes_first_and_is_framed(self, mask, entries):
        pixels = np.asarray(contact_sheet(plain(GREY), mask, (0, 0, 60, 40), entries, "a rock"))
        place = {colour: np.argwhere((pixels == colour).all(-1)) for colour in (RED, GREEN, BLUE)}
        order = sorted(place, key=lambda colour: tuple(place[colour][0] // 100))
        assert order == [RED, GREEN, BLUE]
        frame = np.argwhere((pixels == PIL.ImageColor.getrgb(gallery.ACCENT)).all(-1))
        top, left = place[RED].min(0)
        assert [top - 4, left - 4] in frame.tolist()

    def test_the_aspect_is_kept_and_the_pictures_are_large(self, mask, entries):
        pixels = np.asarray(contact_sheet(plain(GREY), mask, (0, 0, 60, 40), entries, "a rock"))
        rows, columns = np.argwhere((pixels == GREEN).all(-1)).T
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert width >= 256 and width / height == pytest.approx(60 / 40, rel=0.02)

    def test_a_small_part_is_shown_from_near_and_once_in_the_whole(self, mask, entries):
        photo = plain(GREY)
        photo.paste(GREEN, (0, 0, 15, 40))  # not in view
        sheet = np.asarray(contact_sheet(photo, mask, (15, 5, 45, 35), entries[:1], "a rock"))
        rows, columns = np.argwhere((sheet == GREEN).all(-1)).T
        assert len(rows) and np.ptp(columns) < 256

    @pytest.mark.parametrize(("number", "gaps"), [(1, 0), (4, 0), (7, 0), (32, 1), (64, 6)])
    def test_few_places_stay_empty(self, mask, entries, number, gaps):
        sheet = contact_sheet(plain(GREY), mask, (0, 0, 60, 40), (entries * 22)[:number], "")
        columns = round(sheet.width / (280 if number > 14 else 408))
        rows = round((sheet.height - 76) / (216.5 if number > 14 else 302))
        assert columns * rows - number - 2 == gaps

    def test_a_long_title_does_not_run_out_of_the_sheet(self, mask, entries):
        sheet = np.asarray(contact_sheet(plain(GREY), mask, (0, 0, 60, 40), entries, "rock\n" * 500))
        assert (sheet[:, -20:] == PIL.ImageColor.getrgb(gallery.PAPER)).all()

    def test_transparent_is_shown_white(self, tmp_path, mask):
        clear = plain((0, 0, 0, 0), mode="RGBA")
        write_png(clear, tmp_path / "clear.png")
        sheet = contact_sheet(clear, mask, (0, 0, 60, 40), [Entry(tmp_path / "clear.png", 0.1, 1)], "")
        assert (0, 0, 0) not in colours(sheet)


class TestBeforeAfter:
    def test_before_is_on_the_left_with_the_mask_outlined(self, mask, entries):
        pixels = np.asarray(before_after(plain(GREY), mask, (0, 0, 60, 40), entries[2].path, "a rock"))
        before, after = (np.argwhere((pixels == colour).all(-1)) for colour in (GREY, BLUE))
        outline = np.argwhere((pixels == 255).all(-1))
        middle = pixels.shape[1] / 2
        assert before[:, 1].max() < middle < after[:, 1].min()
        assert len(outline) and outline[:, 1].max() < middle
        # inside the outline lies the source, outside it too: it is a line
        assert len(outline) < 0.1 * len(before)

    def test_a_small_part_is_shown_from_near_below(self, mask, entries):
        whole = before_after(plain(GREY), mask, (0, 0, 60, 40), entries[0].path, "")
        both = before_after(plain(GREY), mask, (15, 5, 45, 35), entries[0].path, "")
        assert both.height > whole.height + 600


class TestFilm:
    def test_it_starts_with_the_source_and_rests_on_the_result(self):
        frames = film(plain(GREY), [plain(RED), plain(BLUE)])
        assert [frame.getpixel((0, 0)) for frame in frames] == [GREY] * 6 + [RED] + [BLUE] * 19

    @pytest.mark.parametrize("ending", ["mp4", "gif"])
    def test_it_can_be_played(self, tmp_path, ending):
        path = tmp_path / f"film.{ending}"
        steps = [plain((20 * index, 0, 0), (64, 48)) for index in range(10)]
        write_film(film(plain(GREEN, (64, 48)), steps), path)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        if ending == "mp4":
            frames = imageio.imread(path)
            assert frames.shape == (34, 48, 64, 3)
            np.testing.assert_allclose(frames[0, 20, 20], GREEN, atol=12)
        else:
            with PIL.Image.open(path) as played:
                assert played.is_animated and played.size == (64, 48)
                durations = []
                for index in range(played.n_frames):
                    played.seek(index)
                    durations.append(played.info["duration"])
            # equal frames in a row may be stored as one
            assert sum(durations) == pytest.approx(34 / 12 * 1000, rel=0.05)


class TestStrip:
    def test_the_last_step_is_always_shown(self):
        assert gallery.evenly(30, 5) == [5, 11, 17, 23, 29]
        assert gallery.evenly(7, 3) == [1, 3, 6]
        assert gallery.evenly(3, 8) == [0, 1, 2]

    def test_pictures_stand_side_by_side_in_their_order(self):
        colours = ["#ff0000", "#00ff00", "#0000ff"]
        sheet = gallery.strip(
            [PIL.Image.new("RGB", (256, 256), colour) for colour in colours], ["a", "b", "c"], title="rock"
        )
        found = [sheet.getpixel((x, sheet.height // 2)) for x in range(sheet.width)]
        places = [found.index(PIL.ImageColor.getrgb(colour)) for colour in colours]
        assert places == sorted(places)
        assert [found.count(PIL.ImageColor.getrgb(colour)) for colour in colours] == [256] * 3

    def test_four_stand_in_a_row(self):
        picture = PIL.Image.new("RGB", (256, 256), "red")
        one, two = (gallery.strip([picture] * count, [""] * count) for count in (4, 5))
        assert two.width == one.width and two.height > 1.5 * one.height

    def test_steps_are_shown_from_the_source_to_the_result(self):
        source = PIL.Image.new("RGB", (256, 256), (0, 0, 0))
        steps = [PIL.Image.new("RGB", (256, 256), (level, 0, 0)) for level in range(10, 110, 10)]
        sheet = gallery.strip_of_steps(source, steps, 2, "rock")
        seen = list(dict.fromkeys(sheet.getpixel((x, sheet.height // 2)) for x in range(sheet.width)))
        assert [colour for colour in seen if colour[1] == 0] == [(0, 0, 0), (50, 0, 0), (100, 0, 0)]


class TestFilms:
    def test_close_ups_have_even_sides(self):
        picture = PIL.Image.new("RGBA", (101, 77), "red")
        (near,) = gallery.close_ups([picture], (10, 11, 61, 50))
        assert (near.size, near.mode) == ((512, 392), "RGB")

    def test_a_slideshow_rests_on_its_ends(self):
        pictures = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
        frames = [frame.getpixel((0, 0)) for frame in gallery.slideshow(pictures)]
        counts = [frames.count(picture.getpixel((0, 0))) for picture in pictures]
        assert counts == [gallery.FRAMES_PER_SECOND, gallery.FRAMES_PER_SECOND // 4, gallery.FRAMES_PER_SECOND]


class TestExtended:
    @pytest.mark.parametrize("size, below", [((300, 100), True), ((100, 300), False)])
    def test_the_photo_stands_in_its_place_beside_or_above_the_picture(self, size, below):
        photo, picture = plain(RED, (50, 50)), plain(BLUE, size)
        sheet = np.asarray(gallery.extended(photo, picture, 20, 30, "rock"))
        before, after = ((sheet == colour).all(axis=-1) for colour in (RED, BLUE))
        scale = min(960 / max(size), 480 / min(size))
        assert before.sum() == round(50 * scale) ** 2
        assert after.sum() == round(size[0] * scale) * round(size[1] * scale)
        (top, left), (top_after, left_after) = (np.argwhere(where).min(axis=0) for where in (before, after))
        assert (left - left_after == 20 * scale) == below
        assert (top - top_after == 30 * scale) != below
