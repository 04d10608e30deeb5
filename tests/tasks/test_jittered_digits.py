"""What and where: every canvas holds its digit where the labels say, and MNIST's own files are read."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from moecli.errors import DataError
from moecli.tasks.jittered_digits import PLACES, JitteredDigits, place, placed
from moecli.tasks.task import SPLITS

MNIST = Path(__file__).resolve().parents[3] / "shared/data/mnist"


@pytest.fixture(scope="module")
def task():
    return JitteredDigits()


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist(folder, name="t10k", count=40, size=5, packed=True):
    draw = np.random.default_rng(count)
    images, digits = draw.integers(0, 256, (count, size, size)), np.arange(count) % 10
    for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", digits)):
        file = folder / f"{name}-{kind}{'.gz' * packed}"
        file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return images


def test_a_digit_lies_where_its_offset_says():
    images = np.arange(1, 19, dtype=np.uint8).reshape(2, 3, 3)
    canvas = placed(images, np.array([[-2, 0], [1, 2]]), 2).reshape(2, 7, 7)
    assert (canvas[0, 0:3, 2:5] == images[0]).all() and (canvas[1, 3:6, 4:7] == images[1]).all()
    assert canvas.astype(int).sum() == images.astype(int).sum()  # and nothing else is there


def test_nine_places():
    offset = torch.cartesian_prod(torch.arange(-4, 5), torch.arange(-4, 5))
    named = [PLACES[number] for number in place(offset, 4).tolist()]
    assert named[0] == "up left" and named[40] == "centre" and named[-1] == "down right" and named[8] == "up right"
    assert [named.count(name) for name in PLACES] == [9] * 9
    assert place(torch.zeros(1, 2), 0).tolist() == [4]


def test_every_canvas_is_an_image_moved(task):
    images = {image.tobytes() for image in load_digits().images.astype(np.uint8)}
    part = task.splits["test"]
    canvas = part.x.numpy().reshape(-1, 16, 16)
    for row in range(0, len(canvas), 37):
        windows = [canvas[row, r : r + 8, c : c + 8] for r in range(9) for c in range(9)]
        whole = [number for number, w in enumerate(windows) if w.sum() == canvas[row].sum() and w.tobytes() in images]
        offsets = torch.tensor([[number // 9 - 4, number % 9 - 4] for number in whole])
        assert part.labels["translation"][row] in place(offsets, 4)


def test_sizes_copies_and_labels(task):
    assert task.sizes == {"train": 4672, "valid": 1080, "test": 1436} and task.dim == 256 == len(task.feature_names)
    documents = [set(task.splits[name].document.tolist()) for name in SPLITS]
    assert not set.intersection(*documents) and len(set.union(*documents)) == 1797
    batch = task.batch("train", torch.arange(500))
    assert batch.x.min() == 0 and batch.x.max() == 1
    for name, values in task.label_names.items():
        assert task.splits["test"].labels[name].unique().tolist() == list(range(len(values)))
    counts = torch.cat([task.splits[name].labels["translation"] for name in SPLITS]).bincount() / (4 * 1797)
    assert counts.tolist() == pytest.approx([1 / 9] * 9, abs=0.02)
    assert task.fingerprint == JitteredDigits().fingerprint != JitteredDigits(split_seed=1).fingerprint


def test_without_jitter_it_is_the_digits(task):
    still = JitteredDigits(jitter=0, copies=1)
    assert still.dim == 64 and {PLACES[n] for n in still.splits["train"].labels["translation"].tolist()} == {"centre"}
    assert sum(part.x.long().sum().item() for part in still.splits.values()) == load_digits().data.sum()


@pytest.mark.parametrize("packed", [True, False])
def test_mnists_files_are_read_plain_or_gzipped(packed, tmp_path):
    images = mnist(tmp_path, packed=packed)
    task = JitteredDigits(str(tmp_path), jitter=1, copies=2)
    assert task.dim == 49 and sum(task.sizes.values()) == 80
    assert sum(part.x.long().sum().item() for part in task.splits.values()) == 2 * images.sum()
    assert task.batch("train", torch.arange(9)).x.max() <= 1


def test_a_separate_test_is_the_test(tmp_path):
    mnist(tmp_path, "train", 60)
    images = mnist(tmp_path, "t10k", 20)
    task = JitteredDigits(str(tmp_path), jitter=0, copies=1)
    assert task.sizes == {"train": 51, "valid": 9, "test": 20}
    assert task.splits["test"].x.tolist() == images.reshape(20, -1).tolist()


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} is not here: MNIST is no part of moecli")
def test_mnist_itself_is_read():
    task = JitteredDigits(str(MNIST), copies=1)
    assert task.sizes == {"train": 6500, "valid": 1500, "test": 2000} and task.dim == 36 * 36


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte.gz").unlink(), "images without labels"),
        (lambda f: (f / "t10k-images-idx3-ubyte.gz").unlink(), "no digits"),
        (lambda f: (f / "t10k-images-idx3-ubyte.gz").write_bytes(b"text"), "no gzip file"),
        (lambda f: (f / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"text")), "no IDX file"),
        (lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(5)))), "disagree"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(spoil, words, tmp_path):
    mnist(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        JitteredDigits(str(tmp_path))
    assert "\n" not in str(caught.value) and words in str(caught.value) and str(tmp_path) in str(caught.value)
