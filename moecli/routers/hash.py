"""Fixed experts from a table over ids or places, and no gate (Roller et al., 2021)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens
from moecli.types import PositiveInt, Seed

BUCKETS = 4096  # of keys that are no single id: pairs of ids, positions


class Hash(Router):
    """y = f_e(x) with e = table_l[key] at layer l, key the token's ``id``, the ``previous`` id, both (``bigram``) or its ``position``.

    ``table=random`` deals experts out evenly over the keys.  The others are built from the first batch: ``balanced``
    gives the most frequent key to the least busy expert, ``clustered`` one expert to keys whose tokens look alike
    (k-means), ``dispersed`` different experts to them.  With several ``hashes`` each has its own table over its own
    equal block of experts, and a token's experts add up; every table depends on ``seed`` and the layer.
    """

    own = Claims(trains_gate=False)
    graded = False
    needs = frozenset({"ids"})
    gives = frozenset()
    table: Tensor  # (H, keys) int64

    def __init__(
        self,
        vocab_size: int,
        num_experts: int,
        layer: int = 0,
        by: Literal["id", "previous", "bigram", "position"] = "id",
        table: Literal["random", "balanced", "clustered", "dispersed"] = "random",
        hashes: PositiveInt = 1,
        seed: Seed = 0,
        **filters,
    ):
        super().__init__(**filters)
        if num_experts % hashes:
            raise UsageError(
                f"router.hashes={hashes}: {num_experts} experts do not divide into blocks for so many. "
                "Change router.hashes or num_experts"
            )
        self.by, self.kind, self.num_experts, self.size = by, table, num_experts, num_experts // hashes
        self.random = [torch.Generator().manual_seed((seed * 1_000 + layer) * 100 + h) for h in range(hashes)]
        keys = {"id": vocab_size, "previous": vocab_size + 1}.get(by, BUCKETS)
        self.register_buffer("table", torch.stack([torch.randperm(keys, generator=r) % self.size for r in self.random]))
        self.own = replace(self.own, density=hashes == 1, independent=by in ("id", "position"))
        self.choices = 0 if by == "position" else 1  # each table has experts of its own, so its ranks never compete
        self.reasons = {"density": "the experts of several hashes add up (router.hashes)"}

    def route(self, tokens: Tokens) -> Routing:
        own = self.table[:, self._key(tokens)].T  # (N, H)
        block = torch.arange(len(self.table), device=own.device) * self.size
        chosen = Sparse.from_choices(own + block, tokens.x.new_zeros(own.shape), self.num_experts)
        probs = F.one_hot(own + block, self.num_experts).sum(1).to(tokens.x.dtype) / len(self.table)
        return Routing(chosen, probs)

    def _key(self, tokens: Tokens) -> Tensor:  # -> (N,)
        if self.by == "position":
            return tokens.position % BUCKETS
        if tokens.ids is None:
            raise ValueError("the hash router needs token ids; these tokens have none")
        own, previous = tokens.ids[:, 0], tokens.ids[:, 1] + 1  # 0 before the start
        if self.by == "id":
            return own
        return previous if self.by == "previous" else (own * 1_000_003 + previous * 7_919) % BUCKETS

    @torch.no_grad()
    def prepare(self, sample: Tokens) -> None:
        if self.kind != "random":
            key = self._key(sample)
            tables = [self._built(key, sample.x, random) for random in self.random]
            self.table.copy_(torch.stack(tables))

    def _built(self, key: Tensor, x: Tensor, random: torch.Generator) -> Tensor:
        keys = self.table.shape[1]
        count = torch.bincount(key, minlength=keys)
        if self.kind == "balanced":
            return dealt_by_frequency(count, self.size, random)
        mean = (
            torch.zeros(keys, x[0].numel(), dtype=x.dtype).index_add(0, key, x.flatten(1)) / count.clamp_min(1)[:, None]
        )
        cluster = clusters(mean, count, self.size, int(torch.randint(2**31, (), generator=random)))
        if self.kind == "clustered":
            return cluster
        return torch.empty_like(cluster).scatter(0, cluster.argsort(stable=True), torch.arange(keys) % self.size)


def dealt_by_frequency(count: Tensor, num_experts: int, random: torch.Generator) -> Tensor:
    """Each key, the most frequent first, to the expert with the least so far: (keys,) -> (keys,).

    Keys that were not seen count a little, so that they spread too; equal ones are taken in a random order.
    """
    shuffled = torch.randperm(len(count), generator=random)
    order = shuffled[count[shuffled].argsort(descending=True, stable=True)].tolist()
    busy, table = [0.0] * num_experts, torch.zeros_like(count)
    for key in order:
        expert = min(range(num_experts), key=busy.__getitem__)
        table[key] = expert
        busy[expert] += int(count[key]) + 1 / len(count)
    return table


def clusters(mean: Tensor, count: Tensor, number: int, seed: int) -> Tensor:
    """k-means over what a key's tokens look like (keys, D), weighted by how often they come: (keys,) int64."""
    from sklearn.cluster import KMeans

    fitted = KMeans(number, n_init=1, random_state=seed).fit(mean.numpy(), sample_weight=count.numpy() + 1e-3)
    return torch.from_numpy(fitted.labels_).long()
