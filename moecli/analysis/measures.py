"""All measures of a run in one long table: what each layer's experts do, beside what chance alone would give.

Formulas, ranges and what stands for chance are in ``docs/measures.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moecli.analysis import balance, repetition, specialisation, statistics
from moecli.analysis.cells import Cells, cells
from moecli.analysis.chance import AgainstChance
from moecli.analysis.coactivation import coactivation
from moecli.analysis.load import evenness
from moecli.analysis.saturation import against_chance as saturation_against_chance
from moecli.analysis.saturation import switched
from moecli.errors import UsageError
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.training.health import dropped_by_rank

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "layer",
    "split",
    "measure",
    "label",
    "value",
    "chance",
    "chance_low",
    "chance_high",
    "p",
    "unit",
    "range",
)
PLACES = 8  # into which positions are grouped
MOST_VALUES = 64  # of a label, for experts to be matched with its values
MOST_SYMBOLS = 1000  # of a vocabulary, the most frequent ones
# measure: (unit, range); E experts, L values of the label, n tokens.  Numbers without a unit are shares or ratios.
MEASURES: dict[str, tuple[str, str]] = {
    "cv_squared": ("", "0 even to E - 1"),
    "importance_cv_squared": ("", "0 even to E - 1"),
    "max_over_mean": ("", "1 even to E"),
    "max_violation": ("", "0 even to E - 1"),
    "normalised_entropy": ("", "1/E to 1 even"),
    "gini": ("", "0 even to 1 - 1/E"),
    "dead_share": ("", "0 to 1"),
    "top_share": ("", "0 to 1"),
    "bottom_share": ("", "0 to 1"),
    "dropped": ("", "0 to 1"),
    "entropy": ("nats", "0 sure to ln E"),
    "weight_entropy": ("nats", "0 sure to ln K"),
    "margin": ("", "0 to 1 sure"),
    "z": ("", "0 upwards"),
    "saturation": ("", "0 to 1 settled"),
    "switched": ("", "0 settled to 1"),
    "mutual_information": ("nats", "0 to min(ln E, ln L)"),
    "nmi": ("", "0 unrelated to 1"),
    "ari": ("", "0 at chance to 1; below 0 too"),
    "purity": ("", "most frequent value's share to 1"),
    "matched_accuracy": ("", "0 to 1"),
    "labels_for_80": ("values", "1 to L"),
    "vocabulary_specialisation": ("", "1/E to 1"),
    "cells_above_chance": ("cells", "0 to E L"),
    "flow": ("", "0 unrelated to 1"),
    "repetition": ("", "0 to 1"),
    "repetition_of_two": ("", "0 to 1"),
    "strongest_partner": ("", "0 to 1"),
    "without_expert": ("", ""),
}


def measures(run: Run) -> pandas.DataFrame:
    """Every measure of every layer, a row each: the columns of ``COLUMNS``, NaN where chance has no meaning.

    Load and drops are of the last recorded training steps, stability of the evaluations on the validation split, all
    else of the test split's tokens (validation's where the run did not get so far).  ``attrs["missing"]`` says in
    sentences what this run's folder lacks.  Raises ArtifactError where it is damaged.
    """
    import pandas

    table = _Table()
    before: Layer | None = None
    for name in run.layers:
        layer = Layer.of(run, name)
        if layer.num_experts < 2:
            table.lacks(f"{name}: it has one expert, so there is nothing to measure")
            continue
        for part in (_balance, _confidence, _stability, _specialisation, _together, _without):
            part(table, layer)
        _flow(table, before, layer)
        before = layer
    frame = pandas.DataFrame(table.rows, columns=list(COLUMNS))
    frame.attrs["missing"] = table.missing
    return frame


@dataclass(frozen=True)
class Layer:
    """One layer of a run: its last recorded tokens, heaviest expert first."""

    run: Run
    name: str
    num_experts: int
    split: str
    tokens: dict[str, NDArray]

    @classmethod
    def of(cls, run: Run, name: str) -> Layer:
        """Raises UsageError for a layer that the run has not."""
        if name not in run.layers:
            raise UsageError(f"{name}: no mixture layer ({run.path}). It has {', '.join(run.layers) or 'none'}")
        reader = TraceReader(run.path)
        split = "test" if reader.steps(name, "test") else "valid"
        return cls(run, name, run.layers[name]["experts"], split, reader.tokens(name, split))

    @property
    def first(self) -> NDArray:  # (n,)
        return specialisation.first_expert(self.tokens)

    @property
    def chosen(self) -> NDArray:
        """Each token's experts (n, K), the places that are empty for all left out."""
        expert = self.tokens["expert"]
        return expert[:, : max(1, int((expert >= 0).any(0).sum()))]

    @property
    def by_mass(self) -> bool:
        """Every expert serves every token, so that only weights tell them apart."""
        expert = self.tokens["expert"]
        return expert.shape[1] == self.num_experts and bool((expert >= 0).all())

    def labels(self) -> dict[str, NDArray]:
        """Labels (n,) of more than one value and not too many, the place in the sequence among them."""
        found = {k.removeprefix("label_"): v for k, v in self.tokens.items() if k.startswith("label_")}
        position = self.tokens["position"]
        if position.max(initial=0) > 0 and "position" not in found:
            found["position"] = position.astype(np.int64) * PLACES // (int(position.max()) + 1)
        return {name: value for name, value in found.items() if _several(value) and value.max() < MOST_VALUES}

    def symbols(self) -> dict[str, NDArray]:
        """Ids (n,) of the token, of the one that follows and of the one predicted; rare ones are -1."""
        return {name: _frequent(self.tokens[name]) for name in ("id", "target", "predicted") if name in self.tokens}

    def values(self, label: str) -> list[str]:
        """What a label's numbers mean."""
        if label == "position" and label not in self.run.info.get("label_names", {}):
            return [f"{place + 1}/{PLACES}" for place in range(PLACES)]
        return [str(value) for value in self.run.info.get("label_names", {}).get(label, [])]


def _several(label: NDArray) -> bool:
    return len(np.unique(label[label >= 0])) > 1


def _frequent(ids: NDArray) -> NDArray:
    """The most frequent ids numbered anew, the others -1."""
    from moecli.analysis.vocabulary import FEWEST

    values, row, number = np.unique(ids, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-number, kind="stable")] = np.arange(len(values))
    rank[(rank >= MOST_SYMBOLS) | (number < FEWEST) | (values < 0)] = -1
    return rank[row]


@dataclass
class _Table:
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, layer: Layer, split: str, measure: str, label: str, value: Any, **more: Any) -> None:
        unit, range_ = MEASURES[measure]
        known = {"layer": layer.name, "split": split, "measure": measure, "label": label, "value": float(value)}
        none = dict.fromkeys(("chance", "chance_low", "chance_high", "p"), math.nan)
        self.rows.append({**known, **none, "unit": unit, "range": range_, **more})

    def against(self, layer: Layer, measure: str, label: str, found: AgainstChance, split: str = "") -> None:
        more = {name: getattr(found, name) for name in ("chance", "chance_low", "chance_high", "p")}
        self.add(layer, split or layer.split, measure, label, found.value, **more)

    def lacks(self, sentence: str) -> None:
        if sentence not in self.missing:
            self.missing.append(sentence)


# -- the parts ----------------------------------------------------------------------------------------


def _balance(table: _Table, layer: Layer) -> None:
    usage = TraceReader(layer.run.path).usage(layer.name)
    if usage:
        last = balance.window(usage, len(usage["step"])) if "ranks" in usage else None
        steps = {name: values[-balance.WINDOW :].sum(0) for name, values in usage.items()}
        for measure, value in evenness(steps["served"]).items():
            table.add(layer, "train", measure, "", value)
        table.add(layer, "train", "importance_cv_squared", "", evenness(steps["mass"])["cv_squared"])
        asked = max(float(steps["asked"].sum()), 1e-12)
        table.add(layer, "train", "dropped", "", max(0.0, 1 - float(steps["served"].sum()) / asked))
        for rank, value in enumerate(dropped_by_rank(last.ranks.tolist()) if last else [], 1):
            table.add(layer, "train", "dropped", f"choice {rank}", value)
        if last is None:
            table.lacks("drops by rank of choice: this run was made before they were recorded")
    else:
        table.lacks(f"{layer.name}: load in training; no step was recorded")
    if layer.tokens:
        for measure, value in evenness(_load(layer)).items():
            table.add(layer, layer.split, measure, "", value)


def _load(layer: Layer) -> NDArray:
    """Work of each expert (E,) on the recorded tokens: tokens served, or mass where all serve all."""
    expert, weight = layer.tokens["expert"], layer.tokens["weight"]
    kept = expert >= 0
    work = weight[kept].astype(np.float64) if layer.by_mass else None
    return np.bincount(expert[kept], work, minlength=layer.num_experts)


def _confidence(table: _Table, layer: Layer) -> None:
    tokens = layer.tokens
    if not tokens:
        table.lacks(f"{layer.name}: what each token's gate believed; no token was recorded")
        return
    table.add(layer, layer.split, "entropy", "", tokens["entropy"].mean())
    table.add(layer, layer.split, "weight_entropy", "", _weight_entropy(tokens))
    for measure, name, read in (("margin", "margin", np.mean), ("z", "logsumexp", lambda z: np.square(z).mean())):
        if name in tokens:
            table.add(layer, layer.split, measure, "", read(tokens[name].astype(np.float64)))
        else:
            table.lacks(f"{measure}: this run has no {name} in its trace (older, or a router without logits)")


def _weight_entropy(tokens: dict[str, NDArray]) -> float:
    """Of the weights of those who served, as shares: mean over tokens that anybody served, in nats."""
    work = np.where(tokens["expert"] >= 0, tokens["weight"], 0).astype(np.float64)
    work = work[work.sum(1) > 0]
    share = work / work.sum(1, keepdims=True)
    logs = np.log(np.where(share > 0, share, 1.0))
    return float(-(share * logs).sum(1).mean()) if len(share) else math.nan


def _stability(table: _Table, layer: Layer) -> None:
    reader = TraceReader(layer.run.path)
    steps = reader.steps(layer.name, "valid")
    if len(steps) < 2:
        table.lacks(f"{layer.name}: stability; it takes two evaluations")
        return
    seen = [reader.tokens(layer.name, "valid", step) for step in steps]
    last, by_mass = seen[-1], layer.by_mass
    for step, tokens in zip(steps[:-1], seen[:-1], strict=True):
        if not by_mass:
            pair = tokens["expert"], last["expert"]
            found = saturation_against_chance(*pair, last["document"])
            table.against(layer, "saturation", f"step {step}", found, "valid")
    for (step, tokens), (after, later) in zip(
        zip(steps[:-1], seen[:-1], strict=True), zip(steps[1:], seen[1:], strict=True), strict=True
    ):
        value = switched(specialisation.first_expert(tokens), specialisation.first_expert(later))
        table.add(layer, "valid", "switched", f"step {step} to {after}", value)


def _specialisation(table: _Table, layer: Layer) -> None:
    tokens = layer.tokens
    if not tokens:
        return
    labels, symbols = layer.labels(), layer.symbols()
    if not symbols and tokens["position"].max(initial=0) > 0:
        table.lacks("vocabulary: this run was made before the tokens' ids were recorded")
    wanted = {name: specialisation.AGREEMENT for name in labels}
    wanted |= {name: specialisation.OF_VOCABULARY for name in symbols}
    found = specialisation.agreement(layer.first, labels | symbols, wanted, tokens["document"], layer.num_experts)
    for (label, measure), against in found.items():
        table.against(layer, measure, label, against)
    for label in labels:
        of_label = _cells(layer, label)
        if not np.isnan(of_label.q).all():
            table.add(layer, layer.split, "cells_above_chance", label, of_label.above.sum(), chance=0.0)
    if found and all(math.isnan(against.chance) for against in found.values()):
        table.lacks(f"{layer.name}: chance; it takes eight documents")


def _cells(layer: Layer, label: str) -> Cells:
    values = layer.labels()[label]
    expert, weight, document = (layer.tokens[name] for name in ("expert", "weight", "document"))
    return cells(expert, weight, values, document, int(values.max()) + 1, layer.num_experts)


def _together(table: _Table, layer: Layer) -> None:
    """Co-activation, and repetition from token to token."""
    tokens = layer.tokens
    if not tokens or layer.by_mass:
        return
    chosen = layer.chosen
    if chosen.shape[1] > 1:
        value, chance = _strongest_partner(chosen, layer.num_experts)
        table.add(layer, layer.split, "strongest_partner", "", value, chance=chance)
    where = tokens["sequence"], tokens["position"], tokens["document"]
    for choices, measure in ((1, "repetition"), (2, "repetition_of_two")):
        if chosen.shape[1] >= choices:
            found = repetition.against_chance(chosen, *where, choices)
            if not math.isnan(found.value):
                table.against(layer, measure, "", found)


def _strongest_partner(chosen: NDArray, num_experts: int) -> tuple[float, float]:
    """Mean over used experts of the largest co-activation, and the same if partners came in proportion to their load."""
    served = np.bincount(chosen[chosen >= 0], minlength=num_experts).astype(float)
    table = coactivation(chosen, num_experts)
    others = served[None, :] * (1 - np.eye(num_experts))  # (E, E)
    expected = table.sum(1, keepdims=True) * others / np.maximum(others.sum(1, keepdims=True), 1)
    used = served > 0
    return float(table.max(1)[used].mean()), float(expected.max(1)[used].mean())


def _flow(table: _Table, before: Layer | None, layer: Layer) -> None:
    """How far a token's expert in the layer before says which one it gets here."""
    if before is None or not before.tokens or not layer.tokens or before.split != layer.split:
        return
    where = [np.stack([part.tokens["sequence"], part.tokens["position"]]) for part in (before, layer)]
    if where[0].shape != where[1].shape or (where[0] != where[1]).any():
        table.lacks(f"{layer.name}: flow from {before.name}; other tokens were recorded there")
        return
    found = specialisation.nmi_against_chance(layer.first, before.first, layer.tokens["document"])
    table.against(layer, "flow", f"from {before.name}", found)


def _without(table: _Table, layer: Layer) -> None:
    """How the headline metric changes without each expert, as the run itself measured it."""
    if layer.run.info.get("status") != "finished":
        table.lacks("without_expert: the run has not finished")
        return
    headline = layer.run.info["headline"]
    for row in layer.run.summary["experts"]:
        if row["layer"] == layer.name and row.get("without") is not None:
            table.add(layer, "test", "without_expert", f"e{row['expert']}", row["without"], unit=headline)


# -- one label, and several runs ----------------------------------------------------------------------


def label_cells(run: Run, layer: str, label: str) -> pandas.DataFrame:
    """A row for each value of a label and expert: share of the value's tokens, chance, p, q, and whether it is above.

    Raises UsageError where the layer or label is none of the run's.
    """
    import pandas

    found = Layer.of(run, layer)
    if not found.tokens or label not in found.labels():
        there = ", ".join(found.labels()) if found.tokens else "none"
        raise UsageError(f"{label}: no label of {layer} ({run.path}). It has {there}")
    table, names = _cells(found, label), found.values(label)
    number, expert = np.indices(table.share.shape).reshape(2, -1)
    columns = {
        name: getattr(table, name).ravel() for name in ("share", "chance", "chance_low", "chance_high", "p", "q")
    }
    value = [names[n] if n < len(names) else str(n) for n in number]
    frame = pandas.DataFrame({"layer": layer, "label": label, "value": value, "expert": expert, **columns})
    return frame.assign(above=table.above.ravel())


def replicated(frames: Iterable[pandas.DataFrame]) -> pandas.DataFrame:
    """Measures of several runs side by side: mean and half width of its 95 % interval over runs, and of how many.

    ``above`` counts the runs whose value lies beyond chance (p <= 0.05), of those where chance is known (``tested``).
    """
    import pandas

    frames = list(frames)
    keys = ["layer", "split", "measure", "label"]
    rows = []
    for key, group in pandas.concat(frames).groupby(keys, sort=False):
        values = group["value"].dropna().tolist()
        found = statistics.interval(values) if values else statistics.Interval(*[math.nan] * 3)
        chance = group["chance"].dropna()
        known = group["p"].dropna()
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"mean": found.mean, "half_width_95": found.half, "runs": len(values)}
            | {"chance": float(chance.mean()) if len(chance) else math.nan}
            | {"above": int((known <= 0.05).sum()), "tested": len(known), "unit": group["unit"].iloc[0]}
        )
    frame = pandas.DataFrame(rows)
    frame.attrs["missing"] = list(dict.fromkeys(s for f in frames for s in f.attrs.get("missing", [])))
    return frame


def above_chance(run: Run) -> Iterator[str]:
    """A line for each layer and label: the cells above chance, the largest excess first."""
    for name in run.layers:
        layer = Layer.of(run, name)
        for label in list(layer.labels()) if layer.tokens and layer.num_experts > 1 else []:
            frame = label_cells(run, name, label)
            above = frame[frame["above"]].assign(excess=lambda f: f["share"] - f["chance"])
            most = above.sort_values("excess", ascending=False, kind="stable").head(4)
            shown = [f"{c.value} → e{c.expert} {c.share:.0%} (chance {c.chance:.0%})" for c in most.itertuples()]
            if not frame["q"].isna().all():
                rest = f", … {len(above)} in all" if len(above) > len(shown) else ""
                yield f"{name} · {label}: {', '.join(shown) + rest if shown else 'no cell above chance'}"
