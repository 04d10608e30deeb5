"""model=seq2seq against transformers' Switch Transformers (an encoder-decoder of T5's family), tiny and random."""

from __future__ import annotations

import pytest
import torch

from moecli.config import build as build_part
from moecli.config import option_node
from moecli.models.relative import bucket
from moecli.parts import Parts
from tests.parity import blocks

transformers = pytest.importorskip("transformers")
SINGLE, VISIBLE, SOURCE, LENGTH = 1e-5, 1e-3, 40, 30
SIZES = {"vocab_size": 50, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_heads": 4, "num_experts": 4}
SPARSE = {
    name: 2 for name in ("num_layers", "num_decoder_layers", "num_sparse_encoder_layers", "num_sparse_decoder_layers")
}


@pytest.fixture(scope="module")
def theirs():
    config = transformers.SwitchTransformersConfig(
        **SIZES, **SPARSE, expert_capacity=1000, tie_word_embeddings=False, relative_attention_max_distance=20
    )
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    with torch.no_grad():  # so that every part has a say: their own start leaves the attention nearly uniform
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if "norm" in name else 0.4) + ("norm" in name))
        for side in (model.encoder, model.decoder):  # with a head of its own, theirs have three embeddings, ours one
            side.embed_tokens.weight.copy_(model.shared.weight)
    return model


def ours(theirs, **changed):
    """The model that a run would build from their configuration, with their weights."""
    config = theirs.config
    mixture = blocks.switch(config, SOURCE)
    own = {
        "dim": config.d_model, "depth": config.num_layers, "heads": config.num_heads, "head_dim": config.d_kv,
        "every": 1, "norm_eps": config.layer_norm_epsilon, "buckets": config.relative_attention_num_buckets,
        "distance": config.relative_attention_max_distance, "tied": False,
    }  # fmt: skip
    chosen = {"gate": "linear", "expert": "feed_forward", "router": "top_k", "model": "seq2seq"}
    options = mixture | {f"model.{name}": value for name, value in (own | changed).items()}
    nodes = {
        group: option_node(group, name)
        | {key.removeprefix(f"{group}."): v for key, v in options.items() if key.startswith(f"{group}.")}
        for group, name in chosen.items()
    }
    parts = Parts({**nodes, "num_experts": config.num_experts})
    sizes = {"vocab_size": config.vocab_size, "source": SOURCE}
    model = build_part(nodes["model"], parts=parts, dim=0, out=config.vocab_size, **sizes)
    model.load_state_dict(weights(config, theirs.state_dict()))
    return model.eval()


def weights(config, state):
    """Theirs in our words.  T5 does not divide logits by the square root of a head's features: ours get that factor."""
    found = {
        "embedding.weight": state["shared.weight"], "output.weight": state["lm_head.weight"],
        "source_norm.weight": state["encoder.final_layer_norm.weight"],
        "norm.weight": state["decoder.final_layer_norm.weight"],
    }  # fmt: skip
    for side, table in (("encoder", "around"), ("decoder", "before")):
        bias = state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        found[f"{table}.table.weight"] = bias
        for index in range(config.num_layers):
            prefix = f"{side}.block.{index}.layer."
            block = {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}
            found |= {f"{side}.{side}{index}.{name}": w for name, w in _block(config, block).items()}
    return found


def _block(config, state):
    last = max(int(name[0]) for name in state)  # the feed-forward part: 1 in the encoder, 2 in the decoder
    mixture = {n.removeprefix(f"{last}.mlp."): w for n, w in state.items() if n.startswith(f"{last}.mlp.")}
    scale = config.d_kv**0.5
    own = [state[f"0.SelfAttention.{name}.weight"] for name in "qkv"]
    found = {
        "attention.qkv.weight": torch.cat([scale * own[0], *own[1:]]),
        "attention.out.weight": state["0.SelfAttention.o.weight"],
        "norm1.weight": state["0.layer_norm.weight"],
        "norm2.weight": state[f"{last}.layer_norm.weight"],
        **{f"feed.{name}": w for name, w in blocks.switch_weights(config, mixture).items()},
    }
    if last == 1:
        return found
    cross = {name: state[f"1.EncDecAttention.{name}.weight"] for name in "qkvo"}
    return found | {
        "cross.q.weight": scale * cross["q"],
        "cross.kv.weight": torch.cat([cross["k"], cross["v"]]),
        "cross.out.weight": cross["o"],
        "norm3.weight": state["1.layer_norm.weight"],
    }


def sample(padded):
    """Ids (3, SOURCE + LENGTH), sources of different lengths if ``padded``."""
    x = torch.randint(1, SIZES["vocab_size"], (3, SOURCE + LENGTH), generator=torch.Generator().manual_seed(1))
    if padded:
        x[1, :7], x[2, :25] = -1, -1
    return x


def answers(theirs, x):
    source, target = x[:, :SOURCE], x[:, SOURCE:]
    mask = (source >= 0).long()
    return theirs(input_ids=source.clamp_min(0), attention_mask=mask, decoder_input_ids=target).logits


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_logits_are_those_of_switch_transformers(theirs, padded):
    x = sample(padded)
    expected, found = answers(theirs, x), ours(theirs)(x).prediction
    assert (found - expected).abs().max() < SINGLE * expected.abs().max()


@pytest.mark.parametrize("changed", [{"distance": 30}, {"norm_eps": 0.1}])
@torch.no_grad()
def test_the_comparison_sees_what_is_small(theirs, changed):
    x = sample(padded=False)
    expected, found = answers(theirs, x), ours(theirs, **changed)(x).prediction
    assert (found - expected).abs().max() > VISIBLE * expected.abs().max()


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (16, 64)])
def test_buckets_are_those_of_t5(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = torch.arange(-300, 301)
    for causal in (True, False):
        expected = T5Attention._relative_position_bucket(ahead, not causal, buckets, distance)
        assert torch.equal(bucket(ahead, causal, buckets, distance), expected)
        assert len(expected.unique()) > buckets / 2
