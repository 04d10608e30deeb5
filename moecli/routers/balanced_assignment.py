"""BASE: in training a balanced assignment of tokens to experts, the best there is (Lewis et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens


class BalancedAssignment(Router):
    """Maximise sum_n logits[n, e(n)] so that expert counts differ by at most one; y = sigmoid(logit_e) f_e(x).

    Evaluation takes each token's best expert, so no other token matters there.
    """

    needs = frozenset({"odds"})
    own = Claims(density=False)
    own_in_training = Claims(density=False, balanced=True, causal=False, independent=False)
    reasons = {  # noqa: RUF012
        "density": "its one weight is a sigmoid below one",
        "causal": "in training tokens compete for the experts' places",
    }

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, **filters):
        super().__init__(**filters)
        self.gate = gate(num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        liking = logits.detach()
        best = assign(liking) if self.training else liking.argmax(-1)
        log_weight = F.logsigmoid(logits.gather(-1, best[:, None]))  # (N, 1)
        chosen = Sparse.from_choices(best[:, None], log_weight, logits.shape[-1])
        return Routing(chosen, logits.softmax(-1), logits)


def assign(value: Tensor, precision: float = 1e-3) -> Tensor:
    """The balanced assignment of greatest value, by auction: value (N, E) -> expert (N,) int64.

    Each expert has the ``places`` below.  The total is within ``precision`` times the spread of values of the best
    one's, however many tokens there are: the last round's bids rise by that spread times ``precision`` / N
    (Bertsekas, 1992: auction with similar objects and epsilon scaling).
    """
    n, e = value.shape
    if e == 1 or n == 0:
        return value.new_zeros(n, dtype=torch.int64)
    value = value.double() - value.max()  # prices step by shares of the spread, which a large offset would swallow
    spread = float(value.max() - value.min()) or 1.0
    epsilon, last = spread / 4, precision * spread / (2 * n)
    open_to = places(value).nonzero()[:, 0]  # with fewer tokens than experts, some have no place
    value, room = value[:, open_to], places(value)[open_to]
    price = value.new_zeros(len(open_to))
    while True:
        owner, price = _auction(value, room, price, epsilon)
        if epsilon <= last:
            return open_to[owner]
        epsilon = max(epsilon / 5, last)


def places(value: Tensor) -> Tensor:
    """How many tokens each expert takes: floor(N / E), and one more for those that most tokens like best; (E,)."""
    n, e = value.shape
    wanted = torch.zeros(e, dtype=torch.int64, device=value.device)
    wanted.index_add_(0, value.argmax(-1), torch.ones(n, dtype=torch.int64, device=value.device))
    extra = torch.zeros_like(wanted).index_fill(0, wanted.argsort(descending=True, stable=True)[: n % e], 1)
    return n // e + extra


def _auction(value: Tensor, room: Tensor, price: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """One round: value (B, M), room (M,) that sums to B -> the object of each bidder (B,), and prices (M,).

    Bidders without a place bid for the object they gain most by, by as much as they would rather have it
    than the next; each object keeps its highest bids, and costs the lowest of them once it is full.
    """
    owner = value.new_full((len(value),), -1, dtype=torch.int64)  # the object each bidder holds
    bid = value.new_zeros(len(value))
    if len(room) == 1:
        return owner.zero_(), price
    while True:
        free = (owner < 0).nonzero()[:, 0]
        if not len(free):
            return owner, price
        gain, wanted = (value[free] - price).topk(2, dim=-1)
        owner[free], bid[free] = wanted[:, 0], price[wanted[:, 0]] + gain[:, 0] - gain[:, 1] + epsilon
        order = bid.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]  # by object, the highest bids first
        queue = owner[order]
        rank = torch.arange(len(queue), device=queue.device) - torch.searchsorted(queue, queue)
        held = rank < room[queue]
        lowest = held & (rank == room[queue] - 1)
        price = price.index_put((queue[lowest],), bid[order[lowest]])
        owner[order[~held]] = -1
