"""Parallel texts as users have them: line-aligned files, a table in TSV, or a data set of the hub -> pairs of texts.

What is returned is ``{part: pairs}``: ``train``, ``valid`` and ``test`` where the data has parts of its own,
else ``train`` alone; the task splits what has no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moecli.errors import DataError
from moecli.tasks.files import decode, opened
from moecli.tasks.records import data_set, require


class Pair(NamedTuple):
    """A text and its translation into ``language``."""

    source: str
    target: str
    language: str


Parts = dict[str, list[Pair]]
NAMES = {"train": r"train", "valid": r"(val|valid|validation|dev)", "test": r"test"}  # how a part's file begins
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]+)*")  # en, ces, zh_Hans, pt-BR


@dataclass(frozen=True)
class Aligned:
    """The files of one text, of the same lines in each language: ``train`` of ``train.en`` and ``train.de.gz``."""

    stem: str
    files: dict[str, Path]  # by language


def read_table(file: Path, source: str, targets: Sequence[str] | None) -> Parts:
    """A TSV, plain or gzipped: its header names the languages, a line holds one text in each.  Raises DataError.

    Fields end at a tab and hold no quotes that mean anything, as such tables are exchanged.
    """
    header, *rows = [line.split("\t") for line in read_lines(file)]
    require([source, *(targets or ())], header, str(file))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            why = f"{len(row)} fields, and the header has {len(header)}"
            raise DataError(f"bad line ({file}, line {number}): {why}. Divide fields by one tab each")
    columns = dict(zip(header, zip(*rows, strict=True) if rows else ((),) * len(header), strict=True))
    others = targets or [name for name in header if name != source]
    return {"train": _of_columns(columns, source, others)}


def read_hub(path: str, source: str, targets: Sequence[str] | None) -> Parts:
    """``hub:OWNER/NAME:CONFIG``, or ``hub:FOLDER``: columns called as languages, or a column ``translation`` of both.

    Raises DataError where there are none, EnvironmentFailure where it cannot be reached.
    """
    found = data_set(path)
    splits = found if isinstance(found, dict) else {"train": found}
    parts = {part: rows for part, form in NAMES.items() for name, rows in splits.items() if re.fullmatch(form, name)}
    return {part: _of_rows(rows, path, source, targets) for part, rows in (parts or {"train": found}).items()}


def _of_rows(rows: Any, path: str, source: str, targets: Sequence[str] | None) -> list[Pair]:
    """Of a table of ``datasets``."""
    cells = rows["translation"][:] if "translation" in rows.column_names else []
    there = list(cells[0]) if cells else [name for name in rows.column_names if name != "translation"]
    require([source, *(targets or ())], there, path)
    others = targets or [name for name in there if name != source]
    columns = {name: [cell[name] for cell in cells] if cells else rows[name] for name in (source, *others)}
    return _of_columns(columns, source, others)


def _of_columns(columns: Mapping[str, Iterable[str | None]], source: str, targets: Sequence[str]) -> list[Pair]:
    """Line by line, without white space around texts; nothing where there is none."""
    texts = {name: [(text or "").strip() for text in column] for name, column in columns.items()}
    return [Pair(given, said, name) for name in targets for given, said in zip(texts[source], texts[name], strict=True)]


def read_aligned(root: Path, source: str, targets: Sequence[str] | None) -> Parts:
    """The files of a folder, or those that begin with a prefix: ``root.en`` and ``root.de``.  Raises DataError."""
    texts = _parts_of(root, _aligned(root), source) if root.is_dir() else {"train": _prefixed(root)}
    others = targets or _others(root, texts["train"], source)
    return {part: _read(root, text, source, others) for part, text in texts.items()}


def _aligned(folder: Path, prefix: str = "") -> list[Aligned]:
    """Every text of a folder, or that of a prefix, by stem."""
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")):
        stem, _, language = file.name.removesuffix(".gz").rpartition(".")
        if stem and LANGUAGE.fullmatch(language) and prefix in ("", stem):
            found.setdefault(stem, {}).setdefault(language, file)  # of a.en and a.en.gz the plain one
    return [Aligned(stem, files) for stem, files in found.items()]


def _prefixed(root: Path) -> Aligned:
    texts = _aligned(root.parent, root.name) if root.parent.is_dir() else []
    if not texts:
        what = "a file whose languages lie beside it" if root.is_file() else "no folder, and no file begins so"
        fix = "Name a folder, FOLDER/PREFIX of PREFIX.en and PREFIX.de, or a .tsv"
        raise DataError(f"no parallel texts ({root}): it is {what}. {fix}")
    return texts[0]


def _parts_of(root: Path, texts: list[Aligned], source: str) -> dict[str, Aligned]:
    """Which text trains, validates and tests.  Raises DataError where that is not plain."""
    texts = [text for text in texts if source in text.files] or texts  # a README.md is in no language
    found = {part: [t for t in texts if re.match(rf"{name}(?![a-z])", t.stem)] for part, name in NAMES.items()}
    if not found["train"] and len(texts) == 1:
        return {"train": texts[0]}
    if not found["train"]:
        has = f"it has {', '.join(text.stem for text in texts[:6])}" if texts else "it has no files such as train.en"
        raise DataError(f"no training text ({root}): {has}. Call it train.en, or name one: {root}/PREFIX")
    several = next((texts for texts in found.values() if len(texts) > 1), None)
    if several:
        names = ", ".join(text.stem for text in several)
        raise DataError(f"several texts for one part ({root}): {names}. Leave one of them there")
    return {part: texts[0] for part, texts in found.items() if texts}


def _others(root: Path, text: Aligned, source: str) -> list[str]:
    others = [language for language in text.files if language != source]
    if not others:
        why = f"{text.stem} has only {source}"
        raise DataError(f"nothing to translate into ({root}): {why}. Put the translations beside it")
    return others


def _read(root: Path, text: Aligned, source: str, targets: Sequence[str]) -> list[Pair]:
    for language in (source, *targets):
        if language not in text.files:
            has = ", ".join(sorted(text.files))
            raise DataError(f"no {text.stem}.{language} ({root}): {text.stem} is there in {has}. Name one of these")
    lines = {language: read_lines(text.files[language]) for language in (source, *targets)}
    for language in targets:
        given, said = len(lines[source]), len(lines[language])
        if given != said:
            why = f"{text.files[source].name} has {given} lines and {text.files[language].name} {said}"
            raise DataError(f"lines do not match ({root}): {why}. Line n of one must translate line n of the other")
    return _of_columns(lines, source, targets)


def read_lines(file: Path) -> list[str]:
    """The lines of a text, plain or gzipped.  Only a newline ends one, as line-aligned files count.  Raises DataError."""
    with opened(file) as stream:
        text = decode(stream.read(), file)
    if not text.strip():
        raise DataError(f"no text ({file}): the file is empty. Give a file with text in it")
    return text.removesuffix("\n").split("\n")
