"""Each expert is a block that is on or off by a coin of its own (E. Bengio et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, SampledRouting, Tokens


class Bernoulli(Router):
    """y = sum_e m_e f_e(x) with m_e ~ Bernoulli(sigmoid(gate(x)_e)) in training, m_e = [sigmoid > 1/2] in evaluation.

    The terms ``reinforce``, ``sparsity`` and ``variance`` teach it; a token may be left without any expert.
    """

    own = Claims(density=False, trains_gate=False)
    graded = steady = False
    needs = frozenset({"odds"})
    gives = Router.gives | {"draws", "switches"}
    reasons = {"density": "any number of experts may be on, so its weights do not sum to one"}  # noqa: RUF012

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, **filters):
        super().__init__(**filters)
        self.gate, self.choices = gate(num_experts), num_experts

    def route(self, tokens: Tokens) -> SampledRouting:
        logits = self.gate(tokens.x)  # (N, E)
        chance = logits.sigmoid()
        on = self._draw(chance.detach())
        log_prob = (F.logsigmoid(logits) * on + F.logsigmoid(-logits) * ~on).sum(-1)
        chosen = Sparse.from_mask(on, torch.zeros_like(chance), chance.detach())
        probs = F.logsigmoid(logits).softmax(-1)  # sigmoids divided by their sum, without underflow
        return SampledRouting(chosen, probs, logits, log_prob=log_prob, chance=chance)

    def _draw(self, chance: Tensor) -> Tensor:  # (N, E) -> (N, E) bool
        return torch.rand_like(chance) < chance if self.training else chance > 0.5
