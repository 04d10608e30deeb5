"""scikit-learn's estimators as experts: what they answer, what a checkpoint holds, and workers that leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.svm import SVC
from sklearn.utils import all_estimators

import moecli
from moecli.errors import ArtifactError, EnvironmentFailure, UsageError
from moecli.experts.estimators import CLASSIFIERS, LEAST, REGRESSORS, Part, Recipe, answer
from moecli.experts.sklearn import Sklearn
from moecli.experts.workers import Pool, Stopped, Worker
from moecli.plan import Dense
from moecli.record import checkpoint
from tests.waiting import until


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plane(rows: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 2)
    return x, (x[:, 0] * 2).round().clamp(0, classes - 1).long()


def bound(estimator: str, x: torch.Tensor, y: torch.Tensor, out: int, experts: int = 2, **options) -> Sklearn:
    made = Sklearn(x.shape[1], out, experts, estimator, options)
    made.bind(x, y, seed=0)
    return made


def fitted(estimator: str, x: torch.Tensor, y: torch.Tensor, out: int, **options) -> Sklearn:
    made = bound(estimator, x, y, out, **options)
    with Pool(1) as pool:
        made.fit_parts(torch.arange(len(x)) % 2, pool)
    return made


def said(experts: Sklearn, x: torch.Tensor) -> torch.Tensor:  # (N, D) -> (E, N, Y)
    plan = Dense(x.new_zeros(len(x), experts.num_experts))
    return experts.rows(plan, x).view(experts.num_experts, len(x), -1)


# -- the list ----------------------------------------------------------------------------------------


def test_the_list_holds_public_estimators_only():
    public = {
        kind: {f"{cls.__module__.split('.')[1]}.{name}" for name, cls in all_estimators(kind)}
        for kind in ("classifier", "regressor")
    }
    assert set(CLASSIFIERS) <= public["classifier"] and set(REGRESSORS) <= public["regressor"]
    assert len(CLASSIFIERS) >= 20 and len(REGRESSORS) >= 25


QUICK = {"max_iter": 50, "n_estimators": 5}


@pytest.mark.parametrize("name", CLASSIFIERS + REGRESSORS)
def test_each_fits_answers_and_fits_again_to_the_same_bits(name):
    x, label = plane(40)
    y = label if name in CLASSIFIERS else (x[:, :1] + 0.1 * torch.randn(40, 1)).exp()
    recipe = Recipe(name, {})
    known = recipe.make(0).get_params(deep=False)
    options = {key: value for key, value in QUICK.items() if key in known} | ({"nu": 0.1} if "NuSVC" in name else {})
    out = 3 if recipe.classifies else 1
    first, second = (fitted(name, x, y, out, **options) for _ in range(2))
    assert first.answers.shape == (20, 2, out) and torch.equal(first.answers, second.answers)
    assert bool(first.answers.isfinite().all()) and float(first.answers.abs().max()) > 0
    if recipe.classifies:
        assert torch.allclose(first.answers.exp().sum(-1), torch.ones(20, 2, dtype=torch.float64), atol=1e-5)


# -- what they answer --------------------------------------------------------------------------------


def test_each_answers_as_the_estimator_of_its_own_rows():
    x, y = plane()
    experts = fitted("svm.SVC", x, y, 3, C=2.0)
    for e, found in enumerate(said(experts, x)):
        rows = torch.arange(60) % 2 == e
        own = SVC(C=2.0).fit(x[rows].double().numpy(), y[rows].numpy())
        assert found.argmax(-1).tolist() == own.predict(x.double().numpy()).tolist()
    assert not torch.equal(*said(experts, x))  # the control: they differ


def test_several_targets_are_fitted_each_by_itself():
    x = torch.randn(40, 2)
    y = torch.stack([x[:, 0], -x[:, 1], x.sum(-1)], -1)
    found = said(fitted("svm.LinearSVR", x, y, 3, max_iter=5000, C=10.0), x)
    assert torch.allclose(found[0], y, atol=0.1)
    least_squares = LinearRegression().fit(x[::2], y[::2]).predict(x)
    assert said(fitted("linear_model.LinearRegression", x, y, 3), x)[0].numpy() == pytest.approx(
        least_squares, abs=1e-5
    )


def test_one_class_is_answered_with_it_and_no_rows_with_the_shares():
    x, y = plane(60, classes=2)
    experts = bound("svm.SVC", x, y, 2, experts=3)
    with Pool(1) as pool:
        experts.fit_parts(y, pool)
    only_0, only_1, none = said(experts, x)
    assert only_0.argmax(-1).eq(0).all() and only_1.argmax(-1).eq(1).all()
    assert float(only_0[0, 1].exp()) == pytest.approx(LEAST, rel=1e-3)
    assert torch.allclose(none.exp(), y.bincount() / 60.0, atol=1e-5)


def test_a_class_that_an_expert_never_saw_keeps_a_little():
    x, y = plane()
    experts = bound("tree.DecisionTreeClassifier", x, y, 3)
    with Pool(1) as pool:
        experts.fit_parts((y == 2).long(), pool)
    assert float(said(experts, x)[0, :, 2].exp().max()) == pytest.approx(LEAST, rel=1e-3)


def test_constant_columns_are_no_matter():
    x, y = plane()
    flat = torch.cat([x, torch.ones(60, 1)], -1)
    assert torch.allclose(said(fitted("svm.SVC", flat, y, 3, gamma=1.0), flat),
                          said(fitted("svm.SVC", x, y, 3, gamma=1.0), x), atol=1e-5)  # fmt: skip


def test_they_may_read_some_columns():
    x, y = plane()
    one = Sklearn(1, 3, 2, "svm.SVC").reading([0])
    one.bind(x, y, 0)
    with Pool(1) as pool:
        one.fit_parts(torch.arange(60) % 2, pool)
    moved = x + torch.tensor([0.0, 5.0])
    assert torch.equal(said(one, x), said(one, moved))
    assert not torch.equal(said(one, x), said(one, moved + 1))


@pytest.mark.parametrize(
    ("estimator", "options", "says"),
    [
        ("svm.SVCC", {}, "Did you mean svm.SVC"),
        ("os.system", {}, "no estimator"),
        ("ensemble.StackingClassifier", {}, "no estimator"),
        ("svm.SVC", {"gama": 1}, "Did you mean gamma"),
        ("svm.SVC", {"C": -1}, "'C' parameter of SVC"),
        ("svm.SVC", {"decision_function_shape": "ovo"}, "ovo"),
        ("neighbors.KNeighborsRegressor", {}, "svm.SVC"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(estimator, options, says):
    x, y = plane(classes=4)
    with pytest.raises(UsageError, match=says) as refused:
        fitted(estimator, x, y, 4, **options)
    assert "\n" not in str(refused.value) and ". " in str(refused.value)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

# -- workers -----------------------------------------------------------------------------------------


def parts(count: int, rows: int = 30, **options) -> list[Part]:
    x, y = plane(rows)
    return [Part(Recipe("svm.SVC", options), e, e, x.double().numpy(), y.numpy()) for e in range(count)]


def long_parts() -> list[Part]:
    """Each would take minutes."""
    x = np.random.default_rng(0).normal(size=(20000, 5))
    y = (np.arange(20000) % 2).astype(np.int64)
    return [Part(Recipe("svm.SVC", {"C": 1e6}), e, e, x, y) for e in range(2)]


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, file in states.items() if file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as shared:
        yield shared


def test_workers_give_the_bits_of_this_process(pool):
    made = parts(3)
    apart = pool.fit(made)
    with Pool(1) as one:
        here = one.fit(made)
    assert len(pool.workers) == 2 and not one.workers
    for (a, _), (b, _) in zip(apart, here, strict=True):
        assert np.array_equal(answer(a, made[0].x, 3, True), answer(b, made[0].x, 3, True))


def test_a_refusal_in_a_worker_is_the_same_sentence(pool):
    with pytest.raises(UsageError, match="'C' parameter"):
        pool.fit(parts(2, C=-1))


@linux
def test_who_stops_waits_for_no_fit_and_leaves_no_worker(pool):
    pool.fit(parts(2))
    pids = [worker.process.pid for worker in pool.workers]
    assert alive(pids) == pids
    with pytest.raises(Stopped):
        pool.fit(long_parts(), lambda: True)
    assert not alive(pids) and not pool.workers


def test_a_fit_that_ends_after_its_pool_leaves_no_dead_worker_to_the_next(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(Worker, "fit", lambda *_: ended.wait(60))
    real = Pool._end
    monkeypatch.setattr(Pool, "_end", lambda pool: (real(pool), ended.set()))
    with Pool(2) as pool:
        with pytest.raises(Stopped):
            pool.fit(parts(2), lambda: True)
        assert ended.is_set() and pool.idle.empty()


@linux
def test_a_worker_that_dies_is_one_line(pool):
    def killed() -> None:
        for worker in pool.workers:
            worker.process.kill()

    with pytest.raises(EnvironmentFailure, match=r"trainer\.jobs"):
        pool.fit(long_parts(), killed)
    assert not pool.workers


ORPHANS = """
import time
import numpy as np
from moecli.experts.workers import Pool
from moecli.experts.estimators import Part, Recipe
x, y = np.random.default_rng(0).normal(size=(20000, 5)), np.arange(20000) % 2
pool = Pool(2)
def told():
    pids = [worker.process.pid for worker in pool.workers]
    if all("libsvm" in open(f"/proc/{pid}/maps").read() for pid in pids):  # they are past their imports
        print(*pids, flush=True)
        time.sleep(600)
pool.fit([Part(Recipe("svm.SVC", {"C": 1e6}), e, e, x, y) for e in range(2)], told)
"""


@linux
def test_workers_leave_when_their_parent_is_killed():
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, cwd=root)
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2 and alive(pids) == pids
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    until(lambda: not alive(pids))


# -- checkpoints -------------------------------------------------------------------------------------

WORDS = ["task=spirals", "task.rows=200", "model=density", "router=dense", "trainer=alternating", "num_experts=3",
         "expert=sklearn", "expert.options={C: 10, gamma: 2}", "trainer.jobs=1", "trainer.rounds=2",
         "trainer.inner=20", "threads=1"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("moecli.run._draw", lambda run: None)
        return moecli.train(*WORDS, runs=tmp_path_factory.mktemp("runs"))


def test_a_loaded_run_predicts_the_same_bits(run):
    loaded = moecli.load(run.path)
    x = loaded.task.batch("test", torch.arange(40)).x
    assert torch.equal(loaded.predict(x), moecli.load(run.path).predict(x))
    experts = loaded.model.mixtures["layer0"].experts
    assert bool((experts.part >= 0).all()) and experts.estimators
    stored = {name.split(".")[-1] for name in tensors(run.path)}
    assert {"part", "probe", "answers"} <= stored
    assert not [f for f in run.path.rglob("*") if f.suffix in (".pkl", ".pickle", ".joblib", ".pt")]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    step = checkpoint.steps(path)[-1]
    return checkpoint.load(path / "checkpoints" / f"step-{step:08d}")[0]["model"]


@pytest.mark.parametrize("what", ["answers", "part"])
def test_a_fit_that_differs_is_refused_in_one_line(run, tmp_path, what, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    read = checkpoint.load

    def changed(path):
        found, state = read(path)
        name = next(n for n in found["model"] if n.endswith(f".{what}"))
        value = found["model"][name].clone()
        value[0] = value[0] + 1e-12 if what == "answers" else (value[0] + 1) % 3
        found["model"][name] = value
        return found, state

    moecli.load(copy)  # the control
    monkeypatch.setattr(checkpoint, "load", changed)
    with pytest.raises(ArtifactError, match="do not predict what they did") as refused:
        moecli.load(copy)
    assert "\n" not in str(refused.value)


def test_they_need_a_trainer_that_gives_them_rows():
    with pytest.raises(UsageError, match="trainer=alternating"):
        moecli.train(*(word for word in WORDS if "trainer" not in word))
    with pytest.raises(UsageError, match="trainer=alternating"):
        moecli.train("task=spirals", "expert=distinct", "expert.module=sklearn")
