"""What every model is: inputs -> Output, with its mixture layers known by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from moecli.mixture import MixtureDensity, MixtureOfExperts, Output

Layer = MixtureOfExperts | MixtureDensity
Known = Mapping[str, Tensor] | None  # labels (B,) or (B, T), and the row (B,) of each example, for routers that ask


class Model(nn.Module):
    """A network with mixtures in it.  ``needs`` and ``gives`` are matched against the other parts."""

    needs: frozenset[str] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, twin: bool = False, allow_leak: bool = False, layers: dict[str, Any] | None = None):
        super().__init__()
        self.is_twin, self.allow_leak, self.overrides = twin, allow_leak, layers or {}

    def forward(self, x: Tensor, known: Known = None) -> Output:
        raise NotImplementedError

    @property
    def mixtures(self) -> dict[str, Layer]:
        """The mixture layers in forward order."""
        raise NotImplementedError

    def replace(self, name: str, layer: Layer) -> None:
        """Put another layer in a mixture's place."""
        raise NotImplementedError

    def experts_alone(self, x: Tensor) -> Tensor | None:
        """What each expert would predict for x (N, D) by itself: (N, E, Y), where that has a meaning."""
        return None
