"""The page from parameters and numbers; test_report.py looks at one as a browser shows it."""

import re
from string import Template

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import LeNet, data
from lenet_jax.viz import page

SPLIT = data.load("digits").test
RESULT = {
    "dataset": "<digits>",
    "source": "a & b",
    "note": "",
    "loss_name": "mse",
    "test_images": 1200,
    "accuracy": 0.9,
    "loss": 0.25,
    "calibration_error": 0.0123,
    "step": 1234,
    "confusion_matrix": [[1100, 40], [0, 60]],
}
RECORDS = [{"epoch": 1, "test_accuracy": 0.5, "test_loss": 0.25}]
FIGURES = dict.fromkeys(("curves", "confusion", "calibration", "filters", "layers", "mistakes"))


@pytest.fixture(scope="module")
def params():
    return jax.jit(LeNet().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]


def test_activations_are_the_plain_networks(params):
    seen = page.activations(params, SPLIT)
    shapes = {"conv1": (14, 14, 6), "conv2": (5, 5, 16), "fc1": (120,), "fc2": (84,)}
    assert {name: array.shape for name, array in seen.items()} == shapes
    pixels = (jnp.asarray(SPLIT.images[:1], float) / 255 - SPLIT.mean) / SPLIT.std
    logits = LeNet().apply({"params": params}, pixels)
    last = params["fc3"]
    np.testing.assert_allclose(
        seen["fc2"] @ last["kernel"] + last["bias"], logits[0], rtol=1e-4, atol=1e-5
    )
    hidden = jax.nn.relu(seen["conv2"].ravel() @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    np.testing.assert_allclose(seen["fc1"], hidden, rtol=1e-4, atol=1e-5)


def test_the_worst_mistakes_are_those_that_gave_the_true_label_least():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    assert page.worst_mistakes(probs, np.array([0, 0, 0, 1])).tolist() == [1, 2]
    many = np.tile([[0.9, 0.1]], (99, 1))
    assert len(page.worst_mistakes(many, np.ones(99, int))) == page.MAX_MISTAKES


def render(**changes) -> str:
    given = {"first_label": "7", "paths": ["x"], "epochs": None, "config": {}, "compared": ""}
    figures = {name: name.encode() for name in FIGURES}
    return page.render(figures, RESULT, **given | changes)


def test_numbers_and_texts_are_in_their_places_and_escaped():
    html = render(paths=["<b>", "$step"], config={"settings": {"<i>": None}, "step": 3})
    assert "<h1>LeNet on &lt;digits&gt;</h1><p>&lt;b&gt; · $step</p>" in html
    assert "1,200 test images from a &amp; b" in html
    assert "<b>0.2500</b><span>test loss (mse)</span>" in html
    assert "<b>-</b><span>epochs</span>" in html
    assert "32 of 40 mistakes among 1,200 test images" in html
    assert "whose true label is 7" in html
    assert "<h3>settings</h3><table><tr><th>&lt;i&gt;</th><td>-</td></tr></table>" in html
    assert "<h3>step" not in html


def test_the_template_asks_for_nothing_that_is_not_given():
    assert not re.findall(r"\$\w", render())
    template = Template(
        page.importlib.resources.files("lenet_jax.viz").joinpath("page.html").read_text()
    )
    assert set(FIGURES) <= set(template.get_identifiers())


def test_the_table_of_runs_has_a_row_for_each():
    html = page.comparison(["a<", "b"], [[], RECORDS], [{"rate": 0.1}, {"rate": None}])
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    assert [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows] == [
        ["run", "epochs", "test accuracy", "test loss", "rate"],
        ["a&lt;", "-", "-", "-", "0.1"],
        ["b", "1", "50.00%", "0.2500", "-"],
    ]
    assert html.endswith("<p>Their curves are below; everything else is about the first run.</p>")


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(OSError, match=r"report: cannot be written to \("):
        page.write(tmp_path / "report", "", {})
