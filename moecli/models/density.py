"""The classical mixture of experts: one gate, experts and a family make p(y | x)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moecli.mixture import MixtureDensity, Output, together
from moecli.models.layer import expert_table
from moecli.models.model import Known, Layer, Model
from moecli.parts import Parts
from moecli.routing import Tokens


class DensityModel(Model):
    """x (B, D) -> the density p(y | x) = sum_e p(e | x) p_e(y | x)."""

    needs = frozenset({"items", "density", "family"})
    gives = frozenset({"mixture"})

    def __init__(self, parts: Parts, dim: int, out: int, **options: Any):
        super().__init__(**options)
        self.layer0 = parts.named(["layer0"], self.overrides).density("layer0", dim=dim, out=out)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        mixture = self.layer0(Tokens.items(x, known))
        return Output(mixture, {"layer0": mixture.routing})

    @property
    def mixtures(self) -> dict[str, Layer]:
        return {"layer0": self.layer0}

    def replace(self, name: str, layer: Layer) -> None:
        setattr(self, name, layer)

    def experts_alone(self, x: Tensor) -> Tensor | None:
        layer: MixtureDensity = self.layer0
        plan = together(layer.experts, x)
        return expert_table(layer.family.mean(layer.experts.rows(plan, x), plan.groups), len(x))
