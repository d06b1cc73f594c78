"""The benchmark measures what it says; no test depends on a speed."""

import json
import os
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch, the rival, is not installed")
import _isa
import _jax_rows
import _throughput_page as page
import _timed
import _torch_rows
import jax
import throughput
from _results import FOLDER, path, slug

from lenet_jax import LeNet
from lenet_jax.core import ops

FILES = [*page.names("throughput"), *page.names("throughput_avx2")]


def test_a_ratio_is_taken_round_by_round_against_the_best():
    speeds = {"ours": [20.0, 40.0, 90.0], "slow": [5.0, 10.0, 20.0], "best": [10.0, 20.0, 30.0]}
    result = page.ratio(speeds, "ours", ["slow", "best"])
    assert result["to"] == "best"
    assert result["median"] == pytest.approx(2)
    assert result["quartiles"] == pytest.approx([2, 2.5])


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile would put a C++ compiler to work for half a minute."""
    forms = {name: (layout, False) for name, (layout, _) in _torch_rows.FORMS.items()}
    monkeypatch.setattr(_torch_rows, "FORMS", forms)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [_torch_rows, _jax_rows], ids=lambda rows: rows.__name__)
def test_every_row_runs_and_takes_time(rows, no_compiler):
    for group in ("training", "inference"):
        for name, run in rows.make(group, 16).items():
            times = _timed.timed(run, 1)
            assert times["seconds"] > 0, name
            assert times["cores"] >= 0, name


def rounds_of(**seconds: list[float]):
    """A `time_row` that takes these seconds, round by round, and the list of what it was asked."""
    asked, left = [], {name: iter(each) for name, each in seconds.items()}

    def time_row(name: str, steps: int) -> dict[str, float]:
        asked.append((name, steps))
        return {"seconds": next(left[name]), "cores": 2.0, "cores of others": 0.5}

    return time_row, asked


def test_a_disturbed_round_is_told_apart_and_repeated():
    time_row, asked = rounds_of(ours=[1, 1, 2, 1.2, 1], theirs=[4, 4.5, 4, 4, 4])
    steps, images = {"ours": 3, "theirs": 2}, {"ours": 10, "theirs": 10}
    speeds, disturbed = _timed.in_turn(time_row, steps, images, rounds=4)
    assert asked == [("ours", 3), ("theirs", 2)] * 5
    assert speeds == {
        "ours": pytest.approx([30, 30, 25, 30]),
        "theirs": pytest.approx([5, 20 / 4.5, 5, 5]),
    }
    (slow,) = disturbed
    assert (slow["round"], slow["row"], slow["cores of others"]) == (2, "ours", 0.5)
    assert slow["of its median"] == pytest.approx(0.5)


def test_if_too_many_rounds_are_disturbed_all_count():
    """They are what the machine does, then, and a median of the others would flatter."""
    seconds = {f"row {at}": [2 if at == i else 1 for i in range(8)] for at in range(3, 8)}
    time_row, asked = rounds_of(**seconds)
    speeds, disturbed = _timed.in_turn(time_row, *[dict.fromkeys(seconds, 1)] * 2, rounds=4)
    assert len(asked) == len(seconds) * _timed.MOST * 4
    assert speeds["row 3"] == [1, 1, 1, 0.5, 1, 1, 1, 1]
    assert [slow["round"] for slow in disturbed] == [3, 4, 5, 6, 7]


def test_a_process_answers_for_its_rows_and_its_words_are_no_answers(tmp_path):
    (tmp_path / "some_rows.py").write_text(
        "import os\nprint('noise')\n"
        "def make(group, size): return {f'{group} {size}': lambda steps: print('more noise')}\n"
        "def describe(): return os.environ['ATEN_CPU_CAPABILITY']\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "ATEN_CPU_CAPABILITY": "default"}
    worker = _timed.Worker("some_rows", ", SSE", environment)
    assert worker.ask("describe") == "default"
    rows = _timed.make([worker], ("training", "inference"), 16)
    assert list(rows) == ["training 16, SSE", "inference 16, SSE"]
    images = dict.fromkeys(rows, 16)
    speeds, _ = _timed.measure(rows, images, rounds=2, seconds=0.0)
    assert all(len(each) >= 2 and min(each) > 0 for each in speeds.values())
    worker.close()
    assert worker.process.returncode == 0


def test_pytorchs_process_does_not_import_jax():
    code = "import sys, _torch_rows; sys.exit('jax' in sys.modules)"
    folder = os.path.dirname(_torch_rows.__file__)
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0


def test_a_process_that_ends_is_an_error(tmp_path):
    worker = _timed.Worker("no_such_module")
    with pytest.raises(SystemExit, match="has ended"):
        worker.receive()
    worker.close()


@pytest.mark.parametrize(
    ("instructions", "sets"),
    [
        ("AVX-512", ["SSE", "AVX2", "AVX-512"]),
        ("AVX2 (of a processor with AVX-512)", ["SSE", "AVX2"]),
        ("unknown", [""]),
    ],
)
def test_pytorch_runs_on_every_set_that_there_is(instructions, sets, monkeypatch):
    monkeypatch.setattr(_isa, "instructions", lambda: instructions)
    assert list(_isa.sets_of_pytorch()) == sets


@pytest.mark.parametrize(
    ("processor", "device", "expected"),
    [
        ("AMD EPYC", "cpu", "amd-epyc"),
        ("AMD EPYC 9R14 96-Core Processor", "cpu", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) Platinum 8488C", "cpu", "intel-xeon-platinum-8488c"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "cpu", "intel-core-i7-8650u"),
        ("AMD EPYC", "NVIDIA A100-SXM4-40GB", "nvidia-a100-sxm4-40gb"),
        ("AMD EPYC", "TPU v5 lite", "tpu-v5-lite"),
    ],
)
def test_results_carry_the_processor_or_the_accelerator_in_their_name(processor, device, expected):
    assert slug({"processor": processor, "devices": [device]}) == expected


@pytest.mark.parametrize(
    "file", [file.name for file in FOLDER.glob("*.*.json")], ids=lambda name: name
)
def test_each_file_has_the_name_of_its_machine(file):
    name, device, _ = file.split(".")
    machine = json.loads((FOLDER / file).read_text())["machine"]
    assert slug(machine) == device
    assert ("avx2" in name) == ("--isa=avx2" in machine["command"])


def test_several_networks_and_one_network_agree_on_the_same_row():
    """A row is measured once; populations.py, which gathers its batches, comes close to it."""
    for name in FILES:
        recorded = json.loads(path(f"{name}.json").read_text())
        if "note" in recorded:  # of before
            continue
        training, members = recorded["training"]["batch 64"], recorded["members"]
        row, one = "ours, cores as devices", "ours, one network, cores as devices"
        assert members[one] == training[row] == recorded["colour"][f"{row}, 1 channel"]
        populations = path(f"{name.replace('throughput', 'populations')}.json")
        if populations.exists():
            alone = json.loads(populations.read_text())["speeds"]["plain"]["1"]
            close = pytest.approx(statistics.median(training[row]), rel=0.1)
            assert statistics.median(alone) == close


def test_the_usual_form_is_the_same_network():
    params, _ = _jax_rows.usual_state(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


def test_the_multiply_adds_of_an_image_are_those_that_xla_counts():
    """Of the reference's form, from the outputs' sizes; the rest of a step is little beside it."""
    model = LeNet(in_channels=3, conv_relu_pool=ops.conv_relu_pool_plain)
    image = jax.numpy.zeros((1, 32, 32, 3))
    params = model.init(jax.random.key(0), image)["params"]
    loss = lambda params: model.apply({"params": params}, image).sum()
    flops = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert flops / 2 == pytest.approx(page.multiply_adds(3), rel=0.05)


def test_rows_of_colour_images_are_as_fast_as_their_multiply_adds_say():
    """Their ratio per multiply-add is 1 where they are slower in proportion to their work."""
    work = page.multiply_adds(3) / page.multiply_adds(1)
    assert 1.3 < work < 1.5
    names = ("ours, in a scan", "ours, cores as devices")
    speeds = {f"{name}, 1 channel": [100 * work] * 3 for name in names}
    speeds |= {f"{name}, 3 channels": [100.0] * 3 for name in names}
    speeds["PyTorch eager"] = [50.0] * 3
    found = [ratio["median"] for ratio in page.colour_ratios(speeds)]
    assert found == pytest.approx([2, 1, 2, 1])


@pytest.mark.parametrize("name", FILES)
def test_ratios_tables_and_figure_are_those_of_the_recorded_speeds(name):
    recorded = json.loads(path(f"{name}.json").read_text())
    again = {f"training, {at}": page.training_ratios(s) for at, s in recorded["training"].items()}
    again |= {
        f"inference, {at}": page.inference_ratios(s) for at, s in recorded["inference"].items()
    }
    again["8 networks, batch 64"] = page.member_ratios(recorded["members"])
    again["training, batch 64, colour"] = page.colour_ratios(recorded["colour"])
    assert again == recorded["ratios"]
    assert path(f"{name}.md").read_text().startswith(page.tables(recorded))
    figure = page.draw({"one": recorded["training"], "other": recorded["training"]})
    assert [len(axes.lines) for axes in figure.axes] == [len(page.shown(recorded["training"]))] * 2


def test_the_figure_has_the_fastest_of_each_kind():
    speeds = {"PyTorch eager, a": [1.0], "PyTorch eager, b": [2.0], "ours, in a scan": [3.0]}
    speeds["PyTorch eager, a, CUDA graph"] = [5.0]
    shown = {label: each for label, (_, each) in page.shown({"batch 64": speeds}).items()}
    assert shown == {
        "PyTorch eager": [[2.0]],
        "PyTorch CUDA graph": [[5.0]],
        "ours, in a scan": [[3.0]],
    }


def test_a_step_of_several_networks_counts_the_images_of_each():
    assert throughput.images_of_a_step("PyTorch torch.func, AVX2") == 8
    assert throughput.images_of_a_step("ours, vmap in a scan") == 8
    assert throughput.images_of_a_step("ours, in a scan") == 1
