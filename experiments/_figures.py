"""What the experiments' figures have in common, beside `lenet_jax.viz.figures.STYLE`."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from lenet_jax.viz.figures import COLOURS

PYTORCH, USUAL_FLAX, OURS = "#8a949e", "#c9a36a", COLOURS[0]


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.06
) -> None:
    """Names lines where they end: of each x, y, text and colour; call it when limits are set.

    Labels that would overlap move apart; `gap` is their distance, of the axes' height.
    """
    to_axes = lambda x, y: axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    lowest = -float("inf")
    for y, text, colour in sorted((to_axes(x, y)[1], text, colour) for x, y, text, colour in ends):
        lowest = max(y, lowest + gap)
        axes.text(1.02, lowest, text, color=colour, transform=axes.transAxes, va="center")
