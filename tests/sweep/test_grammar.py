"""Words of a sweep: Hydra's grammar and ours, and what is refused in one line."""

from __future__ import annotations

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import UsageError
from moecli.sweep import samplers
from moecli.sweep.grammar import Axis, Interval, elements, parse

VALUES = {
    "router=top_k,hash": ("top_k", "hash"),
    "router.k=1..4": ("1", "2", "3", "4"),
    "router.k=-1..1,7": ("-1", "0", "1", "7"),
    "router.k=range(2,9,2)": ("2", "4", "6", "8"),
    "router.k=choice(1,2)": ("1", "2"),
    "optimizer.lr=1e-3,1e-2": ("0.001", "0.01"),
    "optimizer.lr=range(0.1,0.4,0.1)": ("0.1", "0.2", "0.3"),
    "optimizer.lr=sort(3,1,2)": ("1", "2", "3"),
    "auxiliary=[a,b],[c]": ("[a,b]", "[c]"),
    "router=glob(*top*,exclude=noisy*)": ("top_k", "top_p"),
    "task.path=~/a b.csv,l'été.csv": None,
    "task.path=~/a b.csv,été.csv": ("~/a b.csv", "été.csv"),
    "task.path='a,b',c": ("'a,b'", "c"),
}
ONE = ["router=top_k", "auxiliary=[a,b]", "task.path=~/a b.csv", "task.path='a, b'", "task.path=data(1).csv", "router="]
REFUSED = {
    ("router=top_k,",): "comma without a value",
    ("router=,top_k",): "comma without a value",
    ("router.k=4..1",): "no value is left",
    ("router=glob(x*)",): "no value is left",
    ("router.k=1,1",): "there twice",
    ("router.k=1..3,2",): "there twice",
    ("router.k=1", "router.k=2"): "given twice",
    ("router.k=0..1000000000",): "1,000,000,001 values",
    ("router.k=range(0,1000000000)",): "1,000,000,000 values",
    ("router.k=range(0,5,0)",): "no step",
    ("router.k=choice()",): "Check its values",
    ("optimizer.lr=interval(1,)",): "Check its values",
    ("optimizer.lr=interval(2,1)",): "ends must rise",
    ("optimizer.lr=tag(log,interval(0,1))",): "above 0",
    ("seed=interval(0,1)",): "replicates, not searched",
    ("threads=1,2",): "one threads",
    ("router",): "not of the form",
}


@pytest.mark.parametrize("word", [word for word, values in VALUES.items() if values])
def test_values(word):
    assert parse([word]).axes == [Axis(word.partition("=")[0], VALUES[word])]


@pytest.mark.parametrize("word", ONE)
def test_what_says_one_value_stays_as_it_is(word):
    assert parse([word]).fixed == [word] and not parse([word]).axes


def test_intervals():
    plain, log = parse(["a=interval(1e-4,1e-2)", "b=tag(log, interval(1,8))"]).axes
    assert plain.interval == Interval(1e-4, 1e-2) and log.interval == Interval(1.0, 8.0, True)


def test_seeds_are_no_axis():
    space = parse(["seed=0..2,7", "router=top_k,hash"])
    assert space.seeds == ["0", "1", "2", "7"] and [axis.key for axis in space.axes] == ["router"]
    assert parse(["seed=3"]).seeds == ["3"]


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words):
    with pytest.raises(UsageError, match=REFUSED[words]) as caught:
        parse(words)
    assert "\n" not in str(caught.value)


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_grid_is_the_one_hydra_would_run(lists):
    words = [f"{key}={','.join(map(str, values))}" for key, values in zip("abc", lists, strict=False)]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    axes = [parse([word]).axes or [Axis(word[0], (word[2:],))] for word in words]
    ours = [[f"{k}={v}" for k, v in drawn.items()] for drawn in samplers.draw([a for (a,) in axes], "grid", 0, 0)]
    assert ours == [list(job) for job in batch]


@given(st.lists(st.text("ab[]()'\" ", max_size=6), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_elements_lose_no_text(parts):
    text = ",".join(parts)
    assert sum(map(len, elements(text))) <= len(text)
    assert "".join(elements(text)).replace(" ", "").replace(",", "") == text.replace(" ", "").replace(",", "")
