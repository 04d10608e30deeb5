"""The search by TPE: the same suggestions whatever dies, no trial adopted half asked, losers ended early."""

from __future__ import annotations

import math
import os
import signal
import threading

import pytest

optuna = pytest.importorskip("optuna")

from moecli.errors import EnvironmentFailure, UsageError  # noqa: E402
from moecli.sweep import search, start, worker  # noqa: E402
from moecli.sweep.folder import Sweep  # noqa: E402
from moecli.sweep.plan import Job  # noqa: E402
from moecli.sweep.search import Search  # noqa: E402
from moecli.sweep.train import Pruning  # noqa: E402
from tests.sweep.standin import swept  # noqa: E402

WORDS = ["optimizer.lr=tag(log, interval(1e-4,1e-1))", "num_experts=interval(2,16)", "router=top_k,dense"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(worker, "TICK", 0.005)


def searched(root, *words, trials=8, name="s"):
    return swept(root, *(words or WORDS), sampler="tpe", trials=trials, name=name)


def score(claimed) -> dict:
    """Best at lr = 0.01 with the most experts."""
    value = claimed.point.values["num_experts"] / 16 - abs(math.log10(claimed.point.values["optimizer.lr"]) + 2)
    return {"status": "finished", "value": value + claimed.job.seed / 100}


def drawn(sweep):
    return [point.words for point in Sweep(sweep.path).points()]


def states(sweep):
    with Search.of(Sweep(sweep.path)) as found:
        return [trial.state.name for trial in found.study.trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing disturbed."""
    sweep = searched(tmp_path_factory.mktemp("whole"))
    worker.pull(sweep, score)
    return sweep


def test_it_finds_better_than_it_began(whole):
    values = [value for _, value in sorted((p.number, v) for p, v in whole.ranked())]
    assert len(values) == 8 and max(values[search.STARTUP :]) > sum(values[: search.STARTUP]) / search.STARTUP
    assert states(whole) == ["COMPLETE"] * 8 and whole.is_complete()


def test_every_kind_of_axis_keeps_its_type(whole):
    for point in whole.points():
        assert isinstance(point.values["num_experts"], int) and 2 <= point.values["num_experts"] <= 16
        assert 1e-4 <= point.values["optimizer.lr"] <= 1e-1
        assert whole.plan.bases[point.base].words == [point.words[2]]


def test_suggestions_are_the_same_after_kills_between_any_two_steps(whole, tmp_path, monkeypatch):
    """In turn: killed before asking, in the middle of it, before the trial is written, and before it is told."""
    sweep, real = searched(tmp_path), optuna.study.Study.ask
    for kill in ("none", "in ask", "before add", "none", "before record", "none"):

        class Killed(BaseException):
            pass

        def die(*_, **__):
            raise Killed

        with monkeypatch.context() as patch:
            if kill == "in ask":
                patch.setattr(
                    optuna.study.Study, "ask", lambda self, space: real(self, dict([*space.items()][:1])) and die()
                )
            elif kill == "before add":
                patch.setattr(Sweep, "add", die)
            elif kill == "before record":
                patch.setattr(Sweep, "record", die)
            claims = iter(range(2))

            def train(claimed, claims=claims):
                return score(claimed) if next(claims, None) is not None else die()

            with pytest.raises(Killed):
                worker.pull(Sweep(sweep.path), train)
        for who in sweep.leases.standing():
            sweep.leases.forget(who, sweep.leases.standing())  # their holder is dead
    worker.pull(Sweep(sweep.path), score)
    assert drawn(sweep) == drawn(whole)
    assert drawn(searched(tmp_path / "other", "seed=1", *WORDS)) != drawn(whole)


def test_asking_and_taking_are_one_step(tmp_path):
    """Bug 1: a peer must not adopt a trial that has no values yet."""
    sweep = searched(tmp_path, trials=12)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                worker.pull(Sweep(sweep.path), score)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert states(sweep) == ["COMPLETE"] * 12
    assert [point.number for point in Sweep(sweep.path).points()] == list(range(12))


def test_a_kill_with_the_lock_held_blocks_nobody(tmp_path):
    """Bug 5: Optuna's own lock would block for 30 seconds."""
    sweep = searched(tmp_path, trials=1)
    child = os.fork()
    if child == 0:
        with Search.of(Sweep(sweep.path)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    done = threading.Thread(target=worker.pull, args=(sweep, score), daemon=True)
    done.start()
    done.join(5)
    assert not done.is_alive() and not list(sweep.path.glob("study.log?*"))


def test_a_torn_line_of_the_journal_is_cut(whole, tmp_path):
    sweep = searched(tmp_path, trials=2)
    worker.pull(sweep, score)
    with open(sweep.path / "study.log", "ab") as log:
        log.write(b'{"op_code": 4, "wor')
    assert states(sweep) == ["COMPLETE"] * 2
    assert (sweep.path / "study.log").read_bytes().endswith(b"}\n")


def test_a_trial_is_the_mean_over_its_seeds(tmp_path):
    sweep = searched(tmp_path, *WORDS, "seed=0..2", trials=3)
    worker.pull(sweep, score)
    with Search.of(sweep) as found:
        told = {trial.number: trial.value for trial in found.study.trials}
    for point in sweep.points():
        values = [sweep.done()[Job(point.number, seed).id]["value"] for seed in (0, 1, 2)]
        assert told[point.number] == pytest.approx(sum(values) / 3, rel=1e-12)
        assert len(set(values)) == 3


@pytest.mark.parametrize("status", ["failed", "pruned", "refused"])
def test_a_trial_whose_first_seed_ends_badly_has_no_other(tmp_path, status):
    sweep = searched(tmp_path, *WORDS, "seed=0,1", trials=3)
    worker.pull(sweep, lambda claimed: {"status": status, "error": "x"} if claimed.job.trial == 1 else score(claimed))
    assert states(sweep) == ["COMPLETE", "PRUNED" if status == "pruned" else "FAIL", "COMPLETE"]
    assert "0001-seed1" not in sweep.done() and sweep.counts()["skipped"] == 1 and sweep.is_complete()
    assert {point.number for point, _ in sweep.ranked()} == {0, 2}


def test_all_trials_may_fail(tmp_path):
    sweep = searched(tmp_path, trials=3)
    worker.pull(sweep, lambda _: {"status": "failed", "error": "not a number", "code": 6})
    assert states(sweep) == ["FAIL"] * 3 and not sweep.ranked() and sweep.is_complete()


def test_a_constant_value_breaks_nothing(tmp_path):
    sweep = searched(tmp_path)
    worker.pull(sweep, lambda _: {"status": "finished", "value": 1.0})
    assert states(sweep) == ["COMPLETE"] * 8


def test_what_cannot_be_counts_as_a_trial(tmp_path):
    sweep = searched(tmp_path, "router=top_k,hash", "router.k=1,2", trials=8)
    trained = []
    worker.pull(sweep, lambda claimed: trained.append(claimed.job) or {"status": "finished", "value": 1.0})
    refused = [point for point in sweep.points() if point.refused]
    assert refused and len(trained) + len(refused) == 8 and sweep.is_complete()


def test_a_loser_is_ended_at_an_evaluation(tmp_path):
    """Seven trials reach 1.0 at step 10; the eighth has 0.1 there, and one as good as the others goes on."""
    from moecli.errors import Interrupted

    sweep = searched(tmp_path, *WORDS, "seed=0,1", trials=9)
    pruned = []

    def train(claimed):
        pruning = Pruning(sweep, claimed)
        try:
            for step in (10, 20):
                pruning.told(step, {"r2": 0.1 if claimed.job.trial == 7 else 1.0})
        except Interrupted:
            pruned.append((claimed.job.id, pruning.at))
            return pruning.record()
        return {"status": "finished", "value": 1.0}

    worker.pull(sweep, train)
    assert pruned == [("0007-seed0", (10, 0.1))]
    assert states(sweep)[7] == "PRUNED" and states(sweep)[8] == "COMPLETE"


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'moecli\[tpe\]'"):
        start.make(WORDS, start.Order(sampler="tpe"))


def test_a_search_has_no_twins():
    with pytest.raises(UsageError, match="--twin"):
        start.make(WORDS, start.Order(sampler="tpe", twin=True))
