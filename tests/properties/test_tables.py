"""Routers without a gate: hash tables (P28), a known label, and a plan from a file."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import DataError, UsageError
from moecli.routers.hash import Hash, dealt_by_frequency
from moecli.routers.replay import read_plan, scrambled
from moecli.routing import Tokens
from tests.properties.cases import F64, SEEDS, VOCAB, given_gates, picked, tokens, with_x

KINDS = [(by, hashes) for by in ("id", "previous", "bigram", "position") for hashes in (1, 2)]


def fingerprint() -> str:
    tables = [given_gates("hash", 4, by=by, hashes=hashes, seed=3, layer=2).table for by, hashes in KINDS]
    return hashlib.sha256(b"".join(table.numpy().tobytes() for table in tables)).hexdigest()


@pytest.mark.parametrize(("by", "hashes"), KINDS)
def test_a_random_table_is_balanced_over_its_keys(by, hashes):
    """P28, and more than its chi-square: counts of keys differ by at most one, in each table."""
    router = given_gates("hash", 4, by=by, hashes=hashes)
    assert router.table.shape == (hashes, {"id": VOCAB, "previous": VOCAB + 1}.get(by, 4096))
    for table in router.table:
        counts = table.bincount(minlength=4 // hashes)
        assert len(counts) == 4 // hashes and counts.max() - counts.min() <= 1


def test_tables_are_the_same_in_every_process_whatever_the_hash_seed():
    code = "from tests.properties.test_tables import fingerprint; print(fingerprint())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("7",)
    }  # fmt: skip
    assert found == {fingerprint()}


def test_a_table_stays_that_of_its_seed_and_layer():
    """A run that is repeated with a later moe has the same experts for the same words: pinned, not derived."""
    assert given_gates("hash", 4, seed=3, layer=2).table.tolist() == [
        [
            2,
            1,
            0,
            0,
            1,
            0,
            3,
            2,
            2,
            0,
            3,
            0,
            2,
            2,
            2,
            1,
            1,
            1,
            3,
            0,
            1,
            0,
            2,
            1,
            3,
            0,
            3,
            1,
            1,
            0,
            3,
            3,
            1,
            0,
            1,
            2,
            3,
            1,
            1,
            2,
            0,
            0,
            2,
            3,
            3,
            3,
            2,
            2,
            3,
            0,
        ]
    ]


def test_a_table_made_without_a_layer_is_that_of_the_first():
    assert torch.equal(Hash(VOCAB, 4).table, given_gates("hash", 4, layer=0).table)


def test_tables_differ_by_seed_layer_and_hash():
    tables = [
        table
        for options in ({}, {"seed": 1}, {"layer": 1}, {"seed": 1, "layer": 1}, {"seed": 2})
        for table in given_gates("hash", 4, hashes=2, **options).table
    ]
    assert len({tuple(table.tolist()) for table in tables}) == len(tables) == 10


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, by=st.sampled_from(["id", "previous", "bigram", "position"]))
def test_what_tokens_hold_does_not_matter(seed, by):
    router, t = given_gates("hash", 4, by=by), tokens([5, 3], seed)
    assert torch.equal(router(with_x(t, -t.x)).plan.expert, router(t).plan.expert)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=2, max_size=40), e=st.integers(1, 5), seed=SEEDS)
def test_a_balanced_table_is_the_greedy_one(counts, e, seed):
    """Against brute force: the most frequent key first, to whoever has least; loads stay within one key of each other."""
    count = torch.tensor(counts)
    table = dealt_by_frequency(count, e, torch.Generator().manual_seed(seed))
    busy = [0] * e
    for key in sorted(range(len(counts)), key=lambda k: -counts[k]):
        busy[busy.index(min(busy))] += counts[key]
    found = sorted(int(count[table == i].sum()) for i in range(e))
    assert found == sorted(busy)
    keys = table.bincount(minlength=e)
    if not any(counts):  # keys that were never seen are dealt round
        assert keys.max() - keys.min() <= 1


def sample(ids: list[int], x: torch.Tensor) -> Tokens:
    n = len(ids)
    table = torch.tensor(ids)
    return Tokens(
        x, torch.zeros(n).long(), torch.arange(n), torch.zeros(n).long(), torch.stack([table, table.roll(1)], -1)
    )


def test_prepare_builds_the_balanced_table_from_the_first_batch():
    ids = [0] * 40 + [1] * 20 + [2] * 20 + [3] * 39 + list(range(4, 50))
    t = sample(ids, torch.zeros(len(ids), 3, dtype=F64))
    router, random = given_gates("hash", 3, table="balanced"), given_gates("hash", 3)
    router.prepare(t)
    load = router(t).usage.served
    assert load.max() - load.min() <= 2
    of_random = random(t).usage.served
    assert of_random.max() - of_random.min() > 10  # the control
    assert len({int(router.table[0, i]) for i in (0, 3)}) == 2
    before = random.table.clone()
    random.prepare(t)
    assert torch.equal(random.table, before)


def test_unseen_keys_spread_over_all_experts():
    t = sample([0, 1, 2, 0], torch.zeros(4, 3, dtype=F64))
    router = given_gates("hash", 4, table="balanced")
    router.prepare(t)
    counts = router.table[0].bincount(minlength=4)
    assert counts.max() - counts.min() <= 2 * VOCAB


@pytest.mark.parametrize("hashes", [1, 2])
def test_clustered_puts_what_looks_alike_together_and_dispersed_apart(hashes):
    """Ids 0-9, 10-19, ... lie about centres of their own."""
    torch.manual_seed(0)
    e = 5 * hashes
    ids = list(range(VOCAB)) * 3
    centre = 20 * torch.eye(5, dtype=F64)[torch.tensor(ids) // 10]
    t = sample(ids, centre + 0.1 * torch.randn(len(ids), 5, dtype=F64))
    together, apart = (given_gates("hash", e, table=kind, hashes=hashes) for kind in ("clustered", "dispersed"))
    together.prepare(t)
    apart.prepare(t)
    for table in together.table:
        blocks = table.view(5, 10)
        assert (blocks == blocks[:, :1]).all() and len(blocks[:, 0].unique()) == 5
    for table in apart.table:
        assert all(block.bincount(minlength=5).tolist() == [2] * 5 for block in table.view(5, 10))


def test_a_key_looks_like_the_mean_of_its_tokens():
    """Two ids whose tokens differ, but whose means are equal to those of other ids."""
    x = torch.tensor([[0.0], [2.0], [1.0], [9.0], [11.0], [10.0]], dtype=F64)
    t = sample([0, 0, 1, 2, 2, 3], x)
    router = given_gates("hash", 2, table="clustered")
    router.prepare(t)
    a, b, c, d = router.table[0, :4].tolist()
    assert a == b != c == d


# -- oracle ----------------------------------------------------------------------------------------------------


def test_the_oracle_follows_the_label_it_is_told_and_refuses_others():
    t = tokens([6, 3], 0)
    assert torch.equal(given_gates("oracle", 3)(t).plan.demand.argmax(-1), t.known["label"] % 3)
    assert torch.equal(given_gates("oracle", 3, label="other")(t).plan.demand.argmax(-1), t.known["other"] % 3)
    for label in ("none", "row"):
        with pytest.raises(UsageError, match="it has: label, other"):
            given_gates("oracle", 3, label=label)(t)
    bare = Tokens(t.x, t.example, t.position, t.group, known={"row": t.known["row"]})
    with pytest.raises(UsageError, match="it has: none"):
        given_gates("oracle", 3)(bare)


# -- replay ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(key=st.integers(-(2**63), 2**63 - 1))
def test_the_scrambling_is_splitmix64_s_finaliser(key):
    mask = 2**64 - 1
    z = key & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    assert int(scrambled(torch.tensor([key]))) & mask == z


def test_a_random_plan_is_a_function_of_token_and_seed_alone():
    t = tokens([9, 8, 7], 0)
    router = given_gates("replay", 4, k=2)
    whole = router(t).plan.weights
    assert set(whole.unique().tolist()) == {0.0, 0.5} and (whole.sum(-1) == 1).all()
    some = torch.tensor([20, 3, 11])
    assert torch.equal(router(picked(t, some)).plan.weights, whole[some])
    assert torch.equal(router(with_x(t, -t.x)).plan.weights, whole)
    assert torch.equal(given_gates("replay", 4, k=2)(t).plan.weights, whole)
    for other in ({"seed": 1}, {"layer": 1}):
        assert not torch.equal(given_gates("replay", 4, k=2, **other)(t).plan.weights, whole)
    assert router.claims(True).density and not router.claims(True).balanced and not router.graded
    assert given_gates("replay", 4, k=4).claims(True).balanced


def test_a_random_plan_stays_that_of_its_seed():
    """Pinned, as the table of a hash is: what was compared with chance can be compared with it again."""
    found = given_gates("replay", 4, seed=2)(tokens([12], 0)).plan.weights.argmax(-1)
    assert found.tolist() == [0, 3, 3, 3, 1, 3, 2, 3, 2, 3, 3, 1]


def test_a_random_plan_is_uniform():
    t = tokens([3_000], 0, dim=1)
    for k in (1, 3):
        counts = given_gates("replay", 6, k=k)(t).usage.asked
        expected = 3_000 * k / 6
        assert ((counts - expected).abs() < 4 * expected**0.5).all()


def written(folder, expert, weight) -> str:
    path = folder / "plan.npz"
    np.savez(path, expert=np.asarray(expert), weight=np.asarray(weight, dtype=np.float64))
    return str(path)


def test_a_recorded_plan_is_served_to_the_token_it_is_of(tmp_path):
    """Two layers of six tokens; -1 is no expert, and a token without any has no weight and no belief."""
    expert = [[[0, 1], [2, -1], [3, 0], [-1, -1], [1, 2], [0, 3]], [[3, 2]] * 6]
    weight = [[[0.7, 0.3], [1.0, 0.5], [0.2, 0.8], [0.0, 0.0], [0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75]] * 6]
    path = written(tmp_path, expert, weight)
    t = tokens([4, 2], 0)
    table = given_gates("replay", 4, path=path)(t).plan.weights
    rows = {0: {0: 0.7, 1: 0.3}, 1: {2: 1.0}, 2: {3: 0.2, 0: 0.8}, 3: {}, 4: {1: 0.5, 2: 0.5}, 5: {0: 1.0}}
    wanted = torch.zeros(6, 4, dtype=F64)
    for token, row in rows.items():
        for e, w in row.items():
            wanted[token, e] = w
    assert torch.allclose(table, wanted)
    probs = given_gates("replay", 4, path=path)(t).probs
    assert torch.allclose(probs.sum(-1), torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=F64))
    assert torch.allclose(
        given_gates("replay", 4, path=path, layer=1)(t).probs[:, 2:].sum(-1), torch.ones(6, dtype=F64)
    )
    turned = torch.tensor([5, 0, 2])
    assert torch.allclose(given_gates("replay", 4, path=path)(picked(t, turned)).plan.weights, wanted[turned])
    assert not given_gates("replay", 4, path=path).claims(False).density
    assert given_gates("replay", 4, path=path, layer=1).claims(False).density
    assert given_gates("replay", 4, path=path).graded
    plan = given_gates("replay", 4, path=path)(t).plan
    assert plan.choice[(plan.token == 2) & (plan.expert == 0)].item() == 0  # the heavier comes first


def test_what_a_plan_believes_sums_to_one_where_its_weights_do_not(tmp_path):
    weight = np.array([[0.5, 0.25], [0.2, 0.0], [1.5, 0.5]], dtype=np.float32)
    expert = np.array([[0, 2], [1, -1], [2, 1]], dtype=np.int16)
    np.savez(tmp_path / "plan.npz", expert=expert[None], weight=weight[None])
    routing = given_gates("replay", 3, path=str(tmp_path / "plan.npz"))(picked(tokens([3], 0), torch.arange(3)))
    assert torch.allclose(routing.plan.weights.sum(-1), torch.tensor([0.75, 0.2, 2.0], dtype=F64))
    assert torch.allclose(routing.probs, routing.plan.weights / routing.plan.weights.sum(-1, keepdim=True))


def test_a_shuffled_plan_keeps_every_load_and_breaks_the_match(tmp_path):
    draw = np.random.default_rng(0)
    path = written(tmp_path, draw.integers(0, 4, (1, 40, 1)), np.ones((1, 40, 1)))
    t = tokens([40], 0)
    own, shuffled = (given_gates("replay", 4, path=path, change=change)(t) for change in ("none", "shuffled"))
    assert torch.equal(own.usage.asked, shuffled.usage.asked)
    assert not torch.equal(own.plan.weights, shuffled.plan.weights)
    again = given_gates("replay", 4, path=path, change="shuffled", seed=1)(t)
    assert not torch.equal(again.plan.weights, shuffled.plan.weights)


def test_plans_that_do_not_fit_are_refused(tmp_path):
    good = np.zeros((1, 3, 1), dtype=np.int64), np.ones((1, 3, 1))
    path = written(tmp_path, *good)
    assert read_plan(tmp_path / "plan.npz", 0, 1)[0].shape == (3, 1)
    with pytest.raises(DataError, match="3 tokens, and token 3"):
        given_gates("replay", 2, path=path)(tokens([4], 0))
    with pytest.raises(DataError, match="mixture layer 1"):
        given_gates("replay", 2, path=path, layer=1)
    with pytest.raises(DataError, match="no plan"):
        given_gates("replay", 2, path=str(tmp_path / "absent.npz"))
    bad = [(good[0] + 2, good[1]), (good[0], -good[1]), (good[0], good[1] * np.nan), (good[0], np.ones((1, 3, 2)))]
    bad += [(good[0].astype(float), good[1]), (good[0][..., 0], good[1][..., 0])]
    for expert, weight in bad:
        with pytest.raises(DataError, match="does not fit"):
            given_gates("replay", 2, path=written(tmp_path, expert, weight))
    t = tokens([3], 0)
    with pytest.raises(UsageError, match="new data"):
        given_gates("replay", 2)(Tokens(t.x, t.example, t.position, t.group))
