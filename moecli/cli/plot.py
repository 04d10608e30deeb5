"""moe plot: the pictures of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli.common import RunFolder, example

EPILOG = example("moe plot RUN", "moe plot RUN load coactivation", "moe plot RUN --all")


def plot(
    run: RunFolder,
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="KIND", help="Which pictures; those of a training by default.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every kind that applies, and contact.png with all.")] = False,
) -> None:
    """Draw a run's pictures into its plots/ folder, each where it applies, its numbers as CSV beside it.

    Kinds: curves, film, fit, gates, labels, likelihood, load, regions, responsibility, samples, tree; and,
    drawn when named or with --all: coactivation, confidence, flow, layers, saturation, simplex, slots, text, vocabulary.
    """
    from moecli.errors import UsageError
    from moecli.plots.gallery import draw_all, draw_named, draw_whole
    from moecli.record.folder import Run

    if every and kinds:
        raise UsageError(f"--all ({' '.join(kinds)}): every kind is drawn already. Leave out one of the two")
    found = Run(run)
    for path in draw_whole(found) if every else draw_named(found, kinds) if kinds else draw_all(found):
        print(path)
