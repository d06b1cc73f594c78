"""Pictures of digits that neither this project nor MNIST has made: printed ones, photographed."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = (  # those that come with matplotlib
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono"),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "STIXGeneral"),
)
FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")


def printed(digit: int, font: str, *, size: int = 100, side: int = 160) -> np.ndarray:
    """Black on white, in the middle: uint8 [side, side]."""
    image = Image.new("L", (side, side), 255)
    face = ImageFont.truetype(FOLDER / f"{font}.ttf", size)
    ImageDraw.Draw(image).text((side / 2, side / 2), str(digit), 0, font=face, anchor="mm")
    return np.asarray(image)


def photographed(digit: int, font: str, rng: np.random.Generator) -> np.ndarray:
    """Turned, off the middle, out of focus, unevenly lit, grainy; dark on light or not."""
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
