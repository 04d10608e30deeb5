"""Texts in the rows of a file or of a data set of the hub: one column is the text, another may name its domain."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecli.errors import DataError, EnvironmentFailure
from moecli.tasks.files import decode, opened, shown, user_path

AT_ONCE = 1000  # rows of parquet or of the hub
MAX_LABELS = 200  # different values of a column that is a label
HUB = "hub:"
Row = tuple[str, Mapping[str, Any]]  # where it stands, and its cells


def rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a jsonl file, which may be ``.gz``, or of a parquet file, of which only ``columns`` are read.

    Raises DataError where the file is none, or has not these columns.
    """
    return parquet_rows(file, columns) if file.suffix.lower() == ".parquet" else json_rows(file, columns)


def has_rows(file: Path) -> bool:
    return file.name.lower().endswith((".jsonl", ".jsonl.gz", ".parquet"))


def json_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    from moecli.tasks.frames import json_object

    place = 0
    with opened(file) as stream:
        for number, raw in enumerate(stream, start=1):
            line = decode(raw, file, (place, number - 1))
            place += len(raw)
            if line.strip():
                record = json_object(line, number, file)
                require(columns, record, f"{file}, line {number}")
                yield f"{file}, line {number}", record


def parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        fix = "pip install 'moecli[parquet]'"
        raise EnvironmentFailure(f"cannot read parquet ({file}): pyarrow is not installed. {fix}") from error
    number = 0
    with opened(file) as stream:
        try:
            table = parquet.ParquetFile(stream)
            require(columns, table.schema_arrow.names, str(file))
            for batch in table.iter_batches(AT_ONCE, columns=list(columns)):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", record
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"no parquet file ({file}): {shown(error)}. Write it anew") from error


def hub_rows(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """``hub:OWNER/NAME`` or ``hub:OWNER/NAME:CONFIG``, or the folder of a data set, by the package ``datasets``.

    Of a data set with splits its training split is read.  Raises DataError where there is none of that name or it
    has not these columns, EnvironmentFailure where it can neither be reached nor is in the local cache.
    """
    found = data_set(path)
    found = found.get("train", next(iter(found.values()))) if isinstance(found, dict) else found
    require(columns, found.column_names, path)
    number = 0
    for batch in found.select_columns(list(columns)).iter(AT_ONCE):
        for cells in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield f"{path}, row {number}", dict(zip(columns, cells, strict=True))


def data_set(path: str) -> Any:
    """A table of ``datasets``, or tables by the names of their splits."""
    try:
        import datasets
    except ImportError as error:
        fix = "pip install 'moecli[hub]'"
        raise EnvironmentFailure(f"cannot read {path}: the package datasets is not installed. {fix}") from error
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is wrong is said in one line below
    datasets.disable_progress_bars()
    try:
        return _loaded(datasets, path.removeprefix(HUB))
    except ConnectionError as error:
        fix = "Connect, fetch it on a machine with a network, or give a local folder: task.path=hub:FOLDER"
        raise EnvironmentFailure(f"cannot reach {path}: {shown(error)}. {fix}") from error
    except Exception as error:  # whatever a builder raises
        fix = "Check the name and its configuration: task.path=hub:OWNER/NAME:CONFIG"
        raise DataError(f"no data set ({path}): {shown(error)}. {fix}") from error


def _loaded(datasets: Any, name: str) -> Any:
    folder = user_path(name)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(folder))
    owner, _, config = (str(folder), "", "") if folder.exists() else name.partition(":")
    return datasets.load_dataset(owner, config or None)


def texts(
    found: Iterable[Row], column: str, domain_column: str | None, skipped: Counter[str]
) -> Iterator[tuple[str, str, str | None]]:
    """Where each text stands, itself, and its domain; how many rows have none is counted in ``skipped``."""
    for place, record in found:
        text = record[column]
        if text is not None and not isinstance(text, str):
            why = f"it holds {shown(text)}, no text"
            raise DataError(f"bad column {shown(column)} ({place}): {why}. Name a column of text: task.column=NAME")
        if not text or text.isspace():
            skipped["rows without text"] += 1
        else:
            yield place, text, None if domain_column is None else str(record[domain_column])


def require(columns: Sequence[str], there: Iterable[str], place: str) -> None:
    """Raises DataError that names the columns there are."""
    names = [str(name) for name in there]
    for column in columns:
        if column not in names:
            has = ", ".join(shown(name) for name in names[:30]) or "none"
            raise DataError(f"no column {shown(column)} ({place}): there are {has}. Name one of these")
