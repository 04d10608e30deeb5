"""What is measured: one mixture layer, and random tokens that differ from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moecli import compatibility
from moecli.compatibility import MEANING, Part
from moecli.config import Composed
from moecli.errors import UsageError
from moecli.mixture import MixtureOfExperts
from moecli.models.size import layer_flops
from moecli.parts import Parts
from moecli.routing import Tokens
from moecli.run import pick_device

VOCABULARY = 1000  # different ids, for routers that read them
# What random tokens come with; whether a loss reaches the gate does not matter to a clock.
GIVEN = Part("moe bench", frozenset(), frozenset({"vectors", "ids", "known", "gate loss"}))


@dataclass(frozen=True)
class Workload:
    """A layer of D features in and out, in training, and how its tokens are drawn."""

    layer: MixtureOfExperts
    num_tokens: int
    dim: int
    dtype: torch.dtype
    device: torch.device
    seed: int

    def draw(self, call: int) -> tuple[Tokens, Tensor]:
        """Tokens with x (N, D) that wants a gradient, and the gradient of y (N, D): other ones for each ``call``.

        They are one sequence, with ids, a label ``label`` and the row of a data set.
        """
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + call)
        n = self.num_tokens
        x, d = (torch.randn(n, self.dim, generator=random).to(self.device, self.dtype) for _ in range(2))
        ids, label = torch.randint(VOCABULARY, (2, 1, n), generator=random).to(self.device).unbind()
        known = {"label": label, "row": torch.tensor([call * n], device=self.device)}
        tokens = Tokens.sequences(x[None], ids, known)
        return replace(tokens, x=x.detach().requires_grad_()), d

    def flops(self) -> float:
        """Of a forward pass: the products of router and experts."""
        return layer_flops(self.layer, self.draw(0)[0]) * self.num_tokens


def build_workload(composed: Composed, num_tokens: int, dim: int, dtype: torch.dtype) -> Workload:
    """Raises UsageError for parts that random vectors and ids are not enough for, that learn nothing or that nothing uses."""
    config = composed.config
    torch.manual_seed(config["seed"])
    parts = Parts(config)
    shared = {name: config["model"][name] for name in ("shared", "shared_mix")}
    layer = parts.mixture("layer", 0, 1, dim, dim, VOCABULARY, **shared)
    _refuse(config["choices"], layer)
    if "gate" in composed.explicit - parts.used:
        raise UsageError(f"gate (moe bench): router={config['choices']['router']} has no gate. Leave it out")
    device = pick_device(config["device"])
    workload = Workload(layer.train().to(device, dtype), num_tokens, dim, dtype, device, config["seed"])
    first = workload.draw(0)[0]
    layer.router.prepare(replace(first, x=first.x.float()))  # as a router sees them, whatever the dtype
    if not layer(first)[0].requires_grad:
        raise UsageError(
            f"expert={config['choices']['expert']} (router={config['choices']['router']}): its answer depends on nothing that "
            "learns, so there is no backward pass to time. Choose another expert: moe ls expert"
        )
    return workload


def _refuse(choices: dict[str, Any], layer: MixtureOfExperts) -> None:
    gate = getattr(layer.router, "gate", None)
    parts = [
        GIVEN,
        compatibility.router_part("router", layer.router),
        *([] if gate is None else [compatibility.part("gate", gate)]),
        compatibility.part("expert", layer.experts),
    ]
    for part, need in _lacking(parts):
        raise UsageError(
            f"{part}={choices[part]} (moe bench draws random vectors and ids): {MEANING[need]}. "
            f"Choose another {part}: moe ls {part}"
        )


def _lacking(parts: Sequence[Part]) -> list[tuple[str, str]]:
    given = frozenset[str]().union(*(part.gives for part in parts))
    return [(part.name, need) for part in parts for need in sorted(part.needs - given)]
