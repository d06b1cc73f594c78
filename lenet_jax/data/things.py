"""The things on a picture: sets of connected pixels that have an edge all round.

As in maximally stable extremal regions (Matas et al., 2002), they are looked for at many levels, of
two views of the picture: without a plane, which is fitted to its border, and without its local
median; lighter and darker ones alike. Which of them are ink is for `ink` to say.

Coordinates are (row, column).
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

FAINTEST = 8  # grey levels between ink and paper
SQUARE = np.ones((3, 3), bool)
FINE = 288  # pixels per side on which things are looked for
COARSE = 64  # pixels per side on which the local median is taken


class Thing(NamedTuple):
    """A connected set of pixels."""

    rows: slice
    columns: slice
    mask: np.ndarray  # bool [rows, columns]
    sign: int  # 1: lighter than what is around it
    view: int  # the number of the view on which it is found
    level: float  # above it in its view
    contrast: float  # grey levels across its outline
    closed: float  # the share of its outline that has an edge
    cut: float  # the share of its outline at which the picture ends
    border: float  # the share of the picture's border that it covers
    solid: float  # its own share of its filled outline

    @property
    def height(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start

    def enlarged(self, step: int) -> "Thing":
        """The same on a picture with `step` times the pixels per side."""
        rows, columns = (slice(s.start * step, s.stop * step) for s in (self.rows, self.columns))
        mask = self.mask.repeat(step, 0).repeat(step, 1)
        return self._replace(rows=rows, columns=columns, mask=mask)

    @property
    def size(self) -> float:
        return float(np.hypot(self.height, self.width))


def flatten_colour(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] to [H, W]: along the colours in which things differ most from what is around them.

    Of a grey picture these are its grey values.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    residual = (pixels - local_median(pixels)).reshape(-1, 3).astype(np.float64)
    axis = np.linalg.eigh(residual.T @ residual)[1][:, -1]
    axis *= np.sign(axis.sum()) or 1
    return (pixels @ (axis / np.sqrt(3))).astype(np.float32)


def local_median(pixels: np.ndarray) -> np.ndarray:
    """Of a quarter of the longer side around each pixel: [H, W, ...]."""
    step = max(1, -(-max(pixels.shape[:2]) // COARSE))
    coarse = pixels[step // 2 :: step, step // 2 :: step]
    window = max(3, max(coarse.shape[:2]) // 4) | 1
    sizes = (window, window) + (1,) * (pixels.ndim - 2)
    coarse = ndimage.median_filter(coarse, sizes, mode="nearest")
    rows, columns = (
        np.clip((np.arange(side) - step // 2) / step, 0, None) for side in pixels.shape[:2]
    )
    grid = np.meshgrid(rows, columns, indexing="ij")
    if pixels.ndim == 2:
        return ndimage.map_coordinates(coarse, grid, order=1, mode="nearest")
    channels = [
        ndimage.map_coordinates(channel, grid, order=1, mode="nearest")
        for channel in np.moveaxis(coarse, -1, 0)
    ]
    return np.stack(channels, axis=-1)


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
    step = -(-max(grey.shape) // FINE)
    if step > 1:
        grey = ndimage.uniform_filter(grey, step)[step // 2 :: step, step // 2 :: step]
    smooth = ndimage.gaussian_filter(grey, min(1.0, max(grey.shape) / 150))
    fall = {  # from the highest value nearby
        sign: ndimage.maximum_filter(sign * smooth, 7) - sign * smooth for sign in (1, -1)
    }
    local = smooth - local_median(smooth)
    noise = np.quantile(np.abs(local), 0.3) / 0.385  # of a normal distribution
    lowest = max(FAINTEST / 2, 3 * noise)
    things = []
    for number, view in enumerate((smooth - border_plane(smooth), local)):
        for sign in (1, -1):
            ink = sign * view
            levels = np.geomspace(lowest, max(ink.max(), lowest), 9)[:-1]
            if view is not local:  # what is on a sheet may be as dark as what is around the sheet
                levels = [*levels, *-np.geomspace(lowest, max(-ink.min(), lowest), 7)[:-1]]
            for level in levels:
                things += _components(ink > level, fall[sign], sign, number, level)
    return [thing.enlarged(step) for thing in things if thing.contrast > max(FAINTEST, 6 * noise)]


def _components(mask: np.ndarray, fall: np.ndarray, *found: float) -> list[Thing]:
    labels, _ = ndimage.label(mask, SQUARE)
    boxes = ndimage.find_objects(labels)
    least = max(3, max(mask.shape) / 40)
    extent = np.array([max(b.stop - b.start for b in box) for box in boxes], int)
    order = np.argsort(-extent)[:8]
    return [
        _thing(labels[boxes[index]] == index + 1, boxes[index], fall, *found)
        for index in order
        if extent[index] >= least
    ]


def _thing(inside, box, fall, sign, view, level) -> Thing:
    rows, columns = box
    filled = fill_holes(inside)
    near = ndimage.binary_dilation(np.pad(filled, 2), SQUARE)
    ring = ndimage.binary_dilation(near, SQUARE) & ~near
    r, c = np.nonzero(ring)
    r, c = r + rows.start - 2, c + columns.start - 2
    height, width = fall.shape
    on_picture = (r >= 0) & (c >= 0) & (r < height) & (c < width)
    values = fall[r[on_picture], c[on_picture]] if on_picture.any() else np.zeros(1)
    strong = np.quantile(values, 0.75)
    return Thing(
        rows,
        columns,
        inside,
        sign,
        view,
        level,
        contrast=float(np.median(values)),
        closed=float(np.mean(values > 0.4 * strong)),
        cut=float(np.mean(~on_picture)),
        border=float(np.sum(~on_picture) / (2 * (height + width))),
        solid=float(inside.sum() / filled.sum()),
    )


def fill_holes(mask: np.ndarray) -> np.ndarray:
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def shape(filled: np.ndarray) -> tuple[float, float]:
    """The area of a shape's convex hull as a share of the smallest rectangle around it, and the
    shape's own area as a share of its hull's.
    """
    points = np.argwhere(filled & ~ndimage.binary_erosion(filled))
    corners = np.concatenate([points + d for d in ((0, 0), (0, 1), (1, 0), (1, 1))])
    hull = ConvexHull(corners)
    points = corners[hull.vertices]
    sides = np.diff(points, axis=0, append=points[:1])
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)  # a side of it lies on the hull
    across = along[:, ::-1] * [1, -1]
    box = np.min(np.ptp(points @ along.T, axis=0) * np.ptp(points @ across.T, axis=0))
    return hull.volume / box, filled.sum() / hull.volume
