"""A plan given from outside: one that a run recorded, the same one shuffled or edited, or a random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.plan import Sparse
from moecli.routers.top_k import check_k
from moecli.routing import Claims, Router, Routing, Tokens
from moecli.types import PositiveInt, Seed


class Replay(Router):
    """y_n = sum_e w_ne f_e(x_n), where each token's experts and weights stand in the file ``path``.

    The file is what ``moe eval RUN --plans FILE`` writes: arrays ``expert`` (L, M, K) int, -1 where there is none, and
    ``weight`` (L, M, K), for L mixture layers and the M tokens of the task's data, train, valid and test.
    ``change=shuffled`` gives each token another one's plan, which keeps every expert's load and breaks the match.
    Without a file the plan is random: ``k`` experts of weight 1 / k.

    Raises DataError for a file that is none, or that does not fit the data.
    """

    own = Claims(trains_gate=False)
    choices = 0
    needs = frozenset({"known"})
    gives = frozenset()

    def __init__(
        self,
        num_experts: int,
        layer: int = 0,
        path: str | None = None,
        change: Literal["none", "shuffled"] = "none",
        k: PositiveInt = 1,
        seed: Seed = 0,
        **filters,
    ):
        super().__init__(**filters)
        check_k(k, num_experts)
        self.num_experts, self.k, self.seed = num_experts, k, seed * 1_000 + layer
        self.plan = None if path is None else read_plan(Path(path).expanduser(), layer, num_experts)
        if self.plan is None:
            self.graded = False
            self.own = replace(self.own, balanced=k == num_experts)
            return
        expert, weight = self.plan
        if change == "shuffled":
            order = torch.randperm(len(expert), generator=torch.Generator().manual_seed(self.seed))
            self.plan = expert[order], weight[order]
        self.own = replace(self.own, density=bool(((weight.sum(-1) - 1).abs() < 1e-6).all()))
        self.reasons = {"density": "the weights of its file do not sum to one (router.path)"}

    def route(self, tokens: Tokens) -> Routing:
        if "row" not in tokens.known:
            raise UsageError(
                "router=replay (new data): its plan is for the tokens of the task, and these are none. Use router=top_k"
            )
        number = tokens.known["row"] + tokens.position  # (N,)
        expert, weight = self._random(number) if self.plan is None else self._stored(number)
        expert, weight = expert.to(tokens.x.device), weight.to(tokens.x)  # (N, K)
        table = tokens.x.new_zeros(len(expert), self.num_experts)
        table = table.scatter_add(-1, expert.clamp_min(0), weight * (expert >= 0))
        chosen = Sparse.from_mask(table > 0, table.log(), table)
        return Routing(chosen, table / table.sum(-1, keepdim=True).clamp_min(1e-12))

    def _stored(self, number: Tensor) -> tuple[Tensor, Tensor]:
        expert, weight = self.plan  # type: ignore[misc]
        if int(number.max()) >= len(expert):
            raise DataError(
                f"router.path: its plan has {len(expert)} tokens, and token {int(number.max())} was asked for. "
                "Record it from a run of the same task: moe eval RUN --plans FILE"
            )
        return expert[number.cpu()], weight[number.cpu()]

    def _random(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """The k experts with the highest draw, a pure function of (token, expert, seed): (N,) -> (N, K)."""
        expert = torch.arange(self.num_experts, device=number.device)
        drawn = scrambled((number[:, None] * self.num_experts + expert) * 1_000_003 + self.seed)
        top = drawn.topk(self.k, dim=-1).indices
        return top, torch.full(top.shape, 1 / self.k)


def scrambled(key: Tensor) -> Tensor:
    """A well mixed int64 of each key (splitmix64's finaliser)."""
    for factor, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27)):
        key = (key ^ ((key >> shift) & (2 ** (64 - shift) - 1))) * factor
    return key ^ ((key >> 31) & (2**33 - 1))


def read_plan(path: Path, layer: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """Experts (M, K) int64 and weights (M, K) of one layer.  Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            expert, weight = arrays["expert"][layer], arrays["weight"][layer]
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise DataError(
            f"{path}: no plan for mixture layer {layer} ({error}). Write one with: moe eval RUN --plans FILE"
        ) from error
    fits = expert.shape == weight.shape and expert.ndim == 2 and expert.dtype.kind in "iu" and weight.dtype.kind == "f"
    if not fits or expert.max(initial=-1) >= num_experts or not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise DataError(
            f"{path}: its plan does not fit {num_experts} experts, or weights are no finite numbers of at least 0. "
            "Set num_experts to the recorded run's"
        )
    return torch.from_numpy(expert).long(), torch.from_numpy(weight)
