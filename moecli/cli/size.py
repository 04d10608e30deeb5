"""moe size: what a configuration would need, without building it."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from moecli.cli.common import Json, Plugin, Words, example, use

EPILOG = example(
    "moe size experiment=size_mixtral", "moe size experiment=size_mixtral --dtype bfloat16 --expert-parallel 8 --json"
)


def size(
    words: Words = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(
            help="Of weights and gradients; below float32 the optimizer keeps a float32 copy of the weights too."
        ),
    ] = "float32",
    expert_parallel: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="W",
            help="Devices that share each layer's experts. A token then sends rows x (D + Y) x bytes x (W - 1) / W "
            "through the layer's two all-to-alls, and as much again in the backward pass.",
        ),
    ] = 1,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Count what any configuration needs, without its weights: parameters, FLOPs, memory, cache, all-to-all traffic."""
    use(plugin)
    from moecli import config
    from moecli.diagnosis.size import account
    from moecli.record.folder import to_json

    found = account(config.compose(words or []), dtype, expert_parallel)
    if json:
        sys.stdout.write(to_json(found).decode())
    else:
        from moecli.report.size import lines

        print("\n".join(lines(found)))
