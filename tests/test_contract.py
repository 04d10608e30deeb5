"""Every router x gate x filter keeps what it claims, in both directions, and the matrix says the same."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch

import moecli
from moecli import config
from moecli.analysis import matrix
from moecli.compatibility import build_small, small_router
from moecli.config import Composed, compose, option_node, raw_node, registry
from moecli.errors import UsageError
from moecli.routing import Claims, Router
from moecli.run import assemble, build_task
from moecli.tasks.task import Task
from moecli.testing import check_router, observe

FILTERS = (
    {},
    {"capacity_factor": 0.6},
    {"capacity_factor": 0.6, "capacity_by": "token"},
    {"capacity_factor": 0.6, "capacity_by": "weight"},
    {"capacity_factor": 0.6, "capacity_by": "random"},
    {"eval_capacity_factor": 0.6},
    {"mask": 0.4},
)
VARIANTS = {
    "top_k": (
        {},
        {"k": 1, "renormalize": False},
        {"renormalize": False},
        {"jitter": 0.1, "noise": 1.0},
        {"scale": 2.0},
    ),
    "expert_choice": ({}, {"group": "position"}, {"group": "batch"}, {"capacity_factor": 9.0}, {"cap": 2}),
    "hash": ({}, *({"by": by} for by in ("previous", "bigram", "position")), {"hashes": 2}),
    "random_second": ({}, {"threshold": 1.0}, {"policy": "threshold", "threshold": 0.2}, {"policy": "sampled"}),
    "group_limited": ({}, {"renormalize": True, "scale": 2.0}, {"groups": 2, "limit": 1, "renormalize": True}),
    "sigmoid_bias": ({}, {"renormalize": False}, {"groups": 2}, {"k": 1}, {"k": 1, "renormalize": False}),
    "hierarchical": ({}, {"k": 1, "k_groups": 2}),
    "sinkhorn": ({}, {"temperature": 0.1}),
    "straight_through": ({}, {"sample": True}),
    "top_p": ({"p": 0.8},),
    "replay": ({}, {"k": 2}),
    "soft_slots": ({"slots": 1}, {"slots": 2, "group": "batch"}, {"slots": 1, "group": "position"}),
}


def built(router: str, gate: str, options: dict) -> Router:
    torch.manual_seed(0)
    return build_small({**option_node("router", router), **options}, option_node("gate", gate))


def combinations() -> list[tuple[str, str, dict]]:
    found = []
    for router in registry()["router"]:
        variants = VARIANTS.get(router, ({},))
        filters = FILTERS if "mask" in raw_node("router", router) else FILTERS[:1]
        found += [(router, "linear", {**v, **f}) for v in variants for f in filters]
        found += [(router, gate, v) for v in variants for gate in gates(router) if gate != "linear"]
    unfiltered = [("top_k", {"k": 4}), ("noisy_top_k", {"k": 4}), ("hierarchical", {"k_groups": 2}), ("sinkhorn", {"k": 4}),
                  ("sinkhorn", {"k": 2}), ("top_p", {"p": 0.8, "renormalize": True})]  # fmt: skip
    return [*found, *((router, "linear", options) for router, options in unfiltered)]


def gates(router: str) -> list[str]:
    """Those that the router can use, or the linear one to show that it uses none; gate=tdnn reads no vectors."""
    fitting = [g for g in registry()["gate"] if g != "tdnn" and matrix.gate_refusal(router, g) is None]
    return fitting or ["linear"]


def test_the_walk_finds_everything():
    found = combinations()
    assert {router for router, _, _ in found} == set(registry()["router"])
    gated = {"dense": 1, "top_k": 5, "noisy_top_k": 1, "random_second": 4, "argmax": 1, "sampled": 1,
             "straight_through": 2, "sinkhorn": 2, "group_limited": 3, "hierarchical": 2, "top_p": 1}  # fmt: skip
    odds = {"bernoulli": 1, "balanced_assignment": 1, "sigmoid_bias": 5}  # gates linear, cosine and mlp alone
    gateless = {"hash": 5, "oracle": 1, "replay": 2}
    bare = {"expert_choice": 5, "soft_slots": 3}  # without filters
    filtered, unfiltered = sum((gated | odds | gateless).values()), sum(bare.values())
    other_gates = 4 * (sum(gated.values()) + unfiltered) + 2 * sum(odds.values())
    assert len(found) >= len(FILTERS) * filtered + unfiltered + other_gates + 6


@pytest.mark.parametrize("router", registry()["router"])
def test_claims_hold_in_both_directions(router):
    for name, gate, options in combinations():
        if name == router:
            check_router(built(name, gate, options))


def test_the_contract_has_teeth():
    liar = built("expert_choice", "linear", {})
    liar.own = Claims()
    with pytest.raises(AssertionError, match="causal"):
        check_router(liar)
    shy = built("top_k", "linear", {})
    shy.own = Claims(causal=False)
    with pytest.raises(AssertionError, match="causal"):
        check_router(shy)


def test_a_claim_that_a_mixture_of_densities_asks_for_has_its_reason_where_it_is_absent():
    """The sentence that refuses a router beside model=density says why: of every router and option, five or more."""
    lacking = [
        (name, options) for name, gate, options in combinations() if gate == "linear" and lacks_density(name, options)
    ]
    assert len({name for name, _ in lacking}) >= 5
    assert [case for case in lacking if "density" not in built(case[0], "linear", case[1]).why_not()] == []


def lacks_density(name: str, options: dict) -> bool:
    router = built(name, "linear", options)
    return not (router.claims(True).density and router.claims(False).density)


def test_claims_table_of_the_design():
    """Design, section 2: the sentences about claims, observed."""
    eval_claims = {name: observe(built(name, "linear", {}), training=False) for name in registry()["router"]}
    assert eval_claims["top_k"].independent and eval_claims["hash"].independent
    assert not eval_claims["expert_choice"].causal and not eval_claims["soft_slots"].causal
    by_position = {k: built("top_k", "linear", {"k": k, "renormalize": False, "capacity_factor": 0.6}) for k in (1, 2)}
    assert by_position[1].claims(False).causal and not by_position[2].claims(False).causal
    grouped = built("expert_choice", "linear", {"group": "position"})
    assert observe(grouped, False).causal and not observe(grouped, False).independent


def test_a_router_of_a_plugin_is_covered(tmp_path, monkeypatch):
    """One Python and one YAML file, under 30 lines together: listed, trained, and held to its claims."""
    write_plugin(tmp_path)
    lines = sum(len(file.read_text().splitlines()) for file in tmp_path.rglob("*.*") if file.is_file())
    assert lines < 30
    monkeypatch.setattr(config, "_plugins", [])
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    config.use_plugins([tmp_path])
    try:
        assert "first_k" in registry()["router"] and config.describe("router", "first_k").startswith("Always")
        assert ("first_k", "linear", {}) in combinations()
        check_router(small_router("first_k"))
        assert any(cell.router == "first_k" for cell in matrix.cells())
        parts = assemble(compose(["task=spirals", "router=first_k", "router.k=2", "trainer.steps=2"]))
        assert parts.size.rows == {"layer0": 2.0}
        run = moecli.train(
            "task=spirals", "task.rows=100", "router=first_k", "router.k=2", "trainer.steps=3", runs=tmp_path
        )
        assert run.info["status"] == "finished" and run.info["config"]["router"] == "first_k"
    finally:
        monkeypatch.undo()
        config.use_plugins([])


def write_plugin(folder: Path) -> None:
    (folder / "conf" / "router").mkdir(parents=True)
    (folder / "conf/router/first_k.yaml").write_text(
        "# Always the first k experts\n_target_: first_k.FirstK\nk: 1  # how many\ndefaults:\n  - _filters\n"
        "recommends:\n  auxiliary: [switch_balance]\n"
    )
    (folder / "first_k.py").write_text(
        "from moecli.plan import Sparse\n"
        "from moecli.routing import Router, Routing\n\n\n"
        "class FirstK(Router):\n"
        '    """The first k experts, weighted by the gate."""\n\n'
        "    choices = 0\n\n"
        "    def __init__(self, gate, num_experts, k=1, **filters):\n"
        "        super().__init__(**filters)\n"
        "        self.gate, self.k = gate(num_experts), k\n"
        "        self.own = self.own.__class__(density=k == num_experts)\n\n"
        "    def route(self, tokens):\n"
        "        log_probs = self.gate(tokens.x).log_softmax(-1)\n"
        "        expert = log_probs.argsort(stable=True).sort().values[:, : self.k]\n"
        "        chosen = Sparse.from_choices(expert, log_probs[:, : self.k], log_probs.shape[-1])\n"
        "        return Routing(chosen, log_probs.exp(), log_probs)\n"
    )


# -- the matrix, against real assembly -----------------------------------------------------------

SETTINGS = {
    "model=layer (classes)": ["task=spirals", "model=layer"],
    "model=layer (real)": ["task=regions", "model=layer"],
    "model=density (classes)": ["task=spirals", "model=density"],
    "model=density (real)": ["task=regions", "model=density"],
    "model=transformer (text)": ["task=text", "model=transformer", "model.dim=8", "model.depth=2", "task.context=8"],
    "model=lstm (text)": ["task=text", "model=lstm", "model.dim=8", "task.context=8"],
    "model=seq2seq (pairs)": [
        "task=span_corruption",
        "task.text=text",
        "task.text.context=16",
        "model=seq2seq",
        "model.dim=8",
        "model.depth=1",
    ],
    "model=vision (classes)": [
        "task=digits",
        "model=vision",
        "model.dim=8",
        "model.depth=1",
        "model.every=1",
        "model.patch=4",
    ],
    "model=diffusion (noise)": ["task=denoising", "model.dim=8", "model.depth=1", "model.every=1", "model.patch=4"],
}

TASKS: dict[str, Task] = {}
FRAMES = ["task=speakers", "task.tokens=10", "model=layer", "model.head=false", "expert=tdnn", "num_experts=8"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 60)
    return file


@pytest.mark.parametrize("router", registry()["router"])
def test_the_matrix_agrees_with_assembly(router, text):
    """Every cell: what it lets through assembles and takes two steps, what it refuses refuses in that sentence."""
    cells = {cell.column: cell.refusal for cell in matrix.cells() if cell.router == router}
    others = {f"{group}={option}" for group in ("gate", "auxiliary", "trainer") for option in registry()[group]}
    assert set(SETTINGS) | others == set(cells)
    assert {column.partition("=")[2].partition(" ")[0] for column in SETTINGS} == set(registry()["model"])
    fitting = next(column for column in SETTINGS if cells[column] is None)
    linear = ["gate=linear"] if matrix.gate_refusal(router, "linear") is None else []
    for column, refusal in cells.items():
        group, _, option = column.partition("=")
        base = FRAMES if column == "gate=tdnn" else SETTINGS.get(column, SETTINGS[fitting])
        if group == "trainer":
            base = [*SETTINGS["model=density (real)"], *linear, column]  # a task recommends lengths for its trainer
        whole = served(base + [f"{key}.path={text}" for key in ("task", "task.text") if f"{key}=text" in base], router)
        outcome = attempt(chosen(whole, group, option) if group in ("gate", "auxiliary") else whole)
        assert (outcome is None) == (refusal is None), f"{column}: matrix {refusal!r}, assembly {outcome!r}"
        assert outcome is None or matrix.why(outcome) == matrix.why(refusal), (outcome, refusal)


@cache
def composed(*words: str) -> Composed:
    return compose(words)


def served(words: list[str], router: str) -> Composed:
    """What composing with the router beside these words would give, but for a weight that a task may advise."""
    whole = composed(*words, "router=top_k")
    given = composed(*SETTINGS["model=density (real)"], f"router={router}").config
    config = copy.deepcopy({**whole.config, "router": given["router"], "auxiliary": given["auxiliary"]})
    config["choices"] |= {group: given["choices"][group] for group in ("router", "auxiliary")}
    if "router_rate" in config["trainer"]:
        config["trainer"]["router_rate"] = given["trainer"]["router_rate"]
    return Composed(config, whole.explicit)


@pytest.mark.parametrize("router", ["straight_through", "soft_slots", "bernoulli"])
def test_a_router_may_be_chosen_after_composing(router):
    words = SETTINGS["model=layer (classes)"]
    assert served(words, router) == compose([*words, f"router={router}"]) != compose([*words, "router=top_k"])


def chosen(whole: Composed, group: str, option: str) -> Composed:
    """What composing with ``group=option`` beside the other words would give, in a tenth of the time."""
    several = group == "auxiliary"
    node = option_node(group, option)
    choices = {**whole.config["choices"], group: [option] if several else option}
    config = {**copy.deepcopy(whole.config), group: {option: node} if several else node, "choices": choices}
    return Composed(config, whole.explicit | {group})


@pytest.mark.parametrize(("group", "option"), [("gate", "mlp"), ("auxiliary", "importance")])
def test_a_part_may_be_chosen_after_composing(group, option):
    words = SETTINGS["model=density (real)"]
    typed = f"{group}=[{option}]" if group == "auxiliary" else f"{group}={option}"
    assert chosen(compose(words), group, option) == compose([*words, typed]) != compose(words)


def task_of(whole: Composed) -> Task:
    """Built once for all cells that have it."""
    key = repr(whole.config["task"])
    if key not in TASKS:
        TASKS[key] = build_task(whole)
    return TASKS[key]


def attempt(whole: Composed) -> str | None:
    """None where the combination takes two training steps, else its one sentence."""
    try:
        parts = assemble(whole, task_of(whole))
    except UsageError as error:
        assert ": " in str(error) and ". " in str(error) and "\n" not in str(error), error
        return str(error)
    optimizer = torch.optim.SGD(parts.model.parameters(), 0.01)
    for step in range(2):
        batch = parts.task.train_batch(step, 16, 0)
        losses = parts.objective(parts.model(batch.x, batch.known), batch.target)
        losses["total"].backward()
        assert losses["total"].isfinite()
        optimizer.step()
    return None


def test_unused_parts_are_refused():
    with pytest.raises(UsageError, match="router=hash has no gate"):
        assemble(compose(["task=stdlib_text", "router=hash", "gate=tree"]))
    with pytest.raises(UsageError, match="model=layer has no family"):
        assemble(compose(["task=spirals", "family=gaussian"]))
