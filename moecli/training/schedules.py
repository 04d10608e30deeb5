"""Learning rates as pure functions of the step: share of the top rate at ``step`` of ``steps``."""

from __future__ import annotations

import math
from typing import ClassVar

from moecli.types import Probability


class Constant:
    """The same rate throughout."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


class Cosine(Constant):
    """Linear over the first ``warmup`` share of the steps, then half a cosine down to ``final``."""

    def __init__(self, warmup: Probability = 0.03, final: Probability = 0.05):
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, steps: int) -> float:
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(steps - rise, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
