"""Experts fixed by a table over characters, beside a learned router (Roller et al., 2021)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, lower, metric, nlls, of_layers

AS_GOOD = 1.01  # times the loss of the Switch


def replicate(bench: Bench) -> Outcome:
    systems = {
        "balanced": (),
        "Switch": ("router=top_k", "router.k=1", "router.renormalize=false"),
        "dense twin": ("model.twin=true",),
        "random": ("router.table=random",),
        "clustered": ("router.table=clustered",),
        "dispersed": ("router.table=dispersed",),
        "by position": ("router.by=position", "router.table=random"),
    }
    runs = bench.over_seeds(systems)
    nll = {name: metric(found, "test/nll") for name, found in runs.items()}
    routed = {name: found for name, found in runs.items() if name != "dense twin"}
    return Outcome(
        [
            *nlls(runs),
            *(
                Quantity(f"max / mean load on test, {name}", of_layers(found, "max_over_mean"))
                for name, found in routed.items()
            ),
        ],
        f"balanced tables have at most {AS_GOOD:g} times the loss of the Switch and less than the dense twin with every "
        "seed; tables that put like characters together do worse than those that part them, and positions worst of all",
        nll["balanced"] <= AS_GOOD * nll["Switch"]
        and lower(runs["balanced"], runs["dense twin"])
        and nll["clustered"] > nll["dispersed"]
        and nll["by position"] == max(nll[name] for name in routed),
    )
