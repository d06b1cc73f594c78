"""Which of the things on a picture are ink.

A sheet, a frame and a cell of a form are things, too; `choose` calls them cards, and recognises
them as rectangles around another thing. It leaves out what touches the picture's border, unless
there is nothing else, or only a speck, a hole or a part of it. Things that look alike and stand
side by side are separate characters; strokes that lie close together, or one over the other, belong
to the same character.
"""

import numpy as np

from lenet_jax.pictures.things import Thing, dilate, pad

# All of these were chosen on the pictures of experiments/draw_pictures.py. A thing's size is the
# diagonal of its box; its hull's rectangle is the smallest one, in any direction, around its hull.
CLOSED = 0.8  # minimum share of a thing's outline that has an edge
WEAKEST = 1 / 4  # minimum contrast of ink, as a share of the strongest contrast
STRONG = 0.4  # share of the strongest contrast beyond which a thing is no more likely to be ink
MOST_BORDER = 0.5  # maximum share of the picture's border that ink covers
MOST_CUT = 0.45  # maximum share of ink's outline that lies outside the picture
THICKEST = 0.34  # maximum thickness of ink that touches the border, as a share of its size
SPECK = 1 / 8  # maximum size of a speck, as a share of the ink beside it that touches the border
PART_CONTRAST = 0.8  # minimum contrast of ink that touches the border, as a share of its part's
LARGER = 1.05  # minimum size of what is around a thing, as a multiple of the thing's
COVERED = 0.1  # minimum share of a thing's area that lies in the thing of which it is a part
RECTANGLE = 0.93  # minimum area of a card's hull, as a share of its hull's rectangle
EXACT_RECTANGLE = 0.95  # the same, for a card that is open
CONVEX = 0.9  # minimum area of a card that is not open, as a share of its hull
SOLID = 0.75  # minimum area of a sheet, as a share of its filled outline
CONTENT = 1 / 5  # minimum size of what is on a card, as a share of the card's size
CARD_EDGE = 0.03  # maximum distance of a piece of edge from a card's side, as a share of its size
SAME_SIZE = 0.85  # minimum size of a thing at another level, as a share of its size
SAME_PLACE = 0.15  # maximum move of a thing's sides between levels, as a share of its size
SHARP = 0.75  # minimum contrast at the level that is taken, as a share of that at the best level
ALIKE_CONTRAST = 0.4  # minimum contrast of another character, as a share of the best one's
ALIKE_HEIGHT = 0.5  # minimum height of another character, as a share of the best one's
ALIKE_SIZE = 1.3  # maximum size of another character or a stroke, as a multiple of the best one's
ALIKE_PEN = (0.4, 2.5)  # range of another character's thickness, as multiples of the best one's
SERIF = 0.3  # maximum columns that two characters have in common, as a share of the narrower width
STROKE_CONTRAST = 1 / 4  # minimum contrast of a detached stroke, as a share of its character's
STROKE_AREA = 1 / 20  # minimum area of a detached stroke, as a share of its character's
NEAR = 0.06  # maximum distance of strokes side by side, as a share of the larger size
STACKED = 0.4  # minimum common columns of stacked strokes, as a share of the narrower width
NEAR_STACKED = 0.25  # maximum distance of stacked strokes, as a share of the larger size


def choose(things: list[Thing], apart: bool = True) -> list[Thing]:
    """The things that are ink, each once, from left to right.

    Args:
      things: from `find_things`.
      apart: whether there may be several characters; otherwise all ink is one character.
    """
    closed = [t for t in things if t.closed >= CLOSED]
    if not closed:
        return []
    inner = [t for t in closed if t.border == 0]
    cut = [t for t in closed if 0 < t.border < MOST_BORDER and t.cut < MOST_CUT]
    thin = lambda t: t.thickness < THICKEST * t.size  # neither a shadow nor a part of the paper
    strongest = max(t.contrast for t in inner or [t for t in cut if thin(t)] or closed)
    inner = [t for t in inner if t.contrast > WEAKEST * strongest]
    score = lambda t: t.size * min(t.contrast, STRONG * strongest) * t.closed**2
    cards = [t for t in inner if _is_card(t, inner)]
    ink = [t for t in inner if not any(_is_of_card(t, card) for card in cards)]
    best = max(ink or inner, key=score, default=None)
    cut = [
        t for t in cut if (best is None or _outdoes(t, best)) and thin(t) and not _is_card(t, inner)
    ]
    best = max(cut, key=score, default=best) or max(closed, key=score)
    best = _sharpest(best, closed)
    strokes = [
        t for t in things if t.border == 0 and not any(_lies_at_edge(t, card) for card in cards)
    ]
    return _group(best, ink, strokes) if apart else [_joined(best, strokes, apart)]


def _surrounds(outer: Thing, inner: Thing) -> bool:
    return outer.box.contains(inner.box) and outer.size > LARGER * inner.size


def _is_part(inner: Thing, outer: Thing) -> bool:
    """Whether `outer`, whose box contains the box of `inner`, shares pixels with it."""
    covered = outer.mask[inner.box.seen_from(outer.box).slices] & inner.mask
    return inner.sign == outer.sign and np.count_nonzero(covered) > COVERED * inner.area


def _is_card(thing: Thing, others: list[Thing]) -> bool:
    """Whether it is a rectangle, such as a sheet or a frame, around another thing."""
    contents = [
        t
        for t in others
        if _surrounds(thing, t) and t.size > CONTENT * thing.size and not _is_part(t, thing)
    ]
    if not contents or thing.shape[0] < RECTANGLE:
        return False
    fill, convex = thing.shape
    exact = fill > EXACT_RECTANGLE
    for content in contents:
        around = thing.filled[content.box.seen_from(thing.box).slices]
        enclosed = convex > CONVEX and around[content.mask].all()
        if enclosed and thing.solid > SOLID:
            return True
        if (enclosed or exact) and not _lies_in(content, thing):
            return True
    return False


def _lies_in(inner: Thing, outer: Thing) -> bool:
    """Whether `outer` directly surrounds `inner`."""
    near = dilate(pad(inner.filled, 3))
    ring = dilate(near, 2) & ~near
    box = inner.box.grown(3)
    common = box.intersection(outer.box)
    covered = ring[common.seen_from(box).slices] & outer.mask[common.seen_from(outer.box).slices]
    return np.count_nonzero(covered) > 0.5 * np.count_nonzero(ring)


def _is_of_card(thing: Thing, card: Thing) -> bool:
    """Whether it is the card, with or without a shadow, or a piece of its edge."""
    return thing.sign == card.sign and (
        _lies_at_edge(thing, card)
        or (thing.box.contains(card.box) and SAME_SIZE * thing.size < card.size)
    )


def _lies_at_edge(thing: Thing, card: Thing) -> bool:
    return abs(min(card.box.margins(thing.box))) < CARD_EDGE * card.size


def _outdoes(cut: Thing, inner: Thing) -> bool:
    """Whether the thing that touches the border is ink, and not the one within the picture.

    The other one is then a speck beside it, a hole in it, or a part that stands out no more.
    """
    if inner.size < SPECK * cut.size:
        return True
    if not _surrounds(cut, inner):
        return False
    return inner.sign != cut.sign or (
        _is_part(inner, cut) and cut.contrast > PART_CONTRAST * inner.contrast
    )


def _sharpest(best: Thing, things: list[Thing]) -> Thing:
    """The same thing at the lowest level at which its outline is nearly as sharp as at any."""
    same = [
        t
        for t in things
        if (t.sign, t.view, t.border == 0) == (best.sign, best.view, best.border == 0)
        and SAME_SIZE * best.size < t.size <= best.size
        and max(map(abs, best.box.margins(t.box))) < SAME_PLACE * best.size
    ]
    sharpest = max(t.contrast for t in same)
    return min((t for t in same if t.contrast >= SHARP * sharpest), key=lambda t: t.level)


def _group(best: Thing, ink: list[Thing], strokes: list[Thing]) -> list[Thing]:
    """`best` and the characters beside it that look alike, in any light, from left to right."""
    groups = [_joined(best, strokes)]
    alike = [
        t
        for t in ink
        if t.sign == best.sign
        and t.contrast > ALIKE_CONTRAST * best.contrast
        and t.box.height > ALIKE_HEIGHT * best.box.height
        and t.size < ALIKE_SIZE * best.size
    ]
    while True:
        beside = [
            t
            for t in alike
            if not any(_overlap(group, t) for group in groups)
            and ALIKE_PEN[0] < t.thickness / best.thickness < ALIKE_PEN[1]
        ]
        if not beside:
            return sorted(groups, key=lambda group: group.box.left)
        largest = max(beside, key=lambda t: t.size * t.closed**2)
        groups.append(_joined(_sharpest(largest, ink), strokes))


def _overlap(a: Thing, b: Thing) -> bool:
    """Whether two characters have more columns in common than a serif takes."""
    return -a.box.gaps(b.box)[1] > SERIF * min(a.box.width, b.box.width)


def _joined(thing: Thing, strokes: list[Thing], apart: bool = True) -> Thing:
    """The thing with its detached strokes; with all strokes if characters are not told apart."""
    rest = [
        t
        for t in strokes
        if (t.sign, t.view, t.level) == (thing.sign, thing.view, thing.level)
        and t is not thing
        and t.contrast > STROKE_CONTRAST * thing.contrast
        and t.area > STROKE_AREA * thing.area
        and t.size < ALIKE_SIZE * thing.size
        and not _surrounds(t, thing)
    ]
    while close := [t for t in rest if not apart or _close(thing, t)]:
        thing = thing.united(close[0])
        rest = [t for t in rest if t is not close[0]]
    return thing


def _close(a: Thing, b: Thing) -> bool:
    rows, columns = a.box.gaps(b.box)
    size = max(a.size, b.size)
    over = -columns > STACKED * min(a.box.width, b.box.width) and rows < NEAR_STACKED * size
    return over or max(rows, columns) < NEAR * size
