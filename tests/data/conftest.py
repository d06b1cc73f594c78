"""A prepared copy, for the tests of both ways into tensorflow-datasets' folder."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up import made_up, prepare, write_idx


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> SimpleNamespace:
    """60 and 30 made-up images as arrays, as IDX files and as a prepared copy of 'mnist'."""
    root = tmp_path_factory.mktemp("few")
    splits = made_up(60, 30)
    write_idx(root / "idx", splits)
    prepare("mnist", root / "prepared", splits)
    return SimpleNamespace(splits=splits, idx=root / "idx", prepared=root / "prepared")


@pytest.fixture
def copy(few, tmp_path) -> Path:
    """A prepared copy to damage."""
    shutil.copytree(few.prepared, tmp_path / "copy")
    return tmp_path / "copy"
