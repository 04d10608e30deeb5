"""Rows shared out among experts, each expert a fixed number, so that the sum of scores is largest."""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 30  # over the experts' prices
LOWEST = -1e100  # stands for minus infinity
TIED = 1e-12  # of the largest score: costs that differ by less are rounding


def assign(score: Tensor, counts: list[int]) -> Tensor:
    """The expert of each row, expert e taking ``counts[e]`` rows: score (N, E) -> (N,) int64.

    Exact up to rounding.  Prices bring the counts near (each row prefers the best score less its price,
    and such a choice is optimal for the counts that it has); cheapest chains of moves then lead to the
    counts asked for, which keeps it optimal (successive shortest paths).
    """
    tied = TIED * float(score[score.isfinite()].abs().amax()) if bool(score.isfinite().any()) else 0.0
    score = score.clamp_min(LOWEST)
    expert = (score - _prices(score, counts)).argmax(-1)
    want = torch.tensor(counts, device=score.device)
    while bool((over := expert.bincount(minlength=len(counts)) - want).any()):
        cost = _costs(score, expert, len(counts))
        chain = _cheapest_chain(cost, over, tied)
        movers = [_rows(score, expert, a, b, float(cost[a, b]) + tied) for a, b in chain]
        first, last = chain[0][0], chain[-1][1]
        many = min(int(over[first]), -int(over[last]), *map(len, movers))
        for (_, to), rows in zip(chain, movers, strict=True):
            expert[rows[:many]] = to
    return expert


def _prices(score: Tensor, counts: list[int]) -> Tensor:
    """Each expert in turn takes the price at which it is the choice of as many rows as it should be."""
    price = score.new_zeros(len(counts))
    for _ in range(SWEEPS):
        for e in (e for e, count in enumerate(counts) if 0 < count < len(score)):
            rest = score - price
            rest[:, e] = -torch.inf
            margin = (score[:, e] - rest.amax(-1)).sort(descending=True).values  # (N,) what each row would pay
            price[e] = (margin[counts[e] - 1] + margin[counts[e]]) / 2
    return price


def _costs(score: Tensor, expert: Tensor, num_experts: int) -> Tensor:
    """What it costs to move one row from expert a to b at least: (E, E), infinite where a has none."""
    cost = score.new_full((num_experts, num_experts), torch.inf)
    loss = score.gather(1, expert[:, None]) - score  # (N, E)
    return cost.scatter_reduce(0, expert[:, None].expand_as(loss), loss, "amin")


def _rows(score: Tensor, expert: Tensor, a: int, b: int, most: float) -> Tensor:
    """Rows of expert a whose move to b costs at most ``most``: (M,), at least one."""
    return ((expert == a) & (score[:, a] - score[:, b] <= most)).nonzero()[:, 0]


def _cheapest_chain(cost: Tensor, over: Tensor, tied: float) -> list[tuple[int, int]]:
    """(a, b) moves that lead from an expert with too many rows to one with too few (Bellman & Ford)."""
    far = torch.where(over > 0, 0.0, torch.inf).to(cost)
    before = torch.full_like(over, -1)
    for _ in range(len(over) - 1):
        through, last = (far[:, None] + cost).min(0)
        nearer = through < far - tied
        far, before = torch.where(nearer, through, far), torch.where(nearer, last, before)
    chain: list[tuple[int, int]] = []
    to = int(torch.where(over < 0, far, torch.inf).argmin())
    while before[to] >= 0 and len(chain) < len(over):
        chain.insert(0, (int(before[to]), to))
        to = chain[0][0]
    return chain
