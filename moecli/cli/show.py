"""moe show: one thing explained, a part, a task before any training, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Plugin, example, use
from moecli.errors import UsageError

EPILOG = example("moe show router=hash", "moe show task=table task.path=FILE task.target=COLUMN", "moe show RUN")


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="GROUP=OPTION, of a task with its KEY=VALUE, or a run folder.",
            autocompletion=completion.what,
        ),
    ],
    plugin: Plugin = None,
) -> None:
    """Explain a part (formula, claims, needs, options, papers as BibTeX), a task's data, or a run."""
    use(plugin)
    group, equals, option = what[0].partition("=")
    if len(what) > 1 and group != "task":
        raise UsageError(
            f"moe show {what[0]}: it explains one thing, with its defaults. Leave out {' '.join(what[1:])}"
        )
    if not equals or Path(what[0]).is_dir():  # a run may lie below a folder with = in its name
        _run(Path(what[0]))
    elif group == "task":
        _task(what)
    else:
        from moecli.analysis.explain import part_lines

        for line in part_lines(group, option):
            print(line)


def _run(path: Path) -> None:
    from moecli.cli.train import show_lines, show_run
    from moecli.config import registry
    from moecli.record.folder import Run
    from moecli.report import terminal

    if str(path) in registry():
        raise UsageError(f"moe show {path}: name one of them, as {path}=OPTION. List them with: moe ls {path}")
    run = Run(path)
    show_lines([f" {run.info['status']} · seed {run.info['seed']} · {run.info['command']}", *terminal.header(run.info)])
    if run.info["status"] == "finished":
        show_run(run)


def _task(words: list[str]) -> None:
    from moecli.analysis.explain import part_lines
    from moecli.config import compose, raw_node
    from moecli.report.terminal import visible
    from moecli.run import build_task

    for line in part_lines("task", words[0].partition("=")[2]):
        print(line)
    missing = [key for key, value in raw_node("task", words[0].partition("=")[2]).items() if value == "???"]
    if missing and len(words) == 1:
        needed = " ".join(f"task.{key}={key.upper()}" for key in missing)
        print(f"\n give its data to see what will be done with it: moe show {words[0]} {needed}")
        return
    print()
    for fact in build_task(compose(words)).facts():
        print(visible(f" {fact.name}: {fact.value}"))
