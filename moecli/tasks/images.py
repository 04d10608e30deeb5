"""Your own images and their classes: IDX files, a folder with a folder for each class, or NumPy arrays."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.models.image import Pixels
from moecli.tasks.files import read_bytes, shown, user_path
from moecli.tasks.idx import read_idx, read_pair
from moecli.tasks.kinds import Classification
from moecli.tasks.task import Batch, Fact, InMemory, Split, three_way
from moecli.types import PositiveInt, Seed

Array = np.ndarray

PICTURES = {".png", ".jpg", ".jpeg"}
TABLES = {".csv", ".tsv", ".parquet", ".jsonl"}
FEWEST = 10  # images, so that each part of the split has some


@dataclass(frozen=True)
class Labelled:
    """Images with their classes; where ``num_test`` is not 0, so many at the end are a test of their own."""

    images: Array  # (n, C, H, W) uint8, or float32 in 0..1
    label: Array  # (n,) int64
    names: list[str] | None = None  # of the classes, where folders name them
    num_test: int = 0


class Images(InMemory):
    """Images (n, C, H, W) of one size, grey or in colour -> pixels in 0..1, the class as label.

    ``path`` is a file of images in IDX whose labels lie beside it, a folder of such files (of a train and a test pair
    the latter is the test), a folder that holds a folder of PNG or JPEG for each class, or an ``.npz`` with ``x`` (n, H, W)
    or (n, H, W, 3) and ``y`` (n,).  Classes are numbers from 0, or folders in alphabetical order.  Bytes stay bytes.

    Raises DataError for what is none of these, is damaged, or does not fit together.
    """

    image: Pixels

    def __init__(self, path: str, classes: PositiveInt | None = None, split_seed: Seed = 0):
        root = user_path(path)
        self.origin, found = root, read(root)
        names = _names(found, classes, root)
        if len(found.label) < FEWEST or len(names) < 2:
            few = f"{len(found.label)} images of {len(names)} classes, and it takes {FEWEST} of 2"
            raise DataError(f"too few images ({root}): it has {few}. Give more")
        x, y = torch.from_numpy(found.images).flatten(1), torch.from_numpy(found.label)
        splits = {name: Split(x[i], y[i], {"class": y[i]}) for name, i in _parts(found, split_seed).items()}
        image = Pixels(*found.images.shape[1:])
        self.adopt(splits, Classification(tuple(names)), {"class": names}, image)

    def batch(self, split: str, index: Tensor) -> Batch:
        drawn = super().batch(split, index)
        return replace(drawn, x=unit(drawn.x))

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """Images of the same size in any of the formats, without their labels, or a table of ``feature_names``."""
        file = user_path(file)
        if file.suffix.lower() in TABLES:
            return super().new_rows(file)
        images, names = unlabelled(file, self.image.channels)
        if images.shape[1:] != self.image[:3]:
            why = f"its images are {_size(*images.shape[1:])}, and those of training {_size(*self.image[:3])}"
            raise DataError(f"other images ({file}): {why}. Give images of that size")
        return unit(torch.from_numpy(images).flatten(1)), names

    def facts(self) -> list[Fact]:
        return [Fact("data", str(self.origin)), Fact("images", _size(*self.image[:3])), *super().facts()]


def unit(x: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1; numbers as they are."""
    return x if x.is_floating_point() else x.float() / 255


def _parts(found: Labelled, seed: int) -> dict[str, Tensor]:
    size, own = len(found.label), found.num_test
    if not own:
        return three_way(size, seed)
    return {**three_way(size - own, seed, test=0.0), "test": torch.arange(size - own, size)}


def _size(channels: int, height: int, width: int) -> str:
    return f"{height} x {width} pixels, {'grey' if channels == 1 else 'in colour'}"


def _names(found: Labelled, classes: int | None, root: Path) -> list[str]:
    if found.names is None:
        return [str(number) for number in range(num_classes(found.label, classes, root))]
    if classes not in (None, len(found.names)):
        raise UsageError(
            f"task.classes={classes} ({root}): it holds {len(found.names)} folders of classes. Leave it out"
        )
    return found.names


def num_classes(label: Array, classes: int | None, root: Path) -> int:
    """Raises DataError for a label that is out of range: of ``classes``, or beyond a gap in those that occur."""
    number, occurring = classes or int(label.max()) + 1, np.unique(label)
    in_turn = np.arange(len(occurring)) + (occurring[0] == 1)  # counted from 0 or from 1
    missing = in_turn[in_turn != occurring]
    if occurring[0] < 0 or occurring[-1] >= number:
        wrong = int(((label < 0) | (label >= number)).argmax())
        why = f"image {wrong} has {label[wrong]}, and classes are numbers from 0 to {number - 1}"
        raise DataError(f"label out of range ({root}): {why}. Mend the labels, or set task.classes")
    if classes is None and len(missing):
        why = f"the largest is {number - 1}, and none is {missing[0]}"
        raise DataError(f"label out of range ({root}): {why}. Mend the labels, or say how many: task.classes={number}")
    return number


# -- the formats ------------------------------------------------------------------------------


def read(root: Path) -> Labelled:
    """Whatever ``root`` is.  Raises DataError."""
    if not root.is_dir():
        if root.suffix.lower() in PICTURES:
            raise DataError(
                f"a single image ({root}): its class is unknown. Name the folder that holds a folder a class"
            )
        return _arrays(root) if root.suffix == ".npz" else _labelled(root, *read_pair(root))
    files = sorted(file for file in root.glob("*images*idx3*") if file.is_file())
    return _pairs(root, files) if files else _folders(root)


def _labelled(root: Path, pixels: Array, label: Array, num_test: int = 0) -> Labelled:
    if not pixels.size:
        raise DataError(f"no images ({root}): they have no pixels. Fetch the file anew")
    return Labelled(pixels[:, None], label.astype(np.int64), num_test=num_test)


def _pairs(root: Path, files: list[Path]) -> Labelled:
    """One pair of IDX files, or one to train and one to test."""
    test = [file for file in files if "t10k" in file.name or "test" in file.name]
    train = [file for file in files if file not in test]
    if len(files) == 1:
        return _labelled(root, *read_pair(files[0]))
    if (len(train), len(test)) != (1, 1):
        named = ", ".join(file.name for file in files[:4])
        raise DataError(
            f"several pairs ({root}): {named}. Name one of the files, or leave a train and a t10k pair there"
        )
    pairs = [read_pair(file) for file in (*train, *test)]
    if pairs[0][0].shape[1:] != pairs[1][0].shape[1:]:
        raise DataError(
            f"images of different sizes ({root}): the test's are not those of training. Name one of the files"
        )
    pixels, label = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return _labelled(root, pixels, label, len(pairs[1][1]))


def _arrays(file: Path) -> Labelled:
    x, y = _load(file, "x"), _load(file, "y")
    if y.ndim != 1 or len(x) != len(y) or not len(y):
        why = f"x has {len(x)} images, y the shape {y.shape}, and there must be as many labels (n,)"
        raise DataError(f"images and labels disagree ({file}): {why}. Write it anew")
    if y.dtype.kind not in "iu":
        raise DataError(
            f"labels are no classes ({file}): y is {y.dtype}, and classes are whole numbers. Number them from 0"
        )
    return Labelled(_pixels(x, file), y.astype(np.int64))


def _load(file: Path, name: str) -> Array:
    read_bytes(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if name not in arrays.files:
                has = ", ".join(map(shown, arrays.files[:4])) or "nothing"
                raise DataError(
                    f"no array {name} ({file}): it holds {has}. Save it as np.savez(FILE, x=images, y=classes)"
                )
            return arrays[name]
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"no NumPy archive ({file}): {_line(error)}. Write it anew with np.savez") from error


def _pixels(x: Array, file: Path) -> Array:
    """(n, H, W) or (n, H, W, C) of bytes or of numbers from 0 to 1 -> (n, C, H, W).  Raises DataError."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        why = f"x has the shape {x.shape}, and images are (n, H, W) or (n, H, W, 3)"
        raise DataError(f"no images ({file}): {why}. Reshape it")
    if x.dtype != np.uint8 and not (x.dtype.kind == "f" and np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        why = f"x is {x.dtype}, and pixels are bytes (uint8) or numbers from 0 to 1"
        raise DataError(f"no pixels ({file}): {why}. Scale and convert x")
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.uint8 if x.dtype == np.uint8 else np.float32)


def _folders(root: Path) -> Labelled:
    """A folder a class, its images directly within."""
    folders = sorted(each for each in _visible(root) if each.is_dir())
    if not folders:
        why = "it holds neither a folder a class nor IDX files (images-idx3-ubyte)"
        raise DataError(f"no images ({root}): {why}. Name another folder")
    files = [(number, file) for number, folder in enumerate(folders) for file in _pictures(folder)]
    label = np.array([number for number, _ in files], np.int64)
    return Labelled(_decoded([file for _, file in files]), label, [folder.name for folder in folders])


def _visible(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if not each.name.startswith(".")]


def _pictures(folder: Path) -> list[Path]:
    """Raises DataError for anything else, and for an empty folder."""
    files = sorted(_visible(folder))
    if not files:
        raise DataError(f"empty folder ({folder}): a class without images. Fill or remove it")
    for file in files:
        if file.is_dir() or file.suffix.lower() not in PICTURES:
            what = "a folder" if file.is_dir() else "no PNG or JPEG"
            raise DataError(f"not an image ({file}): it is {what}. Take it out of the folder of its class")
    return files


def _decoded(files: list[Path], channels: int | None = None) -> Array:
    """All of one size, in colour where any is: (n, C, H, W) uint8.  Raises DataError."""
    pictures = [_open(file) for file in files]
    mode = {1: "L", 3: "RGB", None: "L" if all(p.mode in ("1", "L") for p in pictures) else "RGB"}[channels]
    size = pictures[0].size
    for file, picture in zip(files, pictures, strict=True):
        if picture.size != size:
            (width, height), (first, second) = picture.size, size
            why = f"{height} x {width} pixels, and {files[0].name} has {second} x {first}"
            raise DataError(f"images of different sizes ({file}): {why}. Make all of one size")
    stack = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    return np.ascontiguousarray(stack[:, None] if mode == "L" else stack.transpose(0, 3, 1, 2))


def _open(file: Path) -> Image.Image:
    read_bytes(file)
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            picture.load()
            turned = ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"not an image ({file}): {_line(error)}. Replace or remove it") from error
    if turned.mode.startswith(("I", "F")):
        raise DataError(f"16 bits a pixel ({file}): moe reads 8. Convert it")
    return turned


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return said[:100] or type(error).__name__


def unlabelled(file: Path, channels: int) -> tuple[Array, dict[str, list[Any]]]:
    """Images to predict, (n, C, H, W), and what to call each: one file, a folder of them, IDX or ``.npz``."""
    if file.is_dir() or file.suffix.lower() in PICTURES:
        files = _pictures(file) if file.is_dir() else [file]
        return _decoded(files, channels), {"file": [each.name for each in files]}
    images = _pixels(_load(file, "x"), file) if file.suffix == ".npz" else read_idx(file, 3)[:, None]
    return images, {"image": list(range(len(images)))}
