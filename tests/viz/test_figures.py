"""What the figures show, read off the drawn objects; how they look was looked at."""

import io
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lenet_jax.viz import figures

RECORDS = [
    {
        "epoch": i,
        "train_loss": 1 / i,
        "train_accuracy": 0.9,
        "test_loss": 2 / i,
        "test_accuracy": i / 9,
    }
    for i in (1, 2, 3)
]
RNG = np.random.default_rng(0)
DIGITS = tuple("0123456789")
PROBS = RNG.dirichlet(np.ones(10), 11)
FIGURES = {  # each with the smallest and an ordinary case
    "curves": lambda: figures.curves({"a": RECORDS, "b": RECORDS[:1]}),
    "curves of nothing": lambda: figures.curves({"": []}),
    "confusion": lambda: figures.confusion(RNG.integers(0, 2000, (10, 10)), DIGITS),
    "confusion of nothing": lambda: figures.confusion(np.zeros((10, 10), int), DIGITS),
    "calibration": lambda: figures.calibration(np.array([0, 3, 50]), PROBS[0, :3], PROBS[1, :3]),
    "calibration of nothing": lambda: figures.calibration(*np.zeros((3, 15))),
    "filters": lambda: figures.filters(RNG.normal(size=(5, 5, 1, 6))),
    "layers": lambda: figures.layers(
        RNG.random((32, 32)),
        {"conv": RNG.random((5, 5, 16)), "fc": RNG.random(84)},
        PROBS[0],
        DIGITS,
    ),
    "mistakes": lambda: figures.mistakes(
        RNG.random((11, 32, 32)), np.arange(11) % 10, PROBS, DIGITS
    ),
    "no mistakes": lambda: figures.mistakes(
        np.zeros((0, 32, 32)), np.zeros(0, int), np.zeros((0, 10)), DIGITS
    ),
}


@pytest.mark.parametrize("case", FIGURES)
def test_it_is_drawn_and_matplotlibs_state_stays(case):
    before = dict(matplotlib.rcParams)
    stream = io.BytesIO()
    FIGURES[case]().savefig(stream, format="png")
    assert dict(matplotlib.rcParams) == before
    drawn = np.asarray(Image.open(stream).convert("L"))
    assert drawn.shape[1] >= 400
    assert ((drawn < 250).any()) == (case != "no mistakes")


def test_curves_are_the_records_and_every_line_has_its_name():
    figure = figures.curves({"a $x": RECORDS, "_b": RECORDS[:1]})
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == [
        *(r"a \$x, train", r"a \$x, test", "b, train", "b, test"),
    ]
    assert list(loss.lines[1].get_xdata()) == [1, 2, 3]
    assert list(loss.lines[1].get_ydata()) == [record["test_loss"] for record in RECORDS]
    assert list(accuracy.lines[1].get_ydata()) == [record["test_accuracy"] for record in RECORDS]


def test_one_runs_lines_are_named_by_their_split_alone():
    (axes, _) = figures.curves({"": RECORDS}).axes
    assert [line.get_label() for line in axes.lines] == ["train", "test"]


def test_the_counts_are_written_where_they_are_not_zero():
    matrix = np.diag([5, 0, 1200])
    matrix[0, 2] = 7
    (axes,) = figures.confusion(matrix, ("a", "b", "c")).axes
    written = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert written == {(0, 0): "5", (0, 2): "7", (2, 2): "1,200"}


def test_a_confusion_matrix_of_many_classes_has_room_for_its_counts_and_names():
    names = [f"{i}" for i in range(47)]
    figure = figures.confusion(np.full((47, 47), 1234), names)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    cell = axes.get_window_extent().width / 47
    assert max(text.get_window_extent().width for text in axes.texts) < cell
    tops = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(tops))


def test_of_many_classes_the_most_probable_are_shown_in_their_order():
    probs = np.arange(47) / 1000
    probs[3] = 0.5
    image = np.zeros((32, 32, 3), np.uint8)
    figure = figures.layers(image, {"fc": np.zeros(84)}, probs, [f"c{i}" for i in range(47)])
    last = figure.axes[-1]
    shown = ["c3", *(f"c{i}" for i in range(38, 47))]
    assert [label.get_text() for label in last.get_yticklabels()] == shown
    assert [bar.get_width() for bar in last.patches] == [0.5, *probs[38:]]
    assert figure.axes[0].get_title() == "input\n32 x 32 x 3"


def test_the_names_of_neighbouring_mistakes_do_not_meet():
    names = ("T-shirt/top", "Ankle boot")
    images, probs = np.zeros((16, 32, 32)), np.tile([0.99, 0.01], (16, 1))
    figure = figures.mistakes(images, np.ones(16, int), probs, names)
    FigureCanvasAgg(figure).draw()
    for row in (figure.axes[:4], figure.axes[4:8]):
        for texts in ([axes.title for axes in row], [axes.xaxis.label for axes in row]):
            boxes = [text.get_window_extent() for text in texts]
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_bin_of_few_images_is_no_point_of_the_line():
    count, confidence = np.array([0, 3, 50, 60]), np.array([0, 0.4, 0.6, 0.9])
    above, below = figures.calibration(count, confidence, np.array([0, 0.1, 0.5, 0.8])).axes
    _, line, few = above.lines
    assert list(line.get_xdata()) == [0.6, 0.9]
    assert (list(few.get_xdata()), few.get_label()) == ([0.4], "under 10 images")
    assert [bar.get_height() for bar in below.patches] == [3, 50, 60]


def test_filters_share_a_scale_with_zero_in_its_middle():
    kernel = np.zeros((5, 5, 1, 2))
    kernel[0, 0, 0, 0], kernel[1, 1, 0, 1] = -3, 2
    *shown, _ = figures.filters(kernel).axes
    assert [axes.images[0].get_clim() for axes in shown] == [(-3, 3)] * 2


def test_filters_of_colour_have_a_row_per_channel():
    kernel = np.arange(5 * 5 * 3 * 2.0).reshape(5, 5, 3, 2)
    *shown, _ = figures.filters(kernel).axes
    for axes, (channel, i) in zip(shown, np.ndindex(3, 2), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), kernel[:, :, channel, i])
    assert [axes.get_ylabel() for axes in shown] == ["red", "", "green", "", "blue", ""]


def test_every_map_is_in_its_place():
    maps = np.arange(6.0)[None, None, :] * np.ones((2, 3, 1))
    figure = figures.layers(np.zeros((32, 32)), {"conv": maps}, PROBS[0], DIGITS)
    drawn = np.ma.filled(figure.axes[1].images[0].get_array(), np.nan)
    assert drawn.shape == (5, 11)  # 2 rows of 3 maps, a line apart
    np.testing.assert_array_equal(drawn[0], [0, 0, 0, np.nan, 1, 1, 1, np.nan, 2, 2, 2])
    np.testing.assert_array_equal(drawn[3], [3, 3, 3, np.nan, 4, 4, 4, np.nan, 5, 5, 5])


def test_a_mistake_says_what_was_predicted_and_what_is_true():
    probs = np.array([[0.1, 0.7, 0.2] + [0] * 7])
    axes = figures.mistakes(np.zeros((1, 32, 32)), np.array([2]), probs, DIGITS).axes[0]
    assert (axes.get_title(), axes.get_xlabel()) == ("1  70.0%", "true 2  20.0%")


@pytest.mark.parametrize("errors", [(0.011, 0.0115), (0.02, 0.026), (0.008, 0.13), (0.002, 0.9)])
def test_the_labels_of_a_sweeps_errors_are_several_and_do_not_overlap(errors):
    row = {"optimizer": "sgd", "sd": 0.0, "best": False}
    rows = [row | {"learning_rate": rate, "mean": 1 - rate} for rate in errors]
    figure = figures.sweep(rows, [])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axis = figure.axes[0].yaxis
    low, high = axis.get_view_interval()
    # As drawn: the labels of both kinds of ticks.
    shown = [
        tick.label1
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    spans = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in shown))
    assert len(spans) >= 2
    assert all(below[1] < above[0] for below, above in itertools.pairwise(spans))
