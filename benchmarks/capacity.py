"""Capacity factors 0.75 to 2 in training and in evaluation, top-1 and top-2: python benchmarks/capacity.py [SEEDS]"""

from __future__ import annotations

import sys
from operator import attrgetter

from fitted import markdown, over_seeds, told

FACTORS = (0.75, 1.0, 1.25, 1.5, 2.0)
BASE = ["task=digits", "router=top_k", "trainer.steps=400", "trainer.eval_every=400"]
ROUTERS = {"top-1 (Switch)": ["router.k=1", "router.renormalize=false"], "top-2": ["router.k=2"]}
UNLIMITED = 1000.0  # times the fair share: at most all tokens
HEAD = ["router", "factor in training", "in evaluation", "test accuracy", "dropped in training", "dropped on test"]


def limits(training: float | None, evaluation: float | None) -> list[str]:
    by_name = {"router.capacity_factor": training, "router.eval_capacity_factor": evaluation}
    return [f"{name}={factor}" for name, factor in by_name.items() if factor is not None]


if __name__ == "__main__":
    seeds = int((sys.argv[1:] or ["3"])[0])
    pairs = [(factor, factor) for factor in FACTORS] + [(factor, UNLIMITED) for factor in FACTORS]
    pairs += [(None, factor) for factor in FACTORS] + [(None, None)]
    jobs = {(name, *pair): [*BASE, *words, *limits(*pair)] for name, words in ROUTERS.items() for pair in pairs}
    found = over_seeds({str(key): words for key, words in jobs.items()}, seeds)
    measures = [("quality", 3), ("dropped_in_training", 3), ("dropped", 3)]
    rows = [
        [
            name,
            *("none" if factor in (None, UNLIMITED) else f"{factor}" for factor in pair),
            *(told(found[str((name, *pair))], attrgetter(what), digits) for what, digits in measures),
        ]
        for name, *pair in jobs
    ]
    print(markdown([HEAD, *rows]))
