"""Decoders of transformers in our words: options from its configuration, weights from its state; see blocks.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moecli.config import build as build_part
from moecli.config import option_node
from moecli.models.transformer import Transformer
from moecli.parts import Parts
from tests.parity import blocks
from tests.parity.blocks import Options, State


def build(options: Options, vocab_size: int) -> Transformer:
    """The model that a run would build from these options."""
    chosen = {"gate": "linear", "expert": "feed_forward", "router": options["router"], "model": "transformer"}
    nodes = {group: option_node(group, name) | _below(f"{group}.", options) for group, name in chosen.items()}
    parts = Parts({**nodes, "num_experts": options["num_experts"]})
    return build_part(nodes["model"], parts=parts, dim=0, out=vocab_size, vocab_size=vocab_size)


def _decoder(config: Any) -> Options:
    """What all of them have: RMSNorm, rotary positions, grouped queries, SwiGLU, no biases."""
    return {
        "model.dim": config.hidden_size,
        "model.depth": config.num_hidden_layers,
        "model.heads": config.num_attention_heads,
        "model.kv_heads": config.num_key_value_heads,
        "model.every": 1,
        "model.norm_eps": config.rms_norm_eps,
        "model.rotary_base": config.rope_parameters["rope_theta"],
        "model.feed": "swiglu",
        "model.hidden": config.intermediate_size,
        "model.tied": config.tie_word_embeddings,
    }


def mixtral(config: Any) -> Options:
    return blocks.mixtral(config) | _decoder(config)


def olmoe(config: Any) -> Options:
    return blocks.olmoe(config) | _decoder(config) | {"model.qk_norm": True}


def qwen2_moe(config: Any) -> Options:
    """A mixture in every ``decoder_sparse_step``-th block, but for those that it names."""
    places = range(config.decoder_sparse_step - 1, config.num_hidden_layers, config.decoder_sparse_step)
    every = [block for block in places if block not in config.mlp_only_layers]
    biases = {"model.qkv_bias": config.qkv_bias}
    return blocks.qwen2_moe(config) | _decoder(config) | biases | {"model.every": every}


def deepseek_v2(config: Any) -> Options:
    """Latent attention, whose heads have as many features for values as for what of keys tells no positions."""
    if config.qk_nope_head_dim != config.v_head_dim or 2 * config.qk_rope_head_dim != config.v_head_dim:
        raise ValueError("v_head_dim: only heads like DeepSeek's have an option of ours, a half of them turned")
    latent = {
        "model.attention": "latent",
        "model.head_dim": config.v_head_dim,
        "model.kv_heads": None,
        "model.kv_rank": config.kv_lora_rank,
        "model.q_rank": config.q_lora_rank,
        "model.every": list(range(config.first_k_dense_replace, config.num_hidden_layers)),
    }
    return blocks.deepseek_v2(config) | _decoder(config) | latent


def weights(config: Any, state: State, mixture: blocks.Weights) -> dict[str, Tensor]:
    """All of a decoder, its mixtures by ``mixture``."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        ours["output.weight"] = state["lm_head.weight"]
    for index in range(config.num_hidden_layers):
        block = _below(f"model.layers.{index}.", state)
        named = {**_attention(config, _below("self_attn.", block)), **_feed(config, _below("mlp.", block), mixture)}
        named |= {
            "norm1.weight": block["input_layernorm.weight"],
            "norm2.weight": block["post_attention_layernorm.weight"],
        }
        ours |= {f"blocks.block{index}.{name}": tensor for name, tensor in named.items()}
    return ours


def _attention(config: Any, state: State) -> dict[str, Tensor]:
    if hasattr(config, "kv_lora_rank"):
        return _latent(config, state)
    kinds = [kind for kind in ("weight", "bias") if f"q_proj.{kind}" in state]
    joined = {f"attention.qkv.{kind}": torch.cat([state[f"{p}_proj.{kind}"] for p in "qkv"]) for kind in kinds}
    norms = {
        f"attention.{name}.weight": state[f"{name}.weight"]
        for name in ("q_norm", "k_norm")
        if f"{name}.weight" in state
    }
    return {**joined, **norms, "attention.out.weight": state["o_proj.weight"]}


def _latent(config: Any, state: State) -> dict[str, Tensor]:
    """Features that are turned stand in pairs there; here the first of all pairs, then the second."""
    names = {"q_a_proj": "q_down", "q_a_layernorm": "q_norm", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_up"}
    whole = {"o_proj": "out", **names}
    plain = {f"attention.{ours}.weight": state[f"{t}.weight"] for t, ours in whole.items() if f"{t}.weight" in state}
    queries = state.get("q_b_proj.weight", state.get("q_proj.weight"))
    by_head = queries.unflatten(0, (config.num_attention_heads, -1))  # (H, 3 F / 2, D)
    return {
        **plain,
        "attention.q_up.weight": _unpaired(by_head, config.qk_rope_head_dim).flatten(0, 1),
        "attention.kv_down.weight": _unpaired(state["kv_a_proj_with_mqa.weight"], config.qk_rope_head_dim),
    }


def _unpaired(
    weight: Tensor, turned: int
) -> Tensor:  # (..., W, D) -> the same, of which the last ``turned`` stand in pairs
    still, pairs = weight[..., :-turned, :], weight[..., -turned:, :]
    return torch.cat([still, pairs[..., ::2, :], pairs[..., 1::2, :]], dim=-2)


def _feed(config: Any, state: State, mixture: blocks.Weights) -> dict[str, Tensor]:
    """transformers calls the activated half gate, we call it up."""
    if "gate.weight" in state:
        return {f"feed.{name}": tensor for name, tensor in mixture(config, state).items()}
    names = {"up": "gate_proj", "gate": "up_proj", "down": "down_proj"}
    return {f"feed.{ours}.weight": state[f"{theirs}.weight"] for ours, theirs in names.items()}


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
