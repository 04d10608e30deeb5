"""Whether runs may train as one: what they are says so, and the gradient of their first batch proves it.

The proof is in float64, where rounding cannot hide a difference: the gradients of the stacked models against each
model's own, on the batch that each begins with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moecli.errors import Interrupted
from moecli.losses.objective import Objective
from moecli.models.density import DensityModel
from moecli.models.layer import LayerModel
from moecli.models.model import Model
from moecli.models.stacked import Apart, Stacked, lanes_of
from moecli.routing import Router
from moecli.tasks.task import Batch, Task
from moecli.training.gradient import Gradient, random_state, restore_random_state
from moecli.training.stacked_objective import StackedObjective
from moecli.training.stacked_optimizer import ELEMENTWISE

MODELS = (LayerModel, DensityModel)  # nothing in them but their routers looks from one example to another
EXACT = 1e-9  # of the largest gradient


@dataclass(frozen=True)
class Candidate:
    """A run that has not begun."""

    plan: Gradient
    model: Model
    objective: Objective
    task: Task
    seed: int
    device: torch.device
    optimizer: str  # the name of its class


def why_apart(runs: Sequence[Candidate]) -> str | None:
    """Why runs, alike but for seed, rates and weights, have to train apart; None where they may train as one."""
    before = random_state()
    try:
        for run in runs:
            _refuse_own_ways(run)
        _prove(runs)
    except Interrupted:
        raise
    except Apart as reason:
        return str(reason)
    except Exception as error:  # whatever a part of somebody else's does not bear
        return f"its parts do not work side by side ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    finally:
        restore_random_state(before)
    return None


def _refuse_own_ways(run: Candidate) -> None:
    """What no gradient of a first batch shows."""
    plan = run.plan
    asked = {
        "trainer.micro_batches": plan.micro_batches > 1,
        "trainer.patience": plan.patience is not None,
        "trainer.phases": bool(plan.phases),
        "trainer.autocast": plan.autocast,
    }
    for key in (key for key, wanted in asked.items() if wanted):
        raise Apart(f"{key} is set")
    if run.optimizer not in ELEMENTWISE:
        raise Apart(f"{run.optimizer} is no optimizer that steps each number by itself")
    if not isinstance(run.model, MODELS):
        raise Apart("only model=layer and model=density can")
    for layer in run.model.mixtures.values():
        _refuse_router(layer.router)


def _refuse_router(router: Router) -> None:
    tensors = [*router.named_parameters(), *router.named_buffers()]
    if any(not name.startswith("gate.") for name, _ in tensors) or type(router).after_step is not Router.after_step:
        raise Apart("the router has a state beside its gate's")
    if not (router.own_in_training or router.own).independent:
        raise Apart("the router looks at all tokens of a batch at once")


def _prove(runs: Sequence[Candidate]) -> None:
    """Raises Apart where a run's gradient is not what it has by itself, or where randomness enters it."""
    models = [copy.deepcopy(run.model).double().train() for run in runs]
    before = random_state()
    own = [_own_gradient(run, model) for run, model in zip(runs, models, strict=True)]
    if any(not torch.equal(before[name], state) for name, state in random_state().items()):
        raise Apart("its steps draw random numbers")
    stacked = Stacked(models)
    batch = _doubled(runs[0].task.train_batches(0, runs[0].plan.batch_size, tuple(run.seed for run in runs)))
    batch = batch.to(runs[0].device)
    objective = StackedObjective([run.objective for run in runs], runs[0].device)
    total = objective(stacked(batch.x, batch.known), batch.target, batch.weight)["total"]
    leaves = [leaf for leaf, _ in stacked.leaves]
    found = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
    for (leaf, parameters), grad in zip(stacked.leaves, found, strict=True):
        grads = lanes_of(torch.zeros_like(leaf) if grad is None else grad, parameters[0].shape)
        for number, parameter in enumerate(parameters):
            _compare(grads[number], own[number][parameter], max(map(_size, own[number].values())))


def _own_gradient(run: Candidate, model: Model) -> dict[Tensor, Tensor]:
    batch = _doubled(run.task.train_batch(0, run.plan.batch_size, run.seed)).to(run.device)
    total = run.objective(model(batch.x, batch.known), batch.target, batch.weight)["total"]
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return {p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)}


def _doubled(batch: Batch) -> Batch:
    x, target = (value.double() if value.is_floating_point() else value for value in (batch.x, batch.target))
    return replace(batch, x=x, target=target, weight=None if batch.weight is None else batch.weight.double())


def _size(grad: Tensor) -> float:
    return float(grad.abs().max()) if grad.numel() else 0.0


def _compare(found: Tensor, own: Tensor, size: float) -> None:
    if not torch.allclose(found, own, rtol=0.0, atol=EXACT * size):
        raise Apart("its gradient is another one beside other runs")
