"""A sweep's slices on the workers of a Dask cluster.

The process that asked sends the training images and gets the records, which it writes itself: no
file system is shared. Dask does a slice again whose worker died, at most as often as the
scheduler's `allowed-failures` says (3), on another worker.

A worker uses as many devices as the process that asked: a network's last bits depend on how many
others its device trains with it.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import operator
import pkgutil
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import cli
from lenet_jax.core.model import LeNet
from lenet_jax.core.split import Split
from lenet_jax.files import expand_user
from lenet_jax.run import folder, grid

RETRIES = 2  # of a slice that ended in an error, as when memory ran out
CONNECT_TIMEOUT_S = 10.0
POLL_S, LOOK_S = 0.05, 2.0  # between looks for results; for workers and their progress
WAIT_S = 5.0  # without a worker, until a line says so
LOCAL_CLUSTER = {
    "threads_per_worker": 1,
    "dashboard_address": None,
    "silence_logs": logging.CRITICAL,
    # Ctrl-C reaches them, too, and the command ends them.
    "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
}


class ClusterError(Exception):
    """The cluster could not train all slices; those that it did are kept."""


class Outcome(NamedTuple):
    """What a worker sends back; no records if its versions are not those that were asked for."""

    worker: str
    environment: dict[str, Any]  # of `folder.environment`
    records: list[dict[str, Any]]
    updates: int


@contextlib.contextmanager
def connect(
    scheduler: str | None, workers: int | None, log: Callable[[str], None]
) -> Iterator[grid.TrainSlices]:
    """How `grid.run` trains slices: on a cluster, else here. The end cancels what is not done.

    Args:
      scheduler: tcp://host:port, or the file that `dask scheduler --scheduler-file` wrote.
      workers: instead of a scheduler, the number of processes to start on this machine.
      log: is called with a line when a worker goes, or none is there.

    Raises:
      ValueError: Dask is not installed, or `scheduler` is no address and no file.
      ClusterError: no scheduler answers.
    """
    if scheduler is None and not workers:
        yield grid.train_here
        return
    flag = f"--workers={workers}" if workers else f"--scheduler={scheduler}"
    try:
        import distributed
    except ImportError as error:
        raise ValueError(f"{flag}: needs Dask: pip install 'lenet_jax[cluster]'") from error
    # What matters of what Dask logs is in lines of ours.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if workers:
            local = distributed.LocalCluster(n_workers=workers, **LOCAL_CLUSTER)
            where = {"address": stack.enter_context(local)}
        else:
            where = _parse_scheduler(scheduler)
        try:
            client = distributed.Client(**where, timeout=CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise ClusterError(f"{flag}: no scheduler answers there ({error})") from error
        yield functools.partial(train_slices, stack.enter_context(client), log)


def _parse_scheduler(scheduler: str) -> dict[str, str]:
    """As arguments of `distributed.Client`, which would wait for a file for ever."""
    path = expand_user(scheduler, "--scheduler")
    if path.is_file():
        return {"scheduler_file": str(path)}
    if re.fullmatch(r"(\w+://)?[^/]+:\d+", scheduler):
        return {"address": scheduler}
    raise ValueError(
        f"--scheduler={scheduler}: is neither an address, as tcp://host:8786, nor a file that "
        "`dask scheduler --scheduler-file` wrote"
    )


def train_slices(
    client: Any,
    log: Callable[[str], None],
    settings: grid.SweepSettings,
    slices: Sequence[grid.Slice],
    model: LeNet,
    split: Split,
    log_updates: Callable[[int], None],
) -> Iterator[tuple[grid.Slice, list[dict[str, Any]], str]]:
    """Each slice with its records and its worker's address, in the order in which they are done.

    Raises:
      ValueError: a worker has other versions, by name.
      ClusterError: the scheduler has gone; or slices were given up, when all others are done.
    """
    from distributed import as_completed

    here, failed, monitor = folder.environment(), 0, _Monitor(client, log, log_updates)
    parts = _submit(client, settings, slices, model, split, here, monitor.topic)
    done = as_completed(parts)
    while parts:
        for future in done.next_batch(block=False):
            part = parts.pop(future)
            if future.status == "error":
                failed += 1
                log(f"slice {part.name} is given up: {_explain(future.exception())}")
                continue
            if future.status != "finished":
                raise ClusterError("the scheduler has gone; what is trained is kept")
            outcome = future.result()
            monitor.check(outcome, here)
            monitor.updates[part.name] = outcome.updates
            monitor.show_progress()
            yield part, outcome.records, outcome.worker
        monitor.look()
        time.sleep(POLL_S)
    if failed:
        raise ClusterError(f"{failed} of {len(slices)} slices were given up; the others are kept")


def _submit(
    client: Any,
    settings: grid.SweepSettings,
    slices: Sequence[grid.Slice],
    model: LeNet,
    split: Split,
    environment: dict[str, Any],
    topic: str,
) -> dict[Any, grid.Slice]:
    """Futures of the slices' outcomes.

    Tasks name their functions, and their arguments are no classes of ours: a worker ends at once if
    it cannot import what a message is made of, and so would one that has not got the package.
    """
    import dask

    task = lambda name, *args: (
        operator.call,
        (pkgutil.resolve_name, f"{__name__}:{name}"),
        *args,
    )
    request = {
        "settings": dataclasses.asdict(settings),
        "versions": environment["versions"],
        "devices": jax.local_device_count(),
        "topic": topic,
        "model": [model.num_classes, model.in_channels],
        "mean": np.asarray(split.mean).tolist(),
        "std": np.asarray(split.std).tolist(),
        "shape": np.shape(split.images),
    }
    # What all have in common is a task's, not scattered: if its workers die it is made again. The
    # scheduler keeps the 10 MB that MNIST's images are.
    images = zlib.compress(np.ascontiguousarray(split.images), 1)
    shared = f"{topic}-shared"
    graph = {shared: task("_unpack", json.dumps(request), images, split.labels)}
    # Keys of one group: Dask queues them, and gives a worker one or two at a time.
    keys = [(topic, number) for number in range(len(slices))]
    for key, part in zip(keys, slices, strict=True):
        graph[key] = task("_train", json.dumps([part.optimizer, part.cells]), shared)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "4 GiB"}):
        futures = client.get(graph, keys, sync=False, retries=RETRIES)
    return dict(zip(futures, slices, strict=True))


def _unpack(request: str, images: bytes, labels: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """A task: the request, the pixels and the labels."""
    pixels = np.frombuffer(zlib.decompress(images), np.uint8)
    return request, pixels.reshape(json.loads(request)["shape"]), labels


def _train(part: str, shared: tuple[str, np.ndarray, np.ndarray]) -> Outcome:
    """A task: trains a slice, if the versions are those that are asked for."""
    from distributed import get_worker

    request, worker, updates, shown = json.loads(shared[0]), get_worker(), 0, time.monotonic()
    environment = _configure(request["devices"])
    if environment["versions"] != request["versions"]:
        return Outcome(worker.address, environment, [], 0)
    optimizer, cells = json.loads(part)
    part = grid.Slice(optimizer, tuple(map(tuple, cells)))

    def log_updates(count: int) -> None:
        nonlocal updates, shown
        updates += count
        if time.monotonic() > shown + LOOK_S:
            shown = time.monotonic()
            worker.log_event(request["topic"], (part.name, updates))

    settings = grid.SweepSettings(**request["settings"])
    split = Split(*shared[1:], **folder.normalization(request))
    records = grid.train_slice(settings, part, LeNet(*request["model"]), split, log_updates)
    return Outcome(worker.address, environment, records, updates)


@functools.cache
def _configure(devices: int) -> dict[str, Any]:
    """Once per process, before it uses JAX; JAX that something else has used stays as it is."""
    if jax.config.jax_num_cpu_devices == -1:  # else JAX_NUM_CPU_DEVICES has said how many
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", devices)
    cli.enable_compilation_cache()
    return folder.environment()


class _Monitor:
    """Tells a person about the cluster: progress, workers that go, and that there is none."""

    def __init__(
        self, client: Any, log: Callable[[str], None], log_updates: Callable[[int], None]
    ) -> None:
        self.client, self.log, self.log_updates = client, log, log_updates
        self.topic = f"lenet_jax-{uuid.uuid4().hex}"
        self.updates: dict[str, int] = {}  # by slice
        self.shown = 0
        self.workers: set[str] = set()
        self.looked = self.seen = time.monotonic()  # the last look, and the last one at a worker
        self.noted: set[str] = set()
        client.subscribe_topic(self.topic, lambda event: self.updates.update([event[1]]))

    def show_progress(self) -> None:
        """May go back: a slice whose worker died starts again."""
        now = sum(list(self.updates.values()))
        self.log_updates(now - self.shown)
        self.shown = now

    def look(self) -> None:
        """At workers and progress, if it is time to."""
        if time.monotonic() < self.looked + LOOK_S:
            return
        self.show_progress()
        with contextlib.suppress(OSError):  # the futures say that the scheduler has gone
            now = set(self.client.nthreads())
            for worker in sorted(self.workers - now):
                self.log(f"{worker} has gone: what it had begun is done again")
            if now:
                self.seen = time.monotonic()
            elif self.seen and time.monotonic() > self.seen + WAIT_S:
                self.log(
                    "there is no worker: waiting (dask worker ADDRESS --nthreads 1 starts one)"
                )
                self.seen = None
            self.workers = now
        self.looked = time.monotonic()

    def check(self, outcome: Outcome, here: dict[str, Any]) -> None:
        """Raises ValueError if the worker's versions are others; notes another kind of machine."""
        differs = folder.environment_diff(outcome.environment, here)
        if outcome.environment["versions"] != here["versions"]:
            raise ValueError(
                f"{outcome.worker} has other versions than there are here, and would give other "
                f"numbers ({differs}): install the same"
            )
        if differs not in ("", *self.noted):
            self.noted.add(differs)
            self.log(f"note: on {outcome.worker}, {differs}: the last bits of results may differ")


def _explain(error: BaseException) -> str:
    """An error of a task, in a line.

    Raises:
      ClusterError: a worker lacks a package, which all slices would say.
    """
    from distributed import KilledWorker

    if isinstance(error, ImportError):
        raise ClusterError(
            f"workers need lenet_jax[train,cluster] installed, and one says: {error}"
        )
    if isinstance(error, KilledWorker):
        times, last = error.allowed_failures + 1, error.last_worker.address
        return f"{times} workers died while they had it, the last of them {last}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
