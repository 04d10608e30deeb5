"""How good translations are: BLEU (Papineni et al., 2002) and chrF (Popović, 2015) as ``sacrebleu`` counts them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from moecli.errors import EnvironmentFailure
from moecli.tasks.task import Answer


def refuse_without_scores() -> None:
    """Raise EnvironmentFailure where the package is missing: before a run, not at its end."""
    if importlib.util.find_spec("sacrebleu") is None:
        fix = "pip install 'moecli[translation]'"
        raise EnvironmentFailure(f"task=translation: BLEU comes from sacrebleu, which is not installed. {fix}")


def scores(said: Sequence[Answer], of: str = "") -> dict[str, float]:
    """``bleu`` and ``chrf``, both from 0 to 100, of a whole corpus, which is not the mean over its sentences; of none nothing."""
    if not said:
        return {}
    answers, references = [each.answer for each in said], [[each.reference for each in said]]
    return {f"{name}{of}": metric.corpus_score(answers, references).score for name, metric in _metrics().items()}


def signature() -> str:
    """How BLEU and chrF are counted, as sacrebleu asks to be cited."""
    found = _metrics()
    for metric in found.values():
        metric.corpus_score(["a"], [["a"]])  # which tells the number of references
    return ", ".join(f"{name} {metric.get_signature()}" for name, metric in found.items())


def _metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}
