"""Sizes of a layer that are worth measuring, and what a user's words make of them; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moecli.config import Composed, Word, compose, nearest, settable
from moecli.errors import UsageError


@dataclass(frozen=True)
class Case:
    """A layer of SwiGLU experts without biases, each token served by its k best."""

    dim: int
    hidden: int
    num_experts: int
    k: int
    tokens: int

    def words(self) -> list[str]:
        plain = [] if self.k > 1 else ["router.renormalize=false"]  # one weight of 1 would train no gate
        return [
            "gate.bias=false",
            f"router.k={self.k}",
            *plain,
            f"num_experts={self.num_experts}",
            f"expert.hidden={self.hidden}",
            "expert.activation=swiglu",
            "expert.bias=false",
        ]


CASES = {
    "A": Case(128, 512, 8, 2, 1024),
    "B": Case(128, 512, 8, 2, 4096),
    "C": Case(256, 1024, 8, 2, 4096),
    "D": Case(512, 2048, 8, 2, 1024),
    "E": Case(256, 128, 64, 8, 4096),
    "F": Case(256, 1024, 16, 1, 4096),
    "G": Case(128, 512, 8, 1, 16384),
    "H": Case(128, 512, 64, 2, 1024),
}
DTYPES = ("float32", "bfloat16", "float64")
PARTS = ("router", "gate", "expert")
KEYS = ("num_experts", "model.shared", "model.shared_mix", "seed", "device", "threads")


@dataclass(frozen=True)
class Subject:
    """A case by its name, of the sizes that were asked for, and its whole configuration."""

    name: str
    case: Case
    composed: Composed

    @property
    def changed(self) -> bool:
        return self.case != CASES[self.name] or bool(self.composed.explicit & {*PARTS, "num_experts", "model"})


def subjects(
    words: Sequence[str] = (), names: Sequence[str] = ("A",), tokens: int | None = None, dim: int | None = None
) -> list[Subject]:
    """Some cases with ``key=value`` words, a number of tokens and a width laid over each.

    Raises UsageError for a name that is none, as ``config.compose`` does, and for a key that shapes no layer.
    """
    check_names("--case", names, CASES)
    sized = {
        name: replace(CASES[name], tokens=tokens or CASES[name].tokens, dim=dim or CASES[name].dim) for name in names
    }
    found = [Subject(name, case, _composed(case, words)) for name, case in sized.items()]
    _refuse_idle([Word.parse(word).key for word in words])  # now that they are known to be keys
    return found


def check_names(option: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Raise UsageError where a list of names is empty, or has one that is not known."""
    for name in [name for name in names or ("",) if name not in known]:
        raise UsageError(
            f"{option} {name or 'nothing'}: no such {option[2:]}.{nearest(name, known)} Choose from: {', '.join(known)}"
        )


def _refuse_idle(keys: Sequence[str]) -> None:
    for key in keys:
        if key.split(".")[0] not in PARTS and key not in KEYS:
            raise UsageError(
                f"{key} (moe bench): it shapes no layer, so nothing would use it. Leave it out; what does: "
                f"{', '.join(f'{part}=' for part in PARTS)} and their options, {', '.join(f'{k}=' for k in KEYS)}"
            )


def _composed(case: Case, words: Sequence[str]) -> Composed:
    """What the case says of a part that the words replace is left out; ``explicit`` are the words' own groups."""
    given, possible = [Word.parse(word).key for word in words], settable(words)
    own = [word for word in case.words() if (key := word.partition("=")[0]) in possible and key not in given]
    return Composed(compose([*own, *words]).config, frozenset(key.split(".")[0] for key in given))
