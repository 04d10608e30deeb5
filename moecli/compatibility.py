"""Needs and gives: what each part asks of the others; a refusal is a set difference and its one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from moecli.config import build, option_node, registry
from moecli.errors import UsageError
from moecli.routing import Router

SMALL = {"dim": 8, "num_experts": 4, "vocab_size": 50, "layer": 0, "num_layers": 1}
# need: what to do about it; {options} are the routers that would do.
REMEDIES = {
    "ids": "Use a task of text (task=stdlib_text), or a router with a gate (router=top_k)",
    "sequence": "Use a task of text (task=stdlib_text), or model=layer and scope=batch",
    "source": "Use model=transformer, or a task of pairs (task=translation, task=span_corruption)",
    "items": "Use model=transformer, which reads sequences",
    "image": "Use a task of images (task=digits, task=images), or model=layer",
    "noisy image": "Use task=denoising, or model=vision",
    "causal": "Use router={options}, or a task that is not causal: moe ls --matrix",
    "density": "Use router={options}, or model=layer",
    "logits": "Leave it out: auxiliary=[], or use router={options}",
    "noise": "Leave it out: auxiliary=[], or use router={options}",
    "odds": "Use gate=linear or gate=mlp",
    "draws": "Leave it out, or use router={options}",
    "switches": "Leave it out, or use router={options}",
    "groups": "Leave it out, or use router={options}",
    "shared weight": "Leave it out, or set model.shared=1 model.shared_mix=mix",
    "known": "Use a router that asks for tokens alone (router=top_k)",
    "gate": "Leave it out: auxiliary=[], or use router={options}",
    "gate loss": "Give it one: auxiliary=[switch_balance], or use router={options}",
    "classes": "Use family=gaussian",
    "real": "Use family=categorical",
    "binary": "Use family=gaussian, or targets of 0 and 1 as they are: task.kind=regression task.standardize=false",
    "counts": "Use family=gaussian, or targets as they are: task.standardize=false",
    "positive": "Use family=gaussian, or targets as they are: task.standardize=false",
    "vectors": "Use expert=tdnn gate=tdnn, or a task of vectors (task.flat=true where it has it)",
    "item rank 2": "Use expert=linear gate=linear, or a task of frames (task=speakers)",
    "independent": "Use router={options}, or trainer=gradient",
    "mixture": "Use model=density, or objective=nll",
    "every edge": "Use router=dense with model=density, trainer.truncate=true, or trainer=gradient",
    "every expert": "Use router={options}, or gate=linear",
    "gate fit": "Use gate=linear, or trainer=gradient",
    "expert fit": "Use expert=linear, or trainer=em",
    "family fit": "Use model=density family=gaussian, or trainer=gradient",
    "parts": "Use trainer=alternating router=dense model=density",
    "linear experts": "Use expert=linear, or trainer=em",
    "linear gate": "Use gate=linear, or trainer=em",
    "precisions": "Use family=gaussian, or trainer=em",
}
MEANING = {
    "ids": "it needs token ids, and there are none",
    "sequence": "it needs sequences, and each example stands alone",
    "source": "it answers a source, and the task has none",
    "items": "it needs whole examples, and the task is made of sequences",
    "image": "it cuts images into patches, and an example is none",
    "noisy image": "it takes noise out of images, and these have none",
    "causal": "where it sends a token depends on later tokens",
    "density": "its weights do not sum to one over single experts, so it has no likelihood",
    "logits": "it needs a logit for each expert, and the router has none",
    "noise": "it needs the router's noise, and there is none",
    "odds": "it reads each logit by itself, and this gate's are log-probabilities",
    "draws": "it teaches a decision that is drawn, and this router draws none",
    "switches": "it needs experts that are on or off each by itself, and this router's are not",
    "groups": "it needs experts that stand in groups, and this router has none",
    "shared weight": "it needs a learned weight of shared experts, and there is none",
    "known": "it needs to be told of each token what the task knows, and there is nothing",
    "gate": "it needs a gate to act on, and the router has none",
    "gate loss": "no loss reaches its gate, so it would never learn",
    "classes": "it needs classes for targets, and they are real numbers",
    "real": "it needs real targets, and they are classes",
    "binary": "it needs targets of 0 and 1, and some are neither",
    "counts": "it needs counts (0, 1, 2, ...), and some targets are none",
    "positive": "it needs positive targets, and some are not",
    "vectors": "it reads vectors, and an example is something else",
    "item rank 2": "it reads frames in a row, and an example is a vector",
    "independent": "what it does with one row depends on the others",
    "mixture": "it needs each expert's own prediction, and only a density keeps them apart",
    "every edge": "it needs every expert's likelihood of every row",
    "every expert": "it believes the same of every x, so a router that chooses would always choose the same experts",
    "gate fit": "its M-step fits the gate to responsibilities, and this gate cannot be",
    "expert fit": "its M-step fits the experts by weighted least squares, and these cannot be",
    "family fit": "its M-step fits the family's own parameters, and none can be",
    "parts": "each is fitted to training rows of its own, and this trainer gives it none",
    "linear experts": "its posterior is one over linear maps, and these experts are none",
    "linear gate": "its posterior is one over a linear gate, and this gate is none",
    "precisions": "its posterior is one over each expert's noise precision, and there is none",
}


@dataclass(frozen=True)
class Part:
    """One part of a combination, as ``group=option``."""

    name: str
    needs: frozenset[str]
    gives: frozenset[str]
    reasons: Mapping[str, str] = field(default_factory=dict)  # why it does not give something


def part(name: str, thing: Any) -> Part:
    return Part(name, frozenset(thing.needs), frozenset(thing.gives))


def router_part(name: str, router: Router, training: bool = False) -> Part:
    """What a built router gives: its evidence, and whatever it claims in evaluation."""
    claims = {claim for claim, holds in asdict(router.claims(training)).items() if holds}
    learns = "gate" in router.gives and any(p.requires_grad for p in router.parameters())  # gate=uniform has nothing to
    needs = router.needs | ({"gate loss"} if learns and "trains_gate" not in claims else frozenset())
    return Part(name, needs, router.gives | claims, router.why_not())


def refusals(parts: Sequence[Part], asking: Part | None = None) -> list[str]:
    """One sentence for each need, of one part or of all, that no part gives: ``what (where): why. what to do``."""
    given = frozenset().union(*(p.gives for p in parts))
    return [_sentence(need, p, parts) for p in ([asking] if asking else parts) for need in sorted(p.needs - given)]


def _sentence(need: str, asking: Part, parts: Sequence[Part]) -> str:
    blamed = next((p for p in parts if need in p.reasons), asking)
    where = asking.name if blamed is not asking else _context(need, asking, parts)
    if need == "causal":
        where += " is causal"
    why = blamed.reasons.get(need) or MEANING[need]
    remedy = REMEDIES[need].format(options=", ".join(routers_giving(need)))
    if asking.name.startswith("model"):
        remedy = "Use model=layer, or a task of text (task=stdlib_text)" if need in ("ids", "sequence") else remedy
    return f"{blamed.name} ({where}): {why}. {remedy}"


def _context(need: str, asking: Part, parts: Sequence[Part]) -> str:
    """What the asking part was combined with: its router, or the task."""
    of_task = need in ("vectors", "item rank 2") or asking.name.startswith(("router", "model", "family", "expert"))
    partner = "task" if of_task else "router"
    return next((p.name for p in parts if p.name.startswith(partner) and p is not asking), "this combination")


@cache
def routers_giving(need: str) -> list[str]:
    """Routers that, built with their defaults, give ``need``."""
    return [name for name in registry()["router"] if need in router_part(name, small_router(name)).gives]


@cache
def small_router(option: str, gate: str = "linear") -> Router:
    """A router with its default options on the sizes of ``SMALL``, to ask what it claims."""
    return build_small(option_node("router", option), option_node("gate", gate))


def build_small(router: Mapping[str, Any], gate: Mapping[str, Any]) -> Router:
    """The router of a node on the sizes of ``SMALL``."""
    return build(router, gate=lambda width: build(gate, **{**SMALL, "num_experts": width}), **SMALL)


def refuse(parts: Sequence[Part]) -> None:
    """Raise UsageError with the first sentence, where the parts do not fit."""
    for sentence in refusals(parts):
        raise UsageError(sentence)
