"""Each expert's best tokens (Zhou et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens, fair_share
from moecli.types import PositiveFloat, PositiveInt


class ExpertChoice(Router):
    """In each group of n tokens every expert takes the C = ceil(capacity_factor n / E) that want it most.

    y_n = sum_e p_ne f_e(x_n) over the experts that took token n, with p = softmax(gate(x)) over the experts.

    A group is a sequence, or the batch where tokens are whole examples (``auto``); ``position`` groups
    the same time step of all sequences, which no future token enters; ``batch`` takes everything.
    With ``cap`` a token is wanted by at most so many experts, up to the blur of the relaxation (section 3.2).
    """

    own = Claims(density=False, balanced=True, causal=False, independent=False)
    reasons = {  # noqa: RUF012
        "causal": "each expert picks its tokens from the whole text, so a token sees the future",
        "density": "a token may be picked by no expert, or by many, so its weights do not sum to one",
    }

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        capacity_factor: PositiveFloat = 2.0,
        cap: PositiveInt | None = None,
        group: Literal["auto", "position", "batch"] = "auto",
    ):
        super().__init__()
        if cap is not None and cap < min(capacity_factor, num_experts):
            raise UsageError(
                f"router.cap={cap}: experts take {capacity_factor:g} tokens' worth each on average, so some must be "
                "taken more often. Raise router.cap, or lower router.capacity_factor"
            )
        self.gate, self.capacity_factor, self.cap, self.group = gate(num_experts), capacity_factor, cap, group
        if capacity_factor >= num_experts:  # every expert takes every token: nobody competes
            self.own = Claims(balanced=True)
        elif group == "position":
            self.own = replace(self.own, causal=True)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        num_experts = logits.shape[-1]
        batched = tokens.batched(self.group)
        capacity = fair_share(batched.size, self.capacity_factor, num_experts).minimum(batched.size)  # (G,)
        wish = batched.pad(logits.log_softmax(-1), fill=float("-inf"))  # (G, S, E)
        order = wish.detach() if self.cap is None else capped(wish.detach().exp(), capacity, self.cap)
        place = order.topk(int(capacity.max()), dim=1).indices  # (G, C, E)
        log_weight = wish.gather(1, place)
        group = torch.arange(len(place), device=place.device)[:, None, None]
        rank = torch.arange(place.shape[1], device=place.device)[:, None]
        served = (rank < capacity[:, None, None]).expand_as(place).permute(2, 0, 1)  # (E, G, C)
        expert, _, choice = served.nonzero(as_tuple=True)
        token = batched.index[group, place].permute(2, 0, 1)[served]
        log_weight = log_weight.permute(2, 0, 1)[served]
        chosen = Sparse(token, expert, log_weight, choice, len(logits), num_experts, even=True)
        return Routing(chosen, logits.softmax(-1), logits)


def capped(liking: Tensor, capacity: Tensor, cap: int, temperature: float = 0.03, rounds: int = 100) -> Tensor:
    """Log A (G, S, E) that maximises sum A liking + temperature H(A), zero likings of empty places apart, with

    expert sums equal to ``capacity`` (G,), token sums at most ``cap`` and entries in [0, 1]: Dykstra's
    alternating projections, as in Zhou et al. (2022), section 3.2.
    """
    log_a = (liking / temperature).masked_fill(liking.sum(-1, keepdim=True) == 0, -torch.inf)  # (G, S, E)
    limit = torch.tensor(float(cap), dtype=liking.dtype, device=liking.device).log()
    token_scale, excess = torch.zeros_like(log_a[..., :1]), torch.zeros_like(log_a)
    for _ in range(rounds):
        log_a = log_a + capacity[:, None, None].to(liking.dtype).log() - log_a.logsumexp(1, keepdim=True)
        log_a = log_a - token_scale
        token_scale = (limit - log_a.logsumexp(-1, keepdim=True)).clamp_max(0.0)
        log_a = log_a + token_scale + excess
        excess = log_a.clamp_min(0.0)
        log_a = log_a - excess
    return log_a
