"""Whatever form a text comes in, it is the same documents; whatever is wrong with it is one line."""

import gzip
import json
import random
import sys

import numpy as np
import pytest
import torch

from moecli.errors import DataError, EnvironmentFailure, MoeError, UsageError
from moecli.tasks import records
from moecli.tasks.task import SPLITS
from moecli.tasks.text import Text
from moecli.tasks.tokens import encoding

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "42", "dogs", "ran", "é", "far"]


def row(number):
    draw = random.Random(number)
    return " ".join(draw.choices(WORDS, k=40))


ROWS = [{"text": row(n), "lang": "en" if n % 2 else "de", "number": n} for n in range(60)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def forms(tmp_path):
    """The same rows, as a file of each kind that holds rows."""
    import pyarrow as arrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS)))
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    return tmp_path


def ids(task):
    return {split: task.streams[split].ids[:].tolist() for split in SPLITS}


def texts(task):
    return {split: [document.text for document in task.parts[split]] for split in SPLITS}


# Forms


def test_rows_of_every_form_are_the_same_documents(forms):
    tasks = [Text(str(forms / name), context=16) for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")]
    assert sorted(text for part in texts(tasks[0]).values() for text in part) == sorted(r["text"] + "\n" for r in ROWS)
    assert ids(tasks[0]) == ids(tasks[1]) == ids(tasks[2])
    assert [task.label_names["domain"] for task in tasks] == [["jsonl"], ["jsonl"], ["parquet"]]


def test_a_column_names_the_domains(forms):
    task = Text(str(forms / "c.parquet"), context=16, domain_column="lang")
    assert task.label_names["domain"] == ["de", "en"]
    spoken = {row["text"] + "\n": row["lang"] for row in ROWS}
    assert all(spoken[document.text] == document.domain for split in SPLITS for document in task.parts[split])


def test_another_column_is_the_text(forms):
    (forms / "a.jsonl").write_bytes(jsonl({"body": r["text"], "text": 7} for r in ROWS))
    assert texts(Text(str(forms / "a.jsonl"), context=16, column="body")) == texts(Text(str(forms / "c.parquet"), 16))


def test_a_folder_of_shards_is_read_by_rows(forms):
    (forms / "c.parquet").unlink()
    (forms / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[30:])))
    (forms / "a.jsonl").write_bytes(jsonl(ROWS[:30]))
    (forms / "d.txt.gz").write_bytes(gzip.compress("\n".join(row(n) for n in range(60, 90)).encode()))
    task = Text(str(forms), context=16)
    assert task.label_names["domain"] == ["jsonl", "txt"]
    assert sum(len(task.parts[split]) for split in SPLITS) == 60 + 20  # the one text is cut


def test_rows_without_text_are_counted(tmp_path):
    empty = [{"text": None}, {"text": " \n"}, {"text": ""}]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(empty + ROWS) + b"\n\n")
    task = Text(str(tmp_path / "a.jsonl"), context=16)
    assert {fact.name: fact.value for fact in task.facts()}["skipped files"] == "3 rows without text"
    assert sum(len(task.parts[split]) for split in SPLITS) == len(ROWS)


def test_gzip_is_unpacked(tmp_path):
    text = "\n".join(row(n) for n in range(60))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (Text(str(tmp_path / name), context=16) for name in ("a.txt", "b.txt.gz"))
    assert ids(plain) == ids(packed) and plain.label_names == packed.label_names


def test_max_chars_leaves_the_rest_unread(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS) + b"no json")
    task = Text(str(tmp_path / "a.jsonl"), context=16, max_chars=3000)
    assert sum(len(text) for part in texts(task).values() for text in part) == 3000
    with pytest.raises(DataError, match="line 61"):
        Text(str(tmp_path / "a.jsonl"), context=16)


def test_a_data_set_of_the_hub(forms, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    datasets.disable_progress_bars()
    rows.save_to_disk(str(forms / "saved"))
    datasets.DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(str(forms / "split"))
    expected = Text(str(forms / "a.jsonl"), context=16, domain_column="lang")
    for name in ("saved", "split"):
        found = Text(f"hub:{forms / name}", context=16, domain_column="lang")
        assert ids(found) == ids(expected) and found.label_names == expected.label_names
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    one_line(lambda: Text("hub:nobody/nothing"), EnvironmentFailure, "hub:nobody/nothing", "reach", "hub:FOLDER")
    one_line(lambda: Text(f"hub:{forms / 'saved'}", column="x"), DataError, "no column 'x'", "'text', 'lang'")
    asked = []

    def load(*words):
        asked.append(words)
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    one_line(lambda: Text("hub:a/b:c"), DataError, "no data set (hub:a/b:c)", "doesn't exist")
    assert asked == [("a/b", "c")]


# Token shards


@pytest.fixture
def shards(tmp_path):
    """A text as one shard and as two, and the tokenizer that made them."""
    text = "\n".join(row(n) for n in range(100)) + "\n"
    made = encoding("bpe", [text], 280)
    made.tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = made.encode(text)
    (tmp_path / "whole.bin").write_bytes(found.astype("<u2").tobytes())
    (tmp_path / "wide.bin").write_bytes(found.astype("<u4").tobytes())
    for number, part in enumerate(np.array_split(found, 2)):
        (tmp_path / "parts" / f"d{number}").mkdir(parents=True)
        (tmp_path / "parts" / f"d{number}" / "x.bin").write_bytes(part.astype("<u2").tobytes())
    return tmp_path, found, text


def test_a_shard_is_its_tokens(shards):
    folder, found, text = shards
    task = Text(str(folder / "whole.bin"), context=16, tokens=str(folder / "tokenizer.json"))
    assert [i for part in ids(task).values() for i in part] == found.tolist()
    assert task.encoding.decode(found) == text and "token" in task.label_names
    wide = Text(str(folder / "wide.bin"), context=16, vocab_size=280, dtype="uint32")
    assert ids(wide) == ids(task) and wide.fingerprint != task.fingerprint and wide.vocab_size == task.vocab_size
    assert list(wide.label_names) == ["domain"] and not np.isfinite(wide.chance("test")["bits_per_byte"])
    assert wide.encode("3 7").tolist() == [3, 7] and wide.encoding.decode([3, 7]) == "3 7"
    assert wide.chance("test")["nll"] == task.chance("test")["nll"]


def test_windows_go_on_from_shard_to_shard(shards):
    folder, found, _ = shards
    task = Text(str(folder / "parts"), context=16, vocab_size=280)
    assert task.label_names["domain"] == ["d0", "d1"]
    halves = np.array_split(found, 2)
    expected = np.concatenate([half[: 16 * len(half) // 20] for half in halves])
    assert ids(task)["train"] == expected.tolist()
    border = 16 * len(halves[0]) // 20
    batch = task._windows("train", torch.tensor([border - 5]))
    assert batch.x[0].tolist() == expected[border - 5 : border + 11].tolist()
    assert batch.labels["domain"][0].tolist() == [0] * 5 + [1] * 11
    assert [len(task.parts[split]) for split in SPLITS] == [32, 4, 4]


# Faults


def one_line(build, error, *needles):
    with pytest.raises(MoeError) as caught:
        build()
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and ". " in message, message
    for needle in needles:
        assert needle in message, message


GOOD = jsonl(ROWS)
FAULTS = [
    ("a.jsonl", GOOD + b'{"text": "x"\n', {}, DataError, ["a.jsonl, line 61"]),
    ("a.jsonl", GOOD + b"[1]\n", {}, DataError, ["line 61", "list"]),
    ("a.jsonl", GOOD + b'{"text": "caf\xe9"}\n', {}, DataError, ["not UTF-8", "line 61", "0xe9"]),
    ("a.jsonl", GOOD, {"column": "body"}, DataError, ["'body'", "line 1", "'text', 'lang', 'number'"]),
    ("a.jsonl", GOOD, {"column": "number"}, DataError, ["'number'", "line 1", "no text", "task.column"]),
    ("a.jsonl", GOOD, {"domain_column": "tongue"}, DataError, ["'tongue'", "'lang'"]),
    ("a.jsonl", b"", {}, DataError, ["no text"]),
    ("a.jsonl", b'{"text": "aaaaaaa"}\n', {}, DataError, ["too short", "129"]),
    ("a.jsonl", None, {}, DataError, ["no such file"]),
    ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:200], {}, DataError, ["corrupt gzip"]),
    ("a.txt.gz", b"plain text", {}, DataError, ["corrupt gzip"]),
    ("a.txt.gz", gzip.compress(b"abc" * 999, mtime=0)[:-9] + b"123456789", {}, DataError, ["corrupt gzip"]),
    ("a.txt", b"abc " * 999, {"domain_column": "lang"}, DataError, ["task.domain_column=lang", "jsonl or parquet"]),
    ("a.parquet", b"PAR1 or not", {}, DataError, ["no parquet file"]),
    ("a.bin", b"\1\0" * 999, {}, UsageError, ["no vocabulary", "task.tokens", "task.vocab_size"]),
    ("a.bin", b"\1\0\7", {"vocab_size": 9}, DataError, ["3 bytes", "uint16"]),
    ("a.bin", b"", {"vocab_size": 9}, DataError, ["0 bytes"]),
    ("a.bin", b"\1\0" * 999 + b"\7\1", {"vocab_size": 9}, DataError, ["holds 263", "9 symbols", "task.dtype"]),
    ("a.bin", b"\1\0" * 999, {"vocab_size": 9, "tokens": "t.json"}, UsageError, ["only bpe"]),
    ("a.bin", b"\1\0" * 99, {"vocab_size": 9}, DataError, ["too short", "tokens"]),
    ("a.bin", None, {"vocab_size": 9}, DataError, ["no such file"]),
    ("a.txt", b"abc " * 999, {"tokens": "none.json"}, DataError, ["no such tokenizer"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "error", "needles"), FAULTS)
def test_faults(tmp_path, name, content, options, error, needles):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    one_line(lambda: Text(str(tmp_path / name), **options), error, *needles)


def test_a_shard_that_is_cut_short_while_it_is_read(shards):
    task = Text(str(shards[0] / "whole.bin"), context=16, vocab_size=280)
    with open(shards[0] / "whole.bin", "r+b") as file:
        file.truncate(100)
    one_line(lambda: task.train_batch(0, 64, 0), DataError, "whole.bin", "cut short")


def test_too_many_domains(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": row(n), "url": str(n)} for n in range(300)))
    one_line(lambda: Text(str(tmp_path / "a.jsonl"), domain_column="url"), DataError, "more than 200", "line 201")


def test_a_corrupt_shard_in_a_folder_is_no_skipped_file(forms):
    (forms / "b.jsonl.gz").write_bytes(b"x")
    one_line(lambda: Text(str(forms)), DataError, "corrupt gzip", "b.jsonl.gz")
    (forms / "b.jsonl.gz").rename(forms / "b.txt.gz")
    one_line(lambda: Text(str(forms)), DataError, "corrupt gzip", "b.txt.gz")


@pytest.mark.parametrize(
    ("package", "path", "extra"), [("pyarrow", "c.parquet", "parquet"), ("datasets", "hub", "hub")]
)
def test_without_an_extra(forms, monkeypatch, package, path, extra):
    monkeypatch.setitem(sys.modules, package, None)
    path = "hub:a/b" if path == "hub" else str(forms / path)
    one_line(lambda: Text(path), EnvironmentFailure, f"pip install 'moecli[{extra}]'")


def test_columns_are_read_alone(forms):
    """Of parquet, only what is asked for."""
    (_, first), *_ = records.rows(forms / "c.parquet", ["text"])
    assert list(first) == ["text"]
