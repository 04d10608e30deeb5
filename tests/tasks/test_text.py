"""Texts as windows: what is in a window, where windows may lie, labels, chance, and each fault as one line."""

import hashlib
import math
import random

import pytest
import torch

from moecli.errors import DataError
from moecli.tasks.kinds import UNKNOWN
from moecli.tasks.task import SPLITS
from moecli.tasks.text import StdlibText, Text, reference_topics
from moecli.tasks.token_classes import CHARACTER_CLASSES
from moecli.tasks.tokens import vocabulary

WORDS = ["The", "cat", "sat", "on", "the", "Mat", ",", "and", "42", "dogs", "(", "not", "7", ")", "ran", "away", "!"]

FINGERPRINT = "eb73fb32fde77c2fab25043809b46d5eef3b68d04678b0daf6cb4d532b28e436"  # of ``folder``, as it was when
IDS = "168ee20abc40adf75a3a38c8ff80c39c7a48bcc1dad2869847b8e6c1edf9a722"  # characters were all there was


def prose(characters, seed=0):
    draw, text = random.Random(seed), ""
    while len(text) < characters:
        text += draw.choice(WORDS) + draw.choice([" ", " ", " ", "\n"])
    return text[:characters]


@pytest.fixture
def folder(tmp_path):
    for domain in ("law", "sea"):
        (tmp_path / domain).mkdir()
        for number in range(20):
            (tmp_path / domain / f"{number:02}.txt").write_text(f"{domain}\n" + prose(600, number))
    return tmp_path


@pytest.fixture(scope="module")
def stdlib():
    return StdlibText()


def decoded(task, ids):
    return "".join(task.kind.symbols[i] for i in ids.tolist())


def every_id(task, split):
    return torch.from_numpy(task.streams[split].ids[:].astype("int64"))


def numbers(task, split):
    """The document that each token is of."""
    return task.streams[split].document(torch.arange(len(task.streams[split])))


def refused(build, *needles):
    with pytest.raises(DataError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message and ". " in message
    for needle in needles:
        assert needle in message, message


# Windows


def test_target_is_the_next_id(folder):
    task = Text(str(folder), context=16)
    for batch in [task.train_batch(0, 8, 0), *task.batches("test", 5)]:
        assert batch.x.shape == batch.target.shape == batch.labels["domain"].shape == batch.labels["character"].shape
        assert torch.equal(batch.x[:, 1:], batch.target[:, :-1])
        assert batch.x.dtype == batch.target.dtype == torch.int64 and batch.document.shape == batch.x.shape[:1]


def test_train_batches_are_a_function_of_seed_and_step(folder):
    task, again = Text(str(folder), context=16), Text(str(folder), context=16)
    task.train_batch(0, 8, 0)  # an earlier draw changes nothing
    assert torch.equal(task.train_batch(3, 8, 5).x, again.train_batch(3, 8, 5).x)
    assert not torch.equal(task.train_batch(3, 8, 5).x, task.train_batch(4, 8, 5).x)
    assert not torch.equal(task.train_batch(3, 8, 5).x, task.train_batch(3, 8, 6).x)


def test_evaluated_windows_do_not_overlap(folder):
    task = Text(str(folder), context=16, eval_windows=1000)
    for split in SPLITS:
        text = "".join(task.parts[split].every())
        windows = [decoded(task, x) for batch in task.batches(split, 7) for x in batch.x]
        assert "".join(windows) == text[: 16 * len(windows)]  # consecutive, each once
        assert len(windows) == task.sizes[split] == (len(text) - 1) // 16


def test_few_evaluated_windows_are_spread(folder):
    task = Text(str(folder), context=16, eval_windows=10)
    starts = task.streams["test"].starts
    assert task.sizes["test"] == 10 and len(starts.unique()) == 10 and (starts % 16 == 0).all()
    assert starts.diff().max() - starts.diff().min() <= 16
    (batch,) = task.batches("test", 10)
    assert batch.labels["domain"].unique().tolist() == [0, 1]


def test_train_windows_reach_both_ends(tmp_path):
    (tmp_path / "a.txt").write_text(prose(3000))
    task = Text(str(tmp_path / "a.txt"), context=16)
    text = "".join(document.text for document in task.parts["train"])
    seen = {decoded(task, x) for step in range(500) for x in task.train_batch(step, 64, 0).x}
    assert seen == {text[start : start + 16] for start in range(len(text) - 16)}


# Splits


def test_documents_stay_whole_and_apart(folder):
    task = Text(str(folder), context=16)
    names = [[(d.domain, d.name) for d in task.parts[split]] for split in SPLITS]
    assert sorted(name for part in names for name in part) == sorted(
        (d, f"{d}/{n:02}.txt") for d in ("law", "sea") for n in range(20)
    )
    assert [len(part) for part in names] == [32, 4, 4]
    documents = [set(numbers(task, split).tolist()) for split in SPLITS]
    assert [len(part) for part in documents] == [32, 4, 4]
    assert not documents[0] & documents[1] and not documents[0] & documents[2] and not documents[1] & documents[2]


def test_split_is_fixed_by_its_seed(folder):
    first, again, other = (Text(str(folder), context=16, split_seed=seed) for seed in (0, 0, 1))
    assert all(list(first.parts[split]) == list(again.parts[split]) for split in SPLITS)
    assert list(first.parts["test"]) != list(other.parts["test"]) and first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_one_file_is_cut_in_order(tmp_path):
    text = prose(5000).strip() + "\n"
    (tmp_path / "a.txt").write_text(text)
    task = Text(str(tmp_path / "a.txt"), context=16)
    assert "".join(d.text for split in SPLITS for d in task.parts[split]) == text
    assert [len(task.parts[split]) for split in SPLITS] == [16, 2, 2]
    assert task.label_names["domain"] == ["txt"]


def test_held_out_text_does_not_leak(folder):
    before = Text(str(folder), context=16)
    for document in [*before.parts["test"], *before.parts["valid"]]:
        text = document.text
        (folder / document.name).write_text("ß" * (len(text) - 1) + "\n")
    after = Text(str(folder), context=16)
    assert before.kind.symbols == after.kind.symbols
    assert torch.equal(every_id(before, "train"), every_id(after, "train"))
    assert (after.batch("test", torch.arange(3)).target == 0).any()  # unknown
    assert math.isfinite(after.chance("test")["nll"])


# Labels and vocabulary


def test_labels_of_a_hand_made_text(tmp_path):
    (tmp_path / "a.md").write_text("Ab 7,\n\u00e9" * 100)
    task = Text(str(tmp_path / "a.md"), context=7)
    batch = task.batch("train", torch.tensor([0]))
    assert decoded(task, batch.x[0]) == "Ab 7,\n\u00e9"
    named = [CHARACTER_CLASSES[i] for i in batch.labels["character"][0]]
    assert named == ["capital", "letter", "space", "digit", "punctuation", "newline", "letter"]


def test_domain_and_document_labels(folder):
    task = Text(str(folder), context=16)
    documents = [d for split in SPLITS for d in task.parts[split]]
    for batch in task.batches("train", 50):
        for window in range(len(batch.x)):
            document = documents[batch.document[window]]
            assert task.label_names["domain"][batch.labels["domain"][window, 0]] == document.domain
            assert decoded(task, batch.x[window])[:1] in document.text


def test_domains_of_a_flat_folder_are_suffixes(tmp_path):
    for name in ("a.txt", "b.md", "c"):
        (tmp_path / name).write_text(prose(1000))
    assert Text(str(tmp_path), context=16).label_names["domain"] == ["md", "no suffix", "txt"]


def test_vocabulary_leaves_rare_characters_out():
    assert vocabulary(["a" * 3 + "b" * 4, UNKNOWN * 9 + "\n" * 5 + "aa"]) == ["\n", "a"]
    many = "".join(chr(300 + i) * (5 + i) for i in range(300))
    assert vocabulary([many]) == [chr(300 + i) for i in range(101, 300)]  # the 199 most frequent


def test_encode_is_the_inverse_of_the_symbols(folder):
    task = Text(str(folder), context=16)
    assert decoded(task, task.encode("The Mat\n")) == "The Mat\n"
    assert task.encode("\u732b\ud800").tolist() == [0, 0] and task.encode("").shape == (0,)


def test_a_character_of_two_bytes_halves_the_bits_of_each(tmp_path):
    (tmp_path / "a.txt").write_text("éà" * 500)
    chance = Text(str(tmp_path / "a.txt"), context=4).chance("test")
    assert chance["bits_per_byte"] == pytest.approx(chance["nll"] / math.log(2) / 2, rel=0.01)  # its end has one


def test_chance_is_the_unigram(folder):
    task = Text(str(folder), context=16)
    count = every_id(task, "train").bincount(minlength=task.out).double() + 1
    (batch,) = task.batches("test", 1000)
    assert task.chance("test")["nll"] == pytest.approx(-(count / count.sum()).log()[batch.target].mean().item())


# Tokens


def test_characters_have_the_ids_they_always_had(folder):
    task = Text(str(folder), context=16)
    ids = b"".join(task.streams[split].ids.arrays[0].tobytes() for split in SPLITS)
    assert hashlib.sha256(ids).hexdigest() == IDS and task.fingerprint == FINGERPRINT


@pytest.mark.parametrize(("tokens", "size"), [("bytes", None), ("bpe", 280)])
def test_other_tokens_are_the_same_text(folder, tokens, size):
    task, characters = Text(str(folder), context=8, tokens=tokens, vocab_size=size), Text(str(folder), context=8)
    for split in SPLITS:
        text = "".join(task.parts[split].every())
        assert task.encoding.decode(every_id(task, split).tolist()) == text
    assert task.fingerprint != characters.fingerprint
    batch = task.batch("test", torch.arange(1))
    assert task.vocab_size == (size or 256) and set(batch.labels) == {"domain", "token"}
    assert batch.document[0] == numbers(characters, "test")[0]
    given = folder / "law" / "00.txt"
    x, columns = task.new_rows(given)
    assert "".join(columns["token"]) == given.read_text()[: len("".join(columns["token"]))]
    assert x.shape == (len(columns["token"]) // 8, 8)


def test_another_tokenizer_is_another_fingerprint(folder, tmp_path_factory):
    prints, file = set(), str(tmp_path_factory.mktemp("made") / "tokenizer.json")
    for size in (270, 280):
        made = Text(str(folder), context=8, tokens="bpe", vocab_size=size)
        made.encoding.tokenizer.save(file)
        task = Text(str(folder), context=8, tokens=file)
        assert task.fingerprint == made.fingerprint and task.vocab_size == made.vocab_size
        prints.add(task.fingerprint)
    assert len(prints) == 2  # by which a run knows that its tokenizer is not what it was


def test_merges_are_learned_from_training_alone(folder):
    before = Text(str(folder), context=8, tokens="bpe", vocab_size=300)
    for document in [*before.parts["test"], *before.parts["valid"]]:
        (folder / document.name).write_text(("zebra " * 200)[: len(document.text) - 1] + "\n")
    assert Text(str(folder), context=8, tokens="bpe", vocab_size=300).kind.symbols == before.kind.symbols


# Reading


def test_skipped_files_are_counted(folder):
    (folder / ".hidden").write_text("x")
    (folder / "law" / "photo.bin").write_bytes(b"\0\1\2")
    (folder / "law" / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "law" / "void.txt").write_text(" \n")
    facts = {fact.name: fact.value for fact in Text(str(folder), context=16).facts()}
    assert facts["skipped files"] == "1 empty, 1 hidden, 2 not UTF-8 text"
    assert facts["domain law"].startswith("train 16 documents of 9,")


def test_max_chars_holds_for_each_domain(folder):
    task = Text(str(folder), context=16, max_chars=5000)
    for domain in ("law", "sea"):
        texts = [d.text for split in SPLITS for d in task.parts[split] if d.domain == domain]
        assert sum(map(len, texts)) == 5000


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"abc\r\n" * 100)
    task = Text(str(tmp_path / "a.txt"), context=4)
    assert task.kind.symbols == (UNKNOWN, "\n", "a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "needles"),
    [
        ("none.txt", None, ["no such file"]),
        ("a.txt", b"", ["empty"]),
        ("a.txt", b"\n \n", ["empty"]),
        ("a.txt", b"ab\ncaf\xe9!", ["not UTF-8", "byte 6, line 2", "0xe9"]),
        ("a.txt", b"ab\0", ["NUL", "byte 2"]),
        ("a.txt", "ab".encode("utf-16"), ["UTF-16"]),
        ("a.txt", b"ab " * 100, ["too short", "30 characters", "129", "at least about 1295", "task.context"]),
        ("a.txt", "".join(map(chr, range(300, 2000))).encode(), ["no character occurs 5 times"]),
    ],
)
def test_bad_file(tmp_path, name, content, needles):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(lambda: Text(str(tmp_path / name)), name, *needles)


def test_folder_without_text(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"\0")
    refused(lambda: Text(str(tmp_path)), str(tmp_path), "no text")


# The library's own texts


def test_stdlib_text(stdlib):
    assert stdlib.label_names["domain"] == ["python", "reference"]
    assert stdlib.gives == {"sequence", "ids", "classes"} and stdlib.needs == {"causal"}
    assert stdlib.dim == 0 and stdlib.vocab_size == stdlib.out == len(stdlib.kind.symbols) <= 200
    for split in SPLITS:
        documents = {d.domain for d in stdlib.parts[split]}
        (batch,) = stdlib.batches(split, 10_000)
        share = batch.labels["domain"].double().mean()
        assert documents == {"python", "reference"} and 0.3 < share < 0.7
    assert 2.5 < stdlib.chance("test")["nll"] < 4
    assert stdlib.sizes["valid"] == stdlib.sizes["test"] == 64


def test_stdlib_text_is_the_same_each_time(stdlib):
    assert StdlibText().fingerprint == stdlib.fingerprint


def test_no_chapter_is_part_of_another():
    documents = reference_topics()
    names = {document.name for document in documents}
    assert {"compound", "specialnames"} <= names and not {"for", "while", "numeric-types"} & names
    assert len(names) > 40
