"""A picture of one digit, of any size and on any even background, as the network's input.

MNIST's digits were scaled to a box of 20x20, keeping their aspect ratio, and centred in 28x28 by
their centre of mass (LeCun et al., 1998, section III.A). `center` does the same to a digit, which
it finds first: what stands out from the background, a plane fitted to the picture's border, be it
lighter or darker, without specks.

Coordinates are (row, column); grey values are float32 from 0, black, to 255, white.
"""

import warnings
from pathlib import Path

import numpy as np

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
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def read(path: Path) -> np.ndarray:
    """The grey values [H, W] of a picture, reduced to at most `LONGEST` pixels per side.

    Raises:
      ValueError: it is no picture that can be read, or an absurdly large one.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata
            with Image.open(path, formats=tuple(FORMATS)) as image:
                grey = _grey(ImageOps.exif_transpose(image))
                grey.thumbnail((LONGEST, LONGEST))
    except UnidentifiedImageError as error:
        raise ValueError(f"is no picture that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"has more than {limit:.0f} million pixels; make it smaller") from error
    except Exception as error:  # decoders raise exceptions of all kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
        raise ValueError(f"cannot be read ({reason})") from error
    return np.asarray(grey, np.float32)


def fit(grey: np.ndarray) -> np.ndarray:
    """All of the picture as it is, light on dark, as uint8 [32, 32, 1].

    A picture of 32x32 keeps its pixels and one of 28x28 is padded, as a data set's images are; any
    other is scaled to fit 28x28.

    Raises:
      ValueError: it is empty.
    """
    low, high = grey.min(), grey.max()
    _require_contrast(high - low)
    if np.median(_border(grey)) > (low + high) / 2:  # dark on light
        grey = 255 - grey
    if grey.shape != (SIDE, SIDE):
        grey = _scaled(grey, 28)
    return _paste(grey, (np.array(grey.shape) - 1) / 2, (SIDE - 1) / 2)


def center(grey: np.ndarray, box: int = 20) -> np.ndarray:
    """The picture's digit as MNIST has its digits: uint8 [32, 32, 1], light on dark.

    Args:
      grey: [H, W].
      box: the side of the square that the digit is scaled to; see `registry`.

    Raises:
      ValueError: nothing stands out from the background.
    """
    digit = _scaled(_crop_digit(*_foreground(grey)), box)
    digit *= 255 / digit.max()  # scaling makes thin strokes paler
    total = digit.sum()
    row = digit.sum(axis=1) @ np.arange(len(digit)) / total
    column = digit.sum(axis=0) @ np.arange(digit.shape[1]) / total
    return _paste(digit, np.array([row, column]), MIDDLE if box < 28 else (SIDE - 1) / 2)


def _grey(image):
    """A Pillow image in mode F or L, without transparency."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # 16 bits and more: their white is the brightest pixel
        pixels = np.asarray(image, np.float64)  # in float32 the range may overflow
        if not np.isfinite(pixels).all():
            raise ValueError("its pixels are not all finite")
        low, high = pixels.min(), pixels.max()
        return Image.fromarray(np.float32((pixels - low) * (255 / max(high - low, 1e-9))))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("L")
    grey, alpha = image.convert("LA").split()
    visible = np.asarray(alpha) > 127
    if not visible.any():
        return Image.new("L", image.size)
    card = Image.new("L", image.size, int(_guess_background(np.asarray(grey), visible)))
    card.paste(grey, mask=alpha)
    return card


def _guess_background(grey: np.ndarray, visible: np.ndarray) -> float:
    """The grey value to put behind the `visible` pixels of a picture [H, W]."""
    from scipy import ndimage

    low, middle, high = np.percentile(grey[visible], [1, 50, 99])
    rim = np.median(grey[visible & ~ndimage.binary_erosion(visible)])
    if abs(rim - middle) > 32:  # a soft edge or an outline leads to what it was drawn on
        return 255 if rim > middle else 0
    # A card with a digit on it fills its bounding box, and is continued in its own colour. Ink
    # does not fill its box, and needs a background that it stands out from.
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    filled = visible.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    return middle if high - low > 64 and filled > 0.75 else 255 * (middle < 128)


def _border(grey: np.ndarray) -> np.ndarray:
    return np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])


def _foreground(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture without its background, positive where the ink is.

    Returns:
      [H, W], the distance of each pixel from the background, and the background's standard
      deviation.
    """
    rows, columns = np.indices(grey.shape, np.float32)
    plane = np.stack([rows, columns, np.ones_like(rows)], axis=-1)  # [H, W, 3]
    points = np.concatenate([plane[0], plane[-1], plane[1:-1, 0], plane[1:-1, -1]])
    values = _border(grey)
    inside = np.ones(len(values), bool)
    for _ in range(4):  # each time without the outliers, which are not background
        slope = np.linalg.lstsq(points[inside], values[inside])[0]
        distance = np.abs(values - points @ slope)
        inside = distance <= 2.5 * np.median(distance) + 1
    ink = grey - plane @ slope
    noise = 1.4826 * np.median(distance)  # the ratio for a normal distribution
    return (ink if np.sum(ink**3, dtype=np.float64) > 0 else -ink), noise


def _crop_digit(ink: np.ndarray, noise: float) -> np.ndarray:
    """`ink` [H, W] cropped to its components, specks (a tenth of the largest) left out."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(ink, 1)
    level = smooth.max()
    _require_contrast(level, 3 * noise)
    mask = smooth > level / 3 if level < 10 * noise else ink > max(level / 5, 4 * noise)
    components, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum_labels(ink, components, range(count + 1))
    sizes[0] = 0  # the pixels of no component
    kept = sizes > sizes.max() / 10
    rows, columns = (np.flatnonzero(kept[components].any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    specks = (components[box] > 0) & ~kept[components[box]]
    digit = np.where(specks | (ink[box] < 3 * noise), 0, np.maximum(ink[box], 0))
    _require_contrast(digit.max())  # the largest component may be a shadow below the noise
    return digit


def _require_contrast(contrast: float, noise: float = 0.0) -> None:
    if contrast <= max(8, noise):
        raise ValueError("is empty: nothing stands out from the background")


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
