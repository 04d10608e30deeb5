"""moe show: one thing explained, a part, a task before any training, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli.common import Plugin, example, use
from moecli.errors import UsageError

EPILOG = example("moe show router=hash", "moe show task=table task.path=FILE task.target=COLUMN", "moe show RUN")


def show(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT", help="GROUP=OPTION with its KEY=VALUE, or a run folder.")
    ],
    plugin: Plugin = None,
) -> None:
    """Explain a part (what it does, claims, options), a task's data, or a run."""
    use(plugin)
    group, equals, option = what[0].partition("=")
    if not equals:
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
        print(f" {fact.name}: {fact.value}")
