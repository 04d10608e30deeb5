"""moe compare: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Json, example
from moecli.errors import ArtifactError, EnvironmentFailure, PartialSuccess, UsageError

EPILOG = example("moe compare runs", "moe compare runs/digits-* --by router.k --markdown")


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, or folders of runs.", autocompletion=completion.runs),
    ],
    by: Annotated[str, typer.Option(help="The key whose values make the rows.")] = "router",
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV, every number in full.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print as a Markdown table.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print as a LaTeX table (booktabs).")] = False,
    criteria: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw AIC, BIC and ICL over the number of experts into this file."),
    ] = None,
) -> None:
    """Compare runs: quality, balance, specialisation and cost, mean and 95 % interval over seeds."""
    from moecli.report import compare as tables
    from moecli.report.terminal import columns

    chosen = [write for wanted, write in zip((json, csv, markdown, latex), WRITERS, strict=True) if wanted]
    if len(chosen) > 1:
        raise UsageError("moe compare: --json, --csv, --markdown and --latex are four forms of one table. Choose one")
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"{path}: no such folder. List runs with: moe ls runs")
    records, broken = tables.read_runs(paths)
    if not records and broken:
        raise PartialSuccess("; ".join(broken[:3]))
    if criteria:
        _draw(paths, criteria)
    comparison = tables.compare(records, by)
    if chosen:
        print(getattr(tables, chosen[0])(comparison))
    else:
        print("\n".join(columns(tables.table(comparison), left=[0])))
        print(
            " mean ± half width of the 95 % interval over the n seeds of a row; balance CV and NMI are means over layers"
        )
        for note in tables.notes(comparison):
            print(f" note: {note}")
    if broken:
        raise PartialSuccess(f"{len(broken)} of {len(records) + len(broken)} runs left out: {broken[0]}")


def _draw(paths: list[Path], target: Path) -> None:
    from moecli.plots.figure import save
    from moecli.plots.selection import over_experts
    from moecli.record.folder import Run, find_runs

    finished = [Run(path) for path in find_runs(paths) if (path / "summary.json").is_file()]
    try:
        save(over_experts(finished), target.with_suffix(""))
    except OSError as error:
        raise EnvironmentFailure(f"--criteria {target}: {error.strerror}. Name a file that can be written") from error


WRITERS = ("as_json", "as_csv", "as_markdown", "as_latex")
