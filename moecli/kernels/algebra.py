"""Plain functions of tensors that parts of several kinds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHORT = 16  # entries of a row from which torch's CPU code goes along it at full speed


def log_softmax(x: Tensor) -> Tensor:
    """Along rows (N, E); short ones are laid across first, which takes a sixth of the time."""
    across = x.shape[1] < SHORT and x.device.type == "cpu"
    return x.T.log_softmax(0).T if across else x.log_softmax(-1)


def products(rows: Tensor) -> Tensor:
    """Each row times itself and those after it: (F, N) -> (F (F + 1) / 2, N), as ``triu_indices`` orders them.

    One slice at a time: gathering both factors first takes three times as long.
    """
    f, n = rows.shape
    table, start = rows.new_empty(f * (f + 1) // 2, n), 0
    for i in range(f):
        torch.mul(rows[i:], rows[i], out=table[start : start + f - i])
        start += f - i
    return table


def descend(parameters: Sequence[Tensor], loss: Callable[[Callable[[Tensor], object]], float], steps: int) -> None:
    """Some steps of L-BFGS with a strong Wolfe line search, undone where the loss did not fall.

    ``loss(use)`` is a sum of parts, each of which it hands to ``use``, so that no more than one part's graph is kept.
    """
    old = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> float:
        optimizer.zero_grad()
        return loss(lambda part: part.backward())

    with torch.enable_grad():
        start = float(optimizer.step(closure))
    with torch.no_grad():
        if not loss(lambda part: None) <= start:
            for parameter, value in zip(parameters, old, strict=True):
                parameter.copy_(value)
    optimizer.zero_grad()
