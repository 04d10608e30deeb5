"""The same weights give the same logits as transformers' Mixtral, OLMoE, Qwen2-MoE and DeepSeek-V2, and a wrong option does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2ForCausalLM
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeForCausalLM
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeForCausalLM

from moecli.models.generate import generate
from moecli.models.transformer import Transformer
from tests.parity import blocks, decoders

VOCAB, LENGTH = 61, 24
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "num_experts_per_tok": 2,
}
CLOSE = 1e-5  # largest difference of logits, whose largest is about 3; measured at most 2.2e-6
VISIBLE = 0.5  # what a wrong option shows at least; measured at least 1.0


@dataclass(frozen=True)
class Peer:
    """A decoder of transformers, and how it is said in our words."""

    model: Callable[[Any], nn.Module]
    config: Any
    options: Callable[[Any], blocks.Options]
    mixture: blocks.Weights

    def build(self, seed: int) -> nn.Module:
        """With weights large enough that every part tells, norms and biases too."""
        torch.manual_seed(seed)
        model = self.model(self.config).eval()
        for name, tensor in model.named_parameters():
            nn.init.normal_(tensor, mean=float("norm" in name), std=0.15)
        return model

    def ours(self, model: nn.Module, changes: blocks.Options | None = None) -> Transformer:
        """Ours with its weights; those that changed options leave without a place are left out."""
        built = decoders.build(self.options(self.config) | (changes or {}), VOCAB).eval()
        state, own = decoders.weights(self.config, model.state_dict(), self.mixture), built.state_dict()
        built.load_state_dict({name: t for name, t in state.items() if not changes or name in own}, strict=not changes)
        return built


def mixtral(**more: Any) -> Peer:
    config = MixtralConfig(**SIZES, num_local_experts=6, **more)
    return Peer(MixtralForCausalLM, config, decoders.mixtral, blocks.mixtral_weights)


def olmoe(**more: Any) -> Peer:
    config = OlmoeConfig(**SIZES, num_experts=6, **more)
    return Peer(OlmoeForCausalLM, config, decoders.olmoe, blocks.mixtral_weights)


def qwen2_moe(**more: Any) -> Peer:
    widths = {"num_experts": 6, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 40}
    config = Qwen2MoeConfig(**SIZES, **widths, **more)
    return Peer(Qwen2MoeForCausalLM, config, decoders.qwen2_moe, blocks.qwen2_moe_weights)


def deepseek_v2(**more: Any) -> Peer:
    """The first block dense; groups of two experts, of which a token reaches two."""
    attention = {"num_key_value_heads": 4, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 6}
    widths = {"n_routed_experts": 6, "moe_intermediate_size": 20, "n_shared_experts": 2, "first_k_dense_replace": 1}
    groups = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
    low = {"v_head_dim": 12, "q_lora_rank": 24}
    config = DeepseekV2Config(**{**SIZES, **attention, **widths, **groups, **low, **more})
    return Peer(DeepseekV2ForCausalLM, config, decoders.deepseek_v2, blocks.deepseek_v2_weights)


PEERS = {
    "mixtral": mixtral(),
    "mixtral, tied": mixtral(tie_word_embeddings=True, rms_norm_eps=1e-2),
    "olmoe": olmoe(),
    "olmoe, normalised": olmoe(norm_topk_prob=True),
    "qwen2_moe": qwen2_moe(),
    "qwen2_moe, every other block": qwen2_moe(decoder_sparse_step=2),
    "qwen2_moe, but for the first": qwen2_moe(mlp_only_layers=[0], qkv_bias=False, norm_topk_prob=True),
    "deepseek_v2": deepseek_v2(),
    "deepseek_v2, whole queries": deepseek_v2(q_lora_rank=None, rope_theta=100.0),
}
# Options that are wrong for each.
WRONG: dict[str, list[blocks.Options]] = {
    "mixtral": [{"model.rotary_base": 10_000.0}, {"router.renormalize": False}, {"model.tied": True}, {"router.k": 3}],
    "mixtral, tied": [{"model.norm_eps": None}, {"model.tied": False}],
    "olmoe": [{"model.qk_norm": False}, {"router.renormalize": True}],
    "olmoe, normalised": [{"router.renormalize": False}],
    "qwen2_moe": [{"model.qkv_bias": False}, {"model.shared": 0}, {"model.shared_mix": "add"}],
    "qwen2_moe, every other block": [{"model.every": [1, 2]}, {"model.norm": "layer"}],
    "qwen2_moe, but for the first": [{"model.every": 1}, {"router.renormalize": False}],
    "deepseek_v2": [{"model.rotary_base": 30.0}, {"router.scale": 1.0}, {"router.limit": 1}],
    "deepseek_v2, whole queries": [{"model.rotary_base": 10_000.0}],
}
CONTROLS = [(name, change) for name, changes in WRONG.items() for change in changes]


def sample(seed: int) -> Tensor:  # (B, T)
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def gap(ours: Transformer, theirs: nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        return float((ours(ids).prediction - theirs(ids).logits).abs().max())


@pytest.mark.parametrize("name", PEERS)
def test_the_same_weights_give_the_same_logits(name):
    peer = PEERS[name]
    for seed in range(3):
        theirs, ids = peer.build(seed), sample(seed)
        ours = peer.ours(theirs)
        assert gap(ours, theirs, ids) < CLOSE
        assert ours(ids).prediction.abs().max() > 1, "small logits would hide a difference"


@pytest.mark.parametrize(("name", "change"), CONTROLS)
def test_a_wrong_option_shows(name, change):
    peer = PEERS[name]
    theirs = peer.build(0)
    assert gap(peer.ours(theirs, change), theirs, sample(0)) > VISIBLE


def test_every_decoder_has_a_wrong_option():
    assert WRONG.keys() == PEERS.keys() and len(PEERS) == 9 and len(CONTROLS) == 20


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe, every other block"])
def test_the_activated_half_is_not_the_other(name):
    """Of the experts, and of the dense blocks."""
    peer = PEERS[name]
    theirs, ids = peer.build(0), sample(0)
    for block in ("block0", "block1"):
        ours = peer.ours(theirs)
        feed = ours.blocks[block].feed
        half = getattr(feed, "experts", feed)
        half.up, half.gate = half.gate, half.up
        assert gap(ours, theirs, ids) > VISIBLE


@torch.no_grad()
def test_a_shared_key_whose_pairs_stand_otherwise_shows():
    peer = PEERS["deepseek_v2"]
    theirs, ids = peer.build(0), sample(0)
    ours = peer.ours(theirs)
    down, turned = ours.blocks.block1.attention.kv_down.weight, theirs.config.qk_rope_head_dim
    down[-turned:] = down[-turned:].roll(1, dims=0)
    assert gap(ours, theirs, ids) > VISIBLE


@torch.no_grad()
def test_greedy_generation_is_theirs():
    """Both with a cache, token by token."""
    for name in ("mixtral", "olmoe", "qwen2_moe", "deepseek_v2"):
        peer = PEERS[name]
        theirs, given = peer.build(0), sample(0)[0, :5]
        theirs.generation_config.eos_token_id = None  # it ends nowhere, as ours
        mask = torch.ones(1, 5, dtype=torch.int64)
        found = theirs.generate(given[None], attention_mask=mask, do_sample=False, max_new_tokens=10, pad_token_id=0)
        ours, _ = generate(peer.ours(theirs), given, 10, window=100, temperature=0)
        assert len(set(ours.tolist())) > 4 and torch.equal(found[0], ours), name
