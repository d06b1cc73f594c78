"""Pictures of digits in 34 kinds of trouble: frames, desks, light, rules, ink, noise.

`make` writes two pictures of each digit per kind, called <kind>-<digit><a or b>.png or .jpg. The
digits are drawn with pens of several widths, printed in several fonts, or handwritten (MNIST's test
images, enlarged). The same seed gives the same pictures. `pictures.py` counts which are read.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _mnist import load
from drawn_digits import DRAWN, FOLDER, FONTS
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Rng = np.random.Generator
Colour = np.ndarray | list[int] | float
PAPER, INK, DESK = np.array([238, 236, 228]), np.array([32, 30, 44]), np.array([92, 60, 34])


# --- the digit: the share of ink in each pixel, float [side, side] ---


def drawn(digit: int, rng: Rng, side: int = 400, height: float = 0.6, pen: float = 0) -> np.ndarray:
    """Drawn by a round pen, slightly slanted; `height` and `pen` are shares of the side."""
    pen = pen or rng.uniform(0.03, 0.1)
    image = Image.new("L", (2 * side, 2 * side))
    draw, slant = ImageDraw.Draw(image), rng.uniform(-0.15, 0.15)
    shift = rng.uniform(-0.05, 0.05, 2) * (height < 0.8)
    for stroke in DRAWN[digit]:
        points = np.array(stroke) - 0.5
        points[:, 0] += slant * points[:, 1]
        points = (points * height / 0.6 + 0.5 + shift) * 2 * side
        radius = pen * height * side
        draw.line([tuple(p) for p in points], 255, round(2 * radius), "curve")
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(image.resize((side, side)), float) / 255


def printed(digit: int | str, rng: Rng, side: int = 400, height: float = 0.6) -> np.ndarray:
    image = Image.new("L", (side, side))
    font = FOLDER / f"{FONTS[rng.integers(len(FONTS))]}.ttf"
    face = ImageFont.truetype(font, side * height / 0.74)
    ImageDraw.Draw(image).text((side / 2, side / 2), str(digit), 255, font=face, anchor="mm")
    return np.asarray(image, float) / 255


def handwritten(digit: int, rng: Rng, side: int = 400, height: float = 0.6) -> np.ndarray:
    """One of MNIST's test images, enlarged and smoothed, with edges as sharp as ink's."""
    images, labels = mnist()
    chosen = rng.choice(np.flatnonzero(labels == digit))
    large = round(side * height / 20 * 28)
    image = Image.fromarray(images[chosen]).resize((large, large), Image.Resampling.BICUBIC)
    ink = np.clip(
        (np.asarray(image.filter(ImageFilter.GaussianBlur(large / 60)), float) - 90) / 60, 0, 1
    )
    frame = np.zeros((side, side))
    low = (side - large) // 2
    keep = slice(max(0, -low), max(0, -low) + min(side, large))
    frame[max(0, low) :, max(0, low) :][: min(side, large), : min(side, large)] = ink[keep, keep]
    return frame


@functools.cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """2,000 test images [N, 28, 28] and their labels."""
    test = load().test
    return test.images[:2000, 2:-2, 2:-2, 0], test.labels[:2000]


def written(digit: int, rng: Rng, side: int = 400, height: float = 0.6) -> np.ndarray:
    """Drawn, printed or handwritten."""
    ways = [drawn, printed, drawn, handwritten]
    return ways[rng.integers(len(ways))](digit, rng, side, height)


# --- the paper and the light: float [height, width, 3] ---


def sheet(ink: np.ndarray, colour: Colour = INK, paper: Colour = PAPER) -> np.ndarray:
    paper, colour = (np.broadcast_to(np.array(each, float), 3) for each in (paper, colour))
    return paper + (colour - paper) * ink[..., None]


def grain(pixels: np.ndarray, rng: Rng, sigma: float = 3) -> np.ndarray:
    return pixels + rng.normal(0, sigma, pixels.shape[:2])[..., None]


def shaded(pixels: np.ndarray, rng: Rng, width: float, depth: float = 0.5) -> np.ndarray:
    """A shadow over half of the picture; its edge passes near the middle, `width` pixels wide."""
    side = len(pixels)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : pixels.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.3, 0.3)
    edge = 1 / (1 + np.exp(-np.clip(across * side / max(width, 0.5), -50, 50)))
    return pixels * (1 - (1 - depth) * edge)[..., None]


def desk(digit: int, rng: Rng) -> np.ndarray:
    pixels = sheet(written(digit, rng, 300, rng.uniform(0.4, 0.7)))
    table = np.broadcast_to(DESK if rng.random() < 0.7 else [201, 170, 125], (600, 600, 3)).copy()
    table = table + ndimage.gaussian_filter(rng.normal(0, 60, (600, 600)), (1, 25))[..., None]
    top, left = rng.integers(60, 230, 2)
    table[top : top + 300, left : left + 300] = pixels
    return grain(table, rng)


def turned_desk(digit: int, rng: Rng) -> np.ndarray:
    paper = Image.fromarray(to_bytes(sheet(written(digit, rng, 360, 0.6)))).convert("RGBA")
    table = Image.new("RGBA", (640, 640), tuple(DESK.tolist()))
    paper = paper.rotate(rng.uniform(-14, 14), Image.Resampling.BICUBIC, expand=True)
    table.alpha_composite(paper, (100, 90))
    return grain(np.asarray(table.convert("RGB"), float), rng)


def note(digit: int, rng: Rng) -> np.ndarray:
    """A yellow note, slightly larger than the digit, on a white desk."""
    table = np.full((480, 480, 3), 236.0)
    table[120:340, 130:350] = sheet(written(digit, rng, 220, 0.75), INK, [247, 225, 96])
    return grain(table, rng, 2)


def strip(digit: int, rng: Rng, sides: int = 1) -> np.ndarray:
    pixels = sheet(written(digit, rng, 500))
    for side in rng.permutation(4)[:sides]:
        np.rot90(pixels, side)[:, -rng.integers(8, 60) :] = DESK
    return grain(pixels, rng)


def frame(digit: int, rng: Rng) -> np.ndarray:
    pixels = sheet(written(digit, rng), 0, 255)
    width, inset = rng.integers(1, 24), rng.integers(0, 12)
    mask = np.ones((400, 400), bool)
    mask[inset + width : -inset - width, inset + width : -inset - width] = False
    mask[:inset], mask[:, :inset], mask[400 - inset :], mask[:, 400 - inset :] = [False] * 4
    pixels[mask] = rng.choice([0, 60, 120])
    return pixels


def cell(digit: int, rng: Rng) -> np.ndarray:
    """The cell of a form: a thin frame around the digit, and parts of its neighbours."""
    pixels = sheet(written(digit, rng, 300, 0.5))
    for line in (50, 250):
        pixels[line : line + 3], pixels[:, line : line + 3] = 90, 90
    return grain(pixels, rng)


def figure(digit: int, rng: Rng) -> np.ndarray:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    name = ("viridis", "gray", "gray_r", "magma")[rng.integers(4)]
    fig, axes = pyplot.subplots(figsize=(4, 4), dpi=100)
    axes.imshow(ndimage.zoom(written(digit, rng, 140, 0.7), 0.2, order=1), cmap=name)
    if rng.random() < 0.5:
        axes.set_title(f"label: {digit}")
    stream = io.BytesIO()
    fig.savefig(stream)
    pyplot.close(fig)
    return np.asarray(Image.open(stream).convert("RGB"), float)


def margin(digit: int, rng: Rng) -> np.ndarray:
    """Light on dark, inside a white margin."""
    pixels = np.full((300, 300, 3), 255.0)
    wide = rng.integers(10, 50)
    side = 300 - 2 * wide
    pixels[wide:-wide, wide:-wide] = sheet(written(digit, rng, side, 0.7), 255, 0)
    return pixels


def vignette(digit: int, rng: Rng) -> np.ndarray:
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    light = 1 - rng.uniform(0.2, 0.35) * (x**2 + y**2)
    return grain(sheet(written(digit, rng)) * light[..., None], rng)


def lamp(digit: int, rng: Rng) -> np.ndarray:
    """Light from one corner that falls off."""
    y, x = np.mgrid[0:1:400j, 0:1:400j]
    light = 0.25 + 0.8 / (1 + 2.5 * (x**2 + y**2))
    light = np.rot90(light, rng.integers(4))
    return grain(
        sheet(written(digit, rng), INK if rng.random() < 0.5 else [90, 90, 100]) * light[..., None],
        rng,
    )


def ruled(digit: int, rng: Rng, both: bool = False, colour=(170, 190, 225)) -> np.ndarray:
    pixels = np.broadcast_to(PAPER, (600, 600, 3)).astype(float).copy()
    step, start, width = rng.integers(30, 90), rng.integers(30), rng.integers(1, 4)
    for line in range(start, 600, step):
        pixels[line : line + width] = colour
        if both:
            pixels[:, line : line + width] = colour
    pixels += (INK - pixels) * written(digit, rng, 600, rng.uniform(0.25, 0.6))[..., None]
    return grain(pixels, rng, 2)


def turned_rules(digit: int, rng: Rng) -> np.ndarray:
    """Rules as dark as pencil, slightly turned."""
    image = Image.fromarray(to_bytes(np.broadcast_to(PAPER, (800, 800, 3))))
    draw, step = ImageDraw.Draw(image), rng.integers(40, 90)
    for y in range(10, 800, step):
        draw.line((0, y, 800, y), (110, 120, 170), 2)
    if rng.random() < 0.5:
        draw.line((170, 0, 170, 800), (220, 80, 90), 3)
    image = image.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, float)[100:-100, 100:-100]
    ink = written(digit, rng, 600, rng.uniform(0.3, 0.6))[..., None]
    return grain(pixels + (np.array([40, 40, 60]) - pixels) * ink, rng, 2)


def chalk(digit: int, rng: Rng) -> np.ndarray:
    dust = ndimage.gaussian_filter(rng.normal(0, 1, (400, 400)), 1.5)
    ink = written(digit, rng) * np.clip(0.75 + 1.2 * dust, 0, 1)
    board = sheet(ink, [225, 225, 215], [40, 62, 50])
    return grain(
        board + 60 * ndimage.gaussian_filter(rng.normal(0, 1, (400, 400)), 12)[..., None], rng, 4
    )


def whiteboard(digit: int, rng: Rng) -> np.ndarray:
    """Coloured marker, a window's reflection, and an aluminium frame on two sides."""
    y, x = np.mgrid[-1:1:500j, -1:1:500j]
    colours = ([200, 40, 40], [40, 60, 190], [20, 130, 60], [20, 20, 20])
    pixels = sheet(written(digit, rng, 500, 0.5), colours[rng.integers(4)], [205, 210, 212])
    glare = np.exp(-((x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-1, 1)) ** 2) / 0.05)
    pixels += (250 - pixels) * 0.8 * glare[..., None]
    pixels[:22], pixels[:, :22] = 120, 130
    return grain(pixels, rng)


def alpha(digit: int, rng: Rng) -> np.ndarray:
    ink = written(digit, rng)
    colour = np.full((400, 400, 3), 255.0 * (rng.random() < 0.3))
    return np.dstack([colour, ink * rng.uniform(40, 255)])


def same_grey(digit: int, rng: Rng) -> np.ndarray:
    """Two colours of the same luminance, such as red and green."""
    pairs = (
        ([214, 60, 60], [50, 132, 60]),
        ([60, 90, 220], [120, 92, 40]),
        ([190, 70, 190], [90, 124, 50]),
    )
    ink, paper = (np.array(c, float) for c in pairs[rng.integers(3)])
    luma = np.array([0.299, 0.587, 0.114])
    return np.rint(sheet(written(digit, rng), ink + (paper - ink) @ luma, paper))


def faint(digit: int, rng: Rng) -> np.ndarray:
    return grain(sheet(written(digit, rng), PAPER - rng.uniform(16, 30)), rng, 2)


def pencil(digit: int, rng: Rng) -> np.ndarray:
    dust = 0.75 + 0.5 * ndimage.gaussian_filter(rng.normal(0, 1, (700, 700)), 1)
    ink = drawn(digit, rng, 700, rng.uniform(0.3, 0.7), rng.uniform(0.012, 0.02)) * np.clip(
        dust, 0, 1
    )
    return grain(shaded(sheet(ink, [120, 118, 120]), rng, 300, 0.75), rng)


def marker(digit: int, rng: Rng) -> np.ndarray:
    return grain(sheet(drawn(digit, rng, 400, rng.uniform(0.5, 0.8), rng.uniform(0.13, 0.18))), rng)


def tiny(digit: int, rng: Rng) -> np.ndarray:
    """A small digit on a large picture."""
    ink = np.zeros((1000, 1000))
    top, left = rng.integers(100, 850, 2)
    ink[top : top + 80, left : left + 80] = drawn(digit, rng, 80, 0.7, 0.05)
    return grain(sheet(ink), rng, 2)


def few_pixels(digit: int, rng: Rng) -> np.ndarray:
    side = int(rng.integers(16, 40))
    return sheet(
        np.clip(ndimage.zoom(written(digit, rng, side * 8, 0.75), 1 / 8, order=1), 0, 1), 0, 255
    )


def tight(digit: int, rng: Rng) -> np.ndarray:
    """Cropped to the ink."""
    ink = written(digit, rng)
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return grain(sheet(ink), rng)


def noisy(digit: int, rng: Rng) -> np.ndarray:
    return grain(sheet(written(digit, rng)), rng, rng.uniform(15, 40))


def blurred(digit: int, rng: Rng) -> np.ndarray:
    pixels = sheet(written(digit, rng))
    return grain(ndimage.gaussian_filter(pixels, (rng.uniform(3, 9),) * 2 + (0,)), rng)


def crumpled(digit: int, rng: Rng) -> np.ndarray:
    creases = ndimage.gaussian_filter(rng.normal(0, 1, (400, 400)), 14) * 14
    return grain(
        sheet(written(digit, rng)) * np.clip(0.9 + 0.25 * creases, 0.5, 1.1)[..., None], rng
    )


def dirty(digit: int, rng: Rng) -> np.ndarray:
    """Specks, and a thumb at a corner."""
    pixels = sheet(written(digit, rng, 500, 0.5))
    image = Image.fromarray(to_bytes(pixels))
    draw = ImageDraw.Draw(image)
    for x, y in rng.integers(0, 500, (12, 2)).tolist():
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), (90, 80, 70))
    draw.ellipse((-70, 400, 70, 580), (205, 150, 125))
    return grain(np.asarray(image, float), rng)


KINDS: dict[str, Callable[[int, Rng], np.ndarray]] = {
    "desk": desk,
    "desk, paper turned": turned_desk,
    "note on a desk": note,
    "strip of desk": strip,
    "strips on two sides": lambda digit, rng: strip(digit, rng, 2),
    "strips on three sides": lambda digit, rng: strip(digit, rng, 3),
    "frame": frame,
    "cell of a form": cell,
    "figure with axes": figure,
    "white margin": margin,
    "vignette": vignette,
    "lamp": lamp,
    "shadow, soft": lambda digit, rng: grain(shaded(sheet(written(digit, rng)), rng, 12), rng),
    "shadow, hard": lambda digit, rng: grain(shaded(sheet(written(digit, rng)), rng, 0), rng),
    "ruled": ruled,
    "squared": lambda digit, rng: ruled(digit, rng, True),
    "ruled, dark, turned": turned_rules,
    "chalk": chalk,
    "whiteboard": whiteboard,
    "transparent ink": alpha,
    "same grey": same_grey,
    "faint": faint,
    "pencil": pencil,
    "marker": marker,
    "tiny": tiny,
    "few pixels": few_pixels,
    "tight": tight,
    "noise": noisy,
    "out of focus": blurred,
    "crumpled": crumpled,
    "dirt and a thumb": dirty,
    "plain": lambda digit, rng: sheet(written(digit, rng), 0, 255),
    "fills the picture": lambda digit, rng: grain(sheet(written(digit, rng, 400, 0.95)), rng),
    "dark theme": lambda digit, rng: sheet(written(digit, rng), 235, 24),
}


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def make(folder: Path, seed: int = 0, times: int = 2) -> None:
    """Writes `times` pictures of each digit per kind."""
    for number, (kind, picture_of) in enumerate(KINDS.items()):
        for digit in range(10):
            for time in range(times):
                rng = np.random.default_rng([seed, number, digit, time])
                pixels = to_bytes(picture_of(digit, rng))
                flat = pixels.shape[-1] == 4 or kind in ("same grey", "few pixels", "plain")
                name = f"{kind}-{digit}{'abcdefgh'[time]}{'.png' if flat else '.jpg'}"
                Image.fromarray(pixels).save(folder / name, quality=85)
