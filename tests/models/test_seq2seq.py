"""The encoder-decoder: who sees what, claims by the side that a layer stands on, answers word by word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecli.config import compose, option_node
from moecli.diagnosis.probe import leak
from moecli.errors import UsageError
from moecli.models.generate import decode
from moecli.models.relative import RelativePositions
from moecli.models.size import cache_growth, measure, roles
from moecli.run import Loaded, assemble, shape, write_plans
from moecli.training.evaluate import evaluate
from tests.models.test_padding import SOURCE, VOCAB, small

MODELS = ("seq2seq", "transformer", "lstm")
LONGEST = 8


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 80)
    text = ["task.text=text", f"task.text.path={file}", "task.text.context=24"]
    sizes = {"model.dim": 16, "model.depth": 2, "expert.hidden": 8, "num_experts": 4, "trainer.batch_size": 4}
    return ["task=span_corruption", *text, *(f"{key}={value}" for key, value in sizes.items())]


def built(words, *more):
    return assemble(compose([*words, *more]))


# -- who sees what -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_answer_sees_all_of_the_source_and_none_of_what_follows(words):
    model = small("seq2seq").eval()
    x = torch.randint(VOCAB, (1, SOURCE + 5), generator=torch.Generator().manual_seed(0))
    before = model(x).prediction[0]
    for place in range(x.shape[1]):
        changed = x.clone()
        changed[0, place] = (x[0, place] + 1) % VOCAB
        moved = (model(changed).prediction[0] - before).abs().amax(-1) > 1e-9
        first = max(place - SOURCE, 0)
        assert not moved[:first].any() and moved[first:].all()


def test_a_router_that_looks_ahead_may_serve_the_encoder_alone(words):
    parts = built(words, "model.every=1", "+model.layers.encoder1.router=expert_choice")
    assert list(parts.model.mixtures) == ["encoder0", "encoder1", "decoder0", "decoder1"]
    kinds = {name: type(layer.router).__name__ for name, layer in parts.model.mixtures.items()}
    assert kinds == dict.fromkeys(kinds, "TopK") | {"encoder1": "ExpertChoice"}
    assert not parts.warnings
    with pytest.raises(UsageError, match=r"router of decoder1 \(task=span_corruption is causal\)"):
        built(words, "model.every=1", "+model.layers.decoder1.router=expert_choice")
    warned = built(words, "router=sinkhorn", "model.every=1").warnings
    assert [text.partition(":")[0] for text in warned] == ["decoder0", "decoder1"]


def test_a_text_without_a_source_is_refused():
    with pytest.raises(UsageError, match="it answers a source, and the task has none") as caught:
        built(["task=stdlib_text", "model=seq2seq"])
    assert "task=span_corruption" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("buckets", "distance"), [(6, 128), (2, 128), (32, 16)])
def test_buckets_that_cannot_be_are_refused(buckets, distance):
    with pytest.raises(UsageError, match=f"model.buckets={buckets}") as caught:
        RelativePositions(16, 4, True, buckets, distance)
    assert "\n" not in str(caught.value)


# -- learning, size and twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["model.every=2", "model.norm=layer", "model.norm_eps=0.01", "model.feed=swiglu", "model.hidden=24"],
        ["model.every=[0]", "model.head_dim=6", "model.buckets=8", "model.distance=10", "model.tied=false"],
        ["model.every=1", "model.dropout=0.1", "model.shared=1", "model.shared_mix=mix", "router=hash"],
    ],
)
def test_every_option_learns_and_has_its_twin(words, options):
    parts = built(words, *options)
    optimizer, losses = torch.optim.AdamW(parts.model.parameters(), 1e-2), []
    for step in range(8):
        batch = parts.task.train_batch(step, 4, 0)
        optimizer.zero_grad()
        total = parts.objective(parts.model(batch.x, batch.known), batch.target)["total"]
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    missing = [n for n, p in parts.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    twin = built(words, *options, "model.twin=true")
    assert twin.size.flops == pytest.approx(parts.size.flops, rel=0.03)


def test_sizes_by_hand(words):
    """Three attentions of 4 D D of two blocks each, relative tables of 32 buckets x 4 heads on both sides."""
    model, d = built(words, "model.every=1").model, 16
    counts = roles(model)
    assert counts["attention"] == 2 * (3 * 4 * d * d) + 2 * 32 * 4
    assert counts["norm"] == (2 * 2 + 2 * 3 + 2) * d
    assert cache_growth(model) == 2 * 2 * d  # of each further token of the answer, in two blocks


def test_a_model_without_weights_counts_the_same(words):
    """The meta device, where routers decide for real: also those that must know which ids a side reads."""
    for router in ("top_k", "hash", "oracle"):
        made = [*words, "model.every=1", f"router={router}"]
        seen = shape(compose(made))
        counted, found = measure(seen.model, seen.x), assemble(compose(made)).size
        assert (counted.total, counted.flops) == (found.total, found.flops)


def test_plans_of_both_sides_are_written(words, tmp_path):
    """Encoder and decoder have other tokens: each one's plan stands at its own number."""
    parts = built(words, "model.every=1")
    file = tmp_path / "plans.npz"
    write_plans(Loaded(None, parts.config, parts.task, parts.model, parts.device), file)
    arrays, batch = np.load(file), parts.task.batch("test", torch.arange(2))
    for index, (name, routing) in enumerate(parts.model.eval()(batch.x, batch.known).routings.items()):
        number = batch.row[routing.example] + routing.position
        assert number.unique().numel() == len(number) == int((batch.x[:, parts.model.reads(name)] >= 0).sum())
        best = routing.plan.weights.argmax(-1)
        assert arrays["expert"][index, number.numpy(), 0].tolist() == best.tolist()
        assert len(best.unique()) > 1


def test_what_is_noted_of_a_source_has_no_target(words):
    parts = built(words, "model.every=1")
    found = evaluate(parts.model, parts.task, "test", parts.device, trace=True).tokens
    for name, (tokens,) in found.items():
        place, source = tokens["position"], parts.task.source
        given = name.startswith("encoder")
        assert ((place < source) == given).all() and ((tokens["target"] == -1) == given).all()
        assert ((tokens["label_side"] == 0) == given).all() and (tokens["id"] >= 0).all()


def test_the_doctor_sees_no_future_but_where_there_is_one(words):
    parts = built(words, "model.every=1")
    assert not leak(parts.model, parts.task, parts.device).found
    for block in parts.model.decoder.values():
        block.attention.causal = False
    assert leak(parts.model, parts.task, parts.device).found


# -- answers -------------------------------------------------------------------------------------------------


@torch.no_grad()
def uncached(model, source, begin, end):
    """The likeliest token after each other, everything read again for each of them."""
    x, answer = torch.cat([source, torch.full((len(source), 1), begin)], dim=1), []
    done = torch.zeros(len(source), dtype=torch.bool)
    for _ in range(LONGEST):
        token = model.eval()(x).prediction[:, -1].argmax(-1).masked_fill(done, end)
        done |= token == end
        x, answer = torch.cat([x, token[:, None]], dim=1), [*answer, token]
    return torch.stack(answer, dim=1)


def loud(*made, **options):
    """A model whose answers differ: as they start, models say much the same to everyone."""
    model = small(*made, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def sources():
    x = torch.randint(VOCAB, (4, SOURCE), generator=torch.Generator().manual_seed(2))
    x[1, :3], x[2, :5] = -1, -1
    return x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("router", ["top_k", "hash"])
def test_cached_answers_equal_uncached_ones(name, router):
    model = loud(name, router)
    found = decode(model, sources(), begin=0, end=VOCAB, most=LONGEST)  # an end that is never said
    assert torch.equal(found, uncached(model, sources(), 0, VOCAB)) and found.shape == (4, LONGEST)
    assert len(found.unique(dim=0)) > 1, "one answer to all would show nothing"
    end = int(found[0, 2])
    short = decode(model, sources(), 0, end, LONGEST)
    assert torch.equal(short, uncached(model, sources(), 0, end)[:, : short.shape[1]])
    first = (short[0] == end).nonzero()[0, 0]
    assert (short[0, first:] == end).all()
    assert decode(model.train(), sources(), 0, VOCAB, 1).shape == (4, 1) and model.training


def test_a_short_source_is_padded():
    model = loud("seq2seq")
    found = decode(model, sources()[2:3, 3:], 0, VOCAB, LONGEST)
    assert torch.equal(found, decode(model, sources()[2:3], 0, VOCAB, LONGEST))
    with pytest.raises(ValueError, match="reads 6"):
        decode(model, torch.zeros(1, SOURCE + 1, dtype=torch.int64), 0, VOCAB, LONGEST)


def test_only_what_reads_the_answer_must_be_independent():
    choosing = {"encoder1": {"router": option_node("router", "expert_choice")}}
    model = loud("seq2seq", layers=choosing)
    found = decode(model, sources(), 0, VOCAB, LONGEST)
    assert torch.equal(found, uncached(model, sources(), 0, VOCAB))
    for name, layers in (
        ("seq2seq", {"decoder1": choosing["encoder1"]}),
        ("transformer", {"block0": choosing["encoder1"]}),
    ):
        with pytest.raises(UsageError, match=f"answers in words .{next(iter(layers))}.: each expert picks") as caught:
            decode(small(name, layers=layers), sources(), 0, VOCAB, LONGEST)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="capacity"):
        decode(small("seq2seq", "top_k", {"capacity_factor": 1.0}), sources(), 0, VOCAB, LONGEST)
