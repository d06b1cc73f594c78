"""scikit-learn's digits, as they were drawn."""

import hashlib

import numpy as np
import pytest

from lenet_jax.data import digits

DIGITS_SHA256 = "0e643f5618fe83c59705d1912a66a95ec9f615b2fd12be2385a154282453270b"


def test_digits_are_all_there_once_with_every_class_in_both_splits():
    from sklearn.datasets import load_digits

    torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
    splits = digits.load()
    reference = load_digits()
    order = np.argsort(reference.target, kind="stable")
    is_test = np.isin(np.arange(1797), order[::5])
    large = torch.nn.functional.interpolate(  # half-pixel centres, as PyTorch understands them
        torch.from_numpy(reference.images * 255 / 16)[:, None], size=32, mode="bilinear"
    )[:, 0].numpy()
    for images, labels, chosen in ((*splits[:2], ~is_test), (*splits[2:], is_test)):
        assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(labels, reference.target[chosen])
        assert np.abs(images - large[chosen]).max() <= 0.5 + 1e-9  # rounded to whole grey values
    assert np.bincount(splits.test_labels).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]


def test_digits_do_not_change():
    """The split and the pixels are part of every published figure."""
    content = b"".join(part.tobytes() for part in digits.load())
    assert hashlib.sha256(content).hexdigest() == DIGITS_SHA256


@pytest.mark.parametrize("content", [None, b"1,2,3\n"])
def test_a_scikit_learn_without_its_digits_is_named(content, tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    if content is not None:
        (tmp_path / "datasets" / "data").mkdir(parents=True)
        (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(content)
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(ValueError, match=r"digits.csv.gz: cannot be read; install scikit-learn"):
        digits.load()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install it"):
        digits.load()
