"""Intervals and tests equal scipy's; Holm's correction keeps its promise, also where the best row was picked by looking."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from moecli.analysis.statistics import (
    LEVEL,
    POWER,
    Difference,
    difference,
    holm,
    interval,
    paired,
    seeds_needed,
    welch,
)

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def draws(seed, size):
    random = np.random.default_rng(seed)
    return random.normal(random.normal(), random.uniform(0.1, 3), size).tolist()


@pytest.mark.parametrize("size", [2, 3, 5, 30])
def test_the_interval_is_scipys(size):
    for seed in range(20):
        values = draws(seed, size)
        found = interval(values)
        low, high = scipy.stats.t.interval(0.95, size - 1, np.mean(values), scipy.stats.sem(values))
        assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))
        assert found.sd == pytest.approx(np.std(values, ddof=1))
        assert interval([*values, 99.0]) != found
    assert interval([1.0]).mean == 1.0 and math.isnan(interval([1.0]).half) and math.isnan(interval([1.0]).sd)
    assert math.isnan(interval([1.0, math.nan]).mean) and math.isnan(interval([1.0, math.nan]).half)


def test_the_paired_test_is_scipys():
    for seed in range(100):
        size = 2 + seed % 9
        a, b = draws(seed, size), draws(seed + 1000, size)
        found, theirs = paired(a, b), scipy.stats.ttest_rel(a, b)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
        low, high = theirs.confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))
        assert (found.seeds, found.sd) == (size, pytest.approx(np.std(np.subtract(a, b), ddof=1)))


def test_the_unpaired_test_is_scipys_welch():
    told_apart = 0
    for seed in range(100):
        a, b = draws(seed, 2 + seed % 5), draws(seed + 1000, 2 + seed % 7)
        found, theirs = welch(a, b), scipy.stats.ttest_ind(a, b, equal_var=False)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
        low, high = theirs.confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))
        told_apart += abs(found.p - scipy.stats.ttest_ind(a, b).pvalue) > 1e-3
    assert told_apart > 50  # of Student's, which takes the variances for equal


def test_shared_seeds_are_paired_and_others_are_not():
    a, b = {0: 0.5, 1: 0.7, 2: 0.9, 7: 3.0}, {0: 0.4, 1: 0.6, 2: 0.81, 9: -3.0}
    assert difference(a, b) == paired([0.5, 0.7, 0.9], [0.4, 0.6, 0.81])
    assert difference({0: 0.5, 1: 0.7}, {1: 0.4, 2: 0.6}) == welch([0.5, 0.7], [0.4, 0.6])
    assert difference({0: 0.5}, b) is None and difference({}, b) is None


def test_pairing_sees_what_seeds_share():
    base = draws(0, 6)
    a = {seed: value for seed, value in enumerate(base)}
    b = {seed: value - 0.01 - 0.001 * (seed % 2) for seed, value in enumerate(base)}
    assert difference(a, b).p < 1e-3 < 0.5 < welch(list(a.values()), list(b.values())).p


def test_without_spread_equal_is_equal_and_nothing_else_is_tested():
    assert paired([0.5, 0.7], [0.5, 0.7]).p == 1 and welch([0.5, 0.5], [0.5, 0.5]).p == 1
    assert math.isnan(paired([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]).p) and math.isnan(welch([0.5, 0.5], [0.4, 0.4]).p)
    assert math.isnan(paired([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]).p)  # 0.1 each, but for rounding
    assert paired([0.3, 0.4, 0.5], [0.2, 0.3, 0.41]).p < 0.01


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and none less than one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    got = holm([0.01, math.nan, 0.02])
    assert got[0] == pytest.approx(0.02) and math.isnan(got[1]) and got[2] == pytest.approx(0.02)
    assert holm([0.01, 0.02], family=10) == pytest.approx([0.1, 0.18])


@given(PROBABILITIES, st.data())
def test_holm_lies_between_the_raw_p_and_bonferroni_and_keeps_the_order(p, data):
    adjusted = holm(p)
    assert all(raw <= new <= min(1, len(p) * raw) + 1e-12 for raw, new in zip(p, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(p)] == sorted(adjusted)
    # a part of a family is never less strictly judged than the whole family would judge it
    part = data.draw(st.lists(st.sampled_from(range(len(p))), unique=True))
    for i, new in zip(part, holm([p[i] for i in part], family=len(p)), strict=True):
        assert new >= adjusted[i] - 1e-12


def test_picking_the_best_by_looking_raises_no_more_false_alarms_than_promised():
    """Five equal rows, five seeds: is any called different from the one that happened to come out best?"""
    rows, seeds, worlds = 5, 5, 1200
    alarms = {rows - 1: 0, rows * (rows - 1) // 2: 0}
    for values in np.random.default_rng(0).normal(size=(worlds, rows, seeds)):
        order = values.mean(1).argsort()
        p = [paired(values[row].tolist(), values[order[-1]].tolist()).p for row in order[:-1]]
        for family in alarms:
            alarms[family] += min(holm(p, family)) < LEVEL
    error = 3 * math.sqrt(LEVEL * (1 - LEVEL) / worlds)
    assert alarms[10] / worlds < LEVEL + error
    assert alarms[4] / worlds > LEVEL + error  # as if the best had been named before: too many


def exact(ratio, level, two_groups):
    """The least number of seeds with POWER, by the noncentral t distribution."""
    for n in range(2, 3000):
        freedom, centre = (2 * n - 2, ratio * math.sqrt(n / 2)) if two_groups else (n - 1, ratio * math.sqrt(n))
        limit = scipy.stats.t.ppf(1 - level / 2, freedom)
        if scipy.stats.nct.sf(limit, freedom, centre) + scipy.stats.nct.cdf(-limit, freedom, centre) >= POWER:
            return n
    raise AssertionError


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_seeds_that_would_decide_are_those_of_the_exact_power(ratio, level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = seeds_needed(Difference(ratio, 0, 1.0, 0.5, seeds=5), level)
        groups = seeds_needed(Difference(ratio, 0, math.sqrt(2), 0.5, seeds=0), level)
        assert abs(alone - exact(ratio, level, False)) <= 1
        assert abs(groups - exact(ratio, level, True)) <= 1
    assert alone < seeds_needed(Difference(ratio / 2, 0, 1.0, 0.5, seeds=5), level)


def test_no_number_of_seeds_decides_where_nothing_differs():
    assert seeds_needed(Difference(0.0, 0.1, 0.1, 1.0, 5)) == math.inf
    assert seeds_needed(Difference(5e-324, 0.1, 1e300, 1.0, 5)) == math.inf
