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


def weights(config: Any, state: State, mixture: blocks.Weights) -> dict[str, Tensor]:
    """All of a decoder, its mixtures by ``mixture``."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        ours["output.weight"] = state["lm_head.weight"]
    for index in range(config.num_hidden_layers):
        block = _below(f"model.layers.{index}.", state)
        named = {**_attention(_below("self_attn.", block)), **_feed(config, _below("mlp.", block), mixture)}
        named |= {
            "norm1.weight": block["input_layernorm.weight"],
            "norm2.weight": block["post_attention_layernorm.weight"],
        }
        ours |= {f"blocks.block{index}.{name}": tensor for name, tensor in named.items()}
    return ours


def _attention(state: State) -> dict[str, Tensor]:
    kinds = [kind for kind in ("weight", "bias") if f"q_proj.{kind}" in state]
    joined = {f"attention.qkv.{kind}": torch.cat([state[f"{p}_proj.{kind}"] for p in "qkv"]) for kind in kinds}
    norms = {
        f"attention.{name}.weight": state[f"{name}.weight"]
        for name in ("q_norm", "k_norm")
        if f"{name}.weight" in state
    }
    return {**joined, **norms, "attention.out.weight": state["o_proj.weight"]}


def _feed(config: Any, state: State, mixture: blocks.Weights) -> dict[str, Tensor]:
    """transformers calls the activated half gate, we call it up."""
    if "gate.weight" in state:
        return {f"feed.{name}": tensor for name, tensor in mixture(config, state).items()}
    names = {"up": "gate_proj", "gate": "up_proj", "down": "down_proj"}
    return {f"feed.{ours}.weight": state[f"{theirs}.weight"] for ours, theirs in names.items()}


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
