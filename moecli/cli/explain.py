"""moe explain: why an input went where it went."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moecli.cli.common import Json, Plugin, RunFolder, example, use

EPILOG = example(
    "moe explain RUN --input test:17", "moe explain RUN --input 'a text'", "moe explain RUN --input FILE:3"
)


def explain(
    run: RunFolder,
    given: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="INPUT",
            help="A row of a split (test:17) or of a table (FILE:3), columns as COLUMN=VALUE,..., a text, or its FILE.",
        ),
    ],
    at: Annotated[
        int | None, typer.Option("--at", min=0, metavar="POSITION", help="Of a text: the one token to look at closely.")
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Say why an input went to its experts: scores, who was asked, served or dropped, and what would change it."""
    use(plugin)
    from moecli import run as engine
    from moecli.cli.train import show_lines
    from moecli.diagnosis.decision import explain as explained
    from moecli.diagnosis.question import question
    from moecli.record.folder import to_json
    from moecli.report import decision

    loaded = engine.load(run)
    found = explained(loaded, question(loaded, given), at)
    if json:
        print(to_json(decision.as_record(found)).decode())
        return
    show_lines(decision.lines(found))
    if sys.stdout.isatty():
        _show_colours(decision.coloured(found))


def _show_colours(texts) -> None:  # (layer, rich Text) pairs
    from rich.console import Console

    console = Console(highlight=False)
    for layer, text in texts:
        console.print(f"\n {layer}", markup=False)
        console.print(text)
