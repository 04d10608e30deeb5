"""moe plot: the pictures of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli.common import RunFolder, example

EPILOG = example("moe plot RUN", "moe plot RUN load labels")


def plot(
    run: RunFolder,
    kinds: Annotated[list[str] | None, typer.Argument(metavar="KIND", help="Which pictures; all by default.")] = None,
) -> None:
    """Draw a run's pictures into its plots/ folder, each where it applies.

    Kinds: curves, film, fit, gates, labels, likelihood, load, regions, responsibility, tree.
    """
    from moecli.plots.gallery import draw_all
    from moecli.record.folder import Run

    for path in draw_all(Run(run), kinds or None):
        print(path)
