"""moe upcycle: a trained dense model becomes the start of a mixture."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from moecli.cli.common import Json, Plugin, RunFolder, Runs, Words, example, use
from moecli.record.folder import check_name

EPILOG = example(
    "moe upcycle RUN",
    "moe upcycle RUN router=top_k num_experts=16 --noise 0.01",
    "moe upcycle RUN model.every=1 num_experts=8",
)


def upcycle(
    run: RunFolder,
    words: Words = None,
    noise: Annotated[
        float,
        typer.Option(min=0.0, help="Added to each copy, in standard deviations of each tensor; 0 keeps the function."),
    ] = 0.0,
    name: Annotated[
        str | None, typer.Option(help="Folder of the new run below the root; else task and upcycled.")
    ] = None,
    runs: Runs = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Copy dense layers of a run (model.twin=true) into all experts of a mixture, and say how well it is kept."""
    use(plugin)
    if name is not None:
        check_name(name)
    from moecli import run as engine
    from moecli.interop.upcycle import upcycle as convert
    from moecli.record.folder import Run, to_json

    folder = run.expanduser()
    place = engine.Place(
        runs, name or f"{Run(folder).info['config']['task']}-upcycled", True, shlex.join(["moe", *sys.argv[1:]]), False
    )
    found = convert(folder, words or [], place, noise)
    if json:
        sys.stdout.write(to_json({**asdict(found), "run": str(found.run.path)}).decode())
    else:
        _print(found)


def _print(found: Any) -> None:  # an interop.upcycle.Upcycled, imported late
    from moecli.report.terminal import count, number, visible

    info, path = found.run.info, found.run.path
    headline = info["headline"]
    layers = ", ".join(f"{name} {layer['experts']}" for name, layer in info["layers"].items())
    kept = "kept" if not found.reasons else f"changed: {'; '.join(found.reasons)}"
    lines = [
        f" experts    {layers}, each a copy of the dense layer",
        f" size       {count(info['parameters']['total'])} parameters, {count(info['parameters']['active'])} active",
        f" function   {kept} (max |y' - y| / max |y| = {found.difference:.2g} on validation)",
        f" valid {headline} {number(found.before[headline])} before, {number(found.after[headline])} after",
        "",
        f" next   moe train --config {path}/config.yaml init={path}",
    ]
    print("\n".join(map(visible, lines)))
