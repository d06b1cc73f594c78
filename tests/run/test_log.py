"""What is written is read back: lines as JSON, events as TensorBoard reads them."""

import errno
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from lenet_jax.run import log

RECORDS = [
    {
        **{"epoch": i, "step": 100 * i, "seconds": 2.0, "images_per_second": 64000 + i},
        **{"train_loss": 1 / i, "train_accuracy": 0.5, "test_loss": 2 / i, "test_accuracy": 0.25},
    }
    for i in (1, 2, 300)  # a step of 30,000 takes more than one byte
]


def append(path: Path, *records: dict) -> None:
    """As one process that works at a run."""
    with log.MetricsLog(path) as metrics:
        for record in records:
            metrics.append(record)


# --- metrics.jsonl ---


def test_metrics_are_appended_a_line_each(tmp_path):
    for epoch in (1, 2):
        append(tmp_path, {"epoch": epoch})
    lines = (tmp_path / log.METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2}]


def test_metrics_that_cannot_be_written_are_an_error_with_the_files_name(tmp_path):
    (tmp_path / log.METRICS).mkdir()
    with pytest.raises(OSError, match=r"metrics.jsonl: cannot be written to \(Is a directory\)"):
        append(tmp_path, {"epoch": 1})


LINES = [json.dumps({"epoch": n, "loss": n / 3, "accuracy": np.pi}) + "\n" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("cut", range(len(LINES[2])))
def test_a_line_torn_anywhere_is_repaired(cut, tmp_path):
    file = tmp_path / log.METRICS
    file.write_text("".join(LINES[:2]) + LINES[2][:cut])
    assert len(log.repair_metrics(tmp_path, 2)) == 2
    assert file.read_text() == "".join(LINES[:2])


def test_lines_after_the_checkpoint_go(tmp_path):
    file = tmp_path / log.METRICS
    file.write_text("".join(LINES))
    assert log.repair_metrics(tmp_path, 3) == [json.loads(line) for line in LINES[:3]]
    assert file.read_text() == "".join(LINES[:3])
    log.repair_metrics(tmp_path, 0)
    assert file.read_text() == ""


def test_an_epoch_before_the_first_is_none(tmp_path):
    (tmp_path / log.METRICS).write_text(json.dumps({"epoch": 0}) + "\n" + LINES[0])
    assert log.repair_metrics(tmp_path, 1) == [json.loads(LINES[0])]


def test_without_metrics_there_is_nothing_to_repair(tmp_path):
    assert log.repair_metrics(tmp_path, 3) == []
    assert not any(tmp_path.iterdir())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary() | st.lists(st.sampled_from([*LINES, "[", "3\n", "{}\n", "\n"])).map("".join))
def test_repairing_any_bytes_leaves_only_intact_lines_in_order(tmp_path, content):
    file = tmp_path / log.METRICS
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    records = log.repair_metrics(tmp_path, 3)
    assert [json.loads(line) for line in file.read_text().splitlines()] == records
    epochs = [record["epoch"] for record in records]
    assert epochs == sorted(set(epochs))
    assert set(epochs) <= {1, 2, 3}


# --- tensorboard/ ---


def read_file(file: Path) -> list[Event]:
    """The intact events of a file, their checksums compared; a torn one ends it."""
    content, found = file.read_bytes(), []
    while len(content) >= 12:
        header, content = content[:8], content[8:]
        (length,) = struct.unpack("<Q", header)
        check, data, check_data = (
            content[:4],
            content[4 : 4 + length],
            content[4 + length : 8 + length],
        )
        if len(check_data) < 4:
            break
        assert struct.unpack("<2I", check + check_data) == (
            masked_crc32c(header),
            masked_crc32c(data),
        )
        found.append(Event.FromString(data))
        content = content[8 + length :]
    return found


def curves(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> tag -> value as TensorBoard draws them; no step comes twice.

    It reads the files by their names, and a start of a session makes it forget what it has read
    from that step on (`EventAccumulator._Purge`).
    """
    steps: dict[int, dict[str, float]] = {}
    for event in (event for file in sorted(folder.iterdir()) for event in read_file(file)):
        if event.session_log.status == SessionLog.START:
            steps = {step: values for step, values in steps.items() if step < event.step}
        if event.HasField("summary"):
            assert event.step not in steps
            steps[event.step] = {v.tag: v.simple_value for v in event.summary.value}
    return steps


def expected(records: list[dict]) -> dict[int, dict[str, float]]:
    return {
        record["step"]: {tag: record[name] for tag, name in log.TAGS.items()} for record in records
    }


def assert_shows(folder: Path, records: list[dict]) -> None:
    got, wanted = curves(folder), expected(records)
    assert list(got) == list(wanted)
    for step in wanted:
        assert got[step] == pytest.approx(wanted[step], rel=2**-23)  # float32


@pytest.mark.parametrize("cut", range(4))
def test_what_is_written_is_read_back_in_order(cut, tmp_path):
    for part in (RECORDS[:cut], RECORDS[cut:]):
        append(tmp_path, *part)
    assert_shows(tmp_path / log.EVENTS, RECORDS)


def test_it_begins_with_its_version_and_tells_tensorboard_what_to_forget(tmp_path):
    append(tmp_path, *RECORDS[1:])
    (file,) = (tmp_path / log.EVENTS).iterdir()
    assert file.name.startswith("events.out.tfevents.")
    first, second, *_ = read_file(file)
    assert first.file_version == "brain.Event:2"
    assert (second.session_log.status, second.step) == (SessionLog.START, 200)


def test_a_clock_that_was_set_back_changes_no_curve(tmp_path, monkeypatch):
    append(tmp_path, *RECORDS[:2])
    a_day = 24 * 3600 * 10**9
    monkeypatch.setattr(log.time, "time_ns", lambda: time.monotonic_ns() - a_day)
    append(tmp_path, RECORDS[2])
    assert len(list((tmp_path / log.EVENTS).iterdir())) == 2
    assert_shows(tmp_path / log.EVENTS, RECORDS)


def test_times_are_those_of_the_writing(tmp_path):
    before = time.time()
    append(tmp_path, *RECORDS)
    (file,) = (tmp_path / log.EVENTS).iterdir()
    times = [event.wall_time for event in read_file(file)]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()


def test_an_epoch_is_on_disk_when_append_returns(tmp_path):
    with log.MetricsLog(tmp_path) as metrics:
        for count, record in enumerate(RECORDS, 1):
            metrics.append(record)
            assert_shows(tmp_path / log.EVENTS, RECORDS[:count])
            assert log.read_metrics(tmp_path) == RECORDS[:count]


def test_a_name_like_that_of_a_bucket_is_a_folder(tmp_path, monkeypatch):
    """tensorboardX would take s3:run for Amazon's."""
    monkeypatch.chdir(tmp_path)
    Path("s3:run").mkdir()
    append(Path("s3:run"), RECORDS[0])
    assert_shows(tmp_path / "s3:run" / log.EVENTS, RECORDS[:1])


def test_nothing_to_show_is_nothing_written(tmp_path):
    append(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / log.EVENTS).touch()
    with pytest.raises(OSError, match=f"^{tmp_path / log.EVENTS}: cannot be written to"):
        append(tmp_path, RECORDS[0])


def test_a_full_disk_is_told_by_the_epoch_that_it_stops(tmp_path, monkeypatch):
    """Both files are on disk when `append` returns, or it raises."""

    def full_disk(descriptor):
        if log.EVENTS in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    append(tmp_path, RECORDS[0])
    monkeypatch.setattr(os, "fsync", full_disk)
    message = rf"^{tmp_path / log.EVENTS}: cannot be written to \(No space left on device\)$"
    with pytest.raises(OSError, match=message):
        append(tmp_path, RECORDS[1])


def test_a_run_shows_its_metrics(tiny_run):
    records = log.read_metrics(tiny_run)
    assert len(records) == 2
    assert_shows(tiny_run / log.EVENTS, records)


@pytest.mark.parametrize("torn", [False, True])
def test_epochs_that_are_run_again_are_shown_once(torn, tmp_path):
    append(tmp_path, *RECORDS[:2])
    (file,) = (tmp_path / log.EVENTS).iterdir()
    if torn:
        os.truncate(file, file.stat().st_size - 5)
    log.repair_metrics(tmp_path, 1)  # a kill has lost the checkpoint of the second
    again = {**RECORDS[1], "test_loss": 7.0}
    append(tmp_path, again, RECORDS[2])
    assert_shows(tmp_path / log.EVENTS, [RECORDS[0], again, RECORDS[2]])
    assert log.read_metrics(tmp_path) == [RECORDS[0], again, RECORDS[2]]


def test_a_record_is_of_means_over_the_epochs_steps():
    totals = {"loss": 11.0, "accuracy": 5.5, "seconds": 4.0}
    record = log.epoch_record(66, 22, 64, totals, {"loss": 0.25, "accuracy": 0.75})
    assert record == {
        **{"epoch": 3, "step": 66, "train_loss": 0.5, "train_accuracy": 0.25},
        **{"test_loss": 0.25, "test_accuracy": 0.75, "seconds": 4.0, "images_per_second": 352},
    }


# --- lines for a person ---


def test_a_run_without_metrics_says_so():
    assert log.result_line([]) == "its metrics.jsonl is missing"
    assert log.result_line(RECORDS) == "test accuracy 25.00% after 300 epochs"
