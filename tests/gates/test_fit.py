"""Every gate's M-step: it never falls, and where it is closed it is the maximum that theory names."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB
from torch import Tensor

from moecli.analysis.matrix import gate_refusal
from moecli.compatibility import router_part, small_router
from moecli.config import build, option_node, registry
from moecli.experts.linear import Linear as ExpertLinear
from moecli.families.gaussian import Gaussian
from moecli.gates.columnwise import gamma_shape
from moecli.gates.gate import Gate
from moecli.gates.generative import Generative
from moecli.gates.linear import Linear
from moecli.gates.tree import Tree
from moecli.mixture import MixtureDensity, MixtureOfExperts, together
from moecli.routers.dense import Dense
from moecli.routing import Claims, Tokens

DIM, EXPERTS, ROWS = 3, 4, 200
F64 = torch.float64
OPTIONS = {
    "gaussian": ({}, {"covariance": "full"}),
    "exponential": ({}, {"families": "bernoulli"}, {"families": ["gaussian", "poisson", "gamma"]}),
    "linear": ({}, {"bias": False}),
    "tree": ({}, {"branching": [4]}, {"node": option_node("gate", "gaussian")}),
}
CASES = [(gate, options) for gate in registry()["gate"] for options in OPTIONS.get(gate, ({},))]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def made(gate: str, dim: int = DIM, num_experts: int = EXPERTS, **options) -> Gate:
    return build({**option_node("gate", gate), **options}, dim=dim, num_experts=num_experts).double()


def data(gate: str, options: dict) -> Tensor:
    """Rows that every column's family can have."""
    x = 2 * torch.randn(ROWS, DIM, dtype=F64) + 1
    if options.get("families") == "bernoulli":
        return (x > 0).double()
    if isinstance(options.get("families"), list):
        return torch.stack([x[:, 0], x[:, 1].abs().round(), x[:, 2].abs() + 0.1], -1)
    return torch.randn(ROWS, 9, DIM, dtype=F64) if gate == "tdnn" else x


def responsibilities(hard: bool = False) -> Tensor:
    resp = torch.distributions.Dirichlet(torch.full((EXPERTS,), 0.3, dtype=F64)).sample((ROWS,))
    return torch.nn.functional.one_hot(resp.argmax(-1), EXPERTS).double() if hard else resp


def raised(gate: Gate, x: Tensor, resp: Tensor) -> float:
    """What the M-step is to raise: log p(e, x) where the gate models x, else log p(e | x)."""
    with torch.no_grad():
        return float((resp * gate.log_joint(x)).sum())


# -- never falls ---------------------------------------------------------------------------------------


def test_the_walk_finds_every_gate():
    assert {gate for gate, _ in CASES} == set(registry()["gate"])
    assert len(CASES) == 9 + 1 + 2 + 1 + 2


@pytest.mark.parametrize(("gate", "options"), CASES)
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("hard", [False, True])
def test_a_fit_never_falls_whatever_the_start(gate, options, spread, hard):
    built, x, resp = made(gate, **options), data(gate, options), responsibilities(hard)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(spread) if spread > 1 else parameter.copy_(torch.randn_like(parameter))
    values = [raised(built, x, resp)]
    for _ in range(3):
        built.fit(x, resp)
        values.append(raised(built, x, resp))
    falls = [before - after for before, after in pairwise(values)]
    assert max(falls) <= 1e-10 * (1 + abs(values[-1])), values
    assert gate == "uniform" or values[-1] > values[0]  # and it moves: nothing starts where it ends


@pytest.mark.parametrize(("gate", "options"), CASES)
def test_a_fit_in_float32_reaches_what_float64_does(gate, options):
    wide, x, resp = made(gate, **options), data(gate, options), responsibilities()
    narrow = copy.deepcopy(wide).float()
    wide.fit(x, resp)
    narrow.fit(x.float(), resp.float())
    low, high = raised(narrow.double(), x, resp), raised(wide, x, resp)
    assert low >= high - (1e-4 if gate not in ("mlp", "cosine", "tdnn") else 5e-2) * abs(high)


@pytest.mark.parametrize(("gate", "options"), CASES)
def test_no_rows_an_empty_expert_and_one_row_are_survived(gate, options):
    built, x, resp = made(gate, **options), data(gate, options), responsibilities()
    built.fit(x, torch.zeros_like(resp))
    resp[:, 1] = 0
    built.fit(x, resp)
    built.fit(x[:1], resp[:1])
    built.fit(torch.cat([x[:1]] * 9), resp[:9])
    assert built.eval()(x).isfinite().all()


# -- linear: the multinomial logit -----------------------------------------------------------------------


def labelled(rows: int = 400, dim: int = 5, classes: int = 4, offset: float = 0.0):
    x = torch.randn(rows, dim, dtype=F64) * torch.tensor([1.0, 1e-3, 1e3, 1.0, 1.0], dtype=F64) + offset
    scale = x.std(0)
    z = torch.distributions.Categorical(logits=(x - offset) / scale @ torch.randn(dim, classes, dtype=F64)).sample()
    return x, torch.nn.functional.one_hot(z, classes).double(), z


def test_on_hard_labels_the_linear_fit_is_logistic_regression():
    x, resp, z = labelled(offset=2.0)
    units = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=float("inf"), tol=1e-10, max_iter=10_000).fit(units, z)
    gate = made("linear", 5)
    far = (gate(x).softmax(-1) - torch.from_numpy(reference.predict_proba(units))).abs().max()
    gate.fit(x, resp)
    near = (gate(x).softmax(-1) - torch.from_numpy(reference.predict_proba(units))).abs().max()
    assert near < 1e-5 < 1e-2 < far
    weight = (gate.linear.weight * x.std(0)).detach()
    theirs = torch.from_numpy(reference.coef_)
    assert torch.allclose(weight - weight.mean(0), theirs - theirs.mean(0), atol=1e-5)


def test_at_the_maximum_gate_less_responsibility_is_orthogonal_to_x():
    x, _, _ = labelled()
    resp = torch.rand(400, 4, dtype=F64)  # soft, and rows that sum to anything, as below a tree's root
    gate = made("linear", 5)

    def slope() -> float:
        error = resp - resp.sum(-1, keepdim=True) * gate(x).detach().softmax(-1)
        return float((error.T @ (x / x.std(0))).abs().max() / resp.sum())

    before = slope()
    gate.fit(x, resp)
    assert slope() < 1e-8 < 1e-3 < before


def test_newton_and_lbfgs_agree():
    x, resp, _ = labelled()
    x = x / x.std(0)
    newton, lbfgs = made("linear", 5), made("linear", 5)
    newton.fit(x, resp)
    Gate.fit(lbfgs, x, resp, steps=300)
    assert abs(raised(newton, x, resp) - raised(lbfgs, x, resp)) < 1e-6
    assert torch.allclose(newton(x).softmax(-1), lbfgs(x).softmax(-1), atol=1e-4)


@pytest.mark.parametrize("dim", [2, 300])  # Newton; L-BFGS, which 301 x 3 coefficients take
def test_separable_classes_leave_the_weights_finite(dim):
    x = torch.randn(300, dim, dtype=F64)
    quadrant = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    x[:, :2] += x[:, :2].sign()
    gate = made("linear", dim)
    sizes = []
    for _ in range(30):
        gate.fit(x, torch.nn.functional.one_hot(quadrant, 4).double())
        sizes.append(float(gate(x).detach().abs().max()))
    assert (gate(x).argmax(-1) == quadrant).all()
    assert sizes[-1] < 200 and sizes[-1] < 1.01 * sizes[9], sizes


def test_constant_and_repeated_columns_change_nothing():
    x, resp, _ = labelled()
    wider = torch.cat([x, torch.full((400, 1), 7.0, dtype=F64), x[:, :1]], -1)
    plain, wide = made("linear", 5), made("linear", 7)
    plain.fit(x, resp)
    wide.fit(wider, resp)
    assert torch.allclose(plain(x).softmax(-1), wide(wider).softmax(-1), atol=1e-6)


def test_relabelling_the_experts_relabels_the_linear_fit():
    x, resp, _ = labelled()
    order = torch.tensor([2, 0, 3, 1])
    one, other = made("linear", 5), made("linear", 5)
    one.fit(x, resp)
    other.fit(x, resp[:, order])
    assert torch.allclose(one(x)[:, order], other(x), atol=1e-5)
    assert not torch.allclose(one(x), other(x), atol=1e-2)


# -- closed forms ------------------------------------------------------------------------------------------


def test_a_constant_gate_takes_the_mean_responsibility():
    x, resp = data("constant", {}), responsibilities()
    gate = made("constant")
    assert not torch.allclose(gate(x).softmax(-1)[0], resp.mean(0), atol=1e-2)
    gate.fit(x, resp)
    assert torch.allclose(gate(x).softmax(-1)[0], resp.mean(0), atol=1e-12)


def test_full_gaussians_take_the_weighted_moments():
    x, resp = data("gaussian", {}), responsibilities()
    x[:, 2] = x[:, 0] + 0.3 * x[:, 2]  # columns that depend on each other
    gate, diagonal = made("gaussian", covariance="full"), made("gaussian")
    gate.fit(x, resp), diagonal.fit(x, resp)
    share = resp / resp.sum(0)
    mean = share.T @ x
    centred = x[:, None] - mean
    cov = torch.einsum("ne,ned,nef->edf", share, centred, centred)
    normal = torch.distributions.MultivariateNormal(mean, cov)
    wanted = resp.mean(0).log() + normal.log_prob(x[:, None])
    assert torch.allclose(gate(x), wanted, atol=1e-9)
    assert not torch.allclose(diagonal(x), wanted, atol=1e-2)


def test_gaussian_columns_are_the_diagonal_gaussian_gate():
    x, resp = data("gaussian", {}), responsibilities()
    gaussian, columns, full = made("gaussian"), made("exponential"), made("gaussian", covariance="full")
    for gate in (gaussian, columns, full):
        gate.fit(x, resp)
    assert torch.equal(gaussian(x), columns(x)) and torch.equal(gaussian.log_marginal(x), columns.log_marginal(x))
    assert not torch.allclose(gaussian(x), full(x), atol=1e-3)


def test_bernoulli_columns_are_naive_bayes():
    x, resp = data("exponential", {"families": "bernoulli"}), responsibilities(hard=True)
    gate = made("exponential", families="bernoulli")
    gate.fit(x, resp)
    for alpha, equal in ((1e-12, True), (1.0, False)):
        theirs = BernoulliNB(alpha=alpha, force_alpha=True).fit(x, resp.argmax(-1)).predict_proba(x)
        assert torch.allclose(gate(x).softmax(-1), torch.from_numpy(theirs), atol=1e-9) == equal


def test_columnwise_fits_are_where_the_gradient_vanishes():
    """Every family's own parameters, by automatic differentiation of the joint likelihood."""
    options = {"families": ["gaussian", "poisson", "gamma"]}
    x, resp = data("exponential", options), responsibilities()
    gate = made("exponential", **options)

    def slopes() -> list[float]:
        gate.zero_grad()
        (resp * gate.log_joint(x)).sum().backward()
        return [float(p.grad.abs().max()) for p in gate.parameters()]

    before = slopes()
    gate.fit(x, resp)
    assert len(before) == 6 and min(before) > 1e-2
    assert max(slopes()) < 1e-7


def test_gamma_shapes_are_recovered():
    shape = torch.tensor([1e-2, 0.1, 1.0, 7.0, 300.0, 9e3], dtype=F64)
    assert torch.allclose(gamma_shape(shape.log() - torch.digamma(shape)), shape, rtol=1e-8)
    assert float(gamma_shape(torch.zeros(1, dtype=F64))) == 1e4


@pytest.mark.parametrize(
    ("families", "value", "wants"),
    [
        ("bernoulli", 0.5, "0 or 1"),
        ("poisson", 1.5, "whole numbers"),
        ("poisson", -1.0, "whole"),
        ("gamma", 0.0, "above 0"),
    ],
)
def test_impossible_values_are_refused_in_training_and_moved_in_evaluation(families, value, wants):
    gate, x = made("exponential", families=families), torch.ones(3, DIM, dtype=F64)
    gate(x)
    x[1, 2] = value
    with pytest.raises(Exception, match=f"feature 2 holds .*{wants}"):
        gate(x)
    assert gate.eval()(x).isfinite().all()


def test_the_number_of_families_is_checked():
    with pytest.raises(Exception, match="2 families for 3 columns"):
        made("exponential", families=["gaussian", "gamma"])


def test_a_gate_that_models_x_integrates_to_one():
    grid = torch.cartesian_prod(*[torch.linspace(-30, 30, 601, dtype=F64)] * 2)
    gate = made("gaussian", 2, covariance="full")
    with torch.no_grad():
        gate.density.lower.normal_()
    assert abs(float(gate.log_marginal(grid).detach().exp().sum()) * 0.01 - 1) < 1e-6
    counts = torch.cartesian_prod(*[torch.arange(60, dtype=F64)] * 2)
    assert abs(float(made("exponential", 2, families="poisson").log_marginal(counts).detach().exp().sum()) - 1) < 1e-9


# -- equivariance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "options", "scaling", "mixing"),
    [
        ("gaussian", {}, True, False),
        ("gaussian", {"covariance": "full"}, True, True),
        ("linear", {}, True, True),
        ("exponential", {"families": ["gaussian", "gaussian", "gamma"]}, True, False),
    ],
)
def test_fits_follow_affine_maps_of_x(gate, options, scaling, mixing):
    """p(e | x) of a fit is unchanged by new units, and by any regular map where columns may depend on each other."""
    x, resp = data(gate, {"families": ["gaussian"] * 3}), responsibilities()
    shift = torch.tensor([3.0, -1.0, 0.0], dtype=F64)
    units = torch.diag(torch.tensor([2.0, 0.5, 30.0], dtype=F64))
    turned = torch.tensor([[1.0, 0.4, 0.1], [0.0, 1.0, 0.9], [0.0, 0.0, 1.0]], dtype=F64)
    for matrix, equal in ((units, scaling), (turned, mixing)):
        if gate == "exponential" and not equal:
            continue  # a mixed column would not be positive
        one, other = made(gate, **options), made(gate, **options)
        one.fit(x, resp), other.fit(x @ matrix + shift, resp)
        same = torch.allclose(one(x).softmax(-1), other(x @ matrix + shift).softmax(-1), atol=1e-6)
        assert same == equal


# -- trees -------------------------------------------------------------------------------------------------


def nodes(gate: str):
    return lambda width: made(gate, num_experts=width)


@pytest.mark.parametrize("gate", ["linear", "gaussian", "constant"])
@pytest.mark.parametrize("branching", [[4], [1, 4], [4, 1], [1, 1, 4]])
def test_a_tree_without_branches_is_flat(gate, branching):
    """Outputs, gradients and fits, of depth one and where a branching of one adds levels."""
    x, resp = data(gate, {}), responsibilities()
    flat, tree = made(gate), Tree(EXPERTS, nodes(gate), branching)
    node = tree
    while len(node.branches) == 1:
        node = node.branches[0]
    node.root.load_state_dict(flat.state_dict())
    one, other = flat(x).softmax(-1), tree(x).softmax(-1)
    assert torch.allclose(one, other, atol=1e-12)
    direction = torch.randn_like(one)
    grads = [
        torch.autograd.grad((p * direction).sum(), [*g.parameters()]) for p, g in ((one, flat), (other, node.root))
    ]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*grads, strict=True))
    flat.fit(x, resp), tree.fit(x, resp)
    assert torch.allclose(flat(x).softmax(-1), tree(x).softmax(-1), atol=1e-7)
    assert not torch.allclose(flat(x).softmax(-1), one, atol=1e-2)
    deep = Tree(EXPERTS, nodes("linear"), [2, 2])
    deep.fit(x, resp)
    assert not torch.allclose(deep(x).softmax(-1), tree(x).softmax(-1), atol=1e-2)


@pytest.mark.parametrize("branching", [[12], [3, 4], [2, 3, 2], [2, 1, 2, 3], None])
def test_leaves_of_any_depth_sum_to_one(branching):
    tree = Tree(12, nodes("linear"), branching)
    x = data("linear", {})
    assert torch.allclose(tree(x).exp().sum(-1), torch.ones(ROWS, dtype=F64), atol=1e-12)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.mul_(1e3)
    assert torch.allclose(tree(x).exp().sum(-1), torch.ones(ROWS, dtype=F64), atol=1e-9)
    raw = torch.stack([made("linear", num_experts=12)(x)])  # logits of a flat gate do not
    assert not torch.allclose(raw.exp().sum(-1), torch.ones(ROWS, dtype=F64), atol=1e-2)


def test_each_node_of_a_tree_is_fitted_to_its_own_share():
    x, resp = data("linear", {}), responsibilities()
    tree, right = Tree(EXPERTS, nodes("linear"), [2, 2]), made("linear", num_experts=2)
    tree.fit(x, resp)
    right.fit(x, resp[:, 2:])
    assert torch.allclose(tree.branches[1].root(x).softmax(-1), right(x).softmax(-1), atol=1e-7)
    right.fit(x, resp[:, 2:] / resp[:, 2:].sum(-1, keepdim=True))  # normalised, the rows' weights are lost
    assert not torch.allclose(tree.branches[1].root(x).softmax(-1), right(x).softmax(-1), atol=1e-3)


# -- gates that believe the same of every x --------------------------------------------------------------------


@pytest.mark.parametrize("gate", registry()["gate"])
def test_only_blind_gates_say_the_same_of_every_x(gate):
    built = made(gate)
    p = built(data(gate, {})).softmax(-1)
    assert bool((p - p[0]).abs().max() < 1e-12) == built.blind == (gate in ("constant", "uniform"))
    assert Tree(EXPERTS, nodes("constant"), [2, 2]).blind


def test_a_uniform_mixture_is_the_mean_of_its_experts():
    """Of their outputs, and of their densities; a constant gate with other shares is not."""
    x, y = torch.randn(20, DIM, dtype=F64), torch.randn(20, 2, dtype=F64)
    experts, family = ExpertLinear(DIM, 2, EXPERTS).double(), Gaussian(2, EXPERTS).double()
    for name, equal in (("uniform", True), ("constant", False)):
        router = Dense(lambda width, name=name: made(name, num_experts=width), EXPERTS)
        with torch.no_grad():
            for parameter in router.parameters():
                parameter.normal_()
        alone = experts(x.repeat(EXPERTS, 1), together(experts, x).groups).view(EXPERTS, 20, 2)
        blend, _ = MixtureOfExperts(router, experts)(Tokens.items(x))
        assert torch.allclose(blend, alone.mean(0), atol=1e-12) == equal
        mixture = MixtureDensity(router, experts, family)(Tokens.items(x))
        density = torch.distributions.Normal(alone, 1.0).log_prob(y).sum(-1).exp().mean(0).log()
        assert torch.allclose(mixture.log_prob(y), density, atol=1e-12) == equal


def test_a_gate_without_parameters_passes_where_one_that_never_learns_would_not():
    made_of = {gate: small_router("dense", gate) for gate in ("uniform", "constant")}
    assert [router.claims(True).trains_gate for router in made_of.values()] == [False, True]
    assert not any(router_part("router=dense", router).needs for router in made_of.values())
    made_of["constant"].own = Claims(trains_gate=False)
    assert router_part("router=dense", made_of["constant"]).needs == {"gate loss"}
    refusal = gate_refusal("top_k", "uniform") or ""
    assert refusal.startswith("gate=uniform (router=top_k): it believes the same") and "Use router=dense" in refusal


def test_only_gates_that_model_x_have_a_marginal():
    modelled = {gate for gate in registry()["gate"] if (made(gate).log_marginal(data(gate, {})).abs() > 1e-9).any()}
    assert modelled == {"gaussian", "exponential"}
    assert (made("tree", node=option_node("gate", "gaussian")).log_marginal(data("tree", {})).abs() > 1e-2).all()
    assert all(isinstance(made(gate), Generative) for gate in modelled)
    assert not isinstance(Linear(2, 2), Generative)
