"""The table of ``moe criteria``: one row for each number of experts, the best of each column marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moecli.report.terminal import columns

HEADS = {
    "num_experts": "experts",
    "identified": "parameters",
    "loglik": "log-likelihood",
    "aic": "AIC",
    "bic": "BIC",
    "icl": "ICL",
    "held": "held out/row",
    "p": "p against one more",
}
LEAST = ("aic", "bic", "icl")


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """``*`` marks the smallest AIC, BIC and ICL and the largest held-out likelihood."""
    heads = [key for key in HEADS if any(row.get(key) is not None for row in rows)]
    best = {key: min(range(len(rows)), key=lambda i: rows[i][key]) for key in LEAST}
    if "held" in heads:
        best["held"] = max(range(len(rows)), key=lambda i: rows[i]["held"])
    table = [
        [_cell(key, row) + (" *" if best.get(key) == i else "  " if key in best else "") for key in heads]
        for i, row in enumerate(rows)
    ]
    notes = [" * best of its column; log-likelihoods in nats, of the targets in their own units, on the training rows"]
    notes += [" held out: mean over folds ± its standard error"] * ("held" in heads)
    return [*columns([[HEADS[key] for key in heads], *table], left=[0]), *notes]


def _cell(key: str, row: dict[str, Any]) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key in ("num_experts", "identified"):
        return str(value)
    if key == "held":
        return f"{value:.4f} ± {row['held_error']:.4f}"
    return f"{value:.3f}" if key == "p" else f"{value:.2f}"
