"""A run's metrics, one object per epoch in `metrics.jsonl`, and their curves in TensorBoard's event
files: `tensorboard --logdir=runs` draws the curves of all runs.

tensorboardX is imported at the end of a run's first epoch, because that takes over a second where
torch is installed. Only its `RecordWriter` is used, which raises an error when it cannot write. Its
`SummaryWriter` writes in a thread, which prints a traceback on a full disk, and its `flush` leaves
out what the thread has not reached (77 of 155 bytes of three scalars).
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenet_jax.cli import count
from lenet_jax.files import add_path_to_oserror, atomic_write

if TYPE_CHECKING:
    from tensorboardX import RecordWriter

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
TAGS = {  # TensorBoard draws tags with the same beginning side by side
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "speed/images_per_second": "images_per_second",
}


class MetricsLog(contextlib.AbstractContextManager):
    """Writes a run's epochs as they end.

    Each process that trains a run writes an event file of its own. The file begins with the event
    that makes TensorBoard forget later steps of earlier files (`purge_step` in other writers), so
    that no epoch is drawn twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events: RecordWriter | None = None

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # `append` has raised its own
                self._events.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds an epoch, and returns when it is on disk.

        Raises:
          OSError: it cannot be written; the message names the file or folder.
        """
        file = self._path / METRICS
        with add_path_to_oserror(file), file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        step, known = record.get("step", 0), [tag for tag in TAGS if TAGS[tag] in record]
        values = [{"tag": tag, "simple_value": record[TAGS[tag]]} for tag in known]
        with add_path_to_oserror(self._path / EVENTS):
            if self._events is None:
                self._events = _open_events(self._path / EVENTS, purge_step=step)
            self._events.write(_event(step=step, summary={"value": values}))
            self._events.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs in a run's `metrics.jsonl`, in order, without damaged lines."""
    try:
        lines = (path / METRICS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = {}
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # torn by a kill
            match json.loads(line):
                case {"epoch": int(epoch)} as record:
                    records[epoch] = record
    return [records[epoch] for epoch in sorted(records)]


def repair_metrics(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Leaves the first `epochs` epochs in `metrics.jsonl`: the run will repeat the others."""
    records = [record for record in read_metrics(path) if 0 < record["epoch"] <= epochs]
    text = "".join(json.dumps(record) + "\n" for record in records)
    if (path / METRICS).exists() and (path / METRICS).read_bytes() != text.encode():
        atomic_write(path / METRICS, text)
    return records


def epoch_record(
    step: int, steps: int, batch_size: int, totals: Mapping[str, float], test: Mapping[str, Any]
) -> dict[str, Any]:
    """A line of metrics.jsonl after `step` steps, from `totals` over the epoch's `steps` steps."""
    return {
        "epoch": step // steps,
        "step": step,
        "train_loss": totals["loss"] / steps,
        "train_accuracy": totals["accuracy"] / steps,
        "test_loss": float(test["loss"]),
        "test_accuracy": float(test["accuracy"]),
        "seconds": round(totals["seconds"], 3),
        "images_per_second": round(steps * batch_size / totals["seconds"]),
    }


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """An epoch for a person."""
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}   "
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.2%}   "
        f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:.2%}   "
        f"{record['seconds']:.1f} s, {record['images_per_second']:,} images/s"
    )


def result_line(records: Sequence[Mapping[str, Any]]) -> str:
    """A run's result, for a person."""
    if not records:
        return "its metrics.jsonl is missing"
    last = records[-1]
    return f"test accuracy {last['test_accuracy']:.2%} after {count(last['epoch'], 'epoch')}"


def _open_events(folder: Path, purge_step: int) -> "RecordWriter":
    """A new event file, with a later name than the others: TensorBoard reads them in this order."""
    from tensorboardX import RecordWriter

    folder.mkdir(exist_ok=True)
    prefix = "events.out.tfevents."
    numbers = (file.name.removeprefix(prefix) for file in folder.glob(f"{prefix}*"))
    latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    number = max(time.time_ns(), latest + 1)  # the clock may have been set back
    file = folder.absolute() / f"{prefix}{number}"  # absolute: "s3:run" would be a bucket
    writer = RecordWriter(str(file))
    writer.write(_event(file_version="brain.Event:2"))
    writer.write(_event(step=purge_step, session_log={"status": "START"}))
    return writer


def _event(**fields: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), **fields).SerializeToString()
