import errno
import os
import re
import stat

import pytest

from lenet_jax.files import add_path_to_oserror, atomic_write, expand_user, remove_unfinished


def test_a_tilde_is_the_home_folder_and_a_stranger_is_named_with_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/run", "--workdir") == tmp_path / "run"
    with pytest.raises(ValueError, match=r"^--workdir=~nobody_has_this_name: .*no such home"):
        expand_user("~nobody_has_this_name", "--workdir")


def test_a_file_whose_name_is_not_utf8_is_written_too(tmp_path):
    folder = tmp_path / os.fsdecode(b"a\xff")
    folder.mkdir()
    atomic_write(folder / "file", "content")
    assert (folder / "file").read_text() == "content"


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".config.json.0123.tmp").touch()
    (tmp_path / "config.json").touch()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_file_and_folder_are_synced_before_a_write_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    atomic_write(tmp_path / "file", "content")
    temporary, folder = synced
    assert re.fullmatch(rf"{tmp_path}/\.file\.\w+\.tmp", temporary)
    assert folder == str(tmp_path)


def test_a_file_system_that_syncs_no_folders_is_enough(tmp_path, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


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
