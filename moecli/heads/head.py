"""What all heads share: the state of a language model -> scores of the next word, all over one vocabulary."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """State (..., D) and an output matrix (V, D) -> logits or log-probabilities (..., V).

    Which of the two makes no difference to a cross-entropy: its log_softmax leaves log-probabilities as they are,
    for log sum_v exp(log p_v) = 0.  The matrix is the model's, because it may be its embedding; a head that is
    ``separate`` has matrices of its own and reads none.
    """

    separate: bool = False

    def forward(self, state: Tensor, matrix: Tensor) -> Tensor:
        raise NotImplementedError
