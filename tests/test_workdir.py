import json
import os

import pytest

from lenet_jax import data, workdir
from lenet_jax.settings import Settings


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    path = tmp_path / "with spaces" / "ünïcode" / "run"
    assert workdir.create(Settings(workdir=str(path))) == path
    assert list(path.iterdir()) == []


def test_without_a_name_it_says_what_ran_and_when(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = workdir.create(Settings(dataset="digits", optimizer="sgd"))
    assert path.parent.name == "runs"
    assert path.name.startswith("digits-sgd-20")


def test_a_file_in_its_place_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match=rf"^--workdir={path}: cannot be written to"):
        workdir.create(Settings(workdir=str(path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        workdir.create(Settings(workdir=str(tmp_path)))


def test_config_names_settings_data_machine_and_versions(tmp_path):
    workdir.write_config(tmp_path, Settings(dataset="digits"), data.load("digits"))
    config = json.loads((tmp_path / workdir.CONFIG).read_text())
    assert config["settings"]["optimizer"] == "adam"
    assert config["data"]["training_images"] == 1437
    assert config["machine"]["cores"] >= 1
    assert set(config["versions"]) == set(workdir.PACKAGES)
    assert [path.name for path in tmp_path.iterdir()] == [workdir.CONFIG]


def test_metrics_are_appended_a_line_each(tmp_path):
    for epoch in (1, 2):
        workdir.append_metrics(tmp_path, {"epoch": epoch})
    lines = (tmp_path / workdir.METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2}]
