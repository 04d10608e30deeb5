"""Arithmetic modulo p as sequences: the toy that grokking was seen on (Power et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from moecli.errors import UsageError
from moecli.tasks.answers import Answers
from moecli.tasks.kinds import Language
from moecli.tasks.task import generator
from moecli.types import Part, PositiveInt, Seed

OPERATIONS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "add": ("+", torch.add),
    "subtract": ("-", torch.sub),
    "multiply": ("*", torch.mul),
}


class Modular(Answers):
    """``a o b = c`` with c = (a o b) mod p, for every pair a, b in 0..p-1: of four given tokens the fifth is asked for.

    A share of all p^2 equations of every operation trains, chosen at random; the rest validates and tests by halves.
    """

    def __init__(
        self,
        modulus: PositiveInt = 23,
        operations: list[Literal["add", "subtract", "multiply"]] | None = None,
        train_share: Part = 0.7,
        split_seed: Seed = 0,
    ):
        names = list(dict.fromkeys(operations or ["add"]))
        parts = shares(len(names) * modulus**2, train_share, split_seed)
        if not all(map(len, parts.values())):
            why = f"of {modulus**2} equations one part of the split has none"
            raise UsageError(f"task.modulus={modulus}: {why}. Raise it, or choose another task.train_share")
        signs = [OPERATIONS[name][0] for name in names]
        kind = Language((*map(str, range(modulus)), *signs, "="))
        ids = torch.cat([_equations(modulus, name, modulus + i, kind.out - 1) for i, name in enumerate(names)])
        operation = torch.arange(len(names)).repeat_interleave(modulus**2)
        self.label_names = {"operation": names}
        answer = (torch.arange(5) == 4).expand(ids.shape)
        self.adopt(kind, ids, answer, {"operation": operation}, parts)


def _equations(modulus: int, name: str, sign: int, equals: int) -> Tensor:  # -> (p^2, 5)
    a, b = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus)).unbind(-1)
    c = OPERATIONS[name][1](a, b) % modulus
    return torch.stack([a, torch.full_like(a, sign), b, torch.full_like(a, equals), c], dim=1)


def shares(size: int, train: float, seed: int) -> dict[str, Tensor]:
    """A share trains, the rest validates and tests by halves: each in one part, in rising order."""
    shuffled, num_train = torch.randperm(size, generator=generator(seed)), round(size * train)
    num_valid = (size - num_train) // 2
    parts = shuffled.split([num_train, num_valid, size - num_train - num_valid])
    return {split: part.sort().values for split, part in zip(("train", "valid", "test"), parts, strict=True)}
