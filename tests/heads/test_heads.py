"""Heads by their formulas, log-probabilities that a cross-entropy leaves alone, and the rank that each may have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import moecli
from moecli.config import build, compose, option_node, registry
from moecli.errors import UsageError
from moecli.run import Place, assemble, evaluate_loaded, train_built
from moecli.training.rank import CONTEXTS, log_prob_rank

DIM, VOCAB, K = 4, 23, 3
HEADS = {
    "softmax": {},
    "mixture_of_softmaxes": {"components": K},
    "mixture_of_softmaxes, separate": {"components": K, "shared": False},
    "mixture_of_contexts": {"components": K},
}


def head(name, **options):
    torch.manual_seed(0)
    group = option_node("head", name.partition(",")[0])
    return build(group | HEADS[name] | options, dim=DIM, out=VOCAB).double()


def inputs(contexts=6):
    draw = torch.Generator().manual_seed(1)
    return (2 * torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((contexts, DIM), (VOCAB, DIM)))


def rank(built, contexts=200):
    state, matrix = inputs(contexts)
    with torch.no_grad():
        return int(torch.linalg.matrix_rank(built(state, matrix).log_softmax(-1)))


# -- formulas ------------------------------------------------------------------------------------------------


def test_every_head_is_here():
    assert {name.partition(",")[0] for name in HEADS} == set(registry()["head"])


@pytest.mark.parametrize("name", [name for name in HEADS if "softmaxes" in name])
def test_a_mixture_of_softmaxes_by_hand(name):
    built = head(name)
    state, matrix = inputs()
    contexts = (state @ built.mixed.latent.weight.T + built.mixed.latent.bias).tanh().view(-1, K, DIM)
    prior = (state @ built.mixed.prior.weight.T).softmax(-1)
    probs = torch.zeros(len(state), VOCAB, dtype=torch.float64)
    for k in range(K):
        own = matrix if built.matrices is None else built.matrices[k]
        probs += prior[:, k : k + 1] * (contexts[:, k] @ own.T).softmax(-1)
    found = built(state, matrix)
    assert torch.allclose(found.exp(), probs, atol=1e-12) and torch.allclose(
        found.exp().sum(-1), torch.ones(6).double()
    )


def test_a_mixture_of_contexts_by_hand():
    built = head("mixture_of_contexts")
    state, matrix = inputs()
    contexts = built.mixed.latent(state).tanh().view(-1, K, DIM)
    prior = built.mixed.prior(state).softmax(-1)
    assert torch.allclose(built(state, matrix), (prior[..., None] * contexts).sum(1) @ matrix.T, atol=1e-12)


def test_one_component_is_one_softmax():
    state, matrix = inputs()
    softmaxes, contexts = (head(n, components=1) for n in ("mixture_of_softmaxes", "mixture_of_contexts"))
    assert torch.allclose(softmaxes(state, matrix), contexts(state, matrix).log_softmax(-1), atol=1e-12)


def test_equal_matrices_of_its_own_are_a_shared_one():
    state, matrix = inputs()
    shared, separate = head("mixture_of_softmaxes"), head("mixture_of_softmaxes, separate")
    separate.mixed.load_state_dict(shared.mixed.state_dict())
    assert not torch.allclose(separate(state, matrix), shared(state, matrix), atol=1e-3)
    separate.matrices.data.copy_(matrix.expand(K, -1, -1))
    assert torch.allclose(separate(state, matrix), shared(state, matrix), atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_cross_entropy_is_exact_and_leads_back(name):
    """log_softmax leaves log-probabilities as they are; gradients are those of -log p."""
    built, target = head(name), torch.arange(6)
    state, matrix = (t.requires_grad_() for t in inputs())
    parameters = [state, *built.parameters(), *([] if built.separate else [matrix])]
    prediction = built(state, matrix)
    probs = prediction.exp() / prediction.exp().sum(-1, keepdim=True)
    by_hand = -probs[torch.arange(6), target].log().mean()
    loss = F.cross_entropy(prediction, target)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(v, parameters, retain_graph=True) for v in (loss, by_hand))
    assert all(torch.allclose(a, b, atol=1e-12) and a.abs().max() > 1e-6 for a, b in zip(ours, theirs, strict=True))


def test_extreme_states_stay_finite():
    for name in HEADS:
        built = head(name)
        state, matrix = (t.requires_grad_() for t in inputs())
        loss = F.cross_entropy(built(1e4 * state, 1e2 * matrix), torch.arange(6))
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in [state, *built.parameters()])


# -- rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "mixture_of_contexts"])
def test_one_softmax_has_a_rank_of_at_most_d_plus_one(name):
    assert rank(head(name)) == DIM + 1


@pytest.mark.parametrize("name", [name for name in HEADS if "softmaxes" in name])
def test_several_softmaxes_may_have_any_rank(name):
    assert rank(head(name)) == VOCAB
    assert rank(head(name, components=1)) == DIM + 1


# -- in a model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the quick brown fox jumps over the lazy dog, and back; " * 80)
    sizes = {
        "task.context": 16,
        "model.dim": 8,
        "model.every": 1,
        "expert.hidden": 8,
        "num_experts": 2,
        "router": "hash",
    }
    return ["task=text", f"task.path={file}", *(f"{k}={v}" for k, v in sizes.items())]


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_the_rank_of_models(text, model):
    """Must: rank(softmax) <= D + 1, as of contexts; of softmaxes far more."""
    found = {}
    for name in ("softmax", "mixture_of_contexts", "mixture_of_softmaxes"):
        parts = assemble(compose([*text, f"model={model}", f"head={name}"]))
        before = {k: v.clone() for k, v in parts.model.state_dict().items()}
        found[name] = log_prob_rank(parts.model, parts.task, "test", parts.device)["log_prob_rank"]
        assert all(torch.equal(before[k], v) for k, v in parts.model.state_dict().items())
        assert parts.model.training and next(parts.model.parameters()).dtype == torch.float32
    vocabulary = parts.task.vocab_size
    assert vocabulary > 20 and found["softmax"] <= 9 and found["mixture_of_contexts"] <= 9
    assert found["mixture_of_softmaxes"] > 20


def test_a_separate_head_takes_the_place_of_the_output_matrix(text):
    parts = {shared: assemble(compose([*text, "head=mixture_of_softmaxes", "model.tied=false", f"head.shared={shared}"]))
             for shared in ("true", "false")}  # fmt: skip
    assert parts["true"].model.output is not None and parts["false"].model.output is None
    more = (15 - 1) * 8 * parts["true"].task.vocab_size
    assert parts["false"].size.total - parts["true"].size.total == more


def trained(words, folder):
    return train_built(assemble(compose(words)), Place(folder, pictures=False))


def test_a_run_has_its_rank_among_the_metrics(text, tmp_path):
    run = trained([*text, "head=mixture_of_softmaxes", "head.components=4", "trainer.steps=2"], tmp_path)
    assert run.summary["metrics"]["test/log_prob_rank"] > 9
    assert run.info["config"]["head"] == "mixture_of_softmaxes" and run.info["config"]["head.components"] == 4
    loaded = moecli.load(run.path)
    for split in ("valid", "test"):
        again = evaluate_loaded(loaded, split)["metrics"]
        assert again["log_prob_rank"] == run.summary["metrics"][f"{split}/log_prob_rank"]


def test_other_tasks_and_large_vocabularies_have_no_rank(text, monkeypatch):
    parts = assemble(compose(["task=spirals", "task.rows=60"]))
    assert parts.config["head"] is None
    assert log_prob_rank(parts.model, parts.task, "test", parts.device) == {}
    parts = assemble(compose(text))
    assert log_prob_rank(parts.model, parts.task, "test", parts.device)
    monkeypatch.setattr("moecli.training.rank.MOST_NUMBERS", CONTEXTS * parts.task.out - 1)
    assert log_prob_rank(parts.model, parts.task, "test", parts.device) == {}


def test_a_head_that_nobody_asks_for_is_refused():
    with pytest.raises(UsageError, match=r"head=mixture_of_softmaxes \(command line\): model=layer takes no head"):
        assemble(compose(["task=spirals", "head=mixture_of_softmaxes"]))


def test_a_run_from_before_there_were_heads_still_loads(text, tmp_path):
    run = trained([*text, "trainer.steps=2"], tmp_path)
    file = run.path / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith("head:"))
    kept = [line for i, line in enumerate(lines) if i not in (at, at + 1) and line.strip() != "head: softmax"]
    file.write_text("".join(kept))
    assert not any(line.strip().startswith("head:") for line in kept)
    assert moecli.load(run.path).model.head.__class__.__name__ == "Softmax"
