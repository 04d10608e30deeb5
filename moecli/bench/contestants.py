"""Who takes part: our kernels, and transformers' layers with the same weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from moecli.bench.measure import Contestant
from moecli.bench.workload import Workload
from moecli.config import Config, flat
from moecli.errors import EnvironmentFailure, UsageError
from moecli.kernels.choose import using, watching
from moecli.routing import Tokens

AUTO = "auto"  # the rule's choice
ONLY_LOOP = (
    "only the loop serves these: kernels are for feed-forward and linear experts without dropout, behind a router that "
    "chooses experts"
)
PEERS = ("eager", "grouped_mm")  # transformers' names of what serves its experts
Refused = dict[str, str]  # {contestant: why it does not take part}
# What a layer of transformers can be compared with, as keys and the values that they must have.
COMPARABLE = {
    "router": "top_k", "router.scale": 1.0, "router.jitter": 0.0, "router.noise": 0.0, "router.capacity_factor": None,
    "router.mask": 0.0, "gate": "linear", "gate.bias": False, "gate.columns": None, "expert": "feed_forward",
    "expert.activation": "swiglu", "expert.output": True, "expert.bias": False, "expert.dropout": 0.0,
    "expert.columns": None, "model.shared": 0,
}  # fmt: skip


# -- ours -------------------------------------------------------------------------------------------


def ours(workload: Workload, names: Sequence[str]) -> tuple[list[Contestant], Refused]:
    """The kernels that can serve the layer, and why the others cannot.

    Raises UsageError where there is but one and it cannot.
    """
    found, refused = [], Refused()
    for name in names:
        try:
            found.append(_ours(workload, name))
        except UsageError as error:
            if len(names) == 1:
                raise
            refused[name] = reason(str(error))
    return found, refused


def _ours(workload: Workload, name: str) -> Contestant:
    kernel = None if name == AUTO else name

    def forward(tokens: Tokens) -> Tensor:
        with using(kernel):
            return workload.layer(tokens)[0]

    with watching() as seen, torch.no_grad():
        forward(workload.draw(0)[0])
    serving = ", ".join(sorted(seen)) or "loop"
    if kernel not in (None, serving):
        raise UsageError(f"--kernel {kernel}: {ONLY_LOOP}. Leave --kernel out")
    return Contestant(name, serving, workload.layer, forward)


def reason(sentence: str) -> str:
    """``what (where): why. what to do`` -> why."""
    return re.sub(r"^.*?: |\. [^.]*$", "", sentence)


# -- transformers -----------------------------------------------------------------------------------


def peers(workload: Workload, config: Config, asked: bool | None) -> tuple[list[Contestant], Refused]:
    """Layers of transformers where they compute the same, and why they do not take part.

    Raises UsageError and EnvironmentFailure for that where they were ``asked`` for.
    """
    if asked is False:
        return [], {}
    try:
        return _peers(workload, config), {}
    except (UsageError, EnvironmentFailure) as error:
        if asked:
            raise
        return [], {"transformers": reason(str(error))}


def _peers(workload: Workload, config: Config) -> list[Contestant]:
    now = flat(config)
    other = [key for key, value in COMPARABLE.items() if key in now and now[key] != value]
    if other:
        raise UsageError(
            f"--peers: transformers' layer is top_k over SwiGLU experts without biases, and {other[0]} is "
            f"{now[other[0]]}. Leave --peers out"
        )
    if find_spec("transformers") is None:
        raise EnvironmentFailure(
            "--peers: transformers is not installed, which the extra peers brings. Run: pip install 'moecli[peers]'"
        )
    block = transformers_block(workload.layer, now)
    return [_peer(block, name) for name in PEERS]


def transformers_block(layer: Any, options: Config) -> Any:
    """OLMoE's block, whose experts are Mixtral's, with the weights of a layer of ours: (B, T, D) -> (B, T, D).

    ``options`` are flat: the router's k and whether it renormalizes are read.
    """
    from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    up, gate, down = layer.experts.up.weight, layer.experts.gate.weight, layer.experts.down.weight
    num_experts, dim, hidden = up.shape
    config = OlmoeConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_experts=num_experts,
        num_experts_per_tok=options["router.k"],
        norm_topk_prob=options["router.renormalize"],
    )
    block = OlmoeSparseMoeBlock(config).to(up.device, up.dtype)
    weights = {
        "gate.weight": layer.router.gate.linear.weight,
        "experts.gate_up_proj": torch.cat([up, gate], -1).mT,  # what they call gate is the activated half
        "experts.down_proj": down.mT,
    }
    block.load_state_dict(weights)
    return block.train()


def _peer(block: Any, name: str) -> Contestant:
    def forward(tokens: Tokens) -> Tensor:
        block.experts.config._experts_implementation = name
        return block(tokens.x[None])[0]

    return Contestant(f"transformers {name}", name, block, forward)
