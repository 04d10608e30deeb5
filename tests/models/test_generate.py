"""Generation with a cache says what the model says without one, and is refused where it could not."""

from __future__ import annotations

import pytest
import torch

from moecli.compatibility import routers_giving
from moecli.config import build, option_node, registry
from moecli.errors import UsageError
from moecli.mixture import Output
from moecli.models.generate import Reader, draw, generate
from moecli.models.model import Model, Past
from moecli.parts import Parts

VOCAB, PROMPT, NUMBER, WINDOW = 30, 5, 9, 8  # two windows are filled on the way
MODELS = {
    "transformer": {"dim": 16, "depth": 2, "every": 1, "kv_heads": 2, "qk_norm": True},
    "lstm": {"dim": 16, "depth": 3, "every": [1], "tied": False},
    "latent": {"dim": 16, "depth": 2, "every": 1, "attention": "latent", "head_dim": 8, "kv_rank": 6, "q_rank": 10},
}
TOLD = ("oracle", "replay")  # who must be told of each token what a new text has not
INDEPENDENT = [(router, {}) for router in routers_giving("independent") if router not in TOLD]
INDEPENDENT += [
    ("hash", {"by": "position"}),
    ("hash", {"hashes": 2}),
    ("top_k", {"eval_capacity_factor": float("inf")}),
]


def small(model="transformer", router="top_k", options=None, gate="linear", head="softmax"):
    """A model on 30 words with 4 experts a layer, drawn from seed 0."""
    nodes = {
        group: option_node(group, name) for group, name in (("gate", gate), ("expert", "feed_forward"), ("head", head))
    }
    nodes |= {"router": option_node("router", router) | (options or {}), "num_experts": 4}
    nodes["expert"]["hidden"] = 8
    torch.manual_seed(0)
    node = option_node("model", "lstm" if model == "lstm" else "transformer") | MODELS[model]
    return build(node, parts=Parts(nodes), dim=0, out=VOCAB, vocab_size=VOCAB).eval()


class Forgetful:
    """The same model without a cache: at every step it reads all of its window again."""

    def __init__(self, model, keep=WINDOW):
        self.model, self.mixtures, self.reads_source, self.keep = model, model.mixtures, model.reads_source, keep

    def eval(self):
        return self

    def step(self, x, known=None, past=None):
        seen = x if past is None else torch.cat([past.kept["ids"][0], x], dim=1)
        output = self.model(seen[:, -self.keep :])
        return Output(output.prediction, output.routings), Past(seen.shape[1], {"ids": (seen,)})


def prompt(length=PROMPT, seed=1):
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_along(model, ids, start=PROMPT, window=WINDOW):
    """What a reader says after each token of a text that grows: (T, V)."""
    reader = Reader(model, window)
    return torch.stack([reader(ids[:length]) for length in range(start, len(ids) + 1)])


# -- with a cache and without ----------------------------------------------------------------------------------


CACHED = [("transformer", *case) for case in INDEPENDENT]
CACHED += [("latent", "top_k", {})]
CACHED += [("lstm", router, {}) for router in ("top_k", "dense", "hash", "hierarchical")]


@pytest.mark.parametrize(("name", "router", "options"), CACHED)
def test_cached_equals_uncached(name, router, options):
    model = small(name, router, options)
    ids, experts = generate(model, prompt(), NUMBER, WINDOW, temperature=0)
    again, who = generate(Forgetful(model), prompt(), NUMBER, WINDOW, temperature=0)
    assert torch.equal(ids, again) and experts == who and len(ids) == PROMPT + NUMBER
    assert (logits_along(model, ids) - logits_along(Forgetful(model), ids)).abs().max() < 1e-5
    precise = model.double()
    assert (logits_along(precise, ids) - logits_along(Forgetful(precise), ids)).abs().max() < 1e-10


def test_every_independent_router_was_tried():
    assert {router for router, _ in INDEPENDENT} | set(TOLD) == set(routers_giving("independent"))
    assert len(INDEPENDENT) >= 15 and len(routers_giving("independent")) < len(registry()["router"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", registry()["head"])
def test_cached_equals_uncached_under_every_head(name, head):
    model = small(name, head=head).double()
    ids, _ = generate(model, prompt(), NUMBER, WINDOW, temperature=0)
    assert (logits_along(model, ids) - logits_along(Forgetful(model), ids)).abs().max() < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_that_forgets_would_be_seen(name):
    model = small(name).double()
    ids, _ = generate(model, prompt(), NUMBER, WINDOW, temperature=0)
    assert (logits_along(model, ids) - logits_along(Forgetful(model, keep=2), ids)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_window_is_the_model_on_the_whole_text(name):
    model = small(name).double()
    ids, experts = generate(model, prompt(), NUMBER, window=100, temperature=0)
    whole = model(ids[None])
    assert torch.allclose(logits_along(model, ids, window=100), whole.prediction[0, PROMPT - 1 :], atol=1e-10)
    assert torch.equal(whole.prediction[0, PROMPT - 1 : -1].argmax(-1), ids[PROMPT:])
    assert experts == {n: r.plan.weights.argmax(-1).tolist() for n, r in whole.routings.items()}
    assert all(len(set(served)) > 1 for served in experts.values()), "one expert for all would show nothing"


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (4, 3, 2), (2, 7)])
@torch.no_grad()
def test_a_text_may_be_read_in_pieces_of_any_size(chunks):
    for name in MODELS:
        model, ids, past = small(name).double(), torch.randint(VOCAB, (2, sum(chunks))), None
        found = []
        for piece in ids.split(chunks, dim=1):
            output, past = model.step(piece, past=past)
            found.append(output.prediction)
        assert past.length == ids.shape[1]
        assert torch.allclose(torch.cat(found, dim=1), model(ids).prediction, atol=1e-10)


def test_a_long_prompt_is_read_in_windows():
    model, long = small().double(), prompt(3 * WINDOW + 2)
    ids, experts = generate(model, long, 3, WINDOW, temperature=0)
    again, who = generate(Forgetful(model), long, 3, WINDOW, temperature=0)
    assert torch.equal(ids, again) and experts == who
    assert {len(e) for e in experts.values()} == {len(long) + 3}


# -- refused ---------------------------------------------------------------------------------------------------

REFUSED = [
    ("hash", {"by": "previous"}, "depends on the others"),
    ("hash", {"by": "bigram"}, "depends on the others"),
    ("expert_choice", {}, "picks its tokens from the whole text"),
    ("expert_choice", {"group": "position"}, "expert"),
    ("soft_slots", {}, "slot"),
    ("top_k", {"capacity_factor": 1.0}, "router.eval_capacity_factor=inf"),
    ("hash", {"by": "position", "eval_capacity_factor": 1.0}, "router.eval_capacity_factor=inf"),
    ("dense", {"capacity_factor": 0.5}, "router.eval_capacity_factor=inf"),
]


@pytest.mark.parametrize(("router", "options", "why"), REFUSED)
def test_a_router_that_needs_the_whole_text_is_refused_in_a_line(router, options, why):
    with pytest.raises(UsageError, match=why) as caught:
        generate(small("transformer", router, options), prompt(), 3, WINDOW)
    said = str(caught.value)
    assert said.startswith("--generate (block0): ") and ". " in said and "\n" not in said


@pytest.mark.parametrize(("router", "options"), [(r, o) for r, o, _ in REFUSED if r in ("hash", "dense")])
def test_what_is_refused_would_have_been_wrong(router, options):
    """Also where the claim holds: what a capacity by position drops depends on how many tokens there are."""
    model = small("transformer", router, options).double()
    ids = prompt(WINDOW)
    assert (logits_along(model, ids) - logits_along(Forgetful(model), ids)).abs().max() > 1e-4


@pytest.mark.parametrize("router", TOLD)
def test_a_router_that_must_be_told_says_so(router):
    with pytest.raises(UsageError, match="router=top_k"):
        generate(small("transformer", router), prompt(), 3, WINDOW)


def test_other_refusals():
    with pytest.raises(UsageError, match="no text to go on from"):
        generate(small(), prompt()[:0], 3, WINDOW)
    with pytest.raises(UsageError, match="does not read from left to right"):
        Model().step(prompt()[None])


# -- draws -----------------------------------------------------------------------------------------------------


def test_draws_are_a_pure_function_of_the_seed():
    texts = [tuple(generate(small(), prompt(), NUMBER, WINDOW, 1.5, seed)[0].tolist()) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1] and len(set(texts)) == 3
    model, state = small(), torch.random.get_rng_state()
    generate(model, prompt(), 2, WINDOW)
    assert torch.equal(torch.random.get_rng_state(), state), "the draws are private"


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_tempered_softmax(temperature):
    logits, random = torch.tensor([0.0, 1.0, -0.5]), torch.Generator().manual_seed(0)
    drawn = torch.cat([draw(logits, temperature, random) for _ in range(4000)])
    expected = (logits.double() / temperature).softmax(-1)
    share = drawn.bincount(minlength=3).double() / 4000
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()
    assert (share - logits.double().softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-3])
def test_no_temperature_is_too_low(temperature):
    assert draw(torch.tensor([0.0, 3.0, 2.0]), temperature, torch.Generator().manual_seed(0)).tolist() == [1]
