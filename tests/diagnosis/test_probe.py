"""Probes of live models: each finds what was planted, and is silent where nothing was."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from moecli.config import build, compose
from moecli.diagnosis import probe
from moecli.diagnosis.learning import causality, choice, diagnose_live, trained
from moecli.diagnosis.probe import compare, gradient_ratios, leak, permuted, shuffled, worth
from moecli.losses.nll import NegativeLogLikelihood
from moecli.plan import Dense, Slots, Sparse
from moecli.record.folder import Run
from moecli.routing import Tokens
from moecli.run import Built, Loaded, assemble
from moecli.tasks.kinds import Language

# Lines that only a choice of expert makes a curve of.
PIECES = ["task=piecewise", "model=layer", "model.head=false", "model.residual=false", "expert=linear", "gate=mlp"]
SMALL = [*PIECES, "task.rows=400", "num_experts=4", "threads=1", "optimizer.lr=0.02"]
CPU = torch.device("cpu")


def assembled(*words) -> Built:
    return assemble(compose(list(words)))


def fitted(*words, steps=150, freeze=False, chance=False) -> Built:
    """Trained in process on the task's loss; ``freeze`` leaves the gate as it began, ``chance`` shuffles its choices."""
    built = assembled(*SMALL, *words)
    router = built.model.mixtures["layer0"].router
    if freeze:
        for parameter in router.parameters():
            torch.nn.init.zeros_(parameter).requires_grad_(False)
    optimizer = build(built.config["optimizer"], params=[p for p in built.model.parameters() if p.requires_grad])
    for step in range(steps):
        batch = built.task.train_batch(step, 128, 0)
        with shuffled(router, step) if chance else torch.enable_grad():
            loss = built.objective(built.model(batch.x), batch.target)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return built


def loaded(built: Built, run: Run) -> Loaded:
    return Loaded(run, built.config, built.task, built.model, built.device)


@pytest.fixture(scope="module")
def pieces() -> Built:
    return fitted("router=top_k")


# -- the permutation -------------------------------------------------------------------------------


def test_a_permuted_plan_serves_each_token_as_another_was():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=draw)
    top, expert = logits.topk(2, dim=-1)
    order = torch.randperm(50, generator=draw)
    for plan in (Dense(logits.log_softmax(-1)), Sparse.from_choices(expert, top.log_softmax(-1), 4)):
        other = permuted(plan, order)
        assert torch.equal(other.weights, plan.weights[order])
        assert torch.equal(other.groups.counts, plan.groups.counts)  # every expert keeps its load
        assert torch.equal(permuted(plan, torch.arange(50)).weights, plan.weights)
        assert not torch.equal(other.weights, plan.weights)


def test_slots_cannot_be_permuted():
    slots = assembled(*SMALL, "router=soft_slots", "router.slots=2")
    routing = slots.model.mixtures["layer0"].router(Tokens.items(torch.randn(6, 1)))
    assert isinstance(routing.plan, Slots)
    with pytest.raises(TypeError, match="slots"):
        permuted(routing.plan, torch.arange(6))


def test_shuffling_is_a_function_of_its_seed_and_ends(pieces):
    x, router = pieces.task.batch("test", torch.arange(40)).x, pieces.model.mixtures["layer0"].router
    pieces.model.eval()

    def weights(seed=None):
        if seed is None:
            return router(Tokens.items(x)).plan.weights
        with shuffled(router, seed):
            return router(Tokens.items(x)).plan.weights

    before = weights()
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), before) and torch.equal(weights(), before)


# -- the worth of the choice -----------------------------------------------------------------------


@pytest.mark.parametrize("router", ["top_k", "dense"])
def test_a_trained_router_is_worth_something(router, pieces, tiny_run):
    built = pieces if router == "top_k" else fitted("router=dense")
    found = worth(built.model, built.task, "layer0", CPU)
    assert 0.5 < found.low < found.loss < found.high and found.learned > 0.6
    assert found.units == 80 and found.unit == "example"
    finding = choice(loaded(built, tiny_run), "layer0")
    assert finding.level == "ok" and "shuffled choices lose" in finding.what and "of r2" in finding.what


def test_a_frozen_gate_that_prefers_nobody_is_worth_nothing(tiny_run):
    built = fitted("router=dense", freeze=True, steps=10)
    found = worth(built.model, built.task, "layer0", CPU)
    assert (found.loss, found.low, found.high) == (0, 0, 0)  # all tokens are served alike: shuffling changes nothing
    finding = choice(loaded(built, tiny_run), "layer0")
    assert finding.level == "warning" and "indistinguishable from shuffled" in finding.what


def test_a_router_whose_choices_were_chance_in_training_is_worth_nothing(tiny_run):
    built = fitted("router=top_k", chance=True, steps=60)
    found = worth(built.model, built.task, "layer0", CPU)
    assert found.low <= 0 and abs(found.loss) < 0.05  # where the trained one's is above 0.5
    assert choice(loaded(built, tiny_run), "layer0").level == "warning"


def test_where_there_is_no_choice_it_does_not_apply(tiny_run):
    slots = assembled(*SMALL, "router=soft_slots", "router.slots=2")
    twin = assembled(*SMALL, "model.twin=true")
    for built, why in ((slots, "slot"), (twin, "one expert")):
        finding = choice(loaded(built, tiny_run), "layer0")
        assert finding.level == "skipped" and why in finding.what


def scores(draw, nll) -> dict[str, torch.Tensor]:
    size = len(nll)
    return {"nll": torch.tensor(nll), "correct": torch.zeros(size), "bytes": torch.ones(size)}


@pytest.mark.parametrize(("effect", "fewest", "most"), [(0.0, 0, 3), (0.5, 20, 20)])
def test_the_interval_holds_for_examples_of_one_document_that_are_alike(effect, fewest, most, monkeypatch):
    """Twenty texts of 40 documents whose 8 windows share half of their difference: chance is called worth in few."""
    monkeypatch.setattr(probe, "RESAMPLES", 100)
    kind, document, called = Language(("a", "b")), np.repeat(np.arange(40), 8), 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        learned = draw.normal(2.0, 0.1, 320)
        others = [
            scores(draw, learned + effect + 0.3 * np.repeat(draw.normal(size=40), 8) + 0.3 * draw.normal(size=320))
            for _ in range(4)
        ]
        found = compare(kind, scores(draw, learned), others, document)
        assert found.unit == "document" and found.units == 40 and found.low <= found.high
        called += found.low > 0
    assert fewest <= called <= most


def test_few_documents_are_resampled_by_example():
    draw = np.random.default_rng(0)
    learned = draw.normal(2.0, 0.1, 32)
    found = compare(Language(("a",)), scores(draw, learned), [scores(draw, learned + 1)], np.repeat([0, 1], 16))
    assert (found.unit, found.units) == ("example", 32) and found.loss == pytest.approx(1.0)


# -- what trains the router ------------------------------------------------------------------------


def ratio(built: Built) -> float:
    return gradient_ratios(built.model, built.task, NegativeLogLikelihood(), CPU, batch_size=64)["layer0"]


def test_the_task_trains_a_gate_and_not_one_whose_weights_are_constant(pieces, tiny_run):
    assert ratio(pieces) > 1e-3
    assert [f.level for f in trained(loaded(pieces, tiny_run))] == ["ok"]
    router = pieces.model.mixtures["layer0"].router
    k, router.k = router.k, 1  # renormalised: its one weight is the constant 1
    try:
        assert ratio(pieces) == 0
        (finding,) = trained(loaded(pieces, tiny_run))
        assert finding.level == "warning" and "never trains the router" in finding.what
    finally:
        router.k = k


def test_a_frozen_gate_is_found_and_a_router_without_one_is_left_alone(tiny_run, texts):
    frozen = fitted("router=dense", freeze=True, steps=1)
    (finding,) = trained(loaded(frozen, tiny_run))
    assert finding.level == "warning" and finding.measured == {"gradient_ratio": 0.0}
    levels = {f.level for f in trained(loaded(texts("hash"), tiny_run))}
    assert levels == {"skipped"}


def test_the_gradient_leaves_no_trace(pieces):
    before = [p.detach().clone() for p in pieces.model.parameters()]
    random = torch.get_rng_state()
    pieces.model.zero_grad()
    ratio(pieces)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(pieces.model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


# -- causality -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Build a small language model with a router; what leaks does so before any training."""
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("".join(f"the {n} cats sat on {n * n} mats; " for n in range(300)))
    words = ["task=text", f"task.path={file}", "task.context=16", "model.dim=16", "model.depth=2", "model.heads=2"]
    sizes = ["expert.hidden=16", "num_experts=4", "threads=1", "model.allow_leak=true"]
    return lambda router, *more: assembled(*words, *sizes, f"router={router}", *more)


LEAKS = {
    ("expert_choice",): True,
    ("expert_choice", "router.group=position"): False,
    ("soft_slots", "router.slots=2"): True,
    ("top_k",): False,
    ("hash",): False,
    ("top_k", "router.capacity_factor=0.5", "router.capacity_by=weight"): True,
    ("top_k", "router.capacity_factor=0.5", "router.capacity_by=token"): False,
}


@pytest.mark.parametrize("words", LEAKS, ids=" ".join)
def test_a_leak_is_found_where_there_is_one(words, texts, tiny_run):
    built = texts(*words)
    found = leak(built.model, built.task, CPU)
    assert found.found == LEAKS[words] and found.places == 4 * (1 + 8 + 15)
    assert found.most > 1e-4 if found.found else found.most < 1e-9
    finding = causality(loaded(built, tiny_run))
    assert finding.level == ("warning" if found.found else "ok") and ("sees the future" in finding.what) == found.found
    assert next(built.model.parameters()).dtype == torch.float32  # the model itself was left alone


def test_a_task_that_is_not_causal_is_left_alone(pieces, tiny_run):
    assert causality(loaded(pieces, tiny_run)).level == "skipped"


# -- all of it, from a run folder --------------------------------------------------------------------


def test_a_run_is_loaded_and_probed(tiny_run):
    findings = diagnose_live(tiny_run.path)
    assert [f.check for f in findings] == ["causality", "router", "router"]
    assert not [f for f in findings if f.level == "problem"]


def test_a_run_that_cannot_be_loaded_is_a_warning(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run.path, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    (finding,) = diagnose_live(copy)
    assert finding.level == "warning" and "no checkpoint" in finding.what
