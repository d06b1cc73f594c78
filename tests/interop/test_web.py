"""The page to draw on, in a real browser: it computes what we compute, and reads what is drawn."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import browser
import jax
import numpy as np
import pytest
from drawn_digits import DRAWN, Point, drag, on_screen
from PIL import Image, ImageDraw

from lenet_jax import data
from lenet_jax.core import seeds
from lenet_jax.core.epoch import predict, train_epoch
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.split import take
from lenet_jax.core.step import create_train_state
from lenet_jax.data.registry import INFO
from lenet_jax.interop import pytorch, web
from lenet_jax.pictures.frame import center

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
from tutorial_net import Net


def train(split: data.Split, epochs: int) -> dict:
    """The parameters of a LeNet after a few epochs."""
    state = create_train_state(seeds.init_key(0), make_optimizer("adam", learning_rate=3e-3))
    for epoch in range(epochs):
        state, _ = train_epoch(state, split, seeds.epoch_key(0, epoch))
    return state.params


def page_of(params: dict, dataset: data.Dataset, about: str = "A LeNet.") -> str:
    mean, std = dataset.train.mean, dataset.train.std
    return web.page(
        params, mean=mean, std=std, classes=dataset.classes, dataset=dataset.name, about=about
    ).decode()


DIGITS = data.load("digits")


@pytest.fixture(scope="module")
def digits_params() -> dict:
    return train(DIGITS.train, epochs=2)


# --- the file ---


@pytest.fixture(scope="module")
def page(digits_params) -> str:
    return page_of(digits_params, DIGITS)


def content(page: str) -> dict:
    return json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])


def test_the_parameters_are_in_it_to_the_bit(page, digits_params):
    assert content(page)["params"] == jax.tree.map(web.encode, digits_params)
    assert "{{" not in page


@pytest.mark.parametrize("name", data.DATASETS)
def test_it_has_the_normalization_and_what_the_registry_says_of_the_data_set(name, digits_params):
    dataset = dataclasses.replace(DIGITS, name=name)
    found = content(page_of(digits_params, dataset, about="What it learnt."))
    expected = {field: getattr(INFO[name], field) for field in ("box", "pen", "by_mass")}
    expected |= {"mean": DIGITS.train.mean, "std": DIGITS.train.std, "about": "What it learnt."}
    assert {field: found[field] for field in expected} == expected


def test_it_names_no_other_file_or_address(page):
    assert not re.findall(r"https?:|//\w+\.|url\(|@import|fetch\(|XMLHttp|import\(", page)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("data:") for link in links)
    policy = re.search(r'content="(default-src[^"]*)"', page)[1]  # the browser keeps to it
    sources = {word for rule in policy.split(";") for word in rule.split()[1:]}
    assert policy.startswith("default-src 'none';")
    assert sources == {"'none'", "'unsafe-inline'", "data:"}


def test_no_text_can_end_the_script(digits_params):
    assert page_of(digits_params, DIGITS, about="</script><b>").count("</script>") == 2


# --- in a browser ---


@pytest.fixture
def on_digits(window, page, tmp_path) -> browser.Browser:
    """The page of a network of digits, just opened."""
    (tmp_path / "page.html").write_text(page)
    window.open(tmp_path / "page.html")
    return window


def logits_on(window: browser.Browser, images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(len(images), -1).tolist()
    return np.array(window.evaluate(f"{pixels}.map((p) => Array.from(forward(p).logits))"))


def test_its_logits_are_ours(on_digits, digits_params):
    expected = predict(LeNet(), digits_params, take(DIGITS.test, slice(100)))
    found = logits_on(on_digits, DIGITS.test.images[:100])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_its_feature_maps_are_pytorchs(on_digits, digits_params):
    image, mean, std = DIGITS.test.images[0], DIGITS.test.mean, DIGITS.test.std
    net = Net()
    state = pytorch.to_state_dict(digits_params)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    x = torch.from_numpy((image[None, None, :, :, 0] / 255 - mean) / std).float()
    conv1 = torch.relu(net.conv1(x))
    conv2 = torch.relu(net.conv2(torch.max_pool2d(conv1, 2)))
    for name, maps in (("conv1", conv1), ("conv2", conv2)):
        found = on_digits.evaluate(f"Array.from(forward({image.ravel().tolist()}).{name})")
        expected = maps[0].permute(1, 2, 0).detach().numpy()
        np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=0, atol=1e-5)


def test_it_loads_nothing_and_complains_of_nothing(on_digits):
    drag(on_digits, DRAWN[3])
    on_digits.settle()
    told = [event["method"] for event in on_digits.events]
    assert told.count("Network.requestWillBeSent") == 1  # the page itself
    assert not {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"} & {*told}


# --- drawing ---


def answer(window: browser.Browser) -> str:
    window.settle()
    return window.evaluate("find('#class').textContent")


def strokes_of(digit: int, form: str) -> list[list[Point]]:
    return [[FORMS[form](*point) for point in stroke] for stroke in DRAWN[digit]]


FORMS = {
    "as it is": lambda x, y: (x, y),
    "small and in a corner": lambda x, y: (0.3 * x, 0.7 + 0.3 * y),
    "leaning": lambda x, y: (x + 0.2 * (0.5 - y), y),
}


@pytest.fixture(scope="module")
def mnist(mnist_dir) -> data.Dataset:
    return data.load("mnist", str(mnist_dir))


@pytest.fixture(scope="module")
def mnist_params(mnist) -> dict:
    """Of a network that has seen a third of MNIST once."""
    return train(take(mnist.train, slice(20_000)), epochs=1)


@pytest.fixture(scope="module")
def mnist_page(mnist_params, mnist, tmp_path_factory) -> Path:
    page = tmp_path_factory.mktemp("page") / "page.html"
    page.write_text(page_of(mnist_params, mnist))
    return page


@pytest.fixture
def on_mnist(window, mnist_page) -> browser.Browser:
    """The page of the MNIST network, just opened."""
    window.open(mnist_page)
    return window


def test_its_logits_are_ours_on_mnist(on_mnist, mnist_params, mnist):
    expected = predict(LeNet(), mnist_params, take(mnist.test, slice(100)))
    found = logits_on(on_mnist, mnist.test.images[:100])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_digits_that_the_mouse_draws_are_read(form, on_mnist):
    answers = []
    for digit in DRAWN:
        on_mnist.press("Escape")
        drag(on_mnist, strokes_of(digit, form))
        answers.append(answer(on_mnist))
    assert answers == [str(digit) for digit in DRAWN]


def test_a_finger_draws_as_the_mouse_does(on_mnist, mnist_page):
    on_mnist.open(mnist_page, 390, 844, deviceScaleFactor=3, mobile=True)
    on_mnist.swipe(on_screen(on_mnist, DRAWN[5][0]))
    assert answer(on_mnist) == "5"
    assert on_mnist.evaluate("scrollY") == 0


def test_the_drawing_is_framed_as_predict_frames_a_picture_of_it(on_digits):
    info = INFO["mnist"]
    frame = json.dumps({"box": info.box, "pen": info.pen, "by_mass": info.by_mass})
    on_digits.evaluate(f"Object.assign(run, {frame}), 0")
    for digit in DRAWN.keys() - {1}:  # predict rounds its width, 2.4 pixels, to an integer
        strokes = json.dumps(DRAWN[digit])
        framed = np.reshape(on_digits.evaluate(f"Array.from(frame({strokes}))"), (32, 32))
        expected = center(pictured(DRAWN[digit]), info.box, info.by_mass)[..., 0]
        shifted = [  # the centre of mass may lie between two pixels
            np.roll(expected.astype(float), by, axis=(0, 1))
            for by in itertools.product((-1, 0, 1), repeat=2)
        ]
        difference = min(np.abs(framed - one).mean() for one in shifted)
        assert difference < 8, digit  # a shift by half a pixel gives 6.5, by one 15
        assert np.abs(mass(framed) - 16).max() <= 0.51, digit


def pictured(strokes: list[list[Point]]) -> np.ndarray:
    """A drawing in black on white, with a pen of the same width to its size."""
    info, image = INFO["mnist"], Image.new("L", (600, 600), 255)
    points = np.concatenate(strokes)
    width = 400 * np.ptp(points, axis=0).max() * info.pen / (info.box - info.pen)
    for stroke in strokes:
        inked = [(100 + 400 * x, 100 + 400 * y) for x, y in stroke]
        ImageDraw.Draw(image).line(inked, fill=0, width=round(width), joint="curve")
        for x, y in inked:
            ImageDraw.Draw(image).circle((x, y), width / 2, fill=0)
    return np.asarray(image, np.float32)


def mass(image: np.ndarray) -> np.ndarray:
    """The row and column of the centre of mass."""
    return (np.indices(image.shape) * image).sum(axis=(1, 2)) / image.sum()


# --- doubt ---


def told(window: browser.Browser) -> list[str]:
    """The class and what is said of it."""
    window.settle()
    return [window.evaluate(f"find('{part}').textContent") for part in ("#class", "#sure b")]


def beside(left: int, right: int, shift: float) -> list[list[Point]]:
    """Two digits, each half as large; `shift` is from one's middle to the other's."""
    return [
        [(0.5 + sign * shift / 2 + (x - 0.5) / 2, 0.25 + y / 2) for x, y in stroke]
        for sign, digit in ((-1, left), (1, right))
        for stroke in DRAWN[digit]
    ]


def test_two_characters_side_by_side_are_not_answered(on_digits):
    for left, right in ((1, 1), (4, 2), (5, 0), (1, 7)):
        on_digits.press("Escape")
        drag(on_digits, beside(left, right, shift=0.4))
        assert told(on_digits) == ["?", "one character, please"], (left, right)
    on_digits.press("Escape")
    assert told(on_digits) == ["?", "nothing drawn yet"]


CAPITALS = {  # of several strokes, as a hand draws them
    "A": [[(0.5, 0.2), (0.3, 0.8)], [(0.5, 0.2), (0.7, 0.8)], [(0.38, 0.55), (0.62, 0.55)]],
    "H": [[(0.3, 0.2), (0.3, 0.8)], [(0.7, 0.2), (0.7, 0.8)], [(0.3, 0.5), (0.7, 0.5)]],
    "K": [[(0.35, 0.2), (0.35, 0.8)], [(0.68, 0.2), (0.42, 0.5), (0.7, 0.8)]],
    "i": [[(0.5, 0.4), (0.5, 0.8)], [(0.55, 0.25), (0.56, 0.25)]],
}
FIVE_WITH_ITS_BAR_APART = [DRAWN[5][0][2:], [(0.8, 0.2), (0.95, 0.2)]]


@pytest.mark.parametrize("form", FORMS)
def test_one_character_of_several_strokes_is_one(form, on_digits):
    for strokes in [*DRAWN.values(), *CAPITALS.values(), FIVE_WITH_ITS_BAR_APART]:
        moved = [[FORMS[form](*point) for point in stroke] for stroke in strokes]
        assert not on_digits.evaluate(f"areTwo({json.dumps(moved)})"), strokes


def test_several_characters_may_be_one_where_classes_are_words(window, digits_params, tmp_path):
    dataset = dataclasses.replace(DIGITS, classes=tuple(INFO["kmnist"].classes))
    (tmp_path / "page.html").write_text(page_of(digits_params, dataset))
    window.open(tmp_path / "page.html")
    drag(window, beside(4, 2, shift=0.4))
    assert told(window)[0] in dataset.classes


def test_below_80_percent_it_is_a_guess(on_digits):
    p = [0.795, 0.2, 0.005] + 7 * [0.0]
    on_digits.evaluate(f"showAnswer({p})")
    assert told(on_digits) == ["0", "a guess, 79.5 %"]
    on_digits.evaluate(f"showAnswer({[0.805, 0.195] + 8 * [0.0]})")
    assert told(on_digits) == ["0", "80.5 % sure"]


# --- the rest of the page ---


def test_it_answers_while_the_mouse_is_down(on_digits):
    assert answer(on_digits) == "?"
    for kind, point in zip(
        ("mousePressed", "mouseMoved"), on_screen(on_digits, [(0.5, 0.2), (0.5, 0.8)]), strict=True
    ):
        on_digits.mouse(kind, *point)
    assert answer(on_digits) in "0123456789"
    on_digits.mouse("mouseReleased", *point)


def shown(window: browser.Browser) -> dict[str, list]:
    """What can be seen: the answer, the ten bars, and the pixels of each picture."""
    window.settle()
    return {
        "digit": window.evaluate("find('#class').textContent"),
        "bars": window.evaluate("bars.map((bar) => Number(bar.style.getPropertyValue('--p')))"),
        "pictures": window.evaluate(
            "[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL())"
        ),
    }


def test_it_shows_ten_probabilities_and_the_maps_of_both_convolutions(on_digits):
    empty = shown(on_digits)
    drag(on_digits, DRAWN[3])
    drawn = shown(on_digits)
    assert sum(drawn["bars"]) == pytest.approx(1)
    assert drawn["digit"] == str(np.argmax(drawn["bars"]))
    assert len(drawn["pictures"]) == 1 + 1 + 6 + 16
    changed = np.not_equal(drawn["pictures"], empty["pictures"])
    assert changed[:2].all()
    assert changed.sum() >= 20  # a filter may be silent


@pytest.mark.parametrize(
    ("undo", "clear"),
    [
        (lambda page: page.click("#undo"), lambda page: page.click("#clear")),
        (lambda page: page.press("z", ctrl=True), lambda page: page.press("Escape")),
    ],
    ids=["buttons", "keys"],
)
def test_undo_takes_the_last_stroke_and_clear_takes_all(undo, clear, on_digits):
    empty = shown(on_digits)
    drag(on_digits, DRAWN[4][:1])
    one_stroke = shown(on_digits)
    drag(on_digits, DRAWN[4][1:])
    assert shown(on_digits) != one_stroke
    undo(on_digits)
    assert shown(on_digits) == one_stroke
    drag(on_digits, DRAWN[4][1:])
    clear(on_digits)
    assert shown(on_digits) == empty


def test_it_follows_the_systems_light_and_dark(on_digits):
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        on_digits.call("Emulation.setEmulatedMedia", features=features)
        colour = on_digits.evaluate("getComputedStyle(document.body).backgroundColor")
        colours.append(sum(map(int, re.findall(r"\d+", colour))))
    on_digits.call("Emulation.setEmulatedMedia", features=[])
    assert colours[0] > 600 > 150 > colours[1]


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_nothing_is_wider_than_the_screen(width, on_digits, tmp_path):
    on_digits.open(tmp_path / "page.html", width, 800)
    drag(on_digits, DRAWN[3])
    on_digits.settle()
    assert on_digits.evaluate("document.documentElement.scrollWidth") <= width
