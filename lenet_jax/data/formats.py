"""A data set from the files in a folder, in whichever of the formats that people have."""

from collections.abc import Sequence
from pathlib import Path

from lenet_jax.data import cifar, idx, npz
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO


def read(name: str, data_dir: Path) -> tuple[str, RawSplits] | None:
    """The data set `name` from files in `data_dir`, and what they are; None if there are none.

    Raises:
      ValueError: they are damaged or incomplete; the message names a file.
    """
    info, folders = INFO[name], _folders(name, data_dir)
    if not info.idx_parts:
        folder = cifar.find_folder(folders)
        return folder and (f"CIFAR-10's binary files in {folder}", cifar.load_folder(folder))
    if found := idx.find_folder(folders, info.idx_parts):
        folder, part = found
        kind = f"EMNIST's IDX files of {part}" if part else "IDX files"
        labels = info.labels if part else None  # of one's own may be of other classes
        return f"{kind} in {folder}", idx.load_folder(folder, part, labels)
    if archives := npz.find(folders, name):
        return f"{archives['train_images'][0]}", npz.load(archives)
    return None


def file_names(name: str) -> Sequence[str]:
    """The files of the data set `name` as they are published, less .gz."""
    parts = INFO[name].idx_parts
    if not parts:
        return cifar.FILES
    return list(idx.FILES.values()) if "" in parts else idx.emnist_names(parts[0])


def describe_wanted(name: str, data_dir: Path) -> str:
    """The files that `read` looks for; where those in `data_dir` are of another kind, which."""
    info, files = INFO[name], ", ".join(file_names(name))
    if "" in info.idx_parts:
        return f"{files} (plain or .gz) or {name}.npz"
    wanted = f"{files}, from {_archives(name)}"
    if not info.idx_parts and (found := cifar.find_pickled(_folders(name, data_dir))):
        wanted += f" (in {found} is the Python version: pickles, which can run any code)"
    return wanted


def how_to_get(name: str) -> str:
    """What to do where nothing can be downloaded."""
    if "" in INFO[name].idx_parts:
        return f"put {', '.join(INFO[name].files)} into a folder and name it with --data_dir"
    return f"unpack {_archives(name)} into a folder and name it with --data_dir"


def _archives(name: str) -> str:
    return " and ".join(f"{INFO[name].url}{file}" for file in INFO[name].files)


def _folders(name: str, data_dir: Path) -> Sequence[Path]:
    """As files are unpacked: by hand, by torchvision, by Keras, from EMNIST's archive."""
    raw = f"{INFO[name].tfds_class}/raw"
    return [data_dir / each for each in (name, name.replace("_", "-"), raw, "", "raw", "gzip")]
