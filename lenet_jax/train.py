"""Trains the tutorial's LeNet.

    python -m lenet_jax.train --optimizer=adam
    python -m lenet_jax.train --dataset=mnist --data_dir=path/to/idx/files --epochs=5

Without --dataset it trains on MNIST if MNIST is on this machine or can be downloaded, and else on
the 1,797 digits that come with scikit-learn. The run is kept in --workdir. However it is stopped,
the same command with the same --workdir continues it, to the same numbers.

The same seed gives the same numbers, bit for bit, on the same machine and versions. On a CPU the
bits also depend on the number of cores that JAX sees: set the environment variable NPROC to fix it.
"""

import contextlib
import dataclasses
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from lenet_jax import cli, data
from lenet_jax.core.model import LeNet, count_params, sizes, summary
from lenet_jax.core.sharding import make_batch_mesh
from lenet_jax.core.step import TrainState
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user
from lenet_jax.interop import pytorch
from lenet_jax.run import folder, loop
from lenet_jax.run.settings import Settings

SHOWN = {  # the settings with a place of their own in the header, and those of folders
    *("dataset", "optimizer", "learning_rate", "schedule", "loss", "batch_size", "epochs", "seed"),
    *("init_from", "data_dir", "workdir", "resume"),
}


def header(settings: Settings, dataset: data.Dataset, state: TrainState) -> str:
    """The devices, the data, the network and the settings of a resolved run."""
    device, size = jax.devices()[0], count_params(state.params)
    kind = f" ({device.device_kind})" if device.device_kind != device.platform else ""
    count = make_batch_mesh(settings.batch_size).size
    shared = f", {count} devices share each batch" if count > 1 else ""
    others = [
        f"--{field.name}={value}"
        for field in dataclasses.fields(settings)
        if field.name not in SHOWN and (value := getattr(settings, field.name)) != field.default
    ]
    start = "" if settings.init_from is None else f", initialised from {settings.init_from}"
    return (
        f"device     {device.platform}{kind}{shared}\n"
        f"data       {dataset.name}, {len(dataset.train.labels):,} training and "
        f"{len(dataset.test.labels):,} test images from {dataset.source}\n"
        f"network    LeNet for {sizes(state.model)}, {size:,} parameters{start}\n"
        f"optimizer  {settings.optimizer}, learning rate {settings.learning_rate:g} "
        f"({settings.schedule}), loss {settings.loss}, batch {settings.batch_size}, "
        f"{cli.count(settings.epochs, 'epoch')}, seed {settings.seed}"
    ) + (f"\nflags      {' '.join(others)}" if others else "")


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(Settings, argv, __doc__)
    with cli.exit_on_error():
        settings = folder.adopt_stored(loop.resolve_learning_rate(settings))
    name = settings.dataset or "mnist"
    known = INFO[name]  # a user's own files may have more classes
    model = LeNet(len(known.classes), np.size(known.mean))
    if settings.summary:
        print(f"LeNet for {sizes(model)} ({name})\n{summary(model)}")
        return
    cli.start_jax(cache=settings.compilation_cache, cores_are_devices=True)
    with contextlib.ExitStack() as stack:
        # The initialisation is compiled, or read from JAX's cache, while the images are read.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        pool.submit(loop.create_state, settings, model, total_steps=1)
        with cli.exit_on_error(
            stopped="stopped before training began"
        ):  # a download takes its time
            if settings.init_from is not None and not (
                settings.workdir and expand_user(settings.workdir, "--workdir").exists()
            ):  # read before there is a folder; a run that goes on does not need the file any more
                pytorch.read_params(settings.init_from, lambda line: None)
            dataset = data.load(settings.dataset, settings.data_dir, print)
            if dataset.note:
                print(dataset.note)
            settings = loop.resolve(settings, dataset)
            path = folder.create(settings.workdir, f"{dataset.name}-{settings.optimizer}")
            stack.enter_context(folder.locked(path))
            signals = stack.enter_context(cli.catch_signals())
            run = loop.restore_or_init(settings, dataset, path, print)
        print(header(settings, dataset, run.state), flush=True)
        try:
            loop.fit(settings, dataset, path, cli.print_line, run, signals)
        except cli.Interrupted as stop:
            print(stop)
            raise SystemExit(stop.exit_code) from None
        except (FloatingPointError, OSError) as error:
            cli.fail(error, 1)
        if advice := INFO[settings.dataset].advice:
            cli.print_line(f"note: {advice}")
        command = f"lenet-jax report --workdir={shlex.quote(str(path))}"
        cli.print_line(f"next (or evaluate, predict, export): {command}")


if __name__ == "__main__":
    cli.run(main)
