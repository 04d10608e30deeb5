"""One expert drawn from the gate's belief, and taught by reward (Williams, 1992; Clark et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, SampledRouting, Tokens


class Sampled(Router):
    """y = f_e(x) with e ~ softmax(gate(x)) in training and the likeliest e in evaluation.

    The task's gradient does not pass a draw; the term ``reinforce`` descends the expected loss instead.
    """

    own = Claims(trains_gate=False)
    graded = False
    gives = Router.gives | {"draws"}

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, **filters):
        super().__init__(**filters)
        self.gate = gate(num_experts)

    def route(self, tokens: Tokens) -> SampledRouting:
        logits = self.gate(tokens.x)  # (N, E)
        log_probs = logits.log_softmax(-1)
        drawn = self._draw(log_probs)  # (N, 1)
        chosen = Sparse.from_choices(drawn, logits.new_zeros(drawn.shape), logits.shape[-1])
        probs = log_probs.exp()
        return SampledRouting(chosen, probs, logits, log_prob=log_probs.gather(-1, drawn)[:, 0], chance=probs)

    def _draw(self, log_probs: Tensor) -> Tensor:  # (N, E) -> (N, 1)
        if not self.training:
            return log_probs.argmax(-1, keepdim=True)
        return log_probs.detach().exp().multinomial(1)
