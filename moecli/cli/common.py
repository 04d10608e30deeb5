"""Options that several commands share.  Nothing heavy is imported here: `moe --help` must stay quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import completion

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="What to change, for example router=hash router.seed=1.",
        autocompletion=completion.words,
    ),
]
Runs = Annotated[Path | None, typer.Option("--runs", help="Where runs land; else MOE_RUNS, else runs/ here.")]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A folder with Python files and a conf/ that add parts; may be given again."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=completion.runs)]


def example(*lines: str) -> str:
    """The runnable examples that end a command's help."""
    return "Example: " + "   ".join(f"`{line}`" for line in lines)


def use(plugins: list[Path] | None) -> None:
    """Let the plugins' folders add parts, from the first thing a command does."""
    from moecli.config import use_plugins

    use_plugins(plugins or [])
