"""Colours and labels that the experiments' figures share, beside `viz.figures.STYLE`."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from lenet_jax.viz.figures import COLOURS

PYTORCH, USUAL_FLAX, OURS = "#8a949e", "#c9a36a", COLOURS[0]


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.06
) -> None:
    """Writes each line's name beside its end; `ends` are x, y, text and colour.

    Call it when the limits are set. Labels that would overlap move apart, to a distance of `gap`
    times the axes' height.
    """
    to_axes = lambda x, y: axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    ends = sorted((to_axes(x, y)[1], text, colour) for x, y, text, colour in ends)
    heights = [y for y, _, _ in ends]
    up, down = heights[:], heights[:]
    for i in range(1, len(ends)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    for above, below, (_, text, colour) in zip(up, down, ends, strict=True):
        place = {"transform": axes.transAxes, "va": "center"}
        axes.text(1.02, (above + below) / 2, text, color=colour, **place)
