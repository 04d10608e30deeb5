"""IDX files of bytes, in which MNIST and its kin come: images and their labels in two files, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from moecli.errors import DataError
from moecli.tasks.files import read_bytes

Array = np.ndarray
Pair = tuple[Array, Array]  # images (n, H, W) uint8, labels (n,) uint8

IMAGES = "images-idx3-ubyte"


def read_pair(images: Path) -> Pair:
    """A file of images with that of their labels beside it.  Raises DataError where they do not agree."""
    pixels, label = read_idx(images, 3), read_idx(labels_beside(images), 1)
    if len(pixels) != len(label) or not len(label):
        why = f"{len(pixels)} images and {len(label)} labels, which must be as many"
        raise DataError(f"images and labels disagree ({images}): {why}. Fetch the pair anew")
    return pixels, label


def labels_beside(images: Path) -> Path:
    """Raises DataError where there are none."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    found = None if name == images.name else existing(images.with_name(name.removesuffix(".gz")))
    if found is None:
        missing = (
            f"{name.removesuffix('.gz')} beside it" if name != images.name else "'images' in its name to find them by"
        )
        raise DataError(f"images without labels ({images}): there is no {missing}. Add it")
    return found


def existing(file: Path) -> Path | None:
    """The file, or what it is gzipped."""
    return next((each for each in (file, file.with_name(f"{file.name}.gz")) if each.exists()), None)


def read_idx(file: Path, rank: int) -> Array:
    """An IDX file of bytes: 0, 0, 8, its rank, each size as four bytes, the data.  Raises DataError."""
    raw = read_bytes(file)
    try:
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"no gzip file ({file}): {error}. Fetch it anew") from error
    header = 4 + 4 * rank
    shape = np.frombuffer(raw[4:header], ">u4").tolist() if len(raw) >= header else []
    if raw[:4] != bytes([0, 0, 8, rank]) or len(raw) != header + math.prod(shape):
        why = f"not bytes of rank {rank} as long as its header says"
        raise DataError(f"no IDX file ({file}): {why}. Fetch it anew")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()  # of bytes, which nobody may write to
