"""A sweep's slices on the workers of a Dask cluster.

The sweep's process sends the training images, gets the records and writes them, so that machines
share no file system. If a worker dies, Dask trains its slice again on another worker, up to the
number of times in the scheduler's `allowed-failures` (3).

A worker uses as many devices as the sweep's process, because a network's last bits depend on the
number of networks that its device trains at once.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import operator
import pkgutil
import re
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import cli
from lenet_jax.core.model import LeNet
from lenet_jax.core.split import Split
from lenet_jax.files import expand_user
from lenet_jax.interop.pytorch import as_normalization
from lenet_jax.run import folder, grid
from lenet_jax.run.grid import LogUpdates, Records, Shared, Slice, SweepSettings, TrainSlices

RETRIES = 2  # of a slice that raised an error, for example without memory
CONNECT_TIMEOUT_S = 10.0
POLL_S, LOOK_S = 0.05, 2.0  # how often results, and workers and progress, are looked up
WAIT_S = 5.0  # until a line says that there is no worker
TLS_SETTINGS = (
    "TLS needs Dask's settings distributed.comm.tls.ca-file, .client.cert and .client.key, for "
    "example as DASK_DISTRIBUTED__COMM__TLS__CA_FILE"
)
LOCAL_CLUSTER = {
    "threads_per_worker": 1,
    "dashboard_address": None,
    "silence_logs": logging.CRITICAL,
    # Ctrl-C reaches the workers too, but the command ends them.
    "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
}


class ClusterError(Exception):
    """The cluster could not train all slices; the results of the others are kept."""


class Outcome(NamedTuple):
    """What a worker sends back. There are no records if its versions differ from the request's."""

    worker: str
    environment: dict[str, Any]  # of `folder.environment`
    records: Records
    updates: float  # as `grid.LogUpdates` gets them


@contextlib.contextmanager
def connect(scheduler: str | None, workers: int | None, log: cli.Log) -> Iterator[TrainSlices]:
    """The function with which `grid.run` trains slices: in this process, unless a flag is given.

    The end of the block cancels slices that are not done.

    Raises:
      ModuleNotFoundError: Dask is not installed.
      ValueError: --scheduler is neither an address nor such a file.
      ClusterError: the scheduler does not answer.
    """
    if scheduler is None and not workers:
        yield grid.train_here
        return
    import distributed

    flag = f"--workers={workers}" if workers else f"--scheduler={scheduler}"
    # Our own lines say what matters in Dask's log.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if workers:
            local = distributed.LocalCluster(n_workers=workers, **LOCAL_CLUSTER)
            where = stack.enter_context(local)
        else:
            where = find_scheduler(scheduler)
        try:
            client = distributed.Client(where, timeout=CONNECT_TIMEOUT_S)
        except Exception as error:  # of any kind: each of Dask's transports has its own
            tls = f"; {TLS_SETTINGS}" if str(where).startswith("tls://") else ""
            raise ClusterError(f"{flag}: no scheduler answers there ({error}){tls}") from error
        yield functools.partial(train_slices, stack.enter_context(client), log)


def find_scheduler(scheduler: str) -> str:
    """The scheduler's address, given as such or as a file, which may be about to be written.

    Raises:
      ValueError: it is neither.
    """
    if re.fullmatch(r"(\w+://)?[^/]+:\d+", scheduler):
        return scheduler
    path, deadline = expand_user(scheduler, "--scheduler"), time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return str(json.loads(path.read_bytes())["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not path.is_file() or time.monotonic() > deadline:
                raise ValueError(
                    f"--scheduler={scheduler}: is neither an address, as tcp://host:8786, nor a "
                    f"file that `dask scheduler --scheduler-file` wrote ({error})"
                ) from error
        time.sleep(POLL_S)


def train_slices(
    client: Any, log: cli.Log, shared: Shared, slices: Sequence[Slice], log_updates: LogUpdates
) -> Iterator[tuple[Slice, Records, str]]:
    """A `grid.TrainSlices`, once it has a client and a log.

    Raises:
      ClusterError: the scheduler has gone, or some slices failed and all others are done.
    """
    from distributed import as_completed

    here, topic, watch = folder.environment(), f"lenet_jax-{uuid.uuid4().hex}", _watch(client, log)
    updates: dict[str, float] = {}  # by slice; lower if a worker dies and its slice starts anew
    client.subscribe_topic(topic, lambda event: updates.update([event[1]]))
    parts = _submit(client, shared, slices, here["versions"], topic)
    done, failed, shown, noted = as_completed(parts), 0, 0, {""}
    while parts:
        for future in done.next_batch(block=False):
            part = parts.pop(future)
            if future.status == "error":
                failed += 1
                log(f"slice {part.name} is given up: {_explain(future.exception())}")
                continue
            if future.status != "finished":
                raise ClusterError("the scheduler has gone; the networks that are trained are kept")
            outcome = future.result()
            if (differs := _compare(outcome, here)) not in noted:
                noted.add(differs)
                log(f"note: on {outcome.worker}, {differs}: the last bits of results may differ")
            updates[part.name] = outcome.updates
            yield part, outcome.records, outcome.worker
        next(watch)
        now = sum(list(updates.values()))
        log_updates(now - shown)
        shown = now
        time.sleep(POLL_S)
    if failed:
        raise ClusterError(f"{failed} of {len(slices)} slices were given up; the others are kept")


def _submit(
    client: Any, shared: Shared, slices: Sequence[Slice], versions: dict[str, str], topic: str
) -> dict[Any, Slice]:
    """The futures of the slices' outcomes.

    Tasks give their functions by name, and their arguments contain none of our classes: a worker
    that cannot import a class in a message stops, so one without the package would stop.
    """
    import dask

    task = lambda name, *args: (operator.call, (pkgutil.resolve_name, f"{__name__}:{name}"), *args)
    settings, model, split = shared
    request = {
        "settings": dataclasses.asdict(settings),
        "versions": versions,
        "devices": jax.local_device_count(),
        "topic": topic,
        "model": [model.num_classes, model.in_channels],
        "mean": np.asarray(split.mean).tolist(),
        "std": np.asarray(split.std).tolist(),
        "shape": np.shape(split.images),
    }
    # A task unpacks the images, which all slices share: Dask repeats a task if its worker dies,
    # but it does not scatter data again. The scheduler keeps the 10 MB of MNIST's images.
    images = zlib.compress(np.ascontiguousarray(split.images), 1)
    sent = f"{topic}-shared"
    graph = {sent: task("_unpack", json.dumps(request), images, split.labels)}
    # With keys of one group, Dask queues the tasks and gives a worker one or two at a time.
    keys = [(topic, number) for number in range(len(slices))]
    for key, part in zip(keys, slices, strict=True):
        graph[key] = task("_train", json.dumps([part.optimizer, part.cells]), sent)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "4 GiB"}):
        futures = client.get(graph, keys, sync=False, retries=RETRIES)
    return dict(zip(futures, slices, strict=True))


def _unpack(request: str, images: bytes, labels: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """A task: the request, the pixels and the labels."""
    pixels = np.frombuffer(zlib.decompress(images), np.uint8)
    return request, pixels.reshape(json.loads(request)["shape"]), labels


def _train(part: str, sent: tuple[str, np.ndarray, np.ndarray]) -> Outcome:
    """A task: trains a slice, if the worker's versions are those of the request."""
    from distributed import get_worker

    request, worker, updates, shown = json.loads(sent[0]), get_worker(), 0.0, time.monotonic()
    environment = _configure(request["devices"])
    if environment["versions"] != request["versions"]:
        return Outcome(worker.address, environment, [], 0)
    optimizer, cells = json.loads(part)
    part = Slice(optimizer, tuple(map(tuple, cells)))

    def log_updates(count: float) -> None:
        nonlocal updates, shown
        updates += count
        if time.monotonic() > shown + LOOK_S:
            shown = time.monotonic()
            worker.log_event(request["topic"], (part.name, updates))

    split = Split(*sent[1:], **as_normalization(request["mean"], request["std"]))
    settings, model = SweepSettings(**request["settings"]), LeNet(*request["model"])
    records = grid.train_slice(Shared(settings, model, split), part, log_updates)
    return Outcome(worker.address, environment, records, updates)


@functools.cache
def _configure(devices: int) -> dict[str, Any]:
    """Configures JAX once per process, unless the process has used it before."""
    if jax.config.jax_num_cpu_devices == -1:  # JAX_NUM_CPU_DEVICES is not set
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", devices)
    cli.enable_compilation_cache()
    return folder.environment()


def _watch(client: Any, log: cli.Log) -> Iterator[None]:
    """Looks up the workers every LOOK_S seconds; logs each that leaves, and when none is left."""
    workers: set[str] = set()
    looked = seen = time.monotonic()
    while True:
        yield
        if time.monotonic() < looked + LOOK_S:
            continue
        with contextlib.suppress(OSError):  # the futures tell if the scheduler has gone
            now = set(client.nthreads())
            for worker in sorted(workers - now):
                log(f"{worker} has gone: its slices are trained again")
            if now:
                seen = time.monotonic()
            elif time.monotonic() > seen + WAIT_S:
                log("there is no worker: waiting (dask worker ADDRESS --nthreads 1 starts one)")
                seen = math.inf  # said once
            workers = now
        looked = time.monotonic()


def _compare(outcome: Outcome, here: dict[str, Any]) -> str:
    """How the worker's environment differs; ValueError if its versions do."""
    differs = folder.environment_diff(outcome.environment, here)
    if outcome.environment["versions"] != here["versions"]:
        raise ValueError(f"{outcome.worker} has other versions ({differs}): install the same there")
    return differs


def _explain(error: BaseException) -> str:
    """A task's error, as one line; ClusterError if a worker lacks a package, as for every slice."""
    from distributed import KilledWorker

    if isinstance(error, ImportError):
        raise ClusterError(f"workers need lenet_jax[train,cluster], and one says: {error}")
    if isinstance(error, KilledWorker):
        times, last = error.allowed_failures + 1, error.last_worker.address
        return f"{times} workers died with it, the last one was {last}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
