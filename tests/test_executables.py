"""Programs on disk: that what is read is what would be compiled, and otherwise is compiled."""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

from lenet_jax import cli, create_train_state, epoch, executables, losses, make_optimizer, step
from lenet_jax.executables import UnknownError, describe
from lenet_jax.model import LeNet
from lenet_jax.optimizers import make_schedule

SUMS = {"loss": 0, "accuracy": 0}
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (80, 32, 32, 1), np.uint8))
LABELS = jnp.arange(80) % 10


@pytest.fixture
def cache(tmp_path):
    """JAX's compilation cache in a folder of its own."""
    old = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", old)
    compilation_cache.reset_cache()


def kept_evaluate(function=epoch.evaluate):
    """As another process would have it: with nothing loaded."""
    return executables.kept(function, static=["batch_size", "loss_fn"], like=lambda given: SUMS)


def kept_train_epoch(function=epoch.train_epoch):
    static = ["batch_size", "loss_fn", "mesh"]
    return executables.kept(function, static=static, like=lambda given: (given["state"], SUMS))


def without_compiler(function):
    """A function that is asked for under the same name and can do nothing."""

    @functools.wraps(function)
    def refuse(*args, **kwargs):
        raise AssertionError("was to be read from disk")

    refuse.lower = refuse
    return refuse


def files(cache):
    return sorted((cache / executables.FOLDER).glob("*"))


def make_state(learning_rate=0.1, steps=4):
    tx = make_optimizer("sgd", learning_rate, schedule=make_schedule("cosine", steps))
    return create_train_state(jax.random.key(0), tx)


def test_what_is_read_from_disk_computes_the_same_bits_on_two_devices(cache):
    mesh = epoch.make_mesh(64)
    assert mesh.size == 2, "conftest.py makes two devices, or this test tests little"
    trained = []
    for train_epoch in (
        epoch.train_epoch,
        kept_train_epoch(),
        kept_train_epoch(without_compiler(epoch.train_epoch)),
    ):
        how = {"batch_size": 64, "mesh": mesh}
        state, images, labels = epoch.replicate(mesh, (make_state(), IMAGES, LABELS))
        for _ in range(2):  # the program takes what it gives
            state, sums = train_epoch(state, images, labels, jax.random.key(1), **how)
        trained.append((state, sums))
    assert len(files(cache)) == 1
    for other in trained[1:]:
        jax.tree.map(np.testing.assert_array_equal, trained[0], other)


def test_the_state_is_consumed_all_the_same(cache):
    state, key = make_state(), jax.random.key(1)
    kept_train_epoch()(state, IMAGES, LABELS, key, batch_size=20)
    with pytest.raises(RuntimeError, match="deleted"):
        state.params["fc3"]["bias"] + 1


def test_programs_that_differ_are_different_files(cache):
    evaluate = kept_evaluate()
    evaluate(make_state(), IMAGES, LABELS)
    evaluate(make_state(learning_rate=0.2), IMAGES, LABELS, mean=0.5)  # another number: the same
    assert len(files(cache)) == 2  # with and without a mean of one's own
    evaluate(make_state(learning_rate=0.3), IMAGES, LABELS, mean=0.25)
    assert len(files(cache)) == 2
    evaluate(make_state(), IMAGES[:20], LABELS[:20])
    evaluate(make_state(), IMAGES, LABELS, batch_size=10)
    evaluate(make_state(), IMAGES, LABELS, loss_fn=losses.mse)
    assert len(files(cache)) == 5


@pytest.mark.parametrize("damage", [lambda file: file[:5000], lambda file: b"\0" * 64 + file[64:]])
def test_a_damaged_or_foreign_program_is_made_anew(cache, damage):
    right = kept_evaluate()(make_state(), IMAGES, LABELS)
    (file,) = files(cache)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert kept_evaluate()(make_state(), IMAGES, LABELS) == right
    assert files(cache) == [file]
    assert file.read_bytes()[:64] == content[:64]
    assert len(file.read_bytes()) > 5000


def test_a_program_of_other_sources_is_made_anew(cache, monkeypatch):
    kept_evaluate()(make_state(), IMAGES, LABELS)
    (file,) = files(cache)
    before = file.read_bytes()
    monkeypatch.setattr(executables, "_CODE", b"1" * 64)
    with pytest.raises(AssertionError, match="was to be read"):
        kept_evaluate(without_compiler(epoch.evaluate))(make_state(), IMAGES, LABELS)
    kept_evaluate()(make_state(), IMAGES, LABELS)
    assert file.read_bytes() == before  # by what is on disk it is no program of these sources


def test_sources_and_versions_are_told_apart(tmp_path, monkeypatch):
    shutil.copy(executables.__file__, tmp_path)
    monkeypatch.setattr(executables, "OWN", tmp_path)
    codes = [executables._code()]
    (tmp_path / "executables.py").write_text("# edited")
    codes.append(executables._code())
    monkeypatch.setattr(optax, "__version__", "0.0.1")
    codes.append(executables._code())
    assert len(set(codes)) == 3


@contextlib.contextmanager
def with_option(config, name, value):
    old = config.values[name] if config is jax.config else getattr(config, name)
    config.update(name, value)
    try:
        yield
    finally:
        config.update(name, old)


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda patch: jax.default_matmul_precision("float32"),
        lambda patch: with_option(jax.config, "jax_disable_most_optimizations", True),
        lambda patch: with_option(flax.config, "flax_fix_rng_separator", True),
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        lambda patch: patch.setattr(cli, "count_cores", lambda: 7),
        lambda patch: patch.setattr(executables, "_processor", lambda: "another"),
    ],
    ids=["context", "jax", "flax", "xla", "cores", "processor"],
)
def test_what_else_a_program_follows_from_makes_another_file(cache, monkeypatch, otherwise):
    kept_evaluate()(make_state(), IMAGES, LABELS)
    with otherwise(monkeypatch) or contextlib.nullcontext():
        kept_evaluate()(make_state(), IMAGES, LABELS)
    assert len(files(cache)) == 2


def test_a_context_is_seen_by_what_is_loaded_already(cache):
    evaluate = kept_evaluate()
    evaluate(make_state(), IMAGES, LABELS)
    with jax.default_matmul_precision("float32"):
        evaluate(make_state(), IMAGES, LABELS)
    assert len(files(cache)) == 2


def test_what_jaxs_cache_returned_is_not_what_is_written(cache):
    given = {"images": IMAGES, "labels": LABELS, "key": jax.random.key(1), "batch_size": 20}
    right = epoch.train_epoch(state=make_state(), **given)
    jax.clear_caches()  # as in a second process, for which JAX's cache is full
    kept_train_epoch()(state=make_state(), **given)
    read = kept_train_epoch(without_compiler(epoch.train_epoch))(state=make_state(), **given)
    jax.tree.map(np.testing.assert_array_equal, read, right)


def test_a_loss_of_the_callers_own_is_not_kept(cache):
    @functools.wraps(losses.cross_entropy)  # whatever it says of itself
    def own(logits, labels):
        return jnp.float32(7)

    result = kept_evaluate()(make_state(), IMAGES, LABELS, loss_fn=own)
    assert result["loss"] == 7
    assert not files(cache)


def test_devices_in_any_order_and_data_on_the_first_of_them(cache):
    for order in ((0, 1), (1, 0)):
        devices = [jax.devices()[i] for i in order]
        mesh = jax.make_mesh((2,), (epoch.AXIS,), (AxisType.Auto,), devices=devices)
        how = {"batch_size": 64, "mesh": mesh}
        for function in (epoch.train_epoch, without_compiler(epoch.train_epoch)):
            state, _ = kept_train_epoch(function)(
                make_state(), IMAGES, LABELS, jax.random.key(1), **how
            )
            kept_evaluate()(state, IMAGES, LABELS)  # which lies on both
    assert len(files(cache)) == 4


def test_nothing_runs_while_it_is_traced(cache):
    state = make_state()
    train = lambda: executables.train_epoch(state, IMAGES, LABELS, jax.random.key(1), batch_size=64)
    jax.make_jaxpr(train)()
    assert float(state.params["fc3"]["bias"][0]) != 0  # not consumed
    assert not files(cache)


def test_a_write_that_fails_leaves_nothing(cache, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    kept_evaluate()(make_state(), IMAGES, LABELS)
    assert not files(cache)


def test_another_process_reads_it(cache):
    right = kept_evaluate()(make_state(), IMAGES, LABELS)
    there = subprocess.run(
        [sys.executable, "-c", READ_IN_ANOTHER_PROCESS],
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert there.stdout.split() == [str(float(right["loss"]))], there.stderr


READ_IN_ANOTHER_PROCESS = """
import conftest  # its options of JAX
from lenet_jax import epoch
from test_executables import IMAGES, LABELS, kept_evaluate, make_state, without_compiler
read = kept_evaluate(without_compiler(epoch.evaluate))
print(float(read(make_state(), IMAGES, LABELS)["loss"]))
"""


def test_without_a_place_to_keep_it_everything_works(cache):
    (cache / executables.FOLDER).write_text("a file is in the way")
    right = epoch.evaluate(make_state(), IMAGES, LABELS)
    assert kept_evaluate()(make_state(), IMAGES, LABELS) == right


@pytest.mark.parametrize("option", ["jax_disable_jit", "jax_debug_nans", "jax_debug_infs"])
def test_jax_can_still_look_at_each_operation(cache, option):
    called = []

    @functools.wraps(epoch.evaluate)
    def noted(*args, **kwargs):
        called.append(kwargs)
        return SUMS

    jax.config.update(option, True)
    try:
        kept_evaluate(noted)(None, IMAGES, LABELS)
    finally:
        jax.config.update(option, False)
    assert called
    assert not files(cache)


def test_inside_another_transformation_it_is_the_function(cache):
    loss = lambda params: executables.evaluate(
        create_train_state(jax.random.key(0), make_optimizer("sgd"), params=params), IMAGES, LABELS
    )["loss"]
    grads = jax.grad(loss)(make_state().params)
    assert np.abs(grads["fc3"]["bias"]).max() > 0
    assert not files(cache)


def test_jaxs_own_cache_goes_on(cache):
    kept_evaluate()(make_state(), IMAGES, LABELS)
    own = set(cache.glob("*-cache"))
    epoch.evaluate(make_state(), IMAGES[:30], LABELS[:30])
    assert set(cache.glob("*-cache")) > own


def test_parameters_are_those_of_the_seed(cache):
    model, key = LeNet(), jax.random.key(3)
    want = model.init(key, jnp.zeros((1, 32, 32, 1)))["params"]
    like = lambda given: want
    for function in (step.init_params, without_compiler(step.init_params)):
        got = executables.kept(function, static=["model"], like=like)(model, key)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(files(cache)) == 1


# --- describe --------------------------------------------------------------------------------

IN_ANOTHER_PROCESS = """
from functools import partial
from lenet_jax import losses, make_optimizer
from lenet_jax.executables import describe
from lenet_jax.model import LeNet
from lenet_jax.optimizers import make_schedule
tx = make_optimizer("adam", 0.1, schedule=make_schedule("onecycle", 100))
print(describe((tx.update, LeNet(), partial(losses.cross_entropy, label_smoothing=0.1))))
"""


def test_a_description_is_the_same_in_another_process():
    tx = make_optimizer("adam", 0.2, schedule=make_schedule("onecycle", 100))
    smoothed = functools.partial(losses.cross_entropy, label_smoothing=0.1)
    here = describe((tx.update, LeNet(), smoothed))
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert there.stdout.strip() == here, there.stderr


def test_descriptions_of_different_programs_differ():
    schedules = [make_schedule("onecycle", 100), make_schedule("onecycle", 101)]
    schedules += [make_schedule("cosine", 100), make_schedule("cosine", 100, warmup_steps=1), None]
    things = [make_optimizer("adam", schedule=schedule).update for schedule in schedules]
    things += [make_optimizer("adam", weight_decay=0.1).update, make_optimizer("sgd").update]
    things += [losses.cross_entropy, losses.mse, functools.partial(losses.mse, reduction="sum")]
    things += [LeNet(), LeNet(conv_relu_pool=losses.mse)]
    things += [1, 1.0, True, "1", None, (1,), [1], {1: 1}]
    texts = [describe(thing) for thing in things]
    assert len(set(texts)) == len(things)


def test_a_function_is_told_by_its_place_its_defaults_and_what_it_closes_over(monkeypatch):
    monkeypatch.setattr(executables, "KNOWN", (Path(__file__).parent,))
    one, other = (lambda x: x + 1), (lambda x: x + 1)
    assert describe(one) != describe(other)
    adder = lambda n: lambda x: x + n
    with_defaults = [lambda x, n=n: x + n for n in (1, 2, 1)]
    for a, b, again in (with_defaults, [adder(n) for n in (1, 2, 1)]):
        assert describe(a) == describe(again) != describe(b)

    def countdown(end):
        def recursive(n):
            return recursive(n - 1) if n > end else end

        return recursive

    assert describe(countdown(1)) == describe(countdown(1)) != describe(countdown(2))

    def early():
        return late()

    with pytest.raises(UnknownError):
        describe(early)
    late = early


@pytest.mark.parametrize(
    "unknown", [lambda x: x, object(), jnp.ones(2), nn.Dense(3).apply, pytest.fixture]
)
def test_what_nobody_can_tell_has_no_description(unknown):
    with pytest.raises(UnknownError):
        describe(("something", [unknown]))
