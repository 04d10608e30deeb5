"""The task loss: negative log-likelihood of the targets, in nats."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from moecli.losses.places import mean_scored
from moecli.mixture import Mixture


class NegativeLogLikelihood:
    """(prediction, target) -> (B,), one value per example.

    A mixture density: -log sum_e p(e | x) p_e(y | x) (Jacobs et al., 1991, eq. 1.3).  Logits with
    integer targets: cross-entropy, averaged over a sequence's places but for those of target -1.  Real targets: half the
    squared error, which is the likelihood of a unit-variance Gaussian up to a constant.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prediction: Tensor | Mixture, target: Tensor) -> Tensor:
        if isinstance(prediction, Mixture):
            return -prediction.log_prob(target)
        if target.is_floating_point():
            return 0.5 * (prediction - target).square().sum(-1)
        places = F.cross_entropy(prediction.flatten(0, -2), target.flatten(), ignore_index=-1, reduction="none")
        return mean_scored(places, target)
