"""moe compare: runs side by side."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecli.cli import completion
from moecli.cli.common import Json, example
from moecli.errors import ArtifactError, PartialSuccess, UsageError

if TYPE_CHECKING:
    from moecli.report.compare import Comparison

EPILOG = example(
    "moe compare runs",
    "moe compare runs/digits-* --by router,num_experts --markdown",
    "moe compare runs --by router --columns balance,cost --draw compared",
)


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, or folders of runs.", autocompletion=completion.runs),
    ],
    by: Annotated[str, typer.Option(metavar="KEY,..", help="The keys whose values make the rows.")] = "router",
    columns: Annotated[
        str | None,
        typer.Option(metavar="SET,..", help="Sets of columns: quality, balance, specialisation, cost."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ROW", help="The row to test the others against; else the best.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Two runs: what differs, and their numbers side by side.")
    ] = False,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw learning curves, quality over FLOPs, and AIC, BIC, ICL where known."),
    ] = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV, every number in full.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print as a Markdown table.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print as a LaTeX table (booktabs).")] = False,
    html: Annotated[bool, typer.Option("--html", help="Print as a fragment of HTML.")] = False,
) -> None:
    """Compare runs: quality, balance, specialisation and cost, mean and 95 % interval over seeds, and which differ."""
    chosen = [form for form, on in zip(FORMS, (json, csv, markdown, latex, html), strict=True) if on]
    if len(chosen) > 1:
        raise UsageError(f"moe compare: {' and '.join(f'--{form}' for form in chosen)}: one form at a time. Choose one")
    form = chosen[0] if chosen else "terminal"
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"{path}: no such folder. List runs with: moe ls runs")
    if diff:
        _diff(paths, form)
    else:
        _compare(paths, _words(by), baseline, _words(columns or ""), draw, form)


def _words(given: str) -> list[str]:
    return [word.strip() for word in given.split(",") if word.strip()]


def _compare(
    paths: list[Path], by: list[str], baseline: str | None, sets: list[str], draw: Path | None, form: str
) -> None:
    from moecli.report import compare_table
    from moecli.report.compare import compare
    from moecli.report.records import read_runs
    from moecli.report.terminal import visible

    records, broken = read_runs(paths)
    if not records and broken:
        raise PartialSuccess("; ".join(broken[:3]))
    found = compare(records, by, baseline, sets)
    _print(compare_table, found, form)
    if form == "terminal":
        for reason in broken:
            print(visible(f" left out: {reason}"))
    if draw:
        for path in _draw(found, draw):
            if form == "terminal":
                print(visible(f" drawn: {path}"))
    if broken:
        raise PartialSuccess(f"{len(broken)} of {len(records) + len(broken)} runs left out: {broken[0]}")


def _diff(paths: list[Path], form: str) -> None:
    from moecli.record.folder import Run
    from moecli.report import diff as report

    if len(paths) != 2:
        raise UsageError(f"moe compare --diff: {len(paths)} paths. Give two run folders: moe compare --diff RUN RUN")
    _print(report, report.diff(*(Run(path) for path in paths)), form)


def _draw(found: Comparison, folder: Path) -> list[Path]:
    from moecli.plots.compared import draw_compared
    from moecli.plots.pareto import Point, Words
    from moecli.record.folder import Run

    if found.on_different_data:
        raise UsageError(
            "moe compare --draw: the rows are of different data, so nothing is drawn on one scale. Leave it out"
        )
    rows = {row.name: [Run(Path(record.path)) for record in row.finished] for row in found.rows if row.finished}
    points = [Point(row.name, row.flops, row.quality, row.half, row.front) for row in found.rows if row.finished]
    first = found.example
    by, chance = ", ".join(found.by), first.numbers.get("chance")
    words = Words(first.config["task"], by, first.headline, first.unit, first.per, chance)
    return draw_compared(rows, points, words, folder)


def _print(forms: ModuleType, found: Any, form: str) -> None:
    """``forms`` says the same in rows of text, in rows of full numbers, and in dictionaries."""
    from moecli.report import tables

    if form == "json":
        print(tables.as_json(forms.data(found)))
    elif form == "csv":
        print(tables.as_csv(forms.flat(found)))
    else:
        print(getattr(tables, form)(forms.table(found)))


FORMS = ("json", "csv", "markdown", "latex", "html")
