"""Of an archive only what is wanted comes out, into one folder, whatever it says of paths."""

import io
import tarfile
import zipfile

import pytest

from lenet_jax.data.archive import unpack

CONTENT = {
    "folder/a.bin": b"a" * 3000,
    "../../../b.bin": b"b" * 10,
    "/c.bin": b"c",
    "folder/readme.html": b"not asked for",
}


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        for name, content in CONTENT.items():
            archive.writestr(name, content)


def write_tar(path):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in (("link.bin", tarfile.SYMTYPE), ("hard.bin", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, kind in (("pipe.bin", tarfile.FIFOTYPE), ("d.bin", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


KINDS = {"x.zip": write_zip, "x.tar.gz": write_tar}


@pytest.mark.parametrize(("name", "write"), KINDS.items(), ids=KINDS)
def test_wanted_files_come_out_by_name_and_nothing_else(name, write, tmp_path):
    folder = tmp_path / "one" / "two" / "three"
    folder.mkdir(parents=True)
    write(tmp_path / name)
    before = {path for path in tmp_path.rglob("*")}
    unpack(tmp_path / name, folder, lambda member: member.endswith(".bin"))
    new = {path for path in tmp_path.rglob("*")} - before
    assert new == {folder / "a.bin", folder / "b.bin", folder / "c.bin"}
    assert all(path.is_file() and not path.is_symlink() for path in new)
    assert {path.name: path.read_bytes()[:1] for path in new} == {
        f"{letter}.bin": letter.encode() for letter in "abc"
    }
    assert (folder / "a.bin").read_bytes() == CONTENT["folder/a.bin"]


@pytest.mark.parametrize(("name", "write"), KINDS.items(), ids=KINDS)
@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_archive_is_named(name, write, keep, tmp_path):
    write(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name}: cannot be unpacked"):
        unpack(tmp_path / name, tmp_path, lambda member: True)
