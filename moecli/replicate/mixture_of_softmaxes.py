"""How rich a language model's answers are: the rank of its log-probabilities under three heads (Yang et al., 2018)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric, nlls

FAR = 2.0  # times the most that one softmax can have
MIXED, CONTEXTS, ONE = "mixture of softmaxes", "mixture of contexts", "one softmax"


def replicate(bench: Bench) -> Outcome:
    """The three heads on one state; beside them one softmax on a wider state, with more parameters than any."""
    dim = bench.compose().config["model"]["dim"]
    runs = bench.over_seeds(
        {
            MIXED: (),
            CONTEXTS: ("head=mixture_of_contexts",),
            ONE: ("head=softmax",),
            "one softmax, half as wide again": ("head=softmax", f"model.dim={3 * dim // 2}"),
        }
    )
    rank = {name: metric(found, "test/log_prob_rank") for name, found in runs.items()}
    nll = {name: metric(found, "test/nll") for name, found in runs.items()}
    return Outcome(
        [
            *(Quantity(f"rank of log P, {name}", value) for name, value in rank.items()),
            Quantity("width of the state", dim),
            Quantity("characters", len(runs[MIXED][0].info["symbols"])),
            *nlls(runs),
            *(Quantity(f"parameters, {name}", found[0].summary["parameters"]["total"]) for name, found in runs.items()),
        ],
        f"the rank is at most {dim + 1} with one softmax and with mixed contexts, and above {FAR * (dim + 1):g} with mixed "
        "softmaxes, whose mean nll is below that of both",
        max(rank[CONTEXTS], rank[ONE]) <= dim + 1
        and rank[MIXED] > FAR * (dim + 1)
        and nll[MIXED] < min(nll[CONTEXTS], nll[ONE]),
    )
