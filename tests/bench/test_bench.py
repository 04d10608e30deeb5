"""What `moe bench` measures: the same layer for everybody, other tokens at each call, one contestant after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from moecli.bench import contestants, measure
from moecli.bench.cases import CASES, Subject, subjects
from moecli.bench.contestants import COMPARABLE, ours, peers
from moecli.bench.measure import WARM, Contestant, interleaved, peak, saved_bytes
from moecli.bench.run import ALL, Asked, bench
from moecli.bench.workload import Workload, build_workload
from moecli.config import flat
from moecli.errors import EnvironmentFailure, UsageError
from moecli.kernels.choose import KERNELS

TOKENS, DIM, HIDDEN, EXPERTS = 48, 16, 24, 4
SMALL = [f"num_experts={EXPERTS}", f"expert.hidden={HIDDEN}"]


@cache
def subject(*words: str) -> Subject:
    (found,) = subjects([*SMALL, *words], tokens=TOKENS, dim=DIM)
    return found


def workload(*words: str, dtype: torch.dtype = torch.float32) -> Workload:
    return build_workload(subject(*words).composed, TOKENS, DIM, dtype)


@pytest.fixture(autouse=True)
def tiny_peak(monkeypatch):
    monkeypatch.setattr(measure, "SIZES", {"cpu": (8, 16)})
    peak.cache_clear()
    yield
    peak.cache_clear()


# -- what is measured -------------------------------------------------------------------------------


def test_a_case_composes_to_its_sizes():
    found = subjects(names=list("AF"))
    assert list(CASES) == list("ABCDEFGH") and not any(each.changed for each in found)
    for each in found:
        now = flat(each.composed.config)
        sizes = (now["expert.hidden"], now["num_experts"], now["router.k"])
        assert sizes == (each.case.hidden, each.case.num_experts, each.case.k)
        assert {key for key in COMPARABLE if now[key] != COMPARABLE[key]} == set()


def test_words_replace_what_a_case_says_and_what_does_not_fit_them_is_left_out():
    (each,) = subjects(["router=hash", "expert=linear", "num_experts=2"], ["H"], dim=24)
    now = flat(each.composed.config)
    assert each.changed and each.case == replace(CASES["H"], dim=24)
    assert (now["router"], now["expert"], now["num_experts"]) == ("hash", "linear", 2)
    assert now["expert.bias"] is False and "expert.hidden" not in now and "router.k" not in now


@pytest.mark.parametrize("key", ["task=digits", "model.depth=2"])
def test_a_key_that_shapes_no_layer_is_refused(key):
    with pytest.raises(UsageError, match="shapes no layer"):
        subjects([key])


def test_flops_are_those_of_gate_and_chosen_experts():
    # gate: 2 N D E; two experts a token, each with two matrices (D, F) and one (F, D): 2 N (6 D F)
    assert workload().flops() == 2 * TOKENS * DIM * EXPERTS + 2 * TOKENS * 6 * DIM * HIDDEN


def test_tokens_and_with_them_the_plan_are_other_ones_at_each_call_and_the_same_for_the_same_call():
    """Whatever a router goes by: x, ids, labels, or the row of a data set."""
    for router in ("top_k", "hash", "oracle", "replay"):
        layer = (work := workload(f"router={router}")).layer.eval()
        one, other, again = (layer.router(work.draw(call)[0]).plan.weights for call in (1, 2, 1))
        assert torch.equal(one, again) and not torch.equal(one, other), router


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["expert=tdnn"], "frames"),
        (["gate=constant"], "same of every x"),
        (["router=hash", "gate=mlp"], "no gate"),
        (["router=hash", "expert=zero"], "no backward pass"),
    ],
)
def test_what_random_vectors_are_not_enough_for_is_refused_in_a_sentence(words, why):
    (each,) = subjects(words, tokens=TOKENS, dim=DIM)
    with pytest.raises(UsageError, match=rf"{why}.*\. "):
        build_workload(each.composed, TOKENS, DIM, torch.float32)


# -- contestants ------------------------------------------------------------------------------------


def derivatives(each: Contestant, work: Workload) -> list[torch.Tensor]:
    tokens, d = work.draw(3)
    y = each.forward(tokens)
    return [y.detach(), *torch.autograd.grad(y, tokens.x, d)]


def test_all_compute_the_same_layer_transformers_included():
    pytest.importorskip("transformers")
    for words in ([], ["router.renormalize=false"]):
        work = workload(*words)
        everybody = ours(work, ALL.kernels)[0] + peers(work, subject(*words).composed.config, None)[0]
        names = [each.name for each in everybody]
        assert names == ["auto", *KERNELS, "transformers eager", "transformers grouped_mm"]
        wanted = derivatives(everybody[1], work)
        for each in everybody:
            torch.testing.assert_close(derivatives(each, work), wanted, rtol=1e-4, atol=1e-6)
    other = workload("router.renormalize=true")
    assert not torch.allclose(derivatives(ours(other, ["loop"])[0][0], other)[0], wanted[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "dtype", "can"),
    [
        ([], torch.float64, {"loop", "padded", "each"}),
        (["expert.hidden=23"], torch.float32, {"loop", "padded", "each"}),
        (["router=dense"], torch.float32, {"loop"}),
        (["router=soft_slots"], torch.float32, {"loop"}),
        (["expert.dropout=0.5"], torch.float32, {"loop"}),
    ],
)
def test_a_kernel_that_cannot_serve_says_why_and_is_refused_where_it_is_the_only_one(words, dtype, can):
    work = workload(*words, dtype=dtype)
    found, refused = ours(work, ALL.kernels)
    assert {each.name for each in found} == can | {"auto"} and refused.keys() == KERNELS.keys() - can
    assert all(each.kernel == each.name for each in found if each.name != "auto") and found[0].kernel in can
    assert all(why and not why.endswith(".") and not why.startswith("--") for why in refused.values())
    with pytest.raises(UsageError, match="--kernel grouped"):
        ours(work, ["grouped"])


def test_experts_without_matrices_have_the_loop_alone():
    (each,) = subjects(["expert=constant"], tokens=TOKENS, dim=DIM)
    found, refused = ours(build_workload(each.composed, TOKENS, DIM, torch.float32), ALL.kernels)
    assert [(one.name, one.kernel) for one in found] == [("auto", "loop"), ("loop", "loop")] and len(refused) == 3


def test_peers_are_left_out_with_a_reason_or_refused_where_they_were_asked_for(monkeypatch):
    work, config = workload(), subject("expert.activation=gelu").composed.config
    found, why = peers(work, config, None)
    assert not found and "expert.activation is gelu" in why["transformers"]
    with pytest.raises(UsageError, match="gelu"):
        peers(work, config, True)
    monkeypatch.setattr(contestants, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    assert "not installed" in peers(work, subject().composed.config, None)[1]["transformers"]
    with pytest.raises(EnvironmentFailure, match=r"moecli\[peers\]"):
        peers(work, subject().composed.config, True)
    assert peers(work, subject().composed.config, False) == ([], {})


# -- measuring --------------------------------------------------------------------------------------


def test_contestants_take_turns_and_no_call_sees_the_tokens_of_another():
    work, said = workload(), []

    def spying(name: str) -> Contestant:
        forward = ours(work, ["loop"])[0][0].forward
        return Contestant(name, "loop", work.layer, lambda tokens: said.append((name, tokens.x)) or forward(tokens))

    seconds = interleaved([spying("a"), spying("b")], work.draw, repeats=3)
    assert [name for name, _ in said] == ["a", "b"] * (WARM + 3)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    seen = torch.stack([x.detach() for _, x in said])
    assert len(seen.unique(dim=0)) == len(seen)
    assert all(parameter.grad is not None for parameter in work.layer.parameters())


def test_saved_bytes_are_counted_once_and_without_parameters():
    linear = nn.Linear(DIM, DIM, bias=False)
    each = Contestant("two", "loop", linear, lambda tokens: linear(tokens.x) * linear(tokens.x))
    # both products save x and the weight; their product saves both answers: x and two tensors as large as x
    assert saved_bytes(each, workload().draw(0)[0]) == 3 * TOKENS * DIM * 4


def test_each_saves_less_than_the_loop():
    work = workload()
    kept = {each.name: saved_bytes(each, work.draw(0)[0]) for each in ours(work, ALL.kernels)[0]}
    assert kept["each"] < 0.6 * kept["loop"]


def test_the_peak_is_the_fastest_product_and_is_measured_once(monkeypatch):
    seconds = iter([4.0, 2.0, 8.0, 1.0] + [9.0] * 4 + [0.5, 1.0] + [9.0] * 6)
    monkeypatch.setattr(measure, "_seconds", lambda *_: next(seconds))
    found = peak(torch.float32, torch.device("cpu"), 1)
    # 8 x 8 x 8: 1 s of ours is 2 * 512 FLOP/s; 16 x 16 x 16: 0.5 s of torch's is 2 * 4096 / 0.5
    assert (found.by, found.size) == ("torch.mm", 16) and found.gflops == pytest.approx(2 * 4096 / 0.5 / 1e9)
    assert peak(torch.float32, torch.device("cpu"), 1) is found


def test_bench_measures_every_subject_in_every_dtype():
    made = subjects(SMALL, ["A", "H"], tokens=TOKENS, dim=DIM)
    found = bench(made, ["float32", "bfloat16"], Asked(("auto", "loop"), 1, False))
    assert [(c["case"], c["dtype"]) for c in found["cases"]] == [
        ("A", "float32"), ("H", "float32"), ("A", "bfloat16"), ("H", "bfloat16"),
    ]  # fmt: skip
    for case in found["cases"]:
        for row in case["contestants"]:
            assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
            assert row["gflops"] == pytest.approx(case["flops"] / row["median_ms"] / 1e6)
            assert row["share_of_peak"] == pytest.approx(row["gflops"] / case["peak"]["gflops"])


def test_the_document_has_every_kernel_and_the_sizes_of_every_case():
    page = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert all(f"\n| `{kernel}` | " in page for kernel in ALL.kernels)
    for name, case in CASES.items():
        sizes = (case.dim, case.hidden, case.num_experts, case.k, case.tokens)
        assert f"\n| {name} | {' | '.join(f'{size:,}' for size in sizes)} |\n" in page
