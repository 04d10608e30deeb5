"""How evenly work is spread: hand-made cases, bounds, and what each number is at its ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moecli.analysis.load import EVENNESS, evenness

EVEN = {"cv_squared": 0, "max_over_mean": 1, "max_violation": 0, "normalised_entropy": 1, "gini": 0, "dead_share": 0}
EVEN |= {"top_share": 0.2, "bottom_share": 0.2}


def test_even_loads_and_loads_on_one_expert():
    assert EVEN.keys() == EVENNESS.keys()
    assert evenness(np.full(10, 7)) == pytest.approx(EVEN)
    one = evenness(np.array([0, 0, 8, 0]))
    assert one == pytest.approx(
        {"cv_squared": 3, "max_over_mean": 4, "max_violation": 3, "normalised_entropy": 1 / 4}
        | {"gini": 3 / 4, "dead_share": 3 / 4, "top_share": 1, "bottom_share": 0}
    )


def test_a_hand_made_load():
    found = evenness(np.array([1, 2, 3, 4, 10]))  # mean 4, variance (9 + 4 + 1 + 0 + 36) / 5 = 10
    assert found["cv_squared"] == pytest.approx(10 / 16) and found["max_over_mean"] == pytest.approx(2.5)
    differences = [abs(a - b) for a in (1, 2, 3, 4, 10) for b in (1, 2, 3, 4, 10)]
    assert found["gini"] == pytest.approx(np.mean(differences) / (2 * 4))
    assert (found["top_share"], found["bottom_share"]) == pytest.approx((10 / 20, 1 / 20))


@given(arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 1000)))
def test_bounds_hold_and_names_and_units_do_not_matter(load):
    found, size = evenness(load), len(load)
    if not load.sum():
        assert found.pop("dead_share") == 1 and all(np.isnan(value) for value in found.values())
        return
    assert 0 <= found["cv_squared"] <= size - 1 + 1e-9 and 1 - 1e-9 <= found["max_over_mean"] <= size + 1e-9
    assert 1 / size - 1e-9 <= found["normalised_entropy"] <= 1 + 1e-9 and -1e-9 <= found["gini"] <= 1 - 1 / size + 1e-9
    assert found["bottom_share"] <= found["top_share"] <= 1
    assert evenness(load[::-1] * 3) == pytest.approx(found)
