"""From picture files to pixels.

The background of a transparent picture is chosen so that its ink stands out. Grey values are
float32 from 0, black, to 255, white.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

LONGEST = 512  # pixels per side; larger pictures are reduced
FORMATS = {  # Pillow knows more, but some of its decoders start other programs
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
MANY = ("TIFF", "GIF", "WEBP", "PNG")  # formats with pages or frames of a picture each
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# Chosen on the transparent pictures of tests/pictures/test_read.py.
RIM = 32  # grey levels: the least difference of a soft edge or an outline from its inside
WRITTEN = 64  # grey levels: the least contrast of a card with ink on it
CARD = 0.75  # of its bounding box: the least area of a card


class Picture(NamedTuple):
    """A picture, reduced if it was large."""

    pixels: np.ndarray  # float32 [H, W], or in colour [H, W, 3]
    scale: float  # the length of a pixel's side, in pixels of the file


class Page(NamedTuple):
    """A page of a file, or a frame of an animation."""

    picture: Picture
    number: int  # from 1
    count: int  # of all pages
    moves: bool  # whether they are the frames of an animation


def find_files(names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """The named files and the pictures in the named folders, each with an error or None."""
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
            yield path, f"contains no pictures ({' '.join(SUFFIXES)})"


def read(path: Path) -> Picture:
    """The first page of `read_pages`."""
    with contextlib.closing(read_pages(path)) as pages:
        return next(pages).picture


def read_pages(path: Path) -> Iterator[Page]:
    """The pages of a TIFF file, the frames of an animation, or a single picture.

    Each is reduced to at most `LONGEST` pixels per side when it is asked for.

    Raises:
      ValueError: the file is damaged, far too large, or not a picture; the message continues a
        sentence that begins with the file's name.
    """
    from PIL import Image

    with _errors_named():
        image = Image.open(path, formats=tuple(FORMATS))
        count = getattr(image, "n_frames", 1) if image.format in MANY else 1
    with image:
        for index in range(count):
            with _errors_named():
                image.seek(index)
                picture = _reduced(image.copy() if count > 1 else image)
            yield Page(picture, index + 1, count, count > 1 and image.format != "TIFF")


@contextlib.contextmanager
def _errors_named() -> Iterator[None]:
    """Turns whatever Pillow raises into a ValueError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata
            yield
    except UnidentifiedImageError as error:
        raise ValueError(f"is not a picture in a known format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"has more than {limit:.0f} million pixels; make it smaller") from error
    except Exception as error:  # decoders raise all kinds of exceptions
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
        raise ValueError(f"cannot be read ({reason})") from error


def _reduced(image) -> Picture:
    """A Pillow image as a picture of at most `LONGEST` pixels per side."""
    from PIL import ImageOps

    longest = max(image.size)
    if image.mode in ("L", "RGB"):  # a large JPEG is decoded at a lower resolution
        image.thumbnail((LONGEST, LONGEST))
    image = _flat(ImageOps.exif_transpose(image))
    image.thumbnail((LONGEST, LONGEST))
    return Picture(np.asarray(image, np.float32), longest / max(image.size))


def _flat(image):
    """Converts a Pillow image to mode F, L or RGB, without transparency."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # 16 bits and more: white is the brightest pixel
        pixels = np.asarray(image, np.float64)  # in float32 the range may overflow
        if not np.isfinite(pixels).all():
            raise ValueError("some of its pixels are not finite numbers")
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
    """The grey value of the paper behind the `visible` pixels of a picture [H, W]."""
    from scipy import ndimage

    low, middle, high = np.percentile(grey[visible], [1, 50, 99])
    rim = np.median(grey[visible & ~ndimage.binary_erosion(visible)])
    if abs(rim - middle) > RIM:  # a soft edge, or an outline, has the colour of its paper
        return 255 if rim > middle else 0
    # A card with a digit on it fills its bounding box, and gets paper of its own colour. Ink does
    # not fill its box, and gets paper that it stands out from.
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    filled = visible.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    return middle if high - low > WRITTEN and filled > CARD else 255 * (middle < 128)
