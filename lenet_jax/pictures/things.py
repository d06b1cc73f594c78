"""The things on a picture: connected pixels that stand out from their surroundings.

As in maximally stable extremal regions (Matas et al., 2002), a picture is thresholded at many
levels, and each connected part of the result is a thing. Two views of the picture are thresholded,
one without the plane through its border and one without its local median, each for light and for
dark things. The module `ink` decides which things are ink.

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

# All of these were chosen on the pictures of experiments/draw_pictures.py.
FAINTEST = 8  # minimum contrast of ink, in grey levels
CLEAREST_NOISE = 6  # minimum contrast of ink, in standard deviations of the noise
LEVELS_ABOVE = 8  # thresholds from the paper's grey value to the ink's
LEVELS_BELOW = 6  # thresholds on the other side of what lies at the border, such as a desk
MOST_THINGS = 8  # things of a level that are measured, the longest first
SHORTEST = 3  # minimum length of a thing, in pixels
SHORTEST_SHARE = 1 / 40  # minimum length of a thing, as a share of the picture's longer side
SMOOTHING = 1 / 150  # standard deviation, as a share of the longer side; 1 pixel at most
EDGE_REACH = 3  # width of an edge after smoothing, on either side, in pixels
EDGE = 0.4  # minimum contrast of an edge, as a share of that of an outline's sharpest quarter
COARSE = 64  # pixels per side of the picture of which local medians are taken
WINDOW = 1 / 4  # side of the local median's window, as a share of the picture's longer side
EVEN_BORDER = 0.98  # minimum share of the border near its plane on an evenly lit scan
OUTLIER = 2.5  # median distances from the border's plane: pixels beyond are not background
FIRST_OUTLIER = 60  # grey levels more than that, before a plane is fitted

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
FOUR_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """A connected set of pixels."""

    box: Box
    mask: np.ndarray  # bool [box.height, box.width]
    filled: np.ndarray  # the mask without holes
    sign: int  # 1: lighter than its surroundings; -1: darker
    view: int  # number of the view on which it is found
    level: float  # threshold in that view
    contrast: float  # grey levels across its outline
    closed: float  # share of its outline that has an edge
    cut: float  # share of its outline that lies outside the picture
    border: float  # share of the picture's border that it covers

    @functools.cached_property
    def size(self) -> float:
        return self.box.size

    @functools.cached_property
    def area(self) -> int:
        return np.count_nonzero(self.mask)

    @property
    def solid(self) -> float:
        """The share of the filled outline that is not a hole."""
        return self.area / np.count_nonzero(self.filled)

    @functools.cached_property
    def thickness(self) -> float:
        """The diameter of the largest disc that fits into the thing."""
        return 2 * float(ndimage.distance_transform_edt(pad(self.mask, 1)).max())

    @functools.cached_property
    def shape(self) -> tuple[float, float]:
        return shape(self.filled)

    def united(self, other: "Thing") -> "Thing":
        """A thing with the pixels of both and the measurements of this one."""
        box = self.box.union(other.box)
        mask = np.zeros((box.height, box.width), bool)
        for each in (self, other):
            mask[each.box.seen_from(box).slices] |= each.mask
        return dataclasses.replace(self, box=box, mask=mask, filled=fill_holes(mask))

    def enlarged(self, factor: int) -> "Thing":
        """The same thing on a picture with `factor` times as many pixels per side."""
        mask, filled = (
            each.repeat(factor, 0).repeat(factor, 1) for each in (self.mask, self.filled)
        )
        return dataclasses.replace(self, box=self.box.scaled(factor), mask=mask, filled=filled)


def flatten_colour(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] to [H, W], along the colour in which things differ most from their surroundings.

    A grey picture keeps its grey values.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    coarse = _sample(pixels, _coarse_step(pixels))
    residual = (coarse - local_median(coarse, every=2)).reshape(-1, 3).astype(np.float64)
    axis = np.linalg.eigh(residual.T @ residual)[1][:, -1]
    axis *= np.sign(axis.sum()) or 1
    return pixels @ np.float32(axis / np.sqrt(3))


def local_median(pixels: np.ndarray, every: int = 1) -> np.ndarray:
    """The median of a window around each pixel: [H, W, ...].

    It is taken around every `every`th pixel of a coarse picture, and interpolated. The partition of
    all windows takes NumPy half the time of `scipy.ndimage.median_filter`.
    """
    if pixels.ndim == 3:
        return np.stack([local_median(grey, every) for grey in np.moveaxis(pixels, -1, 0)], -1)
    step = _coarse_step(pixels)
    coarse = _sample(pixels, step)
    side = max(3, int(max(coarse.shape) * WINDOW)) | 1
    padded = np.pad(coarse, side // 2, mode="edge")
    windows = np.array(sliding_window_view(padded, (side, side))[::every, ::every])
    windows = windows.reshape(*windows.shape[:2], -1)
    windows.partition(side**2 // 2)
    medians = windows[..., side**2 // 2]
    return (
        _interpolation(pixels.shape[0], step, every, medians.shape[0])
        @ medians
        @ _interpolation(pixels.shape[1], step, every, medians.shape[1]).T
    )


def _coarse_step(pixels: np.ndarray) -> int:
    return -(-max(pixels.shape[:2]) // COARSE)


def _sample(pixels: np.ndarray, step: int) -> np.ndarray:
    """Every `step`th pixel, at least one per side."""
    top, left = (min(step, side) // 2 for side in pixels.shape[:2])
    return pixels[top::step, left::step]


def _interpolation(side: int, step: int, every: int, count: int) -> np.ndarray:
    """The matrix [side, count] from samples to all pixels of a side."""
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
    inside = distance <= OUTLIER * np.median(distance) + FIRST_OUTLIER
    for _ in range(4):  # each fit leaves out more of what is not background
        slope = np.linalg.lstsq(points[inside], values[inside])[0]
        distance = np.abs(values - points @ slope)
        inside = distance <= OUTLIER * np.median(distance) + 1
    return plane @ slope


def find_things(grey: np.ndarray) -> list[Thing]:
    """All things on a picture [H, W]; a thing is listed once per level at which it is found."""
    smooth = ndimage.gaussian_filter(grey, min(1.0, max(grey.shape) * SMOOTHING))
    planar = smooth - border_plane(smooth)
    views = [planar] if _evenly_lit(planar) else [planar, smooth - local_median(smooth)]
    noise = np.quantile(np.abs(views[-1]), 0.3) / 0.385  # a normal distribution's, if 1 is its own
    faintest = max(FAINTEST, CLEAREST_NOISE * noise)
    things = []
    for sign in (1, -1):
        fall = ndimage.maximum_filter(sign * smooth, 2 * EDGE_REACH + 1) - sign * smooth
        fall = np.pad(fall, 2, constant_values=-1)
        for number, view in enumerate(views):
            ink = sign * view
            for level in _levels(ink, faintest / 2, view is planar):
                things += [
                    _measured(box, mask, fall, sign, number, level)
                    for box, mask in _components(ink > level)
                ]
    return [thing for thing in things if thing.contrast > faintest]


def _evenly_lit(planar: np.ndarray) -> bool:
    """Whether the paper is a plane, so that the local median would show nothing new."""
    paper = np.abs(planar) < FAINTEST
    return border(paper).mean() > EVEN_BORDER and paper.mean() > 0.5


def _levels(ink: np.ndarray, lowest: float, both: bool) -> list[float]:
    levels = []
    if ink.max() > lowest:
        levels += np.geomspace(lowest, ink.max(), LEVELS_ABOVE + 1)[:-1].tolist()
    if both and -ink.min() > lowest:
        levels += (-np.geomspace(lowest, -ink.min(), LEVELS_BELOW + 1)[:-1]).tolist()
    return levels


def _components(mask: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """Box and mask of each of the longest connected parts."""
    labels, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    places = ndimage.find_objects(labels)
    length = np.array([max(b.stop - b.start for b in place) for place in places], int)
    shortest = max(SHORTEST, SHORTEST_SHARE * max(mask.shape))
    for index in np.argsort(-length)[:MOST_THINGS]:
        if length[index] >= shortest:
            rows, columns = places[index]
            box = Box(rows.start, columns.start, rows.stop, columns.stop)
            yield box, labels[rows, columns] == index + 1


def _measured(
    box: Box, mask: np.ndarray, fall: np.ndarray, sign: int, view: int, level: float
) -> Thing:
    """`fall` [H + 4, W + 4]: grey levels to the highest pixel nearby; -1 outside the picture."""
    filled = fill_holes(mask)
    near = dilate(pad(filled, 2))
    ring = dilate(near) & ~near
    values = np.sort(fall[box.grown(2).shifted(2, 2).slices][ring])
    outside = np.searchsorted(values, 0)
    edges = values[outside:] if outside < len(values) else np.zeros(1)
    least = EDGE * edges[len(edges) * 3 // 4]
    return Thing(
        *(box, mask, filled, sign, view, level),
        contrast=float(edges[len(edges) // 2]),
        closed=1 - np.searchsorted(edges, least, "right") / len(edges),
        cut=outside / len(values),
        border=outside / (2 * (sum(fall.shape) - 8)),
    )


def dilate(mask: np.ndarray, times: int = 1) -> np.ndarray:
    """Adds all eight neighbours; ten times as fast as `ndimage.binary_dilation`."""
    for _ in range(times):
        rows = mask.copy()
        rows[1:] |= mask[:-1]
        rows[:-1] |= mask[1:]
        mask = rows.copy()
        mask[:, 1:] |= rows[:, :-1]
        mask[:, :-1] |= rows[:, 1:]
    return mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Four times as fast as `ndimage.binary_fill_holes`."""
    background, _ = ndimage.label(~pad(mask, 1), FOUR_NEIGHBOURS)
    return (background != 1)[1:-1, 1:-1]  # 1 is the part around the mask


def pad(mask: np.ndarray, margin: int) -> np.ndarray:
    """Adds False on all sides; ten times as fast as `np.pad`."""
    padded = np.zeros([side + 2 * margin for side in mask.shape], bool)
    padded[margin:-margin, margin:-margin] = mask
    return padded


def shape(filled: np.ndarray) -> tuple[float, float]:
    """How close a mask without holes comes to a rectangle.

    Returns:
      The area of its convex hull as a share of the smallest rectangle around it, and its own area
      as a share of the hull's.
    """
    (rows,) = np.nonzero(filled.any(axis=1))
    left = filled[rows].argmax(axis=1)
    right = filled.shape[1] - filled[rows, ::-1].argmax(axis=1)
    corners = [np.stack([rows + i, side], axis=1) for i in (0, 1) for side in (left, right)]
    hull = ConvexHull(np.concatenate(corners))
    points = hull.points[hull.vertices]
    sides = np.diff(points, axis=0, append=points[:1])
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)  # the rectangle has one of these
    across = along[:, ::-1] * [1, -1]
    rectangle = np.min(np.ptp(points @ along.T, axis=0) * np.ptp(points @ across.T, axis=0))
    return hull.volume / rectangle, np.count_nonzero(filled) / hull.volume
