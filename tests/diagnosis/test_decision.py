"""Why an input went where it went, against the model itself: what is said is so, and what is said to change it does."""

import json
import re

import pytest
import torch

from moecli import config, run
from moecli.analysis.decision import Decision, Part
from moecli.diagnosis.decision import explain
from moecli.diagnosis.question import question
from moecli.errors import DataError, UsageError
from moecli.report import decision as report

SMALL = ("threads=1", "trainer.steps=8", "trainer.eval_every=8")


def trained(tmp_path_factory, *words):
    place = run.Place(tmp_path_factory.mktemp("runs"), pictures=False)
    return run.load(run.train_built(run.assemble(config.compose([*words, *SMALL])), place).path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(tmp_path_factory, "task=digits", "router.capacity_factor=0.7", "router.eval_capacity_factor=0.7")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.csv"
    draw = torch.Generator().manual_seed(0)
    age, tall = torch.rand(120, generator=draw) * 40 + 20, torch.randn(120, generator=draw) * 8 + 170
    city = [("Bern", "Rome, old", "Oslo")[i % 3] for i in range(120)]
    rows = [f'{a:.1f},{t:.1f},"{c}",{a + (c == "Bern"):.1f}' for a, t, c in zip(age, tall, city, strict=True)]
    file.write_text("age,tall,city,pay\n" + "\n".join(rows))
    return trained(tmp_path_factory, "task=table", f"task.path='{file}'", "task.target=pay")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    small = ("task.documents=100", "model.dim=16", "model.depth=2", "model.every=1", "num_experts=4")
    return trained(tmp_path_factory, "task=languages", *small)


def test_parts_are_the_models_own(digits):
    asked = question(digits, "test:17")
    (found,) = explain(digits, asked).decisions
    batch = digits.task.batch("test", torch.arange(256))
    with torch.no_grad():
        output = digits.model(batch.x, batch.known)
    routing = output.routings["layer0"]
    for part in found.parts:
        assert part.logit == pytest.approx(float(routing.logits[17, part.expert]), abs=1e-6)
        assert part.prob == pytest.approx(float(routing.probs[17, part.expert]), abs=1e-6)
        assert part.asked == bool(routing.asked.demand[17, part.expert])
        assert part.weight == pytest.approx(float(routing.plan.weights[17, part.expert]), abs=1e-6)
    logits = [part.logit for part in found.parts]
    assert logits == sorted(logits, reverse=True) and len(found.asked) == 2
    assert found.margin == pytest.approx(logits[1] - logits[2])
    assert sum(part.contribution for part in found.parts) == pytest.approx(1, abs=1e-5)


def test_who_is_dropped_is_told(digits):
    batch = digits.task.batch("test", torch.arange(256))
    routing = digits.model(batch.x, batch.known).routings["layer0"]
    lost = (routing.asked.demand > 0) & (routing.plan.weights == 0)
    row = int(lost.any(1).nonzero()[0])
    found = explain(digits, question(digits, f"test:{row}"))
    dropped = [part.expert for part in found.decisions[0].asked if not part.served]
    assert dropped == lost[row].nonzero()[:, 0].tolist() and dropped
    assert report.as_record(found)["decisions"][0]["dropped"] == dropped
    assert "had no room left (router.capacity_factor)" in "\n".join(report.lines(found))
    kept = int((~lost.any(1)).nonzero()[0])
    assert "no room" not in "\n".join(report.lines(explain(digits, question(digits, f"test:{kept}"))))


def test_what_is_said_to_change_the_choice_does(table):
    row = {"age": "33", "tall": "171", "city": "Bern"}

    def asked(values):
        text = ",".join(f'"{name}={value}"' for name, value in values.items())
        return explain(table, question(table, text)).decisions[0]

    before, seen = asked(row), set()
    assert before.changes
    for change in before.changes:
        what, _, experts = change.rpartition(": ")
        number = re.fullmatch(r"(age|tall) \S+ → (\S+)", what)
        category = re.fullmatch(r"city = (.+)", what)
        if number is None and category is None:
            continue
        after = asked({**row, **({number[1]: number[2]} if number else {"city": category[1]})})
        went = sorted(part.expert for part in after.asked)
        assert went != sorted(part.expert for part in before.asked)
        assert experts == " and ".join(f"e{e}" for e in went)
        seen.add("number" if number else "category")
    assert seen


def test_every_symbol_that_is_said_to_go_elsewhere_does(words):
    asked = question(words, "a0 a1 b2 c3")
    found = explain(words, asked, at=2)
    assert [d.layer for d in found.decisions] == ["block0", "block1"] and found.decisions[0].symbol == "b2"
    changes = found.decisions[0].changes
    number, others = map(int, re.match(r"(\d+) of the (\d+) other symbols", changes[0]).groups())
    assert others == words.task.out - 1 and 0 < number <= others
    for change in changes[1:]:
        there, _, experts = change.rpartition(": ")
        for symbol in re.findall(r"'(\w+)'", there):
            decision = explain(words, question(words, f"a0 a1 {symbol} c3"), at=2).decisions[0]
            assert " and ".join(f"e{e}" for e in sorted(p.expert for p in decision.asked)) == experts


def test_a_text_is_explained_token_by_token(words):
    found = explain(words, question(words, "test:4"))
    assert len(found.decisions) == 2 * words.task.context
    batch = words.task.batch("test", torch.arange(5))
    with torch.no_grad():
        routing = words.model(batch.x, batch.known).routings["block1"]
    first = routing.plan.weights.view(5, -1, 4)[4].argmax(-1).tolist()
    assert [d.first for d in found.of("block1")] == first
    shown = "\n".join(report.lines(found))
    assert "block0 · first expert of each token" in shown and "closest calls" in shown
    assert [layer for layer, _ in report.coloured(found)] == ["block0", "block1"]
    assert json.loads(json.dumps(report.as_record(found)))["decisions"][0]["symbol"] == found.decisions[0].symbol


def test_who_decides_is_told_apart():
    def part(expert, logit, asked):
        return Part(expert, logit, 0.3, asked, asked, 0.5 * asked, None)

    by_gate = Decision("l", 0, None, (part(1, 2.0, True), part(0, 1.5, False)))
    assert by_gate.margin == 0.5 and by_gate.first == 1 and [p.expert for p in by_gate.rivals] == [1, 0]
    beyond = Decision("l", 0, None, (part(0, 2.0, False), part(1, 1.5, True)))
    assert beyond.margin == -0.5 and "more than the gate" in report._why(beyond)
    scoreless = Decision("l", 0, None, (part(0, None, True), part(1, None, False)))
    assert scoreless.margin is None and report.UNSCORED in report._why(scoreless)
    everyone = Decision("l", 0, None, (part(0, 2.0, True), part(1, 1.0, True)))
    assert "every expert is asked" in report._why(everyone)


KINDS = [
    ("router=hash", "task=languages", "task.documents=100", "model.depth=2", "model.dim=16"),
    ("router=soft_slots",),
    ("router=expert_choice",),
    ("model.twin=true",),
    ("task=regions", "router=dense"),
    ("router=oracle", "num_experts=10"),
]


@pytest.mark.parametrize("words", KINDS)
def test_every_kind_of_routing_is_explained(words, tmp_path_factory):
    loaded = trained(tmp_path_factory, *words)
    found = explain(loaded, question(loaded, "test:3"))
    assert report.lines(found) and all(decision.first >= 0 for decision in found.decisions)
    if "router=oracle" in words:
        with pytest.raises(UsageError, match="told each row's labels"):
            question(loaded, "pixel 0,0=1")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("test:99999", UsageError, "rows 0 to"),
        ("test:x", UsageError, "rows 0 to"),
        ("nothing", UsageError, "neither a row"),
        ("", UsageError, "neither a row"),
        ("age=1", DataError, "tall"),
        ("age=old,tall=1,city=Bern", DataError, "old"),
        ("x" * 5000, UsageError, "neither a row"),
        ("a\0b", UsageError, "neither a row"),
    ],
)
def test_what_cannot_be_asked_is_one_line(table, given, error, said):
    with pytest.raises(error, match=said) as caught:
        question(table, given)
    assert "\n" not in str(caught.value) and "input.csv" not in str(caught.value)


def test_positions_and_words_that_are_not_there(words, table):
    with pytest.raises(UsageError, match="positions 0 to 1"):
        explain(words, question(words, "a0 a1"), at=2)
    with pytest.raises(DataError, match="no word"):
        question(words, "a0 hello")
    with pytest.raises(DataError, match="no tokens"):
        question(words, " ")
    with pytest.raises(UsageError, match="only a text has positions"):
        explain(table, question(table, "test:0"), at=0)
    long = explain(words, question(words, "a0 " * 100))
    assert len(long.of("block0")) == words.task.context and "the first" in long.notes[0]


def test_a_row_of_a_file_is_the_row(table, tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("age,tall,city\n30,170,Bern\n50,180,Oslo\n")
    by_file = explain(table, question(table, f"{file}:1"))
    by_cells = explain(table, question(table, "age=50,tall=180,city=Oslo"))
    assert by_file.decisions == by_cells.decisions
    assert explain(table, question(table, str(file))).decisions != by_file.decisions
    with pytest.raises(UsageError, match="rows 0 to 1"):
        question(table, f"{file}:2")


def test_a_file_of_text_has_no_rows(words, tmp_path):
    file = tmp_path / "new.txt"
    file.write_text("a0 a1 b2")
    assert len(question(words, str(file)).input) == 3
    with pytest.raises(UsageError, match=r"new\.txt:2: this run reads a text, which has no rows\. Give the file alone"):
        question(words, f"{file}:2")
