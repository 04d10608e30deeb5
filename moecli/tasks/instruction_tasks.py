"""Small text tasks with one right answer: an input of each is drawn, and its instruction is put in several words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

SAID = """
apple bridge candle dragon engine forest garden hammer island jacket kitten ladder market needle orange pencil
rabbit saddle tunnel valley window yellow bottle copper desert eleven finger guitar helmet insect jungle lemon
mirror number oyster planet quartz river silver thunder umbrella violin walnut zebra anchor barrel cactus dinner
"""
PAIRS = """
hot-cold big-small up-down left-right day-night early-late fast-slow hard-soft high-low full-empty rich-poor
open-closed wet-dry young-old light-dark strong-weak happy-sad good-bad near-far first-last true-false
thick-thin loud-quiet begin-end buy-sell push-pull win-lose give-take love-hate clean-dirty sweet-bitter
wide-narrow deep-shallow cheap-dear alive-dead brave-afraid inside-outside summer-winter always-never more-less
"""
WORDS = SAID.split()
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
OPPOSITES = {one: other for pair in PAIRS.split() for one, other in permutations(pair.split("-"))}


@dataclass(frozen=True)
class SubTask:
    """``draw`` gives an input, ``answer`` the one right response to it; any of ``instructions`` asks for it."""

    instructions: tuple[str, ...]
    draw: Callable[[random.Random], str]
    answer: Callable[[str], str]


def _made_up(draw: random.Random) -> str:
    """A word that can be said: so many of them that none need come twice."""
    return "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(draw.randint(2, 3)))


def _letters(draw: random.Random) -> str:
    return " ".join(draw.sample("abcdefghijklmnopqrstuvwxyz", draw.randint(3, 5)))


def _numbers(draw: random.Random) -> str:
    return " ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(3, 4)))


def _sum(draw: random.Random) -> str:
    return f"{draw.randint(0, 99)} + {draw.randint(0, 99)}"


def _difference(draw: random.Random) -> str:
    small, large = sorted((draw.randint(0, 99), draw.randint(0, 99)))
    return f"{large} - {small}"


def _word(draw: random.Random) -> str:
    return draw.choice(WORDS) if draw.random() < 0.2 else _made_up(draw)


def _repeated(draw: random.Random) -> str:
    return "".join(draw.choice("abc") for _ in range(draw.randint(4, 8)))


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _by_number(text: str) -> str:
    return " ".join(sorted(text.split(), key=int))


SUB_TASKS = {
    "reverse": SubTask(("Reverse the word.", "Write this backwards."), _word, lambda text: text[::-1]),
    "upper case": SubTask(("Write it in capitals.", "Make every letter a capital."), _word, str.upper),
    "count a": SubTask(("How many times is a in it?", "Count the letter a."), _repeated, lambda t: str(t.count("a"))),
    "length": SubTask(("How many letters has it?", "Count the letters."), _word, lambda text: str(len(text))),
    "first letter": SubTask(("What is its first letter?", "Give the first letter."), _word, lambda text: text[0]),
    "last letter": SubTask(("What is its last letter?", "Give the last letter."), _word, lambda text: text[-1]),
    "add": SubTask(("Add the numbers.", "What is the sum?"), _sum, lambda t: str(sum(map(int, t.split(" + "))))),
    "subtract": SubTask(
        ("Subtract the second number.", "What is the difference?"),
        _difference,
        lambda text: str(int(text.split(" - ")[0]) - int(text.split(" - ")[1])),
    ),
    "sort letters": SubTask(
        ("Sort the letters.", "Put the letters in order."), _letters, lambda text: " ".join(sorted(text.split()))
    ),
    "sort numbers": SubTask(("Sort the numbers.", "Put the numbers in order."), _numbers, _by_number),
    "largest": SubTask(
        ("Which number is the largest?", "Give the largest number."),
        _numbers,
        lambda text: _by_number(text).split()[-1],
    ),
    "plural": SubTask(("Give the plural.", "Write it for more than one."), _word, _plural),
    "opposite": SubTask(
        ("What is the opposite?", "Give a word of opposite meaning."),
        lambda draw: draw.choice(sorted(OPPOSITES)),
        lambda text: OPPOSITES[text],
    ),
}


def drawn(name: str, number: int, seed: int) -> list[tuple[str, str, str]]:
    """(instruction, input, response), all inputs different, as many as ``number`` where there are so many."""
    sub_task, draw = SUB_TASKS[name], random.Random(f"{seed} {name}")
    inputs = dict.fromkeys(sub_task.draw(draw) for _ in range(3 * number))
    return [(draw.choice(sub_task.instructions), text, sub_task.answer(text)) for text in list(inputs)[:number]]
