"""The plan of a sweep: every trial with its configuration, resolved once, so that no later change of conf/ moves it.

A *base* is one choice of parts, composed whole; a *point* is a trial: a base and the values laid over it.
A *job* is one run: a trial with one of the seeds.  ``plan.json`` holds all of it but what a search asks for later.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from moecli.config import Composed, Config, amend, check, compose, flatten, registry, settable, shown, text
from moecli.errors import ArtifactError, UsageError
from moecli.sweep import samplers
from moecli.sweep.grammar import Axis, Interval, Space

VERSION = 1
MOST_RUNS = 10_000  # without --yes
OWN = re.compile(
    r"optimizer\..+|schedule\..+|auxiliary\..+\.weight|trainer\.clip"
)  # of each run of those that train as one
Values = dict[str, Any]  # {dotted key: value}


@dataclass(frozen=True)
class Base:
    """One choice of parts: its words, and their complete configuration, or why there is none.

    ``typed`` has every listed value of the other axes in its type: {key: {as typed: value}}.
    """

    words: list[str]
    config: Config
    explicit: list[str]
    typed: dict[str, dict[str, Any]]
    refused: str | None = None


@dataclass(frozen=True)
class Point:
    """A trial: what it differs by, in words and as values over its base; ``refused`` says why it cannot be."""

    number: int
    base: int
    words: list[str]
    values: Values
    refused: str | None = None

    @property
    def name(self) -> str:
        return " ".join(map(short, self.words)) or "as it is"


@dataclass(frozen=True)
class Job:
    """One run of a trial."""

    trial: int
    seed: int

    @property
    def id(self) -> str:
        return f"{self.trial:04d}-seed{self.seed}"


@dataclass
class Plan:
    """All that workers need to know; they may run on other machines."""

    words: list[str]
    sampler: str
    trials: int
    seeds: list[int]
    axes: list[Axis]
    bases: list[Base]
    points: list[Point] = field(default_factory=list)
    metric: str | None = None  # of the validation split, where all trials share one
    higher_is_better: bool = True
    threads: int = 1
    folder: str = ""  # that relative paths in the words begin from
    command: str = ""
    version: int = VERSION

    @property
    def chosen(self) -> list[Axis]:
        """The axes that choose parts."""
        names = {word.partition("=")[0] for base in self.bases for word in base.words}
        return [axis for axis in self.axes if axis.key in names]

    def point(self, number: int, drawn: Mapping[str, Any]) -> Point:
        """The trial of one value for each axis, as typed or as a number of an interval."""
        words = [f"{axis.key}={text(drawn[axis.key])}" for axis in self.axes]
        choice = [f"{axis.key}={drawn[axis.key]}" for axis in self.chosen]
        index = next(i for i, base in enumerate(self.bases) if base.words == choice)
        base = self.bases[index]
        rest = [axis for axis in self.axes if axis not in self.chosen]
        typed = {} if base.refused else {a.key: base.typed.get(a.key, {}).get(drawn[a.key], drawn[a.key]) for a in rest}
        return Point(number, index, words, typed, base.refused)

    def composed(self, point: Point, seed: int) -> Composed:
        """The configuration of one run."""
        base = self.bases[point.base]
        config = copy.deepcopy(base.config)
        for key, value in {**point.values, "seed": seed}.items():
            *path, last = key.split(".")
            node = config
            for step in path:
                node = node[step]
            node[last] = value
        return Composed(config, frozenset(base.explicit))

    def stack(self, point: Point) -> int:
        """How many runs like this one may train as one; a search judges each by itself."""
        asked = self.composed(point, self.seeds[0]).config["trainer"].get("stack", 1)
        return 1 if self.sampler == "tpe" else asked

    def alike(self, one: Point, other: Point) -> bool:
        """Whether two trials differ in nothing but what runs that train as one may differ in."""
        keys = {key for key in (*one.values, *other.values) if one.values.get(key) != other.values.get(key)}
        return one.base == other.base and all(OWN.fullmatch(key) for key in keys)

    def jobs(self, points: Iterable[Point]) -> list[Job]:
        """Seed by seed, so that a sweep that ends early has whole replicates; refused trials have none."""
        able = [point.number for point in points if point.refused is None]
        return [Job(number, seed) for seed in self.seeds for number in able]

    def train_words(self, point: Point, seed: int) -> list[str]:
        """The words with which ``moe train`` repeats a run."""
        return [*self.words, *point.words, f"seed={seed}"]


def make(space: Space, sampler: str, trials: int | None, twin: bool = False, any_number: bool = False) -> Plan:
    """Compose what a space describes, and draw its trials.

    Raises UsageError for what no run would know (keys, names, values), for a space that the sampler cannot walk, and
    for more than MOST_RUNS runs unless ``any_number``.  A choice of parts that has no such key is a refused base, if another has it.
    """
    _refuse_nothing(space)
    for axis in (axis for axis in space.axes if axis.key in registry()):
        for value in axis.values:
            _known(axis.key, value)
    samplers.refuse(space.axes, sampler, trials)
    planned = samplers.size(space.axes, sampler, trials)
    number = planned * max(1, len(space.seeds)) * (1 + twin)
    if number > MOST_RUNS and not any_number:
        raise UsageError(f"moe sweep: that is {number:,} runs, of {planned:,} trials. Narrow it, or say --yes")
    bases = _bases(space)
    seeds = _seeds(space, next(base for base in bases if not base.refused))
    plan = Plan(space.fixed, sampler, planned, seeds, [_fitting(axis, bases) for axis in space.axes], bases)
    plan.points = [plan.point(i, drawn) for i, drawn in enumerate(samplers.draw(plan.axes, sampler, planned, seeds[0]))]
    plan.points += _twins(plan) if twin else []
    return plan


def _refuse_nothing(space: Space) -> None:
    if not space.axes and len(space.seeds) < 2:
        raise UsageError(
            "moe sweep: no key has several values. Write for example router=top_k,hash or seed=0..4, or use moe train"
        )


def _known(group: str, option: str) -> None:
    """Raises UsageError for an option that no plan could have."""
    from moecli.config import find

    for name in [part.strip() for part in option.strip("[]").split(",") if part.strip()]:
        if name != "null":
            find(group, name)


def _structural(space: Space) -> list[Axis]:
    """Axes whose values choose parts, and with them which other keys there are."""
    kinds: Mapping[str, Any] = {}
    for words in _combinations([axis for axis in space.axes if axis.key in registry()]):
        kinds = settable([*space.fixed, *words])
        break
    return [
        axis
        for axis in space.axes
        if axis.key in registry()
        or axis.key.startswith("model.layers.")
        or isinstance(kinds.get(axis.key, (None,))[0], str)
    ]


def _combinations(axes: Sequence[Axis]) -> Iterable[list[str]]:
    for values in product(*(axis.values for axis in axes)):
        yield [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]


def _bases(space: Space) -> list[Base]:
    """Raises the first UsageError where no choice of parts composes."""
    chosen = _structural(space)
    others = [axis for axis in space.axes if axis not in chosen]
    number = math.prod(len(axis.values) for axis in chosen)
    if number > MOST_RUNS:
        raise UsageError(f"moe sweep: that is {number:,} choices of parts, each composed whole. Narrow it")
    found, errors = [], []
    for words in _combinations(chosen):
        try:
            found.append(_base(space, words, others))
        except UsageError as error:
            errors.append(error)
            found.append(Base(words, {}, [], {}, str(error)))
    if len(errors) == len(found):
        raise errors[0]
    return found


def _base(space: Space, words: list[str], others: Sequence[Axis]) -> Base:
    first = [f"{axis.key}={_values(axis)[0]}" for axis in others]
    composed = compose([*space.fixed, *words, *first, *(f"seed={seed}" for seed in space.seeds[:1])])
    typed = {axis.key: {v: _typed(composed.config, axis.key, v) for v in _values(axis)} for axis in others}
    return Base(words, composed.config, sorted(composed.explicit), typed)


def _values(axis: Axis) -> list[str]:
    """What is checked of an axis: its values, or the ends of its interval, rounded inwards for whole numbers."""
    if axis.interval is None:
        return list(axis.values)
    ends = (axis.interval.low, axis.interval.high)
    return [text(int(end)) if end == int(end) else text(end) for end in ends]


def _typed(config: Config, key: str, value: str) -> Any:
    return dict(flatten(amend(config, [f"{key}={value}"])))[key]


def _fitting(axis: Axis, bases: Sequence[Base]) -> Axis:
    """An interval of a key that takes whole numbers is drawn in whole numbers."""
    if axis.interval is None:
        return axis
    ends = [value for base in bases for value in base.typed.get(axis.key, {}).values()]
    if not all(isinstance(end, int) for end in ends):
        return axis
    return Axis(axis.key, (), Interval(int(axis.interval.low), int(axis.interval.high), axis.interval.log))


def _seeds(space: Space, base: Base) -> list[int]:
    seeds = [_typed(base.config, "seed", seed) for seed in space.seeds] or [base.config["seed"]]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seed={shown(','.join(space.seeds))} (command line): one is there twice. Name it once")
    return seeds


def _twins(plan: Plan) -> list[Point]:
    """The dense twin of every trial that is none."""
    mixtures = [p for p in plan.points if p.refused is None and not _is_twin(plan, p)]
    return [
        Point(len(plan.points) + i, p.base, [*p.words, "model.twin=true"], {**p.values, "model.twin": True})
        for i, p in enumerate(mixtures)
    ]


def _is_twin(plan: Plan, point: Point) -> bool:
    return bool(plan.composed(point, 0).config["model"].get("twin"))


def short(word: str) -> str:
    """A word for a table: a drawn number with four digits."""
    key, _, value = word.partition("=")
    try:
        return f"{key}={float(value):.4g}" if "." in value or "e" in value else word
    except ValueError:
        return word


def to_dict(plan: Plan) -> dict[str, Any]:
    return asdict(plan)


def from_dict(found: Mapping[str, Any], source: Path) -> Plan:
    """A stored plan, checked like any configuration.  Raises ArtifactError where it is none of ours."""
    if found.get("version") != VERSION:
        raise ArtifactError(f"{source}: of version {found.get('version')}, and this moe reads {VERSION}. Sweep anew")
    try:
        axes = [
            Axis(a["key"], tuple(a["values"]), Interval(**a["interval"]) if a["interval"] else None)
            for a in found["axes"]
        ]
        bases = [Base(**{**base, "config": check(base["config"]) if base["config"] else {}}) for base in found["bases"]]
        points = [point_from(point, source) for point in found["points"]]
        return Plan(**{**found, "axes": axes, "bases": bases, "points": points})
    except (TypeError, KeyError, AttributeError, UsageError) as error:
        raise ArtifactError(f"{source}: no plan that moe sweep wrote ({error}). Sweep anew") from error


def point_from(found: Mapping[str, Any], source: Path) -> Point:
    try:
        return Point(**found)
    except TypeError as error:
        raise ArtifactError(f"{source}: no trial that moe sweep wrote ({error}). Sweep anew") from error
