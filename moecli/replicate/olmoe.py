"""OLMoE's choices one by one: how fine the experts, a shared one, who chooses (Muennighoff et al., 2024).

All variants have the same expert parameters, in all and for a token; the sweeps ``olmoe_*`` have more of the choices.
"""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, gap, metric, nlls


def replicate(bench: Bench) -> Outcome:
    config = bench.compose().config
    most, k, hidden = config["num_experts"], config["router"]["k"], config["expert"]["hidden"]
    fine, finer, finest = (grain(most // share, k // share, share * hidden) for share in (8, 2, 1))
    systems = {
        "8 experts": fine,
        "32 experts": finer,
        "64 experts": finest,
        "32 experts, one of them shared": (*grain(most // 2 - 1, k // 2 - 1, 2 * hidden), "model.shared=1"),
        "32 experts that choose": (
            f"num_experts={most // 2}", f"expert.hidden={2 * hidden}",
            "router=expert_choice", f"router.capacity_factor={k // 2}", "router.group=position",
        ),
        "dense twin": ("model.twin=true",),
    }  # fmt: skip
    runs = bench.over_seeds(systems)
    nll = {name: metric(found, "test/nll") for name, found in runs.items()}
    first, second = nll["8 experts"] - nll["32 experts"], nll["32 experts"] - nll["64 experts"]
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain of 32 over 8 experts in nats", gap(runs["32 experts"], runs["8 experts"])),
            Quantity("gain of 64 over 32 experts in nats", gap(runs["64 experts"], runs["32 experts"])),
            Quantity(
                "gain by no shared expert in nats", gap(runs["32 experts"], runs["32 experts, one of them shared"])
            ),
            Quantity("gain by the tokens' choice in nats", gap(runs["32 experts"], runs["32 experts that choose"])),
        ],
        "finer experts have the lower mean loss, 32 gaining more over 8 than 64 over 32; no shared expert is at least as "
        "good as one; and the tokens' choice is better than the experts'",
        first > max(second, 0)
        and nll["32 experts"] <= nll["32 experts, one of them shared"]
        and nll["32 experts"] < nll["32 experts that choose"],
    )


def grain(num_experts: int, k: int, hidden: int) -> tuple[str, ...]:
    return (f"num_experts={num_experts}", f"router.k={k}", f"expert.hidden={hidden}")
