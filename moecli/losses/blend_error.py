"""The error of the blend: experts that share one error learn to cancel each other's."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from moecli.losses.places import mean_scored
from moecli.mixture import Mixture


class BlendError:
    """|y - sum_e g_e f_e(x)|^2, one value per example (Hampshire & Waibel, 1992; Jacobs et al., 1991, eq. 1.1).

    (prediction, target) -> (B,).  Classes are compared as vectors of 0 and 1 with the predicted
    probabilities; a sequence's places are averaged, but for those of target -1.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prediction: Tensor | Mixture, target: Tensor) -> Tensor:
        places = (_point(prediction, target) - as_vectors(target, prediction)).square().sum(-1)
        return mean_scored(places, target)


def _point(prediction: Tensor | Mixture, target: Tensor) -> Tensor:  # -> (B, ..., Y)
    if isinstance(prediction, Mixture):
        return prediction.mean
    return prediction if target.is_floating_point() else prediction.softmax(-1)


def as_vectors(target: Tensor, prediction: Tensor | Mixture) -> Tensor:
    """Real targets as they are, classes as 0 and 1: (B, ..., Y)."""
    if target.is_floating_point():
        return target
    rows = prediction.row_mean if isinstance(prediction, Mixture) else prediction
    return F.one_hot(target.clamp_min(0), rows.shape[-1]).to(rows.dtype)
