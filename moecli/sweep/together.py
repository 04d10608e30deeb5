"""Runs of a sweep that train as one (``trainer.stack``), each into a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from moecli.config import build, part_class
from moecli.errors import Interrupted
from moecli.record.folder import Run
from moecli.run import Built, Place, end, life, train_built
from moecli.training.gradient import Best, Gradient, random_state, restore_random_state
from moecli.training.stack import Lane, fit_together
from moecli.training.stackable import Candidate, why_apart


@dataclass
class Ready:
    """A run that is about to begin, with the random numbers as its model left them."""

    built: Built
    place: Place
    random: dict[str, Tensor] = field(default_factory=random_state)

    @cached_property
    def plan(self) -> Gradient:
        return build(self.built.config["trainer"])

    @property
    def candidate(self) -> Candidate:
        built, seed = self.built, self.built.config["seed"]
        optimizer = part_class(built.config["optimizer"]).__name__
        return Candidate(self.plan, built.model, built.objective, built.task, seed, built.device, optimizer)

    def told(self, note: str) -> Place:
        return replace(self.place, note=f"trainer.stack: trained {note}")

    def tried(self, act: Callable[..., Any], *given: Any) -> Any:
        """What comes of it with the run's own random numbers, or the error."""
        restore_random_state(self.random)
        try:
            return act(*given)
        except BaseException as error:
            return error
        finally:
            self.random = random_state()


def train_together(runs: Sequence[Ready]) -> list[Run | BaseException]:
    """Train runs that are alike but for seed, rates and weights as one, where that can be; else one after the other.

    Returns each run, or the error that ended it.
    """
    why = why_apart([run.candidate for run in runs])
    if why is not None:
        return _in_turn(runs, lambda run: train_built(run.built, run.told(f"by itself: {why}")))
    lives = {id(run): life(run.built, run.told(f"as one of {len(runs)}")) for run in runs}
    asked = _in_turn(runs, lambda run: next(lives[id(run)]))
    lanes = {
        i: Lane(runs[i].plan, found[0], runs[i].random) for i, found in enumerate(asked) if isinstance(found, tuple)
    }
    found = _fitted(lanes, asked)
    ended: list[Any] = list(asked)
    for i, lane in lanes.items():
        runs[i].random = lane.random
        ended[i] = runs[i].tried(end, lives[id(runs[i])], _wish(ended) or found[i])
    return ended


def _in_turn(runs: Sequence[Ready], act: Callable[[Ready], Any]) -> list[Any]:
    """What comes of each; once a signal has asked to stop, nobody begins any more."""
    found: list[Any] = []
    for run in runs:
        found.append(_wish(found) or run.tried(act, run))
    return found


def _wish(found: Sequence[Any]) -> Interrupted | None:
    return next((result for result in found if isinstance(result, Interrupted)), None)


def _fitted(lanes: dict[int, Lane], asked: Sequence[Any]) -> dict[int, Best | BaseException]:
    """How the training of each ended."""
    if (wish := _wish(asked)) is not None:
        return dict.fromkeys(lanes, wish)
    try:
        return dict(zip(lanes, fit_together(list(lanes.values())), strict=True)) if lanes else {}
    except BaseException as error:
        return dict.fromkeys(lanes, error)
