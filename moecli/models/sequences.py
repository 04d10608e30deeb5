"""A batch of sequences as a model reads it: which places hold a token, and what a mixture sees of them.

An id of -1 is padding: no token, so no router meets it, attention passes it by, and recurrences wait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moecli.mixture import MixtureOfExperts
from moecli.models.model import Known
from moecli.routing import Routing, Tokens


@dataclass(frozen=True)
class Sequences:
    """Ids (B, T), the first of them at place ``start``; ``here`` (B, T) is where tokens are, None if everywhere."""

    ids: Tensor
    known: Known = None
    start: int = 0
    here: Tensor | None = None

    @classmethod
    def of(cls, ids: Tensor, known: Known = None, start: int = 0) -> Sequences:
        return cls(ids, known, start, present(ids))

    @property
    def filled(self) -> Tensor:
        """Ids that an embedding can look up: some id stands for none."""
        return self.ids if self.here is None else self.ids.clamp_min(0)

    def serve(self, feed: nn.Module, x: Tensor, previous: Routing | None) -> tuple[Tensor, Routing | None]:
        """y (B, T, D) of x (B, T, D), and the decision where ``feed`` is a mixture; its padding answers zero."""
        if not isinstance(feed, MixtureOfExperts):
            return feed(x), None
        tokens = Tokens.sequences(x, self.ids, self.known, start=self.start, here=self.here)
        y, routing = feed(replace(tokens, previous=previous))
        return self._back(y, x), routing

    def _back(self, y: Tensor, x: Tensor) -> Tensor:  # (N, D) -> (B, T, D)
        if self.here is None:
            return y.view_as(x)
        return torch.zeros_like(x).index_put((self.here,), y)


def present(ids: Tensor) -> Tensor | None:
    """Where there is a token: (B, T) bool; None where there is one everywhere, and where ids are a shape alone."""
    return None if ids.is_meta or bool((ids >= 0).all()) else ids >= 0


def followed(before: Tensor | None, after: Tensor | None, ids: Tensor, length: int) -> Tensor | None:
    """Where there are tokens among ``length`` places and those of ``ids`` (B, T) behind them: (B, length + T)."""
    if before is None and after is None:
        return None
    everywhere = torch.ones_like(ids[:, :1], dtype=torch.bool)
    before = everywhere.expand(-1, length) if before is None else before
    return torch.cat([before, everywhere.expand_as(ids) if after is None else after], dim=1)
