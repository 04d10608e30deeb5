"""Routes by a label that is known: the upper bound of what a router could find out."""

from __future__ import annotations

import torch.nn.functional as F

from moecli.errors import UsageError
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens


class Oracle(Router):
    """y = f_e(x) with e = label modulo E; ``label`` is one of the task's, by default its first.

    Raises UsageError where the task has no such label, or where data comes without any.
    """

    own = Claims(trains_gate=False)
    graded = False
    needs = frozenset({"known"})
    gives = frozenset()

    def __init__(self, num_experts: int, label: str | None = None, **filters):
        super().__init__(**filters)
        self.num_experts, self.label = num_experts, label

    def route(self, tokens: Tokens) -> Routing:
        labels = [name for name in tokens.known if name != "row"]
        name = self.label or next(iter(labels), None)
        if name not in labels:
            raise UsageError(
                f"router.label={name} (router=oracle): the data has no such label, it has: {', '.join(labels) or 'none'}. "
                "Choose one of them, or use router=top_k"
            )
        expert = tokens.known[name] % self.num_experts  # (N,)
        chosen = Sparse.from_choices(expert[:, None], tokens.x.new_zeros(len(expert), 1), self.num_experts)
        return Routing(chosen, F.one_hot(expert, self.num_experts).to(tokens.x.dtype))
