"""A plan is complete and exact: each of its trials is what ``moe train`` would make of its words."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from moecli import config
from moecli.analysis.explain import part_lines
from moecli.errors import ArtifactError, UsageError
from moecli.sweep import plan as plans
from moecli.sweep import samplers, start
from moecli.sweep.grammar import Axis, Interval, parse
from moecli.sweep.plan import from_dict, make, to_dict

SPACES = {
    "grid": ["router=top_k,dense", "optimizer.lr=0.01,0.1", "seed=0..2", "task=piecewise"],
    "list": ["router=top_k,expert_choice", "num_experts=4,8", "seed=5,7"],
    "random": ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "num_experts=interval(2,9)", "router=top_k,hash", "seed=1"],
}
NESTED = [
    "experiment=hme_em,ensemble",
    "model.layers.layer0.router=hash,top_k",
    "auxiliary=[],[z_loss]",
    "init='a, b',~/été",
]
REFUSED = {
    ("router=top_k,hsah", "seed=0..4"): "Did you mean router=hash",
    ("router=top_k,hash", "optimizer.l=1,2"): "Did you mean optimizer.lr",
    ("router=top_k,hash", "optimizer.lr=a,2"): "must be a number",
    ("seed=0,x", "router=top_k,hash"): "seed=x",
    ("seed=1,01",): "there twice",
    ("seed=0",): "no key has several values",
    (): "no key has several values",
    ("optimizer.lr=interval(1,2)",): "--sampler random or tpe",
    ("num_experts=1..9", "router.k=1..9", "trainer.steps=1..9", "trainer.batch_size=1..9", "seed=0..9"): "65,610 runs",
    ("auxiliary=[z_loss],[z_los]",): "Did you mean auxiliary=z_loss",
    ("sweep=routers", "router=top_k"): "sweep",
}


def planned(*words, sampler="grid", trials=None, **options):
    return make(parse(words), sampler, trials, **options)


@pytest.mark.parametrize("sampler", SPACES)
def test_every_run_is_what_moe_train_makes_of_its_words(sampler):
    plan = planned(*SPACES[sampler], sampler=sampler, trials=3 if sampler == "random" else None)
    assert len(plan.points) == {"grid": 4, "list": 2, "random": 3}[sampler]
    for point in plan.points:
        seed = plan.seeds[-1]
        assert plan.composed(point, seed) == config.compose(plan.train_words(point, seed))


@pytest.mark.parametrize("word", NESTED)
def test_axes_that_choose_parts_or_take_text_too(word):
    plan = planned(word, "seed=0,1")
    assert len(plan.points) == 2
    for point in plan.points:
        assert plan.composed(point, 1) == config.compose(plan.train_words(point, 1))


def test_a_plan_is_the_same_when_it_is_read_again():
    plan = planned(*SPACES["random"], sampler="random", trials=4)
    stored = json.loads(json.dumps(to_dict(plan)))
    assert from_dict(stored, Path("plan.json")) == plan
    assert stored != json.loads(json.dumps(to_dict(planned(*SPACES["grid"]))))


@pytest.mark.parametrize(
    "damage",
    [{"version": 0}, {"axes": [{}]}, {"points": [{"x": 1}]}, {"bases": 3}, {"more": 1}],
)
def test_what_is_no_plan_is_refused(damage):
    with pytest.raises(ArtifactError, match=r"plan\.json"):
        from_dict({**json.loads(json.dumps(to_dict(planned("seed=0,1")))), **damage}, Path("plan.json"))


def test_a_plan_from_elsewhere_makes_no_other_class():
    stored = json.loads(json.dumps(to_dict(planned("seed=0,1"))))
    stored["bases"][0]["config"]["task"]["_target_"] = "os.system"
    with pytest.raises(ArtifactError, match=r"os\.system"):
        from_dict(stored, Path("plan.json"))


@pytest.mark.parametrize("words", REFUSED)
def test_refused_before_anything_runs(words):
    with pytest.raises(UsageError, match=REFUSED[words]) as caught:
        planned(*words)
    assert "\n" not in str(caught.value)


def test_a_key_that_only_some_choices_have_refuses_the_others():
    plan = planned("router=top_k,hash", "router.k=1,2")
    assert [point.refused is None for point in plan.points] == [True, True, False, False]
    assert "router.k (router=hash): no such key" in plan.points[2].refused
    assert [job.trial for job in plan.jobs(plan.points)] == [0, 1]


def test_many_runs_only_when_asked(monkeypatch):
    assert plans.MOST_RUNS == 10_000
    monkeypatch.setattr(plans, "MOST_RUNS", 5)
    words = ["num_experts=1,2", "seed=0..2"]
    assert len(planned(*words, any_number=True).points) == 2
    with pytest.raises(UsageError, match=r"6 runs.*--yes"):
        planned(*words)


def test_a_thousand_points_compose_once_for_each_choice_of_parts(monkeypatch):
    composed, amended = [], []
    for name, calls in (("compose", composed), ("amend", amended)):
        real = getattr(plans, name)
        monkeypatch.setattr(plans, name, lambda *a, real=real, calls=calls: calls.append(a) or real(*a))
    assert len(planned("router=top_k,dense", "optimizer.lr=range(1,21)", "num_experts=1..25").points) == 1000
    assert len(composed) == 2 and len(amended) == 2 * (20 + 25)


def test_jobs_go_seed_by_seed():
    plan = planned("router=top_k,dense", "seed=3,1")
    assert [job.id for job in plan.jobs(plan.points)] == ["0000-seed3", "0001-seed3", "0000-seed1", "0001-seed1"]


def test_twins_of_what_is_none():
    plan = planned("router=top_k,hash", "router.k=1,2", "model.twin=false,true", twin=True)
    twins = [point for point in plan.points if point.number >= 8]
    assert [point.words for point in twins] == [[*plan.points[i].words, "model.twin=true"] for i in (0, 2)]
    assert all(plan.composed(twin, 0).config["model"]["twin"] for twin in twins)


# -- samplers -------------------------------------------------------------------------------------

AXES = [Axis("a", interval=Interval(1e-4, 1e-1, True)), Axis("b", ("x", "y", "z")), Axis("c", interval=Interval(2, 5))]


def test_a_random_trial_is_a_function_of_seed_and_number():
    few, many = (list(samplers.draw(AXES, "random", n, 3)) for n in (5, 50))
    assert many[:5] == few
    assert list(samplers.draw(AXES[:1], "random", 5, 3)) == [{"a": drawn["a"]} for drawn in few]
    assert list(samplers.draw(AXES, "random", 5, 4)) != few


def test_no_random_trial_is_drawn_twice():
    drawn = list(samplers.draw(AXES[1:2], "random", 3, 0))
    assert sorted(d["b"] for d in drawn) == ["x", "y", "z"]
    with pytest.raises(UsageError, match="only 3 different"):
        samplers.refuse(AXES[1:2], "random", 4)


def test_draws_are_even_on_their_scale():
    drawn = list(samplers.draw(AXES, "random", 3000, 0))
    decades = Counter(math.floor(math.log10(d["a"])) for d in drawn)
    assert set(decades) == {-4, -3, -2} and min(decades.values()) > 900
    assert all(count > 650 for count in Counter(d["c"] for d in drawn).values()) and {d["c"] for d in drawn} == {
        2,
        3,
        4,
        5,
    }
    assert min(Counter(d["b"] for d in drawn).values()) > 900


@pytest.mark.parametrize(
    "interval", [Interval(1, 8, True), Interval(-3, 4), Interval(0.5, 0.75), Interval(0.1, 10.0, True)]
)
def test_the_ends_of_an_interval_are_kept(interval):
    least, most = samplers.within(interval, 0.0), samplers.within(interval, math.nextafter(1.0, 0.0))
    assert least == interval.low and interval.low < most <= interval.high
    assert most == interval.high or isinstance(interval.low, float)


@pytest.mark.parametrize(
    ("words", "sampler", "trials", "said"),
    [
        (["seed=0,1"], "gird", None, "Did you mean grid"),
        (["num_experts=interval(0,4)"], "random", 3, "at least 1"),
        (["num_experts=interval(1.5,4)"], "random", 3, "a whole number"),
        (["router=top_k,hash"], "grid", 3, "--trials"),
        (["router=top_k,hash"], "list", 3, "--trials"),
        (["seed=0,1"], "random", 3, "nothing but the seed"),
        (["router=top_k,hash", "num_experts=1,2,3"], "list", None, "router has 2, num_experts has 3"),
    ],
)
def test_a_space_that_the_sampler_cannot_walk(words, sampler, trials, said):
    with pytest.raises(UsageError, match=said):
        planned(*words, sampler=sampler, trials=trials)


# -- named sweeps ---------------------------------------------------------------------------------

NAMED = sorted(config.registry()["sweep"])


def test_the_glob_finds_every_named_sweep():
    assert len(NAMED) == len(list((config.conf_root() / "sweep").glob("*.yaml"))) >= 4


@pytest.mark.parametrize("name", NAMED)
def test_a_named_sweep_makes_a_plan_and_says_what_for(name):
    words, order = start._with_named([f"sweep={name}"], start.Order())
    plan = make(parse(words), order.sampler or "grid", order.trials)
    assert plan.seeds == [0, 1, 2, 3, 4][: len(plan.seeds)] and not any(point.refused for point in plan.points)
    header = config.find("sweep", name).read_text().splitlines()
    assert [line.partition(":")[0] for line in header[1:4]] == ["# claim", "# command", "# cost"]
    assert header[2].startswith(f"# command: moe sweep sweep={name}")
    assert order.name == name


def test_the_users_words_beat_those_of_a_named_sweep():
    words, order = start._with_named(
        ["sweep=rate", "seed=7", "task=piecewise"], start.Order(sampler="random", trials=3)
    )
    assert words.count("seed=7") == 1 and not any(word.startswith("seed=0") for word in words)
    assert (order.sampler, order.trials) == ("random", 3)
    assert start._with_named(["seed=1,2"], start.Order()) == (["seed=1,2"], start.Order())
    with pytest.raises(UsageError, match="Did you mean sweep=routers"):
        start._with_named(["sweep=router"], start.Order())


def test_one_training_is_no_sweep():
    with pytest.raises(UsageError, match="moe sweep"):
        config.compose(["sweep=routers"])
    with pytest.raises(UsageError, match="moe sweep"):
        config.compose(["router=top_k,hash"])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400)])
def test_lengths_of_time(text, seconds):
    assert start.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "1.5h", "-3m", "1m1h"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(UsageError, match="--budget"):
        start.seconds(text)


def test_a_named_sweep_is_explained():
    lines = part_lines("sweep", "rate")
    assert lines[0].startswith(" rate · ") and "   optimizer.lr=tag(log, interval(1e-4, 1e-1))" in lines
