"""moe sweep: many runs from one line of words."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli.common import Json, Plugin, Runs, Words, example, use
from moecli.errors import PartialSuccess, UsageError

EPILOG = example(
    "moe sweep router=top_k,expert_choice,soft_slots seed=0..4",
    "moe sweep 'optimizer.lr=interval(1e-4,1e-2)' seed=0,1 --sampler random --trials 10",
    "moe sweep sweep=routers",
    "moe sweep --status FOLDER",
    "moe sweep --resume FOLDER",
)


def sweep(
    words: Words = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers; else one for each core.")] = None,
    sampler: Annotated[str | None, typer.Option(help="grid (default), list, random, or tpe.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials random and tpe draw; else 20.")] = None,
    budget: Annotated[str | None, typer.Option(help="No run begins after so long: 90s, 30m, 2h.")] = None,
    engine: Annotated[str, typer.Option(help="local, slurm or ray: where the workers are.")] = "local",
    twin: Annotated[bool, typer.Option("--twin", help="Train the dense twin of every trial too.")] = False,
    resume: Annotated[Path | None, typer.Option(help="A sweep's folder to go on with.")] = None,
    status: Annotated[Path | None, typer.Option(help="A sweep's folder to look at, from any terminal.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also more than 10,000 runs.")] = False,
    name: Annotated[str | None, typer.Option(help="Folder of the sweep below the root; else the task.")] = None,
    runs: Runs = None,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    json: Json = False,
) -> None:
    """Train every combination of comma-separated values, or draws from intervals, on several workers.

    Seeds are replicates: a trial's value is the mean of the validation metric over its seeds.
    """
    use(plugin)
    from moecli.sweep import start

    order = start.Order(
        sampler, trials, jobs, start.seconds(budget) if budget else None, engine, twin, yes, name, runs,
        tuple(plugin or ()), shlex.join(["moe", *sys.argv[1:]]), quiet or json,
    )  # fmt: skip
    folder = resume or status
    if folder is not None and (words or sampler or trials or twin or name or (resume and status)):
        raise UsageError(
            f"moe sweep --{'resume' if resume else 'status'}: what it sweeps stands in its plan. Leave out the rest"
        )
    if status is not None:
        _tell(start.opened(status), json, quiet=False)
    elif resume is not None:
        _work(start.opened(resume), order, quiet, json)
    else:
        made, called = start.make(words or [], order)
        if not order.quiet or dry_run:
            _announce(made, dry_run, json)
        if not dry_run:
            _work(start.begin(made, called, order), order, quiet, json)


def _announce(made, dry_run: bool, json: bool) -> None:  # a moecli.sweep.plan.Plan, imported late
    from dataclasses import asdict

    from moecli.record.folder import to_json
    from moecli.sweep import view

    if json:
        print(to_json({"seeds": made.seeds, "trials": [asdict(point) for point in made.points]}).decode())
        return
    listed = [f" {point.number:04d}  {point.name}" for point in made.points if dry_run and not point.refused]
    able = sum(not point.refused for point in made.points) if made.sampler != "tpe" else made.trials
    seeds = f"{len(made.seeds)} seed{'s' if len(made.seeds) > 1 else ''}"
    runs = f" {able * len(made.seeds)} runs: {able} trials x {seeds}, judged by {made.metric or 'each task'}"
    _print([*listed, *view.refusals(made.points), runs])


def _work(sweep, order, quiet: bool, json: bool) -> None:
    from moecli.sweep import start

    if not order.quiet:
        _print([f" {sweep.path}"])
    job = start.work(sweep, order)
    if job is not None and not order.quiet:
        _print([f" queued as {job} · moe sweep --status {sweep.path}"])
        return
    _tell(sweep, json, quiet)
    counts = sweep.counts()
    if counts["failed"]:
        raise PartialSuccess(
            f"{sweep.path}: {counts['failed']} of {counts['total']} runs failed. The reasons: moe sweep --status {sweep.path}"
        )


def _tell(sweep, json: bool, quiet: bool) -> None:
    from moecli.record.folder import to_json
    from moecli.sweep import view

    if json:
        print(to_json(view.as_dict(sweep)).decode(), end="")
    elif not quiet:
        _print(view.ending(sweep))


def _print(lines: list[str]) -> None:
    from moecli.cli.train import show_lines

    show_lines(lines)
