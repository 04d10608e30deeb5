"""Whatever is typed, or stands in a table: an error of ours in one line, or exactly what was given (D2, D4, D6, D8, G1-G5, G9)."""

import copy
import math
import random
import time
import typing
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli import config, types
from moecli.errors import ArtifactError, DataError, MoeError, UsageError
from moecli.tasks.table import MIN_ROWS, Table
from tests.test_config import NEEDED, PARTS, composed, plugin, word  # noqa: F401

QUICK = 1.0  # seconds of processor time that no single word may cost
HOSTILE = [
    "", " ", "'", '"', "[", "]", "{", "}", "(", ")", "$", "${", "${oc.env:HOME}", "\\", "\\'", ",", ":", "=", "@", "~",
    "+", "!", "&", "*", "#", "%", "|", ">", "-", "/", "..", "\t", "\n", "\r", "\0", "\x1b[31m", "\x7f", "\u202e", "é",
    "e\u0301", "日本", "🎲", "\ud800", "a", "null", "true", "NO", "nan", "-inf", "0", "-1", "2.7", "1e-3", "1e22", "1e400",
    "0x1F", "010", "1_000", "12:30:00", "9" * 30, "???", "_target_", "choice(1,2)", "range(1,3)", "glob(*)", "int(x)",
    "tag(a,b)", "shuffle(1,2)", "interval(0,1)", "extend_list(1)", "<<: *a", "!!python/name:os.system", "x" * 5000,
    "[" * 3000, "'" * 99, "{a: " * 50,
]  # fmt: skip


# -- words (D4) ---------------------------------------------------------------------------------------


def settable():
    """(words around it, key) of everything that may be set."""
    for group, option in PARTS:
        around = (word(group, option), *NEEDED.get(option, []))
        yield around, group
        key = f"{group}.{option}" if group == "auxiliary" else group
        for name in config.part_options(config.raw_node(group, option)):
            yield around, f"{key}.{name}"
    for name in config.signature("moecli.config.Settings"):
        yield (), name
    for name in ("", ".x", ".x.router", ".x.router.k", ".x.num_experts", ".x.gate.node"):
        yield (), f"model.layers{name}"
    yield ("gate=tree",), "gate.node"
    yield ("expert=several",), "expert.kinds.linear"


SETTABLE = list(settable())
TEXTS = [(around, key) for around, key in SETTABLE if key in ("init", "task.path", "task.target", "task.group")]


def fuzzed(draw):
    """A key that exists, sometimes damaged, with a hostile value, among the words that it belongs to."""
    around, key = draw.choice(TEXTS if draw.random() < 0.1 else SETTABLE)
    if draw.random() < 0.1:
        piece = draw.choice(HOSTILE)
        key = draw.choice((key + piece, piece + key, key.replace(".", piece, 1), f"{key}.x", f"{key}."))
    value = "".join(draw.choices(HOSTILE, k=draw.choice((1, 1, 1, 2, 3))))
    return [*around, draw.choice(("", "", "+", "++", "~")) + key + "=" * (draw.random() < 0.97) + value]


def outcome(words):
    """ "taken" or "refused"; anything but an error of ours fails the test, and so does a slow or wordy one."""
    started = time.process_time()
    try:
        config.compose(words)
        said = None
    except MoeError as error:
        said = str(error)
    assert time.process_time() - started < QUICK, words
    if said is None:
        return "taken"
    assert len(said) < 1000 and ". " in said, words
    assert not any(jargon in said for jargon in ("Exception", "override", "Hydra", "NoneType", "OmegaConf")), said
    return "refused"


def fuzz(count, seed):
    draw = random.Random(seed)
    found = [outcome(fuzzed(draw)) for _ in range(count)]
    assert found.count("taken") >= count * 0.02 and found.count("refused") >= count / 2  # the fuzz is neither all noise


def test_150_fuzzed_words_are_taken_or_refused():
    fuzz(150, 0)


@pytest.mark.slow
def test_2000_fuzzed_words_are_taken_or_refused():
    fuzz(2000, 1)


@given(st.sampled_from(SETTABLE), st.text(st.characters(), max_size=12))
@settings(max_examples=80, deadline=None)
def test_any_text_as_a_value_is_taken_or_refused(settable, value):
    around, key = settable
    outcome([*around, f"{key}={value}"])


def test_several_words_at_once_are_taken_or_refused():
    draw = random.Random(2)
    for _ in range(100):
        outcome([draw.choice(fuzzed(draw)) for _ in range(draw.randrange(2, 5))])


# -- types (D2) ---------------------------------------------------------------------------------------

BAD = {
    "eight": "eight", "-1": -1, "0": 0, "2.7": 2.7, "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "true": True,
    "null": None, "1e22": 1e22, "9" * 23: int("9" * 23), "''": "", "[]": [], "{}": {}, "3": 3, "1e-3": 1e-3, "0x10": "0x10",
}  # fmt: skip


def fits(kind, value):
    """Whether a value belongs to a declared type, worked out apart from the code under test."""
    if kind is typing.Any:
        return True
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return value in inner and not isinstance(value, bool)
    if typing.get_origin(kind) is typing.Annotated:
        return fits(inner[0], value) and within(inner[1], value)
    if inner and typing.get_origin(kind) not in (list, dict):
        return any(fits(one, value) for one in inner)
    if kind is float or kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind is float and isinstance(value, float))
    return isinstance(value, typing.get_origin(kind) or kind)


def within(field, value):
    bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    finite = all(getattr(m, "allow_inf_nan", True) for m in field.metadata)
    return (finite or math.isfinite(value)) and all(
        {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[name]
        for name, bound in bounds.items()
    )


@pytest.mark.slow
def test_every_option_takes_what_its_type_says_and_refuses_the_rest():
    cases = held_against_types(PARTS, every=1)
    assert cases["refused"] >= 800 and cases["taken"] >= 150, cases


def test_options_take_what_their_type_says_and_refuse_the_rest():
    cases = held_against_types(PARTS[::3], every=8)
    assert cases["refused"] >= 32 and cases["taken"] >= 6, cases


def held_against_types(parts, every):
    """Each ``every``-th pair of an option and a value that is wrong for most."""
    cases, number = {"taken": 0, "refused": 0}, 0
    for group, option in parts:
        words = (word(group, option), *NEEDED.get(option, []))
        key = f"{group}.{option}" if group == "auxiliary" else group
        for name, declared in config.part_options(config.raw_node(group, option)).items():
            if config._takes(declared.type, str) or isinstance(declared.default, dict) or declared.type is typing.Any:
                continue  # a text takes them all, as they are: test_config
            for typed, value in BAD.items():
                number += 1
                if number % every:
                    continue
                expected = "taken" if fits(declared.type, value) else "refused"
                try:
                    config.amend(composed(*words), [f"{key}.{name}={typed}"])
                    found = "taken"
                except UsageError as error:
                    found = "refused"
                    assert str(error).startswith(f"{key}.{name}="), error
                assert found == expected or lenient(declared.type, value), (key, name, typed, found)
                cases[found] += 1
    return cases


def lenient(kind, value):
    """What pydantic reads as a truth value although it is written as a number."""
    return kind is bool and value in (0, 1)


def test_the_oracle_of_types_tells_apart():
    assert fits(types.PositiveInt, 3) and not fits(types.PositiveInt, 0) and not fits(types.PositiveInt, 2.7)
    assert fits(types.PositiveInt | None, None) and not fits(types.PositiveInt, None)
    assert fits(types.Probability, 0) and not fits(types.Probability, 1.0) and not fits(types.FiniteFloat, math.inf)
    assert not fits(types.PositiveInt, True) and not fits(typing.Literal["a", "b"], "c")


# -- YAML (D6, D8) ------------------------------------------------------------------------------------

SURPRISES = ["NO", "off", "010", "0o17", "12:30:00", "1e-3", "0x10", "1_000", "2024-01-01", "~", "null", "", " a", "a: b",
             "- x", "#x", "*a", "&a", "!x", "%", "@", "`", "{", "[a", "'", '"', "a\nb", "\t", "é", "e\u0301", "🎲", "\u2028",
             "\u2029", "\ufeff", "\x85", "=", "<<", "? x", "|", ">", "...", "---"]  # fmt: skip


def test_text_is_the_same_after_it_was_stored(tmp_path):
    stored, draw = copy.deepcopy(composed("task=table", *NEEDED["table"])), random.Random(5)
    for number in range(2000):
        value = (
            "".join(draw.choices(SURPRISES, k=draw.choice((1, 1, 2, 3))))
            if number >= len(SURPRISES)
            else SURPRISES[number]
        )
        small = {"path": value, "target": [value, "y"], "seed": number}
        assert config.load_yaml(config.to_yaml(small)) == small
        if number < 2 * len(SURPRISES):
            stored["task"] |= {"path": value, "target": [value, "y"]}
            (tmp_path / "config.yaml").write_text(config.to_yaml(stored), encoding="utf-8")
            assert config.read(tmp_path / "config.yaml") == stored, value


@pytest.mark.parametrize(("typed", "value"), [("1e-3", 0.001), ("1E-3", 0.001), (".001", 0.001), ("1", 1.0)])
def test_a_number_is_the_same_number_on_the_command_line_and_in_a_file(typed, value, tmp_path):
    taken = config.compose([f"optimizer.lr={typed}"]).config
    assert taken["optimizer"]["lr"] == value and isinstance(taken["optimizer"]["lr"], float)
    written = config.to_yaml(composed()).replace(f"lr: {composed()['optimizer']['lr']}\n", f"lr: {typed}\n")
    (tmp_path / "config.yaml").write_text(written)
    assert config.read(tmp_path / "config.yaml") == taken


PART = (config.conf_root() / "router" / "top_k.yaml").read_text().replace("defaults:\n  - _filters\n  - _self_\n", "")
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))])
BROKEN = {
    "tab": f"{PART}\tx: 1\n", "a key twice": f"{PART}k: 3\n", "a tag": f"{PART}x: !!python/object/apply:os.system [ls]\n",
    "a tag that lies": f"{PART}x: !!timestamp x\n",
    "an alias bomb": f"{PART}{BOMB}\n", "a merge": f"b: &b {{k: 3}}\n<<: *b\n{PART}", "a list": "- x\n", "nothing": "",
    "a text": "hello", "a null byte": f"{PART}\0", "latin-1": f"{PART}x: é".encode("latin-1"), "depth": f"{PART}x: {'[' * 5000}",
    "a key that is no text": f"{PART}1: 2\n", "a target that is none": PART.replace("moecli.routers.top_k.TopK", "[a]"),
    "defaults that are none": f"{PART}defaults: 3\n", "advice that is none": f"{PART}recommends: 3\n",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_a_plugin_is_one_line(text, plugin):  # noqa: F811
    file = plugin("router/broken.yaml", "# A router\n")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        config.compose(["router=broken"])
    assert time.process_time() - started < QUICK
    assert "\n" not in str(caught.value) and ("broken.yaml" in str(caught.value) or "_target_" in str(caught.value))
    config.describe("router", "broken")  # moe ls goes on
    assert config.compose(["router=top_k"]).config["router"]["k"]


def test_the_file_that_was_broken_is_whole_otherwise(plugin):  # noqa: F811
    plugin("router/whole.yaml", PART)
    assert config.compose(["router=whole"]).config["router"]["_target_"].endswith("TopK")


# -- tables (G1-G5, G9) -------------------------------------------------------------------------------

NAMES = ["size", "age", "color", "price", "kind"]
HEADERS = ["<script>", "=cmd|' /C calc'!A0", "__class__", '"a,b"', '"two\nlines"', "x" * 10_000, "日本", "$\\frac{1$", "[/oops]",
           "\x1b[31m", " price", "price", "", "NA", "1", "{x}", "class", "index", "__proto__", "\u202ex"]  # fmt: skip
CELLS = ["nan", "inf", "-inf", "1e400", "1e-400", "", "NA", "null", "None", "-", "1,5", '"1,5"', '"1,234"', "1_000", "0x10",
         "１２", "1e5", "9" * 400, "true", " 1 ", '"', '""', '"a""b"', "x\xff", "\0", "+1", "1.", ".5", "\xa01", "12:30", "1+2j",
         "\r", "nan ", "infinity", "1e308", "-1e308", "3", "-0.5", "blue", "red"]  # fmt: skip


def sample(draw):
    """A whole table of two numeric columns, a category, a target and a class."""
    rows = [
        [
            f"{draw.gauss(0, 1):.3f}",
            str(draw.randrange(90)),
            ("blue", "red")[i % 2],
            f"{draw.gauss(0, 9):.2f}",
            "ab"[i % 2],
        ]
        for i in range(40)
    ]
    return [list(NAMES), *rows]


def change(rows, draw):
    """One fault somewhere in the table."""
    row, column = draw.choice(rows), draw.randrange(5)
    kind = draw.randrange(14)
    if kind <= 4:
        rows[draw.randrange(len(rows))][column : column + 1] = [draw.choice(CELLS)]
    elif kind <= 6:
        rows[0][column : column + 1] = [draw.choice(HEADERS)]
    elif kind == 7:
        row[column : column + 1] = []
    elif kind == 8:
        row.insert(column, draw.choice(CELLS))
    elif kind == 9:
        del rows[draw.choice((1, 2, 11)) :]
    elif kind == 10:
        cell = draw.choice(CELLS)
        for one in rows[1 :: draw.choice((1, 2))]:
            one[column : column + 1] = [cell]
    elif kind == 11:
        rows.insert(draw.randrange(len(rows) + 1), [""] * draw.randrange(7))
    elif kind == 12:
        for one in rows[draw.randrange(2) :]:
            one.append("")
    else:
        for one in rows[1:]:
            one[column : column + 1] = [cell.replace(".", ",") for cell in one[column : column + 1]]


def encoded(text, draw):
    """Bytes, now and then in another encoding, cut or empty."""
    raw = text.encode()
    kinds = [b"\xef\xbb\xbf" + raw, text.encode("utf-16"), text.encode("utf-16-le"), text.encode("latin-1", "replace"),
             raw[: draw.randrange(len(raw) + 1)], b"", raw.replace(b"e", b"\0", 1), b"\n\n" + raw]  # fmt: skip
    return draw.choice(kinds) if draw.random() < 0.25 else raw


def mutated(draw):
    rows = sample(draw)
    for _ in range(draw.choice((0, 1, 1, 2))):
        change(rows, draw)
    comma, end = draw.choice([",", *",,,,,", ";", "\t", "|"]), draw.choice(["\n", "\n", "\r\n", "\r"])
    return encoded(end.join(comma.join(row) for row in rows) + draw.choice((end, "")), draw)


def naive(raw):
    """The cells of a file without quotes, read apart from the code under test."""
    text = raw.decode("utf-8").removeprefix("\ufeff")
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    header, *rows = [line.split(",") for line in lines]
    assert {len(row) for row in rows} == {len(header)}
    return header, rows


def assert_agrees(task, raw, target):
    """Each number of each row of each split stands in the file in its own row and column: nothing was shifted."""
    header, rows = naive(raw)
    missing = {"", "NA", "NaN", "nan"}
    kept = [row for row in rows if not any(cell.strip() in missing for cell in row)]
    assert sum(task.sizes.values()) == len(kept) >= MIN_ROWS
    wanted = [name for name in header if name != target]
    numeric = [c.name for c in task.columns if c.described() == c.name]
    texts = {c.name: c for c in task.columns if c.name not in numeric}
    assert [c.name for c in task.columns] == wanted
    assert task.dim == len(numeric) + sum(len(c.categories) for c in texts.values()) == len(task.feature_names)
    for part in task.splits.values():
        assert part.x.shape == (len(part.document), task.dim)
        for x, number in zip(part.x.tolist(), part.document.tolist(), strict=True):
            cells = dict(zip(header, kept[number], strict=True))
            values = dict(zip(task.feature_names, x, strict=True))
            assert all(values[name] == np.float32(float(cells[name])) for name in numeric)
            assert all(
                values[f"{name} = {cells[name]}"] == 1 for name in texts if cells[name] in texts[name].categories
            )


def fuzz_tables(file, count, seed):
    found = {"taken": 0, "refused": 0}
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        raw, target = mutated(draw), draw.choice(["price", "price", "kind", "age"])
        file.write_bytes(raw)
        try:
            task = Table(str(file), target, missing=draw.choice(["refuse", "drop"]), standardize=False)
            facts = task.facts()
        except (DataError, UsageError) as error:
            assert "\n" not in str(error) and ". " in str(error) and len(str(error)) < 3000, number
            found["refused"] += 1
            continue
        found["taken"] += 1
        assert len(facts) >= 4
        if b'"' not in raw:
            assert_agrees(task, raw, target)
    assert min(found.values()) >= count / 8, found


def test_200_fuzzed_tables_are_whole_or_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuzz_tables(tmp_path / "fuzzed.csv", 200, 0)


@pytest.mark.slow
def test_3000_fuzzed_tables_are_whole_or_refused(tmp_path):
    fuzz_tables(tmp_path / "fuzzed.csv", 3000, 1)


def test_a_shifted_table_would_be_noticed(tmp_path):
    raw = "\n".join(",".join(row) for row in sample(random.Random(0))).encode()
    (tmp_path / "a.csv").write_bytes(raw)
    task = Table(str(tmp_path / "a.csv"), "price", standardize=False)
    assert_agrees(task, raw, "price")
    task.splits["test"].x[:, :2] = task.splits["test"].x[:, [1, 0]]
    with pytest.raises(AssertionError):
        assert_agrees(task, raw, "price")
