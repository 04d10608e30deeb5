"""Text as ids: characters, bytes, byte-level BPE learned from the training text, or a user's own tokenizer.

An id is an index into an encoding's ``symbols``.  Specials (a begin, an end, the tag of a language)
have the first ids; no text holds them, so ``encode`` never gives one and ``decode`` leaves them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from moecli.errors import DataError, EnvironmentFailure, UsageError
from moecli.tasks.files import read_bytes, shown, user_path
from moecli.tasks.kinds import UNKNOWN

MIN_COUNT = 5  # rarer characters of the training text are unknown
MAX_SYMBOLS = 200
BPE_SIZE = 4096
BPE_TEXT = 20_000_000  # characters that merges are learned from, spread evenly over the training text
CODE_POINTS = 0x110000
PIECE = 2**16  # characters, up to the end of a line, that a tokenizer reads at once
COUNTED = 2**20  # characters that are counted at once
OWN = ("characters", "bytes", "bpe")


class Encoding:
    """Text <-> ids (L,) int32, each an index into ``symbols``; ``sizes`` are their bytes of UTF-8, 0 of specials.

    The ids of a text's lines are those of its whole, for a tokenizer of sentences (one that marks where a text
    begins) up to a mark every 65,536 characters.
    """

    unit: ClassVar[str]  # what one id is of a text, in the plural
    symbols: tuple[str, ...]
    sizes: tuple[float, ...]
    num_specials: int

    def __init__(self, specials: Sequence[str], symbols: Iterable[str], sizes: Iterable[float]):
        self.num_specials = len(specials)
        self.symbols = (*specials, *symbols)
        self.sizes = (*(0 for _ in specials), *sizes)

    @property
    def identity(self) -> str:
        """JSON that ``restored`` makes the same encoding of."""
        raise NotImplementedError

    def encode(self, text: str) -> np.ndarray:  # -> (L,) int32
        return self._encode(text) + np.int32(self.num_specials)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without specials and without -1, which is no token."""
        return self._decode([int(i) - self.num_specials for i in ids if i >= self.num_specials])

    def _encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError


class Characters(Encoding):
    """The characters that training texts hold often enough; every other one is UNKNOWN, the first id."""

    unit = "characters"

    def __init__(self, characters: Sequence[str], specials: Sequence[str] = ()):
        symbols = (UNKNOWN, *characters)
        # an unknown one counts as one byte, so that bits per byte are never flattered
        super().__init__(specials, symbols, (1, *(len(symbol.encode(errors="replace")) for symbol in characters)))
        self._known = symbols
        self._lookup = np.zeros(CODE_POINTS, dtype=np.int32)  # code point -> id
        self._lookup[[ord(symbol) for symbol in characters]] = np.arange(1, len(symbols))

    @property
    def identity(self) -> str:
        return json.dumps(["characters", self.num_specials, *self.symbols])

    def _encode(self, text: str) -> np.ndarray:
        return self._lookup[_code_points(text)]

    def _decode(self, ids: list[int]) -> str:
        return "".join(self._known[i] for i in ids)


class Bytes(Encoding):
    """The 256 bytes of UTF-8, which hold any text without loss."""

    unit = "bytes"

    def __init__(self, specials: Sequence[str] = ()):
        super().__init__(specials, (_as_symbol(bytes([byte])) for byte in range(256)), [1] * 256)

    @property
    def identity(self) -> str:
        return json.dumps(["bytes", self.num_specials, *self.symbols[: self.num_specials]])

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int32)

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Subwords(Encoding):
    """What a tokenizer of the ``tokenizers`` package makes of a text, no begin or end put around it."""

    unit = "tokens"

    def __init__(self, tokenizer: Any, specials: Sequence[str] = ()):
        self.tokenizer = tokenizer
        pieces = list(_token_bytes(tokenizer))
        super().__init__(specials, (_as_symbol(piece) for piece in pieces), map(len, pieces))
        tags = [(i, token.content) for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        named = dict(tags)  # of the tokenizer itself: they have a name and no bytes
        self.symbols = tuple(named.get(i - self.num_specials, symbol) for i, symbol in enumerate(self.symbols))
        self.sizes = tuple(0 if i - self.num_specials in named else size for i, size in enumerate(self.sizes))

    @property
    def identity(self) -> str:
        specials = self.symbols[: self.num_specials]
        return json.dumps(["tokenizer", self.num_specials, *specials, self.tokenizer.to_str()])

    def _encode(self, text: str) -> np.ndarray:
        text = text.encode(errors="replace").decode()  # half a surrogate pair is no text to a tokenizer
        found = self.tokenizer.encode_batch_fast(list(pieces(text, PIECE)), add_special_tokens=False)
        return np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in found] or [np.zeros(0, np.int32)])

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


class Numbers(Encoding):
    """Ids of a vocabulary that nobody gave: a text of them is their numbers, and nobody knows their bytes."""

    unit = "tokens"

    def __init__(self, vocab_size: int):
        super().__init__((), map(str, range(vocab_size)), [math.nan] * vocab_size)

    @property
    def identity(self) -> str:
        return json.dumps(["numbers", 0, len(self.symbols)])

    def _encode(self, text: str) -> np.ndarray:
        strange = next((word for word in text.split() if word not in self.symbols), None)
        if strange is not None:
            fix = f"Give numbers below {len(self.symbols)}, or task.tokens the path of a tokenizer.json"
            raise DataError(f"no token ({shown(strange)}): these token shards have no tokenizer. {fix}")
        return np.array([int(word) for word in text.split()], dtype=np.int32)

    def _decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def restored(identity: str) -> Encoding:
    """The encoding whose ``identity`` it is.  Raises ValueError or TypeError where it is none."""
    kind, num_specials, *rest = json.loads(identity)
    specials, own = rest[:num_specials], rest[num_specials:]
    if kind == "tokenizer":
        return Subwords(_tokenizer(own[0]), specials)
    if kind == "numbers":
        return Numbers(own[0])
    return Characters(own[1:], specials) if kind == "characters" else Bytes(specials)


def encoding(
    kind: str, training_texts: Iterable[str], vocab_size: int | None = None, specials: Sequence[str] = ()
) -> Encoding:
    """``characters``, ``bytes``, ``bpe`` of ``vocab_size`` symbols, or the tokenizer.json that ``kind`` is the path of.

    Raises DataError where the file is no tokenizer, EnvironmentFailure without the extra ``tokens``, and
    UsageError for a size that does not go with the kind.
    """
    if vocab_size is not None and kind != "bpe":
        fix = "Leave it out, or use task.tokens=bpe"
        raise UsageError(f"task.vocab_size={vocab_size} (task.tokens={kind}): only bpe has a size to choose. {fix}")
    if kind == "characters":
        return Characters(vocabulary(training_texts), specials)
    if kind == "bytes":
        return Bytes(specials)
    if kind == "bpe":
        return Subwords(learned(training_texts, vocab_size or BPE_SIZE, len(specials)), specials)
    return Subwords(read_tokenizer(kind), specials)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """The characters that occur at least MIN_COUNT times, the most frequent if they are many, sorted."""
    count = np.zeros(CODE_POINTS, dtype=np.int64)
    for text in together(texts, COUNTED):
        found = np.bincount(_code_points(text))
        count[: len(found)] += found
    count[ord(UNKNOWN)] = 0
    by_count = np.argsort(-count, kind="stable")[: MAX_SYMBOLS - 1]
    return [chr(code) for code in np.sort(by_count[count[by_count] >= MIN_COUNT])]


def learned(texts: Iterable[str], vocab_size: int, num_specials: int) -> Any:
    """Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019): merges of the most frequent pairs, within a line.

    ``vocab_size`` counts the specials too, and is less where the texts have no more pairs to merge.
    """
    if vocab_size < 256 + num_specials:
        specials = f" and {num_specials} special symbols" if num_specials else ""
        raise UsageError(f"task.vocab_size={vocab_size}: bpe begins with 256 bytes{specials}. Give a larger one")
    package = _package()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.BPE())
    # a line's end is a token of its own, so that lines may be encoded one by one
    parts = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - num_specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text.encode(errors="replace").decode() for text in texts), trainer)
    return tokenizer


def read_tokenizer(path: str) -> Any:
    """A tokenizer.json, or the folder it lies in.  DataError names what is wrong with it."""
    file = user_path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.exists():
        fix = f"Give {', '.join(OWN)}, or the path of a tokenizer.json"
        raise DataError(f"no such tokenizer (task.tokens={path}): there is no such file. {fix}")
    raw = read_bytes(file)
    try:
        return _tokenizer(raw.decode())
    except ValueError as error:
        fix = "Give a tokenizer.json as the package tokenizers saves it"
        raise DataError(f"no tokenizer (task.tokens={file}): {shown(error)}. {fix}") from error


def _tokenizer(text: str) -> Any:
    package = _package()
    try:
        return package.Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(str(error)) from error


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        fix = "pip install 'moecli[tokens]', or use task.tokens=characters or bytes"
        raise EnvironmentFailure(f"cannot make subwords: the package tokenizers is not installed. {fix}") from error
    return tokenizers


def together(texts: Iterable[str], size: int) -> Iterator[str]:
    """The same text in parts of at least ``size`` characters but for the last: few calls for many short texts."""
    waiting, length = [], 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= size:
            yield "".join(waiting)
            waiting, length = [], 0
    yield "".join(waiting)


def pieces(text: str, size: int) -> Iterator[str]:
    """The same text in parts of at most ``size`` characters, up to the end of a line where there is one."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _code_points(text: str) -> np.ndarray:  # -> (len(text),) uint32
    # surrogatepass: new text may come from anywhere, and an odd character is just unknown
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _as_symbol(piece: bytes) -> str:
    r"""A piece of UTF-8 to read; what is part of a character only as ``\xc3``."""
    return piece.decode("utf-8", "backslashreplace")


def _token_bytes(tokenizer: Any) -> Iterator[bytes]:
    """What each id stands for in a text, in the order of ids; nothing for an id that the vocabulary skips."""
    vocabulary = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    plan = json.loads(tokenizer.to_str())
    read = _byte_level if "ByteLevel" in json.dumps([plan["pre_tokenizer"], plan["decoder"]]) else _plain
    return (read(vocabulary.get(index, "")) for index in range(max(vocabulary) + 1))


def _byte_level(token: str) -> bytes:
    """One sign a byte, as GPT-2 writes them; an added token is written as it is."""
    return bytes(SIGNS[sign] for sign in token) if all(sign in SIGNS for sign in token) else token.encode()


def _plain(token: str) -> bytes:
    """Of the SentencePiece and WordPiece kind: a low line for a space, ``<0x0A>`` for a byte, ## for a word's middle."""
    if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    return token.removeprefix("##").replace("\u2581", " ").encode(errors="replace")


def _byte_signs() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary (Radford et al., 2019)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


SIGNS = _byte_signs()
