"""What instruction tuning gains a mixture and its dense twin, both trained on a text before (Shen et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecli.analysis.statistics import interval
from moecli.record import checkpoint
from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity
from moecli.run import assemble, best_weights
from moecli.training.evaluate import evaluate

MIXTURE, TWIN = "mixture", "dense twin"
SYSTEMS: dict[str, tuple[str, ...]] = {MIXTURE: (), TWIN: ("model.twin=true",)}
TEXT = ("task=stdlib_text", "task.tokens=bytes", "task.context=64", "task.max_chars=100000", "task.eval_windows=8")


@dataclass(frozen=True)
class Tuned:
    """Nats a byte of the responses to kinds of instructions that are held out, before and after; and to the others after."""

    before: float
    after: float
    others: float
    flops: float

    @property
    def gain(self) -> float:
        return self.before - self.after


def replicate(bench: Bench) -> Outcome:
    found = {name: [tuned(bench, seed, words) for seed in bench.seeds(3)] for name, words in SYSTEMS.items()}
    pairs = list(zip(found[MIXTURE], found[TWIN], strict=True))
    more = interval([mixture.gain - twin.gain for mixture, twin in pairs])
    return Outcome(
        [
            *of_each("nll of held-out kinds before tuning", found, "before"),
            *of_each("nll of held-out kinds after tuning", found, "after"),
            *of_each("gain on held-out kinds", found, "gain"),
            Quantity("gain of the mixture over that of its twin", f"{more.mean:+.4f} ± {more.half:.4f}"),
            *of_each("nll of the kinds that were tuned on", found, "others"),
            *of_each("FLOPs a token", found, "flops"),
        ],
        "tuning gains the mixture more than its dense twin with every seed, and after it the mixture has the lower loss",
        all(mixture.gain > twin.gain and mixture.after < twin.after for mixture, twin in pairs),
    )


def tuned(bench: Bench, seed: int, words: tuple[str, ...]) -> Tuned:
    own = (f"seed={seed}", *words)
    trained = bench.train(*own, *TEXT)
    run = bench.train(*own, f"init={trained.path}")
    metrics = run.summary["metrics"]
    return Tuned(untuned(bench, own, trained), metrics["test/nll"], metrics["valid/nll"], run.summary["flops"])


def untuned(bench: Bench, words: tuple[str, ...], trained: Run) -> float:
    """The loss of what was learned from the text alone."""
    built = assemble(bench.compose(*words))
    checkpoint.restore(built.model, best_weights(trained), str(trained.path))
    return evaluate(built.model, built.task, "test", built.device).metrics["nll"]


def of_each(what: str, found: dict[str, list[Tuned]], name: str) -> list[Quantity]:
    """The mean of a number over seeds, of each system."""
    return [
        Quantity(f"{what}, {system}", float(np.mean([getattr(each, name) for each in tuned])))
        for system, tuned in found.items()
    ]
