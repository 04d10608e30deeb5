"""moe train: one combination, from data to pictures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Json, Plugin, Runs, Words, example, use
from moecli.record.folder import check_name

EPILOG = example(
    "moe train", "moe train task=spirals router=dense model.twin=true", "moe train --dry-run task=stdlib_text"
)


def train(
    words: Words = None,
    name: Annotated[str | None, typer.Option(help="Folder of the run below the root; else task and router.")] = None,
    runs: Runs = None,
    config: Annotated[Path | None, typer.Option(help="A run's config.yaml to repeat, KEY=VALUE laid over it.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="A run folder to go on with; only lengths may change.", autocompletion=completion.runs),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and measure, but do not train.")] = False,
    cfg: Annotated[bool, typer.Option("--cfg", help="Print the composed configuration and stop.")] = False,
    plugin: Plugin = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    json: Json = False,
) -> None:
    """Train one combination of task, router and experts; evaluate it, log every expert, draw it."""
    use(plugin)
    if name is not None:
        check_name(name)
    if resume is not None:
        _resume(resume, words or [], quiet, json)
        return
    composed = _composed(words or [], config)
    if cfg:
        from moecli.config import to_yaml

        sys.stdout.write(to_yaml(composed.config))
        return
    from moecli import run as engine
    from moecli.report import terminal

    built = engine.assemble(composed)
    place = engine.Place(runs, name, quiet or json, shlex.join(["moe", *sys.argv[1:]]))
    if dry_run:
        show_lines(engine.dry_run(built))
        return
    if not place.quiet:
        show_lines(terminal.header(engine.describe(built)))
    _tell(engine.train_built(built, place), quiet, json)


def _resume(folder: Path, words: list[str], quiet: bool, json: bool) -> None:
    from moecli import run as engine

    _tell(engine.resume(folder.expanduser(), *words, quiet=quiet or json), quiet, json)


def _tell(finished, quiet: bool, json: bool) -> None:  # a record.folder.Run, imported late
    if json:
        sys.stdout.write((finished.path / "summary.json").read_text(encoding="utf-8"))
    elif not quiet:
        show_run(finished)


def _composed(words: list[str], file: Path | None):  # a Composed, imported late
    from moecli import config

    if file is None:
        return config.compose(words)
    return config.Composed(config.amend(config.read(file.expanduser()), words), frozenset())


def show_lines(lines: list[str]) -> None:
    from moecli.report.terminal import visible

    for line in lines:
        print(visible(line))


def show_run(run, more: Sequence[str] = ()) -> None:  # a record.folder.Run, imported late
    """The end of a training, and with ``more`` before the next steps what `moe show RUN` says."""
    from moecli.report import terminal

    table = terminal.experts_table(run)
    found = [terminal.result_line(run), *terminal.answers_lines(run), "", *table, *terminal.layer_lines(run), *more]
    show_lines(["", *found, "", *terminal.next_lines(run)])
