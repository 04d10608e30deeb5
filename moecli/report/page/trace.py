"""What a run folder recorded of a layer's test tokens: who served them, by label and together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.analysis.coactivation import coactivation
from moecli.analysis.specialisation import Work, shares
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.report.page.examples import SPLIT


@dataclass(frozen=True)
class LayerTrace:
    """What the run folder recorded of a layer's test tokens."""

    run: Run
    layer: str
    tokens: Mapping[str, NDArray[Any]]
    share: NDArray[np.floating]  # (n, E)
    labels: Mapping[str, Work]

    @classmethod
    def of(cls, run: Run, layer: str) -> LayerTrace:
        tokens = TraceReader(run.path).tokens(layer, SPLIT)
        num_experts = run.layers[layer]["experts"]
        share = shares(tokens, num_experts) if tokens else np.zeros((0, num_experts))
        names = [name.removeprefix("label_") for name in tokens if name.startswith("label_")]
        return cls(run, layer, tokens, share, {name: Work.of(share, tokens[f"label_{name}"]) for name in names})

    def name_of(self, label: str, value: int) -> str:
        return self.run.label_name(label, value)

    @property
    def picks(self) -> bool:
        """Whether a token meets only some of the experts, so that who fires with whom tells something."""
        return bool(len(self.share)) and float((self.share > 0).sum(1).mean()) <= self.share.shape[1] - 1

    @property
    def together(self) -> NDArray[np.floating] | None:
        """Who serves the tokens of whom: (E, E); None where every token meets all experts."""
        if not self.picks:
            return None
        chosen = np.where(self.tokens["weight"] > 0, self.tokens["expert"], -1).astype(int)
        return coactivation(chosen, self.share.shape[1])
