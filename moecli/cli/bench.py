"""moe bench: how fast one mixture layer is, kernel by kernel."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moecli.cli.common import Json, Plugin, Words, example, use

EPILOG = example(
    "moe bench",
    "moe bench --case A,H --dtype bfloat16 --repeats 5 --no-peers",
    "moe bench router=expert_choice num_experts=32 --tokens 512 --kernel auto,loop --json",
)


def bench(
    words: Words = None,
    case: Annotated[
        str, typer.Option(metavar="A,...,H", help="Sizes to begin from; KEY=VALUE, --tokens and --dim change them.")
    ] = "A",
    tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens of a call; else the case's.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, metavar="D", help="Features of a token; else the case's.")] = None,
    dtype: Annotated[str, typer.Option(metavar="D,...", help="float32, bfloat16, float64.")] = "float32",
    kernel: Annotated[
        str | None,
        typer.Option(metavar="K,...", help="auto (the rule's choice), loop, padded, grouped, each; else all that can."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="R", help="Calls of each, after two that do not count.")] = 11,
    peers: Annotated[
        bool | None,
        typer.Option("--peers/--no-peers", help="transformers' layer beside ours; else where it computes the same."),
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Time one mixture layer, forward and backward, on random tokens: each kernel, and transformers' layer."""
    use(plugin)
    from moecli.bench.cases import subjects

    asked_for = subjects(words or [], _words(case), tokens, dim)  # before torch is imported

    from moecli.bench import run

    kernels = run.ALL.kernels if kernel is None else tuple(_words(kernel))
    found = run.bench(asked_for, _words(dtype), run.Asked(kernels, repeats, peers))
    if json:
        from moecli.record.folder import to_json

        sys.stdout.write(to_json(found).decode())
    else:
        from moecli.cli.train import show_lines
        from moecli.report.bench import lines

        show_lines(lines(found))


def _words(said: str) -> list[str]:
    """``a,b`` -> its words, each once."""
    return list(dict.fromkeys(word.strip() for word in said.split(",") if word.strip()))
