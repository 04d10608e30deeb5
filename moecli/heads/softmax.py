"""One softmax: the head that language models have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from moecli.heads.head import Head


class Softmax(Head):
    """P(v | g) = softmax(W g)_v: over any contexts log P has a rank of at most D + 1 (Yang et al., 2018).

    D for W g, and one for the normaliser, which is the same for all words of a context.  The metric ``log_prob_rank``
    counts the singular values of log P, in float64, above max(contexts, V) * 2.2e-16 times the largest.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()

    def forward(self, state: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(state, matrix)
