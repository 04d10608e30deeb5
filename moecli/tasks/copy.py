"""Strings to copy or reverse after a separator: what a sequence model must remember, and nothing else."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moecli.errors import UsageError
from moecli.tasks.answers import Answers
from moecli.tasks.kinds import Language
from moecli.tasks.languages import letters
from moecli.tasks.task import generator, three_way
from moecli.types import PositiveInt, Seed, SeveralRows

SEPARATORS = {"copy": "=", "reverse": "<"}


class Copy(Answers):
    """``a b c = a b c`` or ``a b c < c b a``: the separator says which, and the symbols after it are asked for.

    Strings are uniform over the symbols and all different, so that no string of the test was trained on.
    """

    def __init__(
        self,
        symbols: PositiveInt = 16,
        length: PositiveInt = 8,
        sequences: SeveralRows = 4000,
        ways: list[Literal["copy", "reverse"]] | None = None,
        split_seed: Seed = 0,
    ):
        names = list(dict.fromkeys([*(ways or SEPARATORS)]))
        draw = generator(split_seed, 5)
        given = _different(symbols, length, sequences, draw)  # (M, length)
        way = torch.randint(len(names), (len(given),), generator=draw)
        kind = Language((*(letters(n) for n in range(symbols)), *(SEPARATORS[name] for name in names)))
        backwards = torch.tensor([name == "reverse" for name in names])[way]
        said = torch.where(backwards[:, None], given.flip(1), given)
        ids = torch.cat([given, symbols + way[:, None], said], dim=1)  # (M, 2 length + 1)
        self.label_names = {"sub-task": names}
        answer = (torch.arange(ids.shape[1]) > length).expand(ids.shape)
        self.adopt(kind, ids, answer, {"sub-task": way}, three_way(len(ids), split_seed))


def _different(symbols: int, length: int, number: int, draw: torch.Generator) -> Tensor:
    """So many different strings in random order: (number, length).  UsageError where there are not so many."""
    if symbols**length < 2 * number:
        why = f"{symbols} symbols make {symbols**length} strings of {length}, and half of them are too few"
        raise UsageError(f"task.sequences={number}: {why}. Lower it, or raise task.length or task.symbols")
    found = torch.empty((0, length), dtype=torch.int64)
    while len(found) < number:
        found = torch.cat([found, torch.randint(symbols, (number, length), generator=draw)]).unique(dim=0)
    return found[torch.randperm(len(found), generator=draw)[:number]]
