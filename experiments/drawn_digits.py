"""Characters that are not MNIST's: printed, photographed, and drawn on the exported page."""

import itertools
import math
from pathlib import Path

import matplotlib
import numpy as np
from browser import Browser
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Point = tuple[float, float]
FONTS = (  # matplotlib brings these
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono"),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "STIXGeneral"),
)
FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")


def printed(character: int | str, font: str, *, size: int = 100, side: int = 160) -> np.ndarray:
    """A character in black on white, centred: uint8 [side, side]."""
    image = Image.new("L", (side, side), 255)
    face = ImageFont.truetype(FOLDER / f"{font}.ttf", size)
    ImageDraw.Draw(image).text((side / 2, side / 2), str(character), 0, font=face, anchor="mm")
    return np.asarray(image)


def framed(character: str, font: str, *, angle: float = 0, box: int = 24) -> np.ndarray:
    """A character in white on black, turned and scaled to a box in the middle: uint8 [28, 28]."""
    image = Image.fromarray(255 - printed(character, font)).rotate(angle, Image.Resampling.BICUBIC)
    image = image.crop(image.getbbox())
    scale = box / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    framed = Image.new("L", (28, 28))
    framed.paste(image.resize((width, height)), ((28 - width) // 2, (28 - height) // 2))
    return np.asarray(framed)


def photographed(digit: int, font: str, rng: np.random.Generator) -> np.ndarray:
    """Rotated, off-centre, out of focus, unevenly lit, grainy; dark on light or light on dark."""
    width, height = rng.integers(90, 340, 2).tolist()
    image = Image.new("L", (width, height), 0)
    face = ImageFont.truetype(FOLDER / f"{font}.ttf", min(width, height) * rng.uniform(0.4, 0.9))
    place = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.45, 0.55)
    ImageDraw.Draw(image).text(place, str(digit), 255, font=face, anchor="mm")
    image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
    inked = np.asarray(image, float) / 255
    light, dark = rng.uniform(150, 240), rng.uniform(10, 70)
    paper, ink = (light, dark) if rng.random() < 0.5 else (dark, light)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    lamp = 1 + rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.2, 0.2) * y
    grain = rng.normal(0, rng.uniform(2, 12), inked.shape)
    return np.clip((paper + (ink - paper) * inked) * lamp + grain, 0, 255).astype(np.uint8)


def in_colour(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture in a random dark and a random light colour: uint8 [height, width, 3]."""
    dark, light = rng.uniform(0, 100, 3), rng.uniform(140, 255, 3)
    return (dark + (light - dark) * (grey / 255)[..., None]).astype(np.uint8)


# --- strokes on the page of `export --format=html` ---


def line(*corners: Point) -> list[Point]:
    return [
        (x0 + (x1 - x0) * i / 4, y0 + (y1 - y0) * i / 4)
        for (x0, y0), (x1, y1) in itertools.pairwise(corners)
        for i in range(5)
    ]


def arc(x: float, y: float, width: float, height: float, start: int, stop: int) -> list[Point]:
    """A part of an ellipse around (x, y); 0 degrees is to the right, 90 is down."""
    angles = [math.radians(start + (stop - start) * i / 16) for i in range(17)]
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


# The strokes of each digit, as a hand draws it, in units of the pad's side.
DRAWN = {
    0: [arc(0.5, 0.5, 0.2, 0.3, -90, 270)],
    1: [line((0.5, 0.2), (0.5, 0.8))],
    2: [arc(0.5, 0.35, 0.18, 0.15, -170, 40) + line((0.62, 0.47), (0.32, 0.8), (0.7, 0.8))],
    3: [arc(0.47, 0.35, 0.16, 0.14, -150, 90) + arc(0.47, 0.64, 0.19, 0.16, -90, 140)],
    4: [line((0.4, 0.2), (0.3, 0.52), (0.7, 0.52)), line((0.6, 0.25), (0.57, 0.82))],
    5: [line((0.65, 0.2), (0.4, 0.2), (0.38, 0.45)) + arc(0.48, 0.61, 0.18, 0.18, -130, 140)],
    6: [line((0.6, 0.2), (0.42, 0.4), (0.36, 0.6)) + arc(0.5, 0.65, 0.14, 0.15, 180, 540)],
    7: [line((0.3, 0.22), (0.7, 0.22), (0.45, 0.8))],
    8: [arc(0.5, 0.35, 0.14, 0.14, 90, 450) + arc(0.5, 0.65, 0.16, 0.16, -90, 270)],
    9: [arc(0.5, 0.37, 0.15, 0.15, 0, 360) + line((0.65, 0.37), (0.62, 0.8))],
}


def on_screen(window: Browser, stroke: list[Point]) -> list[Point]:
    """From units of the pad's side to pixels of the window."""
    box = window.evaluate("(({x, y, width}) => [x, y, width])(pad.getBoundingClientRect())")
    return [(box[0] + x * box[2], box[1] + y * box[2]) for x, y in stroke]


def drag(window: Browser, strokes: list[list[Point]]) -> None:
    """Draws with the mouse."""
    for stroke in strokes:
        window.drag(on_screen(window, stroke))
