"""Mixture blocks of transformers in our words: options from its configuration, weights from its state.

Options are keys as on the command line; weights are named as in a layer built from them.  The parity
tests compare the two layers, and an importer of checkpoints needs just these functions.  Shapes of
transformers' tensors: (out, in) for a linear map, where ours are (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moecli.config import option_node
from moecli.mixture import MixtureOfExperts
from moecli.parts import Parts

Options = dict[str, Any]
State = Mapping[str, Tensor]
Weights = Callable[[Any, State], dict[str, Tensor]]
SWIGLU = {"expert.activation": "swiglu", "expert.bias": False, "gate.bias": False}


def build(options: Options, dim: int) -> MixtureOfExperts:
    """The layer that a model would build from these options."""
    chosen = {"gate": "linear", "expert": "feed_forward", "router": options["router"]}
    nodes = {group: option_node(group, name) | _under(group, options) for group, name in chosen.items()}
    parts = Parts({**nodes, "num_experts": options["num_experts"]})
    return parts.mixture("block", 0, 1, dim, dim, **_under("model", options))


def _under(group: str, options: Options) -> Options:
    return {key.removeprefix(f"{group}."): v for key, v in options.items() if key.startswith(f"{group}.")}


# -- softmax over all experts or over the chosen --------------------------------------------------------------


def mixtral(config: Any) -> Options:
    """Softmax, then the k best divided by their sum: the same weights as a softmax over the k best."""
    return SWIGLU | {
        "router": "top_k",
        "router.k": config.num_experts_per_tok,
        "router.renormalize": True,
        "expert.hidden": config.intermediate_size,
        "num_experts": config.num_local_experts,
    }


def mixtral_weights(config: Any, state: State) -> dict[str, Tensor]:
    return {"router.gate.linear.weight": state["gate.weight"], **fused(state)}


def olmoe(config: Any) -> Options:
    return mixtral(config) | {"router.renormalize": config.norm_topk_prob}


def qwen2_moe(config: Any) -> Options:
    """One wide shared expert is as many of the routed ones' width, added up under one sigmoid gate."""
    return SWIGLU | {
        "router": "top_k",
        "router.k": config.num_experts_per_tok,
        "router.renormalize": config.norm_topk_prob,
        "expert.hidden": config.moe_intermediate_size,
        "num_experts": config.num_experts,
        "model.shared": _whole(config.shared_expert_intermediate_size, config.moe_intermediate_size),
        "model.shared_mix": "gate",
    }


def qwen2_moe_weights(config: Any, state: State) -> dict[str, Tensor]:
    return {
        **mixtral_weights(config, state),
        **split(state, "shared_expert", qwen2_moe(config)["model.shared"]),
        "shared.gate.weight": state["shared_expert_gate.weight"],
    }


def dbrx(config: Any) -> Options:
    """Weights divided by their p-norm, of which we have p = 1 and none."""
    ffn = config.ffn_config
    if ffn.moe_normalize_expert_weights not in (None, 1):
        raise ValueError("moe_normalize_expert_weights: only 1 and None have an option of ours")
    return SWIGLU | {
        "router": "top_k",
        "router.k": ffn.moe_top_k,
        "router.renormalize": ffn.moe_normalize_expert_weights == 1,
        "expert.hidden": ffn.ffn_hidden_size,
        "num_experts": ffn.moe_num_experts,
    }


def dbrx_weights(config: Any, state: State) -> dict[str, Tensor]:
    """Experts lie stacked along the hidden units, (E F, D); the last of the three is (in, out) as ours."""
    up, gate, down = (
        state[f"experts.mlp.{name}"].unflatten(0, (config.ffn_config.moe_num_experts, -1))
        for name in ("w1", "v1", "w2")
    )
    return {
        "router.gate.linear.weight": state["router.layer.weight"],
        "experts.up.weight": up.transpose(1, 2),
        "experts.gate.weight": gate.transpose(1, 2),
        "experts.down.weight": down,
    }


def gpt_oss(config: Any) -> Options:
    """Softmax over the k best logits; biases everywhere; SwiGLU clamped at 7."""
    if (config.swiglu_limit, config.swiglu_alpha) != (7.0, 1.702):
        raise ValueError("swiglu_limit, swiglu_alpha: only 7 and 1.702 have an activation of ours")
    return mixtral(config) | {"expert.activation": "clamped_swiglu", "expert.bias": True, "gate.bias": True}


def gpt_oss_weights(config: Any, state: State) -> dict[str, Tensor]:
    """Here tensors are (in, out) as ours, and the columns of the two halves alternate."""
    return {
        "router.gate.linear.weight": state["router.weight"],
        "router.gate.linear.bias": state["router.bias"],
        "experts.up.weight": state["experts.gate_up_proj"][..., ::2],
        "experts.up.bias": state["experts.gate_up_proj_bias"][..., ::2],
        "experts.gate.weight": state["experts.gate_up_proj"][..., 1::2],
        "experts.gate.bias": state["experts.gate_up_proj_bias"][..., 1::2],
        "experts.down.weight": state["experts.down_proj"],
        "experts.down.bias": state["experts.down_proj_bias"],
    }


# -- groups of experts ----------------------------------------------------------------------------------------


def deepseek_v2(config: Any) -> Options:
    """transformers reads no norm_topk_prob here: weights are the softmax over all experts, times a factor."""
    limited = config.topk_method == "group_limited_greedy"
    groups = {"router.groups": config.n_group, "router.limit": config.topk_group} if limited else {}
    return SWIGLU | groups | {
        "router": "group_limited" if limited else "top_k",
        "router.k": config.num_experts_per_tok,
        "router.renormalize": False,
        "router.scale": config.routed_scaling_factor,
        "expert.hidden": config.moe_intermediate_size,
        "num_experts": config.n_routed_experts,
        "model.shared": config.n_shared_experts,
    }  # fmt: skip


def deepseek_v2_weights(config: Any, state: State) -> dict[str, Tensor]:
    return {**mixtral_weights(config, state), **split(state, "shared_experts", config.n_shared_experts)}


def deepseek_v3(config: Any) -> Options:
    return SWIGLU | {
        "router": "sigmoid_bias",
        "router.k": config.num_experts_per_tok,
        "router.renormalize": config.norm_topk_prob,
        "router.scale": config.routed_scaling_factor,
        "router.groups": config.n_group,
        "router.limit": config.topk_group,
        "expert.hidden": config.moe_intermediate_size,
        "num_experts": config.n_routed_experts,
        "model.shared": config.n_shared_experts,
    }


def deepseek_v3_weights(config: Any, state: State) -> dict[str, Tensor]:
    return {**deepseek_v2_weights(config, state), "router.bias": state["gate.e_score_correction_bias"]}


# -- capacity -------------------------------------------------------------------------------------------------


def switch(config: Any, length: int) -> Options:
    """Capacity is a number of tokens of each sequence of ``length``; what is over it answers zero, as ours."""
    return {
        "router": "top_k",
        "router.k": 1,
        "router.renormalize": False,
        "router.capacity_factor": config.expert_capacity * config.num_experts / length,
        "gate.bias": config.router_bias,
        "expert.hidden": config.d_ff,
        "expert.activation": config.dense_act_fn,
        "expert.bias": False,
        "num_experts": config.num_experts,
    }


def switch_weights(config: Any, state: State) -> dict[str, Tensor]:
    return _router(state) | {
        "experts.up.weight": _stacked(config, state, "wi.weight").transpose(1, 2),
        "experts.down.weight": _stacked(config, state, "wo.weight").transpose(1, 2),
    }


def nllb_moe(config: Any) -> Options:
    """In evaluation capacity is a fraction of all tokens: ceil(fraction N) = ceil(2 N factor / E)."""
    return {
        "router": "top_k",
        "router.k": 2,
        "router.renormalize": True,
        "router.eval_capacity_factor": config.moe_eval_capacity_token_fraction * config.num_experts / 2,
        "gate.bias": config.router_bias,
        "expert.hidden": config.encoder_ffn_dim,
        "expert.activation": config.activation_function,
        "expert.bias": True,
        "num_experts": config.num_experts,
    }


def nllb_moe_weights(config: Any, state: State) -> dict[str, Tensor]:
    return _router(state) | {
        "experts.up.weight": _stacked(config, state, "fc1.weight").transpose(1, 2),
        "experts.up.bias": _stacked(config, state, "fc1.bias"),
        "experts.down.weight": _stacked(config, state, "fc2.weight").transpose(1, 2),
        "experts.down.bias": _stacked(config, state, "fc2.bias"),
    }


# -- what they share ------------------------------------------------------------------------------------------


def fused(state: State) -> dict[str, Tensor]:
    """gate_up_proj (E, 2 F, D), activated half first, and down_proj (E, D, F)."""
    up, gate = state["experts.gate_up_proj"].transpose(1, 2).chunk(2, dim=-1)
    return {
        "experts.up.weight": up,
        "experts.gate.weight": gate,
        "experts.down.weight": state["experts.down_proj"].transpose(1, 2),
    }


def split(state: State, name: str, parts: int) -> dict[str, Tensor]:
    """One SwiGLU of width P F as P of width F, whose sum it is: the down projection sums over hidden units."""

    def cut(projection: str) -> Tensor:  # (P F, D) -> (P, D, F)
        return state[f"{name}.{projection}.weight"].unflatten(0, (parts, -1)).transpose(1, 2)

    return {
        "shared.experts.up.weight": cut("gate_proj"),
        "shared.experts.gate.weight": cut("up_proj"),
        "shared.experts.down.weight": state[f"{name}.down_proj.weight"].T.unflatten(0, (parts, -1)),
    }


def _router(state: State) -> dict[str, Tensor]:
    names = {f"router.gate.linear.{kind}": f"router.classifier.{kind}" for kind in ("weight", "bias")}
    return {ours: state[theirs] for ours, theirs in names.items() if theirs in state}


def _stacked(config: Any, state: State, name: str) -> Tensor:
    return torch.stack([state[f"experts.expert_{e}.{name}"] for e in range(config.num_experts)])


def _whole(width: int, unit: int) -> int:
    if width % unit:
        raise ValueError(f"a shared expert of width {width} is no whole number of experts of width {unit}")
    return width // unit
