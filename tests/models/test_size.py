"""What is counted without weights is what is counted with them, and what was published."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from moecli import config
from moecli.analysis.explain import header
from moecli.cli import app as application
from moecli.config import compose, option_node, registry
from moecli.diagnosis.size import account, exchanged, numbers_kept
from moecli.errors import MoeError, UsageError
from moecli.models.size import cache_growth, measure, roles
from moecli.models.weightless import Counted
from moecli.routers.top_k import TopK
from moecli.run import assemble, shape
from moecli.tasks.random_images import RandomImages
from moecli.tasks.random_tokens import RandomTokens

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["task=languages", "task.documents=60", "trainer.batch_size=16", "auxiliary=[]", "model.allow_leak=true"]
TINY = ["task=random_tokens", "task.context=16", "task.vocab_size=50", "model.dim=16", "model.depth=2", "model.heads=4"]

# Total and active, as their makers print them; None where they print none.
PUBLISHED = {
    "mixtral": ("46.7B", "12.9B"),  # Mistral AI's announcement of Mixtral 8x7B (2023)
    "dbrx": ("132B", "36B"),  # Databricks' announcement and model card (2024)
    "olmoe": ("6.9B", "1.3B"),  # Muennighoff et al. (2024), abstract and model card
    "deepseek_moe": ("16.4B", "2.8B"),  # Dai et al. (2024) and the repository's README, of DeepSeekMoE 16B
    "deepseek_v2": ("236B", "21B"),  # DeepSeek-AI (2024), abstract
    "glam": ("1.2T", "96.6B"),  # Du et al. (2021)
    "vmoe": ("14.7B", None),  # Riquelme et al. (2021), whose appendix has the sizes
    "dit_moe": ("16.5B", "3.1B"),  # Fei et al. (2024), table 1; the shared experts' width from the repository
    "switch_c": ("1571B", None),  # Fedus et al. (2021), table 9
    "gshard": ("600B", None),  # Lepikhin et al. (2020), table 1; sizes from appendix A.2
    "nllb": ("54.5B", None),  # NLLB Team (2022); sizes of the released checkpoint
    "palm": ("540.35B", "540.35B"),  # Chowdhery et al. (2022), table 1
}


def rounded(number: int, like: str) -> str:
    """A count with the unit of ``like`` and as many digits; the zeros that end a whole number are none of them."""
    digits, unit = like[:-1], {"T": 1e12, "B": 1e9}[like[-1]]
    decimals = len(digits.partition(".")[2])
    last = decimals if "." in digits else len(digits.rstrip("0")) - len(digits)
    return f"{round(number / unit, last):.{decimals}f}{like[-1]}"


RELEASED = {"mixtral": 46_702_792_704, "deepseek_v2": 235_741_434_880}  # to the last parameter of the checkpoints
UNCOUNTED = {"palm": ("norm",)}  # PaLM's figures, of 8B, 62B and 540B alike, are those without the norms
LOOSE = {"dbrx": 0.5, "dit_moe": 0.1}  # billions active: 36.47B of embeddings and all printed as 36B, 3.18B cut to 3.1B
FEW = (
    "mixtral",
    "olmoe",
)  # run on the meta device here; the others, of which here only parameters are counted, are slow


@pytest.fixture(scope="module")
def published():
    return {name: account(compose([f"experiment=size_{name}"])) for name in FEW}


def test_every_published_model_is_checked():
    names = sorted(path.stem for path in (ROOT / "conf/experiment").glob("size_*.yaml"))
    assert names == sorted(f"size_{name}" for name in PUBLISHED)
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "conf/references.bib").read_text(encoding="utf-8"), re.M))
    for name in names:
        said = dict(
            line.split(": ", 1) for line in header(name) if line.split(": ")[0] in ("published", "command", "paper")
        )
        assert said["command"] == f"moe size experiment={name}" and said["paper"] in known
        assert all(number in said["published"] for number in PUBLISHED[name.removeprefix("size_")] if number)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals_come_out(name):
    total, _ = PUBLISHED[name]
    counts = roles(shape(compose([f"experiment=size_{name}"])).model)
    assert rounded(sum(counts.values()) - sum(counts[role] for role in UNCOUNTED.get(name, ())), total) == total
    assert sum(counts.values()) == RELEASED.get(name, sum(counts.values()))


FAMILIES = [  # width, depth and heads of smaller ones
    ("palm", "62.50B", (8192, 64, 32), []),  # PaLM 62B and 8B, by the same table
    ("palm", "8.63B", (4096, 32, 16), []),
    ("dit_moe", "0.199B", (384, 12, 6), ["model.shared_hidden=384", "num_experts=8", "task.side=32"]),  # S/2-8E2A
]


@pytest.mark.parametrize(("name", "total", "sizes", "more"), FAMILIES, ids=[total for _, total, _, _ in FAMILIES])
def test_smaller_models_of_a_family_come_out_too(name, total, sizes, more):
    dim, depth, heads = sizes
    words = [f"model.dim={dim}", f"model.depth={depth}", f"model.heads={heads}", f"expert.hidden={4 * dim}", *more]
    counts = roles(shape(compose([f"experiment=size_{name}", *words])).model)
    assert rounded(sum(counts.values()) - sum(counts[role] for role in UNCOUNTED.get(name, ())), total) == total


def check(name, found):
    """Total, active and the document's row of one model."""
    total, active = (found["parameters"][key] for key in ("total", "active"))
    left_out = sum(found["parameters"][role] for role in UNCOUNTED.get(name, ()))
    said_total, said = PUBLISHED[name]
    assert rounded(total - left_out, said_total) == said_total
    if said is not None:
        near = abs(active / 1e9 - float(said[:-1])) < LOOSE.get(name, 0)
        assert near or rounded(active - left_out, said) == said
    assert sum(n for role, n in found["parameters"].items() if role not in ("total", "active")) == total
    counted = f"{total / 1e9:.2f}B" if total == active else f"{total / 1e9:.2f}B, {active / 1e9:.2f}B"
    assert re.search(
        rf"^\| `size_{name}` .*\| {counted} \|$", (ROOT / "docs/size.md").read_text(encoding="utf-8"), re.M
    )


@pytest.mark.parametrize("name", FEW)
def test_published_active_parameters_come_out(published, name):
    check(name, published[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - set(FEW)))
def test_other_published_active_parameters_come_out(name):
    check(name, account(compose([f"experiment=size_{name}"])))


def test_other_sizes_would_not_be_the_published_ones(published):
    other = sum(roles(shape(compose(["experiment=size_mixtral", "model.kv_heads=32"])).model).values())
    assert rounded(other, "46.7B") != "46.7B"


def test_flops_are_two_for_each_active_weight_and_four_for_each_pair_of_positions(published):
    found, (dim, depth, context) = published["mixtral"], (4096, 32, 4096)
    parameters = found["parameters"]
    multiplied = parameters["active"] - parameters["embedding"] - parameters["norm"]
    assert found["flops"] == {
        "forward": 2 * multiplied + 4 * depth * context * dim,
        "training": 3 * found["flops"]["forward"],
    }
    assert found["cache"] == 2 * depth * (dim // 32) * 8 * 4  # keys and values of 8 heads of 128, four bytes each


def test_latent_attention_and_shared_experts_by_hand():
    """The first three blocks of DeepSeek-V2 over a short context: what docs/size.md computes of all."""
    context, layers, heads, width = 8, 3, 128, 5120
    short = [f"task.context={context}", f"model.depth={layers}", "model.every=[1,2]"]
    found = account(compose(["experiment=size_deepseek_v2", *short]), "bfloat16", expert_parallel=8)
    queries, latent = 1536 * (width + heads * 192), 512 * heads * 256 + (512 + 64) * width
    assert found["parameters"]["attention"] == layers * (queries + latent + heads * 128 * width)
    assert found["cache"] == layers * (512 + 64) * 2
    assert found["layers"]["block2"]["all_to_all"] == 6 * (width + width) * 2 * 7 / 8 == 107_520
    memory = sum(found["memory"][part] for part in ("weights", "gradients", "optimizer"))
    assert memory == 16 * found["parameters"]["total"]
    multiplied = found["parameters"]["active"] - found["parameters"]["embedding"] - found["parameters"]["norm"]
    scores = layers * heads * context * (192 + 128)
    shared = (layers - 1) * 2 * width  # two answers a token are added up, as a product with their weights
    assert found["flops"]["forward"] == 2 * (multiplied + scores + shared)


def test_nothing_is_allocated():
    model = shape(compose(["experiment=size_mixtral"])).model
    real = [parameter for parameter in model.parameters() if not parameter.is_meta]
    assert not real and all(tensor.is_meta for tensor in model.state_dict().values())


def compared(task, routers):
    """How many of the routers fit a task, and count the same without weights."""
    number, estimated = 0, {"top_p", "random_second"}  # how many rows those make depends on the logits
    for router in routers:
        composed = compose([*task, f"router={router}"])
        try:
            real = assemble(copy.deepcopy(composed)).size
        except MoeError:
            continue
        found = shape(composed)
        size = measure(found.model, found.x)
        assert size == real if router not in estimated else size.total == real.total, router
        number += 1
    return number


def test_routers_count_the_same_without_weights():
    assert compared(SMALL, ["top_k", "dense", "hash", "expert_choice", "soft_slots", "noisy_top_k", "top_p"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("task", [SMALL, ["task=digits", "auxiliary=[]"]], ids=["languages", "digits"])
def test_every_router_counts_the_same_without_weights(task):
    assert compared(task, registry()["router"]) >= 14


@pytest.mark.parametrize(
    "words",
    [
        ["task=digits", "expert.activation=swiglu", "model.shared=2", "model.shared_mix=mix", "model.depth=2"],
        ["task=digits", "model.twin=true"],
        pytest.param(["task=speakers"], marks=pytest.mark.slow),
        ["task=spirals", "model=density", "gate=gaussian"],
        [*SMALL, "model.twin=true"],
        [*SMALL, "model=lstm", "model.depth=2"],
        [*SMALL, "model.kv_heads=1", "model.qk_norm=true", "model.tied=false", "model.feed=swiglu"],
        [*SMALL, "model.attention=latent", "model.q_rank=8"],
        [*SMALL, "router=expert_choice", "router.group=position"],
    ],
    ids=" ".join,
)
def test_every_model_counts_the_same_without_weights(words):
    composed = compose(words)
    found = shape(copy.deepcopy(composed))
    assert measure(found.model, found.x) == assemble(composed).size


def test_parts_that_need_numbers_are_refused_in_one_line():
    with pytest.raises(UsageError, match="moe train --dry-run"):
        account(compose(["task=piecewise", "model=density", "family=student_t"]))


def test_what_does_not_fit_is_refused_as_in_training():
    with pytest.raises(UsageError, match="future"):
        account(compose([*TINY, "router=expert_choice", "auxiliary=[]"]))


# -- cache, memory, traffic -----------------------------------------------------------------------


LATENT = ["model.attention=latent", "model.kv_rank=6"]


@pytest.mark.parametrize(
    ("words", "grown"),
    [
        ([], 2 * 2 * 16),  # two layers, of keys and values
        (["model.kv_heads=1"], 2 * 2 * 4),
        (["model.head_dim=6"], 2 * 2 * 24),
        (LATENT, 2 * (6 + 2)),  # of latents and the half of a head's features that is turned
        (["model=lstm"], 0),
    ],
    ids=["heads", "one head", "wide heads", "latent", "lstm"],
)
def test_the_cache_is_what_a_past_grows_by(words, grown):
    shared = [word for word in TINY if words != ["model=lstm"] or "heads" not in word]
    model = assemble(compose([*shared, *words])).model
    one, two = (
        sum(t.numel() for kept in model.step(torch.zeros(1, n).long())[1].kept.values() for t in kept) for n in (1, 2)
    )
    assert cache_growth(model) == two - one == grown


def test_a_model_without_a_past_has_no_cache():
    assert account(compose(["task=digits"]))["cache"] is None


@pytest.mark.parametrize(
    ("words", "kept"),
    [(["optimizer=adamw"], 2), (["optimizer=sgd"], 1), (["optimizer=sgd", "optimizer.momentum=0"], 0)],
)
def test_what_an_optimizer_keeps(words, kept):
    settings = compose(words).config
    assert numbers_kept(settings["optimizer"]) == kept


def test_memory_of_weights_gradients_and_moments():
    memory = {dtype: account(compose(TINY), dtype)["memory"] for dtype in ("float32", "bfloat16")}
    total = account(compose(TINY))["parameters"]["total"]
    assert [memory["float32"][part] / total for part in ("weights", "gradients", "optimizer")] == [4, 4, 8]
    assert [memory["bfloat16"][part] / total for part in ("weights", "gradients", "optimizer")] == [2, 2, 12]
    by_em = account(compose(["task=piecewise", "model=density", "router=dense", "expert=linear", "trainer=em"]))[
        "memory"
    ]
    assert by_em["gradients"] == by_em["optimizer"] == 0 < by_em["weights"]


def test_rows_cross_between_devices_but_for_those_that_stay():
    experts = Counted(config.build(option_node("expert", "linear"), dim=6, out=10, num_experts=8), out=10)
    experts.read = 6
    assert exchanged(experts, rows=2.0, size=4, width=1) == 0
    # 2 rows x (6 there + 10 back) x 4 bytes = 128, and 3 of 4 devices are others
    assert exchanged(experts, rows=2.0, size=4, width=4) == 96
    with pytest.raises(UsageError, match="--expert-parallel 3: 8 experts"):
        exchanged(experts, rows=2.0, size=4, width=3)


def test_traffic_of_a_layer():
    found = account(compose([*TINY, "num_experts=4", "router.k=2"]), "bfloat16", expert_parallel=2)
    assert found["layers"]["block0"] == {"experts": 4, "rows_per_token": 2.0, "all_to_all": 2 * (16 + 16) * 2 / 2}


# -- the command and its task ---------------------------------------------------------------------


def said(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["moe", *words])
    with pytest.raises(SystemExit) as ended:
        application.main()
    return (ended.value.code, *capsys.readouterr())  # type: ignore[return-value]


def test_the_command_prints_a_table_or_json(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "size", *TINY)
    assert code == 0
    assert re.search(r"^ parameters +\d", out, re.M) and re.search(r"block0 … block1 \(2\) +8 +2 ", out)
    code, out, _ = said(monkeypatch, capsys, "size", *TINY, "--json")
    assert (code, json.loads(out)) == (0, account(compose(TINY)))


def test_a_width_that_does_not_divide_is_one_line(monkeypatch, capsys):
    code, out, err = said(monkeypatch, capsys, "size", *TINY, "--expert-parallel", "5")
    assert (code, out) == (2, "") and re.fullmatch(r"moe: error: --expert-parallel 5: [^\n]+\n", err)


def test_random_images_teach_nothing_and_take_no_memory():
    """Plain for model=vision, noisy for model=diffusion."""
    task = RandomImages(channels=3, side=8, classes=5, images=2**40)
    batch, again, other = task.train_batch(3, 4, 0), task.train_batch(3, 4, 0), task.train_batch(4, 4, 0)
    assert torch.equal(batch.x, again.x) and not torch.equal(batch.x, other.x)
    assert batch.x.shape == (4, 3 * 8 * 8) and batch.target.shape == (4,)
    noisy = RandomImages(channels=3, side=8, classes=5, noisy=True, images=400)
    assert noisy.train_batch(0, 4, 0).x.shape == (4, 3 * 8 * 8 + 1 + 5) and noisy.dim == 198
    assert noisy.chance("test")["mse"] == pytest.approx(1, abs=0.2)
    small = RandomImages(classes=5, images=400)
    assert small.chance("test")["nll"] == pytest.approx(math.log(5))
    splits = [small.batch(split, torch.arange(2)).x for split in small.sizes]
    assert not any(torch.equal(a, b) for a, b in pairwise(splits))


def test_shared_experts_may_have_other_hidden_units():
    words = ["task=digits", "model=vision", "model.depth=1", "model.every=1", "model.shared=2"]
    wide, narrow = (assemble(compose([*words, *more])).model for more in ([], ["model.shared_hidden=6"]))
    shared, routed = (narrow.mixtures["block0"].shared.experts, narrow.mixtures["block0"].experts)
    assert shared.up.weight.shape[-1] == 6 != routed.up.weight.shape[-1]
    assert wide.mixtures["block0"].shared.experts.up.weight.shape[-1] == routed.up.weight.shape[-1]
    with pytest.raises(UsageError, match=r"model\.shared_hidden=6: these experts have no hidden units"):
        assemble(compose([*words, "expert=linear", "model.shared_hidden=6"]))


def test_random_tokens_teach_nothing_and_take_no_memory():
    task = RandomTokens(vocab_size=20, context=8, sequences=2**40)
    batch, again, other = task.train_batch(3, 4, 0), task.train_batch(3, 4, 0), task.train_batch(4, 4, 0)
    assert torch.equal(batch.x, again.x) and not torch.equal(batch.x, other.x)
    assert torch.equal(batch.x[:, 1:], batch.target[:, :-1]) and batch.x.shape == (4, 8)
    answering = RandomTokens(vocab_size=20, context=8, source=5).train_batch(3, 4, 0)
    assert answering.x.shape == (4, 13) and torch.equal(answering.x[:, 6:], answering.target[:, :-1])
    small = RandomTokens(vocab_size=20, context=8, sequences=400)
    assert small.chance("test")["nll"] == pytest.approx(math.log(20))
    splits = [small.batch(split, torch.arange(2)).x for split in small.sizes]
    assert not any(torch.equal(a, b) for a, b in pairwise(splits))


def test_top_k_is_one_of_the_routers_that_decide_for_real():
    assert isinstance(shape(compose(TINY)).model.mixtures["block0"].router, TopK)
