"""What reads an expert's rows as a distribution, with parameters of its own for each expert."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from moecli.plan import Dense, Groups

EMPTY = 1e-8  # rows' worth of responsibility: an expert with less keeps its parameters

Statistics = dict[str, Tensor]  # by name, each (E, ...): sums over rows, so that pieces add up


class Family(nn.Module):
    """(rows (R, Y), groups) -> Distribution with batch (R,).

    Under EM a family turns its likelihood into weighted least squares for the experts (``working``)
    and fits its own parameters to sums over rows (``statistics``, ``adopt``), so that one linear expert
    serves every family and no table of all rows is needed at once.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"family", "family fit"})

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        raise NotImplementedError

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, Y) -> (R, Y)
        """The expected target of each row; class probabilities for a categorical one."""
        return rows

    def log_prob(self, loc: Tensor, y: Tensor) -> Tensor:
        """Log p_e(y | loc) of every expert for every row: loc (N, E, Y), targets (N, ...) -> (N, E)."""
        everyone = Dense(loc.new_zeros(loc.shape[:2]))
        rows = loc.transpose(0, 1).flatten(0, 1)  # (N, E, Y) -> (E N, Y)
        return everyone.joint(self(rows, everyone.groups).log_prob(everyone.dispatch(y)))

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Response z (N, E, Y) and weight w, (N, E, Y) or (N, E, 1) where the targets share it.

        The weighted least squares step towards z climbs the likelihood from ``loc``: w (z - loc) is its
        gradient, and w its curvature or more.
        """
        raise NotImplementedError

    def statistics(self, loc: Tensor, y: Tensor, resp: Tensor) -> Statistics:
        """What ``adopt`` needs of these rows: loc (N, E, Y), y (N, Y), resp (N, E)."""
        return {}

    def adopt(self, statistics: Statistics) -> None:
        """Raise sum resp log p(y | loc) over the family's own parameters; an empty expert keeps its own."""

    def fit(self, loc: Tensor, y: Tensor, resp: Tensor) -> None:
        """``adopt`` the statistics of all rows at once."""
        self.adopt(self.statistics(loc, y, resp))

    def cornered(self) -> Tensor:
        """Experts whose own parameters stand at a bound that keeps the likelihood finite: (E,) bool."""
        return torch.zeros(0, dtype=torch.bool)

    def alone(self) -> Family:
        """A fresh family of the same kind for a single expert."""
        raise NotImplementedError


def replace_where(alive: Tensor, parameter: Tensor, value: Tensor) -> None:
    """Copy the rows of ``value`` (E, ...) into ``parameter`` where ``alive`` (E,)."""
    parameter.copy_(torch.where(alive.view(-1, *[1] * (parameter.ndim - 1)), value, parameter))
