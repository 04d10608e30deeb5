"""A fixed expert per vocabulary id (Roller et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens
from moecli.types import Seed


class Hash(Router):
    """y = f_e(x) with e = table_l[id] at layer l, drawn once from ``seed`` and the layer; no gate, no loss."""

    own = Claims(trains_gate=False)
    graded = False
    needs = frozenset({"ids"})
    gives = frozenset()
    table: Tensor  # (vocab_size,) int64

    def __init__(self, vocab_size: int, num_experts: int, layer: int = 0, seed: Seed = 0, **filters):
        super().__init__(**filters)
        generator = torch.Generator().manual_seed(seed * 1_000 + layer)
        self.register_buffer("table", torch.randperm(vocab_size, generator=generator) % num_experts)
        self.num_experts = num_experts

    def route(self, tokens: Tokens) -> Routing:
        if tokens.ids is None:
            raise ValueError("the hash router needs token ids; these tokens have none")
        expert = self.table[tokens.ids[:, 0]]  # (N,)
        weight = tokens.x.new_zeros(len(expert), 1)
        chosen = Sparse.from_choices(expert[:, None], weight, self.num_experts)
        return Routing(chosen, F.one_hot(expert, self.num_experts).to(tokens.x.dtype))
