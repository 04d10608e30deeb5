"""moe predict: new rows in, predictions and chosen experts out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli.cli.common import Plugin, RunFolder, example, use
from moecli.errors import EnvironmentFailure

EPILOG = example("moe predict RUN new_rows.csv -o predictions.csv")


def predict(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New rows: a table like the run's own, or text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")],
    plugin: Plugin = None,
) -> None:
    """Predict new rows: the prediction, how sure it is, and which experts made it."""
    use(plugin)
    if not out.expanduser().parent.is_dir():
        raise EnvironmentFailure(f"{out.parent}: no such folder. Make it, or give another file with -o")
    from moecli import run as engine
    from moecli.record.folder import write_whole

    frame = engine.predictions(engine.load(run), file)
    write_whole(out.expanduser(), frame.to_csv(index=False).encode())
    print(f" {len(frame)} rows · {', '.join(map(str, frame.columns))} · {out}")
