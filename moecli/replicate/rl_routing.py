"""Routers taught by reward: one expert of a language model (Clark et al., 2022), blocks of a layer (E. Bengio et al., 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, nlls
from moecli.run import load

SWITCH = ("router=top_k", "router.k=1", "router.renormalize=false", "auxiliary=[switch_balance]")
REWARD, HASH, TRANSPORT, TWIN = "reward", "hash", "transport", "dense twin"
LANGUAGE = {
    REWARD: (),
    HASH: ("router=hash", "auxiliary=[]"),
    TRANSPORT: ("router=sinkhorn", "auxiliary=[]"),
    "Switch": SWITCH,
    TWIN: (*SWITCH, "model.twin=true"),
}
ROUTED = (REWARD, HASH, TRANSPORT)

BLOCKS, UNITS = 16, 16
LAYER = ("task=digits", "model=layer", "model.depth=1", "trainer.batch_size=128")
COINS = (*LAYER, "router=bernoulli", f"num_experts={BLOCKS}", f"expert.hidden={UNITS}", "auxiliary.reinforce.weight=1")
VARIED, FREE, ALL = "masks kept varied", "no term for it", "all blocks"
DIGITS = {
    VARIED: (*COINS, "auxiliary=[reinforce,sparsity,variance]"),
    FREE: (*COINS, "auxiliary=[reinforce,sparsity]"),
    ALL: (*LAYER, "router=dense", "auxiliary=[]", "num_experts=1", f"expert.hidden={BLOCKS * UNITS}"),
}
CLOSE = 0.02  # of accuracy, to all blocks
FIXED = 0.1  # of the variance of masks that are kept varied


def replicate(bench: Bench) -> Outcome:
    text = bench.over_seeds(LANGUAGE)
    nll = {name: metric(found, "test/nll") for name, found in text.items()}
    steps = f"trainer.steps={2 * bench.compose().config['trainer']['steps']}"
    runs = bench.over_seeds({name: (*words, steps) for name, words in DIGITS.items()})
    accuracy = {name: metric(found, "test/accuracy") for name, found in runs.items()}
    spread = {name: float(np.mean([variance(run) for run in runs[name]])) for name in (VARIED, FREE)}
    return Outcome(
        [
            *nlls(text),
            *(Quantity(f"test accuracy on digits, {name}", value) for name, value in accuracy.items()),
            *(Quantity(f"variance of a block's chance over digits, {name}", value) for name, value in spread.items()),
            *(Quantity(f"share of blocks that are on, {name}", share_on(runs[name])) for name in (VARIED, FREE)),
        ],
        "the three routers have a lower mean nll than the dense twin, transport the lowest; without its term the variance of "
        f"masks falls to {FIXED:g} of itself at most; and with it accuracy is at most {CLOSE:g} below that of all blocks",
        max(nll[name] for name in ROUTED) < nll[TWIN]
        and nll[TRANSPORT] == min(nll[name] for name in ROUTED)
        and spread[FREE] <= FIXED * spread[VARIED]
        and accuracy[VARIED] >= accuracy[ALL] - CLOSE,
    )


@torch.no_grad()
def variance(run: Run) -> float:
    """How much a block's chance to be on differs between test digits: mean over blocks."""
    loaded = load(run.path)
    test = loaded.task.batch("test", torch.arange(loaded.task.sizes["test"])).to(loaded.device)
    routing: Any = loaded.model.eval()(test.x, test.known).routings["layer0"]
    return routing.chance.var(0, unbiased=False).mean().item()


def share_on(runs: Sequence[Run]) -> float:
    """The share of blocks that work on a test digit."""
    tokens = [TraceReader(run.path).tokens("layer0", "test") for run in runs]
    return float(np.mean([(each["weight"] > 0).mean() for each in tokens]))
