"""Variational Bayes for a mixture of linear experts: the bound on the evidence climbs, and picks how many there are."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from moecli.errors import NumericalFailure, UsageError
from moecli.families.gaussian import Gaussian
from moecli.record.checkpoint import Saved
from moecli.tasks.task import generator
from moecli.training.em import FALL, Precise, climbed, precise, scattered
from moecli.training.evidence import observe
from moecli.training.gradient import Best, Job
from moecli.training.posterior import Data, Posterior, Prior, begin, bound, responsibilities, update
from moecli.types import NonNegativeFloat, PositiveInt

LOST = -1e4  # the gate's logit of an expert that was spared
FIRST_TRY = 1e-3  # nats a row: where the bound rises by less, experts are taken out on trial, and again at each tenth
TRIES = 200  # iterations in which the bound must recover from the loss of an expert


class Variational:
    """Mean-field Bayes with automatic relevance determination (Baldacchino et al., 2016), in float64.

    The model and its bound stand in ``training/posterior.py``.  Each iteration raises the bound.  Where it
    slows down, each expert in turn, the smallest first, is taken out, and stays out where the bound then
    climbs above where it was; it ends where none can be spared.  The bound of a smaller mixture is that
    mixture's own, with nothing for the experts it lacks: so the evidence, not the likelihood, picks their
    number.  ``num_experts`` is the most there may be.

    The layer takes the posterior's means: of the weights, of the gate, and of each noise precision.
    """

    needs: frozenset[str] = frozenset({"every edge", "linear experts", "linear gate", "precisions"})
    gives: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()

    def __init__(
        self,
        steps: PositiveInt = 1000,
        tolerance: NonNegativeFloat = 1e-6,
        checkpoint_every: PositiveInt | None = None,
    ):
        self.steps, self.tolerance = steps, tolerance
        self.checkpoint_every = checkpoint_every or max(1, steps // 10)

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Fit ``job.model`` in place, on from a checkpoint where one is given.

        Raises UsageError for a gate without bias and for a family that has no precision for each target,
        NumericalFailure where the bound is not finite, and Interrupted with everything saved where a signal
        asked to stop.
        """
        return climbed(self, _Run(self, job, saved))


class Climb:
    """The posterior on its way up, one iteration at a time."""

    def __init__(self, data: Data, resp: Tensor, prior: Prior, tolerance: float):
        self.data, self.prior = data, prior
        self.rows = len(data.y) if data.weight is None else float(data.weight.sum())
        self.tolerance = tolerance * self.rows
        self.slow = max(self.tolerance, FIRST_TRY * self.rows)  # a smaller rise asks whether an expert can be spared
        self.posterior = begin(data, resp, prior)
        self.reached = -math.inf  # the bound, in nats

    def iterate(self) -> bool:
        """Whether the climb ends with this iteration.  Raises NumericalFailure."""
        before, value = self.reached, bound(self.posterior, self.data, self.prior)
        if not math.isfinite(value):
            raise NumericalFailure("the bound on the evidence is not finite. Standardise, and check for extremes")
        self.reached = value
        if value - before >= self.slow:
            self.posterior = self._updated(self.posterior)
            return False
        fewer = self._fewer()
        if fewer is None and self.slow <= self.tolerance:
            return True
        self.slow = max(self.slow / 10, self.tolerance) if fewer is None else self.slow
        self.posterior = fewer or self._updated(self.posterior)
        return False

    def _updated(self, q: Posterior) -> Posterior:
        return update(q, self.data, responsibilities(q, self.data), self.prior)

    def _fewer(self) -> Posterior | None:
        """The posterior without its least expert that can be spared, or None."""
        share = self.data.weighed(responsibilities(self.posterior, self.data)).sum(0)
        places = share.argsort().tolist() if len(share) > 1 else []
        return next((q for q in (self._spared(place) for place in places) if q is not None), None)

    def _spared(self, place: int) -> Posterior | None:
        """The posterior without one expert, once its bound is above what was reached; None where it stays below."""
        q, before = self.posterior.without(place), -math.inf
        for _ in range(TRIES):
            q = self._updated(q)
            value = bound(q, self.data, self.prior)
            if value > self.reached:
                return q
            if not value - before >= self.slow:
                break
            before = value
        return None


class _Run(Precise):
    """The state of one training."""

    def __init__(self, plan: Variational, job: Job, saved: Saved | None):
        super().__init__(job)
        self.plan, self.first = plan, saved.step if saved else 0
        if job.model.is_twin:
            raise UsageError(
                "model.twin=true (trainer=variational): the twin is a network with a hidden layer, and the posterior "
                "is one over linear maps. Use trainer=gradient"
            )
        self.experts, expert_columns = opened(self.layer.experts)
        gate, gate_columns = opened(cast(Any, self.layer.router).gate)
        self.gate = gate.linear
        self._refuse()
        self.x, self.y, self.weight = precise(job.task.train_batch(0, job.task.sizes["train"], job.seed), job.device)
        phi, u = self.x[:, expert_columns], self.x[:, gate_columns]
        phi = phi if self.experts.bias is None else pad(phi, (0, 1), value=1.0)
        cells = scattered(self.x, self.y, self.layer.experts.num_experts, generator(job.seed, 1))
        data = Data(phi, pad(u, (0, 1), value=1.0), self.y, self.weight)
        self.climb = Climb(data, cells, Prior(), plan.tolerance)
        job.record.begin(plan.steps, self.first)
        if saved is not None:
            self.go_on(saved)

    def _refuse(self) -> None:
        family = cast(Gaussian, self.layer.family)  # needs: precisions
        if family.covariance != "diagonal" and (family.covariance != "isotropic" or family.out > 1):
            raise UsageError(
                f"family.covariance={family.covariance} (trainer=variational): its posterior is one over a noise "
                "precision for each expert and target. Use family.covariance=diagonal"
            )
        if self.gate.bias is None:
            raise UsageError(
                "gate.bias=false (trainer=variational): without it the gate cannot leave an expert out. Use gate.bias=true"
            )

    @torch.no_grad()
    def iterate(self, number: int) -> bool:
        climb, reached, many = self.climb, self.climb.reached, len(self.climb.posterior.expert)
        self._write()
        ended = climb.iterate()
        if climb.reached < reached - FALL * (1 + abs(climb.reached)):
            self.job.record.warn(f"iteration {number}: the bound fell by {reached - climb.reached:.2g} nats")
        if len(climb.posterior.expert) < many:
            gone = ", ".join(f"e{e}" for e in climb.posterior.expert.tolist())
            self.job.record.view.say(f"iteration {number}: the bound rises with one expert fewer; left are {gone}")
        evidence = observe(self.layer, self.x, self.y, self.weight)
        values = {"loss": evidence.nll, "bound": climb.reached / self.climb.rows, "experts": float(many)}
        self.job.record.step(number, values, {"layer0": evidence.usage})
        return ended

    def _write(self) -> None:
        """The posterior's means into the layer; experts that were spared keep what they had, and no row."""
        q, dim = self.climb.posterior, self.experts.weight.shape[1]
        self.experts.weight[q.expert] = q.weight[..., :dim].mT
        if self.experts.bias is not None:
            self.experts.bias[q.expert] = q.weight[..., dim]
        cast(Any, self.layer.family).log_scale[q.expert] = -0.5 * q.noise.mean.log()
        self.gate.weight.zero_()[q.expert] = q.gate[:, :-1]
        self.gate.bias.fill_(LOST)[q.expert] = q.gate[:, -1]

    @torch.no_grad()
    def _hand_over(self) -> None:
        self._write()
        super()._hand_over()

    def memory(self) -> dict[str, dict[str, Tensor]]:
        reached = torch.tensor(self.climb.reached, dtype=torch.float64)
        slow = torch.tensor(self.climb.slow, dtype=torch.float64)
        return {**super().memory(), "posterior": {**self.climb.posterior.tensors(), "reached": reached, "slow": slow}}

    def go_on(self, saved: Saved) -> None:
        super().go_on(saved)
        tensors = dict(saved.tensors["posterior"])
        self.climb.reached = tensors.pop("reached").item()
        self.climb.slow = tensors.pop("slow").item()
        self.climb.posterior = Posterior.of(tensors)


def opened(part: Any) -> tuple[Any, Any]:
    """(the experts or gate, the columns that they read)."""
    inner = getattr(part, "experts", None) or getattr(part, "gate", None)  # of Columns
    return (part, slice(None)) if inner is None else (inner, part.columns)
