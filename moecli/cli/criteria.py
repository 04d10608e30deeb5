"""moe criteria: how many experts a classical mixture needs, by every common measure in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli.common import Json, Plugin, Words, example, use
from moecli.errors import UsageError

EPILOG = example(
    "moe criteria task=table task.path=FILE 'task.formula=y ~ a | z'",
    "moe criteria task=piecewise --experts 1-6 --bootstrap 19",
)
MOST = 64


def criteria(
    words: Words = None,
    experts: Annotated[str, typer.Option(metavar="A-B", help="Numbers of experts to fit.")] = "1-5",
    folds: Annotated[int, typer.Option(min=0, help="Of cross-validated likelihood; 0: none.")] = 5,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Data sets simulated to test E experts against E + 1; 0: no test.")
    ] = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Starts of each fit; the best is kept.")] = 5,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Fit a mixture of linear experts by EM for each number of experts: likelihood, AIC, BIC, ICL, held-out likelihood."""
    use(plugin)
    first, last = _range(experts)
    from moecli import run as engine
    from moecli.config import compose
    from moecli.record.folder import to_json
    from moecli.report import selection

    rows = engine.selection(compose([*CLASSICAL, *(words or [])]), range(first, last + 1), folds, bootstrap, restarts)
    if json:
        print(to_json(rows).decode())
    else:
        print("\n".join(selection.lines(rows)))


CLASSICAL = ("model=density", "router=dense", "expert=linear", "trainer=em")


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= MOST):
        raise UsageError(f"--experts {text}: give a range within 1 to {MOST}, as in 1-5")
    return int(first), int(last)
