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
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


class Picture(NamedTuple):
    """A picture as `read` reduced it."""

    pixels: np.ndarray  # float32 [H, W], or in colour [H, W, 3]
    scale: float  # the side of a pixel, in pixels of the file


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
