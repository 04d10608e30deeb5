"""Balance losses of Shazeer et al. (2017), Table 6, on 32 experts, and what noise is for: python benchmarks/shazeer_table6.py [SEEDS]

The paper: 256 experts, k = 4, between LSTM layers of a language model on one billion words.  Here: 32 experts, k = 4,
in a one-block transformer on characters.  What may replicate is who collapses, not the perplexity.
"""

from __future__ import annotations

import sys
from operator import attrgetter
from statistics import mean

from fitted import Fitted, markdown, over_seeds, told

BASE = [
    "task=stdlib_text", "task.context=64", "model.dim=32", "model.depth=1", "model.heads=2", "expert.hidden=32",
    "num_experts=32", "router.k=4", "trainer.steps=400", "trainer.batch_size=16", "trainer.eval_every=400",
]  # fmt: skip
PAPER = {  # (w_importance, w_load): perplexity, CV of importance, CV of load, max / mean load
    (0.0, 0.0): "39.8, 3.04, 3.01, 17.80",
    (0.2, 0.0): "35.6, 0.06, 0.17, 1.47",
    (0.0, 0.2): "35.7, 0.22, 0.04, 1.15",
    (0.1, 0.1): "35.6, 0.06, 0.05, 1.14",
    (0.01, 0.01): "35.7, 0.48, 0.11, 1.37",
    (1.0, 1.0): "35.7, 0.03, 0.02, 1.07",
}
HEAD = [
    "router and losses",
    "nll",
    "CV of importance",
    "CV of load",
    "max / mean load",
    "paper: ppl, CV, CV, max / mean",
]
SWITCH = "noisy_top_k, Switch's loss 0.01"


def losses(**weights: float) -> list[str]:
    used = {name: weight for name, weight in weights.items() if weight}
    return [f"auxiliary=[{','.join(used)}]", *(f"auxiliary.{name}.weight={weight}" for name, weight in used.items())]


def named(importance: float, load: float) -> str:
    return f"noisy_top_k, importance {importance}, load {load}"


def verdict(found: dict[str, list[Fitted]]) -> list[str]:
    """The paper's claims, each with its figures."""
    most = {name: mean(run.max_over_mean for run in runs) for name, runs in found.items()}
    nll = {name: mean(run.quality for run in runs) for name, runs in found.items()}
    none, both = named(0.0, 0.0), named(0.1, 0.1)
    with_loss = [named(*weights) for weights in PAPER if any(weights)]
    worst = max(most[name] for name in with_loss)
    importance, load = named(0.2, 0.0), named(0.0, 0.2)
    tail = [most[importance], most[load]]
    claims = {
        f"without a loss max / mean > 5: {most[none]:.2f}": most[none] > 5,
        f"with any loss of the paper max / mean < 2: at most {worst:.2f}": worst < 2,
        f"a loss lowers nll: by {nll[none] - nll[both]:.3f} nats": nll[both] < nll[none],
        f"importance alone leaves a heavier tail of load than load alone: {tail[0]:.2f}, {tail[1]:.2f}": tail[0] > tail[1],
        f"Switch's one loss does as well, max / mean < 2: {most[SWITCH]:.2f}": most[SWITCH] < 2,
    }  # fmt: skip
    return [f"- {'replicates' if holds else 'does NOT replicate'}: {claim}" for claim, holds in claims.items()]


if __name__ == "__main__":
    seeds = int((sys.argv[1:] or ["3"])[0])
    noisy, plain = [*BASE, "router=noisy_top_k"], [*BASE, "router=top_k"]
    jobs = {named(i, w): [*noisy, *losses(importance=i, load=w)] for i, w in PAPER}
    jobs |= {
        SWITCH: [*noisy, *losses(switch_balance=0.01)],
        "top_k without noise, no loss": [*plain, *losses()],
        "top_k without noise, importance 0.2": [*plain, *losses(importance=0.2)],
        "top_k without noise, Switch's loss 0.01": [*plain, *losses(switch_balance=0.01)],
        "top_k, V-MoE's fixed noise 1 / E, importance 0.1, load 0.1": [
            *plain, "router.noise=1", *losses(importance=0.1, load=0.1),
        ],
    }  # fmt: skip
    found = over_seeds(jobs, seeds)
    paper = {named(*weights): row for weights, row in PAPER.items()}
    measures = [("quality", 3), ("importance_cv", 2), ("load_cv", 2), ("max_over_mean", 2)]
    rows = [
        [name, *(told(runs, attrgetter(what), digits) for what, digits in measures), paper.get(name, "")]
        for name, runs in found.items()
    ]
    print(markdown([HEAD, *rows]), *verdict(found), sep="\n")
