"""What people look at: files that are whole and say how they were made, sheets on which the pictures can be judged."""

import imageio.v3 as imageio
import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest

from blended_diffusion import gallery
from blended_diffusion.gallery import Entry, before_after, contact_sheet, film, write_film, write_png


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
