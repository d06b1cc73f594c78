"""From pixels to the network's input.

MNIST's digits were scaled to a box of 20x20, keeping their aspect ratio, and centred in 28x28 by
their centre of mass (LeCun et al., 1998, section III.A). `find` does the same to each character
on a picture; the modules `things` and `ink` say how it finds them.

Coordinates are (row, column); grey values are float32 from 0, black, to 255, white.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lenet_jax.pictures import ink, things
from lenet_jax.pictures.box import Box
from lenet_jax.pictures.things import Thing

SIDE = 32  # of the network's input
MIDDLE = 16  # the pixel nearest to the centre of mass of MNIST's digits; 14 in 28x28
EMPTY = "is empty: nothing stands out from the background"

# All of these were chosen on the pictures of experiments/draw_pictures.py; a size is a diagonal.
FINE = 288  # pixels per side, at most, of the picture on which things are looked for
DETAILED = 120  # pixels of that picture: the size of a character that is large enough there
AROUND = 1 / 4  # width of the paper around a character that is looked at, as a share of its size
SMOOTH_PAPER = 1 / 20  # standard deviation of the paper's smoothing, as a share of that size
DEEPEST_SHADOW = 10  # times as dark as the lightest paper
THICK = 40  # pixels: the size of a character whose edges are two pixels wide, not one
CLEAR = 10  # minimum contrast of ink without grain, in standard deviations of the noise
CORE = 1 / 5  # minimum ink of a stroke, as a share of the strongest ink
GRAINY_CORE = 1 / 3  # the same where there is grain
CORE_TO_NOISE = 4  # minimum ink of a stroke, in standard deviations of the noise
INK_TO_NOISE = 3  # minimum ink of a stroke's edge, in standard deviations of the noise
LEAST_PART = 1 / 20  # minimum ink of a further part, as a share of the largest part's
FULL = 0.8  # maximum share of the picture that a character's box covers


class Found(NamedTuple):
    """A character on a picture."""

    image: np.ndarray  # uint8 [32, 32, 1], light on dark
    box: Box  # in pixels of the picture
    doubt: str  # why it may not be what was meant, or ""


def find(
    pixels: np.ndarray, box: int = 20, by_mass: bool = True, apart: bool = True
) -> list[Found]:
    """The characters on a picture, from left to right, each as MNIST has its digits.

    Args:
      pixels: [H, W], or in colour [H, W, 3].
      box: the side of the square that each character is scaled to; see `registry`.
      by_mass: whether its centre of mass comes to the middle; otherwise its box's centre does.
      apart: whether there may be several characters; otherwise all ink is one.

    Raises:
      ValueError: nothing stands out from the background.
    """
    grey = things.flatten_colour(pixels)
    step = -(-max(grey.shape) // FINE)
    fine = _reduced(grey, step)
    chosen = ink.choose(things.find_things(fine), apart)
    cuts = [
        cut_out(fine, thing) if thing.size > DETAILED else cut_out(grey, thing.enlarged(step))
        for thing in chosen
    ]
    inked = [(thing, cut) for thing, cut in zip(chosen, cuts, strict=True) if cut.any()]
    if not inked:
        raise ValueError(EMPTY)
    found = []
    for thing, cut in inked:
        place = thing.box.scaled(step).intersection(Box(0, 0, *grey.shape))
        doubt = _doubt(place, thing.border > 0, grey.shape)
        found.append(Found(_framed(cut, box, by_mass), place, doubt))
    return found


def tallest(found: Sequence[Found]) -> Found:
    """The tallest character; the first of several that are equally tall."""
    return max(found, key=lambda each: each.box.height)


def center(pixels: np.ndarray, box: int = 20, by_mass: bool = True) -> np.ndarray:
    """The tallest character that `find` finds: uint8 [32, 32, 1], light on dark.

    Raises:
      ValueError: nothing stands out from the background.
    """
    return tallest(find(pixels, box, by_mass)).image


def fit(grey: np.ndarray) -> np.ndarray:
    """The entire picture as it is, light on dark: uint8 [32, 32, 1].

    A picture of 32x32 keeps its pixels, and one of 28x28 is padded as a data set's images are;
    others are scaled to fit 28x28.

    Raises:
      ValueError: the picture is empty.
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
    from PIL import Image, ImageOps

    image = Image.fromarray(np.uint8(np.rint(pixels))).convert("RGB")
    return np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC))


def cut_out(grey: np.ndarray, thing: Thing) -> np.ndarray:
    """The ink [h, w] of a thing, 0 elsewhere."""
    picture = Box(0, 0, *grey.shape)
    around = thing.box.grown(max(3, int(AROUND * thing.size))).intersection(picture)
    box = thing.box.intersection(picture)  # an enlarged box may reach beyond the picture
    pixels, mask = grey[around.slices], np.zeros((around.height, around.width), bool)
    mask[box.seen_from(around).slices] = thing.mask[box.seen_from(thing.box).slices]
    inked = things.dilate(mask, 2 if thing.size > THICK else 1)
    near = next(each for each in (things.dilate(inked), inked, mask) if not each.all())
    nearest = ndimage.distance_transform_edt(near, return_distances=False, return_indices=True)
    paper = ndimage.gaussian_filter(pixels[tuple(nearest)], SMOOTH_PAPER * thing.size)
    ink = np.where(inked, np.maximum(thing.sign * (pixels - paper), 0), 0)
    if thing.sign < 0 and paper.max() > 0:  # dark ink takes the same share of any light
        ink *= paper.max() / np.maximum(paper, paper.max() / DEEPEST_SHADOW)
    noise = 1.4826 * np.median(np.abs(pixels - paper)[~near])
    smooth = ndimage.gaussian_filter(ink, 1)
    if smooth.max() < CLEAR * noise:
        core = smooth > GRAINY_CORE * smooth.max()
    else:
        core = ink > max(CORE * smooth.max(), CORE_TO_NOISE * noise)
    labels, _ = ndimage.label(core, things.EIGHT_NEIGHBOURS)
    amounts = np.bincount(labels.ravel(), ink.ravel())
    amounts[0] = 0  # the pixels of no part
    kept = (amounts > LEAST_PART * amounts.max())[labels]
    ink[(core & ~kept) | (ink < INK_TO_NOISE * noise)] = 0
    places = ndimage.find_objects(kept.astype(int))
    return ink[places[0]] if places else np.zeros((1, 1))


def _reduced(grey: np.ndarray, step: int) -> np.ndarray:
    """The mean of each square of `step` pixels per side."""
    padded = np.pad(grey, [(0, -side % step) for side in grey.shape], mode="edge")
    parts = (padded[i::step, j::step] for i in range(step) for j in range(step))
    return sum(parts) / np.float32(step**2)


def _framed(digit: np.ndarray, box: int, by_mass: bool) -> np.ndarray:
    digit = _scaled(digit, box)
    digit *= 255 / digit.max()  # scaling makes thin strokes paler
    if by_mass:
        return _paste(digit, np.array(ndimage.center_of_mass(digit)), MIDDLE)
    return _paste(digit, (np.array(digit.shape) - 1) / 2, (SIDE - 1) / 2)


def _doubt(place: Box, cut: bool, shape: tuple[int, int]) -> str:
    if max(shape) <= SIDE:  # it comes from a data set, whose digits fill the image
        return ""
    if cut:
        return "touches the picture's border"
    return "fills the picture" if place.height * place.width > FULL * shape[0] * shape[1] else ""


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
