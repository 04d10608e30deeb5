"""Expectation-maximisation for classical mixtures: responsibilities, then each part fitted to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from moecli.errors import NumericalFailure
from moecli.mixture import Mixture, MixtureDensity
from moecli.models.layer import expert_table
from moecli.record.checkpoint import Saved
from moecli.routing import Tokens
from moecli.training.gradient import Best, Job, Judge
from moecli.types import NonNegativeFloat, PositiveInt


class Em:
    """Soft EM on all training rows (Jordan & Jacobs, 1994), until the likelihood rises by less than ``tolerance``.

    The curve ``joint_nll`` is what EM lowers at every iteration: -log p(y, x) where the gate models x,
    and -log p(y | x) elsewhere.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"every edge", "gate fit", "expert fit", "family fit"})
    gives: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, steps: PositiveInt = 100, tolerance: NonNegativeFloat = 1e-6):
        self.steps, self.tolerance = steps, tolerance

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Fit ``job.model`` in place, from its start: iterations are few and quick.

        Raises NumericalFailure where the likelihood is not finite.
        """
        layer: MixtureDensity = job.model.mixtures["layer0"]  # type: ignore[assignment]  # needs: family
        data = job.task.train_batch(0, job.task.sizes["train"], job.seed).to(job.device)
        judge, before = Judge(job), float("inf")
        job.record.begin(self.steps)
        for step in range(self.steps):
            found = em_step(layer, data.x, data.target)
            if not torch.isfinite(torch.tensor(found.joint_nll)):
                raise NumericalFailure(
                    f"iteration {step}: the likelihood is not finite. Raise family.min_scale, or standardise"
                )
            job.record.step(
                step, {"loss": found.nll, "joint_nll": found.joint_nll}, {"layer0": found.mixture.routing.usage}
            )
            if before - found.joint_nll < self.tolerance:
                break
            before = found.joint_nll
        judge.evaluate(step + 1)
        return judge.best


@dataclass(frozen=True)
class Step:
    """The likelihood before an M-step, a mean over rows, and the mixture it was taken of."""

    nll: float
    joint_nll: float
    mixture: Mixture


@torch.no_grad()
def em_step(layer: MixtureDensity, x: Tensor, y: Tensor) -> Step:
    """One iteration in place: x (N, D), y (N, Y).  Each M-step raises its own part of the bound."""
    tokens = Tokens.items(x)
    mixture = layer(tokens)
    resp = mixture.responsibilities(y)  # E
    log_prob = mixture.log_prob(y)
    loc = expert_table(mixture.row_mean, len(x))  # (N, E, Y)
    response, weight = layer.family.working(loc, y)
    layer.experts.fit(x, response, resp[..., None] * weight)  # M
    groups = mixture.routing.plan.groups
    loc = expert_table(layer.experts(mixture.routing.plan.dispatch(x), groups), len(x))
    layer.family.fit(loc, y, resp)
    cast(Any, layer.router.gate).fit(x, resp)
    return Step(-log_prob.mean().item(), -(log_prob + mixture.log_marginal).mean().item(), mixture)
