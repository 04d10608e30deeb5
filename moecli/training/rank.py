"""How rich a language model's answers are: the numerical rank of its log-probabilities over many contexts."""

from __future__ import annotations

import copy

import torch

from moecli.models.model import Model
from moecli.tasks.kinds import Language
from moecli.tasks.task import Task

CONTEXTS = 1024  # of the split, in whole sequences spread evenly over it
MOST_NUMBERS = 2**22  # of the matrix: what a second decomposes


@torch.no_grad()
def log_prob_rank(model: Model, task: Task, split: str, device: torch.device) -> dict[str, float]:
    """``{"log_prob_rank": r}`` of the matrix log P (contexts, V) in float64 (Yang et al., 2018); else nothing.

    Contexts are places of the split whose next word is scored.
    r counts the singular values above max(contexts, V) * 2.2e-16 times the largest, as numpy does.  The model computes
    in float64 too, so that rounding stays below: with one softmax r is at most D + 1, and never more than V.  Nothing
    for tasks that are not language, and where the matrix has more than 4 million numbers.
    """
    if not isinstance(task.kind, Language) or CONTEXTS * task.out > MOST_NUMBERS:
        return {}
    length = task.batch(split, torch.tensor([0])).target.shape[1]
    number = min(task.sizes[split], -(-CONTEXTS // length))
    batch = task.batch(split, torch.arange(number) * task.sizes[split] // number).to(device)
    precise = copy.deepcopy(model).double().eval()
    log_probs = precise(batch.x, batch.known).prediction.log_softmax(-1)[batch.target >= 0][:CONTEXTS]
    return {"log_prob_rank": float(torch.linalg.matrix_rank(log_probs))}
