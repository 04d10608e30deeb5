"""A report into a file, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moecli.errors import EnvironmentFailure, UsageError
from moecli.record.folder import write_whole
from moecli.report.page import html, markdown
from moecli.report.page.gather import Content, gather

WRITERS: dict[str, Callable[[Content], str]] = {".html": html.page, ".md": markdown.page}


@dataclass(frozen=True)
class Written:
    """How many runs a report has, its bytes, and why each other run is not in it."""

    runs: int
    size: int
    reasons: list[str]


def write(paths: Iterable[Path], out: Path, by: str = "router") -> Written:
    """Gather and write: a reader of ``out`` sees the old report or the new one, never a part.

    Raises UsageError where there is no run at all, EnvironmentFailure where ``out`` cannot be written.
    """
    content = gather(paths, by)
    runs = sum(len(study.runs) for study in content.studies)
    reasons = [f"{run.text}: {why.text}" for run, why in content.broken.rows] if content.broken else []
    if not runs and not reasons:
        raise UsageError("moe report: there is no run in these folders. List runs with: moe ls runs")
    data = WRITERS[out.suffix](content).encode(errors="backslashreplace")
    try:
        write_whole(out, data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EnvironmentFailure(f"-o {out}: {error.strerror}. Name a file in a folder that exists") from error
    return Written(runs, len(data), reasons)
