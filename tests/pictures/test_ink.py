"""Characters are found as if they were on white paper, whatever lies around them."""

import drawn_digits
import numpy as np
import pytest
from scipy import ndimage

from lenet_jax.pictures import frame, ink, things
from lenet_jax.pictures.box import Box

SIDE = 320
Y, X = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
R2 = X**2 + Y**2
DESK, PAPER, INK = np.array([92, 60, 34]), np.array([238, 236, 228]), np.array([32, 30, 44])


def printed(digit: int, size: int = 180) -> np.ndarray:
    """The share of ink in each pixel: [SIDE, SIDE]."""
    return 1 - drawn_digits.printed(digit, "DejaVuSans", size=size, side=SIDE) / 255


def sheet(share: np.ndarray, ink=INK, paper=PAPER) -> np.ndarray:
    """Ink on paper in colour [H, W, 3]."""
    ink, paper = (np.broadcast_to(np.asarray(each, float), 3) for each in (ink, paper))
    return np.float32(paper + (ink - paper) * share[..., None])


def with_edge(digit: int, sides: int, width: int, inset: int = 0) -> np.ndarray:
    """A stripe along some sides of the picture."""
    pixels = sheet(printed(digit))
    for side in range(sides):
        np.rot90(pixels, side)[:, inset : inset + width] = DESK
    return pixels


def on_a_desk(digit: int, desk=DESK) -> np.ndarray:
    pixels = np.full((500, 560, 3), desk, np.float32)
    pixels[60 : 60 + SIDE, 180 : 180 + SIDE] = sheet(printed(digit))
    return pixels


def turned(digit: int) -> np.ndarray:
    pixels = on_a_desk(digit) - DESK
    return np.float32(ndimage.rotate(pixels, 2, reshape=False, order=1) + DESK)


def ruled(digit: int, both: bool) -> np.ndarray:
    pixels = np.tile(PAPER, (SIDE, SIDE, 1)).astype(float)
    pixels[::27] = [170, 190, 225]
    if both:
        pixels[:, ::27] = [170, 190, 225]
    return np.float32(pixels + (INK - pixels) * printed(digit)[..., None])


def shadow(width: float) -> np.ndarray:
    return 1 - 0.5 / (1 + np.exp(-np.clip((X + 0.4 * Y) * SIDE / width, -50, 50)))[..., None]


KINDS = {
    "a frame of a pixel": lambda digit: with_edge(digit, 4, 1),
    "a wide frame": lambda digit: with_edge(digit, 4, 30),
    "a cell of a form": lambda digit: with_edge(digit, 4, 4, inset=6),
    "a strip of desk": lambda digit: with_edge(digit, 1, 12),
    "strips on two sides": lambda digit: with_edge(digit, 2, 25),
    "paper on a dark desk": on_a_desk,
    "paper on a light desk": lambda digit: on_a_desk(digit, [201, 170, 125]),
    "paper on a desk, turned": turned,
    "a white margin": lambda digit: sheet(np.pad(printed(digit), 30, constant_values=1), 255, 0),
    "light that falls off": lambda digit: sheet(printed(digit)) * (1 - 0.3 * R2)[..., None],
    "a soft shadow": lambda digit: sheet(printed(digit)) * shadow(8),
    "a hard shadow": lambda digit: sheet(printed(digit)) * shadow(0.1),
    "ruled paper": lambda digit: ruled(digit, both=False),
    "squared paper": lambda digit: ruled(digit, both=True),
    "ink as grey as the paper": lambda digit: sheet(printed(digit), [214, 60, 60], [50, 138, 60]),
    "faint ink": lambda digit: sheet(printed(digit), PAPER - 14),
}


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two images, one of which may be shifted by a pixel."""
    moves = [np.roll(a, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return max(np.corrcoef(moved.ravel(), b.ravel())[0, 1] for moved in moves)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_written_is_found(kind):
    for digit in (1, 4, 8):
        grain = np.random.default_rng(digit).normal(0, 1.5, (1000, 1000, 1))
        pixels = KINDS[kind](digit)
        pixels = pixels + grain[: pixels.shape[0], : pixels.shape[1]]
        (found,) = frame.find(np.clip(pixels, 0, 255).astype(np.float32))
        assert likeness(found.image, frame.center(sheet(printed(digit)))) > 0.9, digit
        assert found.doubt == ""


def row(*digits: int) -> np.ndarray:
    return sheet(np.concatenate([printed(digit)[:, 60:-60] for digit in digits], axis=1))


def test_several_are_found_from_left_to_right():
    found = frame.find(row(4, 0, 7, 1))
    for index, (each, digit) in enumerate(zip(found, (4, 0, 7, 1), strict=True)):
        assert likeness(each.image, frame.center(sheet(printed(digit)))) > 0.97
        assert 200 * index < each.box.left < each.box.right < 200 * (index + 1)
        inked = np.flatnonzero((printed(digit) > 0.5).any(axis=1))
        np.testing.assert_allclose(
            (each.box.top, each.box.bottom), (inked[0], inked[-1] + 1), atol=6
        )
        assert each.doubt == ""


def test_several_characters_are_one_where_classes_are_words():
    (found,) = frame.find(row(4, 0), apart=False)
    assert (found.box.left < 200 < found.box.right, found.doubt) == (True, "")


def test_strokes_that_do_not_touch_are_one_thing():
    share = printed(5)
    share[:, 150:154] = 0
    (found,) = frame.find(sheet(share))
    assert likeness(found.image, frame.center(sheet(printed(5)))) > 0.93


def test_what_touches_the_border_is_left_out_unless_it_is_all_there_is():
    share = printed(6)
    rows, columns = (np.flatnonzero((share > 0.5).any(axis=axis)) for axis in (1, 0))
    tight = sheet(share[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    (found,) = frame.find(tight)
    assert likeness(found.image, frame.center(sheet(share))) > 0.97
    assert found.doubt == "touches the picture's border"
    thumb = sheet(share)
    thumb[260:, :70] = [205, 150, 125]
    (found,) = frame.find(thumb)
    assert likeness(found.image, frame.center(sheet(share))) > 0.97
    assert found.doubt == ""


def test_ink_in_shadow_is_as_strong_as_ink_in_light():
    share = np.zeros((SIDE, SIDE))
    share[60:260, 150:166] = 1
    image = frame.center(sheet(share) * np.where(Y > 0, 0.4, 1)[..., None])[..., 0]
    column = image[:, 16].astype(int)
    assert abs(column[8:14].mean() - column[18:24].mean()) < 30


def test_a_grey_pictures_colours_are_its_grey_values():
    grey = np.float32(255 * (1 - printed(3)))
    np.testing.assert_array_equal(frame.center(np.dstack([grey] * 3)), frame.center(grey))


def thing(mask: np.ndarray, sign: int, level: float = 10) -> things.Thing:
    """A thing with a sharp outline on a picture [H, W]."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    inside = mask[box.slices]
    measured = {"contrast": 100, "closed": 1, "cut": 0, "border": 0}
    return things.Thing(box, inside, things.fill_holes(inside), sign, 0, level, **measured)


def rectangle(box: Box) -> np.ndarray:
    mask = np.zeros((100, 120), bool)
    mask[box.slices] = True
    return mask


DIGIT, CARD = rectangle(Box(30, 45, 72, 55)), rectangle(Box(20, 20, 80, 80))


def test_a_sheet_with_its_shadow_is_not_ink():
    rows, columns = np.indices(CARD.shape)
    shadow = (rows >= 20) & (rows < 80) & (columns >= 80) & (columns < 80 + (rows - 20) / 4)
    digit = thing(DIGIT, -1)
    on_sheet = [digit, thing(CARD & ~DIGIT, 1, level=20), thing((CARD | shadow) & ~DIGIT, 1)]
    assert ink.choose(on_sheet) == [digit]


@pytest.mark.parametrize("apart", [True, False])
def test_a_line_at_the_edge_of_a_card_is_not_a_stroke(apart):
    digit, card = thing(DIGIT, 1), thing(CARD & ~DIGIT, -1)
    for top, expected in ((74, (30, 40, 76, 60)), (77, digit.box)):
        line = thing(rectangle(Box(top, 40, top + 2, 60)), 1)
        assert [each.box for each in ink.choose([digit, card, line], apart)] == [expected]
