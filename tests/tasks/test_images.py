"""Images in every format are the same images, split by seed; and what is wrong with a file is one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import moecli
from moecli.errors import DataError, UsageError
from moecli.run import evaluate_loaded, predictions
from moecli.tasks.images import Images
from moecli.tasks.jittered_digits import JitteredDigits

MNIST = Path(__file__).resolve().parents[3] / "shared/data/mnist"
DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (30, 4, 6), dtype=np.uint8)
LABEL = np.arange(30, dtype=np.uint8) % 3


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def idx_pair(folder, pixels=PIXELS, label=LABEL, name="t10k", packed=True):
    for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", label)):
        file = folder / f"{name}-{kind}{'.gz' * packed}"
        file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder / f"{name}-images-idx3-ubyte{'.gz' * packed}"


def folders(root, pixels=PIXELS, label=LABEL, suffix="png"):
    for number, (image, c) in enumerate(zip(pixels, label, strict=True)):
        (root / f"class {c}").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / f"class {c}" / f"{number:03d}.{suffix}")
    return root


def archive(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def every(task):
    """All images with their labels, whatever their order: {bytes of the image: its class}."""
    parts = [task.batch(name, torch.arange(size)) for name, size in task.sizes.items()]
    rows = torch.cat([part.x for part in parts])
    return {
        (255 * row).round().byte().numpy().tobytes(): int(y)
        for row, y in zip(rows, torch.cat([p.target for p in parts]), strict=True)
    }


FORMATS = {
    "idx": lambda f: idx_pair(f, packed=False),
    "idx.gz": idx_pair,
    "folder of idx": lambda f: idx_pair(f).parent,
    "folders of png": folders,
    "npz": lambda f: archive(f, x=PIXELS, y=LABEL),
    "npz of numbers": lambda f: archive(f, x=PIXELS[..., None] / np.float32(255), y=LABEL.astype(np.int64)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_images(kind, tmp_path):
    task = Images(str(FORMATS[kind](tmp_path)))
    assert every(task) == {image.tobytes(): int(c) for image, c in zip(PIXELS, LABEL, strict=True)}
    assert task.image == (1, 4, 6, 0) and task.dim == 24 == len(task.feature_names) and task.out == 3
    assert task.sizes == {"train": 20, "valid": 4, "test": 6} and {"image", "vectors", "classes"} <= task.gives
    names = ["class 0", "class 1", "class 2"] if "png" in kind else ["0", "1", "2"]
    assert task.label_names == {"class": names}
    batch = task.batch("test", torch.arange(6))
    assert batch.x.dtype == torch.float32 and batch.x.min() >= 0 and batch.x.max() <= 1
    assert batch.labels["class"].equal(batch.target)


def test_the_split_is_by_seed(tmp_path):
    path = str(idx_pair(tmp_path))
    first, again, other = Images(path), Images(path), Images(path, split_seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert every(first) == every(other)  # the same images, elsewhere


def test_a_separate_test_is_the_test(tmp_path):
    idx_pair(tmp_path, PIXELS[:20], LABEL[:20], "train")
    idx_pair(tmp_path, PIXELS[20:], LABEL[20:], "t10k")
    task = Images(str(tmp_path))
    assert task.sizes == {"train": 17, "valid": 3, "test": 10}
    assert (task.splits["test"].x.numpy() == PIXELS[20:].reshape(10, -1)).all()
    assert sum(Images(str(tmp_path / "train-images-idx3-ubyte.gz")).sizes.values()) == 20  # a file is itself alone


def test_colour_comes_channel_by_channel(tmp_path):
    pixels = DRAW.integers(0, 256, (12, 4, 6, 3), dtype=np.uint8)
    label = np.arange(12) % 2
    task = Images(str(archive(tmp_path, x=pixels, y=label)))
    assert task.image[:3] == (3, 4, 6) and task.feature_names[:1] + task.feature_names[-1:] == [
        "red pixel 0,0",
        "blue pixel 3,5",
    ]
    assert every(task) == {i.transpose(2, 0, 1).tobytes(): int(c) for i, c in zip(pixels, label, strict=True)}
    (tmp_path / "png").mkdir()
    assert every(Images(str(folders(tmp_path / "png", pixels, label)))) == every(task)


def test_jpegs_and_hidden_files(tmp_path):
    folders(tmp_path, np.repeat(LABEL, 24).reshape(30, 4, 6) * 100, LABEL, "JPG")
    (tmp_path / "class 0" / ".DS_Store").write_bytes(b"x")
    task = Images(str(tmp_path))
    shade = [task.splits["train"].x[task.splits["train"].target == c].float().mean().item() for c in range(3)]
    assert shade == pytest.approx([0, 100, 200], abs=5)


def test_classes_may_have_gaps_where_their_number_is_told(tmp_path):
    label = np.where(LABEL == 1, 7, LABEL)
    path = str(idx_pair(tmp_path, label=label))
    with pytest.raises(DataError, match=r"the largest is 7, and none is 1\..*task\.classes=8"):
        Images(path)
    assert Images(path, classes=10).out == 10
    ones = Images(str(archive(tmp_path, x=PIXELS, y=LABEL + 1)))  # counted from one, as EMNIST's letters are
    assert ones.out == 4 and ones.label_names["class"][0] == "0"


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} is not here: MNIST is no part of moecli")
def test_mnist_itself_is_read():
    task = Images(str(MNIST / "t10k-images-idx3-ubyte.gz"))
    assert task.sizes == {"train": 6500, "valid": 1500, "test": 2000} and task.image == (1, 28, 28, 0)
    assert every(task).keys() == every(JitteredDigits(str(MNIST), jitter=0, copies=1)).keys()


# -- bad input ------------------------------------------------------------------------------------


def spoilt(change):
    """Write a good pair, then ``change(folder)`` it; the folder is what is read unless a path comes back."""
    return lambda folder: (idx_pair(folder), change(folder))[1] or folder


def put(name, data):
    return lambda folder: (folder / name).write_bytes(data) and None


def beside(name, make):
    """A folder of classes with one file more."""

    def build(root):
        folders(root)
        make(root / "class 1" / name)
        return root

    return build


IMAGE, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
PACKED = gzip.compress(idx(PIXELS))
BAD = {
    "no such file": (lambda f: f / "none.gz", "no such file"),
    "gzip cut": (spoilt(put(IMAGE, PACKED[:-20])), "no gzip file"),
    "gzip flipped": (spoilt(put(IMAGE, PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:])), "no gzip file"),
    "no gzip": (spoilt(put(IMAGE, b"text")), "no gzip file"),
    "idx cut": (spoilt(put(IMAGE, gzip.compress(idx(PIXELS)[:-1]))), "no IDX file"),
    "idx of another rank": (spoilt(put(IMAGE, gzip.compress(idx(LABEL)))), "no IDX file"),
    "idx without pixels": (spoilt(put(IMAGE, gzip.compress(idx(np.zeros((30, 0, 0)))))), "no pixels"),
    "no labels": (spoilt(lambda f: (f / LABELS).unlink()), "images without labels"),
    "fewer labels": (spoilt(put(LABELS, gzip.compress(idx(LABEL[:-1])))), "30 images and 29 labels"),
    "several pairs": (
        spoilt(lambda f: idx_pair(f, name="other") and idx_pair(f, name="third").parent),
        "several pairs",
    ),
    "pairs of two sizes": (spoilt(lambda f: idx_pair(f, PIXELS[:, :3], name="train").parent), "different sizes"),
    "empty folder": (lambda f: f, "neither a folder a class nor IDX"),
    "class without images": (lambda f: (folders(f), (f / "class 9").mkdir())[0], "empty folder"),
    "another file": (beside("notes.txt", lambda file: file.write_text("hello")), "not an image .*notes.txt"),
    "a folder among images": (beside("more", lambda file: file.mkdir()), "not an image .*it is a folder"),
    "text called png": (beside("x.png", lambda file: file.write_text("hello")), "not an image .*x.png"),
    "png cut": (
        beside("x.png", lambda file: file.write_bytes((file.parent / "001.png").read_bytes()[:60])),
        "not an image .*x.png",
    ),
    "16 bits": (beside("x.png", lambda file: Image.fromarray(np.ones((4, 6), np.uint16)).save(file)), "16 bits"),
    "another size": (
        beside("x.png", lambda file: Image.new("L", (5, 4)).save(file)),
        "different sizes .*4 x 5 pixels, and 000.png has 4 x 6",
    ),
    "one image": (lambda f: folders(f) / "class 1" / "001.png", "a single image"),
    "too few": (lambda f: idx_pair(f, PIXELS[:8], LABEL[:8]), "too few images"),
    "one class": (lambda f: idx_pair(f, label=0 * LABEL), "too few images"),
    "npz cut": (lambda f: cut(archive(f, x=PIXELS, y=LABEL)), "no NumPy archive"),
    "npz without y": (lambda f: archive(f, x=PIXELS, labels=LABEL), r"no array y .*it holds 'x', 'labels'"),
    "npz of objects": (lambda f: archive(f, x=PIXELS, y=np.array([None] * 30)), "no NumPy archive"),
    "npz counts": (lambda f: archive(f, x=PIXELS, y=LABEL[:-1]), "x has 30 images"),
    "npz shape": (lambda f: archive(f, x=PIXELS.reshape(30, 24), y=LABEL), r"shape \(30, 24\)"),
    "npz of large numbers": (lambda f: archive(f, x=PIXELS.astype(float), y=LABEL), "numbers from 0 to 1"),
    "npz of nan": (lambda f: archive(f, x=np.full((30, 4, 6), np.nan), y=LABEL), "numbers from 0 to 1"),
    "npz negative label": (lambda f: archive(f, x=PIXELS, y=LABEL.astype(int) - 1), "image 0 has -1"),
    "npz label beyond all": (lambda f: archive(f, x=PIXELS, y=np.where(LABEL == 2, 10**12, 1)), "out of range"),
    "npz of words": (lambda f: archive(f, x=PIXELS, y=np.array(["a", "b", "c"] * 10)), "labels are no classes"),
    "npz of fractions": (lambda f: archive(f, x=PIXELS, y=LABEL / 2), "labels are no classes"),
}


def cut(file):
    file.write_bytes(file.read_bytes()[:-30])
    return file


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case, tmp_path):
    make, words = BAD[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        Images(str(path))
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path) in said and ". " in said, said


def test_a_label_beyond_the_classes_is_named(tmp_path):
    with pytest.raises(DataError, match=r"image 2 has 2, and classes are numbers from 0 to 1"):
        Images(str(idx_pair(tmp_path)), classes=2)
    more = tmp_path / "more"
    more.mkdir()
    with pytest.raises(UsageError, match="3 folders of classes"):
        Images(str(folders(more)), classes=2)
    assert len(BAD) >= 30


# -- what a run does with them --------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    pixels = np.kron(LABEL.reshape(30, 1, 1), np.full((1, 4, 6), 100)) + DRAW.integers(0, 9, (30, 4, 6))
    folders(root, pixels.astype(np.uint8))
    words = ["model.patch=2", "model.depth=1", "model.every=1", "model.dim=8", "num_experts=2", "expert.hidden=8"]
    words += ["optimizer.lr=0.02", "optimizer.weight_decay=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moecli.run._draw", lambda run: None)
        return moecli.train(
            "task=images",
            f"task.path={root}",
            *words,
            "trainer.steps=100",
            "trainer.eval_every=100",
            runs=root / ".runs",
        ), root


def test_a_run_recommends_vision_and_learns_shades(run):
    assert run[0].info["config"]["model"] == "vision" and run[0].summary["metrics"]["test/accuracy"] == 1.0


def test_evaluation_is_repeatable_and_reads_other_data(run, tmp_path):
    loaded = moecli.load(run[0].path)
    assert evaluate_loaded(loaded, "test")["metrics"]["accuracy"] == 1.0
    words = [f"task.path={folders(tmp_path, np.zeros_like(PIXELS))}"]
    assert evaluate_loaded(moecli.load(run[0].path, words), "test")["metrics"]["accuracy"] < 0.9


def test_new_images_are_predicted_one_row_each(run, tmp_path):
    path, root = run
    loaded = moecli.load(path.path)
    table = predictions(loaded, root / "class 2")
    assert table["file"].tolist() == [f"{number:03d}.png" for number in range(2, 30, 3)]
    assert set(table["predicted"]) == {"class 2"} and table["block0 expert"].isin([0, 1]).all()
    alone = predictions(loaded, root / "class 0" / "003.png")
    assert len(alone) == 1 and alone["predicted"].tolist() == ["class 0"]
    black = predictions(loaded, idx_pair(tmp_path, 0 * PIXELS))
    assert len(black) == 30 and set(black["predicted"]) == {"class 0"}
    pandas.DataFrame(0.8, index=[0], columns=loaded.task.feature_names).to_csv(tmp_path / "new.csv", index=False)
    assert predictions(loaded, tmp_path / "new.csv")["predicted"].tolist() == ["class 2"]
    with pytest.raises(DataError, match=r"4 x 5 pixels, grey, and those of training 4 x 6"):
        predictions(loaded, idx_pair(tmp_path, PIXELS[..., :5]))


def test_images_of_nothing_are_refused_by_other_models(run):
    with pytest.raises(UsageError, match="an example is none"):
        moecli.train("task=spirals", "model=vision")
