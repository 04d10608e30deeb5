"""The same weights give the same numbers as transformers' mixture blocks, and a wrong option does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.dbrx.configuration_dbrx import DbrxConfig
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.nllb_moe.configuration_nllb_moe import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.switch_transformers.configuration_switch_transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from moecli.mixture import MixtureOfExperts
from moecli.routing import Routing, Tokens
from tests.parity import blocks

DIM, HIDDEN, EXPERTS = 24, 20, 8
SEQUENCES, LENGTH = 2, 32
SEEDS = range(5)
# Bounds of the largest difference, in units of the largest number; measured: 5.3e-7, 2.7e-7, 1.5e-15, and 0.034.
SINGLE = 2e-6  # float32
MIXED = 1e-6  # gradients in float64, where transformers' router still computes in float32
DOUBLE = 1e-12  # gradients in float64 throughout
VISIBLE = 1e-3  # what a wrong option shows at least

Decision = tuple[Tensor, Tensor]  # logits and combine weights, (N, E) each


@dataclass(frozen=True)
class Peer:
    """A block of transformers, and how it is said in our words."""

    block: Callable[[Any], nn.Module]
    config: Any
    options: Callable[[Any], blocks.Options]
    weights: blocks.Weights
    decide: Callable[[Any, Tensor], Decision]
    answer: Callable[[Any, Tensor], Tensor] = lambda block, x: block(x)
    single: bool = True  # its router computes in float32 whatever it is given
    tokens: Callable[[Tensor], Tokens] = Tokens.sequences
    drops: bool = False  # its capacity binds
    scale: float = 0.5  # standard deviation of the weights

    def build(self, seed: int, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(seed)
        block = self.block(self.config).eval()
        for tensor in [*block.parameters(), *block.buffers()]:  # the buffer is the bias of DeepSeek-V3
            nn.init.normal_(tensor, std=self.scale)
        if not self.single and hasattr(block.router, "dtype"):
            block.router.dtype = dtype  # Switch and NLLB: an option, float32 unless set
        return block.to(dtype)

    def ours(self, block: nn.Module, changes: blocks.Options | None = None) -> MixtureOfExperts:
        """Our layer with the weights of ``block``; those that changed options leave without a place are left out."""
        layer = blocks.build(self.options(self.config) | (changes or {}), DIM).to(next(block.parameters()).dtype).eval()
        state = self.weights(self.config, block.state_dict())
        own = layer.state_dict()
        layer.load_state_dict({key: value for key, value in state.items() if not changes or key in own})
        return layer

    def routing(self, layer: MixtureOfExperts, x: Tensor) -> Routing:
        return layer.router(self.tokens(x))

    def run(self, layer: MixtureOfExperts, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return layer(self.tokens(x))[0].view_as(x)


def flat(x: Tensor) -> Tokens:
    """All tokens of the batch compete for places."""
    return Tokens.items(x.flatten(0, 1))


def table(weight: Tensor, expert: Tensor, num_experts: int = EXPERTS) -> Tensor:  # (N, K) each -> (N, E)
    return weight.new_zeros(len(weight), num_experts).scatter(1, expert, weight)


def by_gate(block: Any, x: Tensor) -> Decision:
    logits, weight, expert = block.gate(x.flatten(0, 1))
    return logits, table(weight, expert)


def by_router(block: Any, x: Tensor) -> Decision:
    logits, weight, expert = block.router(x.flatten(0, 1))
    return logits, table(weight, expert)


def by_dbrx(block: Any, x: Tensor) -> Decision:
    logits = block.router(x)
    return logits, table(*block.route_tokens_to_experts(logits))


def by_switch(block: Any, x: Tensor) -> Decision:
    mask, prob, logits = block.router(x)
    return logits.flatten(0, 1), (mask * prob).flatten(0, 1)


def by_nllb(block: Any, x: Tensor) -> Decision:
    _, weight, logits = block.router(x.flatten(0, 1))
    return logits, weight


def nllb_answer(block: Any, x: Tensor) -> Tensor:
    """sum_e weight_e expert_e(x) of transformers' own router and experts: the layer of the paper."""
    weight = by_nllb(block, x)[1]  # (N, E)
    each = torch.stack([block.experts[f"expert_{e}"](x.flatten(0, 1)) for e in range(EXPERTS)])  # (E, N, D)
    return torch.einsum("ne,end->nd", weight, each).view_as(x)


def eager(config: Any) -> Any:
    config._experts_implementation = "eager"  # the plain loop
    return config


SIZES = {"hidden_size": DIM, "intermediate_size": HIDDEN, "num_experts_per_tok": 2}


def mixtral() -> Peer:
    config = MixtralConfig(**SIZES, num_local_experts=EXPERTS)
    return Peer(MixtralSparseMoeBlock, eager(config), blocks.mixtral, blocks.mixtral_weights, by_gate)


def olmoe(norm: bool) -> Peer:
    config = OlmoeConfig(**SIZES | {"num_experts_per_tok": 4}, num_experts=EXPERTS, norm_topk_prob=norm)
    return Peer(OlmoeSparseMoeBlock, eager(config), blocks.olmoe, blocks.mixtral_weights, by_gate)


def qwen2_moe(norm: bool) -> Peer:
    config = Qwen2MoeConfig(
        **SIZES,
        num_experts=EXPERTS,
        norm_topk_prob=norm,
        moe_intermediate_size=HIDDEN,
        shared_expert_intermediate_size=2 * HIDDEN,
    )
    return Peer(Qwen2MoeSparseMoeBlock, eager(config), blocks.qwen2_moe, blocks.qwen2_moe_weights, by_gate)


DEEPSEEK = {
    **SIZES,
    "num_experts_per_tok": 3,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "moe_intermediate_size": HIDDEN,
    "routed_scaling_factor": 2.5,
    "n_group": 4,
    "topk_group": 2,
}


def deepseek_v2(method: str) -> Peer:
    config = DeepseekV2Config(**DEEPSEEK, topk_method=method, num_attention_heads=4)
    return Peer(DeepseekV2Moe, eager(config), blocks.deepseek_v2, blocks.deepseek_v2_weights, by_gate)


def deepseek_v3(norm: bool) -> Peer:
    config = DeepseekV3Config(**DEEPSEEK, norm_topk_prob=norm)
    return Peer(DeepseekV3MoE, eager(config), blocks.deepseek_v3, blocks.deepseek_v3_weights, by_gate)


def dbrx(norm: float | None) -> Peer:
    ffn = {
        "hidden_size": DIM,
        "ffn_hidden_size": HIDDEN,
        "moe_num_experts": EXPERTS,
        "moe_top_k": 4,
        "moe_normalize_expert_weights": norm,
    }
    config = DbrxConfig(d_model=DIM, ffn_config=ffn)
    return Peer(DbrxFFN, config, blocks.dbrx, blocks.dbrx_weights, by_dbrx, single=False)


def gpt_oss() -> Peer:
    config = GptOssConfig(**SIZES | {"num_experts_per_tok": 4}, num_local_experts=EXPERTS)
    return Peer(
        GptOssMLP,
        eager(config),
        blocks.gpt_oss,
        blocks.gpt_oss_weights,
        by_router,
        answer=lambda block, x: block(x)[0],
        single=False,
        scale=0.8,  # so that both clamps bind
    )


def switch(capacity: int, bias: bool = False) -> Peer:
    config = SwitchTransformersConfig(
        d_model=DIM, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=capacity, router_bias=bias
    )
    return Peer(
        SwitchTransformersSparseMLP,
        config,
        lambda config: blocks.switch(config, LENGTH),
        blocks.switch_weights,
        by_switch,
        single=False,
        drops=capacity < LENGTH,
    )


def nllb_moe(fraction: float, **more: Any) -> Peer:
    """Without moe_token_dropout, which in evaluation scales all that the experts answer; we have no such factor."""
    sizes = {"d_model": DIM, "encoder_ffn_dim": HIDDEN, "num_experts": EXPERTS, "moe_token_dropout": 0.0}
    config = NllbMoeConfig(**sizes, moe_eval_capacity_token_fraction=fraction, **more)
    return Peer(
        lambda config: NllbMoeSparseMLP(config, config.encoder_ffn_dim),
        config,
        blocks.nllb_moe,
        blocks.nllb_moe_weights,
        by_nllb,
        nllb_answer,
        single=False,
        tokens=flat,
        drops=fraction < 1,
    )


PEERS = {
    "mixtral": mixtral(),
    "olmoe": olmoe(norm=False),
    "olmoe, normalised": olmoe(norm=True),
    "qwen2_moe": qwen2_moe(norm=False),
    "qwen2_moe, normalised": qwen2_moe(norm=True),
    "deepseek_v2": deepseek_v2("greedy"),
    "deepseek_v2, groups": deepseek_v2("group_limited_greedy"),
    "deepseek_v3": deepseek_v3(norm=True),
    "deepseek_v3, not normalised": deepseek_v3(norm=False),
    "dbrx": dbrx(norm=1.0),
    "dbrx, not normalised": dbrx(norm=None),
    "gpt_oss": gpt_oss(),
    "switch": switch(capacity=LENGTH),
    "switch, full": switch(capacity=4),
    "switch, router with bias": switch(capacity=4, bias=True),
    "nllb_moe": nllb_moe(fraction=1.0),
    "nllb_moe, full": nllb_moe(fraction=0.2, normalize_router_prob_before_dropping=True),
    "nllb_moe, router with bias": nllb_moe(fraction=1.0, router_bias=True),
}
# Options that are wrong for each.
WRONG: dict[str, list[blocks.Options]] = {
    "mixtral": [{"router.renormalize": False}, {"router.k": 3}, {"expert.activation": "clamped_swiglu"}],
    "olmoe": [{"router.renormalize": True}],
    "olmoe, normalised": [{"router.renormalize": False}],
    "qwen2_moe": [{"router.renormalize": True}, {"model.shared_mix": "add"}, {"model.shared": 0}],
    "qwen2_moe, normalised": [{"router.renormalize": False}],
    "deepseek_v2": [{"router.scale": 1.0}, {"router.renormalize": True}, {"model.shared": 0}],
    "deepseek_v2, groups": [
        {"router.scale": 1.0},
        {"router.groups": 1, "router.limit": 1},
        {"router.groups": 2, "router.limit": 1},
    ],
    "deepseek_v3": [
        {"router.scale": 1.0},
        {"router.renormalize": False},
        {"router.groups": 1, "router.limit": 1},
        {"model.shared": 0},
    ],
    "deepseek_v3, not normalised": [{"router.renormalize": True}],
    "dbrx": [{"router.renormalize": False}],
    "dbrx, not normalised": [{"router.renormalize": True}],
    "gpt_oss": [
        {"router.renormalize": False},
        {"expert.activation": "swiglu"},
        {"expert.bias": False},
        {"gate.bias": False},
    ],
    "switch": [{"router.capacity_factor": 1.0}, {"expert.activation": "gelu"}],
    "switch, full": [{"router.capacity_factor": None}, {"router.capacity_by": "weight"}],
    "switch, router with bias": [{"gate.bias": False}],
    "nllb_moe": [{"router.renormalize": False}, {"router.eval_capacity_factor": 0.8}],
    "nllb_moe, full": [
        {"router.eval_capacity_factor": None},
        {"router.capacity_by": "token"},
        {"router.capacity_by": "weight"},
        {"expert.bias": False},
    ],
    "nllb_moe, router with bias": [{"gate.bias": False}],
}


def sample(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:  # (B, T, D)
    draw = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(SEQUENCES, LENGTH, DIM, generator=draw, dtype=torch.float64).to(dtype)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the largest number of theirs."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


# -- the same numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_the_same_weights_give_the_same_numbers(name, seed):
    """Logits, who is chosen, with which weight, and what comes out."""
    peer, x = PEERS[name], sample(seed)
    block = peer.build(seed, torch.float32)
    layer = peer.ours(block)
    logits, weight = peer.decide(block, x)
    routing = peer.routing(layer, x)
    assert gap(routing.logits, logits) < SINGLE
    assert torch.equal(routing.plan.weights > 0, weight > 0)
    assert gap(routing.plan.weights, weight) < SINGLE
    assert gap(peer.run(layer, x), peer.answer(block, x)) < SINGLE
    assert (routing.usage.dropped > 0.02) == peer.drops


@pytest.mark.parametrize("name", PEERS)
def test_the_same_weights_give_the_same_gradients(name):
    """Of the input and of every weight: the map of weights maps gradients alike, for it only moves numbers."""
    peer, x = PEERS[name], sample(7, torch.float64).requires_grad_()
    block = peer.build(7, torch.float64)
    layer = peer.ours(block)
    theirs_of_x, theirs = gradients(block, peer.answer(block, x), x)
    ours_of_x, ours = gradients(layer, peer.run(layer, x), x)
    mapped = peer.weights(peer.config, theirs)
    bound = MIXED if peer.single else DOUBLE
    assert ours.keys() == mapped.keys()
    assert gap(ours_of_x, theirs_of_x) < bound
    for key in dict(layer.named_parameters()):
        assert gap(ours[key], mapped[key]) < bound, key


def gradients(module: nn.Module, y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of a random direction of y with respect to x and to the module's state, zero where nothing leads."""
    pull = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    named = dict(module.named_parameters())
    of_x, *rest = torch.autograd.grad(y, [x, *named.values()], pull, allow_unused=True)
    state = {key: torch.zeros_like(tensor) for key, tensor in module.state_dict().items()}
    return of_x, state | {key: grad for key, grad in zip(named, rest, strict=True) if grad is not None}


# -- what is wrong shows ---------------------------------------------------------------------------------------

CONTROLS = [(name, change) for name, changes in WRONG.items() for change in changes]


def test_every_block_has_a_wrong_option():
    assert WRONG.keys() == PEERS.keys() and len(PEERS) == 18 and len(CONTROLS) == 38


@pytest.mark.parametrize(("name", "change"), CONTROLS)
@torch.no_grad()
def test_a_wrong_option_shows(name, change):
    peer, x = PEERS[name], sample(0)
    block = peer.build(0, torch.float32)
    assert gap(peer.run(peer.ours(block, change), x), peer.answer(block, x)) > VISIBLE


GATED = [name for name, peer in PEERS.items() if "swiglu" in peer.options(peer.config)["expert.activation"]]


@pytest.mark.parametrize("name", GATED)
@torch.no_grad()
def test_the_activated_half_is_not_the_other(name):
    peer, x = PEERS[name], sample(0)
    block = peer.build(0, torch.float32)
    layer = peer.ours(block)
    layer.experts.up, layer.experts.gate = layer.experts.gate, layer.experts.up
    assert gap(peer.run(layer, x), peer.answer(block, x)) > VISIBLE


@torch.no_grad()
def test_the_bias_of_deepseek_v3_steers_the_choice():
    peer, x = PEERS["deepseek_v3"], sample(0)
    block = peer.build(0, torch.float32)
    layer = peer.ours(block)
    before = peer.routing(layer, x)
    layer.router.bias.zero_()
    after = peer.routing(layer, x)
    assert not torch.equal(before.plan.demand, after.plan.demand)
    assert torch.equal(before.logits, after.logits)
    assert gap(peer.run(layer, x), peer.answer(block, x)) > VISIBLE


@torch.no_grad()
def test_both_clamps_of_gpt_oss_bind():
    """A negative control of the inputs: without them the clamped activation would not be seen."""
    peer, x = PEERS["gpt_oss"], sample(0)
    layer = peer.ours(peer.build(0, torch.float32))
    plan = peer.routing(layer, x).plan
    rows = plan.dispatch(x.flatten(0, 1))
    up, gate = layer.experts.up(rows, plan.groups), layer.experts.gate(rows, plan.groups)
    assert up.max() > 7 and gate.max() > 7 and gate.min() < -7 and up.min() < -7


@torch.no_grad()
def test_what_switch_drops_answers_zero():
    peer, x = PEERS["switch, full"], sample(0)
    block = peer.build(0, torch.float32)
    dropped = (peer.decide(block, x)[1] == 0).all(-1)  # (N,)
    assert dropped.sum() > 5
    assert (peer.answer(block, x).flatten(0, 1)[dropped] == 0).all()
    assert (peer.run(peer.ours(block), x).flatten(0, 1)[dropped] == 0).all()


# -- where transformers and we differ --------------------------------------------------------------------------


@torch.no_grad()
def test_transformers_sends_all_tokens_of_nllb_to_its_first_two_experts():
    """Why ``nllb_answer`` stands in for the block: 5.23 reads the 0 or 1 of a mask as an expert's number.

    Expert 1 serves every first choice and expert 0 every second one, whoever was chosen.  A release that
    mends it answers as ``nllb_answer`` does, and then the block itself can be compared with.
    """
    peer, x = PEERS["nllb_moe"], sample(0)
    block = peer.build(0, torch.float32)
    first, second = by_nllb(block, x)[1].topk(2).values.unbind(-1)  # (N,) each
    rows = x.flatten(0, 1)
    wrong = first[:, None] * block.experts["expert_1"](rows) + second[:, None] * block.experts["expert_0"](rows)
    right = nllb_answer(block, x)
    assert gap(wrong.view_as(x), right) > 0.5
    assert min(gap(wrong.view_as(x), block(x)), gap(right, block(x))) < SINGLE


@torch.no_grad()
def test_nllb_s_default_divides_by_the_sum_of_those_that_were_served():
    """Weights divided by their sum after dropping: the same edges, and a lone survivor has weight one, not g_1."""
    peer, x = nllb_moe(fraction=0.2, normalize_router_prob_before_dropping=False), sample(0)
    block = peer.build(0, torch.float32)
    weight = peer.decide(block, x)[1]
    ours = peer.routing(peer.ours(block), x).plan.weights
    assert torch.equal(ours > 0, weight > 0)
    total = ours.sum(-1, keepdim=True)
    lone = ((weight > 0).sum(-1) == 1) & (weight.sum(-1) > 0)
    assert lone.sum() > 5
    assert gap(ours[~lone], weight[~lone]) < SINGLE
    assert gap(ours[lone] / total[lone], weight[lone]) < SINGLE
    assert gap(ours[lone], weight[lone]) > VISIBLE


@torch.no_grad()
def test_nllb_s_batch_priority_ranks_by_belief_and_ours_by_weight():
    """transformers (and V-MoE): first choices by the token's best softmax, then second ones in the same order.

    ``router.capacity_by=weight`` ranks tokens by their heaviest combine weight, which is the softmax in V-MoE
    (``test_golden.py``) and renormalised here: equally many edges of each expert are kept, and not the same ones.
    """
    config = {"batch_prioritized_routing": True, "normalize_router_prob_before_dropping": True}
    peer, x = nllb_moe(fraction=0.2, **config), sample(0)
    block = peer.build(0, torch.float32)
    weight = peer.decide(block, x)[1]
    ours = peer.routing(peer.ours(block, {"router.capacity_by": "weight"}), x).plan.weights
    assert torch.equal((ours > 0).sum(0), (weight > 0).sum(0))
    both = (ours > 0) & (weight > 0)
    assert gap(ours[both], weight[both]) < SINGLE
    assert (both != (ours > 0)).any()
