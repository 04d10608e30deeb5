"""What keeps a mixture from overfitting languages that have few texts: EOM and CMR (NLLB, 2022)."""

from __future__ import annotations

import numpy as np
import torch

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, means
from moecli.run import Loaded, load
from moecli.training.evaluate import evaluate

MASKED = 0.2  # of the tokens, in training
SYSTEMS = {
    "vanilla": (),
    "EOM": (f"router.mask={MASKED}",),
    "CMR": ("model.shared=1", "model.shared_mix=mix", "auxiliary=[switch_balance,shared_budget]"),
}
SPLITS = ("train", "valid")


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(SYSTEMS, 1)
    found = {name: [by_resource(run) for run in each] for name, each in runs.items()}
    gaps, rich = ({name: mean_gap(each, which) for name, each in found.items()} for which in ("low", "high"))
    poor = {name: float(np.mean([one["low"]["valid"] for one in each])) for name, each in found.items()}
    return Outcome(
        [
            *(Quantity(f"validation over training, low-resource, nats, {name}", gap) for name, gap in gaps.items()),
            *(Quantity(f"validation over training, high-resource, nats, {name}", gap) for name, gap in rich.items()),
            *(Quantity(f"validation nll, low-resource, nats, {name}", nll) for name, nll in poor.items()),
            *means("test chrF, low-resource", runs, "test/chrf_low"),
        ],
        "the gap is wider for low-resource languages than for high-resource ones, and both EOM and CMR narrow it there",
        gaps["vanilla"] > rich["vanilla"] and max(gaps["EOM"], gaps["CMR"]) < gaps["vanilla"],
    )


def mean_gap(found: list[dict[str, dict[str, float]]], resource: str) -> float:
    """The validation loss over that of training, mean over runs."""
    return float(np.mean([one[resource]["valid"] - one[resource]["train"] for one in found]))


def by_resource(run: Run) -> dict[str, dict[str, float]]:
    """{high or low: {split: nll in nats of the target's tokens}}."""
    loaded = load(run.path)
    found = {split: _nll(loaded, split) for split in SPLITS}
    return {name: {split: found[split][name] for split in SPLITS} for name in ("high", "low")}


def _nll(loaded: Loaded, split: str) -> dict[str, float]:
    scores = evaluate(loaded.model, loaded.task, split, loaded.device).scores
    resource = torch.cat([batch.labels["resource"] for batch in loaded.task.batches(split, 256)])
    nll, scored = scores["nll"].double(), scores["scored"].double()
    names = loaded.task.label_names["resource"]
    return {
        name: float((nll * scored)[resource == number].sum() / scored[resource == number].sum())
        for number, name in enumerate(names)
    }
