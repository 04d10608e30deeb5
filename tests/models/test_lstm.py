"""LSTM layers with mixtures between them: Shazeer's formula by hand, time steps, sizes, refusals."""

from __future__ import annotations

import pytest
import torch

from moecli.config import compose
from moecli.errors import UsageError
from moecli.mixture import Alone
from moecli.routing import Tokens
from moecli.run import assemble

DIM = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 80)
    sizes = {"task.context": 12, "model.dim": DIM, "expert.hidden": 8, "num_experts": 4, "trainer.batch_size": 4}
    return ["task=text", "model=lstm", f"task.path={file}", *(f"{k}={v}" for k, v in sizes.items())]


def built(*words):
    return assemble(compose(list(words)))


@torch.no_grad()
def test_it_is_the_papers_formula(text):
    """E x, then h + LSTM(h), h + sigmoid(mixture(h)), h + LSTM(h), and the softmax's logits."""
    parts = built(*text)
    model = parts.model.double().eval()
    ids = parts.task.train_batch(0, 3, 0).x
    h = model.embedding(ids)
    h = h + model.recurrent["layer0"](h)[0]
    h = h + model.mixtures["layer0"](Tokens.sequences(h, ids))[0].view_as(h).sigmoid()
    h = h + model.recurrent["layer1"](h)[0]
    assert torch.allclose(model(ids).prediction, h @ model.embedding.weight.T, atol=1e-12)


@torch.no_grad()
def test_the_mixture_serves_every_time_step_and_none_sees_the_future(text):
    parts = built(*text, "model.depth=3")
    model, ids = parts.model.double().eval(), parts.task.train_batch(0, 2, 0).x
    output = model(ids)
    assert list(output.routings) == ["layer0", "layer1"]
    assert all(len(routing.example) == ids.numel() for routing in output.routings.values())
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % parts.task.vocab_size
    other = model(changed).prediction
    assert torch.equal(output.prediction[:, :6], other[:, :6])
    assert not torch.allclose(output.prediction[:, 6:], other[:, 6:], atol=1e-3)


def test_dropout_is_of_training_alone_and_unbiased(text):
    parts = built(*text, "model.dropout=0.5")
    model, ids = parts.model, parts.task.train_batch(0, 1, 0).x
    assert torch.equal(model.eval()(ids).prediction, model(ids).prediction)
    assert not torch.equal(model.train()(ids).prediction, model(ids).prediction)


@pytest.mark.parametrize("every", ["2", "[0,2]"])
def test_mixtures_stand_after_the_layers_that_are_asked_for(text, every):
    parts = built(*text, "model.depth=4", f"model.every={every}")
    assert list(parts.model.mixtures) == {"2": ["layer1"], "[0,2]": ["layer0", "layer2"]}[every]


def test_it_learns_and_every_weight_does(text):
    parts = built(*text, "model.depth=3", "model.tied=false")
    optimizer, losses = torch.optim.AdamW(parts.model.parameters(), 1e-2), []
    for step in range(12):
        batch = parts.task.train_batch(step, 4, 0)
        optimizer.zero_grad()
        total = parts.objective(parts.model(batch.x, batch.known), batch.target)["total"]
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.model.parameters())


def test_its_flops_are_counted_recurrences_included(text):
    """Of a token: 16 D^2 for each LSTM layer (two matrices (4 D, D)), the router and two experts, and the head."""
    parts = built(*text, "model.depth=2", "router.k=2", "gate.bias=false")
    experts = 2 * 2 * (DIM * 8 + 8 * DIM)
    expected = 2 * 16 * DIM**2 + 2 * DIM * 4 + experts + 2 * DIM * parts.task.vocab_size
    assert parts.size.flops == expected


def test_its_twin_has_its_flops(text):
    words = [*text, "expert.hidden=64"]
    mixture, twin = built(*words), built(*words, "model.twin=true")
    assert twin.size.flops == pytest.approx(mixture.size.flops, rel=0.01)
    assert all(isinstance(layer.router, Alone) for layer in twin.model.mixtures.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.depth=1"], "model.depth=1: a mixture stands between two LSTM layers"),
        (["model.every=2"], "Lower model.every"),
        (["model.every=[1]"], "no place 1. Choose from 0 to 0"),
        (["router=expert_choice"], "future"),
        (["+model.layers.layer1.router=hash"], "This model has: layer0"),
        (["task=digits"], "model=layer"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(text, words, said):
    given = ["task=digits", "model=lstm"] if words == ["task=digits"] else [*text, *words]
    with pytest.raises(UsageError, match=said) as caught:
        built(*given)
    assert "\n" not in str(caught.value)
