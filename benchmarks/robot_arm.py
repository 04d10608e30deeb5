"""Epochs and error on the robot arm: EM on a tree beside back-propagation, Adam, L-BFGS and CART (Jordan & Jacobs, 1994).

python benchmarks/robot_arm.py

Their table 1 has relative errors of 0.31 (linear), 0.10 (tree by EM, 35 epochs), 0.09 (back-propagation, 5,500 epochs)
and 0.17 (CART), on an arm of their own.  The network has 60 hidden units, as theirs, and every epoch is one look at all
15,000 rows; of each optimizer the rate is taken that errs least on the validation rows after TRIAL epochs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor, nn

from moecli.experts.linear import Linear
from moecli.families.gaussian import Gaussian
from moecli.gates.linear import Linear as LinearGate
from moecli.gates.tree import Tree
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.routing import Tokens
from moecli.tasks.robot_arm import RobotArm
from moecli.training.em import em_step

HIDDEN, EXPERTS = 60, 16
EM_EPOCHS, TRIAL, LBFGS_EPOCHS = 60, 200, 1000
RATES = {"back-propagation": (0.1, 0.3, 1.0, 3.0), "Adam": (0.003, 0.01, 0.03, 0.1)}
EPOCHS = {"back-propagation": 5500, "Adam": 2000}
NEAR = 1.05  # of the lowest error
LEAVES = (1, 2, 5, 10, 20, 50)  # rows in a leaf of CART, chosen by validation

TASK = RobotArm()
ROWS = {split: TASK.batch(split, torch.arange(TASK.sizes[split])) for split in ("train", "valid", "test")}
SCALE = torch.tensor(TASK.kind.scale)


@dataclass(frozen=True)
class Course:
    """Relative errors after each epoch, on validation rows and on test rows."""

    name: str
    valid: np.ndarray
    test: np.ndarray
    seconds: float  # of processors

    @property
    def best(self) -> int:
        return int(self.valid.argmin())

    def until(self, error: float) -> str:
        """Epochs until the validation error is as low."""
        reached = (self.valid <= error).nonzero()[0]
        return f"{reached[0] + 1:,}" if len(reached) else f"> {len(self.valid):,}"


def relative_error(split: str, predict: Callable[[Tensor], Tensor]) -> float:
    """In the accelerations' own unit; 1 is always answering the mean."""
    target = ROWS[split].target * SCALE
    error = predict(ROWS[split].x) * SCALE - target
    return float(error.square().sum() / (target - target.mean(0)).square().sum())


def course(name: str, epochs: Iterator[Callable[[Tensor], Tensor]]) -> Course:
    """Each epoch yields what predicts after it."""
    started, found = time.process_time(), []
    for predict in epochs:
        with torch.no_grad():
            found.append((relative_error("valid", predict), relative_error("test", predict)))
    valid, test = np.array(found).T
    return Course(name, np.nan_to_num(valid, nan=np.inf), test, time.process_time() - started)


def em(experts: int, epochs: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """A binary tree of linear gates over linear experts."""
    torch.manual_seed(0)
    x, y = ROWS["train"].x.double(), ROWS["train"].target.double()
    dim, out = x.shape[1], y.shape[1]
    router = Dense(gate=lambda n: Tree(n, lambda width: LinearGate(dim, width)), num_experts=experts)
    layer = MixtureDensity(router, Linear(dim, out, experts), Gaussian(out, experts)).double()
    for _ in range(epochs):
        em_step(layer, x, y)
        yield lambda x: layer(Tokens.items(x.double())).mean.float()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 4))


def descent(name: str, rate: float, epochs: int) -> Iterator[Callable[[Tensor], Tensor]]:
    net = network()
    optimizer = {"back-propagation": torch.optim.SGD, "Adam": torch.optim.Adam}[name](net.parameters(), lr=rate)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(ROWS["train"].x), ROWS["train"].target).backward()
        optimizer.step()
        yield net


def lbfgs(epochs: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """An epoch is one evaluation of the loss: line searches count; errors are taken once a step of some twenty."""
    net = network()
    optimizer = torch.optim.LBFGS(
        net.parameters(), history_size=20, line_search_fn="strong_wolfe", tolerance_change=0.0
    )
    looks = 0

    def closure() -> Tensor:
        nonlocal looks
        looks += 1
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(ROWS["train"].x), ROWS["train"].target)
        loss.backward()
        return loss

    while looks < epochs:
        before, old = looks, copy.deepcopy(net)
        optimizer.step(closure)
        yield from [old] * (looks - before - 1)  # a step's gain counts from its last look
        yield net


def at_best_rate(name: str) -> Course:
    trials = {rate: course(name, descent(name, rate, TRIAL)).valid[-1] for rate in RATES[name]}
    rate = min(trials, key=trials.__getitem__)
    return course(f"{name}, rate {rate}", descent(name, rate, EPOCHS[name]))


def cart() -> str:
    fitted = [
        DecisionTreeRegressor(min_samples_leaf=rows, random_state=0).fit(ROWS["train"].x, ROWS["train"].target)
        for rows in LEAVES
    ]
    predictors = [lambda x, tree=tree: torch.from_numpy(tree.predict(x)) for tree in fitted]
    best = min(range(len(LEAVES)), key=lambda n: relative_error("valid", predictors[n]))
    return f"{f'CART, {LEAVES[best]} rows a leaf':<30} {relative_error('test', predictors[best]):.4f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'':<30} test error   epochs to {NEAR} of its lowest   to the tree's lowest   processor seconds")
    print(f"{'one linear map':<30} {course('', em(1, 2)).test[-1]:.4f}", flush=True)
    tree = course("tree by EM", em(EXPERTS, EM_EPOCHS))
    others = (
        lambda: at_best_rate("back-propagation"),
        lambda: at_best_rate("Adam"),
        lambda: course("L-BFGS", lbfgs(LBFGS_EPOCHS)),
    )
    for make in (lambda: tree, *others):
        found = make()
        near, same = found.until(NEAR * found.valid.min()), found.until(tree.valid.min())
        print(f"{found.name:<30} {found.test[found.best]:.4f} {near:>22} {same:>24} {found.seconds:>16.0f}", flush=True)
    print(cart())
