"""Where a user's texts come from: a file, a folder, the rows of a table, a data set of the hub -> documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from moecli.errors import DataError, EnvironmentFailure
from moecli.tasks.documents import Document
from moecli.tasks.files import user_path
from moecli.tasks.pieces import ended, text_pieces
from moecli.tasks.records import HUB, MAX_LABELS, Row, has_rows, hub_rows, rows, texts


def read_documents(path: str, column: str, domain_column: str | None, skipped: Counter[str]) -> Iterator[Document]:
    """Each text of ``path``; why others were passed over is counted in ``skipped``.

    Raises DataError where the data is none, EnvironmentFailure where it cannot be reached.
    """
    columns = [column, *([domain_column] if domain_column is not None else [])]
    if path.startswith(HUB):
        return _of_rows(hub_rows(path, columns), column, domain_column, "hub", skipped)
    root = user_path(path)
    if root.is_dir():
        return _of_folder(root, column, domain_column, skipped)
    if has_rows(root):
        return _of_rows(rows(root, columns), column, domain_column, kind_of(root), skipped)
    if domain_column is not None:
        fix = "Leave it out, or give jsonl or parquet"
        raise DataError(f"no columns ({root}): task.domain_column={domain_column} names one of a text. {fix}")
    return iter([Document(kind_of(root), root.name, _not_blank(text_pieces(root), root))])


def kind_of(file: Path) -> str:
    """The suffix that says what it holds."""
    return Path(file.name.removesuffix(".gz")).suffix.removeprefix(".") or "text"


def _not_blank(pieces: Iterable[str], file: Path) -> Iterator[str]:
    blank = True
    for piece in pieces:
        blank = blank and not piece.strip()
        yield piece
    if blank:
        raise DataError(f"no text ({file}): the file is empty. Give a file with text in it")


def _of_rows(
    found: Iterable[Row], column: str, domain_column: str | None, domain: str, skipped: Counter[str]
) -> Iterator[Document]:
    domains = set()
    for place, text, own in texts(found, column, domain_column, skipped):
        domains.add(own)
        if len(domains) > MAX_LABELS:
            why = f"it has more than {MAX_LABELS} different values"
            raise DataError(f"no domains ({place}, column {domain_column!r}): {why}. Name a column of fewer")
        yield Document(domain if own is None else own, place, (ended(text),))


def _of_folder(root: Path, column: str, domain_column: str | None, skipped: Counter[str]) -> Iterator[Document]:
    """The first level names the domains, where there are folders; else the files' suffixes."""
    files = [(file.relative_to(root), file) for file in sorted(root.rglob("*")) if file.is_file()]
    visible = [(name, file) for name, file in files if not any(part.startswith(".") for part in name.parts)]
    if len(visible) < len(files):
        skipped["hidden"] = len(files) - len(visible)
    flat = all(len(name.parts) == 1 for name, _ in visible)
    columns = [column, *([domain_column] if domain_column is not None else [])]
    for name, file in visible:
        domain = _domain(name, root, flat)
        if has_rows(file):
            yield from _of_rows(rows(file, columns), column, domain_column, domain, skipped)
        else:
            pieces = _readable(file, skipped)
            if pieces is not None:
                yield Document(domain, name.as_posix(), pieces)


def _domain(name: Path, root: Path, flat: bool) -> str:
    if flat:
        return Path(name.name.removesuffix(".gz")).suffix.removeprefix(".") or "no suffix"
    return name.parts[0] if len(name.parts) > 1 else root.resolve().name


def _readable(file: Path, skipped: Counter[str]) -> Iterable[str] | None:
    """A text that was read to its end once, so that half a document is never taken; None where it is none."""
    kept: list[str] = []
    blank, length = True, 0
    try:
        for piece in text_pieces(file):
            blank, length = blank and not piece.strip(), length + 1
            kept = [*kept, piece][:2]  # a short text and the end of its last line
    except (OSError, EnvironmentFailure):
        skipped["unreadable"] += 1
        return None
    except DataError:
        if file.suffix == ".gz":
            raise
        skipped["not UTF-8 text"] += 1
        return None
    if blank:
        skipped["empty"] += 1
        return None
    return kept if length <= len(kept) else text_pieces(file)
