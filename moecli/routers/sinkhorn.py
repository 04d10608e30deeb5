"""Choices read off a balanced plan of transport (Clark et al., 2022; Cuturi, 2013)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.top_k import check_k
from moecli.routing import Claims, Router, Routing, Tokens
from moecli.types import PositiveFloat, PositiveInt


class Sinkhorn(Router):
    """In training a token takes the k largest of its row of P = diag(u) exp(gate(x) / temperature) diag(v).

    P's rows sum to 1 and its columns to N / E; a row's largest entries need not be as balanced as P itself.
    Weights are softmax(gate(x))_e; evaluation takes the k best logits, so no other token matters there.
    """

    own = Claims(density=False)
    own_in_training = Claims(density=False, causal=False, independent=False)
    reasons = {"density": "the weights of the chosen do not sum to one"}  # noqa: RUF012

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        k: PositiveInt = 1,
        temperature: PositiveFloat = 1.0,
        iterations: PositiveInt = 30,
        **filters,
    ):
        super().__init__(**filters)
        check_k(k, num_experts)
        self.gate, self.k, self.choices = gate(num_experts), k, k
        self.temperature, self.iterations = temperature, iterations
        if k == num_experts:  # nobody is left to choose
            self.own = self.own_in_training = Claims(balanced=True)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        log_probs = logits.log_softmax(-1)
        liking = logits.detach()
        if self.training:
            liking = transport(liking / self.temperature, self.iterations)
        expert = liking.topk(self.k, dim=-1).indices  # (N, K)
        chosen = Sparse.from_choices(expert, log_probs.gather(-1, expert), logits.shape[-1])
        return Routing(chosen, log_probs.exp(), logits)


def transport(logits: Tensor, iterations: int) -> Tensor:
    """Log P (N, E) with rows of 1 and columns of N / E, by Sinkhorn's alternating scaling; the rows are exact."""
    n, e = logits.shape
    for _ in range(iterations):
        logits = logits - logits.logsumexp(0, keepdim=True) + torch.tensor(n / e).log()
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits
