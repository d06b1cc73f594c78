"""What is written on a picture of any size, as the network's input.

MNIST's digits were scaled to a box of 20x20, keeping their aspect ratio, and centred in 28x28 by
their centre of mass (LeCun et al., 1998, section III.A). `find` does the same to each digit of a
picture, which it finds first; see `things` and `ink`.

Coordinates are (row, column); grey values are float32 from 0, black, to 255, white.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lenet_jax.data import ink, things

SIDE = 32  # of the network's input
MIDDLE = 16  # the pixel nearest to the centre of mass of MNIST's digits; 14 in 28x28
LONGEST = 512  # pixels per side; larger pictures are reduced
FORMATS = {  # no others: a picture may come from anybody, and some decoders start other programs
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
EMPTY = "is empty: nothing stands out from the background"
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


class Picture(NamedTuple):
    """A picture as `read` reduced it."""

    pixels: np.ndarray  # float32 [H, W], or in colour [H, W, 3]
    scale: float  # the side of a pixel, in pixels of the file


class Found(NamedTuple):
    """What is written in one place of a picture; its box in pixels of the picture."""

    image: np.ndarray  # uint8 [32, 32, 1], light on dark
    left: float
    top: float
    right: float
    bottom: float
    doubts: tuple[str, ...]  # why it may not be what was meant

    def scaled(self, factor: float) -> "Found":
        """The same on a picture with `factor` times the pixels per side."""
        box = (side * factor for side in (self.left, self.top, self.right, self.bottom))
        return Found(self.image, *box, self.doubts)


def find_files(names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """The files to read, folders replaced by the pictures in them, each with an error or None."""
    for path in map(Path, names):
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
        except OSError as error:
            yield path, f"cannot be read ({error.strerror or error})"
            continue
        if path.is_dir():
            files = [file for file in files if file.suffix.lower() in SUFFIXES]
        yield from ((file, None) for file in files)
        if not files:
            yield path, f"has no picture in it ({' '.join(SUFFIXES)})"


def read(path: Path) -> Picture:
    """A picture reduced to at most `LONGEST` pixels per side.

    Raises:
      ValueError: it is no picture that can be read, or an absurdly large one.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata
            with Image.open(path, formats=tuple(FORMATS)) as image:
                longest = max(image.size)
                if image.mode in ("L", "RGB"):  # a JPEG file is then not even decoded in full
                    image.thumbnail((LONGEST, LONGEST))
                image = _flat(ImageOps.exif_transpose(image))
                image.thumbnail((LONGEST, LONGEST))
    except UnidentifiedImageError as error:
        raise ValueError(f"is no picture that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"has more than {limit:.0f} million pixels; make it smaller") from error
    except Exception as error:  # decoders raise exceptions of all kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
        raise ValueError(f"cannot be read ({reason})") from error
    return Picture(np.asarray(image, np.float32), longest / max(image.size))


def fit(grey: np.ndarray) -> np.ndarray:
    """All of the picture as it is, light on dark, as uint8 [32, 32, 1].

    A picture of 32x32 keeps its pixels and one of 28x28 is padded, as a data set's images are; any
    other is scaled to fit 28x28.

    Raises:
      ValueError: it is empty.
    """
    if grey.ndim == 3:
        grey = grey @ np.float32([0.299, 0.587, 0.114])
    low, high = grey.min(), grey.max()
    if high - low <= things.FAINTEST:
        raise ValueError(EMPTY)
    if np.median(things.border(grey)) > (low + high) / 2:  # dark on light
        grey = 255 - grey
    if grey.shape != (SIDE, SIDE):
        grey = _scaled(grey, 28)
    return _paste(grey, (np.array(grey.shape) - 1) / 2, (SIDE - 1) / 2)


def crop_square(pixels: np.ndarray) -> np.ndarray:
    """The middle square of a picture, for networks of colour images: uint8 [32, 32, 3].

    Args:
      pixels: [H, W], or in colour [H, W, 3].
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.uint8(np.rint(pixels[top : top + side, left : left + side]))
    image = Image.fromarray(square).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def center(pixels: np.ndarray, box: int = 20, by_mass: bool = True) -> np.ndarray:
    """The largest that `find` finds: uint8 [32, 32, 1], light on dark.

    Raises:
      ValueError: nothing stands out from the background.
    """
    return tallest(find(pixels, box, by_mass)).image


def tallest(found: Sequence[Found]) -> Found:
    """That of the largest height; several alike are the first of them."""
    return max(found, key=lambda each: each.bottom - each.top)


def find(
    pixels: np.ndarray, box: int = 20, by_mass: bool = True, apart: bool = True
) -> list[Found]:
    """What is written on a picture, from left to right, each as MNIST has its digits.

    Args:
      pixels: [H, W], or in colour [H, W, 3].
      box: the side of the square that each is scaled to, and
      by_mass: whether its centre of mass comes to the middle, or that of its box; see `registry`.
      apart: whether there may be several; otherwise all that is written is one.

    Raises:
      ValueError: nothing stands out from the background.
    """
    grey = things.flatten_colour(pixels)
    inked = ink.choose(things.find_things(grey), apart)
    if not inked:
        raise ValueError(EMPTY)
    return [_found(grey, thing, box, by_mass, len(inked)) for thing in inked]


def _found(grey: np.ndarray, thing: things.Thing, box: int, by_mass: bool, count: int) -> Found:
    digit = _scaled(ink.cut_out(grey, thing), box)
    digit *= 255 / digit.max()  # scaling makes thin strokes paler
    if by_mass:
        image = _paste(digit, np.array(ndimage.center_of_mass(digit)), MIDDLE)
    else:
        image = _paste(digit, (np.array(digit.shape) - 1) / 2, (SIDE - 1) / 2)
    height, width = grey.shape
    right, bottom = min(thing.columns.stop, width), min(thing.rows.stop, height)
    doubts = []
    if max(grey.shape) > SIDE:  # a data set's own image fills what it has
        if count > 1:
            doubts.append(f"is one of {count}")
        if thing.border > 0:
            doubts.append("touches the picture's border")
        elif thing.height * thing.width > 0.8 * height * width:
            doubts.append("fills the picture")
    return Found(image, thing.columns.start, thing.rows.start, right, bottom, tuple(doubts))


def _flat(image):
    """A Pillow image in mode F, L or RGB, without transparency."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # 16 bits and more: their white is the brightest pixel
        pixels = np.asarray(image, np.float64)  # in float32 the range may overflow
        if not np.isfinite(pixels).all():
            raise ValueError("its pixels are not all finite")
        low, high = pixels.min(), pixels.max()
        return Image.fromarray(np.float32((pixels - low) * (255 / max(high - low, 1e-9))))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"))
    if not alpha.any():
        return Image.new("L", image.size)
    visible = alpha > alpha.max() / 2.0
    grey = round(float(_guess_background(np.asarray(image.convert("L")), visible)))
    card = Image.new("RGBA", image.size, (grey, grey, grey, 255))
    card.alpha_composite(image)
    return card.convert("RGB")


def _guess_background(grey: np.ndarray, visible: np.ndarray) -> float:
    """The grey value to put behind the `visible` pixels of a picture [H, W]."""
    low, middle, high = np.percentile(grey[visible], [1, 50, 99])
    rim = np.median(grey[visible & ~ndimage.binary_erosion(visible)])
    if abs(rim - middle) > 32:  # a soft edge or an outline leads to what it was drawn on
        return 255 if rim > middle else 0
    # A card with a digit on it fills its bounding box, and is continued in its own colour. Ink
    # does not fill its box, and needs a background that it stands out from.
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    filled = visible.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    return middle if high - low > 64 and filled > 0.75 else 255 * (middle < 128)


def _scaled(grey: np.ndarray, longest: int) -> np.ndarray:
    """The picture scaled so that its longer side has `longest` pixels."""
    from PIL import Image

    scale = longest / max(grey.shape)
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    image = Image.fromarray(grey.astype(np.float32))
    return np.clip(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), 0, 255)


def _paste(grey: np.ndarray, point: np.ndarray, middle: float) -> np.ndarray:
    """The picture in uint8 [32, 32, 1], its `point` as near to `middle` as its edges allow."""
    top, left = np.clip(np.rint(middle - point).astype(int), 0, SIDE - np.array(grey.shape))
    canvas = np.zeros((SIDE, SIDE, 1), np.uint8)
    canvas[top : top + grey.shape[0], left : left + grey.shape[1], 0] = np.rint(grey)
    return canvas
