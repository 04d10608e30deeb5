"""Numbers that others' code arrives at: V-MoE's router and losses, and the balance losses of transformers.

V-MoE's code (google-research/vmoe: vmoe/nn/routing.py and vmoe/moe.py, in JAX) is written out here in
NumPy, and its tests (vmoe/nn/routing_test.py) give the inputs and the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as pooled_balance
from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func as switch_loss
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from moecli.losses.importance import Importance
from moecli.losses.load import Load
from moecli.losses.switch_balance import SwitchBalance
from moecli.losses.z_loss import ZLoss
from moecli.plan import Dense, Sparse
from moecli.routers.noisy_top_k import NoisyTopK
from moecli.routers.top_k import TopK
from moecli.routing import NoisyRouting, Router, Routing, Tokens

F64 = torch.float64
NONE = torch.zeros(0)
GATES = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]], dtype=F64)
LOGITS = torch.tensor([[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]], dtype=F64)
NOISE = torch.tensor([[-0.037, 0.026, -0.018], [-0.074, 0.045, -0.015], [-0.067, -0.059, 0.073]], dtype=F64)


def evidence(n: int, length: int | None = None) -> dict[str, Tensor]:
    """The example of each of n tokens, all one example unless sequences have a ``length``, and its place there."""
    place = torch.arange(n)
    return {"example": place // (length or n), "position": place % (length or n)}


def dense(probs: Tensor) -> Routing:
    plan = Dense(probs.log())
    return Routing(plan, probs, asked=plan, **evidence(len(probs)))


def chosen(logits: Tensor, k: int, length: int | None = None) -> Routing:
    plan = Sparse.from_choices(logits.topk(k).indices, torch.zeros(len(logits), k), logits.shape[1])
    return Routing(plan, logits.softmax(-1), logits, asked=plan, **evidence(len(logits), length))


class Given(nn.Module):
    """A gate whose answers are written down."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


# -- V-MoE's losses --------------------------------------------------------------------------------------------


def test_importance_of_vmoe():
    """Sums (1.7, 1.1, 1.2), mean 4/3, variance (.3667^2 + .2333^2 + .1333^2) / 3 = .068889; over 16/9: .03875."""
    value = Importance().value(dense(GATES), NONE).item()
    assert value == pytest.approx(0.03874999, abs=1e-7)
    assert value == pytest.approx((0.62 / 9) / (16 / 9), abs=1e-12)


def test_gshard_s_loss_of_vmoe():
    """First choices (2, 0, 2) / 4, mean gates (1.7, 1.1, 1.2) / 4: 3 (.5 x .425 + .5 x .3) = 1.0875."""
    assert SwitchBalance(choices="first").value(dense(GATES), NONE).item() == pytest.approx(1.0875, abs=1e-12)
    assert SwitchBalance().value(dense(GATES), NONE).item() != pytest.approx(1.0875, abs=1e-2)  # all choices


def vmoe_chance(logits: np.ndarray, noisy: np.ndarray, std: float, k: int) -> np.ndarray:
    """P(logit + fresh noise > the k-th best noisy logit), its own included: (N, E)."""
    threshold = np.sort(noisy, axis=-1)[:, -k][:, None]
    return 1 - norm.cdf((threshold - logits) / std)


def test_load_of_vmoe():
    """Mean chances (1.0000, .2777, .2341): mean .50394, deviation .35122, (.35122 / .50394)^2 = .48574."""
    chance = torch.from_numpy(vmoe_chance(LOGITS.numpy(), (LOGITS + NOISE).numpy(), std=0.1, k=2))
    assert chance.mean(0).tolist() == pytest.approx([1.0000, 0.2777, 0.2341], abs=5e-5)
    plan = Dense(LOGITS.log_softmax(-1))
    routing = NoisyRouting(plan, LOGITS.softmax(-1), LOGITS, chance=chance, asked=plan, **evidence(3))
    assert Load().value(routing, NONE).item() == pytest.approx(0.48573864536489236, abs=1e-6)


def shazeer_chance(logits: np.ndarray, noisy: np.ndarray, std: float, k: int) -> np.ndarray:
    """P(logit + fresh noise > the k-th best noisy logit of the others): (N, E)."""
    others = [np.sort(np.delete(noisy, e, axis=-1), axis=-1)[:, -k] for e in range(noisy.shape[-1])]
    return norm.cdf((logits - np.stack(others, axis=-1)) / std)


def test_load_of_shazeer_leaves_the_expert_s_own_noise_out_of_its_bar(monkeypatch):
    """The same inputs through our router, which keeps to the paper's eqs. 8-9: the k-th best of the *others*.

    For an expert that was not chosen that is V-MoE's bar; for one that was, V-MoE's bar is an expert of
    the chosen, so higher.  The second expert of the first token: .06 + .026 noisy, and fresh noise must
    lift .06 over the third one's .022 (chance .648), where V-MoE asks .086 of it (chance .397).
    """
    router = NoisyTopK(lambda n: nn.Identity(), 3, k=2)
    std = 0.1
    router.choose.gate = Given(LOGITS)
    router.choose.noise = Given(torch.full_like(LOGITS, std - 1e-2).expm1().log())  # softplus of it is std - 0.01
    monkeypatch.setattr(torch, "randn_like", lambda t: NOISE / std)
    routing = router(Tokens.items(LOGITS))
    vmoe = torch.from_numpy(vmoe_chance(LOGITS.numpy(), (LOGITS + NOISE).numpy(), std, k=2))
    served = routing.plan.demand > 0
    assert torch.allclose(routing.chance[~served], vmoe[~served], atol=1e-12)
    assert (routing.chance[served] > vmoe[served]).all()
    assert [routing.chance[0, 1].item(), vmoe[0, 1].item()] == pytest.approx([0.648, 0.397], abs=5e-4)
    expected = shazeer_chance(LOGITS.numpy(), (LOGITS + NOISE).numpy(), std, k=2)
    assert np.allclose(routing.chance, expected, atol=1e-12)
    mean = expected.mean(0)
    assert Load().value(routing, NONE).item() == pytest.approx((mean.std() / mean.mean()) ** 2, abs=1e-12)


# -- V-MoE's router --------------------------------------------------------------------------------------------


def vmoe_gates(logits: np.ndarray, normal: np.ndarray, noise_std: float) -> np.ndarray:
    noisy = logits + noise_std / logits.shape[-1] * normal
    exp = np.exp(noisy - noisy.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def vmoe_combine(gates: np.ndarray, k: int, capacity: int, batch_priority: bool = False) -> np.ndarray:
    """The k best gates of each token, as they are, where its place in the expert's buffer is below the capacity."""
    table = np.zeros_like(gates)
    for token, expert in vmoe_queue(gates, k, batch_priority):
        if (table[:, expert] > 0).sum() < capacity:
            table[token, expert] = gates[token, expert]
    return table


def vmoe_queue(gates: np.ndarray, k: int, batch_priority: bool) -> Iterator[tuple[int, int]]:
    """All first choices, then all second ones; tokens in order, or those with the largest gate first."""
    choices = np.argsort(-gates, axis=-1, kind="stable")[:, :k]
    tokens = np.argsort(-gates.max(-1), kind="stable") if batch_priority else range(len(gates))
    for rank in range(k):
        for token in tokens:
            yield token, choices[token, rank]


N, E = 40, 8


def ours(router: Router, x: Tensor, training: bool, seed: int) -> Tensor:  # -> combine weights (N, E)
    torch.manual_seed(seed)
    return router.double().train(training)(Tokens.items(x)).plan.weights


def identity(n: int) -> nn.Module:
    """The logits are the input."""
    return nn.Identity()


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_vmoe_s_order_softmax_before_top_k_with_noise(k, seed):
    x = torch.randn(N, E, dtype=F64, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    normal = torch.randn(N, E, dtype=F64)
    expected = torch.from_numpy(vmoe_combine(vmoe_gates(x.numpy(), normal.numpy(), 1.0), k, capacity=N))
    router = TopK(identity, E, k, renormalize=False, noise=1.0)
    assert torch.allclose(ours(router, x, True, seed), expected, atol=1e-12)
    still = torch.from_numpy(vmoe_combine(vmoe_gates(x.numpy(), 0 * normal.numpy(), 1.0), k, capacity=N))
    assert torch.allclose(ours(router, x, False, seed), still, atol=1e-12)
    loud = TopK(identity, E, k, renormalize=False, noise=float(E))  # N(0, 1), not N(0, 1 / E^2)
    assert not torch.allclose(ours(loud, x, True, seed), expected, atol=1e-3)
    if k > 1:
        after = TopK(identity, E, k, renormalize=True, noise=1.0)
        assert not torch.allclose(ours(after, x, True, seed), expected, atol=1e-3)


@pytest.mark.parametrize(("k", "factor"), [(1, 0.8), (2, 1.0), (2, 0.6)])
def test_vmoe_s_buffers_fill_first_choices_first(k, factor):
    """Capacity ceil(factor k N / E), before V-MoE rounds it up to a multiple of four for its hardware."""
    x = torch.randn(N, E, dtype=F64, generator=torch.Generator().manual_seed(3))
    gates, capacity = vmoe_gates(x.numpy(), 0.0, 0.0), int(np.ceil(factor * k * N / E))
    expected = torch.from_numpy(vmoe_combine(gates, k, capacity))
    assert (expected > 0).sum() < k * N
    router = TopK(identity, E, k, renormalize=False, capacity_factor=factor)
    assert torch.allclose(ours(router, x, False, 0), expected, atol=1e-12)
    by_weight = TopK(identity, E, k, renormalize=False, capacity_factor=factor, capacity_by="weight")
    assert not torch.allclose(ours(by_weight, x, False, 0), expected, atol=1e-3)


def test_vmoe_s_batch_priority_is_ours():
    """V-MoE ranks tokens by their largest gate and lets all first choices go before second ones."""
    x = torch.randn(N, E, dtype=F64, generator=torch.Generator().manual_seed(4))
    gates = vmoe_gates(x.numpy(), 0.0, 0.0)
    for k in (1, 2, 3):
        capacity = int(np.ceil(0.6 * k * N / E))
        router = TopK(identity, E, k, renormalize=False, capacity_factor=0.6, capacity_by="weight")
        expected = torch.from_numpy(vmoe_combine(gates, k, capacity, batch_priority=True))
        assert torch.allclose(ours(router, x, False, 0), expected, atol=1e-12)
        other = torch.from_numpy(vmoe_combine(gates, k, capacity, batch_priority=False))
        assert not torch.allclose(other, expected, atol=1e-3)


# -- transformers' losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4])
def test_transformers_counts_k_where_we_count_one(k):
    """Uniform belief: E sum_e f_e / E = sum_e f_e, which is k where f counts choices a token, and 1 for shares."""
    uniform = torch.zeros(64, E)
    assert pooled_balance((uniform,), E, k).item() == pytest.approx(k, abs=1e-6)
    assert SwitchBalance().value(chosen(uniform.double(), k), NONE).item() == pytest.approx(1, abs=1e-12)
    logits = torch.randn(64, E, generator=torch.Generator().manual_seed(k))
    theirs = pooled_balance((logits,), E, k).item()
    assert SwitchBalance().value(chosen(logits.double(), k), NONE).item() == pytest.approx(theirs / k, rel=1e-5)


def test_transformers_pools_layers_that_we_keep_apart():
    """Two layers that each collapse, on different experts of two: balanced when pooled, and 2 in each layer."""
    logits = torch.tensor([50.0, 0.0]).repeat(16, 1)
    assert pooled_balance((logits, logits.flip(1)), 2, 1).item() == pytest.approx(1, abs=1e-6)
    assert pooled_balance((logits,), 2, 1).item() == pytest.approx(2, abs=1e-6)
    assert SwitchBalance().value(chosen(logits.double(), 1), NONE).item() == pytest.approx(2, abs=1e-12)


def test_padding_that_transformers_masks_is_padding_that_never_reaches_us():
    logits = torch.randn(2, 16, E, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(16) < torch.tensor([[16], [9]])  # (B, T)
    theirs = pooled_balance((logits.flatten(0, 1),), E, 2, attention_mask=mask.long()).item()
    ours_of_kept = SwitchBalance().value(chosen(logits[mask].double(), 2), NONE).item()
    ours_of_all = SwitchBalance().value(chosen(logits.flatten(0, 1).double(), 2), NONE).item()
    assert ours_of_kept == pytest.approx(theirs / 2, rel=1e-5) != pytest.approx(ours_of_all, rel=1e-3)


def test_switch_balances_each_sequence_apart_and_squares_its_log_normaliser():
    logits = torch.randn(3, 16, E, dtype=F64, generator=torch.Generator().manual_seed(1))
    routing = chosen(logits.flatten(0, 1), 1, length=16)
    theirs = switch_loss(logits.softmax(-1), logits.argmax(-1)).item()
    assert SwitchBalance(scope="sequence").value(routing, NONE).item() == pytest.approx(theirs, rel=1e-6)
    assert SwitchBalance(scope="batch").value(routing, NONE).item() != pytest.approx(theirs, rel=1e-3)
    assert ZLoss().value(routing, NONE).item() == pytest.approx(router_z_loss_func(logits).item(), abs=1e-12)
