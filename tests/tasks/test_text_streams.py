"""A text too large for memory is the same text: pieces, split, vocabulary, ids, batches and fingerprint."""

import codecs
import gzip
import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecli.errors import DataError, EnvironmentFailure
from moecli.tasks import documents, pieces, streams
from moecli.tasks.documents import Document, Store, first_characters, split_documents
from moecli.tasks.task import SPLITS
from moecli.tasks.text import Text

LINES = "The cat saw 'it'.\nThe dog said \"no\" and ran\\away, thé 猫!\n"
PROSE = st.text(st.sampled_from("ab'\"\\\n\r\té猫\ufeff\x85 "), max_size=60)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "texts"


def on_disk(monkeypatch, limit=10):
    monkeypatch.setattr(documents, "IN_MEMORY", limit)


@pytest.fixture
def folder(tmp_path):
    for domain, number in (("law", 12), ("sea", 1)):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for n in range(number):
            (tmp_path / "texts" / domain / f"{n:02}.txt").write_text(f"{domain} {n}\n" + LINES * (3 + n % 3))
    (tmp_path / "texts" / "sea" / "00.txt").write_text(LINES * 30)
    return tmp_path / "texts"


def all_ids(task):
    return [task.streams[split].ids[:].tolist() for split in SPLITS]


# Pieces


@given(text=PROSE, size=st.integers(5, 40), mark=st.booleans(), packed=st.booleans())
@SLOW
def test_pieces_are_the_whole(tmp_path, monkeypatch, text, size, mark, packed):
    file = tmp_path / ("a.txt.gz" if packed else "a.txt")
    raw = (codecs.BOM_UTF8 if mark else b"") + text.encode()
    file.write_bytes(gzip.compress(raw) if packed else raw)
    monkeypatch.setattr(pieces, "BLOCK", size)
    found = list(pieces.text_pieces(file))
    whole = raw.decode().removeprefix("\ufeff")
    assert "".join(found) == pieces.ended(whole) or not text  # nothing at all becomes one line's end
    assert all(len(piece.encode()) <= 2 * size for piece in found)


@pytest.mark.parametrize("size", [5, 8, 1000])
def test_a_bad_byte_is_found_where_it_lies(tmp_path, monkeypatch, size):
    monkeypatch.setattr(pieces, "BLOCK", size)
    (tmp_path / "a.txt").write_bytes("né\nab\ncafé".encode() + b"\xe9!\n")
    with pytest.raises(DataError, match=r"byte 12, line 3, value 0xe9"):
        list(pieces.text_pieces(tmp_path / "a.txt"))


# Split


@given(texts=st.lists(PROSE, min_size=1, max_size=8), seed=st.integers(0, 3))
@SLOW
def test_the_split_is_that_of_the_texts(monkeypatch, texts, seed):
    on_disk(monkeypatch)
    monkeypatch.setattr(pieces, "BLOCK", 8)
    given = [Document("ab"[n % 2], str(n), (text[: n * 3], text[n * 3 :])) for n, text in enumerate(texts)]
    parts = split_documents(store := Store(given), seed)
    whole = {document.name: document.text for document in given}
    found = {document.name: document.text for split in SPLITS for document in parts[split]}
    assert store.length.tolist() == [len(text) for text in texts]
    for name, text in whole.items():
        pieces_of = [found.get(name)] if name in found else [found[f"{name} {n}/20"] for n in range(1, 21)]
        assert "".join(pieces_of) == text and max(map(len, pieces_of)) <= -(
            -len(text) // (20 if name not in found else 1)
        )
    told = "".join(repr((split, d.domain, d.name, d.text)) for split in SPLITS for d in parts[split])
    assert documents.digest(parts) == documents.hashlib.sha256(told.encode()).hexdigest()


def test_first_characters_are_counted_over_pieces():
    given = [Document("a", "1", ("abc", "def")), Document("b", "2", ("xy",)), Document("a", "3", ("ghi", "j"))]
    assert [d.text for d in first_characters(given, 7)] == ["abcdef", "xy", "g"]
    assert [d.text for d in first_characters(given, 5)] == ["abcde", "xy"]
    assert list(first_characters(given, None)) == given


# Ids


@pytest.mark.parametrize(("tokens", "size"), [("characters", None), ("bytes", None), ("bpe", 270)])
def test_on_disk_is_in_memory(folder, monkeypatch, cache, tokens, size):
    small = Text(str(folder), context=8, tokens=tokens, vocab_size=size)
    assert not cache.exists()
    on_disk(monkeypatch)
    made = Text(str(folder), context=8, tokens=tokens, vocab_size=size)
    monkeypatch.setattr(streams, "_leave", None)  # the third finds what the second left
    for large in (made, Text(str(folder), context=8, tokens=tokens, vocab_size=size)):
        assert large.fingerprint == small.fingerprint and large.kind == small.kind
        assert large.sizes == small.sizes and large.label_names == small.label_names
        for one, other in [
            (small.train_batch(3, 8, 5), large.train_batch(3, 8, 5)),
            *zip(small.batches("test", 9), large.batches("test", 9), strict=True),
        ]:
            assert torch.equal(one.x, other.x) and torch.equal(one.target, other.target)
            assert torch.equal(one.row, other.row) and torch.equal(one.document, other.document)
            assert all(torch.equal(label, other.labels[name]) for name, label in one.labels.items())
        assert large.chance("test") == small.chance("test") and large.facts()[:-2] == small.facts()[:-1]
        assert large.facts()[-2].value.startswith(str(cache))


def test_another_text_or_way_to_read_it_has_ids_of_its_own(folder, monkeypatch, cache):
    on_disk(monkeypatch)
    for tokens in ("characters", "bytes", "bytes"):
        Text(str(folder), context=8, tokens=tokens)
    assert len(list(cache.iterdir())) == 2
    Text(str(folder), context=8, split_seed=1)
    (folder / "law" / "00.txt").write_text("changed " * 20)
    Text(str(folder), context=8)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["short", "gone", "json", "count"])
def test_damaged_ids_are_made_anew(folder, monkeypatch, cache, damage):
    on_disk(monkeypatch)
    made = all_ids(Text(str(folder), context=8))
    (kept,) = cache.iterdir()
    if damage == "gone":
        (kept / "valid.ids").unlink()
    else:
        name = {"short": "train.ids", "json": "encoding.json", "count": "test.count.npy"}[damage]
        (kept / name).write_bytes((kept / name).read_bytes()[:-9])
    assert all_ids(Text(str(folder), context=8)) == made
    assert len(list(cache.iterdir())) == 1


def test_ids_outlive_their_folder_and_old_ones_go(folder, monkeypatch, cache):
    on_disk(monkeypatch)
    monkeypatch.setattr(streams, "KEPT", 2)
    first = Text(str(folder), context=8)
    (cache / "draft-of-a-killed-process").mkdir()
    os.utime(cache / "draft-of-a-killed-process", (0, time.time() - 2 * streams.ABANDONED))
    (cache / "draft-of-another").mkdir()
    for seed in (1, 2):
        Text(str(folder), context=8, split_seed=seed)
    left = {path.name for path in cache.iterdir()}
    assert len(left) == 3 and "draft-of-another" in left and first.streams["train"].ids.folder.name not in left
    assert first.train_batch(0, 4, 0).x.shape == (4, 8)  # still read


def test_a_cache_that_cannot_be_written(folder, monkeypatch, tmp_path):
    on_disk(monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailure, match=r"MOE_CACHE") as caught:
        Text(str(folder), context=8)
    assert "\n" not in str(caught.value)


def test_a_full_disk(folder, monkeypatch, cache):
    on_disk(monkeypatch)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streams, "_write_ids", full)
    with pytest.raises(EnvironmentFailure, match="No space left on device"):
        Text(str(folder), context=8)
    assert not list(cache.iterdir())  # no draft is left behind
