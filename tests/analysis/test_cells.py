"""Which cells are above chance: shares, scipy's adjusted p, and how often a world without any is called to have one."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from moecli.analysis import chance
from moecli.analysis.cells import adjusted, cells
from tests.analysis.test_chance import world


def of_world(first, label, document, **options):
    weight = np.ones((len(first), 1), dtype=np.float32)
    return cells(first[:, None], weight, label, document, int(label.max()) + 1, 4, **options)


def test_shares_split_each_token_by_weight():
    expert = np.array([[0, 1], [1, -1], [2, 0], [1, 2]])
    weight = np.array([[3.0, 1.0], [0.5, 0.0], [1.0, 1.0], [1.0, 1.0]])
    found = cells(expert, weight, np.array([0, 0, 1, -1]), np.arange(4), 2, 3)
    assert np.allclose(found.share, [[0.375, 0.625, 0], [0.5, 0, 0.5]])  # (3/4 + 0) / 2, (1/4 + 1) / 2; unlabelled out
    assert np.isnan(found.q).all() and not found.above.any()  # three documents tell nothing


def test_false_discoveries_are_few_and_a_planted_cell_is_found(monkeypatch):
    monkeypatch.setattr(chance, "WORK", 199 * 200)
    called = found = 0
    for seed in range(100):
        first, label, document = world(seed, documents=60)
        called += bool(of_world(first, label, document, seed=seed).above.any())
        planted = np.where((label == 1) & (np.random.default_rng(seed).random(len(first)) < 0.5), 3, first)
        found += bool(of_world(planted, label, document, seed=seed).above[1, 3])
    assert called <= 12  # about 5 worlds of 100
    assert found >= 90


def test_adjusted_values_are_scipys():
    p = np.random.default_rng(0).random((4, 6)) ** 3
    assert np.allclose(adjusted(p).ravel(), false_discovery_control(p.ravel()))
    assert adjusted(p).max() <= 1 and (adjusted(p) >= p).all()


def test_labels_that_change_within_documents_are_exchanged():
    draw = np.random.default_rng(0)
    document = np.repeat(np.arange(30), 40)
    label = draw.integers(0, 3, len(document))
    first = np.where((label == 2) & (draw.random(len(label)) < 0.6), 1, draw.integers(0, 4, len(label)))
    found = of_world(first, label, document)
    assert found.above[2, 1] and not found.above[:2, 1].any()
    assert found.chance[2, 1] == pytest.approx((first == 1).mean(), abs=0.02)
