"""moe eval: a checkpoint on another split, other data, another capacity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from moecli.cli.common import Json, Plugin, RunFolder, Words, example, use

EPILOG = example("moe eval RUN", "moe eval RUN --split valid router.eval_capacity_factor=1.0")


def evaluate(
    run: RunFolder,
    words: Words = None,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which part of the data.")] = "test",
    plans: Annotated[
        Path | None, typer.Option(help="Also write who serves each token here, an .npz for router=replay.")
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Evaluate a run's best checkpoint, with KEY=VALUE changes to its data or routing."""
    use(plugin)
    from moecli import run as engine
    from moecli.record.folder import to_json
    from moecli.report import terminal

    loaded = engine.load(run, words or [])
    result = engine.evaluate_loaded(loaded, split)
    if plans is not None:
        engine.write_plans(loaded, plans.expanduser())
    if json:
        sys.stdout.write(to_json(result).decode())
        return
    for name, value in result["metrics"].items():
        chance = f"  (chance {terminal.number(result['chance'][name])})" if name in result["chance"] else ""
        print(f" {split} {name} {terminal.number(value)}{chance}")
    for layer, dropped in result["dropped"].items():
        print(f" {layer} dropped {dropped:.1%}")
