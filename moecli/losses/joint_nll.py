"""The likelihood of inputs and targets together, for gates that model x."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from moecli.mixture import Mixture


class JointNegativeLogLikelihood:
    """-log p(y, x) = -log p(y | x) - log p(x), in nats, one value per example (Xu, Jordan & Hinton, 1995).

    (prediction, target) -> (B,).  What EM lowers; equal to ``nll`` where the gate does not model x.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mixture"})
    gives: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prediction: Mixture, target: Tensor) -> Tensor:
        return -(prediction.log_prob(target) + prediction.log_marginal)
