"""The tutorial is true: PyTorch computes what the script prints; every line of the page runs."""

import contextlib
import io
import re

import nbclient
import nbformat
import notebook
import numpy as np
import pytest
import tutorial
from _results import path
from notebook import SNIPPET

from lenet_jax.interop.pytorch import to_state_dict

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
F = torch.nn.functional
from tutorial_net import Net, to_torch

pytestmark = pytest.mark.slow

LAST_DIGIT = 1.01e-4  # four decimals are printed


def numbers(text: str) -> np.ndarray:
    """Those with a decimal point, in their order."""
    return np.array(re.findall(r"-?\d+\.\d*(?:e[-+]\d+)?", text), float)


# --- tutorial.py


@pytest.fixture(scope="module")
def printed() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, np.printoptions():
        tutorial.main()
    return output.getvalue()


class Judge:
    """PyTorch with the script's weights and inputs."""

    def __init__(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            params, image = tutorial.define_the_network()
            target = tutorial.compute_the_loss(params, image)
            cotangent = tutorial.random_cotangent()
        state = to_state_dict(params)
        self.state = {name: torch.from_numpy(array) for name, array in state.items()}
        self.input = to_torch(np.asarray(image))
        self.target, self.cotangent = torch.tensor(target), torch.tensor(cotangent)

    def net(self) -> Net:
        net = Net()
        net.load_state_dict(self.state)
        return net

    def loss(self, net: Net) -> torch.Tensor:
        return F.mse_loss(net(self.input), self.target)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def after(line: str, text: str) -> str:
    """The line that follows the one that begins with `line`."""
    lines = text.splitlines()
    return lines[next(i for i, one in enumerate(lines) if one.startswith(line)) + 1]


def assert_shown(text: str, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(numbers(text), wanted.detach().ravel(), rtol=0, atol=LAST_DIGIT)


def test_the_sections_stand_in_the_tutorials_order(printed):
    headings = ["3.1 Define", "3.2 Loss", "3.3 Backprop", "3.4 Update"]
    assert re.findall(r"^3\.\d \w+", printed, re.MULTILINE) == headings


def test_the_structure_is_that_of_pytorchs_print(printed):
    for line in repr(Net()).splitlines()[1:]:
        assert line.replace("Conv2d", "Conv").split(", stride")[0] in printed
    assert "10 parameter arrays, 61,706 numbers" in printed


def test_every_array_is_shown_in_both_orders(printed):
    for name, array in Net().state_dict().items():
        name = name.replace("weight", "kernel")
        (line,) = (line for line in printed.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith(f"in PyTorch's order {list(array.shape)}")
    assert re.search(r"conv1.kernel +\[5, 5, 1, 6\] +in PyTorch's order \[6, 1, 5, 5\]", printed)


def test_the_output_row_is_pytorchs(printed, judge):
    assert_shown(after("input [1, 32, 32, 1] -> output", printed), judge.net()(judge.input))


def test_a_single_sample_is_refused_and_its_remedy_works(printed):
    assert "images[None]" in after("layers take mini-batches; a single sample [32, 32, 1]", printed)
    assert "single[None] [1, 32, 32, 1] -> [1, 10]" in printed


def test_the_gradient_from_the_cotangent_is_pytorchs_both_times(printed, judge):
    net = judge.net()
    net(judge.input).backward(judge.cotangent)
    assert_shown(after("conv1.bias's gradient from a random", printed), net.conv1.bias.grad)
    assert_shown(after("and a second time", printed), net.conv1.bias.grad)


def test_the_graph_is_the_tutorials_and_pytorchs(printed, judge):
    assert (
        "input -> conv2d -> relu -> maxpool2d -> conv2d -> relu -> maxpool2d\n"
        "      -> flatten -> linear -> relu -> linear -> relu -> linear\n"
        "      -> MSELoss\n"
        "      -> loss\n"
    ) in printed
    translation = {"MseLoss": "MSELoss", "Addmm": "linear", "Relu": "relu", "View": "flatten"}
    translation |= {"MaxPool2DWithIndices": "maxpool2d", "Convolution": "conv2d"}
    theirs, node = [], judge.loss(judge.net()).grad_fn
    while node:
        theirs.append(translation[node.name().removesuffix("Backward0")])
        node = node.next_functions["Addmm" in node.name()][0]
    listing = printed.split("the equations of its jaxpr:\n")[1].split("and forwards")[0]
    ours = [line.split()[-1] for line in listing.splitlines() if "(its bias)" not in line]
    assert ours == ["MSELoss"] * 3 + theirs


def test_the_loss_and_conv1s_bias_gradient_are_pytorchs(printed, judge):
    net = judge.net()
    loss = judge.loss(net)
    loss.backward()
    assert f"MSE loss {loss.item():.4f}" in printed
    assert "hasattr(bias, 'grad') is False" in after("conv1.bias's gradient before", printed)
    assert_shown(after("conv1.bias's gradient after", printed), net.conv1.bias.grad)


def test_each_updates_loss_is_pytorchs(printed, judge):
    sgd = torch.optim.SGD
    optimizers = {
        "weight - 0.01 * gradient": lambda weights: sgd(weights, lr=0.01),
        "sgd": lambda weights: sgd(weights, lr=0.01),
        "nesterov": lambda weights: sgd(weights, lr=0.01, momentum=0.9, nesterov=True),
        "adam": lambda weights: torch.optim.Adam(weights, lr=0.001),
        "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.001),
    }
    for name, make in optimizers.items():
        net = judge.net()
        optimizer = make(net.parameters())
        judge.loss(net).backward()
        optimizer.step()
        (line,) = (line for line in printed.splitlines() if line.startswith(f"  {name}"))
        assert abs(float(line.split()[-1]) - judge.loss(net).item()) < LAST_DIGIT, name


def test_the_training_loop_learns_the_digits(printed):
    accuracies = re.findall(r"test accuracy ([\d.]+)%", printed)
    assert len(accuracies) == tutorial.EPOCHS
    assert float(accuracies[-1]) > 92


def test_what_is_kept_of_it_is_what_it_prints(printed):
    kept = path("tutorial.txt").read_text()
    words = re.compile(r"-?\d+\.\d*|\s+")
    assert words.sub("", kept) == words.sub("", printed)
    # Other cores add up in another order, which the training makes more of than the rest.
    training = len(numbers(kept.split("digits to train on")[1]))
    ours, theirs = numbers(printed), numbers(kept)
    np.testing.assert_allclose(ours[:-training], theirs[:-training], rtol=0, atol=LAST_DIGIT)
    losses, accuracies = np.abs(ours - theirs)[-training:].reshape(-1, 2).T
    assert losses.max() < 0.1
    assert accuracies.max() < 3  # per cent


# --- tutorial.md, and tutorial.ipynb, which is made of it

PAGE = notebook.PAGE.read_text()
CELLS = re.findall(r"<td>\n(.*?)</td>", PAGE, re.DOTALL)
# Where both print the same quantity: the words of the PyTorch line and how many numbers.
EQUAL = {"print(out)": 10, "out.backward(v)": 6, "print(loss)": 1, "loss.backward()\nprint": 6}
EQUAL |= {"f.data.sub_": 1, "optimizer = optim.SGD": 1, "optimizers = [": 3}


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """What each cell prints when the notebook is run, PyTorch's and JAX's in turn."""
    pages = nbformat.read(notebook.NOTEBOOK, as_version=4)
    nbclient.NotebookClient(pages, timeout=300).execute()
    install, *cells = (cell for cell in pages.cells if cell.cell_type == "code")
    assert not install.outputs  # the package is there
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


def test_the_notebook_is_made_of_the_page():
    assert nbformat.read(notebook.NOTEBOOK, as_version=4) == notebook.make(PAGE)


def test_the_notebook_installs_its_own_checkout_and_nothing_by_the_name_of_the_package():
    (line,) = re.findall(r"%pip install --quiet (.*)", notebook.INSTALL)
    assert line.split() == ["..", "torch"]
    project = (notebook.NOTEBOOK.parent / ".." / "pyproject.toml").read_text()
    assert 'name = "lenet_jax"' in project


def test_no_line_of_the_page_is_wider_than_a_window_of_900_pixels():
    """GitHub shows about 90 characters of code there."""
    assert max(len(line) for cell in CELLS for line in cell.splitlines()) <= 80


def test_a_table_has_pytorch_above_jax():
    assert PAGE.count("```python") == len(CELLS)
    assert all(len(SNIPPET.findall(cell)) == 1 for cell in CELLS)
    heads = re.findall(r"<th>(.*?)</th>", PAGE)
    assert heads == ["PyTorch", "JAX"] * (len(CELLS) // 2)
    above, below = CELLS[::2], CELLS[1::2]
    assert len(above) == len(below) > 10
    jax_only = re.compile(r"\b(jax|jnp|lenet_jax|optax)\b")
    assert not any(jax_only.search(SNIPPET.search(cell)[1]) for cell in above)
    assert not any("torch." in SNIPPET.search(cell)[1] for cell in below)


def test_every_snippet_runs_and_prints_what_is_shown(outputs):
    for cell, output in zip(CELLS, outputs, strict=True):
        code, shown = SNIPPET.search(cell).groups(default="")
        words = re.compile(r"-?\d+\.\d*|\s+")  # the rest, so that only rounding may differ
        assert words.sub("", output) == words.sub("", shown), code
        np.testing.assert_allclose(numbers(output), numbers(shown), rtol=0, atol=LAST_DIGIT)


@pytest.mark.parametrize("line", EQUAL)
def test_both_print_the_same_numbers(line, outputs):
    (row,) = (i for i, cell in enumerate(CELLS) if line in cell)
    theirs, ours = numbers(outputs[row]), numbers(outputs[row + 1])
    assert len(theirs) == EQUAL[line]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=LAST_DIGIT)
