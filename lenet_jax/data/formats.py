"""Finds a data set among the files in a folder, in any of the common formats."""

from collections.abc import Sequence
from pathlib import Path

from lenet_jax.data import cifar, idx, npz
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO


def read(name: str, data_dir: Path) -> tuple[str, RawSplits] | None:
    """What the data set's files in `data_dir` are, and their content; None without such files."""
    info, folders = INFO[name], _folders(name, data_dir)
    if not info.idx_parts:
        folder = cifar.find_folder(folders)
        return folder and (f"CIFAR-10's binary files in {folder}", cifar.load_folder(folder))
    if found := idx.find_folder(folders, info.idx_parts):
        folder, part = found
        kind = f"EMNIST's IDX files of {part}" if part else "IDX files"
        labels = info.labels if part else None  # a user's own files may have other classes
        return f"{kind} in {folder}", idx.load_folder(folder, part, labels)
    if archives := npz.find(folders, name):
        return f"{archives['train_images'][0]}", npz.load(archives)
    return None


def file_names(name: str) -> Sequence[str]:
    """The names of the data set's published files, without .gz."""
    info = INFO[name]
    if not info.idx_parts:
        return cifar.FILES
    names = list(idx.FILES.values())
    if part := info.emnist_part:
        return [f"emnist-{part}-{name.replace('t10k', 'test')}" for name in names]  # NIST's
    return names


def describe_wanted(name: str, data_dir: Path) -> str:
    """The files that `read` looks for, and which of another kind are in `data_dir`."""
    info, files = INFO[name], ", ".join(file_names(name))
    if "" in info.idx_parts:
        return f"{files} (plain or .gz) or {name}.npz"
    wanted = f"{files}, from {_archives(name)}"
    if not info.idx_parts and (found := cifar.find_pickled(_folders(name, data_dir))):
        wanted += f" ({found} has the Python version: pickles, which can run any code)"
    return wanted


def how_to_get(name: str) -> str:
    """What to do if nothing can be downloaded."""
    if "" in INFO[name].idx_parts:
        return f"put {', '.join(INFO[name].files)} into a folder and name it with --data_dir"
    return f"unpack {_archives(name)} into a folder and name it with --data_dir"


def _archives(name: str) -> str:
    return " and ".join(f"{INFO[name].url}{file}" for file in INFO[name].files)


def _folders(name: str, data_dir: Path) -> Sequence[Path]:
    """Where files lie if unpacked by hand, by torchvision, by Keras, or from EMNIST's archive."""
    raw = f"{INFO[name].tfds_class}/raw"
    return [data_dir / each for each in (name, name.replace("_", "-"), raw, "", "raw", "gzip")]
