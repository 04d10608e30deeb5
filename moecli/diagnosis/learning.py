"""Whether a trained run's router learned anything, and whether its model sees the future: probes, as findings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from moecli.analysis.finding import Finding, from_error
from moecli.config import build
from moecli.diagnosis import probe
from moecli.diagnosis.probe import Worth
from moecli.errors import MoeError
from moecli.plan import Slots
from moecli.run import Loaded, load

REACHED = 1e-6  # of the experts' gradient: less is the rounding of float32


def diagnose_live(run: Path | str) -> list[Finding]:
    """Load a run's best weights (the last, where it has not finished) and probe them.

    What cannot be loaded is a warning: whether the folder is damaged, ``analysis.doctor.diagnose`` says.
    """
    try:
        loaded = load(run)
    except MoeError as error:
        return [from_error("warning", "router", error)]
    return examine_model(loaded)


def examine_model(loaded: Loaded) -> list[Finding]:
    """Causality first, then for each layer what trains its router and what its choice is worth."""
    return [causality(loaded), *trained(loaded), *(choice(loaded, name) for name in loaded.model.mixtures)]


def causality(loaded: Loaded) -> Finding:
    """Whether outputs move when only later tokens of real test sequences change."""
    if "causal" not in loaded.task.needs:
        return Finding("skipped", "causality", "does not apply: the task is not causal")
    seen = probe.leak(loaded.model, loaded.task, loaded.device)
    measured = {"most": seen.most, "moved": seen.moved, "places": seen.places}
    if not seen.found:
        what = f"no output moves when later tokens change ({seen.places} places of test sequences)"
        return Finding("ok", "causality", what, measured=measured)
    what = f"the model sees the future: {seen.moved / seen.places:.1%} of {seen.places} outputs move, by up to {seen.most:.3g}"
    why = "only later tokens were changed"
    do = "Its scores on this task say nothing. Use a causal router (moe ls --matrix) and leave out model.allow_leak"
    return Finding("warning", "causality", what, why, do, measured)


def trained(loaded: Loaded) -> Iterator[Finding]:
    """Whether the task's gradient reaches each router."""
    task_loss = build(loaded.config["objective"])
    size, seed = loaded.config["trainer"].get("batch_size", 128), loaded.config["seed"]
    ratios = probe.gradient_ratios(loaded.model, loaded.task, task_loss, loaded.device, size, seed)
    for name, ratio in ratios.items():
        yield _gradient(name, loaded, ratio)


def _gradient(name: str, loaded: Loaded, ratio: float) -> Finding:
    router = loaded.model.mixtures[name].router
    if not list(router.parameters()):
        return Finding("skipped", "router", f"{name}: does not apply: its router has no parameters to train")
    if math.isnan(ratio):
        return Finding("skipped", "router", f"{name}: the task's gradient is zero everywhere, so nothing can be told")
    measured = {"gradient_ratio": ratio}
    if ratio > REACHED:
        what = f"{name}: the task trains the router, its gradient is {ratio:.3g} times that of the experts"
        return Finding("ok", "router", what, measured=measured)
    if not router.claims(training=True).trains_gate:
        what = f"{name}: no task gradient reaches the router, as is its nature; its own terms train it"
        return Finding("ok", "router", what, measured=measured)
    do = "Look which parameters train (trainer.phases), and whether its weights are constant (router.k, router.renormalize)"
    return Finding(
        "warning", "router", f"{name}: the task never trains the router", "no gradient reaches it", do, measured
    )


def choice(loaded: Loaded, name: str) -> Finding:
    """What the headline metric loses when a layer's choices are shuffled among tokens."""
    if loaded.model.mixtures[name].experts.num_experts < 2:
        return Finding("skipped", "router", f"{name}: does not apply: there is one expert to choose")
    if isinstance(_plan(loaded, name), Slots):
        what = f"{name}: does not apply: a slot averages tokens, so there is no choice to shuffle"
        return Finding("skipped", "router", what)
    return _judged(name, probe.worth(loaded.model, loaded.task, name, loaded.device), loaded)


@torch.no_grad()
def _plan(loaded: Loaded, name: str) -> object:
    loaded.model.eval()
    batch = loaded.task.batch("test", torch.arange(min(2, loaded.task.sizes["test"]))).to(loaded.device)
    return loaded.model(batch.x, batch.known).routings[name].plan


def _judged(name: str, worth: Worth, loaded: Loaded) -> Finding:
    """A loss whose interval lies above zero: the match of tokens and experts matters."""
    headline = loaded.task.kind.headline
    if math.isnan(worth.loss):
        return Finding("skipped", "router", f"{name}: test {headline} is not a number, so nothing can be told")
    unit = "points" if headline == "accuracy" else loaded.run.info.get("units", {}).get(headline, f"of {headline}")
    loss, low, high = (_number(headline, value) for value in (abs(worth.loss), worth.low, worth.high))
    why = (
        f"test {headline} {worth.learned:.4g}, shuffled {worth.shuffled:.4g}; 95 % interval of the loss "
        f"{low} to {high} {unit} over {worth.units} {worth.unit}s"
    )
    if worth.low > 0:
        what = f"{name}: shuffled choices lose {loss} {unit}: the router matters"
        return Finding("ok", "router", what, why, measured=asdict(worth))
    if worth.high < 0:
        what = f"{name}: shuffled choices are better by {loss} {unit}: the router misleads"
        return Finding("warning", "router", what, why, "Train longer, or try router=dense", asdict(worth))
    what = f"{name}: indistinguishable from shuffled: the router has learned nothing the task uses"
    do = "Compare with the dense twin (model.twin=true), or train longer"
    return Finding("warning", "router", what, why, do, asdict(worth))


def _number(headline: str, value: float) -> str:
    """An accuracy in points, whatever else in its own unit."""
    return (f"{100 * value:.1f}" if headline == "accuracy" else f"{value:.3g}").replace("-", "−")
