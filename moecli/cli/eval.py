"""moe eval: a checkpoint on another split, other data, another capacity; or the text that it goes on with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moecli.cli.common import Json, Plugin, RunFolder, Words, example, use
from moecli.errors import UsageError

EPILOG = example(
    "moe eval RUN",
    "moe eval RUN --split valid router.eval_capacity_factor=1.0",
    "moe eval RUN --generate 'The ' --tokens 200 --temperature 0.8 --seed 0",
)
DRAWN: dict[str, Any] = {"tokens": 200, "temperature": 1.0, "seed": 0}  # unless the user says otherwise


def evaluate(
    run: RunFolder,
    words: Words = None,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which part of the data.")] = "test",
    plans: Annotated[
        Path | None, typer.Option(help="Also write who serves each token here, an .npz for router=replay.")
    ] = None,
    generate: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Instead go on with this text, each token in its expert's colour."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How many to generate (default 200).")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the draws (default 1); 0 takes the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the draws (default 0).")] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Evaluate a run's best checkpoint, with KEY=VALUE changes to its data or routing; or go on with a text."""
    use(plugin)
    drawing = {"tokens": tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in drawing.items() if value is not None}
    if generate is None and given:
        raise UsageError(f"--{next(iter(given))}: nothing is generated. Add --generate TEXT, or leave it out")
    from moecli import run as engine
    from moecli.record.folder import to_json

    loaded = engine.load(run, words or [])
    if plans is not None:
        engine.write_plans(loaded, plans.expanduser())
    if generate is None:
        result, show = engine.evaluate_loaded(loaded, split), _print
    else:
        result, show = engine.generated(loaded, generate, **{**DRAWN, **given}), _show
    if json:
        sys.stdout.write(to_json(result).decode())
    else:
        show(result)


def _print(result: dict[str, Any]) -> None:
    from moecli.report import terminal

    for name, value in result["metrics"].items():
        chance = f"  (chance {terminal.number(result['chance'][name])})" if name in result["chance"] else ""
        print(f" {result['split']} {name} {terminal.number(value)}{chance}")
    for layer, dropped in result["dropped"].items():
        print(f" {layer} dropped {dropped:.1%}")
    if result["no_answers"]:
        print(f" {result['no_answers']}")
    for each in result["answers"]:
        print()
        for name in ("given", "answer", "reference"):
            print(f" {name:9s}  {terminal.visible(each[name])}")


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console

    from moecli.report import passage

    passage.show(result, Console(highlight=False))
