"""The things on a picture: connected pixels that stand out from their surroundings.

As in maximally stable extremal regions (Matas et al., 2002), a picture is thresholded at many
levels, and every connected part of the result is a thing. This is done on two views of the picture,
once without the plane through its border and once without its local median, for light things and
for dark ones. The module `ink` decides which things are ink.

Coordinates are (row, column); grey values are float32 from 0, black, to 255, white.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.spatial import ConvexHull

from lenet_jax.pictures.box import Box

# The numbers were chosen on the pictures of experiments/draw_pictures.py.
FAINTEST = 8  # grey levels between ink and paper
FAINTEST_TO_NOISE = 6  # standard deviations of the noise between ink and paper
LEVELS_ABOVE = 8  # thresholds beyond the background's grey value
LEVELS_BELOW = 6  # and on its other side: a sheet may be as dark as the ink on the desk is not
LARGEST = 8  # things per level that are looked at
SMALLEST = 1 / 40  # of the picture's longer side: the length of the smallest thing
SHORTEST = 3  # pixels: the same on a small picture
REACH = 3  # pixels from an edge's foot to its top, on a picture smoothed by 1 pixel
EDGE = 0.4  # of the fall at its steepest quarter: the least fall that is an edge
COARSE = 64  # pixels per side of the picture whose local median is taken
WINDOW = 1 / 4  # of the picture's longer side: the window of the local median
SMOOTH = 1 / 150  # of the picture's longer side, at most 1 pixel: standard deviation of smoothing

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
FOUR_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """A connected set of pixels."""

    box: Box
    mask: np.ndarray  # bool [box.height, box.width]
    filled: np.ndarray  # the mask without holes
    sign: int  # 1: lighter than its surroundings; -1: darker
    view: int  # the view on which it is found
    level: float  # its pixels are above this level of that view
    contrast: float  # grey levels across its outline
    closed: float  # the share of its outline that has an edge
    cut: float  # the share of its outline that lies outside the picture
    border: float  # the share of the picture's border that it covers

    @functools.cached_property
    def size(self) -> float:
        return self.box.size

    @functools.cached_property
    def area(self) -> int:
        return np.count_nonzero(self.mask)

    @functools.cached_property
    def solid(self) -> float:
        """The share of the filled outline that is not a hole."""
        return self.area / np.count_nonzero(self.filled)

    @functools.cached_property
    def thickness(self) -> float:
        """The diameter of the largest disc that lies in it."""
        return 2 * float(ndimage.distance_transform_edt(pad(self.mask, 1)).max())

    @functools.cached_property
    def shape(self) -> tuple[float, float]:
        return shape(self.filled)

    def united(self, other: "Thing") -> "Thing":
        """The pixels of both; measurements are this thing's."""
        box = self.box.union(other.box)
        mask = np.zeros((box.height, box.width), bool)
        for each in (self, other):
            mask[each.box.seen_from(box).slices] |= each.mask
        return dataclasses.replace(self, box=box, mask=mask, filled=fill_holes(mask))

    def enlarged(self, factor: int) -> "Thing":
        """The same thing on a picture that has `factor` times as many pixels per side."""
        masks = (mask.repeat(factor, 0).repeat(factor, 1) for mask in (self.mask, self.filled))
        return dataclasses.replace(
            self, **dict(zip(("mask", "filled"), masks)), box=self.box.scaled(factor)
        )


def flatten_colour(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] to [H, W], along the colour in which things differ most from their surroundings.

    The result for a grey picture is its grey values.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    coarse = _sample(pixels, _coarse_step(pixels))
    residual = (coarse - local_median(coarse, every=2)).reshape(-1, 3).astype(np.float64)
    axis = np.linalg.eigh(residual.T @ residual)[1][:, -1]
    axis *= np.sign(axis.sum()) or 1
    return pixels @ np.float32(axis / np.sqrt(3))


def local_median(pixels: np.ndarray, every: int = 1) -> np.ndarray:
    """The median of the pixels around each pixel: [H, W, ...].

    It is taken at `every` nth pixel of a coarse picture and interpolated. NumPy's partition of all windows is faster
    than `scipy.ndimage.median_filter`.
    """
    if pixels.ndim == 3:
        return np.stack([local_median(channel, every) for channel in np.moveaxis(pixels, -1, 0)], -1)
    step = _coarse_step(pixels)
    coarse = _sample(pixels, step)
    window = max(3, int(max(coarse.shape) * WINDOW)) | 1
    padded = np.pad(coarse, window // 2, mode="edge")
    windows = sliding_window_view(padded, (window, window))[::every, ::every]
    windows = windows.reshape(*windows.shape[:2], -1)
    windows.partition(window**2 // 2)
    medians = windows[..., window**2 // 2]
    rows, columns = (
        _interpolation(side, step, every, count)
        for side, count in zip(pixels.shape, medians.shape, strict=True)
    )
    return rows @ medians @ columns.T


def _coarse_step(pixels: np.ndarray) -> int:
    return -(-max(pixels.shape[:2]) // COARSE)


def _sample(pixels: np.ndarray, step: int) -> np.ndarray:
    """Every `step`th pixel, at least one per side."""
    start = [min(step, side) // 2 for side in pixels.shape[:2]]
    return pixels[start[0] :: step, start[1] :: step]


def _interpolation(side: int, step: int, every: int, count: int) -> np.ndarray:
    """The matrix [side, count] from the samples of a side to its pixels."""
    place = (np.arange(side) - min(step, side) // 2) / (step * every)
    distance = np.clip(place, 0, count - 1)[:, None] - np.arange(count)
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)


def border(pixels: np.ndarray) -> np.ndarray:
    """The pixels [N, ...] at the edge of [H, W, ...]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def border_plane(grey: np.ndarray) -> np.ndarray:
    """The plane [H, W] through most of the picture's border."""
    rows, columns = np.indices(grey.shape, np.float32)
    plane = np.stack([rows, columns, np.ones_like(rows)], axis=-1)  # [H, W, 3]
    points, values = border(plane), border(grey)
    distance = np.abs(values - np.median(values))
    inside = distance <= 2.5 * np.median(distance) + 60
    for _ in range(4):  # each time without the outliers, which are not background
        slope = np.linalg.lstsq(points[inside], values[inside])[0]
        distance = np.abs(values - points @ slope)
        inside = distance <= 2.5 * np.median(distance) + 1
    return plane @ slope


def find_things(grey: np.ndarray) -> list[Thing]:
    """All things on a picture [H, W], each as often as there are levels at which it is one."""
    smooth = ndimage.gaussian_filter(grey, min(1.0, max(grey.shape) * SMOOTH))
    planar = smooth - border_plane(smooth)
    views = [planar] if _is_flat(planar) else [planar, smooth - local_median(smooth)]
    noise = np.quantile(np.abs(views[-1]), 0.3) / 0.385  # of a normal distribution
    lowest = max(FAINTEST / 2, FAINTEST_TO_NOISE / 2 * noise)
    things = []
    for sign in (1, -1):
        fall = ndimage.maximum_filter(sign * smooth, 2 * REACH + 1) - sign * smooth
        fall = np.pad(fall, 2, constant_values=-1)
        for number, view in enumerate(views):
            ink = sign * view
            for level in _levels(ink, lowest, view is planar):
                things += [
                    _measured(box, mask, fall, sign, number, level)
                    for box, mask in _components(ink > level)
                ]
    faintest = max(FAINTEST, FAINTEST_TO_NOISE * noise)
    return [thing for thing in things if thing.contrast > faintest]


def _is_flat(planar: np.ndarray) -> bool:
    """Whether the paper is so evenly lit that the view without its plane is enough."""
    paper = np.abs(planar) < FAINTEST
    return border(paper).mean() > 0.98 and paper.mean() > 0.5


def _levels(ink: np.ndarray, lowest: float, both: bool) -> list[float]:
    levels = []
    if ink.max() > lowest:
        levels += np.geomspace(lowest, ink.max(), LEVELS_ABOVE + 1)[:-1].tolist()
    if both and -ink.min() > lowest:
        levels += (-np.geomspace(lowest, -ink.min(), LEVELS_BELOW + 1)[:-1]).tolist()
    return levels


def _components(mask: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """The box and the mask of each of the largest connected parts."""
    labels, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    places = ndimage.find_objects(labels)
    length = np.array([max(b.stop - b.start for b in place) for place in places], int)
    least = max(SHORTEST, max(mask.shape) * SMALLEST)
    for index in np.argsort(-length)[:LARGEST]:
        if length[index] >= least:
            rows, columns = places[index]
            box = Box(rows.start, columns.start, rows.stop, columns.stop)
            yield box, labels[rows, columns] == index + 1


def _measured(
    box: Box, mask: np.ndarray, fall: np.ndarray, sign: int, view: int, level: float
) -> Thing:
    """`fall` [H + 4, W + 4] is how far each pixel lies below the highest nearby; -1: no pixel."""
    filled = fill_holes(mask)
    near = dilate(pad(filled, 2))
    ring = dilate(near) & ~near
    values = np.sort(fall[box.grown(2).shifted(2, 2).slices][ring])
    outside = np.searchsorted(values, 0)
    falls = values[outside:] if outside < len(values) else np.zeros(1)
    edge = EDGE * falls[len(falls) * 3 // 4]
    return Thing(
        *(box, mask, filled, sign, view, level),
        contrast=float(falls[len(falls) // 2]),
        closed=1 - np.searchsorted(falls, edge, "right") / len(falls),
        cut=outside / len(values),
        border=outside / (2 * (sum(fall.shape) - 8)),
    )


def dilate(mask: np.ndarray, times: int = 1) -> np.ndarray:
    """The pixels and their eight neighbours; ten times as fast as `ndimage.binary_dilation`."""
    for _ in range(times):
        rows = mask.copy()
        rows[1:] |= mask[:-1]
        rows[:-1] |= mask[1:]
        mask = rows.copy()
        mask[:, 1:] |= rows[:, :-1]
        mask[:, :-1] |= rows[:, 1:]
    return mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Three times as fast as `ndimage.binary_fill_holes`."""
    background, _ = ndimage.label(~pad(mask, 1), FOUR_NEIGHBOURS)
    return (background != 1)[1:-1, 1:-1]


def pad(mask: np.ndarray, margin: int) -> np.ndarray:
    """A margin of False on all sides; ten times as fast as `np.pad`."""
    height, width = mask.shape
    padded = np.zeros((height + 2 * margin, width + 2 * margin), bool)
    padded[margin : margin + height, margin : margin + width] = mask
    return padded


def shape(filled: np.ndarray) -> tuple[float, float]:
    """How much of a rectangle and how convex a shape without holes is.

    Returns:
      The area of the convex hull as a share of the smallest rectangle around it, and the shape's
      area as a share of the hull's.
    """
    (rows,) = np.nonzero(filled.any(axis=1))
    first = filled[rows].argmax(axis=1)
    last = filled.shape[1] - filled[rows, ::-1].argmax(axis=1)
    corners = np.array([(rows + below, side) for below in (0, 1) for side in (first, last)])
    corners = corners.transpose(0, 2, 1).reshape(-1, 2)
    hull = ConvexHull(corners)
    points = corners[hull.vertices]
    sides = np.diff(points, axis=0, append=points[:1])
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)  # a side of it lies on the hull
    across = along[:, ::-1] * [1, -1]
    box = np.min(np.ptp(points @ along.T, axis=0) * np.ptp(points @ across.T, axis=0))
    return hull.volume / box, np.count_nonzero(filled) / hull.volume
