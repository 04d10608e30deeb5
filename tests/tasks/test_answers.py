"""Tasks that score an answer alone: it is right, it is all that is scored, and no question is in two parts."""

import json
import random

import pytest
import torch

from moecli.errors import DataError, MoeError, UsageError
from moecli.tasks.copy import Copy
from moecli.tasks.instruction_tasks import OPPOSITES, SUB_TASKS, drawn
from moecli.tasks.instructions import Instructions
from moecli.tasks.modular import OPERATIONS, Modular
from moecli.tasks.task import SPLITS


def whole(task, split):
    (batch,) = task.batches(split, 10**6)
    return batch


def symbols(task, ids):
    return [task.kind.symbols[i] for i in ids if i >= 0]


@pytest.fixture(scope="module")
def instructions():
    return Instructions(examples=600, context=96)


@pytest.fixture(scope="module")
def tasks(instructions):
    return {
        "modular": Modular(modulus=7, operations=["subtract", "multiply"]),
        "copy": Copy(symbols=5, length=4, sequences=100),
        "instructions": instructions,
    }


# What is true of all


@pytest.mark.parametrize("name", ["modular", "copy", "instructions"])
def test_the_target_is_what_follows_or_nothing(tasks, name):
    for split in SPLITS:
        batch = whole(tasks[name], split)
        following = torch.cat([batch.x[:, 1:], batch.target[:, -1:]], dim=1)
        assert batch.x.shape == batch.target.shape and batch.x.dtype == batch.target.dtype == torch.int64
        assert ((batch.target == following) | (batch.target == -1)).all()
        scored = batch.target >= 0
        assert scored.any(1).all() and not scored[:, 0].any()  # every example has an answer, behind a question
        assert ((batch.x >= 0) | ~scored).all()  # nothing is asked of padding
        assert len(batch.row.unique()) == len(batch.row) and (batch.row % tasks[name].context == 0).all()


@pytest.mark.parametrize("name", ["modular", "copy", "instructions"])
def test_no_question_is_in_two_parts(tasks, name):
    task, asked = tasks[name], []
    for split in SPLITS:
        batch = whole(task, split)
        question = [
            x[: int((target >= 0).float().argmax()) + 1] for x, target in zip(batch.x, batch.target, strict=True)
        ]
        asked.append({tuple(ids.tolist()) for ids in question})
        assert len(asked[-1]) == task.sizes[split] > 0
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]


@pytest.mark.parametrize("name", ["modular", "copy", "instructions"])
def test_chance_is_the_unigram_of_the_answers(tasks, name):
    task = tasks[name]
    count = task.scored("train").bincount(minlength=task.out).double() + 1
    target = task.scored("test")
    assert task.chance("test")["nll"] == pytest.approx(-(count / count.sum()).log()[target].mean().item())
    assert {fact.name for fact in task.facts()} >= {"answers", "chance on test"}


def test_the_seed_of_the_split_is_all_that_is_drawn():
    for make in (Modular, Copy, lambda split_seed: Instructions(examples=60, split_seed=split_seed)):
        one, again, other = (make(split_seed=seed) for seed in (0, 0, 1))
        assert one.fingerprint == again.fingerprint != other.fingerprint
        assert torch.equal(one.train_batch(3, 8, 5).x, again.train_batch(3, 8, 5).x)


# Arithmetic


def test_every_equation_holds_and_comes_once(tasks):
    task, seen = tasks["modular"], set()
    signs = {sign: name for name, (sign, _) in OPERATIONS.items()}
    for split in SPLITS:
        batch = whole(task, split)
        for x, target, operation in zip(batch.x, batch.target, batch.labels["operation"], strict=True):
            a, sign, b, equals = symbols(task, x)
            assert task.label_names["operation"][operation] == signs[sign] and equals == "="
            value = {"subtract": int(a) - int(b), "multiply": int(a) * int(b)}[signs[sign]] % 7
            assert target.tolist() == [-1, -1, -1, value]
            seen.add((a, sign, b))
    assert len(seen) == sum(task.sizes.values()) == 2 * 49
    assert task.sizes["train"] == round(0.7 * 98)


def test_an_operation_alone_is_addition():
    batch = whole(Modular(modulus=5), "train")
    assert torch.equal(batch.target[:, -1], (batch.x[:, 0] + batch.x[:, 2]) % 5)


# Strings


def test_strings_are_copied_or_reversed(tasks):
    task, ways = tasks["copy"], set()
    for split in SPLITS:
        batch = whole(task, split)
        for x, target, way in zip(batch.x, batch.target, batch.labels["sub-task"], strict=True):
            name = task.label_names["sub-task"][way]
            given, separator, said = symbols(task, x[:4]), symbols(task, x[4:5]), symbols(task, target)
            assert said == (given if name == "copy" else given[::-1])
            assert separator == (["="] if name == "copy" else ["<"])
            ways.add(name)
    assert ways == {"copy", "reverse"}
    assert Copy(ways=["reverse"], sequences=20).kind.symbols[-1] == "<"


# Instructions


def test_every_response_is_the_right_one(instructions):
    seen = set()
    for split in SPLITS:
        batch = whole(instructions, split)
        for x, target, label in zip(batch.x, batch.target, batch.labels["sub-task"], strict=True):
            text, response = (instructions.encoding.decode(ids.tolist()) for ids in (x, target))
            name = instructions.label_names["sub-task"][label]
            asked, given, said = text.split("\n")[:3]
            assert asked.removeprefix("Instruction: ") in SUB_TASKS[name].instructions
            assert response == SUB_TASKS[name].answer(given.removeprefix("Input: ")) + "\n"
            assert said == f"Response: {response}".rstrip("\n")
            seen.add(name)
    assert seen == set(SUB_TASKS) and len(SUB_TASKS) >= 12


@pytest.mark.parametrize(
    ("name", "given", "response"),
    [
        ("reverse", "cat", "tac"),
        ("upper case", "cat", "CAT"),
        ("count a", "abcabca", "3"),
        ("length", "candle", "6"),
        ("first letter", "dog", "d"),
        ("last letter", "dog", "g"),
        ("add", "17 + 5", "22"),
        ("subtract", "17 - 5", "12"),
        ("sort letters", "d a c", "a c d"),
        ("sort numbers", "30 4 11", "4 11 30"),
        ("largest", "9 30 11", "30"),
        ("plural", "candy", "candies"),
        ("plural", "toy", "toys"),
        ("plural", "fox", "foxes"),
        ("opposite", "cold", "hot"),
    ],
)
def test_answers_by_hand(name, given, response):
    assert SUB_TASKS[name].answer(given) == response


def test_inputs_differ_and_opposites_go_both_ways():
    for name in SUB_TASKS:
        inputs = [text for _, text, _ in drawn(name, 50, 0)]
        assert len(set(inputs)) == len(inputs) >= 40, name
        assert all(SUB_TASKS[name].draw(random.Random(n)) for n in range(50))
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)


def test_what_is_held_out_is_the_test():
    task = Instructions(examples=200, hold_out=["add", "plural"])
    names = task.label_names["sub-task"]
    held = {split: {names[i] for i in whole(task, split).labels["sub-task"]} for split in SPLITS}
    assert held["test"] == {"add", "plural"} and not held["test"] & (held["train"] | held["valid"])
    assert held["train"] | held["test"] == set(SUB_TASKS)


ROWS = [
    {"instruction": f"Say {n}.", "input": "" if n % 2 else "twice", "response": f"{n} é", "kind": "ab"[n % 2]}
    for n in range(40)
]


def written(tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(file)


def test_a_users_file(tmp_path):
    task = Instructions(path=written(tmp_path, ROWS), context=70, label_column="kind")
    found = {}
    for split in SPLITS:
        batch = whole(task, split)
        for x, target, label in zip(batch.x, batch.target, batch.labels["sub-task"], strict=True):
            found[task.encoding.decode(x.tolist())] = (task.encoding.decode(target.tolist()), int(label))
    assert found["Instruction: Say 3.\nResponse: 3 é\n"] == ("3 é\n", 1)
    assert found["Instruction: Say 4.\nInput: twice\nResponse: 4 é\n"] == ("4 é\n", 0)
    assert len(found) == 40 and task.vocab_size == 256
    renamed = [{"prompt": row["instruction"], "output": row["response"]} for row in ROWS]
    other = Instructions(
        path=written(tmp_path, renamed), context=70, instruction_column="prompt", response_column="output"
    )
    assert sum(other.sizes.values()) == 40 and other.label_names["sub-task"] == ["all"]


def test_examples_that_are_too_long_are_left_out_and_counted(tmp_path):
    rows = [*ROWS, {"instruction": "x" * 99, "response": "y"}]
    task = Instructions(path=written(tmp_path, rows), context=70)
    assert sum(task.sizes.values()) == 40
    assert {fact.name: fact.value for fact in task.facts()}["left out"] == "1 examples of more than 70 bytes"


# Faults


@pytest.mark.parametrize(
    ("build", "error", "needles"),
    [
        (lambda file: Modular(modulus=1), UsageError, ["task.modulus=1"]),
        (lambda file: Copy(symbols=2, length=3, sequences=10), UsageError, ["task.sequences=10", "make 8 strings"]),
        (lambda file: Instructions(hold_out=["walk"]), UsageError, ["'walk'", "reverse"]),
        (lambda file: Instructions(hold_out=list(SUB_TASKS)), UsageError, ["no sub-task is left"]),
        (lambda file: Instructions(examples=20, context=5), DataError, ["fits into 5", "bytes", "task.context"]),
        (lambda file: Instructions(path=file(ROWS[:3])), DataError, ["it has 3", "takes 10"]),
        (lambda file: Instructions(path=file([{"prompt": "a"}])), DataError, ["'instruction'", "'prompt'", "line 1"]),
        (lambda file: Instructions(path=file(ROWS), response_column="out"), DataError, ["'out'", "'response'"]),
        (lambda file: Instructions(path=file(ROWS), input_column="about"), DataError, ["'about'", "'input'"]),
        (lambda file: Instructions(path=file(ROWS), label_column="task"), DataError, ["'task'", "'kind'"]),
        (lambda file: Instructions(path=file([*ROWS, {**ROWS[0], "response": 7}])), DataError, ["line 41", "'7'"]),
        (lambda file: Instructions(path="none.jsonl"), DataError, ["none.jsonl", "no such file"]),
        (lambda file: Instructions(tokens="none.json"), DataError, ["no such tokenizer"]),
    ],
)
def test_faults(tmp_path, build, error, needles):
    with pytest.raises(MoeError) as caught:
        build(lambda rows: written(tmp_path, rows))
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and ". " in message, message
    assert all(needle in message for needle in needles), message
