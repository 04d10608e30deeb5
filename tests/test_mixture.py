"""Gates, experts, families and the layer: theorems and identities, in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from moecli.analysis.matrix import gate_refusal
from moecli.compatibility import SMALL, build_small
from moecli.config import build, option_node, registry
from moecli.experts.distinct import Distinct
from moecli.experts.feed_forward import FeedForward
from moecli.experts.linear import Linear
from moecli.families.categorical import Categorical
from moecli.families.gaussian import Gaussian
from moecli.gates.linear import Linear as LinearGate
from moecli.gates.tree import Tree
from moecli.kernels.activations import ACTIVATIONS
from moecli.mixture import Alone, MixtureDensity, MixtureOfExperts, Shared
from moecli.plan import Dense, Sparse
from moecli.routing import Tokens
from moecli.training.em import em_step

DIM, EXPERTS = SMALL["dim"], SMALL["num_experts"]
F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def router(name: str, gate: str = "linear", **options):
    return build_small({**option_node("router", name), **options}, option_node("gate", gate)).double()


def experts(name: str, out: int = DIM, num: int = EXPERTS, **options):
    node = {**option_node("expert", name), **options}
    return build(node, dim=DIM, out=out, num_experts=num).double()


def tokens(n: int = 7, **kw) -> Tokens:
    ids = torch.randint(SMALL["vocab_size"], (1, n))
    known = {"label": ids % 3, "row": torch.zeros(1, dtype=torch.int64)}
    return Tokens.sequences(torch.randn(1, n, DIM, dtype=F64, **kw), ids, known)


def with_x(t: Tokens, x) -> Tokens:
    return replace(t, x=x)


# -- gradients ---------------------------------------------------------------------------------------

WALKED = [name for name in registry()["router"] if name != "straight_through"]  # its gradient is another function's
GATELESS = ("hash", "oracle", "replay")
OTHERS = ("tdnn", "sklearn", "identity", "zero")  # reads frames, has no gradient, has no parameters
VECTOR_EXPERTS = [expert for expert in registry()["expert"] if expert not in OTHERS]
VECTOR_GATES = [gate for gate in registry()["gate"] if gate != "tdnn"]  # which reads frames
COMBINATIONS = [
    (name, gate)
    for name in WALKED
    for gate in (["linear"] if name in GATELESS else [g for g in VECTOR_GATES if gate_refusal(name, g) is None])
]


def test_the_gradient_walk_finds_everything():
    # six gates, three under the routers that read each logit by itself; constant and uniform under dense alone
    assert len(COMBINATIONS) >= 6 * (len(WALKED) - len(GATELESS) - 3) + 3 * 3 + len(GATELESS) + 2
    assert len(VECTOR_EXPERTS) >= 5 and len(registry()["expert"]) == len(VECTOR_EXPERTS) + len(OTHERS)


@pytest.mark.parametrize(("name", "gate"), COMBINATIONS)
def test_gradcheck_of_routers(name, gate):
    """Inputs and all parameters; logits are far apart, so that no choice flips within eps."""
    built, t = router(name, gate, **({"slots": 1} if name == "soft_slots" else {})).eval(), tokens(4)
    x = (4 * t.x).requires_grad_()
    work = experts("linear", out=2)

    def layer(x, *_):
        y = work.blend(built(with_x(t, x)).plan, x)
        return y

    parameters = tuple(built.parameters())
    assert torch.autograd.gradcheck(layer, (x, *parameters), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", VECTOR_EXPERTS)
@pytest.mark.parametrize("ragged", [True, False])
def test_gradcheck_of_experts(name, ragged):
    work = experts(name, out=3, **({"hidden": 5, "activation": "gelu"} if name == "feed_forward" else {}))
    logits = torch.randn(6, EXPERTS, dtype=F64)
    top, expert = logits.topk(2)
    plan = Sparse.from_choices(expert, top.log_softmax(-1), EXPERTS) if ragged else Dense(logits.log_softmax(-1))
    x = torch.randn(6, DIM, dtype=F64, requires_grad=True)
    parameters = tuple(work.parameters())[:4]
    assert torch.autograd.gradcheck(lambda x, *_: work.blend(plan, x), (x, *parameters), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "clamped_swiglu"])
@pytest.mark.parametrize("output", [True, False])
def test_stacked_experts_equal_distinct_ones(activation, output):
    """The stacked kernels against one module per expert: outputs and every gradient."""
    if ACTIVATIONS[activation].gated and not output:
        pytest.skip("refused: a gated product is made to be projected")
    stacked = FeedForward(DIM, 3, EXPERTS, hidden=5, activation=activation, output=output).double()
    single = Distinct(
        lambda n: FeedForward(DIM, 3, n, hidden=5, activation=activation, output=output), EXPERTS
    ).double()
    with torch.no_grad():
        for name, parameter in stacked.named_parameters():
            for e, member in enumerate(single.members):
                dict(member.named_parameters())[name].copy_(parameter[e : e + 1])
    plan, x = router("top_k")(tokens(9)).plan, torch.randn(9, DIM, dtype=F64)
    plan = Sparse(plan.token, plan.expert, plan.log_weight.detach(), plan.choice, 9, EXPERTS)
    direction = torch.randn(9, 3, dtype=F64)
    a, b = stacked.blend(plan, x), single.blend(plan, x)
    assert torch.allclose(a, b, atol=1e-12)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    for name, parameter in stacked.named_parameters():
        joined = torch.cat([dict(m.named_parameters())[name].grad for m in single.members])
        assert torch.allclose(parameter.grad, joined, atol=1e-12), name
    with torch.no_grad():
        single.members[0].up.weight += 0.1
    assert not torch.allclose(stacked.blend(plan, x), single.blend(plan, x), atol=1e-6)  # the control


def test_an_expert_without_tokens_gets_zero_gradient_not_none_or_nan():
    work = experts("feed_forward")
    plan = Sparse.from_choices(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 1, dtype=F64), EXPERTS)
    work.blend(plan, torch.randn(5, DIM, dtype=F64)).sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad[1:] == 0).all() for p in work.parameters())
    assert all((p.grad[0] != 0).any() for p in work.parameters())


# -- identities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "top_k", "noisy_top_k", "hash"])
def test_one_expert_equals_the_dense_network(name):
    """For density routers: outputs and all gradients of a plain two-layer network with the same weights."""
    small = {**SMALL, "num_experts": 1}
    node = {**option_node("router", name), **({"k": 1} if "k" in option_node("router", name) else {})}
    built = build(
        node, gate=lambda n: build(option_node("gate", "linear"), **{**small, "num_experts": n}), **small
    ).double()
    layer = MixtureOfExperts(built, experts("feed_forward", num=1, hidden=6))
    up, down = nn.Linear(DIM, 6).double(), nn.Linear(6, DIM).double()
    with torch.no_grad():
        for own, theirs in ((up, layer.experts.up), (down, layer.experts.down)):
            own.weight.copy_(theirs.weight[0].T)
            own.bias.copy_(theirs.bias[0])
    t = tokens(6)
    y, expected = layer(t)[0], down(up(t.x).relu())
    assert torch.allclose(y, expected, atol=1e-12)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert torch.allclose(layer.experts.up.weight.grad[0].T, up.weight.grad, atol=1e-12)
    assert torch.allclose(layer.experts.down.bias.grad[0], down.bias.grad, atol=1e-12)
    with torch.no_grad():
        up.bias += 0.1
    assert not torch.allclose(y, down(up(t.x).relu()), atol=1e-4)  # the control


@pytest.mark.parametrize("name", ["top_k", "noisy_top_k"])
def test_k_of_all_experts_equals_the_dense_mixture(name):
    """Outputs and gradients, for routers whose weights are a density."""
    sparse, dense = router(name, k=EXPERTS).eval(), router("dense")
    dense.gate.load_state_dict(sparse.gate.state_dict())
    work, t = experts("feed_forward", hidden=5), tokens(8)
    grads = []
    for built in (sparse, dense):
        y = work.blend(built(t).plan, t.x)
        grads.append(torch.autograd.grad((y * y).sum(), [*built.gate.parameters(), *work.parameters()]))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*grads, strict=True))
    fewer = work.blend(router(name, k=2).eval()(t).plan, t.x)
    assert not torch.allclose(fewer, work.blend(dense(t).plan, t.x), atol=1e-4)  # the control


def test_relabelling_experts_changes_nothing():
    built, work, t = router("top_k"), experts("linear"), tokens(9)
    order = torch.randperm(EXPERTS)
    other, moved = copy.deepcopy(built), copy.deepcopy(work)
    with torch.no_grad():
        for layer, source in ((other.gate.linear, built.gate.linear), (moved, work)):
            for parameter, old in zip(layer.parameters(), source.parameters(), strict=True):
                parameter.copy_(old[order])
    assert torch.allclose(work.blend(built(t).plan, t.x), moved.blend(other(t).plan, t.x), atol=1e-12)
    assert not torch.allclose(work.blend(built(t).plan, t.x), moved.blend(built(t).plan, t.x), atol=1e-4)


def test_shared_experts_add_to_the_routed_ones():
    t, work, shared = tokens(5), experts("linear"), experts("linear", num=2)
    layer = MixtureOfExperts(router("top_k"), work, Shared(shared, DIM))
    expected = work.blend(layer.router(t).plan, t.x) + (
        torch.einsum("nd,edy->ny", t.x, shared.weight) + shared.bias.sum(0)
    )
    assert torch.allclose(layer(t)[0], expected, atol=1e-12)


@pytest.mark.parametrize("counts", [None, [1, 3], [3, 1]])
def test_kinds_side_by_side_blend_as_their_rows_do(counts):
    work = experts("several", counts=counts)
    for name in ("dense", "top_k", "soft_slots"):
        plan, x = router(name)(tokens(9)).plan, torch.randn(9, DIM, dtype=F64)
        assert torch.allclose(work.blend(plan, x), plan.combine(work.rows(plan, x)), atol=1e-12), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", registry()["router"])
def test_the_layer_answers_in_the_dtype_of_its_input(name, dtype):
    layer = MixtureOfExperts(router(name), experts("feed_forward")).to(dtype)
    t = tokens(6)
    y, routing = layer(with_x(t, t.x.to(dtype)))
    assert y.dtype == dtype and y.isfinite().all()
    assert routing.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", VECTOR_EXPERTS)
def test_flops_and_parameters_are_what_is_counted(name):
    from torch.utils.flop_counter import FlopCounterMode

    work, n = experts(name), 12
    plan = Dense(torch.zeros(n, EXPERTS, dtype=F64))
    with FlopCounterMode(display=False) as counter:
        work(plan.dispatch(torch.randn(n, DIM, dtype=F64)), plan.groups)
    assert counter.get_total_flops() == n * EXPERTS * work.flops()


@pytest.mark.parametrize("name", VECTOR_EXPERTS)
@pytest.mark.parametrize("flops", [500, 5_000, 50_000])
def test_a_twin_costs_what_it_stands_in_for(name, flops):
    twin = experts(name).twin(flops)
    assert twin.num_experts == 1
    assert abs(twin.flops() - flops) <= max(2 * 3 * DIM, 0.05 * flops)  # within one hidden unit


# -- the density -------------------------------------------------------------------------------------------


def density(name: str = "dense", gate: str = "linear", y: int = 2, **options) -> MixtureDensity:
    return MixtureDensity(router(name, gate, **options), experts("linear", out=y), Gaussian(y, EXPERTS).double())


@pytest.mark.parametrize("name", ["dense", "top_k"])
def test_gradient_of_the_nll_is_gate_minus_responsibility(name):
    """d NLL / d logits = g - r: the sentence that joins 1991 to today."""
    layer, t, y = density(name), tokens(6), torch.randn(6, 2, dtype=F64)
    mixture = layer(t)
    nll = -mixture.log_prob(y).sum()
    (grad,) = torch.autograd.grad(nll, mixture.routing.logits, retain_graph=True)
    expected = mixture.routing.plan.weights - mixture.responsibilities(y)
    assert torch.allclose(grad, expected, atol=1e-12)
    assert not torch.allclose(grad, mixture.routing.probs, atol=1e-3)  # the control


def test_analytic_gradient_of_the_means():
    """d NLL / d mu_e = -r_e (y - mu_e) / s^2 (Jacobs et al., 1991)."""
    layer, t, y = density(), tokens(6), torch.randn(6, 2, dtype=F64)
    mixture = layer(t)
    (grad,) = torch.autograd.grad(-mixture.log_prob(y).sum(), mixture.row_mean)
    mu = mixture.row_mean.view(EXPERTS, 6, 2)
    r = mixture.responsibilities(y).T[..., None]
    assert torch.allclose(grad.view_as(mu), -r * (y - mu) / layer.family.scale[:, None] ** 2, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000), st.sampled_from(["dense", "top_k"]))
def test_the_density_is_the_sum_over_experts(seed, name):
    torch.manual_seed(seed)
    layer, t, y = density(name, y=1), tokens(5), torch.randn(5, 1, dtype=F64)
    mixture = layer(t)
    weights = mixture.routing.plan.weights
    means = torch.einsum("nd,edy->ney", t.x, layer.experts.weight)[..., 0] + layer.experts.bias[:, 0]
    p = Normal(means, layer.family.scale[:, 0]).log_prob(y).exp()
    assert torch.allclose(mixture.log_prob(y), (weights * p).sum(-1).log())
    assert torch.allclose(mixture.mean[:, 0], (weights * means).sum(-1))
    second = (weights * (layer.family.scale[:, 0] ** 2 + means**2)).sum(-1)
    assert torch.allclose(mixture.variance[:, 0], second - mixture.mean[:, 0] ** 2)


def test_the_density_integrates_to_one():
    layer, t = density(y=1), tokens(3)
    grid = torch.linspace(-60, 60, 20_001, dtype=F64)
    mixture = layer(t)
    total = sum(mixture.log_prob(v.expand(3, 1)).exp() for v in grid[::4]) * float(grid[4] - grid[0])
    assert torch.allclose(total, torch.ones(3, dtype=F64), atol=1e-6)


def test_responsibilities_of_a_token_without_edges_are_zero_and_of_far_points_finite():
    plan = Sparse.from_choices(torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=F64), 3)
    layer, t = density(), tokens(2)
    mixture = layer(t)
    kept = plan.keep(torch.tensor([0]))
    lonely = type(mixture)(
        type(mixture.routing)(kept, mixture.routing.probs), Normal(torch.zeros(1, dtype=F64), 1.0),
        torch.zeros(1, 1, dtype=F64), torch.zeros(2),
    )  # fmt: skip
    resp = lonely.responsibilities(torch.zeros(2, dtype=F64))
    assert resp.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    far = mixture.responsibilities(torch.full((2, 2), 1e4, dtype=F64))
    assert torch.allclose(far.sum(-1), torch.ones(2, dtype=F64)) and far.isfinite().all()


def test_a_categorical_mixture_is_one_of_softmaxes():
    layer = MixtureDensity(router("dense"), experts("linear", out=3), Categorical(3, EXPERTS))
    t, y = tokens(5), torch.tensor([0, 1, 2, 1, 0])
    mixture = layer(t)
    assert torch.allclose(mixture.mean.sum(-1), torch.ones(5, dtype=F64))
    assert torch.allclose(mixture.log_prob(y), mixture.mean.gather(1, y[:, None])[:, 0].log())


def test_the_twin_of_a_density_is_a_density_of_one_expert():
    for family in (Gaussian(2, EXPERTS).double(), Categorical(2, EXPERTS)):
        twin = MixtureDensity(router("dense"), experts("linear", out=2), family).twin(400.0).double()
        assert isinstance(twin.router, Alone) and twin.experts.num_experts == 1
        assert twin(tokens(4)).mean.shape == (4, 2)


# -- expectation-maximisation ------------------------------------------------------------------------------


def planted(n: int = 300):
    x = torch.randn(n, DIM, dtype=F64)
    side = (x[:, 0] > 0).double()[:, None]
    y = side * x[:, 1:3] - (1 - side) * x[:, 1:3] + 0.1 * torch.randn(n, 2, dtype=F64)
    return x, y


@pytest.mark.parametrize("gate", ["linear", "mlp", "cosine", "gaussian", "tree"])
@pytest.mark.parametrize("seed", [0, 1])
def test_em_never_falls(gate, seed):
    torch.manual_seed(seed)
    x, y = planted()
    layer = density(gate=gate)
    values = [em_step(layer, x, y).joint_nll for _ in range(15)]
    falls = [b - a for a, b in pairwise(values)]
    assert max(falls) <= 1e-9 * (1 + abs(values[0])), falls
    assert values[-1] < values[0] - 0.1


def test_em_never_falls_for_a_tree_of_gaussians():
    """Its nodes model x, so their logits are added un-normalised; normalised, EM fell by 1e-5 a step."""
    x, y = planted()
    node = {**option_node("gate", "tree"), "node": option_node("gate", "gaussian")}
    layer = MixtureDensity(
        build_small(option_node("router", "dense"), node).double(), experts("linear", 2), Gaussian(2, EXPERTS).double()
    )
    values = [em_step(layer, x, y).joint_nll for _ in range(25)]
    falls = [b - a for a, b in pairwise(values)]
    assert max(falls) <= 1e-9 * (1 + abs(values[0])), falls


def test_one_component_under_em_is_least_squares():
    x, y = planted()
    layer = MixtureDensity(Alone(), Linear(DIM, 2, 1).double(), Gaussian(2, 1).double())
    layer.router.gate = LinearGate(DIM, 1).double()
    em_step(layer, x, y)
    one = torch.cat([x, torch.ones_like(x[:, :1])], -1)
    beta = torch.linalg.lstsq(one, y).solution
    assert torch.allclose(layer.experts.weight[0], beta[:-1], atol=1e-7)
    assert torch.allclose(layer.family.scale[0] ** 2, (y - one @ beta).square().mean(0), atol=1e-9)


def test_a_tree_of_depth_one_is_flat_and_leaf_priors_multiply():
    flat = LinearGate(DIM, EXPERTS).double()
    shallow = Tree(EXPERTS, lambda n: copy.deepcopy(flat) if n == EXPERTS else None, [EXPERTS])
    x = torch.randn(6, DIM, dtype=F64)
    assert torch.allclose(shallow(x).softmax(-1), flat(x).softmax(-1), atol=1e-12)
    deep = Tree(6, lambda n: LinearGate(DIM, n).double(), [2, 3])
    top = deep.root(x).softmax(-1)
    leaves = torch.cat([top[:, i : i + 1] * deep.branches[i].root(x).softmax(-1) for i in range(2)], -1)
    assert torch.allclose(deep(x).exp(), leaves, atol=1e-12)
    assert torch.allclose(deep(x).exp().sum(-1), torch.ones(6, dtype=F64))
    one = Tree(3, lambda n: LinearGate(DIM, n).double(), [1, 3])
    assert torch.allclose(one(x).softmax(-1), one.branches[0].root(x).softmax(-1), atol=1e-12)


def test_a_gaussian_gate_models_its_input():
    gate = build(option_node("gate", "gaussian"), dim=1, num_experts=3).double()
    grid = torch.linspace(-40, 40, 80_001, dtype=F64)[:, None]
    assert math.isclose(float(gate.log_marginal(grid).detach().exp().sum() * 1e-3), 1.0, rel_tol=1e-6)
    assert (LinearGate(1, 3).double().log_marginal(grid) == 0).all()


def test_an_empty_component_keeps_its_place():
    x, y = planted(50)
    gate = build(option_node("gate", "gaussian"), dim=DIM, num_experts=2).double()
    resp = torch.stack([torch.ones(50), torch.zeros(50)], -1).double()
    mean = gate.density.mean[1].clone()
    gate.fit(x, resp)
    assert torch.equal(gate.density.mean[1], mean) and gate(x).isfinite().all()
    family = Gaussian(2, 2).double()
    family.fit(torch.zeros(50, 2, 2, dtype=F64), y, resp)
    assert family.scale.isfinite().all()


def test_the_spread_of_a_tight_mixture_survives_float32():
    """All experts at 3.1 with scale 1e-3: the squares of 3.1 cancel only where the mean is taken off first."""
    layer = MixtureDensity(router("dense").float(), experts("linear", out=1).float(), Gaussian(1, EXPERTS))
    with torch.no_grad():
        layer.experts.weight.zero_()
        layer.experts.bias.fill_(3.1)
        layer.family.log_scale.fill_(math.log(1e-3))
    t = tokens(5)
    spread = layer(with_x(t, t.x.float())).variance.sqrt()
    assert torch.allclose(spread, torch.full((5, 1), 1e-3), rtol=1e-3)
