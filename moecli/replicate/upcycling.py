"""A mixture that begins as copies of a trained dense model, beside what else the work could buy (Komatsuzaki et al., 2023).

A step of the mixture costs more than one of the dense model, which therefore goes on for more steps.  The rate of
learning stays the same throughout, and nobody takes over the optimizer's moments.
"""

from __future__ import annotations

import math

import numpy as np

from moecli.interop.upcycle import KEPT, upcycle
from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, curve, metric, or_never
from moecli.run import Place

ONE = ("num_experts=1", "router=hash", "auxiliary=[]")
UPCYCLED, CONTINUED, SCRATCH = "upcycled", "dense, continued", "from scratch"


def replicate(bench: Bench) -> Outcome:
    found = [compared(bench, seed) for seed in bench.seeds(3)]
    mean = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
    ahead = [min(each[CONTINUED], each[SCRATCH]) - each[UPCYCLED] for each in found]
    largest = max(each["difference"] for each in found)
    steps = bench.compose().config["trainer"]["steps"]
    return Outcome(
        [
            Quantity("largest difference at step 0, of the largest output", largest),
            *(
                Quantity(f"valid nll in nats after half as much work again, {name}", mean[name])
                for name in (UPCYCLED, CONTINUED, SCRATCH)
            ),
            Quantity("valid nll in nats, the dense model before", mean["before"]),
            *(
                Quantity(f"steps until the one from scratch is as good, seed {seed}", or_never(each["crossing"], steps))
                for seed, each in enumerate(found)
            ),
            Quantity("steps of the dense model before", steps),
        ],
        f"at step 0 the outputs differ by at most {KEPT:g}, and after {steps // 2} steps the upcycled model is better in every "
        "seed than the dense one after as much further work and the one from scratch",
        largest <= KEPT and min(ahead) > 0,
    )


def compared(bench: Bench, seed: int) -> dict[str, float]:
    """The validation nll of each after half as many steps of the mixture as the dense model had, and the crossing."""
    settings = bench.compose().config
    half = settings["trainer"]["steps"] // 2
    dense = bench.train(f"seed={seed}", *ONE)
    words = [f"num_experts={settings['num_experts']}", "router=top_k"]
    copies = upcycle(dense.path, words, Place(bench.root, f"replicate-{bench.name}", pictures=False))
    upcycled = bench.train(f"seed={seed}", f"init={copies.run.path}")
    scratch = bench.train(f"seed={seed}")
    more = round(half * upcycled.summary["flops"] / dense.summary["flops"])
    continued = bench.train(f"seed={seed}", *ONE, f"init={dense.path}", f"trainer.steps={more}")
    return {
        "difference": copies.difference,
        "before": metric(dense, "valid/nll"),
        UPCYCLED: at(upcycled, half),
        SCRATCH: at(scratch, half),
        CONTINUED: at(continued, more),
        "crossing": crossing(upcycled, scratch),
    }


def at(run: Run, step: int) -> float:
    """The validation nll at the evaluation after ``step``."""
    steps, values = curve(run, "nll", "valid")
    return float(values[steps == step][0])


def crossing(upcycled: Run, scratch: Run) -> float:
    """The first step after which a mixture from scratch is as good as the upcycled one; infinite where there is none."""
    steps, values = curve(upcycled, "nll", "valid")
    overtaken = steps[curve(scratch, "nll", "valid")[1] <= values]
    return float(overtaken[0]) if len(overtaken) else math.inf
