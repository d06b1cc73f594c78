import io

import drawn_digits
import numpy as np
import pytest
from PIL import Image, ImageFilter

from lenet_jax.pictures import frame, read


def save(path, pixels: np.ndarray | Image.Image, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def centred(path, **options) -> np.ndarray:
    return frame.center(read.read(path).pixels, **options).astype(int)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two pictures: 1 is the same.

    One of them may be shifted by a pixel: a centre of mass between two pixels goes to either.
    """
    moves = [np.roll(a, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return max(np.corrcoef(moved.ravel(), b.ravel())[0, 1] for moved in moves)


THREE = drawn_digits.printed(3, "DejaVuSans")
INK = 255 - THREE  # the coverage of each pixel
WIDER = np.asarray(Image.fromarray(INK).filter(ImageFilter.MaxFilter(7)))
BAR = np.full((160, 160), 255, np.uint8)  # a one that fills its box as a card does
BAR[30:130, 73:87], BAR[30:130, 74:86] = 128, 0

FORMS = {  # of the same digit, each as (pixels, suffix, how it is saved)
    "light on dark": (INK, ".png", {}),
    "grey on grey": ((90 + THREE * 0.3).astype(np.uint8), ".png", {}),
    "blue on yellow": (
        (np.array([250, 220, 60]) - np.array([230, 180, -90]) * (INK / 255)[..., None]).astype(
            np.uint8
        ),
        ".png",
        {},
    ),
    "black on nothing": (np.dstack([np.zeros((160, 160, 3), np.uint8), INK]), ".png", {}),
    "white on nothing": (np.dstack([np.full((160, 160, 3), 255, np.uint8), INK]), ".png", {}),
    "a card in the void": (
        np.dstack([THREE, np.pad(np.full((140, 140), 255, np.uint8), 10)]),
        ".png",
        {},
    ),
    "ink with a hard edge": (
        np.dstack([THREE, THREE, THREE, np.where(INK, 255, 0).astype(np.uint8)]),
        ".png",
        {},
    ),
    "white ink with a hard edge": (
        np.dstack([INK, INK, INK, np.where(INK, 255, 0).astype(np.uint8)]),
        ".png",
        {},
    ),
    "ink with a white outline": (np.dstack([THREE, THREE, THREE, WIDER]), ".png", {}),
    "grey with a clear white": (THREE, ".png", {"transparency": 255}),
    "colour with a clear white": (
        np.dstack([THREE] * 3),
        ".png",
        {"transparency": (255, 255, 255)},
    ),
    "palette with a clear white": (
        Image.fromarray(THREE).convert("P"),
        ".png",
        {"transparency": 255},
    ),
    "gif with a clear white": (
        Image.fromarray(THREE).convert("P"),
        ".gif",
        {"transparency": 255},
    ),
    "16 bits": (THREE.astype(np.uint16) * 200, ".png", {}),
    "jpeg": (THREE, ".jpg", {"quality": 60}),
    "gif": (THREE, ".gif", {}),
    "tiff": (THREE, ".tif", {}),
    "upside down, says its exif": (THREE[::-1, ::-1], ".jpg", {"exif": {0x0112: 3}}),
    "wide": (np.pad(THREE, ((0, 0), (300, 50)), constant_values=255), ".png", {}),
    "sloping light": (
        (THREE * 0.6 + np.linspace(0, 80, 160)[None, :]).astype(np.uint8),
        ".png",
        {},
    ),
    "specks": (
        np.where(np.random.default_rng(0).random(THREE.shape) < 0.003, 0, THREE).astype(np.uint8),
        ".png",
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_digit_in_any_form_is_the_same_input(form, tmp_path):
    pixels, suffix, options = FORMS[form]
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = {"exif": exif}
    path = save(tmp_path / f"form{suffix}", pixels, **options)
    expected = frame.center(THREE.astype(np.float32))
    assert likeness(centred(path), expected) > 0.985


def test_a_bar_of_ink_on_nothing_is_not_a_card(tmp_path):
    path = save(tmp_path / "bar.png", BAR, transparency=255)
    assert likeness(centred(path), frame.center(BAR.astype(np.float32))) > 0.985


@pytest.mark.parametrize("factor", [0.3, 1, 7])
def test_the_size_of_the_picture_does_not_matter(factor, tmp_path):
    side = round(160 * factor)
    image = Image.fromarray(THREE).resize((side, side))
    image.save(tmp_path / "three.png")
    assert likeness(centred(tmp_path / "three.png"), frame.center(THREE.astype(np.float32))) > 0.98


def bomb(side: int) -> bytes:
    """A few bytes that say they are many pixels."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "png")
    return stream.getvalue()


def encoded(pixels: np.ndarray, form: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


BAD = {
    "no picture": (b"no picture", "is not a picture in a known format"),
    "an empty file": (b"", "is not a picture in a known format"),
    "half a picture": (encoded(THREE)[:600], "cannot be read"),
    "a bomb": (bomb(30000), "has more than 89 million pixels"),
    "a small bomb": (bomb(10000), "has more than 89 million pixels"),
    "one colour": (encoded(np.full((50, 50), 77, np.uint8)), "is empty"),
    "one pixel": (encoded(np.zeros((1, 1), np.uint8)), "is empty"),
    "nothing at all": (encoded(np.zeros((9, 9, 4), np.uint8)), "is empty"),
    "not a number": (
        encoded(np.where(INK > 99, np.nan, 1).astype(np.float32), "tiff"),
        "cannot be read .some of its pixels are not finite numbers",
    ),
    "an infinite one": (
        encoded(np.where(INK > 99, np.inf, 1).astype(np.float32), "tiff"),
        "cannot be read .some of its pixels are not finite numbers",
    ),
    "only grain": (
        encoded(np.random.default_rng(0).normal(128, 20, (200, 200)).astype(np.uint8)),
        "is empty",
    ),
    "only sloping light": (
        encoded(np.tile(np.linspace(10, 240, 200).astype(np.uint8), (200, 1))),
        "is empty",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_without_a_digit_is_refused_in_one_line(case, tmp_path):
    content, words = BAD[case]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{words}") as error:
        frame.center(read.read(tmp_path / "x.png").pixels)
    assert "\n" not in str(error.value)


def test_no_other_format_is_decoded(tmp_path):
    save(tmp_path / "x.eps", THREE)
    with pytest.raises(ValueError, match="is not a picture"):
        read.read(tmp_path / "x.eps")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (300, 1), (1, 300), (2000, 2), (3, 900)])
def test_a_picture_of_any_mode_and_size_is_read_or_refused(mode, size, tmp_path):
    image = Image.new("L", size, 200)
    image.putpixel((0, 0), 10)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    path = save(tmp_path / "picture.tif", image)
    pixels, scale = read.read(path)
    height, width = pixels.shape[:2]
    assert max(height, width) == min(read.LONGEST, max(size))
    assert scale * max(height, width) == max(size)
    try:
        frame.find(pixels)
    except ValueError as error:
        if str(error) != frame.EMPTY:
            raise
