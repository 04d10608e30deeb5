"""The ``tpe`` sampler: Optuna asked for one trial at a time, told what came of it (Bergstra et al., 2011).

Optuna's journal ``study.log`` lies in the sweep's folder.  Whoever reads or writes it holds ``search.lock``, which
the system frees when its holder dies, so Optuna's own lock, which a kill leaves behind, is not used.  A draw
depends on the sweep's seed, the trial's number and the results before it, on nothing else.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moecli.errors import EnvironmentFailure
from moecli.sweep.grammar import Axis
from moecli.sweep.plan import Job, Point

if TYPE_CHECKING:
    from moecli.sweep.folder import Sweep

STARTUP = 5  # random trials before the first that is searched


def require() -> None:
    """Raises EnvironmentFailure where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise EnvironmentFailure(
            "--sampler tpe: it needs Optuna, which is not installed. Install it: python -m pip install 'moecli[tpe]'"
        ) from error


class NoLock:
    """For Optuna's journal: ours is held already."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Search:
    """A study, while ``search.lock`` is held."""

    def __init__(self, sweep: Sweep):
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.optuna, self.states = sweep, optuna, optuna.trial.TrialState
        log = sweep.path / "study.log"
        heal(log)
        number = len(sweep.points())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Optuna calls experimental
            backend = JournalFileBackend(str(log), lock_obj=cast(Any, NoLock()))
            self.study = optuna.create_study(
                study_name="sweep",
                storage=optuna.storages.JournalStorage(backend),
                load_if_exists=True,
                direction="maximize" if sweep.plan.higher_is_better else "minimize",
                sampler=optuna.samplers.TPESampler(
                    seed=sweep.plan.seeds[0] * 1_000_003 + number, constant_liar=True, n_startup_trials=STARTUP
                ),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
            )
        self._settle()

    @classmethod
    @contextmanager
    def of(cls, sweep: Sweep) -> Iterator[Search]:
        require()
        descriptor = os.open(sweep.path / "search.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield cls(sweep)
        finally:
            os.close(descriptor)

    def ask(self) -> bool:
        """One more trial in the folder, unless there are as many as were asked for; what cannot be is told so at once."""
        while len(self.sweep.points()) < self.sweep.plan.trials:
            trial = self.study.ask({axis.key: self._distribution(axis) for axis in self.sweep.plan.axes})
            if self._adopt(trial.number, trial.params).refused is None:
                return True
            self.study.tell(trial, state=self.states.FAIL)
        return False

    def report(self, number: int, step: int, value: float) -> bool:
        """Note a trial's value at a step; True where trials before it were better there, so that it may end."""
        trial = self.optuna.trial.Trial(self.study, self.study.trials[number]._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step that was reported before a kill
            trial.report(value, step)
        return trial.should_prune()

    def _distribution(self, axis: Axis) -> Any:
        kinds = self.optuna.distributions
        if axis.interval is None:
            return kinds.CategoricalDistribution(axis.values)
        kind = kinds.IntDistribution if isinstance(axis.interval.low, int) else kinds.FloatDistribution
        return kind(axis.interval.low, axis.interval.high, log=axis.interval.log)

    def _adopt(self, number: int, drawn: dict[str, Any]) -> Point:
        point = self.sweep.plan.point(number, drawn)
        self.sweep.add(point)
        return point

    def _settle(self) -> None:
        """Bring study and folder to agree, whatever a kill left between them."""
        points = {point.number: point for point in self.sweep.points()}
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):
            if trial.number in points:
                self._tell(points[trial.number])
            elif trial.params.keys() == {axis.key for axis in self.sweep.plan.axes}:
                self._adopt(trial.number, trial.params)
            else:  # it was killed in the middle of asking
                self.study.tell(trial.number, state=self.states.FAIL)

    def _tell(self, point: Point) -> None:
        """What came of a trial, once all its runs are done."""
        done = self.sweep.done()
        first = done.get(Job(point.number, self.sweep.plan.seeds[0]).id, {"status": "open"})["status"]
        if point.refused or first in ("failed", "refused"):
            self.study.tell(point.number, state=self.states.FAIL)
        elif first == "pruned":
            self.study.tell(point.number, state=self.states.PRUNED)
        elif all(Job(point.number, seed).id in done for seed in self.sweep.plan.seeds):
            value = self.sweep.value(point)
            state = self.states.FAIL if value is None else self.states.COMPLETE
            self.study.tell(point.number, value, state=state)


def heal(log: Path) -> None:
    """Cut the line that a kill tore off: with another behind it the journal could never be read again."""
    if log.exists():
        data = log.read_bytes()
        os.truncate(log, data.rfind(b"\n") + 1)
