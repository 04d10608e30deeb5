"""What experts specialised in, against brute force; ``test_chance.py`` has the chance level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from moecli.analysis.specialisation import by_label, entropy, nmi, nmi_against_chance, serves, shares
from moecli.training.health import effective_experts
from tests.analysis.test_chance import world


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_nmi_equals_scikit_learns(size, num_a, num_b, seed, tie):
    draw = np.random.default_rng(seed)
    a = draw.integers(0, num_a, size)
    b = np.where(draw.random(size) < tie, a % num_b, draw.integers(0, num_b, size))
    expected = normalized_mutual_info_score(a, b)
    if len(set(a)) == len(set(b)) == 1:  # no entropy to share: scikit-learn says 1, we say nothing was learned
        expected = 0.0
    assert nmi(a, b) == pytest.approx(expected, abs=1e-12)
    assert nmi(b, a) == pytest.approx(nmi(a, b), abs=1e-12)
    assert -1e-12 <= nmi(a, b) <= 1 + 1e-12


def test_nmi_of_planted_cases():
    a = np.arange(60) % 3
    assert nmi(a, (a + 1) % 3) == pytest.approx(1, abs=1e-12)  # the names do not matter
    assert nmi(a, np.arange(60) // 3 % 2) == pytest.approx(0, abs=1e-12)  # every pair equally often
    assert nmi(a, a // 2) == pytest.approx(normalized_mutual_info_score(a, a // 2), abs=1e-12)
    assert abs(nmi(a, a // 2) - 1) > 0.1


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_shares_and_labels_equal_brute_force(size, num_experts, seed):
    draw = np.random.default_rng(seed)
    num_choices, num_labels = draw.integers(1, num_experts + 1), 3
    expert = np.array([draw.permutation(num_experts)[:num_choices] for _ in range(size)], dtype=np.int16)
    expert[draw.random(expert.shape) < 0.2] = -1
    weight = draw.random(expert.shape).astype(np.float32) * (expert >= 0)
    label = draw.integers(0, num_labels, size)
    slow, table = np.zeros((size, num_experts)), np.zeros((num_labels, num_experts))
    for n in range(size):
        total = sum(float(w) for e, w in zip(expert[n], weight[n], strict=True) if e >= 0)
        for e, w in zip(expert[n], weight[n], strict=True):
            if e >= 0 and total > 0:
                slow[n, e] += float(w) / total
                table[label[n], e] += float(w) / total
    share = shares({"expert": expert, "weight": weight}, num_experts)
    assert np.allclose(share, slow, atol=1e-12)
    assert np.allclose(by_label(share, label, num_labels), table, atol=1e-12)
    rows = share.sum(1)
    assert np.all(np.isclose(rows, 1) | (rows == 0))
    if table.any():
        assert not np.allclose(by_label(share, (label + 1) % num_labels, num_labels) + 1, table)


def test_what_an_expert_serves_is_named_by_its_share():
    table = np.array([[3.0, 0.0], [1.0, 0.0], [6.0, 0.0]])
    assert serves(table, ["a", "b", "c"], 0) == [("c", 0.6), ("a", 0.3)]
    assert serves(table, ["a", "b", "c"], 0, most=9)[-1] == ("b", 0.1)
    assert serves(table, ["a", "b", "c"], 1) == []


def test_entropy_and_effective_experts():
    for size in (1, 2, 8, 64):
        assert entropy(np.full(size, 1 / size)) == pytest.approx(np.log(size), abs=1e-12)
        assert effective_experts([1 / size] * size) == pytest.approx(size, rel=1e-12)
        assert effective_experts([1.0] + [0.0] * (size - 1)) == pytest.approx(1, abs=1e-12)
    assert effective_experts([0.5, 0.25, 0.25]) == pytest.approx(2**1.5, rel=1e-12)


# -- chance -------------------------------------------------------------------------------------------


def test_the_value_is_the_plain_nmi_of_served_tokens_in_any_order():
    first, label, document = world(3)
    first[::7] = -1
    found = nmi_against_chance(first, label, document)
    assert found.value == pytest.approx(normalized_mutual_info_score(first[first >= 0], label[first >= 0]), abs=1e-12)
    order = np.random.default_rng(0).permutation(len(first))
    mixed = nmi_against_chance(first[order], label[order], document[order])
    assert mixed.value == pytest.approx(found.value, abs=1e-12)
    assert nmi_against_chance(first, label, document, seed=0) == found
    assert nmi_against_chance(first, label, document, seed=1) != found


def test_a_layer_that_serves_nobody_is_no_crash():
    nothing = np.full(10, -1)
    found = nmi_against_chance(nothing, np.zeros(10, int), np.arange(10))
    assert found.value == 0 and np.isnan(found.chance)
