"""Tables of users: a file of csv, tsv, parquet or jsonl -> a frame, and what its cells hold.

A frame's columns are float64, or text (object) with None where a cell is missing.  Whatever fits
nowhere is a DataError of one line that names the file, column and row.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moecli.errors import DataError, EnvironmentFailure
from moecli.tasks.files import decode, read_bytes, shown, user_path

MISSING = frozenset({"", "NA", "NaN", "nan"})  # not "null" or "None": those are names that people give
MOSTLY = 0.8  # a column with so large a share of numbers was meant to be numeric
NUMBER_WITH_COMMA = re.compile(r"\s*[+-]?[\d.]*\d,\d+(,\d+)*(\.\d+)?\s*")


def read_table(path: str | Path) -> pd.DataFrame:
    """The file as columns of float64 or of text, None where a cell is missing; rows counted from 1.

    Numbers of csv, tsv and jsonl stay the text that they are until a column is fitted.  Raises DataError
    for whatever is wrong with the file, EnvironmentFailure where parquet lacks its library.
    """
    file = user_path(path)
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"unknown format ({file}): its suffix is none of {', '.join(READERS)}. Convert or rename it")
    frame = reader(file)
    if not len(frame):
        raise DataError(f"no rows ({file}): there is nothing below the header. Add rows")
    _refuse_bad_names(list(frame.columns), file)
    frame = normal(frame)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame


def located(path: str) -> pd.DataFrame:
    """A table whose index (file, row) lets every message say where a cell lies."""
    frame = read_table(path)
    frame.index = pd.MultiIndex.from_product([[str(user_path(path))], frame.index])
    return frame


def read_delimited(file: Path, delimiter: str) -> pd.DataFrame:
    """Each row must have the header's number of fields: pandas would shift the columns silently."""
    text = decode(read_bytes(file), file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                why = f"{len(row)} fields where the header has {len(rows[0])}"
                fix = "mend the line, or quote a text that holds the separator"
                raise DataError(f"ragged row ({file}, line {reader.line_num}): {why}. {fix}")
            if row:  # not a blank line
                rows.append(row)
            if len(rows) == 1:
                _refuse_other_delimiter(row, delimiter, file)
    except csv.Error as error:
        fix = "mend the quotes of this line or of the lines before"
        raise DataError(f"bad line ({file}, line {reader.line_num}): {error}. {fix}") from error
    if not rows:
        raise DataError(f"empty file ({file}): it has no header. Give a header and rows")
    return pd.DataFrame(rows[1:], columns=pd.Index(rows[0], dtype=object), dtype=object)


def read_csv(file: Path) -> pd.DataFrame:
    return read_delimited(file, ",")


def read_tsv(file: Path) -> pd.DataFrame:
    return read_delimited(file, "\t")


def read_jsonl(file: Path) -> pd.DataFrame:
    """One JSON object a line; a key that a line lacks is a missing value."""
    lines = enumerate(decode(read_bytes(file), file).split("\n"), start=1)
    records = [json_object(line, number, file) for number, line in lines if line.strip()]
    names = list(dict.fromkeys(name for record in records for name in record))
    if not names:
        raise DataError(f"empty file ({file}): no line holds a JSON object with keys. Give one a row")
    cells = [[record.get(name) for name in names] for record in records]
    return pd.DataFrame(cells, columns=pd.Index(names, dtype=object), dtype=object)


def json_object(line: str, number: int, file: Path) -> dict[str, Any]:
    """One line of a jsonl file, counted from 1.  DataError where it is no object."""
    try:
        record = json.loads(line, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise DataError(f"bad line ({file}, line {number}): {error}. Write one JSON object a line") from error
    if not isinstance(record, dict):
        what = type(record).__name__
        raise DataError(f"bad line ({file}, line {number}): a JSON {what}, no object. Write one JSON object a line")
    return record


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key occurs twice")
    return record


def read_parquet(file: Path) -> pd.DataFrame:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        fix = "pip install 'moecli[parquet]'"
        raise EnvironmentFailure(f"cannot read parquet ({file}): pyarrow is not installed. {fix}") from error
    raw = read_bytes(file)
    try:
        table = parquet.read_table(io.BytesIO(raw))
        _refuse_bad_names(table.column_names, file)
        return table.to_pandas()
    except (arrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"no parquet file ({file}): {one_line(error)}. Write it anew") from error


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
}


def normal(frame: pd.DataFrame) -> pd.DataFrame:
    """Numeric columns as float64, all others as text or None; normal twice is normal."""
    return pd.DataFrame({name: _normal_cells(frame[name]) for name in frame.columns}, index=frame.index)


def _normal_cells(cells: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_bool_dtype(cells.dtype):
        return pd.Series(cells.to_numpy("float64", na_value=np.nan), index=cells.index)
    return pd.Series([_text_or_none(cell) for cell in cells], index=cells.index, dtype=object)


def _text_or_none(cell: Any) -> str | None:
    if not isinstance(cell, str):
        if pd.api.types.is_scalar(cell) and pd.isna(cell):
            return None
        cell = as_text(cell)
    return None if cell.strip() in MISSING else cell


def as_text(cell: object) -> str:
    """1.0 -> "1", as a table would have it."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of nothing but numbers as float64, so that they are read once."""
    values = {name: numbers(frame[name]) for name in frame.columns}
    return frame.assign(**{name: value for name, value in values.items() if not np.isnan(value).any()})


def texts(cells: pd.Series) -> list[str]:
    return [as_text(cell) for cell in cells]


def numbers(cells: pd.Series) -> np.ndarray:
    """(n,) float64, NaN where a cell is no number."""
    if cells.dtype == np.float64:
        return cells.to_numpy()
    return np.array([_number(cell) for cell in cells], dtype=np.float64)


def _number(cell: str | None) -> float:
    try:
        return float("nan") if cell is None or "_" in cell else float(cell)  # Python reads 1_000 as a number
    except ValueError:
        return float("nan")


def finite_numbers(cells: pd.Series) -> np.ndarray:
    values = numbers(cells)
    refuse_where(np.isnan(values), cells, "text among numbers", "is no number. Mend it")
    refuse_where(
        np.isinf(values), cells, "infinite value", f"is no finite number. Mend it or use {without(cells.name)}"
    )
    return values


def is_numeric(cells: pd.Series) -> bool:
    """Raises DataError for a column that is meant to be numeric and is not."""
    is_text = np.isnan(numbers(cells))
    if not is_text.any():
        return True
    refuse_commas(cells)
    if is_text.mean() <= 1 - MOSTLY:
        why = f"is no number where {1 - is_text.mean():.0%} of the column are. Mend it or use {without(cells.name)}"
        refuse_where(is_text, cells, "text among numbers", why)
    return False


# Refusals, each one line: what (where): why. what to do


def refuse_commas(cells: pd.Series) -> None:
    is_text = np.isnan(numbers(cells))
    if all(NUMBER_WITH_COMMA.fullmatch(cell) for cell in cells[is_text]):
        why = "has a comma for its decimals or thousands. Write 1.5 and 1234"
        refuse_where(is_text, cells, "number with a comma", why)


def refuse_where(bad: np.ndarray, cells: pd.Series, what: str, why: str) -> None:
    """Nothing where no cell is bad, else a DataError that names the first and counts them."""
    if bad.any():
        first = int(bad.argmax())
        count = f" ({bad.sum()} such cells)" if bad.sum() > 1 else ""
        raise DataError(f"{what}{count} ({place_of(cells, first)}): {shown(cells.iloc[first])} {why}")


def refuse_missing(frame: pd.DataFrame, fix: str) -> None:
    is_missing = frame.isna()
    counts = {name: int(count) for name, count in is_missing.sum().items() if count}
    if counts:
        first = next(iter(counts))
        place = place_of(frame[first], int(is_missing[first].to_numpy().argmax()))
        found = listed([f"{count} in {shown(name)}" for name, count in counts.items()])
        raise DataError(f"missing values ({place}): {found}. {fix}")


def _refuse_bad_names(names: Sequence[Hashable], file: Path) -> None:
    for place, name in enumerate(names, start=1):
        if not str(name).strip():
            raise DataError(f"column without a name ({file}, column {place}): it cannot be named. Give it a header")
        if name in names[: place - 1]:
            raise DataError(f"duplicate column ({file}, column {place}): {shown(name)} occurs twice. Rename one")


def _refuse_other_delimiter(header: list[str], delimiter: str, file: Path) -> None:
    found = [other for other in ";\t,|" if other != delimiter and other in header[0]] if len(header) == 1 else []
    if found:
        fix = "rename it to .tsv" if found[0] == "\t" else f"save it with {delimiter!r} between the fields"
        raise DataError(f"one column only ({file}): the header seems to be divided by {found[0]!r}. {fix}")


def require_columns(frame: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        if name not in frame.columns:
            columns = [str(column) for column in frame.columns]
            close = difflib.get_close_matches(name, columns, 1, 0.5)
            fix = f"did you mean {shown(close[0])}?" if close else f"use one of {listed(columns)}"
            raise DataError(f"no such column ({file_of(frame)}): {shown(name)} is not in its header. {fix}")


def file_of(frame: pd.DataFrame) -> str:
    return str(frame.index[0][0]) if isinstance(frame.index, pd.MultiIndex) else "the new rows"


def place_of(cells: pd.Series, position: int) -> str:
    """Where a cell lies: file, column, row counted from 1 below the header."""
    label = cells.index[position]
    file, row = label if isinstance(label, tuple) else ("the new rows", position + 1)
    return f"{file}, column {shown(cells.name)}, row {row}"


def without(name: object) -> str:
    return f"task.drop=[{one_line(name)}]"


def one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(one_line(name) for name in names[:30]) + more
