"""Which of the things on a picture are ink, whatever lies around it and however it is lit.

A sheet, a frame and a cell of a form are things too; they are told from ink by being rectangles
around another thing. What touches the picture's border is left out, unless it is all there is.
Things that are written in the same way beside one another are told apart; strokes that do not touch
but lie close, or over one another, are one.

Coordinates are (row, column).
"""

import numpy as np
from scipy import ndimage

from lenet_jax.data.things import SQUARE, Thing, fill_holes, shape


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
    fill, convex = shape(filled)
    if fill < 0.93:
        return False
    for other in others:
        if contains(thing, other) and other.size > thing.size / 5 and not _is_part(other, thing):
            enclosed = convex > 0.9 and filled[_box_in(thing, other)][other.mask].all()
            if (enclosed or fill > 0.95) and not _lies_in(other, thing):
                return True
            if enclosed and (thing.solid > 0.75 or (fill > 0.95 and shape(other.mask)[0] < 0.8)):
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
    cut = [t for t in closed if 0 < t.border < 0.5 and t.cut < 0.45]
    cut = [t for t in cut if _thickness(t) < 0.34 * t.size]  # no shadow, and no part of the paper
    strongest = max(t.contrast for t in inner or cut or closed)
    inner = [t for t in inner if t.contrast > strongest / 4]
    score = lambda t: t.size * min(t.contrast, 0.4 * strongest) * t.closed**2
    cards = [t for t in inner if _is_card(t, inner)]
    ink = [t for t in inner if not any(t is card or _lines(t, card) for card in cards)]
    best = max(ink or inner, key=score, default=None)
    cut = [t for t in cut if (best is None or _outdoes(t, best)) and not _is_card(t, inner)]
    best = max(cut, key=score, default=best) or max(closed, key=score)
    best = _sharpest(best, closed)
    return _group(best, ink, things) if apart else [_joined(best, things, apart)]


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
        and _coincide(best, t)
    ]
    sharpest = max(t.contrast for t in same)
    return min((t for t in same if t.contrast >= 0.75 * sharpest), key=lambda t: t.level)


def _coincide(a: Thing, b: Thing) -> bool:
    """Whether they lie in about the same box."""
    near = 0.15 * a.size
    return all(
        abs(x.start - y.start) < near and abs(x.stop - y.stop) < near
        for x, y in ((a.rows, b.rows), (a.columns, b.columns))
    )


def _thickness(thing: Thing) -> float:
    """The diameter of the largest disc that lies in it."""
    return 2 * float(ndimage.distance_transform_edt(np.pad(thing.mask, 1)).max())


def _lines(thing: Thing, card: Thing) -> bool:
    """Whether it is a piece of the card's edge."""
    near = 0.03 * card.size
    gaps = [
        gap
        for inner, outer in ((thing.rows, card.rows), (thing.columns, card.columns))
        for gap in (inner.start - outer.start, outer.stop - inner.stop)
    ]
    return thing.sign == card.sign and -near < min(gaps) < near


def _group(best: Thing, ink: list[Thing], things: list[Thing]) -> list[Thing]:
    """`best` and what is written in the same way beside it, in any light, from left to right."""
    groups, pen = [_joined(best, things)], _thickness(best)
    while True:
        beside = [
            t
            for t in ink
            if t.sign == best.sign
            and t.contrast > 0.4 * best.contrast
            and 0.5 * best.height < t.height
            and t.size < 1.3 * best.size
            and not any(_overlap(group, t) for group in groups)
            and 0.4 < _thickness(t) / pen < 2.5
        ]
        if not beside:
            return sorted(groups, key=lambda group: group.columns.start)
        largest = max(beside, key=lambda t: t.size * t.closed**2)
        groups.append(_joined(_sharpest(largest, ink), things))


def _joined(thing: Thing, things: list[Thing], apart: bool = True) -> Thing:
    """With the strokes that do not touch it, but lie close, or over it; or else with all."""
    rest = [
        t
        for t in things
        if (t.sign, t.view, t.level, t.border) == (thing.sign, thing.view, thing.level, 0)
        and t is not thing
        and t.contrast > thing.contrast / 4
        and t.mask.sum() > thing.mask.sum() / 20
        and t.size < 1.3 * thing.size
        and not contains(t, thing)
    ]
    while close := [t for t in rest if not apart or _close(thing, t)]:
        thing = _union(thing, close[0])
        rest = [t for t in rest if t is not close[0]]
    return thing


def _overlap(a: Thing, b: Thing) -> bool:
    """Whether one has a pixel's column in common with the other's, by more than a serif."""
    common = min(a.columns.stop, b.columns.stop) - max(a.columns.start, b.columns.start)
    return common > 0.3 * min(a.width, b.width)


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
    reach = max(3, thing.size // 4)
    top, left = max(0, int(thing.rows.start - reach)), max(0, int(thing.columns.start - reach))
    around = grey[top : int(thing.rows.stop + reach), left : int(thing.columns.stop + reach)]
    mask = np.zeros(around.shape, bool)
    rows = slice(thing.rows.start - top, thing.rows.stop - top)
    columns = slice(thing.columns.start - left, thing.columns.stop - left)
    inside = mask[rows, columns]
    inside[:] = thing.mask[: inside.shape[0], : inside.shape[1]]
    near = ndimage.binary_dilation(mask, SQUARE, 2 if thing.size > 40 else 1)
    outside = ndimage.binary_dilation(mask, SQUARE, 3 if thing.size > 40 else 1)
    nearest = ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True)
    paper = ndimage.gaussian_filter(around[tuple(nearest)], thing.size / 20)
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
    ink[(core & ~kept) | (ink < 3 * noise)] = 0
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
