"""What the property tests walk over: every router in its published forms, and tokens whose logits are given.

A gate here is a few columns of x, so a test chooses the logits and a reference can be written in plain loops.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from moecli.config import build, option_node, registry
from moecli.gates.gate import Gate
from moecli.routing import Router, Tokens

F64 = torch.float64
DIM, VOCAB = 32, 50
ROUTERS = list(registry()["router"])
GATELESS = {"hash", "oracle", "replay"}
# (router, number of experts, options): at least one line for each of the registry
FORMS: list[tuple[str, int, dict[str, Any]]] = [
    ("argmax", 4, {}),
    ("balanced_assignment", 4, {}),
    ("bernoulli", 4, {}),
    ("catch_up", 4, {}),
    ("dense", 5, {}),
    ("expert_choice", 4, {}),
    ("expert_choice", 3, {"capacity_factor": 1.2, "group": "batch"}),
    ("expert_choice", 4, {"capacity_factor": 0.5, "group": "position"}),
    ("group_limited", 8, {}),
    ("group_limited", 6, {"groups": 3, "limit": 2, "k": 3, "renormalize": True, "scale": 2.5}),
    ("hash", 4, {}),
    ("hash", 6, {"hashes": 2}),
    ("hash", 5, {"by": "previous"}),
    ("hash", 4, {"by": "bigram"}),
    ("hash", 3, {"by": "position"}),
    ("hierarchical", 8, {}),
    ("hierarchical", 6, {"groups": 3, "k_groups": 2, "k": 1}),
    ("hierarchical", 6, {"groups": 3, "k_groups": 2, "k": 2}),
    ("noisy_top_k", 4, {}),
    ("noisy_top_k", 5, {"k": 3}),
    ("noisy_top_k", 3, {"k": 3}),
    ("oracle", 3, {}),
    ("oracle", 4, {"label": "other"}),
    ("random_second", 4, {}),
    ("random_second", 4, {"threshold": 0.2}),
    ("random_second", 4, {"policy": "threshold", "threshold": 0.3}),
    ("random_second", 4, {"policy": "sampled"}),
    ("replay", 4, {"k": 2}),
    ("sampled", 4, {}),
    ("sigmoid_bias", 4, {}),
    ("sigmoid_bias", 4, {"renormalize": False, "scale": 2.0, "k": 1}),
    ("sigmoid_bias", 8, {"groups": 4, "limit": 2, "k": 3}),
    ("sigmoid_bias", 4, {"groups": 4, "limit": 3, "k": 2}),
    ("sinkhorn", 4, {}),
    ("sinkhorn", 4, {"k": 2, "temperature": 0.5, "iterations": 3}),
    ("soft_slots", 4, {"slots": 2}),
    ("soft_slots", 3, {"slots": 1, "group": "position"}),
    ("straight_through", 4, {}),
    ("straight_through", 4, {"sample": True}),
    ("top_k", 5, {}),
    ("top_k", 4, {"k": 1, "renormalize": False}),
    ("top_k", 4, {"k": 3, "renormalize": False, "scale": 16.0}),
    ("top_k", 4, {"jitter": 0.3, "noise": 1.5}),
    ("top_p", 4, {}),
    ("top_p", 5, {"p": 0.8, "renormalize": True}),
]
NAMES = ["-".join([name, str(e), *(f"{k}={v}" for k, v in options.items())]) for name, e, options in FORMS]
SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=4)  # of groups, ragged
SEEDS = st.integers(0, 9_999)


class Given(Gate):
    """Logits that are columns of x: what a test writes there is what the router believes."""

    def __init__(self, start: int, width: int):
        super().__init__()
        self.columns = slice(start, start + width)

    def forward(self, x: Tensor) -> Tensor:  # (N, DIM) -> (N, width)
        return x[:, self.columns]


def given_gates(name: str, num_experts: int, layer: int = 0, **options: Any) -> Router:
    """The router in float64, whose gates read the columns of x in the order in which they are built."""
    taken = 0

    def gate(width: int) -> Gate:
        nonlocal taken
        taken += width
        return Given(taken - width, width)

    few = {"slots": 2} if name == "soft_slots" else {}  # sixteen for each expert are wider than x
    node = {**option_node("router", name), **few, **options}
    sizes = {"dim": DIM, "num_experts": num_experts, "vocab_size": VOCAB, "layer": layer, "num_layers": layer + 1}
    return build(node, gate=gate, **sizes).double()


def learned(name: str, num_experts: int, gate: str = "linear", dim: int = DIM, **options: Any) -> Router:
    """The router in float64 with a gate that has parameters."""
    torch.manual_seed(1)
    node, belief = {**option_node("router", name), **options}, option_node("gate", gate)
    sizes = {"dim": dim, "vocab_size": VOCAB, "layer": 0, "num_layers": 1}
    made = build(
        node, gate=lambda width: build(belief, num_experts=width, **sizes), num_experts=num_experts, **sizes
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():  # some gates begin at zero, where all experts tie
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def tokens(sizes: list[int], seed: int, dim: int = DIM, spread: float = 2.0) -> Tokens:
    """Sequences of these lengths, each a group, with ids and labels of their own."""
    draw = torch.Generator().manual_seed(seed)
    example = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    position = torch.cat([torch.arange(size) for size in sizes])
    n = len(example)
    x = spread * torch.randn(n, dim, generator=draw, dtype=F64)
    start = torch.tensor([0, *sizes]).cumsum(0)[example]
    known = {"row": start, "label": torch.randint(7, (n,), generator=draw), "other": torch.arange(n) % 5}
    ids = torch.randint(VOCAB, (n, 2), generator=draw)
    ids[position == 0, 1] = -1
    return Tokens(x, example, position, example, ids, known)


def picked(t: Tokens, index: Tensor) -> Tokens:
    """These tokens alone, in this order."""
    known = {name: fact[index] for name, fact in t.known.items()}
    ids = None if t.ids is None else t.ids[index]
    return Tokens(t.x[index], t.example[index], t.position[index], t.group[index], ids, known)


def with_x(t: Tokens, x: Tensor) -> Tokens:
    return Tokens(x, t.example, t.position, t.group, t.ids, t.known, t.previous)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
