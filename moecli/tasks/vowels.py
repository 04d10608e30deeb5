"""Vowels by their formants: Peterson & Barney's survey by path, or a synthetic one from its published means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.tasks.files import user_path
from moecli.tasks.formants import FORMANTS, WORDS, survey
from moecli.tasks.frames import finite_numbers, located, normal, read_table, refuse_missing, require_columns, texts
from moecli.tasks.table import fit_classes, fit_column, group_numbers
from moecli.tasks.task import SPLITS, Fact, InMemory, Split, generator
from moecli.tasks.toys import square_grid
from moecli.types import PositiveInt, Seed

FOUR = ("i", "I", "A", "V")  # Jacobs et al. (1991): heed against hid, and hod against hud
GROUPS = {"m": "man", "w": "woman", "c": "child"}
COLUMNS = ["type", "speaker", "vowel"]


class Vowels(InMemory):
    """Which vowel was spoken, from its formants: (N, 2) or (N, 4), standardised by training rows.

    Speakers are split, not rows: a third of them test and ``valid_speakers`` validate, so that
    ``valid_speakers=1`` leaves of the survey's 76 the 50 for training that Jacobs et al. (1991) had.
    A file needs the columns type (m, w, c), speaker, vowel and f0 to f3.  Raises DataError where it has
    too few speakers, or what ``table`` refuses.
    """

    fitted = True

    def __init__(
        self,
        path: str | None = None,
        vowels: Literal["four", "ten"] = "four",
        formants: Literal["f1_f2", "f0_to_f3"] = "f1_f2",
        valid_speakers: PositiveInt = 8,
        split_seed: Seed = 0,
    ):
        self.path = path
        self.feature_names = list(FORMANTS if formants == "f0_to_f3" else FORMANTS[1:3])
        frame = self._spoken(_synthetic(split_seed) if path is None else located(path), vowels)
        speaker = group_numbers(frame["speaker"])
        parts = split_speakers(torch.from_numpy(speaker), valid_speakers, split_seed, self._source)
        train = parts["train"].numpy()
        self.columns = [fit_column(frame[name], train, standardize=True) for name in self.feature_names]
        fitted = fit_classes(frame[["vowel"]], parts["train"], standardize=True)
        x, document = self._features(frame), torch.from_numpy(speaker)
        codes = {"vowel": fitted.target, "speaker": document}
        names = {"vowel": fitted.label_names["class"], "speaker": _in_order(frame["speaker"])}
        names["group"] = _in_order(frame["type"])
        codes["group"] = torch.from_numpy(group_numbers(frame["type"]))
        splits = {
            part: Split(x[i], fitted.target[i], {label: code[i] for label, code in codes.items()}, document[i])
            for part, i in parts.items()
        }
        self.adopt(splits, fitted.kind, names)

    @property
    def _source(self) -> str:
        return "synthetic" if self.path is None else str(user_path(self.path))

    def _spoken(self, frame: pd.DataFrame, vowels: str) -> pd.DataFrame:
        """The rows of the vowels asked for, in words that are easier to read than phonetic signs."""
        require_columns(frame, [*COLUMNS, *self.feature_names])
        frame = frame[[*COLUMNS, *self.feature_names]]
        refuse_missing(frame, "fill them, or leave their rows out")
        frame = frame.assign(**{name: finite_numbers(frame[name]) for name in self.feature_names})
        if vowels == "four":
            frame = frame[frame["vowel"].isin(FOUR)]
        if not len(frame):
            why = f"its column 'vowel' holds none of {', '.join(FOUR)}"
            raise DataError(f"no rows ({self._source}): {why}. Use task.vowels=ten, which takes all")
        words = [WORDS.get(sign, sign) for sign in texts(frame["vowel"])]
        return frame.assign(vowel=words, type=[GROUPS.get(group, group) for group in texts(frame["type"])])

    def _features(self, frame: pd.DataFrame) -> Tensor:  # -> (n, D) float32
        encoded = [column.encode(frame[column.name]) for column in self.columns]
        return torch.from_numpy(np.concatenate(encoded, axis=1)).clone()

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        frame = read_table(file)
        require_columns(frame, self.feature_names)
        frame = normal(frame[self.feature_names])
        refuse_missing(frame, "fill them")
        return self._features(frame), {}

    def grid(self) -> Tensor | None:
        return square_grid(2.8) if self.dim == 2 else None

    def facts(self) -> list[Fact]:
        origin = "synthetic: invented speakers around the means of Peterson & Barney (1952); task.path=FILE takes yours"
        speakers = ", ".join(f"{len(part.document.unique())} {name}" for name, part in self.splits.items())
        return [
            Fact("data", origin if self.path is None else self._source),
            Fact("speakers", f"{speakers}; no speaker is in two parts"),
            *super().facts(),
        ]


def _synthetic(seed: int) -> pd.DataFrame:
    frame = normal(survey(seed))
    frame.index = pd.MultiIndex.from_product([["the synthetic survey"], range(1, len(frame) + 1)])
    return frame


def _in_order(cells: pd.Series) -> list[str]:
    """The names behind ``group_numbers``."""
    return sorted(set(texts(cells)))


def split_speakers(speaker: Tensor, num_valid: int, seed: int, source: str) -> dict[str, Tensor]:
    """Rows (n,) of each part in row order; every speaker is in one part.  Raises DataError for too few speakers."""
    count = int(speaker.max()) + 1
    num_test = count // 3
    if num_test < 1 or count - num_test - num_valid < 1:
        why = f"of {count} speakers a third test and {num_valid} validate, which leaves none to some part"
        raise DataError(f"too few speakers ({source}): {why}. Give more, or lower task.valid_speakers")
    shuffled = torch.randperm(count, generator=generator(seed))
    parts = shuffled.split([count - num_test - num_valid, num_valid, num_test])
    return {name: torch.isin(speaker, part).nonzero()[:, 0] for name, part in zip(SPLITS, parts, strict=True)}
