"""Comparisons: every number recomputed, ties and NaN told honestly, confounds named, twins and fronts found."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from moecli.errors import UsageError
from moecli.report.compare import Comparison, Row, compare
from moecli.report.compare_notes import notes
from moecli.report.compare_table import data, flat, table
from tests.report.factory import group, made

CLEAR = {"a": [0.90, 0.91, 0.92, 0.90, 0.93], "b": [0.70, 0.72, 0.71, 0.69, 0.74]}


def rows(found: Comparison) -> dict[str, Row]:
    return {row.name: row for row in found.rows}


def said(found: Comparison) -> str:
    return "\n".join(notes(found))


def runs(groups, **changes):
    return [record for router, values in groups.items() for record in group(router, values, **changes)]


# -- numbers ------------------------------------------------------------------------------------------


def random_runs(draw: random.Random):
    """Two to five groups whose seeds overlap as they happen to, some values NaN, some runs failed."""
    found = {}
    for router in "abcde"[: draw.randint(2, 5)]:
        seeds = draw.sample(range(12), draw.randint(1, 6))
        level, spread = draw.choice([0.0, 0.0, 0.3]), draw.choice([0.01, 0.1])
        found[router] = {s: draw.choices([draw.gauss(level, spread), math.nan, None], [20, 1, 1])[0] for s in seeds}
    return found


def expected_p(worlds, base, name):
    """scipy's, on the shared seeds where there are two."""
    a, b = ({s: v for s, v in worlds[w].items() if v is not None} for w in (name, base))
    if any(map(math.isnan, [*a.values(), *b.values()])):
        return None
    shared = sorted(a.keys() & b.keys())
    if len(shared) > 1:
        return scipy.stats.ttest_rel([a[s] for s in shared], [b[s] for s in shared]).pvalue
    if min(len(a), len(b)) > 1:
        return scipy.stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False).pvalue
    return None


def check_numbers(found, worlds):
    """Means and intervals of every row, and how many seeds they are over; returns the means."""
    means = {}
    for row in found.rows:
        values = [v for v in worlds[row.name].values() if v is not None]
        cell, means[row.name] = row.cells["test/accuracy"], np.mean(values) if values else math.nan
        assert (row.count, row.asked) == (len(values), len(worlds[row.name]))
        assert (cell is None) == (not values)
        if not math.isnan(means[row.name]):
            assert cell.mean == pytest.approx(means[row.name])
        if not math.isnan(means[row.name]) and len(values) > 1:
            low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
            assert (cell.mean - cell.half, cell.mean + cell.half) == (pytest.approx(low), pytest.approx(high))
    return means


def check_verdicts(found, worlds, best):
    """Holm over all pairs, since the best was found by looking; returns the kinds."""
    p = {name: expected_p(worlds, best, name) for name in worlds if name != best}
    tested = sorted((value, name) for name, value in p.items() if value is not None)
    family, largest, expected = len(tested) * (len(tested) + 1) // 2, 0.0, dict.fromkeys(p, "untested")
    for rank, (value, name) in enumerate(tested):
        largest = max(largest, min(1.0, (family - rank) * value))
        assert rows(found)[name].verdict.p == pytest.approx(largest, rel=1e-6)
        expected[name] = "same" if largest >= 0.05 else "worse"
    assert {name: rows(found)[name].verdict.kind for name in p} == expected
    return set(expected.values())


def test_two_hundred_sets_of_runs_are_recomputed():
    draw, checked, kinds = random.Random(0), 0, set()
    while checked < 200:
        worlds, higher = random_runs(draw), draw.random() < 0.5
        values = [(router, seed, value) for router, world in worlds.items() for seed, value in world.items()]
        if all(value is None for *_, value in values):
            continue
        found = compare([made(*run, higher_is_better=higher) for run in draw.sample(values, len(values))])
        assert {row.name for row in found.rows} == worlds.keys()
        means = check_numbers(found, worlds)
        finite = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        shown = [row.quality for row in found.rows]
        assert shown[: len(finite)] == pytest.approx(sorted(finite.values(), reverse=higher))
        assert all(map(math.isnan, shown[len(finite) :]))
        best = (max if higher else min)(finite, key=finite.get) if finite else None
        assert [row.name for row in found.rows if row.best] == ([best] if len(finite) > 1 else [])
        kinds |= check_verdicts(found, worlds, best) if best else set()
        checked += 1
    assert kinds == {"same", "worse", "untested"}


def test_the_order_of_the_runs_changes_nothing():
    records = runs({"a": [0.1, 0.2], "b": [0.2, 0.1], "c": [math.nan, 0.3], "d": [None, 0.15]})
    expected = (flat(compare(records)), table(compare(records)))
    for seed in range(20):
        shuffled = random.Random(seed).sample(records, len(records))
        found = compare(shuffled)
        assert (repr(flat(found)), table(found)) == (repr(expected[0]), expected[1])


def test_a_run_told_the_same_twice_counts_once_by_its_newest_that_finished():
    twice = [made("a", 0, 0.1), made("a", 0, 0.9), made("a", 1, 0.5)]
    (row,) = compare(twice).rows
    assert row.count == 2 and row.by_seed == {0: 0.9, 1: 0.5}
    (row,) = compare([*twice, made("a", 1, None)]).rows
    assert (row.count, row.asked, row.unfinished) == (2, 2, ())


# -- marks --------------------------------------------------------------------------------------------


def test_marks_against_the_best_row_and_against_one_that_is_named():
    records = runs({**CLEAR, "c": [0.90, 0.915, 0.915, 0.905, 0.92]})
    found = compare(records)
    assert {row.name: row.mark for row in found.rows} == {"a": "★", "c": "≈", "b": "▼"}
    text = said(found)
    assert (
        "against ★, a (Holm over all pairs, p < 0.05): ≈ not distinguishable, ▼ worse" in text
        and "paired t test over 5 shared" in text
    )
    assert "would decide" in text and "c about" in text
    found = compare(records, baseline="b")
    assert {row.name: row.mark for row in found.rows} == {"a": "★▲", "c": "▲", "b": ""}
    assert "against b (Holm, p < 0.05): ▲ better" in said(found) and "★ best mean: a" in said(found)
    with pytest.raises(UsageError, match=r"--baseline bb: no such row\. Did you mean b\? Choose from: a; c; b"):
        compare(records, baseline="bb")


def test_where_lower_is_better_worse_is_higher():
    found = compare(runs(CLEAR, higher_is_better=False))
    assert [(row.name, row.mark) for row in found.rows] == [("b", "★"), ("a", "▼")]


def test_where_no_seed_is_shared_the_test_is_unpaired_and_says_so():
    found = compare([*group("a", CLEAR["a"]), *group("b", CLEAR["b"], first=100)])
    assert rows(found)["b"].mark == "▼" and rows(found)["b"].verdict.difference.seeds == 0
    assert "Welch's t test (unpaired: fewer than two shared seeds)" in said(found)
    assert "Welch" not in said(compare(runs(CLEAR)))


def test_equal_means_are_both_starred():
    found = compare(runs({"a": [0.5, 0.7], "b": [0.7, 0.5], "c": [0.1, 0.2]}))
    assert [row.name for row in found.rows if row.best] == ["a", "b"]
    assert "★ tied: a, b have the same mean" in said(found)
    found = compare(runs({"a": [0.5, 0.7], "b": [0.5, 0.7]}))
    assert rows(found)["b"].verdict.p == 1 and "over 1000, so none in practice" in said(found)


def test_nan_is_never_best_is_shown_and_stands_last():
    checked = 0
    for values in itertools.permutations([math.nan, math.nan, 0.2, 0.4, 0.6]):
        for higher in (True, False):
            pairs = dict(zip("abcde", ([value, 0.3] for value in values), strict=True))
            found = compare(runs(pairs, higher_is_better=higher))
            lost = [name for name, pair in pairs.items() if math.isnan(pair[0])]
            assert [row.name for row in found.rows[3:]] == sorted(lost)
            assert not any(row.best or row.front for row in found.rows[3:])
            assert all(row.verdict.kind == "untested" for row in found.rows[3:])
            assert [line[2].strip() for line in table(found).rows[3:]] == ["nan", "nan"]
            checked += 1
    assert checked >= 200 and "a: nan in 1 of 2 seeds" in said(compare(runs({"a": [math.nan, 1.0], "b": [0.1, 0.2]})))
    assert "not tested: the baseline, a, is nan" in said(compare(runs({"a": [math.nan, 1], "b": [0, 1]}), baseline="a"))


def test_one_seed_proves_nothing_and_says_so():
    found = compare(runs({"a": [0.9], "b": [0.1]}))
    assert [row.mark for row in found.rows] == ["★", ""]
    assert "not tested: the baseline, a, has one seed" in said(found)
    assert "not tested, for want of a second seed: b" in said(compare(runs({"a": [0.9, 0.8], "b": [0.1]})))
    still = compare(runs({"a": [0.9, 0.9], "b": [0.1, 0.1]}))
    assert "no seed changes the difference" in said(still) and rows(still)["b"].mark == ""


def test_a_router_that_saw_the_future_is_not_the_best_where_another_did_not():
    records = [*group("a", CLEAR["a"], leak=True), *group("b", CLEAR["b"])]
    found = compare(records)
    assert [row.name for row in found.rows if row.best] == [] and found.baseline == "b"
    assert table(found).rows[0][0] == "a (saw the future)"
    assert compare(group("a", CLEAR["a"], leak=True) + group("b", CLEAR["b"], leak=True)).baseline == "a"


# -- rows ---------------------------------------------------------------------------------------------


def test_rows_of_several_keys():
    records = [
        made(router, seed, 0.1 * lr + seed, config={"optimizer.lr": lr})
        for router, lr, seed in itertools.product("ab", (1, 2), (0, 1))
    ]
    found = compare(records, ["router", "optimizer.lr"])
    assert sorted(rows(found)) == ["a, 1", "a, 2", "b, 1", "b, 2"]
    assert all(row.count == 2 and not row.mixes for row in found.rows)
    assert table(found).head[:3] == ["router", "optimizer.lr", "n"] and data(found)[0]["optimizer.lr"] == 2
    assert compare(records, baseline="a, 1", by=("router", "optimizer.lr")).baseline == "a, 1"
    with pytest.raises(UsageError, match=r"--by rooter: no run has this key\. Did you mean router\?"):
        compare(records, "rooter")


def test_a_row_that_mixes_settings_says_so_and_counts_a_seed_once():
    records = [
        made("a", seed, lr + seed, config={"optimizer.lr": lr}) for lr, seed in itertools.product((1, 3), (0, 1))
    ]
    (row,) = compare(records).rows
    assert row.count == 2 and row.by_seed == {0: 2.0, 1: 3.0}  # (1 + 3) / 2, (2 + 4) / 2
    text = said(compare(records))
    assert "a: its runs differ in optimizer.lr too" in text and "--by router,optimizer.lr makes rows" in text
    assert "differ in" not in said(compare(records, ("router", "optimizer.lr")))


def test_what_else_differs_between_rows_is_named():
    records = runs({"a": [0.1, 0.2]}) + runs({"b": [0.1, 0.2]}, config={"optimizer.lr": 0.5, "router.k": 2})
    found = compare(records)
    assert found.differs == {"optimizer.lr": {"a": "0.01", "b": "0.5"}}  # a has no router.k that could differ
    assert "rows differ not only in router, but also in optimizer.lr (0.01 | 0.5)" in said(found)
    assert "not only" not in said(compare(runs({"a": [0.1], "b": [0.2]})))


def test_runs_that_did_not_finish_are_counted():
    found = compare(runs({"a": [0.5, 0.6, None, 0.4, 0.7], "b": [None, None]}))
    assert [line[1] for line in table(found).rows] == ["4 of 5", "0 of 2"]
    assert "a: 4 of 5 runs finished (1 failed); its numbers" in said(found) and "b: 0 of 2" in said(found)
    why = compare([*group("a", [0.5]), made("a", 1, None, error="disk full"), made("a", 2, None, status="running")])
    assert "a: 1 of 3 runs finished (1 failed, 1 running: disk full)" in said(why)
    assert table(found).rows[1][2].strip() == "-"
    with pytest.raises(UsageError, match="none of these runs has finished"):
        compare(runs({"a": [None]}))
    with pytest.raises(UsageError, match="there is no run in these folders"):
        compare([])


def test_the_dense_twin_is_a_row_and_one_network_is_one_row():
    records = runs({"a": [0.5, 0.6], "b": [0.4, 0.5]})
    twins = runs({"a": [0.3, 0.35]}, twin=True)
    found = compare(records + twins)
    assert sorted(rows(found)) == ["a", "b", "dense twin of a"] and rows(found)["dense twin of a"].twin
    assert compare(records + twins, baseline="dense twin").baseline == "dense twin of a"
    same = compare(records + twins + runs({"b": [0.3, 0.35]}, twin=True))
    assert sorted(rows(same)) == ["a", "b", "dense twin of a and b"]
    others = [runs({"b": [0.3, 0.36]}, twin=True), runs({"b": [0.3, 0.35]}, twin=True, flops=200.0)]
    others.append([replace(r, numbers=r.numbers | {"test/nll": 1.0}) for r in runs({"b": [0.3, 0.35]}, twin=True)])
    for other in others:
        assert len(compare(records + twins + other).rows) == 4
    by_twin = compare([made("a", 0, 0.5, config={"model.twin": t}, twin=t) for t in (True, False)], "model.twin")
    assert sorted(rows(by_twin)) == ["false", "true"]


def test_the_pareto_front_is_what_nothing_dominates():
    marked = 0
    for seed in range(100):
        draw = random.Random(seed)
        points = {name: (draw.randint(1, 5), draw.choice([0.1, 0.2, 0.3, math.nan])) for name in "abcdef"}
        higher = draw.random() < 0.5
        records = [made(n, 0, value, flops=cost, higher_is_better=higher) for n, (cost, value) in points.items()]
        sign = 1 if higher else -1

        def dominated(name, points=points, sign=sign):
            cost, value = points[name]
            return any(
                c <= cost and sign * v >= sign * value and (c, v) != (cost, value) for c, v in points.values() if v == v
            )

        expected = {name for name, (_, value) in points.items() if value == value and not dominated(name)}
        found = compare(records)
        assert {row.name for row in found.rows if row.front} == expected
        marked += sum("◆" in "".join(line) for line in table(found).rows)
    assert marked > 50
    assert "◆" not in str(table(compare(runs({"a": [0.1], "b": [0.2]}))))  # where all cost the same it says nothing


# -- scales and columns -------------------------------------------------------------------------------


def test_runs_without_a_common_scale_are_refused_unless_they_are_the_rows():
    other = {"config": {"task": "other"}, "fingerprint": "other", "headline": "r2"}
    records = runs({"a": [0.5, 0.6]}) + runs({"a": [0.5, 0.6]}, **other)
    with pytest.raises(UsageError, match="several tasks"):
        compare(records)
    found = compare(records, "task")
    assert found.metrics == ("test/accuracy", "test/r2") and not any(row.mark for row in found.rows)
    assert "no common scale" in said(found)
    sizes = [made("a", s, 0.1, config={"task.rows": rows_}, fingerprint=str(rows_)) for s in (0, 1) for rows_ in (5, 9)]
    with pytest.raises(UsageError, match="different data"):
        compare(sizes)
    assert len(compare(sizes, "task.rows").rows) == 2
    with pytest.raises(UsageError, match="different data"):
        compare([*sizes, made("a", 3, 0.1, config={"task.rows": 5}, fingerprint="x")], "task.rows")


def test_sets_of_columns():
    records = runs({"a": [0.5]})
    assert compare(records).columns == ("test/accuracy", "balance CV", "NMI", "total", "active", "FLOP", "seconds")
    assert compare(records, sets=["balance"]).columns == ("test/accuracy", "balance CV")
    assert compare(records, sets=["cost", "quality"]).columns == ("test/accuracy", "total", "active", "FLOP", "seconds")
    with pytest.raises(UsageError, match=r"--columns cots: no such set\. Did you mean cost\?"):
        compare(records, sets=["cots"])


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.85, 0.9, 0.8], "0.850 ± 0.124"), ([0.5], "0.500"), ([0.0012345], "0.00123"), ([31415.9, 31415.5], "31415.7 ± 2.5"),
     ([0.5, 0.50001], "0.50001 ± 0.00006")],
)  # fmt: skip
def test_numbers_have_as_many_decimals_as_they_need(values, shown):
    assert table(compare(runs({"a": values}))).rows[0][2] == shown
