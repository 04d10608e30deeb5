"""moe show: one thing explained, a part, a task before any training, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Plugin, example, use
from moecli.errors import UsageError

EPILOG = example(
    "moe show router=hash",
    "moe show task=table task.path=FILE task.target=COLUMN",
    "moe show RUN",
    "moe show RUN --bootstrap 200",
    "moe show RUN --measures",
)


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="GROUP=OPTION, of a task with its KEY=VALUE, or a run folder (several with --measures).",
            autocompletion=completion.what,
        ),
    ],
    plugin: Plugin = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of a classical mixture: standard errors from N refits.")
    ] = 0,
    measures: Annotated[
        bool, typer.Option("--measures", help="All that is measured of what a run's experts do, beside chance.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Of a classical mixture its tables, or the measures.")] = False,
) -> None:
    """Explain a part (formula, claims, needs, options, papers as BibTeX), a task's data, or a run."""
    use(plugin)
    if measures:
        _measures([Path(path) for path in what], json)
        return
    group, equals, option = what[0].partition("=")
    if equals and (bootstrap or json):
        raise UsageError(
            "moe show --bootstrap, --json: they are for a run folder of a classical mixture. Leave them out"
        )
    if len(what) > 1 and group != "task":
        raise UsageError(
            f"moe show {what[0]}: it explains one thing, with its defaults. Leave out {' '.join(what[1:])}"
        )
    if not equals or Path(what[0]).is_dir():  # a run may lie below a folder with = in its name
        _run(Path(what[0]), bootstrap, json)
    elif group == "task":
        _task(what)
    else:
        from moecli.analysis.explain import part_lines

        for line in part_lines(group, option):
            print(line)


def _run(path: Path, bootstrap: int, json: bool) -> None:
    from moecli.cli.train import show_lines, show_run
    from moecli.config import registry
    from moecli.record.folder import Run
    from moecli.report import terminal

    if str(path) in registry():
        raise UsageError(f"moe show {path}: name one of them, as {path}=OPTION. List them with: moe ls {path}")
    run = Run(path)
    if json:
        _json(run, bootstrap)
        return
    show_lines([f" {run.info['status']} · seed {run.info['seed']} · {run.info['command']}", *terminal.header(run.info)])
    if run.info["status"] == "finished":
        show_run(run, _coefficients(run, bootstrap))


def _coefficients(run, bootstrap: int) -> list[str]:  # a record.folder.Run, imported late
    """Of a classical mixture: tables in the data's units; a line says so where the data are no longer there."""
    if "criteria" not in run.summary:
        if bootstrap:
            raise UsageError(
                f"--bootstrap ({run.path}): only a mixture of linear or constant experts has tables. Leave it out"
            )
        return []
    from moecli import run as engine
    from moecli.errors import MoeError
    from moecli.report import coefficients

    first = ["", coefficients.criteria_line(run.summary["criteria"])]
    try:
        found = engine.coefficient_tables(engine.load(run.path), bootstrap)
    except MoeError as error:
        return [*first, f" no coefficient tables: {error}"]
    return [*first, *(coefficients.lines(found) if found else [])]


def _json(run, bootstrap: int) -> None:  # a record.folder.Run, imported late
    from moecli import run as engine
    from moecli.record.folder import to_json
    from moecli.report import coefficients

    found = engine.coefficient_tables(engine.load(run.path), bootstrap) if "criteria" in run.summary else None
    if found is None:
        raise UsageError(
            f"--json ({run.path}): only a mixture of linear or constant experts has tables. Read its summary.json"
        )
    content = {"criteria": run.summary["criteria"], "coefficients": coefficients.records(found), "notes": found.notes}
    print(to_json(content).decode())


def _measures(paths: list[Path], json: bool) -> None:
    from moecli.analysis.measures import above_chance, measures, replicated
    from moecli.cli.train import show_lines
    from moecli.record.folder import Run, to_json
    from moecli.report.measures import lines, records, replicate_lines

    runs = [Run(path) for path in paths]
    frames = [measures(run) for run in runs]
    frame = frames[0] if len(frames) == 1 else replicated(frames)
    if json:
        print(to_json(records(frame)).decode())
    elif len(frames) > 1:
        show_lines(replicate_lines(frame))
    else:
        above = list(above_chance(runs[0]))
        title = " above chance, with 5 % of these calls false:"
        show_lines([*lines(frame), *(["", title, *(f"  {line}" for line in above)] if above else [])])


def _task(words: list[str]) -> None:
    from moecli.analysis.explain import part_lines
    from moecli.config import OPEN, compose, raw_node
    from moecli.report.terminal import visible
    from moecli.run import build_task

    for line in part_lines("task", words[0].partition("=")[2]):
        print(line)
    missing = [key for key, value in raw_node("task", words[0].partition("=")[2]).items() if value == OPEN]
    if missing and len(words) == 1:
        needed = " ".join(f"task.{key}={key.upper()}" for key in missing)
        print(f"\n give its data to see what will be done with it: moe show {words[0]} {needed}")
        return
    print()
    for fact in build_task(compose(words)).facts():
        print(visible(f" {fact.name}: {fact.value}"))
