"""What each claim is judged with: runs of its experiment, the paper's quantity beside ours, and a verdict.

Every other module of this package is one claim, named as its file in ``conf/experiment/``, with one
function ``replicate(bench) -> Outcome``.
"""

from __future__ import annotations

import importlib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moecli import __version__
from moecli.analysis import specialisation
from moecli.analysis.explain import header
from moecli.analysis.statistics import interval
from moecli.config import FULL, OPEN, Composed, Word, compose, conf_root, flatten, nearest, raw_node
from moecli.errors import ArtifactError, UsageError
from moecli.record.folder import Run, read_lines, to_json, write_whole
from moecli.record.trace import TraceReader
from moecli.run import Place, assemble, git_revision, train_built

SMALL = "not tested at this scale"
SMOKE = "smoke"  # the scale that only shows that a claim runs
GPU = "gpu"  # the scale of the paper's smaller models, which the claims of docs/deep.md have
NEVER = "never"
Value = float | str | None


@dataclass(frozen=True)
class Quantity:
    """One number: what came out here, and what the paper reports where it does."""

    name: str
    here: Value
    paper: Value = None


@dataclass(frozen=True)
class Outcome:
    """What a claim's runs showed, and whether the rule that it was judged by holds."""

    quantities: list[Quantity]
    rule: str  # a sentence that is true where the claim is replicated
    holds: bool


@dataclass
class Bench:
    """Trains a claim's runs, each a diff to its experiment, at one scale; ``words`` are the user's, for every run."""

    name: str
    scale: str = FULL
    root: Path | None = None
    words: tuple[str, ...] = ()
    made: list[Run] = field(default_factory=list)

    @property
    def small(self) -> bool:
        return self.scale == SMOKE

    def _whole(self, words: Sequence[str]) -> list[str]:
        """Raises UsageError for a word of the user that the claim needs for itself."""
        own = [f"experiment={self.name}", f"scale={self.scale}", *words]
        taken = {Word.parse(word).key for word in own}
        for word in self.words:
            if Word.parse(word).key in taken:
                raise UsageError(
                    f"moe replicate {self.name} {word}: the claim's runs differ by it. Leave it out, or use moe train"
                )
        return [*own, *self.words]

    def compose(self, *words: str) -> Composed:
        return compose(self._whole(words))

    def train(self, *words: str) -> Run:
        """``moe train experiment=NAME scale=SCALE WORDS``; pictures of seed 0 at full scale only."""
        composed = self.compose(*words)
        pictures = self.scale == FULL and composed.config["seed"] == 0
        command = shlex.join(["moe", "train", *self._whole(words)])
        place = Place(self.root, f"replicate-{self.name}", command=command, pictures=pictures)
        self.made.append(train_built(assemble(composed), place))
        return self.made[-1]

    def seeds(self, count: int) -> range:
        return range(1 if self.small else count)

    def over_seeds(self, systems: Mapping[str, Sequence[str]], count: int = 3) -> dict[str, list[Run]]:
        """Runs of each named system, which pair by their seeds."""
        for words in systems.values():  # refused before any work
            self._whole(words)
        return {
            name: [self.train(f"seed={seed}", *words) for seed in self.seeds(count)] for name, words in systems.items()
        }


def claims() -> list[str]:
    """The names of all claims, those of the experiments of this package."""
    own = {file.stem for file in Path(__file__).parent.glob("*.py")} - {"__init__", "bench"}
    return sorted(file.stem for file in (conf_root() / "experiment").glob("*.yaml") if file.stem in own)


def said(name: str, field: str) -> str:
    """A line of the experiment's header: claim, command, cost, measured or paper."""
    return next((line.removeprefix(f"{field}: ") for line in header(name) if line.startswith(f"{field}: ")), "")


def needed(name: str) -> list[str]:
    """What a claim on the user's own data must be told: keys that its experiment leaves open, such as ``task.path``."""
    return [key for key, value in flatten(raw_node("experiment", name)) if value == OPEN]


def deep(name: str) -> bool:
    """Whether a claim stands in ``docs/deep.md``, where models are networks that a GPU is for, or in ``classical.md``."""
    return GPU in raw_node("experiment", name)["scales"]


def judge(name: str, scale: str = FULL, root: Path | None = None, words: Sequence[str] = ()) -> dict[str, Any]:
    """Run and judge one claim -> what stands in ``docs/results.json`` under its name.

    ``words`` are laid over every one of its runs.  Raises UsageError for a claim that is none, and whatever its runs raise.
    """
    if name not in claims():
        raise UsageError(
            f"moe replicate {name}: no such claim.{nearest(name, claims())} Choose from: {', '.join(claims())}"
        )
    replicate: Callable[[Bench], Outcome] = importlib.import_module(f"moecli.replicate.{name}").replicate
    bench = Bench(name, scale, root, tuple(words))
    bench.compose()  # refused before any work, where the scale is none
    outcome = replicate(bench)
    verdict = "replicated" if outcome.holds else "did not replicate"
    return {
        "claim": said(name, "claim"),
        "paper": said(name, "paper"),
        "scale": scale,
        "words": list(words),
        "quantities": [asdict(quantity) for quantity in outcome.quantities],
        "rule": outcome.rule,
        "verdict": SMALL if bench.small else verdict,
        "seconds": round(sum(run.info["seconds"] for run in bench.made), 1),
        "runs": [str(run.path) for run in bench.made],
        "revision": git_revision() or __version__,
        "versions": {"moecli": __version__, "torch": torch.__version__},
    }


def write(file: Path, found: dict[str, dict[str, Any]]) -> None:
    """Put these claims' results into the file, beside those of other claims.  Raises ArtifactError."""
    kept = {name: {k: v for k, v in result.items() if k != "runs"} for name, result in found.items()}
    write_whole(file, to_json(dict(sorted({**read(file), **kept}.items()))))


def read(file: Path) -> dict[str, dict[str, Any]]:
    """{claim: result} of a file, none where there is no file yet.  Raises ArtifactError."""
    import json

    try:
        results = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: no results that moe replicate wrote ({error}). Name another file") from error
    if not isinstance(results, dict):
        raise ArtifactError(f"{file}: no results that moe replicate wrote. Name another file")
    return results


# -- results in words ---------------------------------------------------------------------------

FIRST = 4  # quantities that an experiment's header repeats


def shown(value: Value) -> str:
    """A quantity as a table shows it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def in_words(result: dict[str, Any]) -> str:
    """What stands behind ``# measured:`` in the experiment's file."""
    found = "; ".join(f"{q['name']} {shown(q['here'])}" for q in result["quantities"][:FIRST])
    return f"{result['verdict']} at {result['revision']}: {found}"


def cost(result: dict[str, Any]) -> str:
    """What stands behind ``# cost:`` there."""
    return f"{result['seconds']:.0f} s for all runs, on two cores that other work shared"


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """A section for each claim, as it stands in ``docs/classical.md`` or ``docs/deep.md``."""
    return "\n\n".join(_section(name, result) for name, result in results.items())


def _section(name: str, result: dict[str, Any]) -> str:
    command = shlex.join(["moe", "replicate", name, *result.get("words", [])])
    rows = [f"| {q['name']} | {shown(q['here'])} | {shown(q['paper'])} |" for q in result["quantities"]]
    return "\n".join(
        [
            f"### {name}: {result['verdict']}",
            "",
            f"{result['claim']} The rule: {result['rule']}.",
            f"`{command}`, {result['seconds']:.0f} s at revision {result['revision']}.",
            "",
            "| quantity | here | paper |",
            "|---|---|---|",
            *rows,
        ]
    )


# -- what several claims read of runs -----------------------------------------------------------


def metric(runs: Sequence[Run] | Run, name: str) -> float:
    """A metric of the summary, such as ``test/accuracy``; of several runs its mean."""
    each = [runs] if isinstance(runs, Run) else runs
    return float(np.mean([run.summary["metrics"][name] for run in each]))


def curve(run: Run, name: str, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """(steps (S,), values (S,)) of one recorded number."""
    found = [(m["step"], m["value"]) for m in run.metrics if (m["split"], m["name"]) == (split, name)]
    steps, values = zip(*found, strict=True)
    return np.array(steps), np.array([np.nan if value is None else value for value in values], dtype=float)


def steps_until(run: Run, name: str, level: float, split: str = "train") -> float:
    """How many steps were done when the number was first seen at most ``level``; infinite where it never was."""
    steps, values = curve(run, name, split)
    reached = steps[values <= level]
    return float(reached[0]) if len(reached) else math.inf


def training_seconds(run: Run) -> float:
    """From the first step to the last evaluation, on whatever else the machine did: what follows is left out."""
    return float(read_lines(run.path / "timing.jsonl")[-1]["value"])


def or_never(number: float, tried: float | None = None) -> Value:
    """The number, or words where it is infinite, which JSON does not know; ``tried`` is how far it was looked for."""
    if math.isfinite(number):
        return number
    return NEVER if tried is None else f"not in {tried:.0f}"


def nlls(systems: Mapping[str, Sequence[Run]], paper: Mapping[str, float] | None = None) -> list[Quantity]:
    """Each system's mean test loss, and the paper's where it names one."""
    theirs = paper or {}
    return [
        Quantity(f"test nll in nats, {name}", metric(runs, "test/nll"), theirs.get(name))
        for name, runs in systems.items()
    ]


def means(what: str, systems: Mapping[str, Sequence[Run]], name: str) -> list[Quantity]:
    """Each system's mean of a metric."""
    return [Quantity(f"{what}, {system}", metric(runs, name)) for system, runs in systems.items()]


def flops(of: str, systems: Mapping[str, Sequence[Run]]) -> list[Quantity]:
    """What each system costs, ``of`` being a token or an image."""
    return [Quantity(f"FLOPs {of}, {name}", float(runs[0].summary["flops"])) for name, runs in systems.items()]


def best(run: Run) -> float:
    """The lowest validation loss of its evaluations."""
    return float(curve(run, "nll", "valid")[1].min())


def gap(a: Sequence[Run], b: Sequence[Run], name: str = "test/nll") -> str:
    """The metric of b over that of a, paired by seed, with its 95 % interval (Student's t)."""
    found = interval([metric(y, name) - metric(x, name) for x, y in zip(a, b, strict=True)])
    return f"{found.mean:+.4f} ± {found.half:.4f}"


def lower(a: Sequence[Run], b: Sequence[Run], name: str = "test/nll") -> bool:
    """Whether a has the lower number with every seed."""
    return all(metric(x, name) < metric(y, name) for x, y in zip(a, b, strict=True))


def told(runs: Sequence[Run], layer: int, label: str) -> float:
    """Normalised mutual information of a layer's first choices and a label, above chance: mean over runs."""
    found = [run.summary["layers"][layer]["nmi"][label] for run in runs]
    return float(np.mean([each["value"] - each["chance"] for each in found]))


def of_layers(runs: Sequence[Run], name: str) -> float:
    """A number of the summary's mixture layers, such as ``max_over_mean`` of the test load: mean over layers and runs."""
    return float(np.mean([layer[name] for run in runs for layer in run.summary["layers"]]))


def trained(runs: Sequence[Run]) -> list[dict[str, np.ndarray]]:
    """Of every mixture layer of every run: asked and served (S, E), tokens (S,) at S recorded training steps."""
    return [TraceReader(run.path).usage(layer) for run in runs for layer in run.layers]


def experts_a_token(runs: Sequence[Run]) -> float:
    """How many experts served a token in training, on average."""
    return float(np.mean([usage["served"].sum() / usage["tokens"].sum() for usage in trained(runs)]))


def dropped_in_training(runs: Sequence[Run]) -> float:
    """The share of what was asked for that no expert served."""
    return float(np.mean([1 - usage["served"].sum() / usage["asked"].sum() for usage in trained(runs)]))


def gate_by(run: Run, label: str, layer: str = "layer0") -> np.ndarray:
    """(L, E): the mean weight of each expert over the test rows of each label."""
    tokens = TraceReader(run.path).tokens(layer, "test")
    share = specialisation.shares(tokens, run.layers[layer]["experts"])
    table = specialisation.by_label(share, tokens[f"label_{label}"], len(run.info["label_names"][label]))
    return table / np.maximum(table.sum(1, keepdims=True), 1e-30)
