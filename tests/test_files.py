import os
import stat
from pathlib import Path

import pytest

from lenet_jax.files import add_path_to_oserror, atomic_write, expand_user, require_utf8


def test_a_tilde_is_the_home_folder_and_a_stranger_is_named_with_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/run", "--workdir") == tmp_path / "run"
    with pytest.raises(ValueError, match=r"^--workdir=~nobody_has_this_name: .*no such home"):
        expand_user("~nobody_has_this_name", "--workdir")


def test_a_path_that_is_no_utf8_is_named_also_if_it_is_the_folder_one_is_in(tmp_path, monkeypatch):
    strange = tmp_path / os.fsdecode(b"a\xff")
    strange.mkdir()
    assert require_utf8(tmp_path / "é", "--workdir") == tmp_path / "é"
    with pytest.raises(ValueError, match=r"^--workdir=.*not UTF-8"):
        require_utf8(strange / "run", "--workdir")
    monkeypatch.chdir(strange)
    with pytest.raises(ValueError, match=r"^--workdir=run: .*not UTF-8"):
        require_utf8(Path("run"), "--workdir")


@pytest.mark.parametrize("content", ["text é\n", b"\x00\xff"])
def test_a_file_is_replaced_as_a_whole_with_the_usual_rights(content, tmp_path):
    file, usual = tmp_path / "file", tmp_path / "usual"
    usual.touch()
    file.write_text("before")
    atomic_write(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "usual"]


def test_a_write_that_fails_names_the_file_and_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"^{file}: cannot be written to \(No space left"):
        atomic_write(file, "after")
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_oserror_gets_the_path(tmp_path):
    with (
        pytest.raises(OSError, match=rf"^{tmp_path}: cannot be written to \(because\)"),
        add_path_to_oserror(tmp_path),
    ):
        raise OSError("because")
