"""The seconds until the first step are measured as said; no test depends on a speed."""

import time

import first_step
from _results import path, read_json


def test_the_phases_of_a_process_add_up_to_its_time(tmp_path):
    started = time.time()
    seconds = first_step.start("ours", str(tmp_path))
    assert tuple(seconds) == first_step.PHASES
    assert all(each > 0 for each in seconds.values())
    assert 0.5 * (time.time() - started) < sum(seconds.values()) < time.time() - started
    assert list(tmp_path.glob("jit_train_step-*-cache"))  # a warm run finds it


def test_the_tables_are_those_of_the_recorded_seconds():
    files = list(path("").glob("first_step.*.md"))
    assert files
    for file in files:
        assert file.read_text().startswith(first_step.table(read_json(file.stem)))
