"""The squared error of the answer, averaged over its numbers: the same size for few targets and for many pixels."""

from __future__ import annotations

from torch import Tensor

from moecli.losses.blend_error import BlendError
from moecli.mixture import Mixture


class MeanSquaredError(BlendError):
    """|y - f(x)|^2 / Y, one value per example; of noise in pixels the simple loss of DDPM (Ho et al., 2020, eq. 14).

    (prediction, target) -> (B,).  Classes are compared as vectors of 0 and 1 with the predicted probabilities.
    """

    def __call__(self, prediction: Tensor | Mixture, target: Tensor) -> Tensor:
        rows = prediction.row_mean if isinstance(prediction, Mixture) else prediction
        return super().__call__(prediction, target) / rows.shape[-1]
