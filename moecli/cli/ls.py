"""moe ls: what there is to choose from, the runs, and what combines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Plugin, Runs, example, use

EPILOG = example("moe ls", "moe ls router", "moe ls runs", "moe ls --matrix")


def ls(
    group: Annotated[
        str | None,
        typer.Argument(metavar="GROUP", help="router, task, ..., or runs.", autocompletion=completion.groups),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Which router goes with which gate, model, task and term.")
    ] = False,
    runs: Runs = None,
    plugin: Plugin = None,
) -> None:
    """List what exists: groups, the options of one group, runs; with --matrix what combines, and why not."""
    use(plugin)
    if matrix:
        from moecli.analysis.matrix import lines

        _print(lines())
    elif group == "runs":
        _runs(runs)
    else:
        _groups(group)


def _groups(group: str | None) -> None:
    from moecli.config import describe, nearest, registry
    from moecli.errors import UsageError

    groups = registry()
    if group is not None and group not in groups:
        raise UsageError(
            f"moe ls {group}: no such group.{nearest(group, [*groups, 'runs'])} Choose from: {', '.join(groups)}, runs"
        )
    for name in [group] if group else groups:
        if not group:
            print(f"\n{name}")
        for option in groups[name]:
            print(f"  {option:14s} {describe(name, option)}")


def _runs(root: Path | None) -> None:
    from moecli.errors import PartialSuccess
    from moecli.record.folder import runs_root
    from moecli.report.records import read_runs
    from moecli.report.terminal import columns, visible

    records, broken = read_runs([runs_root(root)])
    rows = [["run", "status", "task", "router", "seed", "quality"]]
    for r in records:
        shown = "" if r.quality is None else f"{r.headline} {r.quality:.3f}"
        router = "dense twin" if r.twin else r.config["router"]
        rows.append([r.path, r.status, r.config["task"], router, str(r.seed), shown])
    if records:
        _print(columns(rows, left=range(6)))
    elif not broken:
        print(f"no runs in {runs_root(root)}. Make one: moe train")
    for reason in broken:
        print(visible(f"left out: {reason}"))
    if broken:
        raise PartialSuccess(f"{len(broken)} of {len(records) + len(broken)} runs left out: {broken[0]}")


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)
