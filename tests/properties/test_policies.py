"""Decisions that are drawn (P18, P19): their chances, and the estimators that teach them, by full enumeration."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from moecli.losses.reinforce import Reinforce, others
from moecli.routers.noisy_top_k import Noise
from tests.properties.cases import DIM, F64, SEEDS, Given, given_gates, picked, tokens, with_x

TOKENS, EXPERTS = 3, 2


def one_each(seed: int, n: int = TOKENS):
    """Examples of one token."""
    return tokens([1] * n, seed)


def decided(router, t, decision: Tensor):
    """The routing, had this been drawn."""
    router._draw = lambda _: decision
    return router(t)


def expected_gradient(router, t, decisions: list[Tensor], loss, term: Reinforce) -> Tensor:
    """The mean over all decisions, by their chance, of the gradient that the term sends to the logits."""
    total = torch.zeros_like(t.x)
    for decision in decisions:
        routing = decided(router, t, decision)
        chance = routing.log_prob.sum().exp().detach()
        total += chance * torch.autograd.grad(term.value(routing, loss(decision)), t.x)[0]
    return total


def true_gradient(router, t, decisions: list[Tensor], loss) -> Tensor:
    """The gradient of the expected mean loss."""
    mean = sum(decided(router, t, d).log_prob.sum().exp() * loss(d).mean() for d in decisions)
    return torch.autograd.grad(mean, t.x)[0]


class OwnBaseline(Reinforce):
    """What it must not be: a baseline that the token's own loss entered."""

    def value(self, routing, example_loss):
        return ((example_loss - example_loss.mean()) * routing.log_prob).mean()


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_reinforce_of_one_drawn_expert_is_unbiased(seed):
    t = one_each(seed)
    t.x.requires_grad_()
    router = given_gates("sampled", EXPERTS).train()
    losses = torch.randn(TOKENS, EXPERTS, dtype=F64, generator=torch.Generator().manual_seed(seed))
    decisions = [torch.tensor(d)[:, None] for d in product(range(EXPERTS), repeat=TOKENS)]

    def loss(decision: Tensor) -> Tensor:
        return losses.gather(1, decision)[:, 0]

    truth = true_gradient(router, t, decisions, loss)
    assert torch.allclose(expected_gradient(router, t, decisions, loss, Reinforce()), truth, atol=1e-12)
    own = expected_gradient(router, t, decisions, loss, OwnBaseline())
    assert torch.allclose(own, truth * (1 - 1 / TOKENS), atol=1e-12)  # the control: biased by 1 / B


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_reinforce_of_coins_is_unbiased(seed):
    """Bernoulli experts: every subset of experts of every token, weighed by its chance."""
    t = one_each(seed, 2)
    t.x.requires_grad_()
    router = given_gates("bernoulli", EXPERTS).train()
    worth = torch.randn(2, EXPERTS, dtype=F64, generator=torch.Generator().manual_seed(seed))
    masks = [torch.tensor(bits).view(2, EXPERTS) for bits in product([False, True], repeat=2 * EXPERTS)]

    def loss(on: Tensor) -> Tensor:
        return ((worth * on).sum(-1) - 0.3).square()  # experts interact

    chances = sum(decided(router, t, mask).log_prob.sum().exp() for mask in masks)
    assert chances.item() == pytest.approx(1, abs=1e-12)
    truth = true_gradient(router, t, masks, loss)
    assert torch.allclose(expected_gradient(router, t, masks, loss, Reinforce()), truth, atol=1e-12)
    assert truth.abs().max() > 1e-6


def test_reinforce_where_tokens_share_an_example():
    """Tokens of one example share its loss, and each of their decisions has a part in its gradient."""
    t = tokens([2, 1], 0)
    t.x.requires_grad_()
    router = given_gates("sampled", EXPERTS).train()
    losses = torch.randn(EXPERTS, EXPERTS, EXPERTS, dtype=F64, generator=torch.Generator().manual_seed(1))
    decisions = [torch.tensor(d)[:, None] for d in product(range(EXPERTS), repeat=3)]

    def of_examples(decision: Tensor) -> Tensor:
        a, b, c = decision[:, 0]
        return torch.stack([losses[a, b, 0], losses[c, c, 1]])

    def of_tokens(decision: Tensor) -> Tensor:
        return of_examples(decision)[t.example]

    truth = true_gradient(router, t, decisions, of_examples)
    assert torch.allclose(expected_gradient(router, t, decisions, of_tokens, Reinforce()), truth, atol=1e-12)


def test_the_baseline_is_the_mean_of_the_other_examples():
    loss, example = torch.tensor([1.0, 1.0, 4.0, 10.0], dtype=F64), torch.tensor([5, 5, 2, 9])
    assert others(loss, example).tolist() == [7.0, 7.0, 5.5, 2.5]
    assert others(loss[:2], example[:2]).tolist() == [0.0, 0.0]  # no other
    x = torch.full((2,), 3.0, dtype=F64, requires_grad=True)
    routing = given_gates("sampled", EXPERTS)(tokens([1, 1], 0))
    assert not Reinforce().value(routing, x).requires_grad  # the loss itself is no path
    assert Reinforce().value(routing, x) == 0  # all fared alike, so no decision was better than the others
    assert Reinforce().value(routing, x * torch.tensor([1, 2])) != 0


def test_the_bias_of_straight_through_is_what_theory_says():
    """With losses c_e + v f_e in closed form: its mean gradient is sum_e p_e v f_e dp_e, and truth sum_e v f_e dp_e."""
    t = one_each(4, 1)
    x = t.x.requires_grad_()
    router = given_gates("straight_through", 3, sample=True).train()
    f = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    probs = x[0, :3].softmax(-1)
    mean = torch.zeros_like(x)
    for e in range(3):
        router._choose = lambda _, e=e: torch.tensor([[e]])
        y = (router(t).plan.weights @ f).sum()
        assert y.item() == pytest.approx(float(f[e]))  # forward: the expert's output, unweighted
        mean += probs[e].detach() * torch.autograd.grad(y, x)[0]
    truth = torch.autograd.grad((probs * f).sum(), x, retain_graph=True)[0]
    biased = torch.autograd.grad((probs.detach() * probs * f).sum(), x)[0]
    assert torch.allclose(mean, biased, atol=1e-12)
    assert (mean - truth).abs().max() > 0.3 * truth.abs().max()
    # at a uniform belief the bias is a factor 1 / E
    uniform = torch.zeros(3, dtype=F64, requires_grad=True)
    whole = torch.autograd.grad((uniform.softmax(-1) * f).sum(), uniform)[0]
    part = torch.autograd.grad((uniform.softmax(-1).detach() * uniform.softmax(-1) * f).sum(), uniform)[0]
    assert torch.allclose(part, whole / 3, atol=1e-12)


# -- chances ---------------------------------------------------------------------------------------------

DRAWS = 8_000


def alike(seed: int):
    """So many copies of one token."""
    return picked(tokens([1], seed), torch.zeros(DRAWS, dtype=torch.int64))


def near(share: Tensor, chance: Tensor) -> bool:
    sigma = (chance * (1 - chance) / DRAWS).sqrt()
    return bool(((share - chance).abs() <= 4 * sigma + 1e-12).all())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_come_as_often_as_believed(seed):
    t = alike(seed)
    torch.manual_seed(seed)
    logits = t.x[0, :4]
    for name, chance in (("sampled", logits.softmax(-1)), ("bernoulli", logits.sigmoid())):
        routing = given_gates(name, 4)(t)
        assert near(routing.plan.demand.mean(0), chance), name
        assert torch.allclose(routing.chance[0], chance, atol=1e-12)
    sampled = given_gates("straight_through", 4, sample=True)(t)
    assert near(sampled.plan.demand.mean(0), logits.softmax(-1))
    assert given_gates("straight_through", 4)(t).plan.expert.unique().numel() == 1


@pytest.mark.parametrize("threshold", [0.5, 0.2, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_random_second_is_kept_in_proportion(threshold, seed):
    """min(1, g_2 / threshold), and what is dropped takes its weight along; evaluation keeps it always."""
    t = alike(seed)
    t.x.div_(3)  # beliefs near each other, so that both sides of the threshold occur
    torch.manual_seed(seed)
    router = given_gates("random_second", 4, threshold=threshold)
    plan = router(t).plan
    g2 = t.x[0, :4].topk(2).values.softmax(-1)[1]
    second = plan.choice == 1
    assert near(second.sum() / DRAWS, (g2 / threshold).clamp_max(1.0))
    assert torch.allclose(plan.log_weight[second].exp(), g2) and torch.allclose(plan.log_weight[~second].exp(), 1 - g2)
    assert int((router.eval()(t).plan.choice == 1).sum()) == DRAWS


def test_a_sampled_second_is_drawn_from_the_belief_without_the_first():
    t = alike(5)
    torch.manual_seed(0)
    router = given_gates("random_second", 4, policy="sampled")
    plan = router(t).plan
    probs = t.x[0, :4].softmax(-1)
    first = int(probs.argmax())
    chance = torch.where(torch.arange(4) == first, 0.0, probs / (1 - probs[first]))
    found = F.one_hot(plan.expert[plan.choice == 1], 4).double().mean(0)
    assert near(found, chance) and (plan.expert[plan.choice == 0] == first).all()


@pytest.mark.parametrize("jitter", [0.05, 0.3])
def test_jitter_scales_each_input_evenly_within_its_bounds(jitter):
    t = alike(6)
    torch.manual_seed(0)
    scale = given_gates("top_k", 4, jitter=jitter)(t).logits / t.x[:, :4]
    assert (scale >= 1 - jitter - 1e-12).all() and (scale <= 1 + jitter + 1e-12).all()
    assert abs(scale.mean() - 1) < 4 * jitter / (3 * DRAWS * 4) ** 0.5
    assert scale.std() == pytest.approx(jitter / 3**0.5, rel=0.05)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_noise_of_v_moe_has_a_standard_deviation_of_noise_over_experts(noise):
    t = alike(7)
    torch.manual_seed(0)
    spread = (given_gates("top_k", 4, noise=noise)(t).logits - t.x[:, :4]).std()
    assert spread == pytest.approx(noise / 4, rel=0.05)


# -- the chance of being chosen under fresh noise (Shazeer et al., 2017, eqs. 8-9) --------------------------


def chance_of(clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> Tensor:
    """In plain loops: the k-th largest of the others is the bar."""
    out = torch.ones_like(clean)
    n, e = clean.shape
    for i, j in product(range(n), range(e)):
        if k < e:
            bar = sorted((float(noisy[i, m]) for m in range(e) if m != j), reverse=True)[k - 1]
            out[i, j] = 0.5 * (1 + torch.erf((clean[i, j] - bar) / std[i, j] / 2**0.5))
    return out


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_chance_is_that_of_passing_the_kth_best_of_the_others(seed):
    t = tokens([5], seed)
    for k in (1, 2, 3, 4):
        choose = Noise(lambda width: Given(0 if width == 4 else 4, 4), 4, k)
        clean, std = t.x[:, :4], F.softplus(t.x[:, :4]) + 1e-2
        torch.manual_seed(seed)
        found = choose(t.x, training=True)
        assert torch.allclose(found.chance, chance_of(clean, found.noisy, std, k), atol=1e-12)
        assert ((found.chance >= 0) & (found.chance <= 1)).all()


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_chance_in_a_hierarchy_is_the_product_of_both_levels(seed):
    t = tokens([4], seed)
    router = given_gates("hierarchical", 6, groups=3, k_groups=2, k=1)
    torch.manual_seed(seed)
    routing = router(t)
    torch.manual_seed(seed)
    x = t.x
    std_outer, std_inner = F.softplus(x[:, 3:6]) + 1e-2, F.softplus(x[:, 12:18]) + 1e-2
    outer = x[:, :3] + std_outer * torch.randn(4, 3, dtype=F64)
    inner = x[:, 6:12] + std_inner * torch.randn(4, 6, dtype=F64)
    of_group = chance_of(x[:, :3], outer, std_outer, 2)
    within = [chance_of(*(z[:, g : g + 2] for z in (x[:, 6:12], inner, std_inner)), 1) for g in (0, 2, 4)]
    expected = torch.cat([of_group[:, g, None] * within[g] for g in range(3)], -1)
    assert torch.allclose(routing.chance, expected, atol=1e-12)


def test_chance_in_a_hierarchy_against_draws():
    """P19: fresh noise on one group's and one expert's logit, 8,000 times, within 4 sigma."""
    t = tokens([1], 11, spread=1.0)
    router = given_gates("hierarchical", 6, groups=3, k_groups=2, k=1)
    torch.manual_seed(1)
    chance = router(t).chance[0]
    torch.manual_seed(1)
    x = t.x[0]
    std_outer, std_inner = F.softplus(x[3:6]) + 1e-2, F.softplus(x[12:18]) + 1e-2
    outer, inner = x[:3] + std_outer * torch.randn(1, 3, dtype=F64)[0], x[6:12] + std_inner * torch.randn(6, dtype=F64)
    hits = torch.zeros(6, dtype=F64)
    for e in range(6):
        group, own, other = e // 2, e, e ^ 1
        fresh = outer.repeat(DRAWS, 1)
        fresh[:, group] = x[group] + std_outer[group] * torch.randn(DRAWS, dtype=F64)
        reached = (fresh.topk(2).indices == group).any(-1)
        score = x[6 + own] + std_inner[own] * torch.randn(DRAWS, dtype=F64)
        hits[e] = (reached & (score > inner[other])).double().mean()
    assert near(hits, chance)


def test_an_expert_without_a_chance_is_never_on(monkeypatch):
    """Not even where the draw is zero, which ``torch.rand`` may return."""
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    believed = torch.zeros(4, DIM, dtype=F64)
    believed[:, 1] = -2_000.0
    t = with_x(one_each(0, 4), believed)
    assert given_gates("bernoulli", 3).train()(t).plan.expert.unique().tolist() == [0, 2]
