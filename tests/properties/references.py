"""Each router's formula in plain loops: the obvious twin of every file in moecli/routers.

A reference takes the tokens, the number of experts, the options and whether it trains, and answers the weights (N, E)
and the belief (N, E), both with the gradient that they should carry.  Noise is drawn as the router draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.routing import Tokens

Answer = tuple[Tensor, Tensor]
Reference = Callable[..., Answer]


def best(liking: Tensor, k: int) -> Tensor:
    """The k largest of each row by a full sort, as a mask (N, E)."""
    chosen = torch.zeros_like(liking, dtype=torch.bool)
    for n, row in enumerate(liking.tolist()):
        for e in sorted(range(len(row)), key=lambda e, row=row: -row[e])[:k]:
            chosen[n, e] = True
    return chosen


def shares(logits: Tensor, chosen: Tensor) -> Tensor:
    """exp(logit) of the chosen over their sum, zero for the others."""
    odds = (logits - logits.detach().amax(-1, keepdim=True)).exp() * chosen
    return odds / odds.sum(-1, keepdim=True)


def belief(logits: Tensor) -> Tensor:
    return shares(logits, torch.ones_like(logits))


def argmax(t: Tokens, e: int, training: bool) -> Answer:
    logits = t.x[:, :e]
    return best(logits, 1).double(), belief(logits)


def bernoulli(t: Tokens, e: int, training: bool) -> Answer:
    chance = 1 / (1 + (-t.x[:, :e]).exp())
    on = torch.rand_like(chance) < chance if training else chance > 0.5
    return on.double(), chance / chance.sum(-1, keepdim=True)


def dense(t: Tokens, e: int, training: bool) -> Answer:
    return belief(t.x[:, :e]), belief(t.x[:, :e])


def members(t: Tokens, group: str) -> list[list[int]]:
    key = {"auto": t.group, "position": t.position, "batch": torch.zeros_like(t.group)}[group].tolist()
    return [[n for n, own in enumerate(key) if own == g] for g in sorted(set(key))]


def places(work: int, factor: float, e: int) -> int:
    """Fair share times the factor, rounded up in exact fractions, at least one."""
    return max(1, math.ceil(min(Fraction(str(factor)), e) * work / e))


def expert_choice(t: Tokens, e: int, training: bool, capacity_factor: float = 2.0, group: str = "auto") -> Answer:
    probs = belief(t.x[:, :e])
    liking, chosen = probs.tolist(), torch.zeros_like(probs)
    for inside in members(t, group):
        for expert in range(e):
            liked = sorted(inside, key=lambda n, expert=expert: -liking[n][expert])
            chosen[liked[: places(len(inside), capacity_factor, e)], expert] = 1
    return probs * chosen, probs


def strongest(liking: Tensor, groups: int, limit: int, best_of: int) -> Tensor:
    """Whether an expert stands in one of the ``limit`` groups whose ``best_of`` best experts sum highest."""
    size = liking.shape[1] // groups
    strength = torch.tensor(
        [[sum(sorted(row[g * size : (g + 1) * size])[-best_of:]) for g in range(groups)] for row in liking.tolist()]
    )
    return best(strength, limit).repeat_interleave(size, dim=1)


def group_limited(
    t: Tokens, e: int, training: bool, groups: int = 4, limit: int = 2, k: int = 2, renormalize=False, scale=1.0
) -> Answer:
    logits = t.x[:, :e]
    chosen = best(logits.masked_fill(~strongest(logits.detach(), groups, limit, 1), -math.inf), k)
    weight = shares(logits, chosen) if renormalize else belief(logits) * chosen
    return scale * weight, belief(logits)


def hashed(t: Tokens, e: int, training: bool, tables: Tensor, by: str = "id") -> Answer:
    own, previous = t.ids.unbind(-1)
    key = {"id": own, "previous": previous + 1, "position": t.position}.get(by)
    key = (own * 1_000_003 + (previous + 1) * 7_919) % 4096 if key is None else key
    weight = torch.zeros(len(t.x), e, dtype=t.x.dtype)
    for h, table in enumerate(tables.tolist()):
        for n, place in enumerate(key.tolist()):
            weight[n, h * (e // len(tables)) + table[place]] += 1
    return weight, weight / len(tables)


def noisy(clean: Tensor, raw: Tensor, training: bool) -> Tensor:
    std = (1 + raw.exp()).log() + 1e-2
    return clean + std * torch.randn_like(clean) if training else clean


def noisy_top_k(t: Tokens, e: int, training: bool, k: int = 2) -> Answer:
    logits = noisy(t.x[:, :e], t.x[:, e : 2 * e], training)
    return shares(logits, best(logits, k)), belief(logits)


def hierarchical(t: Tokens, e: int, training: bool, groups: int = 2, k_groups: int = 1, k: int = 2) -> Answer:
    size, inside = e // groups, 2 * groups
    outer = noisy(t.x[:, :groups], t.x[:, groups:inside], training)
    inner = noisy(t.x[:, inside : inside + e], t.x[:, inside + e : inside + 2 * e], training)
    primary = shares(outer, best(outer, k_groups))
    weights, probs = [], []
    for g in range(groups):
        own = inner[:, g * size : (g + 1) * size]
        weights.append(primary[:, g, None] * shares(own, best(own, k)))
        probs.append(belief(outer)[:, g, None] * belief(own))
    return torch.cat(weights, -1), torch.cat(probs, -1)


def oracle(t: Tokens, e: int, training: bool, label: str = "label") -> Answer:
    weight = F.one_hot(t.known[label] % e, e).double()
    return weight, weight


def random_second(t: Tokens, e: int, training: bool, threshold: float = 0.5, policy: str = "random") -> Answer:
    logits = t.x[:, :e]
    first = best(logits, 1)
    liking = logits.detach()
    if policy == "sampled" and training:
        liking = liking - torch.empty_like(liking).exponential_().log()
    second = best(liking.masked_fill(first, -math.inf), 1)
    weight = shares(logits, first | second)
    g2 = (weight.detach() * second).sum(-1)
    kept = torch.ones(len(logits), dtype=torch.bool)
    if policy == "threshold":
        kept = g2 > threshold
    elif policy == "random" and training:
        kept = torch.rand_like(g2) < g2 / threshold
    return weight * (first | (second & kept[:, None])), belief(logits)


def sampled(t: Tokens, e: int, training: bool) -> Answer:
    probs = belief(t.x[:, :e])
    drawn = probs.detach().multinomial(1)[:, 0] if training else probs.argmax(-1)
    return F.one_hot(drawn, e).double(), probs


def sigmoid_bias(
    t: Tokens, e: int, training: bool, bias: Tensor, k=2, renormalize=True, scale=1.0, groups=1, limit=1
) -> Answer:
    score = 1 / (1 + (-t.x[:, :e]).exp())
    liking = score.detach() + bias
    within = strongest(liking, groups, limit, min(2, e // groups))
    chosen = best(liking.masked_fill(~within, -math.inf), k)
    weight = score * chosen
    if renormalize:
        weight = weight / weight.sum(-1, keepdim=True)
    return scale * weight, score / score.sum(-1, keepdim=True)


def transported(logits: Tensor, iterations: int) -> Tensor:
    """Columns to N / E, then rows to 1, and so on: (N, E)."""
    n, e = logits.shape
    plan = (logits - logits.amax()).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(0) * (n / e)
        plan = plan / plan.sum(1, keepdim=True)
    return plan


def sinkhorn(t: Tokens, e: int, training: bool, k: int = 1, temperature: float = 1.0, iterations: int = 30) -> Answer:
    logits = t.x[:, :e]
    liking = transported(logits.detach() / temperature, iterations) if training else logits
    return belief(logits) * best(liking, k), belief(logits)


def straight_through(t: Tokens, e: int, training: bool, sample: bool = False) -> Answer:
    probs = belief(t.x[:, :e])
    drawn = probs.detach().multinomial(1)[:, 0] if sample and training else probs.argmax(-1)
    return F.one_hot(drawn, e) * (1 + probs - probs.detach()), probs


def top_k(
    t: Tokens, e: int, training: bool, k: int = 2, renormalize=True, scale=1.0, jitter: float = 0.0, noise: float = 0.0
) -> Answer:
    x = t.x
    if training and jitter:
        x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
    logits = x[:, :e]
    if training and noise:
        logits = logits + noise / e * torch.randn_like(logits)
    chosen = best(logits, k)
    weight = shares(logits, chosen) if renormalize else belief(logits) * chosen
    return scale * weight, belief(logits)


def top_p(t: Tokens, e: int, training: bool, p: float = 0.4, renormalize: bool = False) -> Answer:
    probs = belief(t.x[:, :e])
    chosen = torch.zeros_like(probs, dtype=torch.bool)
    for n, row in enumerate(probs.tolist()):
        total = 0.0
        for expert in sorted(range(e), key=lambda e, row=row: -row[e]):
            chosen[n, expert] = True
            total += row[expert]
            if total >= p:
                break
    weight = shares(t.x[:, :e], chosen) if renormalize else probs * chosen
    return weight, probs


REFERENCES: dict[str, Reference] = {
    "argmax": argmax, "bernoulli": bernoulli, "catch_up": dense, "dense": dense, "expert_choice": expert_choice,
    "group_limited": group_limited, "hash": hashed, "hierarchical": hierarchical, "noisy_top_k": noisy_top_k,
    "oracle": oracle, "random_second": random_second, "sampled": sampled, "sigmoid_bias": sigmoid_bias,
    "sinkhorn": sinkhorn, "straight_through": straight_through, "top_k": top_k, "top_p": top_p,
}  # fmt: skip
