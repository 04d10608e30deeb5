"""A gate that models each column of x by an exponential family of its own (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.gates.columnwise import Bernoulli, Columnwise, Gamma, Poisson
from moecli.gates.gaussian import DiagonalNormal
from moecli.gates.generative import Density, Generative
from moecli.types import PositiveFloat


class Exponential(Generative):
    """Logits = log share_e + sum_d log p_ed(x_d): Gaussian, Bernoulli, Poisson or gamma columns.

    ``families`` names one family for all columns or one for each.  Gaussian columns are gate=gaussian; Bernoulli
    ones make the gate naive Bayes.  Raises UsageError where there are neither one nor as many families as
    columns, and in training for a value that its family cannot have; in evaluation the nearest it can have counts.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        families: Literal["gaussian", "bernoulli", "poisson", "gamma"]
        | list[Literal["gaussian", "bernoulli", "poisson", "gamma"]] = "gaussian",
        min_var: PositiveFloat = 1e-4,
    ):
        named = [families] if isinstance(families, str) else families
        if len(named) not in (1, dim):
            raise UsageError(
                f"gate.families=[{','.join(named)}]: {len(named)} families for {dim} columns. Give one for all, "
                "or one for each"
            )
        super().__init__(Product(named * (dim // len(named)), num_experts, min_var), num_experts)


class Product(Density):
    """Independent columns (Density of each family's own): their log-densities add up."""

    made: ClassVar[dict[str, type[Columnwise]]] = {"bernoulli": Bernoulli, "poisson": Poisson, "gamma": Gamma}

    def __init__(self, families: Sequence[str], num_experts: int, min_var: float):
        super().__init__()
        self.columns = {family: [d for d, f in enumerate(families) if f == family] for family in sorted({*families})}
        self.densities: Any = nn.ModuleDict(
            {
                family: self.made[family](len(columns), num_experts)
                if family in self.made
                else DiagonalNormal(len(columns), num_experts, min_var)
                for family, columns in self.columns.items()
            }
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        parts = self._parts(x, strict=self.training)
        return sum(density(columns) for density, columns in parts)

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        for density, columns in self._parts(x, strict=True):
            density.fit(columns, share, alive)

    def _parts(self, x: Tensor, strict: bool) -> list[tuple[Density, Tensor]]:
        """Each density with its columns, every value one that it can have."""
        parts = []
        for family, density in self.densities.items():
            values = x[:, self.columns[family]]
            if isinstance(density, Columnwise):
                if strict:
                    refuse_impossible(family, density, values, self.columns[family])
                values = density.nearest(values)
            parts.append((density, values))
        return parts


def refuse_impossible(family: str, density: Columnwise, values: Tensor, columns: list[int]) -> None:
    """Raise UsageError with the first value that the family cannot have."""
    wrong = ~density.possible(values)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise UsageError(
            f"gate.families (gate=exponential): feature {columns[column]} holds {values[row, column]:g}, and {family} "
            f"wants {density.wants}. Give this feature another family, or leave it as it is in the data "
            "(task.standardize=false)"
        )
