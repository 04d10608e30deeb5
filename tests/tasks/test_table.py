"""A user's table: every column's treatment, no leakage from held-out rows, and each fault as one line."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecli.errors import DataError, EnvironmentFailure, MoeError, UsageError
from moecli.tasks.frames import read_table
from moecli.tasks.table import Table

ROWS = 60
COLORS = ["blue", "green", "red"]


def example(rows=ROWS, seed=0):
    draw = np.random.default_rng(seed)
    size, age = draw.normal(5, 3, rows).round(3), draw.integers(1, 90, rows)
    color = [COLORS[i % 3] for i in range(rows)]
    frame = pd.DataFrame(
        {"size": size, "age": age, "color": color, "same": 7, "owner": [f"o{i % 12}" for i in range(rows)]}
    )
    return frame.assign(price=(3 * size + age).round(3), kind=np.where(size > 5, "big", "null"))


def saved(path, frame):
    writers = {".csv": frame.to_csv, ".parquet": frame.to_parquet}
    if path.suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    else:
        writers[path.suffix](path, index=False)
    return str(path)


def written(tmp_path, text, name="data.csv"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def refused(build, *needles, error=DataError):
    with pytest.raises(error) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message and ". " in message, message
    for needle in needles:
        assert needle in message, message


def lines(*rows, header="a,y"):
    return "\n".join([header, *rows]) + "\n"


def plain(rows=20):
    return [f"{i},{i * 1.5}" for i in range(rows)]


@pytest.fixture
def csv(tmp_path):
    return saved(tmp_path / "data.csv", example())


# What a good file becomes


def test_regression_columns(csv):
    task = Table(csv, "price", drop=["kind"], group="owner")
    assert task.feature_names == ["size", "age", "color = blue", "color = green", "color = red", "same"]
    assert task.dim == 6 and task.out == 1 and task.family == "gaussian" and task.gives == {"items", "vectors", "real"}
    train = task.splits["train"]
    torch.testing.assert_close(train.x[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.x[:, :2].std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(train.x[:, 2:5].sum(1), torch.ones(len(train.x)))
    assert (train.x[:, 5] == 0).all()  # constant
    assert sum(task.sizes.values()) == ROWS


def test_targets_return_to_their_units(csv):
    task = Table(csv, "price")
    (scale,), (center,) = task.kind.scale, task.kind.center
    prices = torch.cat([s.target[:, 0] for s in task.splits.values()]).double() * scale + center
    np.testing.assert_allclose(sorted(prices.tolist()), sorted(example()["price"]), atol=1e-4)
    assert 5 < task.chance("test")["rmse"] < 60  # in price, not in deviations


def test_no_standardize_keeps_values(csv):
    task = Table(csv, "price", features=["size", "same"], standardize=False)
    assert task.kind.scale == (1.0,) and (task.splits["train"].x[:, 1] == 7).all()


def test_classification_keeps_the_text_null(csv):
    task = Table(csv, "kind", drop=["owner"])
    assert task.kind.classes == ("big", "null") and task.label_names["class"] == ["big", "null"]
    assert task.label_names["color"] == COLORS
    part = task.splits["test"]
    one_hot = part.x[:, [task.feature_names.index(f"color = {c}") for c in COLORS]]
    assert torch.equal(one_hot.argmax(1), part.labels["color"])


@pytest.mark.parametrize(
    ("values", "kind", "family"),
    [
        (lambda i: i % 20, "auto", "categorical"),
        (lambda i: i % 21, "auto", "gaussian"),
        (lambda i: i % 2 + 0.5, "auto", "gaussian"),
        (lambda i: i % 20, "regression", "gaussian"),
        (lambda i: i % 2 == 0, "auto", "categorical"),
        (lambda i: i % 2 + 0.5, "classification", "categorical"),
    ],
)
def test_kind_of_target(tmp_path, values, kind, family):
    path = written(tmp_path, lines(*(f"{i},{values(i)}" for i in range(210))))
    assert Table(path, "y", kind=kind).family == family


def test_integer_classes_in_numeric_order(tmp_path):
    path = written(tmp_path, lines(*(f"{i},{i % 12}.0" for i in range(120))))
    assert Table(path, "y").kind.classes == tuple(str(i) for i in range(12))


def test_several_targets(csv):
    task = Table(csv, ["price", "size"], drop=["owner"])
    assert task.out == 2 and task.splits["train"].target.shape[1] == 2
    assert {"price quartile", "size quartile"} <= set(task.label_names)
    refused(lambda: Table(csv, ["price", "size"], kind="classification"), "task.target", error=UsageError)


def test_target_quartiles_hold_a_quarter_each(csv):
    train = Table(csv, "price").splits["train"]
    label = train.labels["target quartile"]
    assert (label.bincount() - len(label) / 4).abs().max() <= 1
    assert train.target[label == 0].max() < train.target[label == 3].min()


def test_label_names_do_not_clash(tmp_path):
    frame = example().assign(**{"class": example()["color"]})
    task = Table(saved(tmp_path / "d.csv", frame), "kind", features=["size", "class"])
    assert task.label_names["class"] == ["big", "null"] and task.label_names["column class"] == COLORS


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_formats_agree(tmp_path, csv, suffix):
    other = saved(tmp_path / f"data{suffix}", example())
    assert Table(csv, "price").fingerprint == Table(other, "price").fingerprint
    assert Table(csv, "price").fingerprint != Table(other, "price", split_seed=1).fingerprint


def test_byte_order_mark_and_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, b"\xef\xbb\xbf" + lines(*plain()).encode())
    assert Table("~/data.csv", "y").feature_names == ["a"]


def test_facts_name_every_column(csv):
    said = {fact.name: fact.value for fact in Table(csv, "price", drop=["kind"], group="owner").facts()}
    assert said["columns one-hot"] == "color (one-hot of 3)"
    assert said["columns standardised by training rows"] == "size, age"
    assert said["columns constant in training, set to 0"] == "same"
    assert said["columns left out"] == "kind" and said["columns that are the group"] == "owner"
    assert "rmse" in said["chance on test"] and said["rows left out for missing values"] == "0"


# Splits


def test_split_is_fixed_by_its_seed(csv):
    first, again, other = Table(csv, "price"), Table(csv, "price"), Table(csv, "price", split_seed=1)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.splits["test"].x, again.splits["test"].x)
    assert not torch.equal(first.splits["test"].x, other.splits["test"].x)  # the comparison can fail


def test_held_out_rows_do_not_leak(tmp_path):
    frame = example()
    before = Table(saved(tmp_path / "a.csv", frame), "price")
    held = torch.cat([before.splits[name].document for name in ("valid", "test")]).numpy()
    changed = frame.copy()
    changed.loc[held, ["size", "age", "price"]] *= -100
    after = Table(saved(tmp_path / "b.csv", changed), "price")
    assert torch.equal(before.splits["train"].x, after.splits["train"].x)
    assert torch.equal(before.splits["train"].target, after.splits["train"].target)
    assert before.columns == after.columns and before.kind == after.kind
    changed.loc[before.splits["train"].document[0].item(), "size"] += 1  # one training row is noticed
    assert Table(saved(tmp_path / "c.csv", changed), "price").columns != before.columns


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_straddle(csv, seed):
    task = Table(csv, "price", group="owner", split_seed=seed)
    owners = [set(part.document.tolist()) for part in task.splits.values()]
    assert all(owners) and len(set.union(*owners)) == sum(map(len, owners)) == 12
    assert not any(name.startswith("owner") for name in task.feature_names)


def test_rows_straddle_without_group(csv):
    ungrouped = Table(csv, "price", features=["owner"])
    owners = [set(part.labels["owner"].tolist()) for part in ungrouped.splits.values()]
    assert owners[0] & owners[2]  # else the test above shows nothing


def test_few_groups(tmp_path):
    path = saved(tmp_path / "d.csv", example())
    refused(lambda: Table(path, "price", group="color"), "color", "task.group")


def test_separate_test_file(tmp_path, csv):
    test = saved(tmp_path / "test.jsonl", example(25, seed=1))
    task = Table(csv, "price", test_path=test, drop=["owner"])
    assert task.sizes == {"train": 51, "valid": 9, "test": 25}
    assert torch.equal(task.encode(read_table(test)), task.splits["test"].x)


def test_test_file_is_another_file(csv):
    refused(lambda: Table(csv, "price", test_path=csv), "task.test_path", error=UsageError)


def test_separate_test_file_shares_no_group(tmp_path, csv):
    test = saved(tmp_path / "test.csv", example(25, seed=1))
    refused(lambda: Table(csv, "price", test_path=test, group="owner"), "test.csv", "owner", "'o0'")


@pytest.mark.parametrize(("column", "target"), [("color", "price"), ("color", "color"), ("kind", "kind")])
def test_unseen_in_test_file(tmp_path, csv, column, target):
    frame = example(25, seed=1)
    frame.loc[3, column] = "mauve"
    test = saved(tmp_path / "test.csv", frame)
    refused(lambda: Table(csv, target, test_path=test), "test.csv", column, "row 4", "'mauve'")


def test_rare_category_outside_training_is_a_label_of_its_own(tmp_path):
    before = Table(saved(tmp_path / "a.csv", example()), "price", features=["color"])
    frame = example()
    frame.loc[before.splits["test"].document[0].item(), "color"] = "mauve"
    part = Table(saved(tmp_path / "b.csv", frame), "price", features=["color"])
    assert part.splits["test"].x[0].tolist() == [0, 0, 0]
    assert part.label_names["color"] == [*COLORS, "(not in training)"] and part.splits["test"].labels["color"][0] == 3


# New rows


def test_encode_repeats_the_splits(csv):
    task = Table(csv, "price")
    x = task.encode(read_table(csv))
    for part in task.splits.values():
        assert torch.equal(x[part.document], part.x)


@pytest.mark.parametrize(
    ("change", "needles"),
    [
        ({"size": None}, ["missing", "size", "row 1"]),
        ({"size": "wide"}, ["size", "row 1", "'wide'"]),
        ({"color": "mauve"}, ["color", "'mauve'", "'blue'"]),
        ({"size": float("inf")}, ["infinite", "size"]),
        ({"size": 1e300}, ["too large", "size"]),
    ],
)
def test_encode_refuses(csv, change, needles):
    task = Table(csv, "price")
    rows = example(5).astype(object).assign(**{name: [value] * 5 for name, value in change.items()})
    refused(lambda: task.encode(rows), *needles)


def test_encode_wants_every_column(csv):
    task = Table(csv, "price")
    refused(lambda: task.encode(example().rename(columns={"size": "sise"})), "'size'", "did you mean 'sise'?")


# Faults, each one line


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        (b"", ["empty"]),
        (b"\n\n", ["empty"]),
        (b"a,y\n", ["no rows", "header"]),
        (b"a,y\n\xe9,1\n", ["not UTF-8", "byte 4, line 2", "0xe9"]),
        (b"\xef\xbb\xbfa,y\n\xe9,1\n", ["not UTF-8", "byte 7, line 2"]),
        ("a,y\n1,2\n".encode("utf-16"), ["UTF-16"]),
        (b"a,y\n1,\x002\n", ["NUL", "line 2"]),
        (b"\x1f\x8b\x08\x08abc", ["not UTF-8", "byte 1"]),
        (lines(*plain(), "1,2,3"), ["ragged", "line 22", "3 fields", "has 2"]),
        (lines("1", *plain()), ["ragged", "line 2", "1 fields"]),
        (lines(*plain(), header="a;y"), ["one column", "';'"]),
        (lines(*(f"{i};{i}" for i in range(20)), header="a;y"), ["one column", "';'"]),
        (lines(*(f"{i},5;{i}" for i in range(20)), header="a;y"), ["one column", "';'"]),
        (lines(*(f"{i}\t{i}" for i in range(20)), header="a\ty"), [".tsv"]),
        (lines(*(f'"{i},5",{i}' for i in range(30))), ["comma", "'a'", "'0,5'", "1.5"]),
        (lines(*(f'"1,234",{i}' for i in range(30))), ["comma", "'a'"]),
        (lines(*(f'{i},"{i % 3},5"' for i in range(30))), ["comma", "'y'"]),
        (lines(*plain(), header="y,y"), ["duplicate", "'y'", "column 2"]),
        (lines(*plain(), header=",y"), ["without a name", "column 1"]),
        (lines('"1,2', *plain()), ["line", "quotes"]),
        (lines(*plain(), header="a,z"), ["'y'", "use one of a, z"]),
        (lines(*plain(), header="a,yy"), ["'y'", "did you mean 'yy'?"]),
        (lines(*plain(), "1e400,2"), ["infinite", "'a'", "row 21", "task.drop=[a]"]),
        (lines(*plain(), "inf,2", "-inf,3"), ["infinite", "2 such", "row 21"]),
        (lines(*plain(), "3,inf"), ["infinite", "'y'"]),
        (lines(*plain(), ",2", "NA,3"), ["missing", "2 in 'a'", "row 21", "task.missing=drop"]),
        (lines(*plain(), "2,"), ["missing", "1 in 'y'"]),
        (lines(*(f",{i}" for i in range(20))), ["every value is missing", "'a'", "task.drop"]),
        (lines(*(f"{i},yes" for i in range(20))), ["one class", "'y'", "'yes'"]),
        (lines(*(f"{i},1.5" for i in range(20))), ["constant target", "'y'", "1.5"]),
        (lines(*plain(9)), ["too few rows", "9", "10"]),
        (lines(*plain(), "oops,3"), ["'a'", "row 21", "'oops'", "95%"]),
        (lines(*plain(25), "3,oops"), ["'y'", "row 26", "'oops'"]),
        (lines(*(f"t{i},{i}" for i in range(99))), ["too many categories", "'a'", "task.drop=[a]"]),
    ],
)
def test_bad_csv(tmp_path, content, needles):
    refused(lambda: Table(written(tmp_path, content), "y"), "data.csv", *needles)


def test_a_class_wants_a_training_row(tmp_path):
    rows = [f"{i},{'x' if i % 2 else 'y'}" for i in range(40)]
    held = int(Table(written(tmp_path, lines(*rows)), "y").splits["test"].document[0])
    rows[held] = "1,rare"
    path = written(tmp_path, lines(*rows))
    refused(lambda: Table(path, "y"), "data.csv", "'rare'", f"row {held + 1}", "no training row", "task.split_seed")


@pytest.mark.parametrize(
    ("name", "needles"),
    [("missing.csv", ["no such file"]), ("folder.csv", ["folder"]), ("data.xlsx", [".parquet"]), ("data", [".csv"])],
)
def test_bad_path(tmp_path, name, needles):
    (tmp_path / "folder.csv").mkdir()
    refused(lambda: Table(str(tmp_path / name), "y"), name, *needles)


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        ('{"a": 1}\n[1]\n', ["line 2", "list"]),
        ('{"a": 1}\n{"a": \n', ["line 2"]),
        ('{"a": 1, "a": 2}\n', ["line 1", "twice"]),
        ("", ["empty"]),
        ("{}\n", ["empty"]),
        ("[" * 100_000, ["line 1"]),
        ("1" * 5000, ["line 1"]),
    ],
)
def test_bad_jsonl(tmp_path, content, needles):
    refused(lambda: read_table(written(tmp_path, content, "d.jsonl")), "d.jsonl", *needles)


def test_bad_parquet(tmp_path, monkeypatch):
    path = written(tmp_path, b"no parquet", "d.parquet")
    refused(lambda: read_table(path), "d.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(lambda: read_table(path), "pip install 'moecli[parquet]'", error=EnvironmentFailure)


def test_nulls_of_jsonl_and_parquet_are_missing(tmp_path):
    records = [{"a": i, "y": i * 1.5} for i in range(20)] + [{"a": None, "y": 1.0}, {"y": 2.0}]
    path = written(tmp_path, "\n".join(map(json.dumps, records)), "d.jsonl")
    refused(lambda: Table(path, "y"), "2 in 'a'", "row 21")
    frame = pd.DataFrame({"a": [*range(20), None], "y": [*np.arange(20) * 1.5, 3.0]})
    refused(lambda: Table(saved(tmp_path / "d.parquet", frame), "y"), "1 in 'a'", "row 21")


def test_missing_rows_dropped_and_counted(tmp_path):
    path = written(tmp_path, lines(*plain(), ",2", "NA,3", "4,nan"))
    task = Table(path, "y", missing="drop")
    assert sum(task.sizes.values()) == 20
    assert {f.name: f.value for f in task.facts()}["rows left out for missing values"] == "3"


def test_a_dropped_column_may_be_bad(tmp_path):
    path = written(tmp_path, lines(*(f"{i},{i * 1.5},t{i}," for i in range(99)), header="a,y,note,void"))
    assert Table(path, "y", drop=["note", "void"]).feature_names == ["a"]


@pytest.mark.parametrize(
    ("options", "needles", "error"),
    [
        ({"drop": ["sise"]}, ["'sise'", "did you mean 'size'?"], DataError),
        ({"features": ["price"]}, ["task.features", "task.target"], UsageError),
        ({"group": "price"}, ["task.group", "task.target"], UsageError),
        ({"features": ["size", "size"]}, ["'size'", "once"], UsageError),
        ({"drop": ["size", "age", "color", "same", "owner", "kind"]}, ["no features"], DataError),
    ],
)
def test_bad_roles(csv, options, needles, error):
    refused(lambda: Table(csv, "price", **options), *needles, error=error)


def test_text_target_of_a_regression(csv):
    refused(lambda: Table(csv, "color", kind="regression"), "'color'", "row 1", "'blue'")


def test_hostile_names_stay_on_one_line(tmp_path):
    name = "x\n<script>" + "y" * 5000
    frame = pd.DataFrame({name: [f"t{i}" for i in range(99)], "y": range(99)})
    refused(lambda: Table(saved(tmp_path / "d.csv", frame), "y"), "too many categories")


SAMPLE = example(12).to_csv(index=False).encode()
PIECES = st.sampled_from(
    [b"", b",", b"\n", b"\r", b'"', b";", b"\0", b"\xff", b"NA", b"1e999", b"x", b"\xc3\xa9", b'""', b"-"]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE)), st.integers(0, 3), PIECES), min_size=1, max_size=3))
def test_mutated_tables_are_whole_or_refused(tmp_path, edits):
    raw = SAMPLE
    for at, gone, piece in edits:
        raw = raw[:at] + piece + raw[at + gone :]
    path = written(tmp_path, raw, "m.csv")
    try:
        header = raw.decode("utf-8", "replace").lstrip("\r\n").splitlines()[0]
        frame = read_table(path)
        if '"' not in header:
            assert len(frame.columns) == header.count(",") + 1
        Table(path, "price", missing="drop")
    except MoeError as error:
        assert "\n" not in str(error)
