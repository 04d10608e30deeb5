"""What sort of symbol a token is: the label that specialisation in text is measured against first."""

from __future__ import annotations

import unicodedata

from moecli.tasks.kinds import UNKNOWN
from moecli.tasks.tokens import Encoding, Numbers

CHARACTER_CLASSES = ("letter", "capital", "digit", "space", "newline", "punctuation", "other")
TOKEN_CLASSES = (*CHARACTER_CLASSES, "word begin", "part of a character", "special")


def class_label(encoding: Encoding) -> tuple[str, list[str], list[int]]:
    """The label's name, its classes, and the class of each id; no classes where nobody knows what an id stands for."""
    if isinstance(encoding, Numbers):
        return "token", [], []
    if encoding.unit == "characters" and not encoding.num_specials:
        return "character", list(CHARACTER_CLASSES), [character_number(s) for s in encoding.symbols]
    found = [token_class(symbol, size) for symbol, size in zip(encoding.symbols, encoding.sizes, strict=True)]
    names = [name for name in TOKEN_CLASSES if name in found]
    return "token", names, [names.index(name) for name in found]


def character_number(character: str) -> int:
    return CHARACTER_CLASSES.index(character_class(character))


def character_class(character: str) -> str:
    if character == UNKNOWN:
        return "other"
    if character == "\n":
        return "newline"
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        return "capital" if character.isupper() or character.istitle() else "letter"
    return "punctuation" if unicodedata.category(character)[0] in "PS" else "other"


def token_class(symbol: str, size: float) -> str:
    """Of its first character that is no space; a small letter after a space begins a word."""
    if not size:
        return "special"
    if symbol != UNKNOWN and len(symbol.encode(errors="replace")) != size:  # written as \xc3
        return "part of a character"
    seen = symbol.lstrip()
    if not seen:
        return "newline" if "\n" in symbol else "space"
    first = character_class(seen[0])
    return "word begin" if first == "letter" and seen != symbol else first
