"""Every router at its defaults: quality, balance, drops and time per step: python benchmarks/routers.py [SEEDS]

On digits, with the routers of ids on the characters of the Python library beside top_k and a random plan.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import attrgetter

from fitted import markdown, over_seeds, told
from interleave import medians

from moecli.compatibility import small_router
from moecli.config import build, compose, registry
from moecli.run import assemble

DIGITS = ["task=digits", "trainer.steps=400", "trainer.eval_every=400"]
TEXT = [
    "task=stdlib_text", "task.context=64", "model.dim=32", "model.depth=1", "model.heads=2", "expert.hidden=64",
    "trainer.steps=300", "trainer.batch_size=16", "trainer.eval_every=300",
]  # fmt: skip
HEAD = ["router", "quality", "max / mean load", "CV of load", "dropped", "ms per step"]


def steps(words: Sequence[str], number: int = 20) -> Callable[[], None]:
    """Forward, backward and update, ``number`` times on one batch."""
    built = assemble(compose([*words, "threads=1"]))
    optimizer = build(built.config["optimizer"], params=built.model.parameters())
    batch = built.task.train_batch(0, built.config["trainer"]["batch_size"], 0)

    def run() -> None:
        for _ in range(number):
            optimizer.zero_grad()
            built.objective(built.model(batch.x, batch.known), batch.target)["total"].backward()
            optimizer.step()

    return run


def table(routers: Sequence[str], base: Sequence[str], seeds: int) -> str:
    words = {name: [*base, f"router={name}"] for name in routers}
    found = over_seeds(words, seeds)
    seconds = medians({name: steps(own) for name, own in words.items()}, repeats=7)
    measures = [("quality", 3), ("max_over_mean", 2), ("load_cv", 2), ("dropped", 3)]
    rows = [
        [name, *(told(found[name], attrgetter(what), digits) for what, digits in measures), f"{seconds[name] / 20 * 1e3:.1f}"]
        for name in routers
    ]  # fmt: skip
    return markdown([HEAD, *rows])


if __name__ == "__main__":
    seeds = int((sys.argv[1:] or ["3"])[0])
    of_ids = [name for name in registry()["router"] if "ids" in small_router(name).needs]
    print(" ".join(DIGITS) + ": quality is test accuracy\n", flush=True)
    print(table([name for name in registry()["router"] if name not in of_ids], DIGITS, seeds), flush=True)
    print("\n" + " ".join(TEXT) + ": quality is test nll in nats per character\n", flush=True)
    print(table([*of_ids, "replay", "top_k"], TEXT, seeds))
