"""What is read off a table of labels and experts, against scikit-learn and hand-made cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from moecli.analysis import contingency
from moecli.analysis.specialisation import AGREEMENT, OF_VOCABULARY

EVERY = {**AGREEMENT, **OF_VOCABULARY}


@given(st.integers(3, 300), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_agreement_equals_scikit_learns(size, num_labels, num_experts, seed, tie):
    draw = np.random.default_rng(seed)
    label = draw.integers(0, num_labels, size)
    expert = np.where(draw.random(size) < tie, label % num_experts, draw.integers(0, num_experts, size))
    table = contingency.count(label, expert, num_labels, num_experts)
    assert (table == _slow(label, expert, table)).all()
    assert contingency.mutual_information(table) == pytest.approx(metrics.mutual_info_score(label, expert), abs=1e-10)
    several = len(set(label)) > 1 and len(set(expert)) > 1 and len(set(label)) < size
    if several:  # else there is nothing to share, of which scikit-learn says 1 and we say 0
        assert contingency.ari(table) == pytest.approx(metrics.adjusted_rand_score(label, expert), abs=1e-10)
        assert contingency.nmi(table) == pytest.approx(metrics.normalized_mutual_info_score(label, expert), abs=1e-10)


def _slow(label, expert, table):
    slow = np.zeros(table.shape)
    for a, b in zip(label, expert, strict=True):
        slow[a, b] += 1
    return slow


def test_hand_made_cases():
    table = np.array([[6, 0, 0], [1, 2, 0], [0, 1, 0]])  # 3 labels, 3 experts, the last one unused
    assert contingency.purity(table) == pytest.approx((6 + 2) / 10)  # e0 stands for label 0, e1 for label 1
    assert contingency.matched_accuracy(table) == pytest.approx((6 + 2) / 10)
    assert contingency.labels_for_80(table) == pytest.approx((1 + 2) / 2)  # 6/7 >= 0.8 at once; 2/3 < 0.8, both needed
    assert contingency.vocabulary_specialisation(table) == pytest.approx((6 / 6 + 2 / 3 + 1 / 1) / 3)
    same = np.array([[5, 5], [0, 0]])  # both experts serve label 0 alone
    assert contingency.purity(same) == 1 and contingency.matched_accuracy(same) == 0.5
    assert contingency.nmi(same) == contingency.ari(same) == contingency.mutual_information(same) == 0
    assert contingency.vocabulary_specialisation(same) == 0.5  # a label without tokens does not count


def test_names_of_labels_and_experts_do_not_matter():
    draw = np.random.default_rng(0)
    table = draw.integers(0, 30, (4, 5))
    for read in EVERY.values():
        moved = table[draw.permutation(4)][:, draw.permutation(5)]
        assert read(moved) == pytest.approx(float(read(table)), abs=1e-12)
        assert float(read(np.eye(5) * 7)) != pytest.approx(float(read(np.ones((5, 5)) * 7)))  # each one can tell


def test_a_stack_of_tables_is_read_one_by_one():
    stack = np.random.default_rng(1).integers(0, 9, (3, 2, 4, 5))
    for name, read in EVERY.items():
        alone = np.array([[float(read(one)) for one in row] for row in stack])
        assert np.allclose(read(stack), alone, atol=1e-12), name


def test_nothing_to_read_is_no_crash():
    for name, read in EVERY.items():
        value = float(read(np.zeros((3, 4), dtype=int)))
        assert value == 0 or (name == "labels_for_80" and np.isnan(value)), name
    assert contingency.count(np.array([-1, 0]), np.array([0, -1]), 2, 2).sum() == 0


def test_rescaled_tables_have_the_rows_asked_for():
    table = np.array([[1.0, 3.0], [0.0, 0.0], [2.0, 0.0]])
    scaled = contingency.with_rows(table, np.array([8, 5, 1]))
    assert np.allclose(scaled, [[2, 6], [0, 0], [1, 0]])
    assert np.allclose(contingency.with_rows(table, table.sum(1)), table)
