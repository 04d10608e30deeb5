"""Tables of counts, label by expert, and what is read off them; each takes one table or a whole stack.

T (..., L, E): how many tokens have the label and the expert.  A table with nothing in it, or with one label or one
expert only, has nothing to share: 0 wherever a ratio would be 0 / 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Table = NDArray[np.integer] | NDArray[np.floating]  # counts, or what a null makes of them
MOST_OF_IT = 0.8  # of an expert's tokens, for ``labels_for_80``


def count(label: Ints, expert: Ints, num_labels: int, num_experts: int) -> Ints:
    """(n,), (n,) -> (L, E); pairs with a negative label or expert are left out."""
    kept = (label >= 0) & (expert >= 0)
    key = label[kept].astype(np.int64) * num_experts + expert[kept]
    return np.bincount(key, minlength=num_labels * num_experts).reshape(num_labels, num_experts)


def with_rows(table: Floats, tokens: Ints) -> Floats:
    """The same shares within each label, with the labels as frequent as ``tokens`` (L,) has them.

    Documents differ in length, so labels that change places among them become more or less frequent; what is read
    off a table under the null must not differ from the observed one by that.
    """
    return np.multiply(table, _ratio(tokens, table.sum(-1))[..., None])


def mutual_information(table: Table) -> Floats:
    """I(label; expert) in nats, from 0 to the smaller of the two entropies."""
    return np.maximum(_entropy(table.sum(-1)) + _entropy(table.sum(-2)) - _entropy(_flat(table)), 0.0)


def nmi(table: Table) -> Floats:
    """I(label; expert) over the mean of the two entropies: 0 unrelated, 1 the same partition (as scikit-learn's)."""
    mean = (_entropy(table.sum(-1)) + _entropy(table.sum(-2))) / 2
    return _ratio(mutual_information(table), mean)


def ari(table: Table) -> Floats:
    """Adjusted Rand index (Hubert & Arabie, 1985): pairs of tokens kept together by both, 0 at chance, 1 the same."""
    together, rows, columns = (_pairs(part).sum(-1) for part in (_flat(table), table.sum(-1), table.sum(-2)))
    expected = _ratio(rows * columns, _pairs(_flat(table).sum(-1)))
    return _ratio(together - expected, (rows + columns) / 2 - expected)


def purity(table: Table) -> Floats:
    """Share of tokens that have their expert's most frequent label, from the most frequent label's share to 1."""
    return _ratio(table.max(-2).sum(-1), _flat(table).sum(-1))


def matched_accuracy(table: Table) -> Floats:
    """Accuracy when each expert stands for one label at most, matched as well as can be (Kuhn, 1955), in [0, 1]."""
    from scipy.optimize import linear_sum_assignment

    stack = table.reshape(-1, *table.shape[-2:])
    hits = [float(one[linear_sum_assignment(one, maximize=True)].sum()) for one in stack]
    return _ratio(np.array(hits).reshape(table.shape[:-2]), _flat(table).sum(-1))


def labels_for_80(table: Table) -> Floats:
    """How few labels make up 80 % of an expert's tokens: the median over experts that serve any (NLLB, 2022)."""
    reached = np.cumsum(-np.sort(-table, axis=-2), axis=-2)  # (..., L, E)
    total = table.sum(-2)  # (..., E)
    needed = (reached < (MOST_OF_IT - 1e-12) * total[..., None, :]).sum(-2) + 1.0
    return _median(np.where(total > 0, needed, np.nan))


def vocabulary_specialisation(table: Table) -> Floats:
    """Mean over labels that occur of the largest expert's share, from 1 / E to 1 (Muennighoff et al., 2024, §5.4)."""
    tokens = table.sum(-1)
    share = _ratio(table.max(-1), tokens)
    return _ratio(share.sum(-1), (tokens > 0).sum(-1))


def _median(values: Floats) -> Floats:
    """Over the last axis, without its NaN; NaN where there is nothing else.  (NumPy's is slow on a stack.)"""
    ordered, known = np.sort(values, axis=-1), np.isfinite(values).sum(-1)  # NaN come last
    middle = np.stack([np.maximum(known - 1, 0) // 2, known // 2], axis=-1).clip(max=values.shape[-1] - 1)
    return np.take_along_axis(ordered, middle, axis=-1).mean(-1)


def _flat(table: Table) -> Table:  # (..., L, E) -> (..., L E)
    return table.reshape(*table.shape[:-2], -1)


def _entropy(counts: Table) -> Floats:
    """Of counts (..., M) as shares, in nats: ln n - sum c ln c / n."""
    total = counts.sum(-1)
    logs = np.log(np.maximum(counts, 1e-300))
    return np.log(np.maximum(total, 1e-300)) * (total > 0) - _ratio((counts * logs).sum(-1), total)


def _pairs(counts: Table) -> Floats:
    return counts * (counts - 1.0) / 2


def _ratio(above: Table, below: Table) -> Floats:
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 1e-12)
