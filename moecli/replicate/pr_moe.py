"""Where a model needs experts, and a shared one in place of the second: PR-MoE (Rajbhandari et al., 2022)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric, nlls

CLOSE = 0.01  # of the nll that two systems may differ by and still be called alike
FIRST, SECOND = "experts in the first half", "experts in the second half"
ONE, TWO, RESIDUAL = "one expert", "two experts", "one expert beside a shared one"
PYRAMID = "pyramid, one expert beside a shared one"


def replicate(bench: Bench) -> Outcome:
    """Each system says how many experts its first two blocks have, and its last two; one is a dense layer."""
    many = 2 * bench.compose().config["model"]["layers"]["block2"]["num_experts"]
    alone = "model.shared=0"
    runs = bench.over_seeds(
        {
            FIRST: (*blocks(many, 1), alone),
            SECOND: (*blocks(1, many), alone),
            ONE: (*blocks(many, many), alone),
            TWO: (*blocks(many, many), alone, "router.k=2"),
            RESIDUAL: blocks(many, many),
            PYRAMID: (),
        }
    )
    nll = {name: metric(found, "test/nll") for name, found in runs.items()}
    size = {name: runs[name][0].summary["parameters"]["total"] for name in (ONE, PYRAMID)}
    return Outcome(
        [*nlls(runs), *(Quantity(f"parameters, {name}", value) for name, value in size.items())],
        "in the mean over seeds experts in the second half have a lower nll than in the first, one expert beside a shared one "
        f"at most {CLOSE:.0%} more than two experts, and the pyramid at most {CLOSE:.0%} more than one of many experts everywhere",
        nll[SECOND] < nll[FIRST] and nll[RESIDUAL] <= (1 + CLOSE) * nll[TWO] and nll[PYRAMID] <= (1 + CLOSE) * nll[ONE],
    )


def blocks(first: int, last: int) -> tuple[str, ...]:
    """So many experts in blocks 0 and 1, and in blocks 2 and 3."""
    return (f"num_experts={first}", *(f"model.layers.block{index}.num_experts={last}" for index in (2, 3)))
