"""The contract of a router, observed: what it claims is proved by perturbing what it sees.

For whoever adds a router: ``check_router(small_router("mine"))`` is a test of one line, with
``small_router`` from ``moecli.compatibility``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from moecli.compatibility import SMALL
from moecli.experts.linear import Linear
from moecli.plan import Plan, Slots
from moecli.routing import Claims, Router, Tokens

DIM, EXPERTS, VOCAB = SMALL["dim"], SMALL["num_experts"], SMALL["vocab_size"]
SEQUENCES, LENGTH = 3, 14
TRIALS = 4  # random inputs; a property holds if none breaks it


def check_router(router: Router) -> None:
    """Raise AssertionError where the router claims what it does not keep, or keeps what it does not claim."""
    for training in (True, False):
        claimed, seen = router.claims(training), observe(router, training)
        wrong = {name: holds for name, holds in asdict(seen).items() if holds != getattr(claimed, name)}
        mode = "training" if training else "evaluation"
        assert not wrong, f"{type(router).__name__} in {mode}: claims {claimed}, but observed {wrong}"


def observe(router: Router, training: bool) -> Claims:
    """What holds of the router on random inputs, in float64."""
    router = router.double().train(training)
    trials = [Trial(router, seed) for seed in range(TRIALS)]
    independent = all(t.is_independent() for t in trials)
    return Claims(
        density=all(t.is_density() for t in trials),
        balanced=all(t.is_balanced() for t in trials),
        trains_gate=any(t.trains_gate() for t in trials),
        causal=independent or all(t.is_causal() for t in trials),  # where no other token matters, no later one does
        independent=independent,
    )


@dataclass
class Trial:
    """One random input, of tokens that differ or are alike, with linear experts behind the router."""

    router: Router
    seed: int

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.x = 3 * torch.randn(SEQUENCES, LENGTH, DIM, generator=draw, dtype=torch.float64)
        self.ids = torch.randint(VOCAB, (SEQUENCES, LENGTH), generator=draw)
        if self.seed % 2:  # tokens alike: all want the same experts, so whoever competes is seen to
            self.x, self.ids = self.x[:1, :1] + 0.1 * self.x, self.ids[:1, :1].expand_as(self.ids)
        self.other_x = 3 * torch.randn(self.x.shape, generator=draw, dtype=torch.float64)
        self.other_ids = torch.randint(VOCAB, self.ids.shape, generator=draw)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.experts = Linear(DIM, DIM, EXPERTS).double()

        self.plan, self.unchanged = self.outputs()

    def tokens(self, changed: Tensor | None = None) -> Tokens:
        """The input, with the tokens of a mask (B, T) replaced by others."""
        if changed is None:
            return Tokens.sequences(self.x, self.ids, self.known(self.ids))
        x = torch.where(changed[..., None], self.other_x, self.x)
        ids = torch.where(changed, self.other_ids, self.ids)
        return Tokens.sequences(x, ids, self.known(ids))

    def known(self, ids: Tensor) -> dict[str, Tensor]:
        """A label that the id tells, and the place of each sequence in the data."""
        return {"label": ids % 5, "row": (torch.arange(SEQUENCES) + self.seed * SEQUENCES) * LENGTH}

    def outputs(self, changed: Tensor | None = None) -> tuple[Plan, Tensor]:  # -> (B, T, D)
        torch.manual_seed(self.seed)  # the same noise each time
        tokens = self.tokens(changed)
        plan = self.router(tokens).plan
        return plan, self.experts.blend(plan, tokens.x).view_as(self.x)

    def is_density(self) -> bool:
        if isinstance(self.plan, Slots):
            return False
        rows = int(self.plan.groups.counts.sum())
        self.plan.joint(torch.zeros(rows, dtype=torch.float64))  # raises for a repeated edge
        return bool((self.plan.weights.sum(-1) - 1).abs().max() < 1e-9)

    def is_balanced(self) -> bool:
        counts = self.plan.groups.counts
        return int(counts.max() - counts.min()) <= 1

    def trains_gate(self) -> bool:
        """The task loss alone, a random direction of the outputs, moves some parameter of the router."""
        parameters = [p for p in self.router.parameters() if p.requires_grad]
        if not parameters:
            return False
        loss = (self.unchanged * self.other_x).sum()
        if not loss.requires_grad:
            return False
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return max((float(g.abs().max()) for g in grads if g is not None), default=0.0) > 1e-9

    def is_causal(self) -> bool:
        return all(self._unmoved(changed, kept) for changed, kept in self._suffixes())

    def is_independent(self) -> bool:
        return all(self._unmoved(changed, ~changed) for changed in self._all_but_one())

    def _unmoved(self, changed: Tensor, kept: Tensor) -> bool:
        with torch.no_grad():
            gap = (self.outputs(changed)[1] - self.unchanged)[kept].abs()
        return bool(gap.max() < 1e-9)

    def _suffixes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(suffix of one sequence, its prefix) as masks (B, T)."""
        for start in (1, LENGTH // 2, LENGTH - 1):
            suffix, prefix = (torch.zeros(SEQUENCES, LENGTH, dtype=torch.bool) for _ in range(2))
            suffix[self.seed % SEQUENCES, start:] = True
            prefix[self.seed % SEQUENCES, :start] = True
            yield suffix, prefix

    def _all_but_one(self) -> Iterator[Tensor]:
        for place in (0, LENGTH // 2, LENGTH - 1):
            changed = torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)
            changed[self.seed % SEQUENCES, place] = False
            yield changed
