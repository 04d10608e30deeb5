"""What experts specialised in, from the routing trace: shares, agreement with labels, and their chance level.

Arrays are those of ``TraceReader.tokens``: expert and weight (n, K), the rest (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moecli.analysis import chance, contingency
from moecli.analysis.chance import AgainstChance, Documents

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Reading = Callable[[contingency.Table], Floats]  # tables (..., L, E) -> (...)

# How a label and the tokens' first experts agree, each a function of their table (..., L, E).
AGREEMENT: dict[str, Reading] = {
    "mutual_information": contingency.mutual_information,
    "nmi": contingency.nmi,
    "ari": contingency.ari,
    "purity": contingency.purity,
    "matched_accuracy": contingency.matched_accuracy,
    "labels_for_80": contingency.labels_for_80,
}
LESS = frozenset({"labels_for_80"})  # where few are remarkable
# Of labels with as many values as a vocabulary has, no expert can stand for one.
OF_VOCABULARY: dict[str, Reading] = {
    "mutual_information": contingency.mutual_information,
    "nmi": contingency.nmi,
    "vocabulary_specialisation": contingency.vocabulary_specialisation,
}


def shares(tokens: dict[str, NDArray], num_experts: int) -> Floats:
    """Each token's work, split over the experts that served it: (n, E), rows sum to one or zero."""
    expert, weight = tokens["expert"].astype(np.int64), tokens["weight"].astype(np.float64)
    key = (np.arange(len(expert))[:, None] * num_experts + np.maximum(expert, 0)).ravel()
    work = np.where(expert < 0, 0.0, weight).ravel()
    table = np.bincount(key, work, minlength=len(expert) * num_experts).reshape(-1, num_experts)
    return table / np.maximum(table.sum(1, keepdims=True), 1e-30)


def first_expert(tokens: dict[str, NDArray]) -> Ints:
    """The heaviest expert that served each token, -1 where none did: (n,)."""
    return np.where(tokens["weight"][:, 0] > 0, tokens["expert"][:, 0], -1).astype(np.int64)


def by_label(share: Floats, label: Ints, num_labels: int) -> Floats:
    """Work by label and expert: (L, E) sums of shares; tokens with a negative label are left out."""
    kept = label >= 0
    return np.stack([np.bincount(label[kept], work, minlength=num_labels) for work in share[kept].T], axis=1)


@dataclass(frozen=True)
class Work:
    """Work by a label's value and expert (V, E), and each value's tokens (V,); what nobody served or labelled is left out."""

    table: Floats
    counts: Ints

    @classmethod
    def of(cls, share: Floats, label: Ints) -> Work:
        """Of shares (n, E) and labels (n,); V is one more than the largest label."""
        kept = (share.sum(1) > 0) & (label >= 0)
        size = int(label[kept].max(initial=-1)) + 1
        return cls(by_label(share[kept], label[kept], size), np.bincount(label[kept], minlength=size))


def nmi(a: Ints, b: Ints) -> float:
    """Mutual information over the mean of the two entropies: 0 when unrelated, 1 when the same partition."""
    if not len(a):
        return 0.0
    return float(contingency.nmi(contingency.count(a, b, int(a.max()) + 1, int(b.max()) + 1)))


def nmi_against_chance(first: Ints, label: Ints, document: Ints, seed: int = 0) -> AgainstChance:
    """NMI of each token's first expert and a label; chance permutes whole documents, not tokens.

    With fewer than eight documents there is no chance level to tell: NaN.
    """
    found = agreement(first, {"": label}, {"": {"nmi": contingency.nmi}}, document, seed=seed)
    return found.get(("", "nmi"), AgainstChance(0.0, *[float("nan")] * 5))


def agreement(
    first: Ints,
    labels: Mapping[str, Ints],
    wanted: Mapping[str, Mapping[str, Reading]],
    document: Ints,
    num_experts: int | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], AgainstChance]:
    """{(label, measure): value against chance} of the ``wanted`` measures of each label.

    ``first`` (n,) each token's first expert, ``labels`` (n,) each, negative where there is none (padding): such tokens
    are left out.  Empty where nobody was served.
    """
    served = first >= 0
    if not served.any():
        return {}
    first, labels = first[served], {name: label[served] for name, label in labels.items()}
    documents, size = Documents.of(document[served]), num_experts or int(first.max()) + 1
    sizes = {name: int(label.max()) + 1 for name, label in labels.items() if label.max(initial=-1) >= 0}
    tables = {name: contingency.count(labels[name], first, sizes[name], size) for name in sizes}
    null: dict[tuple[str, str], list[Floats]] = {}
    if documents.enough:
        for name, stack in chance.null_tables(first, {n: labels[n] for n in sizes}, sizes, size, documents, seed):
            as_often = contingency.with_rows(stack, tables[name].sum(-1))
            for measure, read in wanted[name].items():
                null.setdefault((name, measure), []).append(read(as_often))
    return {
        (name, measure): chance.against(
            float(read(tables[name])),
            np.concatenate(null.get((name, measure), [np.empty(0)])),
            measure in LESS,
        )
        for name in sizes
        for measure, read in wanted[name].items()
    }


def entropy(probs: Floats) -> float:
    """In nats."""
    kept = probs[probs > 0]
    return float(-(kept * np.log(kept)).sum())


def serves(table: Floats, names: list[str], expert: int, most: int = 2) -> list[tuple[str, float]]:
    """The labels that make up most of an expert's work: (name, share of its work)."""
    work = table[:, expert]
    if work.sum() <= 0:
        return []
    top = np.argsort(-work, kind="stable")[:most]
    return [(names[label], float(work[label] / work.sum())) for label in top if work[label] > 0]
