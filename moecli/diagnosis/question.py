"""What `moe explain` is asked about: a row of a split, a row of a file, a row as COLUMN=VALUE, or a text."""

from __future__ import annotations

import csv
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.run import PREDICTED_AT_ONCE, Loaded
from moecli.tasks.files import decode, read_bytes
from moecli.tasks.task import SPLITS

OF_SPLIT = re.compile(rf"({'|'.join(SPLITS)}):(.*)")
NUMBERED = re.compile(r"(.+):(\d+)")


@dataclass(frozen=True)
class Question:
    """A batch with the row that is asked about; what else is in it may compete with it for experts."""

    name: str
    x: Tensor  # (B, ...)
    known: dict[str, Tensor]
    row: int
    target: str | None = None  # what it truly is, where that is known
    notes: tuple[str, ...] = ()

    @property
    def input(self) -> Tensor:
        """The row itself, without the batch."""
        return self.x[self.row]

    def alone(self, rows: Tensor) -> Question:
        """The same question of other inputs (M, ...), all asked about at once; the first one is row 0."""
        known = {
            name: fact[self.row : self.row + 1].expand(len(rows), *fact.shape[1:]) for name, fact in self.known.items()
        }
        return replace(self, x=rows, known=known, row=0)

    def changed(self, row: Tensor) -> Question:
        """The same question with another input in its place in the batch."""
        return replace(self, x=self.x.index_copy(0, torch.tensor([self.row]), row[None]))


def question(loaded: Loaded, given: str) -> Question:
    """Raises UsageError for an input that no task of this kind has, DataError where it does not fit the run's."""
    of_split = OF_SPLIT.fullmatch(given)
    if of_split:
        return _of_split(loaded, *of_split.groups())
    if any("known" in layer.router.needs for layer in loaded.model.mixtures.values()):
        raise UsageError(
            f"--input {given}: this run's router is told each row's labels, which a new row has not. "
            "Ask for a row of a split, as test:0"
        )
    file = Path(given).expanduser()
    if _is_file(file):
        return _of_file(loaded, file)
    numbered = NUMBERED.fullmatch(given)
    if numbered and _is_file(Path(numbered[1]).expanduser()):
        return _of_file(loaded, Path(numbered[1]).expanduser(), int(numbered[2]))
    return _of_text(loaded, given) if "ids" in loaded.task.gives else _of_cells(loaded, given)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text may be longer than a path, or have characters that no path has
        return False


def _of_split(loaded: Loaded, split: str, index: str) -> Question:
    size = loaded.task.sizes[split]
    if not index.isdecimal() or int(index) >= size:
        raise UsageError(f"--input {split}:{index}: {split} has rows 0 to {size - 1}. Give one of them")
    start = int(index) // PREDICTED_AT_ONCE * PREDICTED_AT_ONCE  # as evaluation takes them
    batch = loaded.task.batch(split, torch.arange(start, min(start + PREDICTED_AT_ONCE, size)))
    row = int(index) - start
    return Question(f"{split}:{index}", batch.x, batch.known, row, _truth(loaded, batch.target[row]))


def _truth(loaded: Loaded, target: Tensor) -> str | None:
    classes = getattr(loaded.task.kind, "classes", None)
    return str(classes[int(target)]) if classes and target.ndim == 0 else None


def _of_file(loaded: Loaded, file: Path, row: int | None = None) -> Question:
    if "ids" in loaded.task.gives:
        if row is not None:
            raise UsageError(
                f"--input {file}:{row}: this run reads a text, which has no rows. Give the file alone: {file}"
            )
        return _of_text(loaded, decode(read_bytes(file), file), str(file))
    row = row or 0
    x, _ = loaded.task.new_rows(file)
    if row >= len(x):
        raise UsageError(f"--input {file}:{row}: the file has rows 0 to {len(x) - 1}. Give one of them")
    return Question(f"{file}:{row}", x[row : row + 1], {}, 0, notes=_alone(loaded))


def _of_cells(loaded: Loaded, given: str) -> Question:
    """COLUMN=VALUE,COLUMN=VALUE, quoted as in a CSV file where a comma is part of one."""
    cells = [cell.partition("=") for cell in next(csv.reader([given]), [])]
    if not cells or not all(equals for _, equals, _ in cells):
        names = ", ".join(loaded.task.feature_names[:3])
        raise UsageError(
            f"--input {given!r}: neither a row (test:0), nor a file that is there, nor columns ({names}, ...) as "
            "COLUMN=VALUE,COLUMN=VALUE. Give one of these"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "input.csv"
        with open(file, "w", encoding="utf-8", newline="") as text:
            csv.writer(text).writerows([[c.strip() for c, _, _ in cells], [value for _, _, value in cells]])
        try:
            x, _ = loaded.task.new_rows(file)
        except DataError as error:
            raise DataError(str(error).replace(str(file), "--input")) from error
    return Question(given, x, {}, 0, notes=_alone(loaded))


def _of_text(loaded: Loaded, text: str, name: str = "") -> Question:
    """A text of characters, or of words divided by spaces; what is beyond one window is left out."""
    task = loaded.task
    if task.source:
        raise UsageError(
            f"--input {text!r:.40}: this run reads a source and an answer, and a text says not which is which. "
            "Ask for a row of a split, as test:0"
        )
    context: int = task.context  # type: ignore[attr-defined]
    if hasattr(task, "encode"):
        ids = task.encode(text)
    else:
        ids = torch.tensor([_word(task.kind.symbols, word) for word in text.split()], dtype=torch.int64)  # type: ignore[attr-defined]
    if not len(ids):
        raise DataError("--input: an empty text has no tokens. Give some")
    cut = (f"the first {context} of {len(ids)} tokens: a window has no more",) if len(ids) > context else ()
    return Question(name or "a text", ids[None, :context], {}, 0, notes=(*cut, *_alone(loaded)))


def _word(symbols: tuple[str, ...], word: str) -> int:
    if word not in symbols:
        raise DataError(f"--input: {word!r} is no word of these languages. Give words such as {' '.join(symbols[:3])}")
    return symbols.index(word)


def _alone(loaded: Loaded) -> tuple[str, ...]:
    """Said of a new input where in training it would have had company."""
    layers = loaded.model.mixtures.values()
    if all(layer.router.claims(training=False).independent for layer in layers):
        return ()
    return ("routed alone: this router lets tokens compete for experts, and a new input competes with no other",)
