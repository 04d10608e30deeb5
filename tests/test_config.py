"""Configuration is data, and safe: complete, checked, refused in one line with the nearest right name."""

import copy
import itertools
import random
import re
import string
import subprocess
import sys
import typing
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moecli import config
from moecli.errors import ArtifactError, MoeError, UsageError

NO_PARTS = ("experiment", "sweep")  # tests/test_experiments.py, tests/sweep/test_plan.py
PARTS = [(g, option) for g, options in config.registry().items() if g not in NO_PARTS for option in options]
NEEDED = {
    "table": ["task.path=data.csv", "task.target=y"],
    "text": ["task.path=folder"],
    "images": ["task.path=folder"],
    "translation": ["task.path=folder"],
}


def word(group, option):
    return f"{group}=[{option}]" if group == "auxiliary" else f"{group}={option}"


@cache
def composed(*words):
    return config.compose(words).config


def fresh(*words):
    return copy.deepcopy(composed(*words))


def refused(*words, error=UsageError):
    with pytest.raises(error) as caught:
        config.compose(words)
    assert "\n" not in str(caught.value) or "\n" in "".join(words)
    return str(caught.value)


# -- every option is listed, explained and buildable ------------------------------------------------


def test_the_registry_holds_what_conf_holds():
    files = [f for f in config.conf_root().glob("*/*.yaml") if not f.stem.startswith("_")]
    others = sum(len(config.registry()[group]) for group in NO_PARTS)
    assert len(PARTS) + others == len(files) >= 38
    assert len(config.registry()) >= 11


def listed(group, option):
    """{key: value} as the file and the pieces it takes in list them, parts within it included."""
    raw = config.raw_node(group, option)
    nested = [k for e in raw.get("defaults", []) if isinstance(e, dict) for k in e]
    inner = {key.partition("@")[2].split(".")[0]: config.REQUIRED for key in nested}
    return {k: v for k, v in raw.items() if k not in ("_target_", "recommends", "defaults")} | inner


def test_each_file_lists_exactly_the_options_of_its_constructor():
    checked = 0
    for group, option in PARTS:
        raw = config.raw_node(group, option)
        if raw["_target_"].startswith("torch."):
            continue
        wanted = {n: o.default for n, o in config.signature(raw["_target_"]).items() if n not in config.CONTEXT}
        if group in ("gate", "expert"):
            wanted["columns"] = None  # which the layer reads, not the part
        inner = {n for n, v in listed(group, option).items() if v is config.REQUIRED}
        for name in inner & set(config.signature(raw["_target_"])):
            wanted[name] = config.REQUIRED
        own = set(config.CONTEXT) & set(raw) & set(config.signature(raw["_target_"]))
        wanted |= {name: raw[name] for name in own}  # a size of its own, not one that a model fills in
        assert set(listed(group, option)) == set(wanted), (group, option)
        checked += 1
    assert checked >= 36


def test_a_default_in_yaml_that_the_constructor_has_too_is_the_same():
    compared, differing = 0, set()
    for group, option in PARTS:
        raw = config.raw_node(group, option)
        if raw["_target_"].startswith("torch."):
            continue
        for name, value in listed(group, option).items():
            default = config.part_options(raw)[name].default
            if config.REQUIRED in (value, default) or value == "???":
                continue
            compared += 1
            if value != default and not (not value and not default):  # [] for None: a list has no default in Python
                differing.add(f"{group}={option} {name}: {value} is not {default}")
    assert compared >= 70
    assert not differing


def test_every_option_has_help():
    counted = 0
    for group, option in PARTS:
        helps, raw = config.option_help(group, option), config.raw_node(group, option)
        own = [n for n in raw if n not in ("_target_", "defaults", "recommends")]
        assert not [n for n in own if not helps.get(n)], (group, option)
        assert len(config.describe(group, option)) > 15, (group, option)
        counted += len(own)
    assert counted >= 90
    settings_text = (config.conf_root() / "config.yaml").read_text()
    for name in config.signature("moecli.config.Settings"):
        assert re.search(rf"^{name}: .*# .+", settings_text, re.MULTILINE)


@pytest.mark.parametrize(("group", "option"), PARTS)
def test_every_part_composes_and_its_class_is_there(group, option):
    node = composed(word(group, option), *NEEDED.get(option, []))[group]
    node = node[option] if group == "auxiliary" else node
    assert set(node) - {"_target_"} >= {n for n in listed(group, option) if n != "kinds"}
    assert config.part_class(node).__name__ == node["_target_"].rpartition(".")[2]
    if group in ("auxiliary", "objective", "schedule", "trainer") or (group == "task" and option not in NEEDED):
        config.build({**node, "max_chars": 3000} if option == "stdlib_text" else node)
    elif group in ("gate", "expert", "family"):
        assert config.build(node, dim=6, out=6, num_experts=4) is not None


# -- typing errors ------------------------------------------------------------------------------------


def slips(text, count, draw):
    """``count`` words at edit distance 1 or 2 from ``text``, none a prefix of nothing."""
    letters, out = string.ascii_lowercase + "_", set()
    while len(out) < count:
        made = text
        for _ in range(draw.choice((1, 1, 2))):
            at = draw.randrange(len(made))
            made = draw.choice(
                (
                    made[:at] + made[at + 1 :],
                    made[:at] + draw.choice(letters) + made[at:],
                    made[:at] + draw.choice(letters) + made[at + 1 :],
                    made[:at] + made[at : at + 2][::-1] + made[at + 2 :],
                )
            )
            made = made or text
        if made != text and re.fullmatch(r"[a-z]\w*", made):
            out.add(made)
    return sorted(out)


def typos():
    """(typed word, the right name it must suggest): slips in groups, options and keys."""
    draw = random.Random(7)
    groups = [g for g in config.registry() if g != "auxiliary"]
    for group in groups:
        yield from ((f"{slip}={next(iter(config.registry()[group]))}", group) for slip in slips(group, 4, draw))
    for group, option in PARTS:
        if len(option) > 4:
            yield from ((word(group, slip), option) for slip in slips(option, 3, draw))
    known = [*config._known(config._defaults() | {"auxiliary": ["switch_balance"]}, {})]
    for key in known:
        stem, _, last = key.rpartition(".")
        if len(last) > 3:
            for slip in slips(last, 3, draw):
                yield f"{stem}.{slip}=1" if stem else f"{slip}=1", key


def test_typing_errors_are_refused_and_the_right_name_is_suggested():
    real = {key for key in config._known(config._defaults(), {})} | set(config.registry())
    cases = [
        (w, right)
        for w, right in typos()
        if w.partition("=")[0] not in real or w.partition("=")[0] in config.registry()
    ]
    cases = [
        (w, r)
        for w, r in cases
        if w.partition("=")[2].strip("[]") not in config.registry().get(w.partition("=")[0], ())
    ]
    assert len(cases) >= 180
    missed = []
    for number, (typed, right) in enumerate(cases):
        said = refused(("", "+", "++")[number % 3] + typed)
        hint = said.partition("Did you mean ")[2].partition("?")[0]
        if hint.rpartition("=")[2] != right:
            missed.append((typed, right, hint))
    assert len(missed) <= 0.05 * len(cases), missed


# -- types and ranges ---------------------------------------------------------------------------------


def bad_values(kind):
    """What an option of this type must refuse."""
    optional = config._takes(kind, type(None))
    bare = next((k for k in getattr(kind, "__args__", ()) if k is not type(None)), kind) if optional else kind
    if typing.get_origin(bare) is typing.Annotated:
        base, bounds = bare.__origin__, [repr(m) for m in bare.__metadata__[0].metadata]
    else:
        base, bounds = bare, []
    if typing.get_origin(bare) is typing.Literal:
        values = ["eight", "3", "true", "[]"]
    else:
        values = {
            int: ["eight", "2.7", "nan", "inf", "true", "[1]", "0x1G", "''"],
            float: ["eight", "true", "[1]", "{a: 1}"],
            bool: ["eight", "3", "nan", "[true]"],
        }.get(base, [])
    if values and bounds:
        values = [*values, *(["-1"] if any("g" in b.lower() for b in bounds) else []), *(["nan"])]
    if any("Gt(gt=0)" in b or "Ge(ge=1)" in b for b in bounds):
        values = [*values, "0"]
    return values if not values or optional else [*values, "null"]


def test_wrong_types_and_ranges_are_refused_naming_the_key():
    cases, keys, done = 0, set(), set()
    for group, option in PARTS:
        words = (word(group, option), *NEEDED.get(option, []))
        node = composed(*words)[group]
        key, node = (f"{group}.{option}", node[option]) if group == "auxiliary" else (group, node)
        for name, declared in config.part_options(node).items():
            if (group, name, repr(declared)) in done:  # the filters of every router, say
                continue
            done.add((group, name, repr(declared)))
            for value in bad_values(declared.type):
                cases += 1
                keys.add(f"{key}.{name}")
                with pytest.raises(UsageError) as caught:
                    config.amend(composed(*words), [f"{key}.{name}={value}"])
                assert str(caught.value).startswith(f"{key}.{name}"), caught.value
    assert cases >= 250
    assert len(keys) >= 35


@pytest.mark.parametrize(
    "bad",
    ["router.k=eight", "router.k=true", "trainer.steps=nan", "optimizer.lr=-1", "optimizer.lr=true", "seed=-1",
     "seed=true", "num_experts=0", "threads=0", "device=gpu", "router.k=1,2"],
)  # fmt: skip
def test_wrong_values_are_refused_on_the_command_line(bad):
    assert refused(bad).startswith(bad.partition("=")[0])


def test_values_that_fit_are_taken_in_their_type():
    taken = fresh("router.k=3", "trainer.steps=1e3", "optimizer.lr=1e-3", "router.capacity_factor=1", "threads=null")
    assert taken["router"]["k"] == 3
    assert taken["trainer"]["steps"] == 1000 and isinstance(taken["trainer"]["steps"], int)
    assert taken["optimizer"]["lr"] == 0.001
    assert isinstance(taken["router"]["capacity_factor"], float)


# -- what may not be set ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    ["router._target_=os.system", "+router._target_=os.system", "++a.b._target_=x", "_target_=x", "hydra.run.dir=x",
     "hydra.sweep.dir=..", "+hydra.searchpath=[x]", "choices.router=hash", "init=${oc.env:HOME}",
     "router.k=${seed}", "task.split_seed=${oc.decode:1}", "router={_target_: os.system}",
     "router.k={_target_: os.system}", "model.layers={a: {router: {_target_: os.system}}}",
     "model.layers.layer0.router={_target_: os.system, k: 1}", "trainer.phases=[{_target_: os.system}]",
     "~router.k", "=3", "e", "router.k", "--x=1", "", "router.k:3", "a b=1", "é=1"],
)  # fmt: skip
def test_keys_that_no_user_sets_are_refused(typed):
    refused(typed)


@given(st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_no_word_gives_another_error_than_ours(text):
    key, equals, _ = text.partition("=")
    if equals and key.lstrip("+") in config.settable([]):
        return
    with pytest.raises(UsageError):
        config.compose([text])


@pytest.mark.parametrize(
    "value", ["[", "{", "'", '"', "[a", "{a:", "a,b", "\\", "$", "${", "\x00", "\n", "é", "1 2", "(", "a=b", "!x"]
)
def test_odd_values_of_a_number_are_refused(value):
    with pytest.raises(UsageError):
        config.amend(composed(), [f"router.k={value}"])
    if value in ("[", "a,b", "\x00"):
        refused(f"router.k={value}")


EVIL = [
    "os.system", "os.execv", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open",
    "torch.load", "torch.utils.collect_env.run", "torch.hub.load", "torch.serialization.load", "pickle.loads",
    "pickle.Unpickler", "joblib.load", "pandas.read_pickle", "numpy.load", "numpy.savetxt", "sympy.sympify",
    "runpy.run_path", "pkgutil.resolve_name", "importlib.import_module", "distutils.spawn.spawn", "shutil.rmtree",
    "moecli.config.Path", "moecli.record.folder.LineFile", "moecli.run.Path", "moecli.config.Settings",
    "moecli.tasks.table.Path", "moecli.tasks.table.open", "moecli.tasks.task.hashlib", "torch.optim.os.system",
    "torch.optim.torch.load", "torch.optim.Optimizer", "torch.optim", "torch.optim.AdamW.__init__", "moecli", "", ".",
    "moecli.routers..TopK", "canary_package.module.Class", "..x", "a b", "moecli.routers.top_k.TopK()",
]  # fmt: skip


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A package on sys.path that leaves a file behind when it is imported."""
    package = tmp_path / "path" / "canary_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (package / "module.py").write_text("class Class: pass")
    monkeypatch.syspath_prepend(str(package.parent))
    yield tmp_path / "ran"
    assert "canary_package" not in sys.modules


@pytest.mark.parametrize("target", EVIL)
def test_a_stored_target_outside_the_allowlist_is_refused_before_import(target, tmp_path, canary):
    before = set(sys.modules)
    places = ("router", "optimizer", "auxiliary", "layers")
    for place in places if target in ("os.system", "canary_package.module.Class") else [places[len(target) % 4]]:
        stored = fresh()
        if place == "layers":
            stored["model"]["layers"] = {"layer0": {"router": {**stored["router"], "_target_": target}}}
        elif place == "auxiliary":
            stored["auxiliary"] = {"entropy": {"_target_": target, "weight": 1}}
        else:
            stored[place]["_target_"] = target
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(stored))
        with pytest.raises(ArtifactError):
            config.read(file)
        with pytest.raises((ArtifactError, UsageError)):
            config.build({"_target_": target})
    assert not canary.exists()
    assert not {m for m in set(sys.modules) - before if not m.startswith(("moecli", "torch.optim"))}


def test_the_canary_would_have_sung(canary):
    import canary_package.module  # noqa: F401

    assert canary.exists()
    del sys.modules["canary_package.module"], sys.modules["canary_package"]


@pytest.mark.parametrize("target", [t for t in EVIL if t])
def test_an_option_file_with_such_a_target_is_refused_before_import(target, plugin, canary):
    plugin("router/evil.yaml", f"# Evil\n_target_: {target}\nk: 1  # x\n")
    with pytest.raises(MoeError):
        config.compose(["router=evil"])
    assert not canary.exists()


# -- text survives ------------------------------------------------------------------------------------

PATHS = [
    "~/data/a.csv", "C:\\data\\new\\x.csv", "/a b/é ü 日本語/[x]{y}(z).csv", "a,b;c.csv", "it's.csv", '"q".csv', "'x",
    "x'", "\\'", "\\\\'", "a\\", "a\\\\", "$HOME/x", "100%.csv", "a=b=c.csv", "#x", "null.csv", "true", "1e5", "NO",
    "012", "a:b", "a: b", "- x", "[a", "a]", "{", "!x", "&x", "*x", "@x", " lead", "trail ", "\ttab", "x\u202ey", "🎲",
]  # fmt: skip


def kept(path):
    stored = config.compose(["task=table", "task.target=y", f"task.path={path}"]).config
    return stored["task"]["path"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_ordinary_input(path):
    if "/" in path or path in ("it's.csv", "a\\", "'x", "null.csv", "x\u202ey"):
        assert kept(path) == path
    assert config.amend(fresh("task=table", *NEEDED["table"]), [f"task.path={path}"])["task"]["path"] == path


def in_quotes(text):
    return len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12))
@example("'\\'")
@settings(max_examples=120, deadline=None)
def test_any_text_of_a_text_key_survives_the_grammar(path):
    if "${" in path or path == "???" or in_quotes(path):
        return
    assert config.amend(composed("task=table", *NEEDED["table"]), [f"task.path={path}"])["task"]["path"] == path


def test_columns_may_be_called_anything_but_a_comma():
    stored = config.compose(
        ["task=table", "task.path=x.csv", "task.target=[größe, a b,y.1]", "task.features=null"]
    ).config
    assert stored["task"]["target"] == ["größe", "a b", "y.1"]
    assert stored["task"]["features"] is None


# -- who comes first ----------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write files below a plugin's conf/: plugin("router/mine.yaml", text)."""
    folder = tmp_path / "plugin"
    (folder / "conf").mkdir(parents=True)
    monkeypatch.setattr(config, "_plugins", [])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, text):
        file = folder / ("conf" if name.endswith(".yaml") else ".") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        config.use_plugins([folder])
        return file

    yield write
    monkeypatch.undo()
    config.registry.cache_clear()


EXPERIMENT = """# @package _global_
# Claim: none. Command: moe train experiment=mine
defaults:
  - override /task: piecewise
  - override /router: top_k
  - _self_
num_experts: 6
router:
  k: 3
optimizer:
  lr: 0.5
"""


def test_an_experiment_comes_after_advice_and_before_the_user(plugin):
    plugin("experiment/mine.yaml", EXPERIMENT)
    found = config.compose(["experiment=mine"]).config
    advised = fresh("task=piecewise")
    assert advised["num_experts"] == 4 and advised["optimizer"]["lr"] == 0.02  # what the task recommends
    assert found["num_experts"] == 6 and found["optimizer"]["lr"] == 0.5  # the experiment beats it
    assert found["choices"]["task"] == "piecewise" and found["choices"]["router"] == "top_k"
    assert found["router"]["k"] == 3
    assert found["choices"]["model"] == "density"  # advice that the experiment leaves alone
    mine = config.compose(["experiment=mine", "router.k=1", "num_experts=5", "router.renormalize=false"]).config
    assert (mine["router"]["k"], mine["num_experts"], mine["optimizer"]["lr"]) == (1, 5, 0.5)
    assert config.compose(["experiment=mine", "router=dense"]).config["choices"]["router"] == "dense"
    assert "minee" in refused("experiment=minee") and "experiment=mine?" in refused("experiment=minee")


def test_a_term_that_an_experiment_weighs_may_be_left_out(plugin):
    weighed = "  - override /auxiliary: [switch_balance]\n  - _self_\nauxiliary:\n  switch_balance:\n    weight: 0.5\n"
    plugin("experiment/mine.yaml", f"# @package _global_\n# Mine\ndefaults:\n{weighed}")
    assert config.compose(["experiment=mine"]).config["auxiliary"]["switch_balance"]["weight"] == 0.5
    assert config.compose(["experiment=mine", "auxiliary=[]"]).config["auxiliary"] == {}
    assert list(config.compose(["experiment=mine", "auxiliary=[z_loss]"]).config["auxiliary"]) == ["z_loss"]


def test_a_scale_may_change_one_layer(plugin):
    layers = "model:\n  layers:\n    block3:\n      num_experts: 4\n"
    scales = "scales:\n  smoke:\n    model.layers.block3.num_experts: 2\n"
    plugin(
        "experiment/mine.yaml",
        f"# @package _global_\n# Mine\ndefaults:\n  - override /task: stdlib_text\n{layers}{scales}",
    )
    for scale, experts in (("full", 4), ("smoke", 2)):
        found = config.compose(["experiment=mine", f"scale={scale}"]).config
        assert found["model"]["layers"] == {"block3": {"num_experts": experts}}


def test_what_task_and_router_recommend_applies_unless_it_is_set():
    checked = 0
    for group in ("task", "router"):
        for option in config.registry()[group]:
            advice = config.raw_node(group, option).get("recommends", {})
            found = fresh(f"{group}={option}", *NEEDED.get(option, []))
            for key, value in advice.items():
                chosen = found["choices"][key] if key in config.registry() else dict(config.flatten(found))[key]
                assert chosen == value, (option, key)
                checked += 1
    assert checked >= 25
    mine = config.compose(["task=piecewise", "model=layer", "optimizer.lr=0.7", "router=top_k", "auxiliary=[]"]).config
    assert mine["choices"]["model"] == "layer" and mine["optimizer"]["lr"] == 0.7
    assert mine["auxiliary"] == {} and mine["num_experts"] == 4
    assert fresh("schedule=constant")["schedule"] == {"_target_": "moecli.training.schedules.Constant"}  # no .final
    assert set(fresh("router=noisy_top_k")["auxiliary"]) == {"importance", "load"}


# -- read again, change -------------------------------------------------------------------------------

CHOICES = [(group, option) for group, option in PARTS if group in ("task", "router", "model")]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_what_is_stored_is_read_back_the_same(group, option, tmp_path):
    stored = fresh(word(group, option), *NEEDED.get(option, []))
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(stored))
    assert config.read(file) == stored
    file.write_text(config.to_yaml({**stored, "seed": 1}))
    assert config.read(file) != stored


def test_nested_and_layered_parts_are_read_back_the_same(tmp_path):
    stored = config.compose(["gate=tree", "gate.node=mlp", "model.layers.layer0.gate=tree", "model.depth=2"]).config
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(stored))
    assert config.read(file) == stored
    assert config.flat(stored)["gate"] == "tree" and config.flat(stored)["gate.node.hidden"] == 64


AMENDMENTS = [("router.k", 3), ("trainer.steps", 7), ("optimizer.betas", [0.5, 0.6]), ("seed", 4), ("init", "a: b"),
              ("router.capacity_factor", 1.5), ("trainer.clip", None), ("router.renormalize", False),
              ("auxiliary.switch_balance.weight", 0.5), ("trainer.steps", 1000)]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), AMENDMENTS)
def test_amending_changes_exactly_one_key(key, value):
    before = fresh()
    after = config.amend(before, [f"{key}={config.text(value)}"])
    old, new = dict(config.flatten(before)), dict(config.flatten(after))
    assert {k for k in new if new[k] != old[k]} == {key}
    assert new[key] == value and old.keys() == new.keys()
    assert before == fresh(), "the stored configuration itself must stay"


def test_amending_a_group_replaces_the_whole_part():
    after = config.amend(fresh(), ["router=noisy_top_k", "router.k=3"])
    assert after["router"]["_target_"].endswith("NoisyTopK") and after["router"]["k"] == 3
    assert {g for g in after if after[g] != fresh()[g]} == {"router", "choices"}
    nested = config.amend(fresh(), ["gate=tree", "gate.node=mlp", "gate.node.hidden=3"])
    assert nested["gate"]["node"]["hidden"] == 3
    table = config.amend(fresh(), ["task=table", *NEEDED["table"]])
    assert table["task"]["path"] == "data.csv"


@pytest.mark.parametrize(
    "bad", ["router.kk=1", "rooter.k=1", "router.k=x", "router.k=[", "router.k={", "router.k=a: b", "router.k=1,2",
            "router._target_=os.system", "gate.node=mlp", "seed.x=1", "router=top_kk", "hydra.x=1"]
)  # fmt: skip
def test_a_wrong_amendment_is_refused(bad):
    with pytest.raises(UsageError):
        config.amend(fresh(), [bad])


def bomb():
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join([*lines, "choices: {}"])


BROKEN = [b"", b"\x00", b"\xff\xfe", b"a: b: c", b"- x", b"choices: 3", b"choices: {}", b"{", b"!!python/object/apply:os.system [ls]",
          b"choices: {}\nrouter: 5", b"\tx", b"[" * 5000, b"choices: {}\n" * 100_000, bomb().encode(), b"? [a]\n: b",
          b"a: 1\nchoices: {}\n1: 2", b"%YAML 9", b"\xef\xbb\xbfx: 1"]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=lambda d: repr(d[:20]))
def test_a_stored_file_that_is_none_is_an_artifact_error(data, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        config.read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_stored_configuration_is_read_or_refused_whatever_is_changed_in_it(tmp_path):
    draw, stored = random.Random(0), config.to_yaml(fresh())
    lines, file, outcomes = stored.splitlines(), tmp_path / "config.yaml", {"read": 0, "refused": 0}
    for _ in range(150):
        changed, at = list(lines), draw.randrange(len(lines))
        kind = draw.randrange(4)
        changed[at : at + 1] = (
            [],
            [changed[at][: draw.randrange(len(changed[at]) + 1)]],
            [changed[at]] * 2,
            [changed[at].replace(":", ": x", 1)],
        )[kind]
        file.write_text("\n".join(changed))
        try:
            config.read(file)
            outcomes["read"] += 1
        except ArtifactError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) >= 10, outcomes


def test_a_missing_file_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError):
        config.read(tmp_path / "none.yaml")
    with pytest.raises(ArtifactError):
        config.read(tmp_path)


# -- parts within parts, layers, plugins --------------------------------------------------------------


def test_parts_within_parts_are_chosen_and_set():
    tree = config.compose(["gate=tree", "gate.node=mlp", "gate.node.hidden=8"]).config["gate"]
    assert tree["node"] == {"_target_": "moecli.gates.mlp.Mlp", "hidden": 8, "columns": None}
    kinds = config.compose(["expert=several", "expert.kinds.linear.bias=false"]).config["expert"]["kinds"]
    assert kinds["linear"]["bias"] is False and kinds["feed_forward"]["bias"] is True
    assert "gate.node=mlp?" in refused("gate=tree", "gate.node=mpl")
    assert "gate.node.hidden" in refused("gate=tree", "gate.node.hidden=8")  # the node is linear
    assert "gate.node.hidden" in refused("gate=tree", "gate.node=mlp", "gate.node.hiden=8")


def test_layers_take_other_parts_whole_and_checked():
    layers = config.compose(
        [
            "model.depth=2",
            "model.layers.layer1.router=hash",
            "model.layers.layer0.router.k=1",
            "router.renormalize=false",
        ]
    ).config["model"]["layers"]
    assert layers["layer1"]["router"]["_target_"].endswith("Hash")
    assert layers["layer0"]["router"]["k"] == 1 and layers["layer0"]["router"]["renormalize"] is False
    assert "router" in refused("model.layers.layer0.roter=hash")
    assert "top_k" in refused("model.layers.layer0.router=top_kk")
    assert "model.layers.layer0.router.kk" in refused("model.layers.layer0.router.kk=1")
    assert "model.layers.layer0.router.k" in refused("model.layers.layer0.router.k=-1")
    assert "layer0" in refused("model.layers.layer0=hash")


ROUTER = '''
from moecli.routers.top_k import TopK
from moecli.types import PositiveInt


class Loud(TopK):
    """Top-k with a volume."""

    def __init__(self, gate, num_experts: int, k: PositiveInt = 2, volume: PositiveInt = 11, **filters):
        super().__init__(gate, num_experts, k, **filters)
        self.volume = volume
'''
LOUD = """# Top-k, but louder
_target_: moe_test_loud.Loud
k: 2  # experts a token chooses
volume: 11  # how loud
renormalize: true  # as in top_k
capacity_factor: null  # as in top_k
eval_capacity_factor: null  # as in top_k
capacity_by: position  # as in top_k
mask: 0.0  # as in top_k
"""


def test_a_plugin_of_one_file_and_one_yaml_is_listed_explained_composed_and_built(plugin):
    assert "loud" not in config.registry()["router"]
    stored_before = refused("router=loud")
    assert "no such router" in stored_before
    plugin("moe_test_loud.py", ROUTER)
    plugin("router/loud.yaml", LOUD)
    assert "loud" in config.registry()["router"]
    assert config.describe("router", "loud") == "Top-k, but louder"
    assert config.option_help("router", "loud")["volume"] == "how loud"
    node = config.compose(["router=loud", "router.volume=5"]).config["router"]
    assert "router.volume" in refused("router=loud", "router.volume=0")
    assert "router.volume?" in refused("router=loud", "router.volum=1")

    from moecli.compatibility import build_small

    assert build_small(node, composed()["gate"]).volume == 5
    assert node["volume"] == 5
    sys.modules.pop("moe_test_loud")


def test_a_stored_run_of_a_plugin_that_is_not_named_says_so(plugin, tmp_path, monkeypatch):
    plugin("moe_test_loud.py", ROUTER)
    plugin("router/loud.yaml", LOUD)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(config.compose(["router=loud"]).config))
    assert config.read(file)["router"]["volume"] == 11
    monkeypatch.setattr(config, "_plugins", [])
    config.registry.cache_clear()
    with pytest.raises(ArtifactError, match="--plugin"):
        config.read(file)


def test_a_plugin_folder_without_conf_is_refused(tmp_path):
    with pytest.raises(UsageError, match="conf"):
        config.use_plugins([tmp_path])


def test_composing_does_not_import_torch():
    code = (
        "import sys; from moecli import config; config.compose(['router.k=1']);"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "try: config.compose(['router.kk=1'])\n"
        "except Exception as e: print(type(e).__name__)\n"
        "assert 'torch' not in sys.modules; config.part_class({'_target_': 'moecli.routers.top_k.TopK'});"
        "assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (done.returncode, done.stdout) == (0, "UsageError\n"), done.stderr


def test_builds_share_no_weights_between_parts_within_parts():
    node = fresh("gate=tree")["gate"]
    gate = config.build(node, dim=3, num_experts=4)
    pointers = [p.data_ptr() for p in gate.parameters()]
    assert len(pointers) == len(set(pointers)) == 6
    assert not [pair for pair in itertools.combinations(gate.parameters(), 2) if pair[0] is pair[1]]


@pytest.mark.parametrize("word", ["seed=99999999999999999999", "task.split_seed=4294967296", "task.rows=9"])
def test_sizes_beyond_what_works_are_refused_in_words(word):
    with pytest.raises(UsageError, match=r"it must be at (most|least)"):
        config.compose(["task=spirals", word])


@pytest.mark.parametrize("words", [["family=null"], ["family=gamma", "family=null"]])
def test_a_group_without_an_option_is_refused_in_our_words(words):
    with pytest.raises(UsageError, match="one family is needed"):
        config.compose(words)


def test_what_an_experiment_leaves_open_is_asked_for_also_where_the_part_has_a_default():
    assert config.compose(["task=translation"]).config["task"]["path"] is None
    with pytest.raises(UsageError, match=r"^task\.path: a value is needed"):
        config.compose(["experiment=multi30k"])
    assert config.compose(["experiment=multi30k", "task.path=pairs"]).config["task"]["path"] == "pairs"
    assert "path" not in config.compose(["experiment=multi30k", "task=random_tokens", "task.source=4"]).config["task"]
