"""TensorBoard's event files: `tensorboard --logdir=runs` draws the curves of all runs.

tensorboardX has the messages and their checksums, without TensorFlow. It is imported at the end of
a run's first epoch, because that takes a second where torch is installed. Its writers are not used:
one has a thread of its own, whose errors nobody hears of, and the other cannot go on with a file.
"""

import contextlib
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

TAGS = {  # TensorBoard draws what has the same beginning side by side
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "speed/images_per_second": "images_per_second",
}
PREFIX = "events.out.tfevents."


def begin(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Leaves `records` of metrics.jsonl in `folder` as one event file; any other is made empty.

    Raises:
      OSError: it cannot be written to.
    """
    now, left = time.time(), sum(record.get("seconds", 0) for record in records)
    content = []
    for record in records:  # metrics.jsonl does not say when: as if there had been no pause
        left -= record.get("seconds", 0)
        content.append(_scalars(now - left, record))
    with naming(folder):
        old = list(folder.glob(f"{PREFIX}*"))
        if records or old:
            _new_file(folder).write_bytes(_head(now) + b"".join(content))
        for file in old:  # a TensorBoard that is reading one that is gone would never go on
            if file.stat().st_size:
                os.truncate(file, 0)
            else:
                file.unlink()


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Adds an epoch to the event file in `folder`, made if it is not there.

    Raises:
      OSError: it cannot be written to.
    """
    with naming(folder):
        file = max(folder.glob(f"{PREFIX}*"), default=None) or _new_file(folder)
        with file.open("ab") as stream:
            stream.write(b"" if stream.tell() else _head(time.time()))
            stream.write(_scalars(time.time(), record))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the path into the OSErrors of a block: a full disk's do not say where."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror or error})") from error


def _new_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"{PREFIX}{time.time_ns()}"


def _head(when: float) -> bytes:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    # The second one tells a TensorBoard that is looking on to forget what came before.
    return _record(Event(wall_time=when, file_version="brain.Event:2")) + _record(
        Event(wall_time=when, session_log=SessionLog(status=SessionLog.START))
    )


def _scalars(when: float, record: Mapping[str, Any]) -> bytes:
    """An epoch."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=tag, simple_value=record[name])
        for tag, name in TAGS.items()
        if isinstance(record.get(name), int | float)
    ]
    return _record(Event(wall_time=when, step=record.get("step", 0), summary=Summary(value=values)))


def _record(event: "Event") -> bytes:
    """A TFRecord: the length, its checksum, the message, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
