"""Each token's k best experts (Shazeer et al., 2017; Fedus et al., 2021; Jiang et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Router, Routing, Tokens
from moecli.types import PositiveInt


class TopK(Router):
    """Softmax over the k best logits (Mixtral), or without ``renormalize`` over all of them (Switch, OLMoE).

    y = sum_e w_e f_e(x) over the k largest logits h_e = gate(x)_e, with w_e = exp(h_e) / sum exp(h) over those k, or
    over all E.

    Raises UsageError for k = 1 renormalised: its weight is the constant 1, so the gate would never learn.
    """

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        k: PositiveInt = 2,
        renormalize: bool = True,
        **filters,
    ):
        super().__init__(**filters)
        check_k(k, num_experts)
        if k == 1 and renormalize and num_experts > 1:
            raise UsageError(
                "router.k=1 with router.renormalize=true: the one weight is the constant 1, so no gradient reaches "
                "the gate and it never learns. Set router.renormalize=false, or router.k=2"
            )
        self.gate, self.k, self.renormalize, self.choices = gate(num_experts), k, renormalize, k
        everyone = k == num_experts
        self.own = replace(self.own, density=renormalize or everyone, balanced=everyone)
        if not renormalize:
            self.reasons = {"density": "the weights of the chosen do not sum to one (router.renormalize=false)"}

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        top, expert = logits.topk(self.k, dim=-1)  # (N, K)
        total = (top if self.renormalize else logits).logsumexp(-1, keepdim=True)
        chosen = Sparse.from_choices(expert, top - total, logits.shape[-1])
        return Routing(chosen, logits.softmax(-1), logits)


def check_k(k: int, num_experts: int) -> None:
    """Raise UsageError where a token would have to choose more experts than there are."""
    if k > num_experts:
        raise UsageError(
            f"router.k={k}: there are only {num_experts} experts to choose from. Lower router.k or raise num_experts"
        )
