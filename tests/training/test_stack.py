"""Runs that train as one are the runs that they would have been by themselves, to the last digits of float64."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from moecli.config import build, compose
from moecli.errors import NumericalFailure
from moecli.models import stacked
from moecli.models.lanes import in_lanes
from moecli.record import checkpoint
from moecli.record.recorder import Recorder
from moecli.record.trace import TraceReader
from moecli.record.view import view
from moecli.run import assemble, job
from moecli.training.gradient import random_state, restore_random_state
from moecli.training.stack import Lane, fit_together
from moecli.training.stackable import Candidate, why_apart
from moecli.training.stacked_objective import StackedObjective

EXACT = {"rtol": 0.0, "atol": 1e-9}
SMALL = ["num_experts=4", "trainer.steps=50", "trainer.eval_every=25", "threads=1"]
GAUSSIAN = ["task=piecewise", "task.rows=60", "model=density", "router=dense", "expert=linear", "trainer.batch_size=99"]
CLASSES = ["task=regions", "task.rows=60", "router=dense", "model=density", "trainer.batch_size=16"]
TOP_2 = [
    "task=spirals", "task.rows=60", "model=layer", "router=top_k", "router.capacity_factor=0.6", "expert.hidden=6",
    "auxiliary=[switch_balance,z_loss]", "trainer.batch_size=16", "model.depth=2", "model.shared=1",
]  # fmt: skip
CASES = {"gaussian": GAUSSIAN, "classes": CLASSES, "top 2": TOP_2}
OWN = [["seed=0", "optimizer.lr=0.02"], ["seed=3", "optimizer.lr=0.005"], ["seed=4", "optimizer.lr=0.02"]]


def assembled(words, *own):
    """Runs in float64, each with the random numbers that it begins with, over one task."""
    found, task = [], None
    for more in own:
        built = assemble(compose([*SMALL, *words, *more]), task)
        task = built.task
        built.model.double()
        found.append((built, random_state()))
    task.splits = {name: in_double(split) for name, split in task.splits.items()}
    vars(task).pop("all_rows", None)  # of float32, which assembling looked at
    return found


def in_double(split):
    target = split.target.double() if split.target.is_floating_point() else split.target
    return replace(split, x=split.x.double(), target=target)


class Trained:
    """Runs trained as one or one by one, each with a record below a folder."""

    def __init__(self, runs, root, together):
        self.folders, self.built = [root / str(number) for number in range(len(runs))], [b for b, _ in runs]
        with ExitStack() as records:
            jobs = [
                job(built, self.record(records, folder)) for (built, _), folder in zip(runs, self.folders, strict=True)
            ]
            plans = [build(built.config["trainer"]) for built in self.built]
            if together:
                lanes = [Lane(*parts) for parts in zip(plans, jobs, [r for _, r in runs], strict=True)]
                self.best = fit_together(lanes)
            else:
                self.best = [self.alone(*parts) for parts in zip(plans, jobs, [r for _, r in runs], strict=True)]

    def alone(self, plan, one, random):
        restore_random_state(random)
        return plan.fit(one)

    def record(self, records, folder):
        folder.mkdir(parents=True)
        record = Recorder(folder, view(folder / "log.txt", quiet=True))
        records.callback(record.close)
        return record

    def metrics(self, number):
        lines = (self.folders[number] / "metrics.jsonl").read_text().splitlines()
        return {(e["step"], e["split"], e["name"]): e["value"] for e in map(json.loads, lines)}

    def usage(self, number):
        return TraceReader(self.folders[number]).usage("layer0")

    def saved(self, number):
        tensors, _ = checkpoint.load(self.folders[number] / "checkpoints" / "step-00000050")
        return {(stem, name): value for stem, part in tensors.items() for name, value in part.items()}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_together_are_fifty_steps_apart(case, tmp_path):
    """The Must of issue 8: parameters, metrics and optimizer to 1e-9, at other seeds and rates, capacity included."""
    runs = assembled(CASES[case], *OWN)
    assert runs[0][0].task.train_batch(0, 99, 0).x.dtype == torch.float64
    alone = Trained(copy.deepcopy(runs), tmp_path / "alone", together=False)
    stack = Trained(runs, tmp_path / "stack", together=True)
    for number in range(len(OWN)):
        own, found = alone.saved(number), stack.saved(number)
        assert own.keys() == found.keys()
        for key, value in own.items():
            torch.testing.assert_close(found[key], value, **EXACT, msg=str(key))
        assert alone.metrics(number) == pytest.approx(stack.metrics(number), rel=0, abs=1e-9)
        own, found = alone.usage(number), stack.usage(number)
        for key, value in own.items():
            assert found[key] == pytest.approx(value, rel=0, abs=1e-6), key  # recorded in float32
        assert alone.best[number].step == stack.best[number].step
    assert alone.metrics(0) != pytest.approx(
        alone.metrics(2), rel=0, abs=1e-3
    )  # the control: a seed makes a difference


# -- what makes a run its own ---------------------------------------------------------------------------


def candidates(runs):
    return [
        Candidate(build(b.config["trainer"]), b.model, b.objective, b.task, b.config["seed"], b.device, "AdamW")
        for b, _ in runs
    ]


def test_another_runs_data_changes_nothing_of_a_runs_gradient():
    """The control of the Must: through the router's capacity too, a lane sees its own tokens alone."""
    runs = assembled(TOP_2, *OWN)
    model = stacked.Stacked([built.model for built, _ in runs])
    objective = StackedObjective([built.objective for built, _ in runs], torch.device("cpu"))
    x, target = torch.randn(60, 2, dtype=torch.float64), torch.randint(2, (60,))
    other = x.clone()
    other[20:40] *= -1.7  # the second run's
    found = []
    for seen in (x, other):
        total = objective(model(seen, None), target)["total"]
        assert total.shape == (3,)
        grads = torch.autograd.grad(total.sum(), [leaf for leaf, _ in model.leaves])
        found.append(torch.cat([grad.reshape(3, -1) for grad in grads], 1))
    same = (found[0] == found[1]).all(1)
    assert same.tolist() == [True, False, True]


def test_a_router_that_saw_other_runs_is_found_out(monkeypatch):
    runs = candidates(assembled(TOP_2, *OWN))
    assert why_apart(runs) is None
    monkeypatch.setattr(stacked._Router, "forward", lambda self, tokens: in_lanes_of_one_group(self, tokens))
    assert why_apart(runs) == "its gradient is another one beside other runs"


def in_lanes_of_one_group(router, tokens):
    """As the stacked router, but that a token may take the place of another run's."""
    routing = router.router(tokens)
    return replace(routing, plan=in_lanes(routing.plan, router.lanes))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["router=expert_choice"], "the router looks at all tokens of a batch at once"),
        (["router=sigmoid_bias"], "the router has a state beside its gate's"),
        (["router.jitter=0.1"], "its steps draw random numbers"),
        (["expert.dropout=0.5"], "its steps draw random numbers"),
        (["trainer.micro_batches=2"], "trainer.micro_batches is set"),
        (["expert=several"], "its experts are modules of several kinds"),
    ],
)
def test_what_cannot_train_as_one_says_why(words, said):
    plain = ["task=spirals", "task.rows=60", "trainer.batch_size=16"]
    assert said in (why_apart(candidates(assembled([*plain, *words], ["seed=0"], ["seed=1"]))) or "")


def test_a_run_that_diverges_fails_alone(tmp_path):
    words = [*GAUSSIAN, "optimizer=sgd", "trainer.clip=null", "trainer.steps=12", "trainer.eval_every=4"]
    own = [["seed=0"], ["seed=1", "optimizer.lr=1e200"], ["seed=2"]]
    runs = assembled(words, *own)
    alone = Trained(copy.deepcopy([runs[0], runs[2]]), tmp_path / "alone", together=False)
    stack = Trained(runs, tmp_path / "stack", together=True)
    assert isinstance(stack.best[1], NumericalFailure) and "the loss is" in str(stack.best[1])
    assert alone.metrics(0) == pytest.approx(stack.metrics(0), rel=0, abs=1e-9)
    assert alone.metrics(1) == pytest.approx(stack.metrics(2), rel=0, abs=1e-9)
