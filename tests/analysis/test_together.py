"""Co-activation, flow, saturation, vocabulary and repetition, against brute force and hand-made cases."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from moecli.analysis import coactivation as module
from moecli.analysis import repetition, saturation
from moecli.analysis.coactivation import coactivation
from moecli.analysis.flow import flow
from moecli.analysis.vocabulary import vocabulary


def routed(size=300, num_experts=6, choices=3, seed=0, empty=0.2):
    """Experts (n, K) in order of choice, without repetition, empty places last."""
    draw = np.random.default_rng(seed)
    expert = draw.random((size, num_experts)).argsort(1)[:, :choices]
    served = draw.integers(0 if empty else choices, choices + 1, size)
    return np.where(np.arange(choices) < served[:, None], expert, -1)


@pytest.mark.parametrize("adjacent", [False, True])
def test_coactivation_equals_counting_pairs(adjacent, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 64)
    expert, pairs, single = routed(), Counter(), Counter()
    for row in expert:
        kept = [int(e) for e in row if e >= 0]
        single.update(kept)
        for a, b in pairwise(kept) if adjacent else combinations(kept, 2):
            pairs.update([(a, b), (b, a)])
    found = coactivation(expert, 6, adjacent=adjacent)
    assert np.allclose(found, [[pairs[a, b] / single[a] for b in range(6)] for a in range(6)])
    assert not np.allclose(found, coactivation(expert, 6, adjacent=not adjacent))
    assert (np.diag(found) == 0).all() and not np.allclose(found, found.T)


def test_coactivation_of_pairs_that_always_go_together():
    expert = np.array([[0, 1], [1, 0], [0, 1], [2, 3], [2, -1]])
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = expected[3, 2] = 1.0
    expected[2, 3] = 0.5  # expert 4 serves nobody
    assert np.allclose(coactivation(expert, 5), expected)


def test_flow_counts_the_tokens_that_both_layers_serve():
    a, b = np.array([0, 1, 1, -1, 0]), np.array([2, 0, 0, 1, -1])
    assert flow(a, b, 2, 3).tolist() == [[0, 0, 1], [2, 0, 0]]


def test_saturation_is_the_share_of_final_experts_already_there():
    before, after = np.array([[0, 1], [2, -1], [3, 4], [0, 1]]), np.array([[1, 0], [2, 5], [0, 1], [-1, -1]])
    assert saturation.saturation(before, after) == pytest.approx((1 + 1 / 2 + 0) / 3)  # the last is served by nobody
    assert saturation.saturation(after, after) == 1.0
    assert np.isnan(saturation.saturation(before, np.full((4, 2), -1)))
    unrelated = [routed(20_000, 8, 2, seed, empty=0) for seed in (1, 2)]
    assert saturation.saturation(*unrelated) == pytest.approx(2 / 8, abs=0.01)
    found = saturation.against_chance(*unrelated, np.arange(20_000) // 100)
    assert found.chance_low <= found.value <= found.chance_high and found.chance == pytest.approx(1 / 4, abs=0.01)
    same = saturation.against_chance(unrelated[0], unrelated[0], np.arange(20_000) // 100)
    assert same.value == 1 and same.p < 0.05 and same.chance == pytest.approx(1 / 4, abs=0.01)


def test_switched_counts_changed_first_experts():
    assert saturation.switched(np.array([0, 1, -1, 2]), np.array([0, 2, 1, -1])) == 0.5
    assert np.isnan(saturation.switched(np.array([-1]), np.array([0])))


def test_vocabulary_shares_equal_counting():
    draw, expert = np.random.default_rng(3), routed(600, 5, 2)
    token = draw.integers(-1, 9, 600)
    token[:5] = 30  # rarer than is counted
    found = vocabulary(token, expert, 5)
    assert found.ids.tolist() == list(range(9))
    for v, row in zip(found.ids, found.share, strict=True):
        assert np.allclose(row, [(expert[token == v] == e).any(1).mean() for e in range(5)])
    assert found.specialisation == pytest.approx(found.share.max(1).mean())
    best = int(found.share[:, 2].argmax())
    assert found.top(2, 1) == [(int(found.ids[best]), found.share[best, 2], int(found.count[best]))]
    assert np.isnan(vocabulary(token[:3], expert[:3], 5).specialisation)


def test_repetition_follows_a_sequence_only():
    expert = np.array([[0, 1], [0, 2], [2, 0], [2, 1], [1, 3], [1, 3]])
    sequence, position = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 3])
    assert repetition.repetition(expert, sequence, position) == pytest.approx(1 / 3)  # 0 0 | 0 2 | 2 1; 1 to 3 is a gap
    assert repetition.repetition(expert, sequence, position, choices=2) == 1.0
    order = np.random.default_rng(0).permutation(6)
    assert repetition.repetition(expert[order], sequence[order], position[order]) == pytest.approx(1 / 3)
    assert np.isnan(repetition.repetition(expert, np.arange(6), position))


def test_repetition_of_routing_without_memory_lies_within_chance():
    draw, size = np.random.default_rng(0), 8000
    expert = np.stack([draw.permutation(8)[:2] for _ in range(size)])
    where = np.arange(size) // 50, np.arange(size) % 50, np.arange(size) // 100
    for choices, uniform in ((1, 1 / 8), (2, 1 - 6 / 8 * 5 / 7)):  # 12.5 % and about 46 % (Jiang et al., 2024)
        found = repetition.against_chance(expert, *where, choices)
        assert found.chance == pytest.approx(uniform, abs=0.01) and found.chance_low <= found.value <= found.chance_high
    assert repetition.chance_at(np.bincount(expert[:, 0])) == pytest.approx(1 / 8, abs=0.001)
    sticky = np.repeat(expert[::2], 2, axis=0)
    assert repetition.against_chance(sticky, *where).p < 0.05
