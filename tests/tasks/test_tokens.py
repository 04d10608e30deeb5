"""Encodings: nothing is lost, every byte is counted once, lines can be read one by one, and faults are one line."""

import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import DataError, EnvironmentFailure, MoeError, UsageError
from moecli.tasks.kinds import UNKNOWN
from moecli.tasks.token_classes import class_label, token_class
from moecli.tasks.tokens import OWN, Encoding, encoding, pieces, together

TEXT = "The cats sat on the mats.\nThe dogs, 42 of them, ran: thé café!\n\n    indented the cats\n" * 20
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def kinds() -> dict[str, Encoding]:
    return {kind: encoding(kind, [TEXT], 290 if kind == "bpe" else None) for kind in OWN}


def same_ids(one, other, text=TEXT):
    return np.array_equal(one.encode(text), other.encode(text))


def named(found, text):
    return [found.symbols[i] for i in found.encode(text)]


# What is read


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=ANY)
@settings(max_examples=30, deadline=None)
def test_bytes_and_subwords_lose_nothing(kinds, kind, text):
    ids = kinds[kind].encode(text)
    assert ids.dtype == np.int32 and kinds[kind].decode(ids) == text
    assert sum(kinds[kind].sizes[i] for i in ids) == len(text.encode())  # every byte is counted once


def test_characters_lose_the_rare_ones(kinds):
    found = kinds["characters"]
    assert found.decode(found.encode("The ")) == "The " and found.decode(found.encode("T猫")) == f"T{UNKNOWN}"
    assert sum(found.sizes[i] for i in found.encode(TEXT)) == len(TEXT.encode())
    assert found.sizes[found.encode("猫")[0]] == 1


def test_symbols_are_told_apart_and_read_as_the_text(kinds):
    for found in kinds.values():
        assert len(set(found.symbols)) == len(found.symbols) == len(found.sizes)
    assert "".join(named(kinds["bpe"], "The cats")) == "The cats"
    assert " the" in kinds["bpe"].symbols and len(named(kinds["bpe"], "The cats")) < 5
    assert named(kinds["bytes"], "é\n") == ["\\xc3", "\\xa9", "\n"]


@given(lines=st.lists(ANY, max_size=4))
@settings(max_examples=30, deadline=None)
def test_lines_can_be_read_one_by_one(kinds, lines):
    lines = [f"{line}\n" for line in lines]
    for found in kinds.values():
        assert list(chain.from_iterable(map(found.encode, lines))) == found.encode("".join(lines)).tolist()


def test_parts_of_words_cannot(kinds):  # the control of the test above
    assert [*kinds["bpe"].encode("The ca"), *kinds["bpe"].encode("ts")] != kinds["bpe"].encode("The cats").tolist()


def test_half_a_surrogate_pair_is_unknown(kinds):
    assert [kinds[kind].encode("a\ud800b").shape for kind in OWN] == [(3,), (5,), (3,)]


def test_nothing_is_no_ids(kinds):
    assert all(found.encode("").shape == (0,) and found.decode([]) == "" for found in kinds.values())


# How it is made


def test_merges_are_the_same_each_time_and_of_the_given_texts(kinds):
    assert same_ids(encoding("bpe", TEXT.splitlines(keepends=True), 290), kinds["bpe"])
    assert encoding("bpe", [TEXT], 290).identity == kinds["bpe"].identity
    other = encoding("bpe", ["zebra zebra " * 40], 290)
    assert "zebra" in "".join(other.symbols) and other.identity != kinds["bpe"].identity
    assert len(kinds["bpe"].symbols) == 290 > len(other.symbols)  # no more pairs to merge


@pytest.mark.parametrize("kind", OWN)
def test_specials_come_first_and_stand_in_no_text(kinds, kind):
    found = encoding(kind, [TEXT], 292 if kind == "bpe" else None, specials=("<the>", "<end>"))
    ids = found.encode("<the> cats")
    assert found.symbols[:2] == ("<the>", "<end>") and found.sizes[:2] == (0, 0) and ids.min() >= 2
    assert found.decode([0, -1, *ids, 1, -1]) == kinds[kind].decode(kinds[kind].encode("<the> cats"))
    assert found.symbols[2:] == kinds[kind].symbols and (ids - 2 == kinds[kind].encode("<the> cats")).all()


def test_pieces_and_together_are_the_whole():
    cut = list(pieces(TEXT, 50))
    assert "".join(cut) == TEXT and max(map(len, cut)) <= 50 and all(piece[-1] == "\n" for piece in cut)
    assert list(pieces("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert "".join(together(cut, 100)) == TEXT and len(list(together(cut, 100))) < len(cut)


# A user's tokenizer


def test_a_saved_tokenizer_gives_the_same_ids(kinds, tmp_path):
    kinds["bpe"].tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = encoding(str(path), [])
        assert same_ids(found, kinds["bpe"]) and found.symbols == kinds["bpe"].symbols
        assert found.identity == kinds["bpe"].identity


def test_a_tokenizer_of_sentences(tmp_path):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<0x0A>": 1, "\u2581cat": 2, "s": 3, "\u2581": 4, "<0xC3>": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.save(str(tmp_path / "t.json"))
    found = encoding(str(tmp_path / "t.json"), [])
    assert found.symbols == ("<unk>", "\n", " cat", "s", " ", "\\xc3", "</s>")
    assert found.sizes == (5, 1, 4, 1, 1, 1, 0)


def bad(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "error", "needles"),
    [
        (b"{", None, DataError, ["no tokenizer", "tokenizer.json"]),
        (b'{"version": "1.0"}', None, DataError, ["no tokenizer"]),
        (b"\xff\xfe", None, DataError, ["no tokenizer"]),
        ("charcters", None, DataError, ["no such tokenizer", "charcters", "characters, bytes, bpe"]),
        ("bpe", 200, UsageError, ["task.vocab_size=200", "256 bytes"]),
        ("characters", 500, UsageError, ["task.vocab_size=500", "only bpe"]),
    ],
)
def test_faults_are_one_line(tmp_path, kind, size, error, needles):
    with pytest.raises(MoeError) as caught:
        encoding(bad(tmp_path, kind) if isinstance(kind, bytes) else kind, [TEXT], size)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert all(needle in str(caught.value) for needle in needles), str(caught.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'moecli\[tokens\]'"):
        encoding("bpe", [TEXT])
    assert len(encoding("bytes", [TEXT]).symbols) == 256


# Labels


def test_classes_of_tokens(kinds):
    for symbol, size, expected in [
        (" the", 4, "word begin"),
        ("the", 3, "letter"),
        (" The", 4, "capital"),
        ("42", 2, "digit"),
        ("\n", 1, "newline"),
        ("  ", 2, "space"),
        (" (", 2, "punctuation"),
        ("\\xc3", 1, "part of a character"),
        ("é", 2, "letter"),
        (UNKNOWN, 1, "other"),
        ("<end>", 0, "special"),
    ]:
        assert token_class(symbol, size) == expected, symbol
    name, classes, of_symbol = class_label(kinds["bpe"])
    assert name == "token" and "special" not in classes
    assert classes[of_symbol[kinds["bpe"].symbols.index(" the")]] == "word begin"
    assert class_label(kinds["characters"])[0] == "character"
