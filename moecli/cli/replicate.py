"""moe replicate: the literature's claims, each run and judged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moecli.cli.common import Json, Runs, example
from moecli.errors import MoeError, PartialSuccess, UsageError

EPILOG = example("moe replicate", "moe replicate student_outliers", "moe replicate tinyshakespeare task.path=FILE")


def replicate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME KEY=VALUE", help="Claims, and what to change in all their runs; none lists all."),
    ] = None,
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

    changes = [word for word in words or [] if "=" in word]
    names = [word for word in words or [] if "=" not in word]
    if words and all:
        raise UsageError("moe replicate --all: claims or keys are named beside it. Leave out --all, or the others")
    if changes and not names:
        raise UsageError(f"moe replicate {changes[0]}: no claim is named. Name it first: moe replicate NAME KEY=VALUE")
    if not names and not all:
        _list(json)
        return
    found: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for name in dict.fromkeys(names or _whole()):
        try:
            found[name] = bench.judge(name, scale, runs, changes)
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


def _whole() -> list[str]:
    """The claims that need nothing of the user; the others are told of."""
    from moecli.replicate import bench

    open_keys = {name: bench.needed(name) for name in bench.claims()}
    for name, keys in open_keys.items():
        if keys:
            needs = " ".join(f"{key}=..." for key in keys)
            print(f"left out: {name}, which needs data of yours (moe replicate {name} {needs})", file=sys.stderr)
    return [name for name, keys in open_keys.items() if not keys]


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
