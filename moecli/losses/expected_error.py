"""The expected error of one expert drawn by the gate: each expert learns the whole answer by itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from moecli.losses.blend_error import as_vectors
from moecli.mixture import Mixture


class ExpectedError:
    """sum_e g_e |y - f_e(x)|^2, one value per example (Jacobs et al., 1991, eq. 1.2).

    (prediction, target) -> (B,).  It exceeds the blend's error by the experts' disagreement.  Classes
    are compared as vectors of 0 and 1 with each expert's probabilities.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mixture"})
    gives: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prediction: Mixture, target: Tensor) -> Tensor:
        plan = prediction.routing.plan
        error = plan.dispatch(as_vectors(target, prediction)) - prediction.row_mean  # (R, Y)
        return plan.combine(error.square().sum(-1, keepdim=True))[:, 0]
