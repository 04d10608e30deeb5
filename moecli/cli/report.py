"""moe report: runs as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import example
from moecli.errors import ArtifactError, PartialSuccess, UsageError

EPILOG = example("moe report runs", "moe report runs/digits-* --by router.k -o report.md")


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, or folders of runs.", autocompletion=completion.runs),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="An .html page with all in it, or .md; else report.html."),
    ] = None,
    by: Annotated[str, typer.Option(metavar="KEY,..", help="The keys whose values make the rows.")] = "router",
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the metrics and loads as TensorBoard's event files instead."),
    ] = None,
) -> None:
    """Write one page of runs: what came out, what every expert does, and how to repeat it.  It needs no network."""
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"{path}: no such folder. List runs with: moe ls runs")
    if tensorboard and out:
        raise UsageError("moe report: -o and --tensorboard are two kinds of reports. Choose one")
    if tensorboard:
        _events(paths, tensorboard)
    else:
        _page(paths, out or Path("report.html"), by)


def _page(paths: list[Path], out: Path, by: str) -> None:
    from moecli.report.page import write

    if out.suffix not in write.WRITERS:
        raise UsageError(f"-o {out}: a report is .html or .md. Choose one of these endings")
    done = write.write(paths, out, by)
    print(f" {out}  {done.runs} run{'' if done.runs == 1 else 's'}, {done.size / 1e3:.0f} kB")
    _refuse_silence(done.runs, done.reasons)


def _events(paths: list[Path], folder: Path) -> None:
    from moecli.report.tensorboard import export

    made, reasons = export(paths, folder)
    print(f" {folder}  {len(made)} run{'' if len(made) == 1 else 's'}; see them with: tensorboard --logdir {folder}")
    _refuse_silence(len(made), reasons)


def _refuse_silence(read: int, reasons: Sequence[str]) -> None:
    """Raises PartialSuccess where runs were left out."""
    if reasons:
        raise PartialSuccess(f"{len(reasons)} of {read + len(reasons)} runs left out: {reasons[0]}")
