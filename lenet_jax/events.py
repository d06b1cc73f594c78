"""TensorBoard's event files: `tensorboard --logdir=runs` draws the curves of all runs.

Written without TensorFlow and without tensorboardX, whose import takes a second (it imports torch
where torch is installed). A file is a row of TFRecords: the length, its checksum, the data, its
checksum. The data are messages of protocol buffers, whose fields are, by number:

    Event       1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log
    Summary     1 value, repeated
    Value       1 tag, 2 simple_value
    SessionLog  1 status
"""

import contextlib
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TAGS = {  # TensorBoard draws what has the same beginning side by side
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "speed/images_per_second": "images_per_second",
}
PREFIX = "events.out.tfevents."
START = 1  # a session log that tells a TensorBoard that is looking on: forget what came before


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
    with _naming(folder):
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
    with _naming(folder):
        file = max(folder.glob(f"{PREFIX}*"), default=None) or _new_file(folder)
        with file.open("ab") as stream:
            stream.write(b"" if stream.tell() else _head(time.time()))
            stream.write(_scalars(time.time(), record))


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror or error})") from error


def _new_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"{PREFIX}{time.time_ns()}"


def _head(when: float) -> bytes:
    return _record(_event(when, 0, 3, b"brain.Event:2")) + _record(
        _event(when, 0, 7, _number(1, START))
    )


def _scalars(when: float, record: Mapping[str, Any]) -> bytes:
    """The TFRecord of an epoch."""
    values = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", record[name]))
        for tag, name in TAGS.items()
        if isinstance(record.get(name), int | float)
    )
    return _record(_event(when, record.get("step", 0), 5, values))


def _event(when: float, step: int, field: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", when) + _number(2, step) + _bytes(field, content)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have the eighth set."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TFRecord does, so that a checksum of checksums is of use."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
