"""What is known about each data set."""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lenet_jax.data.idx import FILES

Files = Mapping[str, tuple[int, str]]  # by name: bytes and SHA-256, as tensorflow-datasets has them
_IDX = tuple(f"{stem}.gz" for stem in FILES.values())


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Where a data set comes from, what it shows, and how that lies in the 32x32 pixels."""

    classes: tuple[str, ...]  # the names of the labels, counted from 0
    # Of the training pixels in 0..1, to the usual four decimals; in colour one per channel.
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    box: int = 28  # the side of the square that is filled, in pixels
    pen: float = 3  # the width of a stroke that gives drawings as much white as the images' mean
    by_mass: bool = False  # the middle is the centre of mass, not the centre of the box
    default_epochs: int = 5
    advice: str = ""  # to those who have trained on it
    augment: str = "elastic"  # the one of `lenet_jax.core.augment.STANDARDS` that suits it
    tfds_class: str = ""  # in tensorflow_datasets.image_classification and torchvision.datasets
    # The parts of EMNIST whose IDX files are read as this data set, most wanted first; "" stands
    # for files that are not EMNIST's. Empty: CIFAR-10's binary files instead.
    idx_parts: tuple[str, ...] = ("",)
    emnist_part: str = ""  # the part that it is
    first_label: int = 0  # of the first class in the published files
    url: str = ""  # of the folder with the published files, as tensorflow-datasets has it
    files: Files = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> range:
        """The labels of the classes in the published files."""
        return range(self.first_label, self.first_label + len(self.classes))


def _files(*checksums: tuple[int, str], names: Sequence[str] = _IDX) -> Files:
    return dict(zip(names, checksums, strict=True))


def _emnist(part: str, classes: str, mean: float, std: float, **others: Any) -> DatasetInfo:
    """A part of EMNIST: 24x24 in the middle of 28x28, so that a stroke is wider than MNIST's.

    One archive holds all parts. tensorflow-datasets takes only the first 88,800 of the 124,800
    training letters and 14,800 of the 20,800 test letters, the numbers in the paper
    (https://arxiv.org/abs/1702.05373).
    """
    checksum = "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"
    return DatasetInfo(
        classes=tuple(classes),
        box=24,
        pen=2.7,
        mean=mean,
        std=std,
        tfds_class="EMNIST",
        idx_parts=(part,),
        emnist_part=part,
        url="https://biometrics.nist.gov/cs_links/EMNIST/",
        files={"gzip.zip": (561753746, checksum)},
        **others,
    )


INFO = {
    "mnist": DatasetInfo(
        classes=tuple(string.digits),
        box=20,
        pen=2.4,
        mean=0.1307,
        std=0.3081,
        by_mass=True,
        tfds_class="MNIST",
        idx_parts=("", "mnist", "digits"),
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        files=_files(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion_mnist": DatasetInfo(
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mean=0.2860,
        std=0.3530,
        tfds_class="FashionMNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=_files(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "kmnist": DatasetInfo(
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        mean=0.1918,
        std=0.3483,
        tfds_class="KMNIST",
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        files=_files(
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    # A class holds both cases of a letter.
    "emnist_letters": _emnist("letters", string.ascii_uppercase, 0.1722, 0.3309, first_label=1),
    # The paper merges the lower-case letters that look like their capitals into those.
    "emnist_balanced": _emnist(
        "balanced", string.digits + string.ascii_uppercase + "abdefghnqrt", 0.1751, 0.3332
    ),
    "emnist_digits": _emnist("digits", string.digits, 0.1733, 0.3316),
    "cifar10": DatasetInfo(
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        box=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        default_epochs=10,
        augment="shift_and_flip",
        tfds_class="Cifar10",
        idx_parts=(),
        url="https://www.cs.toronto.edu/~kriz/",
        files=_files(
            (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
            names=("cifar-10-binary.tar.gz",),
        ),
    ),
    "digits": DatasetInfo(
        classes=tuple(string.digits),
        box=32,
        pen=4.5,
        mean=0.3057,
        std=0.3238,
        default_epochs=30,
        advice="1,437 digits of 8x8 are enough to try everything out, but this network misreads "
        "many pens and photographs; predict without --workdir reads them better, with the "
        "package's network, trained on MNIST",
    ),
}
