"""Padding is no token: a padded batch says of each example what the model says of it alone, and no expert hears of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moecli.config import build, option_node
from moecli.losses.nll import NegativeLogLikelihood
from moecli.losses.objective import Objective
from moecli.losses.places import number_scored
from moecli.mixture import Output
from moecli.models.sequences import present
from moecli.parts import Parts
from moecli.tasks.kinds import Language
from moecli.tasks.task import Batch
from moecli.training.gradient import _weight
from moecli.training.rank import log_prob_rank

VOCAB, SOURCE, LENGTH = 30, 6, 7
MODELS = {
    "transformer": {"dim": 16, "depth": 2, "every": [0, 1], "kv_heads": 2},
    "lstm": {"dim": 16, "depth": 3, "tied": False},
    "seq2seq": {"dim": 16, "every": [0, 1]},
}
ROUTERS = [  # one of every kind of claim: independent, causal, neither
    ("top_k", {}),
    ("dense", {}),
    ("hash", {"by": "bigram"}),
    ("top_k", {"capacity_factor": 0.7, "k": 1, "renormalize": False}),
    ("top_k", {"capacity_factor": 0.7, "capacity_by": "weight"}),
    ("expert_choice", {}),
    ("soft_slots", {"slots": 2}),
]
LENGTHS = [(6, 7), (2, 7), (6, 3), (1, 1), (4, 5)]  # of source and target, of each example


def small(name, router="top_k", options=None, source=SOURCE, layers=None):
    """A model on 30 words with 4 experts a layer, drawn from seed 0, in float64."""
    parts = {"gate": "linear", "expert": "feed_forward", "head": "softmax"}
    nodes = {group: option_node(group, option) for group, option in parts.items()}
    nodes |= {"router": option_node("router", router) | (options or {}), "num_experts": 4}
    nodes["expert"]["hidden"] = 8
    torch.manual_seed(0)
    node = option_node("model", name) | MODELS[name] | {"layers": layers or {}}
    return build(node, parts=Parts(nodes), dim=0, out=VOCAB, vocab_size=VOCAB, source=source).double()


def examples(lengths=LENGTHS):
    """x (1, s + t) and target (1, t) of each example by itself."""
    draw = torch.Generator().manual_seed(5)
    words = [[torch.randint(VOCAB, (1, n), generator=draw) for n in (s + t, t)] for s, t in lengths]
    return [(x, target, s) for (x, target), (s, _) in zip(words, lengths, strict=True)]


def together(rows):
    """Sources padded at the left and targets at the right: x (B, SOURCE + LENGTH), target (B, LENGTH)."""
    x, targets = torch.full((len(rows), SOURCE + LENGTH), -1), torch.full((len(rows), LENGTH), -1)
    for row, (ids, target, s) in enumerate(rows):
        x[row, SOURCE - s : SOURCE - s + ids.shape[1]] = ids
        targets[row, : target.shape[1]] = target
    return x, targets


def alone(model, rows):
    """The objective's loss of the examples one by one, each by its scored places; predictions, usages."""
    task, loss, found = NegativeLogLikelihood(), 0.0, []
    total = sum(target.numel() for _, target, _ in rows)
    for x, target, s in rows:
        model.source = s
        output = model(x)
        loss = loss + task(output.prediction, target).sum() * target.numel() / total
        found.append(output)
    model.source = SOURCE
    return loss, found


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("router", "options"), ROUTERS)
def test_a_padded_batch_is_its_examples_alone(name, router, options):
    model, rows = small(name, router, options), examples()
    x, target = together(rows)
    output = model(x)
    loss = Objective(NegativeLogLikelihood(), {})(output, target)["total"]
    expected, outputs = alone(model, rows)
    for row, one in enumerate(outputs):
        length = one.prediction.shape[1]
        assert torch.allclose(output.prediction[row, :length], one.prediction[0], atol=1e-10)
    assert torch.allclose(loss, expected, atol=1e-10)
    ours, theirs = gradients(model, loss), gradients(model, alone(model, rows)[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-10) for n in ours)
    for layer, routing in output.routings.items():
        used = [one.routings[layer].usage for one in outputs]
        assert torch.allclose(routing.usage.served.double(), sum(u.served.double() for u in used))
        assert routing.usage.tokens == sum(u.tokens for u in used) == int((x[:, model.reads(layer)] >= 0).sum())


@pytest.mark.parametrize("name", MODELS)
def test_were_padding_a_token_it_would_be_seen(name):
    """The negative control: with a word where there is none, other examples are answered otherwise."""
    model, rows = small(name), examples()
    x, _ = together(rows)
    filled = model(x.clamp_min(0)).prediction
    assert (filled[1] - model(x).prediction[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_padded_prompt_may_be_gone_on_from(name):
    """Sources of different lengths read at once, then all targets word by word, are what one pass says."""
    model, (x, _) = small(name).eval(), together([row for row in examples() if row[1].shape[1] == LENGTH])
    first, past = model.step(x[:, : SOURCE + 1])
    found = [first.prediction[:, -1]]
    for place in range(SOURCE + 1, x.shape[1]):
        output, past = model.step(x[:, place : place + 1], past=past)
        found.append(output.prediction[:, -1])
    assert torch.allclose(torch.stack(found, dim=1), model(x).prediction, atol=1e-10)


def test_where_tokens_are_is_only_looked_at_where_some_are_missing():
    x, _ = together(examples())
    assert torch.equal(present(x), x >= 0)
    assert present(x.clamp_min(0)) is None and present(x.to("meta")) is None


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_example_without_any_source_is_answered(name):
    x, _ = together([*examples(), *examples([(0, 4)])])
    assert small(name)(x).prediction.isfinite().all()


# -- what is scored ------------------------------------------------------------------------------------------


def test_metrics_are_means_over_scored_places():
    """Two examples of 1 and 3 scored places: the mean of four places, not of two means."""
    kind, draw = Language(("a", "é", "c")), torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 3, 3, generator=draw)
    target = torch.tensor([[1, -1, -1], [2, 0, 1]])
    flat = kind.summarise(kind.score(prediction[target >= 0][None], target[target >= 0][None]))
    assert kind.summarise(kind.score(prediction, target)) == pytest.approx(flat, rel=1e-6)
    means = kind.score(prediction, target)["nll"].double().mean()
    assert abs(means - flat["nll"]) > 1e-3
    assert kind.chance(torch.tensor([0, 1, 1, -1]), target.flatten()) == kind.chance(
        torch.tensor([0, 1, 1]), target[target >= 0]
    )


def test_the_rank_of_log_probabilities_is_of_scored_places():
    """Answers that are all the same where something is scored, and all different elsewhere: rank 1."""
    target = torch.full((4, 6), -1)
    target[:, :2] = 1
    prediction = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    prediction[:, :2] = torch.arange(5.0)
    batch = Batch(target.clamp_min(0), target, {}, torch.arange(4), torch.arange(4))
    task = SimpleNamespace(kind=Language(tuple("abcde")), out=5, sizes={"test": 4}, batch=lambda split, index: batch)
    model = Says(prediction)
    assert log_prob_rank(model, task, "test", torch.device("cpu")) == {"log_prob_rank": 1.0}
    batch = replace(batch, target=torch.ones_like(target))
    assert log_prob_rank(model, task, "test", torch.device("cpu")) == {"log_prob_rank": 5.0}


class Says(torch.nn.Module):
    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, x, known):
        return _output(self.prediction)


def test_without_gaps_metrics_are_means_of_examples_to_the_bit():
    kind, draw = Language(tuple("abcde")), torch.Generator().manual_seed(0)
    prediction, target = torch.randn(6, 7, 5, generator=draw), torch.randint(5, (6, 7), generator=draw)
    nll = -prediction.log_softmax(-1).gather(-1, target[..., None])[..., 0].mean(-1)
    assert kind.summarise(kind.score(prediction, target))["nll"] == nll.double().mean().item()
    objective = Objective(NegativeLogLikelihood(), {})
    assert number_scored(target) is None
    assert objective.task(prediction, target).mean() == objective(_output(prediction), target)["total"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_micro_batches_share_the_loss_by_scored_places(number):
    """The totals of micro-batches add up to that of the batch, also where one has no gaps."""
    draw = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(6, 7, 5, generator=draw).double(), torch.randint(5, (6, 7), generator=draw)
    target[:2, 3:] = -1
    row = torch.arange(6)
    batch, objective = Batch(row, target, {}, row, row), Objective(NegativeLogLikelihood(), {})
    whole = objective(_output(prediction), target)["total"]
    parts = zip(batch.parts(number), prediction.tensor_split(number), strict=True)
    shared = [objective(_output(p), b.target, share=_weight(b) / _weight(batch))["total"] for b, p in parts]
    assert torch.allclose(sum(shared), whole)
    assert not torch.allclose(objective.task(prediction, target).mean(), whole)


def _output(prediction):
    return Output(prediction, {})
