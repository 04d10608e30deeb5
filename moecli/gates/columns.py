"""A gate that reads some of the features: ``gate.columns=[0,2]`` puts this around whatever gate was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moecli.gates.gate import Gate


class Columns(Gate):
    """Logits = gate(x[..., columns]); what the gate models is the density of these columns alone."""

    def __init__(self, gate: Gate, columns: Sequence[int]):
        super().__init__()
        self.gate, self.columns = gate, list(columns)
        self.needs, self.blind, self.inner = gate.needs, gate.blind, gate.inner
        self.gives = gate.gives  # type: ignore[misc]  # an instance's own

    def forward(self, x: Tensor) -> Tensor:  # (N, ..., D) -> (N, E)
        return self.gate(x[..., self.columns])

    def log_joint(self, x: Tensor) -> Tensor:
        return self.gate.log_joint(x[..., self.columns])

    def log_marginal(self, x: Tensor) -> Tensor:
        return self.gate.log_marginal(x[..., self.columns])

    def fit(self, x: Tensor, resp: Tensor, steps: int = 25) -> None:
        self.gate.fit(x[..., self.columns], resp, steps)
