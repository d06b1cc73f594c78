"""Read back record by record, with their checksums compared."""

import json
import struct
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from lenet_jax.run import folder as workdir
from lenet_jax.run import log as events

RECORDS = [
    {
        **{"epoch": i, "step": 100 * i, "seconds": 2.0, "images_per_second": 64000 + i},
        **{"train_loss": 1 / i, "train_accuracy": 0.5, "test_loss": 2 / i, "test_accuracy": 0.25},
    }
    for i in (1, 2, 300)  # a step of 30,000 takes more than one byte
]


def read(folder: Path) -> list[Event]:
    """The events of the one file in `folder` that is not empty, their checksums compared."""
    (file,) = (file for file in folder.iterdir() if file.stat().st_size)
    content, found = file.read_bytes(), []
    while content:
        header, content = content[:8], content[8:]
        (length,) = struct.unpack("<Q", header)
        check, data, check_data = (
            content[:4],
            content[4 : 4 + length],
            content[4 + length : 8 + length],
        )
        assert struct.unpack("<2I", check + check_data) == (
            masked_crc32c(header),
            masked_crc32c(data),
        )
        found.append(Event.FromString(data))
        content = content[8 + length :]
    return found


def curves(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> tag -> value; no step comes twice."""
    scalars = [event for event in read(folder) if event.HasField("summary")]
    steps = {event.step: {v.tag: v.simple_value for v in event.summary.value} for event in scalars}
    assert len(steps) == len(scalars)
    return steps


def expected(records: list[dict]) -> dict[int, dict[str, float]]:
    return {
        record["step"]: {tag: record[name] for tag, name in events.TAGS.items()}
        for record in records
    }


def assert_shows(folder: Path, records: list[dict]) -> None:
    got, wanted = curves(folder), expected(records)
    assert list(got) == list(wanted)
    for step in wanted:
        assert got[step] == pytest.approx(wanted[step], rel=2**-23)  # float32


def test_what_is_written_is_read_back_in_order(tmp_path):
    for begun in (0, 1, 3):
        events.begin(tmp_path / "tb", RECORDS[:begun])
        for record in RECORDS[begun:]:
            events.append(tmp_path / "tb", record)
        assert_shows(tmp_path / "tb", RECORDS)


def test_it_begins_with_its_version_and_tells_a_tensorboard_that_looks_on_to_start_over(tmp_path):
    for begin in (lambda: events.begin(tmp_path, RECORDS), lambda: events.append(tmp_path, {})):
        begin()
        first, second, *_ = read(tmp_path)
        assert first.file_version == "brain.Event:2"
        assert (second.session_log.status, second.step) == (SessionLog.START, 0)
        events.begin(tmp_path, [])


def test_times_are_now_or_as_if_trained_without_a_pause(tmp_path):
    before = time.time()
    events.begin(tmp_path, RECORDS[:2])
    events.append(tmp_path, RECORDS[2])
    *_, first, second, third = (event.wall_time for event in read(tmp_path))
    assert second - first == pytest.approx(2, abs=1e-3)
    assert before <= second <= third <= time.time()


def test_a_new_beginning_leaves_no_epoch_twice_and_other_files_alone(tmp_path):
    events.begin(tmp_path / "tb", RECORDS)
    events.begin(tmp_path / "tb", RECORDS[:2])
    assert_shows(tmp_path / "tb", RECORDS[:2])
    (tmp_path / "tb" / "notes").touch()
    for _ in range(3):
        events.begin(tmp_path / "tb", [])
    assert_shows(tmp_path / "tb", [])
    names = [file.name for file in (tmp_path / "tb").iterdir()]
    assert (len(names), "notes" in names) == (3, True)  # with an empty one, which may be being read


def test_nothing_to_show_is_nothing_written(tmp_path):
    events.begin(tmp_path / "tb", [])
    assert not (tmp_path / "tb").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "tb").touch()
    for write in (
        lambda: events.begin(tmp_path / "tb", RECORDS),
        lambda: events.append(tmp_path / "tb", {}),
    ):
        with pytest.raises(OSError, match=f"^{tmp_path / 'tb'}: cannot be written to"):
            write()


def test_a_run_shows_its_metrics(tiny_run):
    records = workdir.read_metrics(tiny_run)
    assert len(records) == 2
    assert_shows(tiny_run / workdir.EVENTS, records)


def test_epochs_that_are_run_again_are_shown_once(tmp_path):
    workdir.mend_metrics(tmp_path, 0)
    for record in RECORDS[:2]:
        workdir.append_metrics(tmp_path, record)
    workdir.mend_metrics(tmp_path, 1)  # a kill has lost the checkpoint of the second
    again = {**RECORDS[1], "test_loss": 7.0}
    workdir.append_metrics(tmp_path, again)
    assert_shows(tmp_path / workdir.EVENTS, [RECORDS[0], again])
    assert json.loads((tmp_path / workdir.METRICS).read_text().splitlines()[1]) == again
