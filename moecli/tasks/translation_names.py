"""Names of countries, languages and currencies in English and some 200 other languages: CLDR's tables, from ``babel``.

A language has as many names as its people have entered: from a few dozen to 1,250, so some pairs are rich and others
poor without anybody having made them so.
"""

from __future__ import annotations

from collections.abc import Sequence

from moecli.errors import EnvironmentFailure, UsageError
from moecli.tasks.translation_files import Pair

SOURCE = "en"
FEWEST = 50  # names: with fewer a language has nothing to hold out
TABLES = ("territories", "languages", "currency_names")


def read_names(targets: Sequence[str] | None) -> list[Pair]:
    """English names and what they are called in each of ``targets``, or in every language that has enough of them.

    Raises UsageError for a language without names, EnvironmentFailure without ``babel``.
    """
    languages = known_languages()
    for language in targets or ():
        if language not in languages:
            some = ", ".join(languages[:8])
            raise UsageError(f"task.target_language={language}: CLDR has no names in it. Languages are {some}, …")
    english = _names(SOURCE)
    found = [_translated(english, language) for language in targets or languages if language != SOURCE]
    kept = found if targets else [pairs for pairs in found if len(pairs) >= FEWEST]
    return [pair for pairs in kept for pair in pairs]


def known_languages() -> list[str]:
    """Languages by their codes, without those that are a script or a country's form of another."""
    try:
        from babel import localedata
    except ImportError as error:
        fix = "pip install 'moecli[translation]', or name a text of your own: task.path=FOLDER"
        raise EnvironmentFailure(
            f"task=translation: its names come from babel, which is not installed. {fix}"
        ) from error
    return sorted(code for code in localedata.locale_identifiers() if "_" not in code)


def _names(language: str) -> dict[tuple[str, str], str]:
    """{(table, code): name}."""
    from babel import localedata

    own = localedata.load(language)
    return {(table, code): name for table in TABLES for code, name in own.get(table, {}).items()}


def _translated(english: dict[tuple[str, str], str], language: str) -> list[Pair]:
    """One name each, whatever tables it stands in."""
    names = _names(language)
    return list(dict.fromkeys(Pair(name, names[key], language) for key, name in english.items() if key in names))
