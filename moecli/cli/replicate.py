"""moe replicate: the literature's claims, each run and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moecli.cli.common import Json, Runs, example
from moecli.errors import MoeError, PartialSuccess, UsageError

EPILOG = example("moe replicate", "moe replicate student_outliers", "moe replicate --all --scale smoke --json")


def replicate(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Claims; none lists them all.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every claim, one after the other.")] = False,
    scale: Annotated[str, typer.Option(help="full, or smoke: seconds, to see that it runs; no verdict.")] = "full",
    write: Annotated[Path | None, typer.Option(help="A JSON file to put the results into.")] = None,
    runs: Runs = None,
    json: Json = False,
) -> None:
    """Run what a paper claims and print its own quantity beside the paper's, with a verdict.

    A claim that does not replicate is a result, and no failure of the command.
    """
    from moecli.replicate import bench

    if names and all:
        raise UsageError("moe replicate --all: claims are named beside it. Leave out --all, or the names")
    if not names and not all:
        _list(json)
        return
    found: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for name in dict.fromkeys(names or bench.claims()):
        try:
            found[name] = bench.judge(name, scale, runs)
        except MoeError as error:
            if not all:
                raise
            failed.append(f"{name}: {error}")
            continue
        if write is not None:
            bench.write(write, {name: found[name]})
        if not json:
            _print(_lines(name, found[name]))
    if json:
        _print([_as_json(found)])
    if failed:
        raise PartialSuccess(
            f"{len(failed)} of {len(failed) + len(found)} claims did not run to their end: {failed[0]}"
        )


def _list(json: bool) -> None:
    from moecli.replicate import bench

    told = {name: {k: bench.said(name, k) for k in ("claim", "measured", "cost")} for name in bench.claims()}
    width = max(map(len, told))
    lines = [f" {name:{width}s}  {entry['claim']}" for name, entry in told.items()]
    _print([_as_json(told)] if json else [*lines, "", " next   moe replicate NAME   or   moe show experiment=NAME"])


def _lines(name: str, result: dict[str, Any]) -> list[str]:
    from moecli.replicate.bench import shown
    from moecli.report.terminal import columns

    rows = [["quantity", "here", "paper"]]
    rows += [[q["name"], shown(q["here"]), shown(q["paper"])] for q in result["quantities"]]
    return [
        f" {name} · {result['claim']}",
        *columns(rows, left=[0]),
        f" {result['verdict']}: the rule is that {result['rule']}",
        f" {len(result['runs'])} runs in {Path(result['runs'][0]).parent}, {result['seconds']:.0f} s",
        "",
    ]


def _as_json(value: Any) -> str:
    from moecli.record.folder import to_json

    return to_json(value).decode().rstrip()


def _print(lines: list[str]) -> None:
    from moecli.cli.train import show_lines

    for line in lines:
        print(line) if "\n" in line else show_lines([line])
