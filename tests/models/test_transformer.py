"""The transformer's options: each does what its paper says, and without any the model is what it was, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moecli.analysis import matrix
from moecli.compatibility import small_router
from moecli.config import compose, registry
from moecli.errors import UsageError
from moecli.mixture import MixtureOfExperts
from moecli.models.attention import Attention, dense, norm_of, rotate
from moecli.models.places import places
from moecli.parts import Parts
from moecli.run import assemble
from tests.models import frozen

DIM = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 80)
    sizes = {"task.context": 16, "model.dim": DIM, "model.depth": 2, "expert.hidden": 8, "num_experts": 4}
    return ["task=text", f"task.path={file}", "trainer.batch_size=4", *(f"{k}={v}" for k, v in sizes.items())]


def built(*words):
    return assemble(compose(list(words)))


def trained(parts, model, steps=3):
    """The losses of some steps of AdamW."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(steps):
        batch = parts.task.train_batch(step, 4, 0)
        optimizer.zero_grad()
        total = parts.objective(model(batch.x, batch.known), batch.target)["total"]
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


# -- what it was ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
def test_without_options_it_is_what_it_was_to_the_bit(text, every):
    words = [*text, "model.depth=4", f"model.every={every}", "seed=3"]
    parts = built(*words)
    torch.manual_seed(3)
    was = frozen.Transformer(Parts(parts.config), parts.task.vocab_size, DIM, 4, 4, every)
    assert list(was.state_dict()) == list(parts.model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(was.state_dict().values(), parts.model.state_dict().values(), strict=True)
    )
    losses = trained(parts, parts.model)
    assert losses == trained(parts, was)
    assert all(torch.equal(a, b) for a, b in zip(was.parameters(), parts.model.parameters(), strict=True))
    other = built(*words, "model.rotary_base=9999.0")
    assert losses != trained(other, other.model), "the comparison sees what is small"


# -- options -------------------------------------------------------------------------------------------------

TOGETHER = [
    ["norm=layer", "norm_eps=0.01", "qk_norm=true", "qkv_bias=true"],
    ["kv_heads=2", "rotary_base=500.0", "feed=swiglu", "hidden=24"],
    ["kv_heads=1", "every=[0]", "tied=false", "dropout=0.1", "head_dim=6"],
    ["attention=latent", "kv_rank=12", "q_rank=8"],
]


@pytest.mark.parametrize("options", TOGETHER)
def test_every_option_learns_and_has_its_twin(text, options):
    words = [*text, "model.every=2", *(f"model.{option}" for option in options)]
    parts = built(*words)
    first, *_, last = trained(parts, parts.model, steps=8)
    assert last < first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.model.parameters())
    twin = built(*words, "model.twin=true")
    assert twin.size.flops == pytest.approx(parts.size.flops, rel=0.02)


def test_every_option_is_tried(text):
    own = {key for key in compose([*text]).config["model"] if key not in ("_target_", "dim", "depth", "heads")}
    tried = {option.partition("=")[0] for options in TOGETHER for option in options}
    assert own - tried == {"shared", "shared_mix", "twin", "allow_leak", "layers"}  # of every model: elsewhere


def test_shared_keys_and_values_are_those_of_more_heads_repeated():
    """Grouped queries: 4 heads over 2 keys and values equal 4 heads whose keys and values are the same two by two."""
    torch.manual_seed(0)
    grouped, plain = Attention(DIM, 4, kv_heads=2).double(), Attention(DIM, 4).double()
    q, k, v = grouped.qkv.weight.split([DIM, DIM // 2, DIM // 2])
    repeated = [w.unflatten(0, (2, -1)).repeat_interleave(2, dim=0).flatten(0, 1) for w in (k, v)]
    plain.load_state_dict({"qkv.weight": torch.cat([q, *repeated]), "out.weight": grouped.out.weight})
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    assert torch.allclose(grouped(x), plain(x), atol=1e-12)
    swapped = [w.unflatten(0, (2, -1)).flip(0).repeat_interleave(2, dim=0).flatten(0, 1) for w in (k, v)]
    plain.load_state_dict({"qkv.weight": torch.cat([q, *swapped]), "out.weight": grouped.out.weight})
    assert not torch.allclose(grouped(x), plain(x), atol=1e-3)


def test_attention_by_hand():
    """softmax(q k / sqrt F) v, causal or not, with rotary positions or none."""
    torch.manual_seed(0)
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    for causal in (True, False):
        for base in (10_000.0, 30.0, None):
            layer = Attention(DIM, 4, causal=causal, rotary_base=base).double()
            q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=-1))
            q, k = (t if base is None else rotate(t, 0, base) for t in (q, k))
            scores = q @ k.transpose(-1, -2) / 2
            seen = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
            y = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
            assert torch.allclose(layer(x), layer.out(y.transpose(1, 2).flatten(-2)), atol=1e-12)


def test_normed_queries_and_keys_do_not_grow_with_their_weights():
    torch.manual_seed(0)
    layer = Attention(DIM, 4, qk_norm=lambda width: norm_of("rms", width)).double()
    x, before = torch.randn(1, 5, DIM, dtype=torch.float64), None
    with torch.no_grad():
        before = layer(x)
        layer.qkv.weight[: 2 * DIM] *= 100
    assert torch.allclose(layer(x), before, atol=1e-9)
    with torch.no_grad():
        layer.qkv.weight[2 * DIM :] *= 100  # values are not normed
    assert not torch.allclose(layer(x), before, atol=1e-3)


def test_norms_and_dense_layers_by_their_formulas():
    torch.manual_seed(0)
    x = 3 + torch.randn(4, DIM, dtype=torch.float64)
    rms, layer = (norm_of(kind, DIM, eps=0.1).double()(x) for kind in ("rms", "layer"))
    assert torch.allclose(rms, x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt())
    centred = x - x.mean(-1, keepdim=True)
    assert torch.allclose(layer, centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt())
    gated = dense("swiglu", DIM, 24).double()
    assert torch.allclose(gated(x), (F.silu(x @ gated.up.weight.T) * (x @ gated.gate.weight.T)) @ gated.down.weight.T)
    assert all("bias" not in name for name, _ in gated.named_parameters())


def test_tied_and_free_embeddings(text):
    tied, free = built(*text), built(*text, "model.tied=false")
    assert free.size.total - tied.size.total == tied.task.vocab_size * DIM
    batch = tied.task.train_batch(0, 2, 0)
    state = tied.model.norm.register_forward_hook(lambda *args: states.append(args[2]))
    states: list[torch.Tensor] = []
    logits = tied.model(batch.x).prediction
    state.remove()
    assert torch.equal(logits, states[0] @ tied.model.embedding.weight.T)


@pytest.mark.parametrize(("every", "number", "found"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3]), ([3, 1], 4, [1, 3])])
def test_places_of_mixtures(every, number, found):
    assert places(every, number) == found


def test_blocks_of_a_list_have_a_mixture(text):
    model = built(*text, "model.depth=4", "model.every=[1,3]").model
    assert list(model.mixtures) == ["block1", "block3"]
    assert [isinstance(block.feed, MixtureOfExperts) for block in model.blocks.values()] == [False, True, False, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.every=[4]"], r"model\.every=\[4\]: no place 4\. Choose from 0 to 1"),
        (["model.every=[-1]"], "no place -1"),
        (["model.every=[]"], "no place has a mixture"),
        (["model.every=9"], "Lower model.every"),
        (["model.every=0"], "at least 1"),
        (["model.every=some"], "whole number"),
        (["model.kv_heads=3"], "4 heads do not divide among so many"),
        (["model.dim=12"], "an even share"),
        (["model.dim=12", "model.head_dim=3"], r"model\.head_dim=3: .*even number"),
        (["model.kv_rank=8"], r"model\.kv_rank=8 \(model\.attention=full\): it belongs to model\.attention=latent"),
        (["model.attention=latent", "model.kv_heads=2"], r"model\.kv_heads=2 .*belongs to model\.attention=full"),
        (["model.attention=latent", "model.head_dim=6"], "that four divides"),
        (["model.attention=latent", "model.heads=3"], "each of 3 heads needs an equal share"),
        (["model.norm=batch"], "'rms' or 'layer'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(text, words, said):
    with pytest.raises(UsageError, match=said) as caught:
        built(*text, *words)
    assert "\n" not in str(caught.value)


# -- every router --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["transformer (text)", "lstm (text)", "seq2seq (pairs)"])
def test_the_matrix_lets_every_causal_router_in(column):
    """Two training steps of each: tests/test_contract.py, which walks the matrix."""
    fitting = {c.router for c in matrix.cells() if c.column == f"model={column}" and c.refusal is None}
    causal = {router for router in registry()["router"] if small_router(router).claims(training=False).causal}
    assert fitting == causal and 17 <= len(causal) < len(registry()["router"])
