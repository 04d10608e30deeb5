"""What reads an expert's rows as a distribution, with parameters of its own for each expert."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.distributions import Distribution

from moecli.plan import Groups


class Family(nn.Module):
    """(rows (R, width(out)), groups) -> Distribution with batch (R,).

    Under EM a family turns its likelihood into weighted least squares for the experts (``working``)
    and fits its own parameters (``fit``), so that one linear expert serves every family.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"family"})

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        raise NotImplementedError

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, Y) -> (R, Y)
        """The expected target of each row; class probabilities for a categorical one."""
        return rows

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Working response and weights (N, E, Y) for rows ``loc`` (N, E, Y) and targets (N, Y)."""
        raise NotImplementedError

    def fit(self, loc: Tensor, y: Tensor, resp: Tensor) -> None:
        """Raise sum resp log p(y | loc) over the family's own parameters; resp (N, E)."""

    def alone(self) -> Family:
        """A fresh family of the same kind for a single expert."""
        raise NotImplementedError
