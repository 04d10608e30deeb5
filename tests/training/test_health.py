"""A collapse or a dead expert is reported within 100 steps, and a balanced run never."""

import pytest
import torch

from moecli.compatibility import build_small
from moecli.config import option_node
from moecli.routing import Tokens, Usage
from moecli.training.gradient import LOOK
from moecli.training.health import WINDOW, Health, dropped_by_rank, examine

STEPS, BATCH, SEEDS = 100, 128, range(20)
ROUTERS = {"dense": {}, "top_k": {"k": 2}, "top_1": {"k": 1, "renormalize": False}}


def router(name):
    option = "dense" if name == "dense" else "top_k"
    return build_small({**option_node("router", option), **ROUTERS[name]}, option_node("gate", "linear"))


def plant(built, bias, noise=1.0):
    """Logits = bias + noise: the gate's weights are drawn so that a normal x gives ``noise`` deviations."""
    layer = built.gate.linear
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * noise / layer.weight.shape[1] ** 0.5)
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))
    return built


def findings(built, seed, steps=STEPS, batch=BATCH):
    """What health says as training looks at every LOOK-th step: [(step, sentence)]."""
    torch.manual_seed(1000 + seed)
    health, said = Health(), []
    for step in range(0, steps, LOOK):
        routing = built(Tokens.items(torch.randn(batch, 8)))
        said += [(step, text) for text in health.see("layer0", routing.usage)]
    return said


COLLAPSED = {"dense": [6.0, 0, 0, 0], "top_k": [8.0, 8.0, 0, 0], "top_1": [8.0, 0, 0, 0]}


def test_a_window_fits_into_a_hundred_steps():
    assert WINDOW * LOOK <= STEPS


@pytest.mark.parametrize("name", ROUTERS)
def test_a_collapse_is_reported_within_a_hundred_steps(name):
    reported = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        said = findings(plant(router(name), COLLAPSED[name]), seed)
        reported += any("collapsed" in text and step < STEPS for step, text in said)
    assert reported == len(SEEDS)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_balanced_run_gives_no_alarm(name):
    for seed in SEEDS:
        torch.manual_seed(seed)
        assert findings(plant(router(name), [0.0] * 4), seed, steps=2 * STEPS) == []


@pytest.mark.parametrize("name", ["top_k", "top_1"])
def test_uneven_but_used_experts_are_no_alarm(name):
    for seed in SEEDS:
        torch.manual_seed(seed)
        assert findings(plant(router(name), [0.8, 0.4, 0.0, -0.4]), seed) == []


@pytest.mark.parametrize("name", ROUTERS)
def test_a_dead_expert_is_reported_by_name(name):
    for seed in SEEDS:
        torch.manual_seed(seed)
        said = findings(plant(router(name), [0.0, 0.0, -30.0, 0.0]), seed)
        assert len(said) == 1 and "1 of 4 experts get no tokens (e2)" in said[0][1]


def test_a_finding_is_said_once_a_layer_and_tells_what_to_do():
    torch.manual_seed(0)
    built = plant(router("top_1"), COLLAPSED["top_1"])
    said = findings(built, 0, steps=4 * STEPS)
    assert len(said) == 1 and "auxiliary=[switch_balance]" in said[0][1] and said[0][1].startswith("layer0: ")
    health = Health(window=1)
    usage = built(Tokens.items(torch.randn(400, 8))).usage
    assert health.see("a", usage) and health.see("b", usage) and not health.see("a", usage)


def usage(asked, tokens=None, served=None):
    counts = torch.tensor(asked)
    served = counts if served is None else torch.tensor(served)
    ranks = torch.stack([counts, served])
    return Usage(counts, served, ranks, counts, counts.float(), torch.tensor(0.0), tokens or int(sum(asked)))


@pytest.mark.parametrize(
    ("asked", "tokens", "kinds"),
    [
        ([100, 100, 100, 100], 400, []),
        ([400, 0, 0, 0], 400, ["collapse"]),
        ([200, 200, 0, 0], 200, ["collapse"]),  # k = 2: as concentrated as it can be
        ([200, 200, 0, 0], 400, ["dead"]),  # k = 1: two of four work
        ([400, 400], 400, []),  # k = E: nothing to choose
        ([400], 400, []),  # one expert
        ([3, 3, 3, 0], 9, []),  # too few choices for silence to prove anything
        ([0, 0, 0, 0], 400, None),  # nobody asked: whatever is said, no crash
    ],
)
def test_what_is_said_of_a_usage(asked, tokens, kinds):
    found = [kind for kind, _ in examine(usage(asked, tokens))]
    assert kinds is None or found == kinds


def test_drops_are_said_by_rank_of_choice():
    few, many = usage([100, 100], 100, [99, 98]), usage([100, 100], 100, [99, 60])
    assert not health_kinds(few) and health_kinds(many) == ["dropped"]
    assert "choice 1: 1%, choice 2: 40%" in examine(many)[0][1]
    assert not examine(many, meant=0.2)
    assert dropped_by_rank([[4, 0], [3, 0]]) == [0.25]


def health_kinds(seen):
    return [kind for kind, _ in examine(seen)]
