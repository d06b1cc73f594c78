"""Where on a picture something is written, whatever lies around it and however it is lit.

A thing is a connected set of pixels above some level, of a view of the picture, that has an edge
all round (as in maximally stable extremal regions, Matas et al., 2002). The views are the picture
without a plane, which is fitted to its border, and without its local median; lighter and darker
things are looked for alike. A sheet, a frame and a cell of a form are things too; they are told
from ink by being rectangles around another thing. What touches the picture's border is left out,
unless it is all there is.

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


def border_plane(grey: np.ndarray) -> np.ndarray:
    """The plane [H, W] through most of the picture's border."""
    rows, columns = np.indices(grey.shape, np.float32)
    plane = np.stack([rows, columns, np.ones_like(rows)], axis=-1)  # [H, W, 3]
    edge = lambda each: np.concatenate([each[0], each[-1], each[1:-1, 0], each[1:-1, -1]])
    points, values = edge(plane), edge(grey)
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
    return [thing.enlarged(step) for thing in things if thing.contrast > max(FAINTEST, 4 * noise)]


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


def _shape(filled: np.ndarray) -> tuple[float, float]:
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


def contains(outer: Thing, inner: Thing) -> bool:
    return (
        outer.rows.start <= inner.rows.start
        and inner.rows.stop <= outer.rows.stop
        and outer.columns.start <= inner.columns.start
        and inner.columns.stop <= outer.columns.stop
        and outer.size > 1.05 * inner.size
    )


def _lies_in(inner: Thing, outer: Thing) -> bool:
    """Whether `outer` is what is directly around `inner`."""
    padded = np.pad(fill_holes(inner.mask), 3)
    ring = ndimage.binary_dilation(padded, SQUARE, 3) & ~ndimage.binary_dilation(padded, SQUARE)
    r, c = np.nonzero(ring)
    r += inner.rows.start - outer.rows.start - 3
    c += inner.columns.start - outer.columns.start - 3
    inside = (r >= 0) & (c >= 0) & (r < outer.height) & (c < outer.width)
    return np.sum(outer.mask[r[inside], c[inside]]) > 0.5 * len(r)


def _box_in(outer: Thing, inner: Thing) -> tuple[slice, slice]:
    """The box of `inner`, which lies in that of `outer`, in coordinates of `outer`."""
    return (
        slice(inner.rows.start - outer.rows.start, inner.rows.stop - outer.rows.start),
        slice(inner.columns.start - outer.columns.start, inner.columns.stop - outer.columns.start),
    )


def _is_part(inner: Thing, outer: Thing) -> bool:
    """Whether `inner`, whose box lies in that of `outer`, is found again as a part of it."""
    covered = outer.mask[_box_in(outer, inner)][inner.mask]
    return inner.sign == outer.sign and covered.mean() > 0.1


def _is_card(thing: Thing, others: list[Thing]) -> bool:
    """Whether it is a sheet or a frame, with something on it or in it."""
    filled = fill_holes(thing.mask)
    fill, convex = _shape(filled)
    if fill < 0.93:
        return False
    for other in others:
        if contains(thing, other) and other.size > thing.size / 5 and not _is_part(other, thing):
            enclosed = convex > 0.9 and filled[_box_in(thing, other)][other.mask].all()
            if (enclosed or fill > 0.95) and not _lies_in(other, thing):
                return True
            if enclosed and (thing.solid > 0.75 or (fill > 0.95 and _shape(other.mask)[0] < 0.8)):
                return True
    return False


def choose(things: list[Thing], apart: bool = True) -> list[Thing]:
    """Those that are ink, each once, from left to right.

    Args:
      things: of `find_things`.
      apart: whether there may be several; otherwise all is one.
    """
    closed = [t for t in things if t.closed >= 0.8]
    if not closed:
        return []
    inner = [t for t in closed if t.border == 0]
    cut = [t for t in closed if 0 < t.border < 0.5 and t.cut < 0.45 and _is_stroke(t)]
    strongest = max(t.contrast for t in inner or cut or closed)
    inner = [t for t in inner if t.contrast > strongest / 4]
    score = lambda t: t.size * min(t.contrast, 0.4 * strongest) * t.closed**2
    cards = [t for t in inner if _is_card(t, inner)]
    ink = [t for t in inner if not any(t is card or _lines(t, card) for card in cards)]
    best = max(ink or inner, key=score, default=None)
    cut = [t for t in cut if (best is None or _outdoes(t, best)) and not _is_card(t, inner)]
    best = max(cut, key=score, default=best) or max(closed, key=score)
    return _group(_sharpest(best, closed), things, apart)


def _outdoes(cut: Thing, inner: Thing) -> bool:
    """Whether what touches the border is the ink, and not what lies within the picture.

    This is a speck beside it, or a hole in it, or a part of it that stands out no more than it.
    """
    if inner.size < cut.size / 8:
        return True
    if not contains(cut, inner):
        return False
    return inner.sign != cut.sign or (_is_part(inner, cut) and cut.contrast > 0.8 * inner.contrast)


def _sharpest(best: Thing, things: list[Thing]) -> Thing:
    """The same thing, at the lowest level at which its outline is about as sharp as anywhere."""
    same = [
        t
        for t in things
        if (t.sign, t.view, t.border == 0) == (best.sign, best.view, best.border == 0)
        and 0.85 * best.size < t.size <= best.size
        and _overlap(best, t)
    ]
    sharpest = max(t.contrast for t in same)
    return min((t for t in same if t.contrast >= 0.75 * sharpest), key=lambda t: t.level)


def _overlap(a: Thing, b: Thing) -> bool:
    """Whether they lie in about the same box."""
    near = 0.15 * a.size
    return all(
        abs(x.start - y.start) < near and abs(x.stop - y.stop) < near
        for x, y in ((a.rows, b.rows), (a.columns, b.columns))
    )


def _is_stroke(thing: Thing) -> bool:
    """Whether no large disc lies in it, as one does in a shadow and in a part of the paper."""
    radius = ndimage.distance_transform_edt(np.pad(thing.mask, 1)).max()
    return bool(2 * radius < 0.34 * thing.size)


def _lines(thing: Thing, card: Thing) -> bool:
    """Whether it is a piece of the card's edge."""
    near = 0.03 * card.size
    gaps = [
        gap
        for inner, outer in ((thing.rows, card.rows), (thing.columns, card.columns))
        for gap in (inner.start - outer.start, outer.stop - inner.stop)
    ]
    return thing.sign == card.sign and -near < min(gaps) < near


def _group(best: Thing, things: list[Thing], apart: bool) -> list[Thing]:
    """`best` and what is written in the same way beside it, from left to right.

    Strokes that do not touch but lie close, or over one another, are one thing.
    """
    groups = [best]
    rest = [
        t
        for t in things
        if t is not best
        and t.sign == best.sign
        and t.level == best.level
        and t.view == best.view
        and t.border == 0
        and t.contrast > best.contrast / 4
        and t.mask.sum() > best.mask.sum() / 20
        and t.size < 1.3 * best.size
        and not contains(t, best)
    ]
    while True:
        pairs = [(g, t) for g in groups for t in rest if not apart or _close(g, t)]
        if not pairs:
            far = [t for t in rest if t.height > best.height / 2 and t.closed >= 0.8]
            if not far:
                break
            groups.append(far[0])
            rest = [t for t in rest if t is not far[0]]
            continue
        group, thing = pairs[0]
        groups = [g for g in groups if g is not group] + [_union(group, thing)]
        rest = [t for t in rest if t is not thing]
    return sorted(groups, key=lambda g: g.columns.start)


def _close(a: Thing, b: Thing) -> bool:
    gaps = [
        max(x.start, y.start) - min(x.stop, y.stop)
        for x, y in ((a.rows, b.rows), (a.columns, b.columns))
    ]  # negative where they overlap
    size = max(a.size, b.size)
    over = -gaps[1] > 0.4 * min(a.width, b.width) and gaps[0] < 0.25 * size
    return over or max(gaps) < 0.06 * size


def _union(a: Thing, b: Thing) -> Thing:
    rows, columns = (
        slice(min(x.start, y.start), max(x.stop, y.stop))
        for x, y in ((a.rows, b.rows), (a.columns, b.columns))
    )
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    for t in (a, b):
        top, left = t.rows.start - rows.start, t.columns.start - columns.start
        mask[top : top + t.height, left : left + t.width] |= t.mask
    return a._replace(rows=rows, columns=columns, mask=mask)


def cut_out(grey: np.ndarray, thing: Thing) -> np.ndarray:
    """The ink [h, w] of a thing, from 0, without what is around it."""
    margin = 3
    reach = max(margin, thing.size // 4)
    top, left = max(0, int(thing.rows.start - reach)), max(0, int(thing.columns.start - reach))
    around = grey[top : int(thing.rows.stop + reach), left : int(thing.columns.stop + reach)]
    mask = np.zeros(around.shape, bool)
    rows = slice(thing.rows.start - top, thing.rows.stop - top)
    columns = slice(thing.columns.start - left, thing.columns.stop - left)
    inside = mask[rows, columns]
    inside[:] = thing.mask[: inside.shape[0], : inside.shape[1]]
    near = ndimage.binary_dilation(mask, SQUARE, 2 if thing.size > 40 else 1)
    paper = around.copy()
    outside = ndimage.binary_dilation(mask, SQUARE, 3 if thing.size > 40 else 1)
    nearest = ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True)
    paper = ndimage.gaussian_filter(paper[tuple(nearest)], thing.size / 20)
    ink = np.where(near, np.maximum(thing.sign * (around - paper), 0), 0)
    if thing.sign < 0:  # paper in shadow is darker, ink takes the same share of its light
        ink *= paper.max() / np.maximum(paper, 1)
    noise = 1.4826 * np.median(np.abs(around - paper)[~outside]) if not outside.all() else 0
    smooth = ndimage.gaussian_filter(ink, 1)
    level = smooth.max()
    core = smooth > level / 3 if level < 10 * noise else ink > max(level / 5, 4 * noise)
    labels, count = ndimage.label(core, SQUARE)
    sizes = ndimage.sum_labels(ink, labels, range(count + 1))
    sizes[0] = 0  # the pixels of no component
    kept = (sizes > sizes.max() / 20)[labels]
    specks = core & ~kept
    ink[specks | (ink < 3 * noise)] = 0
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
