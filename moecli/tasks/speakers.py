"""Which of /b d g/ a speaker said, from log-mel spectra: six synthetic voices, or a user's recordings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.tasks import synthesiser
from moecli.tasks.files import shown, user_path
from moecli.tasks.frames import listed, read_table, refuse_missing, require_columns, texts
from moecli.tasks.kinds import Classification
from moecli.tasks.recordings import log_mel, spectrum
from moecli.tasks.task import SPLITS, Fact, InMemory, Split, generator
from moecli.types import NonNegativeFloat, PositiveInt, Seed, SeveralRows

FRAMES = 15  # 10 ms apart, as in Waibel et al. (1989)
SPREAD = 0.06  # of everything that a voice does, around its own numbers
HELD_OUT = {"test": 0.2, "valid": 0.15}


class Speakers(InMemory):
    """Spectra (N, 15, bands), or (N, 15 bands) where ``flat``, standardised by band; labels phone and speaker.

    Every speaker's recordings of every phone are split, so all speakers are in all parts.  ``only`` keeps
    one speaker's rows of that same split, in the same units: what a module that is trained on one speaker
    (Hampshire & Waibel, 1992) reads.  A folder of WAV files needs ``labels``, a table with the columns
    file, phone and speaker, or names that fit ``pattern``.  Raises DataError for what cannot be read.
    """

    fitted = True

    def __init__(
        self,
        path: str | None = None,
        labels: str | None = None,
        pattern: str = "{speaker}_{phone}_*.wav",
        tokens: SeveralRows = 80,
        noise: NonNegativeFloat = 0.1,
        bands: PositiveInt = 16,
        flat: bool = False,
        only: str | None = None,
        split_seed: Seed = 0,
    ):
        if labels is not None and path is None:
            raise UsageError(
                "labels without recordings (task.labels): there is no task.path. Name the folder of WAV files"
            )
        self.path, self.bands, self.flat = path, bands, flat
        data = synthetic(tokens, noise, bands, split_seed) if path is None else recorded(path, labels, pattern, bands)
        phones, phone = np.unique(data.phone, return_inverse=True)
        speakers, speaker = np.unique(data.speaker, return_inverse=True)
        _refuse_few_phones(phones, data.source)
        codes = {"phone": torch.from_numpy(phone), "speaker": torch.from_numpy(speaker)}
        parts = split_cells(codes["phone"] * len(speakers) + codes["speaker"], split_seed, data.source)
        train = data.spectra[parts["train"].numpy()]
        self.center, self.scale = train.mean((0, 1)), train.std((0, 1)).clip(1e-6)
        x = self._encode(data.spectra)
        if only is not None:
            kept = codes["speaker"] == _number(only, speakers.tolist())
            parts = {name: part[kept[part]] for name, part in parts.items()}
        self.feature_names = self._names()
        names = {"phone": phones.tolist(), "speaker": speakers.tolist()}
        splits = {
            part: Split(x[i], codes["phone"][i], {label: code[i] for label, code in codes.items()})
            for part, i in parts.items()
        }
        self.adopt(splits, Classification(tuple(names["phone"])), names)

    def _encode(self, spectra: np.ndarray) -> Tensor:  # (N, T, bands) -> the same, or (N, T bands), float32
        x = torch.from_numpy((spectra - self.center) / self.scale).float()
        return x.flatten(1) if self.flat else x

    def _names(self) -> list[str]:
        names = [f"band {band + 1}" for band in range(self.bands)]
        return [f"frame {frame + 1}, {name}" for frame in range(FRAMES) for name in names] if self.flat else names

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """One WAV file as one row."""
        return self._encode(spectrum(file, FRAMES, self.bands)[None]), {"file": [file.name]}

    def facts(self) -> list[Fact]:
        shares = " + ".join(f"{share:g} {name}" for name, share in synthesiser.BLEND.items())
        origin = f"synthetic voices from a formant synthesiser; {synthesiser.SIXTH} is {shares}; task.path=FOLDER takes yours"
        return [
            Fact("data", origin if self.path is None else str(user_path(self.path))),
            Fact("items", f"{FRAMES} frames of 20 ms, 10 ms apart, by {self.bands} mel bands{', flat' * self.flat}"),
            *super().facts(),
        ]


@dataclass(frozen=True)
class Data:
    """Recordings of all speakers, before any split."""

    spectra: np.ndarray  # (N, T, bands)
    phone: Sequence[str]
    speaker: Sequence[str]
    source: str


def synthetic(tokens: int, noise: float, bands: int, seed: int) -> Data:
    """``tokens`` of each phone by each voice, with white noise of deviation ``noise`` beside sound of deviation 1."""
    draw = np.random.default_rng([seed, 1989])
    said = synthesiser.drawn(tokens, SPREAD, draw)
    sound = synthesiser.spoken(said, draw)
    sound = sound + noise * draw.standard_normal(sound.shape)
    spectra = log_mel(sound, synthesiser.RATE, bands)
    names = list(synthesiser.voices())
    phone = [synthesiser.PHONES[number] for number in said.phone]
    return Data(spectra, phone, [names[number] for number in said.speaker], "synthetic")


def recorded(path: str, labels: str | None, pattern: str, bands: int) -> Data:
    """A folder's WAV files with what was said and by whom."""
    root = user_path(path)
    if not root.is_dir():
        raise DataError(f"cannot read recordings ({root}): it is no folder. Name a folder of WAV files")
    named = _by_table(root, labels) if labels is not None else _by_name(root, pattern)
    spectra = np.stack([spectrum(file, FRAMES, bands) for file, _, _ in named])
    return Data(spectra, [phone for _, phone, _ in named], [speaker for *_, speaker in named], str(root))


def _by_table(root: Path, labels: str) -> list[tuple[Path, str, str]]:
    frame = read_table(labels)
    columns = ["file", "phone", "speaker"]
    require_columns(frame, columns)
    refuse_missing(frame[columns], "fill them")
    files, phones, speakers = (texts(frame[name]) for name in columns)
    return [(root / file, phone, speaker) for file, phone, speaker in zip(files, phones, speakers, strict=True)]


def _by_name(root: Path, pattern: str) -> list[tuple[Path, str, str]]:
    """Every WAV file of the folder; its place below the folder must fit the pattern."""
    form = expression(pattern)
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() == ".wav")
    if not files:
        raise DataError(f"no recordings ({root}): there is no .wav file in it. Name a folder of WAV files")
    found = [(file, form.fullmatch(file.relative_to(root).as_posix())) for file in files]
    for file, match in found:
        if match is None:
            why = f"its name does not fit task.pattern={pattern}"
            raise DataError(f"recording without labels ({file}): {why}. Rename it, or give task.labels=TABLE")
    return [(file, match["phone"], match["speaker"]) for file, match in found if match]


def expression(pattern: str) -> re.Pattern[str]:
    """``{speaker}/{phone}_*.wav`` -> a regular expression with these groups.  Raises UsageError where one lacks."""
    if any(pattern.count(f"{{{name}}}") != 1 for name in ("phone", "speaker")):
        why = "it must hold {phone} and {speaker} once each"
        raise UsageError(f"task.pattern={pattern}: {why}. Write for example {{speaker}}_{{phone}}_*.wav")
    text = re.escape(pattern).replace(r"\*", ".*")
    for name in ("phone", "speaker"):
        text = text.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>[^_/]+)")
    return re.compile(text, re.IGNORECASE)


def split_cells(cell: Tensor, seed: int, source: str) -> dict[str, Tensor]:
    """Rows (n,) of each part in row order, the same shares of each cell.  Raises DataError where a part stays empty."""
    shuffled = torch.randperm(len(cell), generator=generator(seed))
    parts: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    for number in cell.unique():
        rows = shuffled[cell[shuffled] == number]
        counts = [round(len(rows) * share) for share in HELD_OUT.values()]
        held = rows.split([*counts, len(rows) - sum(counts)])
        for name, part in zip([*HELD_OUT, "train"], held, strict=True):
            parts[name].append(part)
    whole = {name: torch.cat(part).sort().values for name, part in parts.items()}
    if not all(len(part) for part in whole.values()):
        why = "the recordings of each phone by each speaker are split, and leave a part empty"
        raise DataError(f"too few recordings ({source}): {why}. Give at least 4 of one")
    return whole


def _refuse_few_phones(phones: np.ndarray, source: str) -> None:
    if len(phones) < 2:
        raise DataError(f"one phone only ({source}): every recording is {shown(phones[0])}. Add recordings of another")


def _number(only: str, speakers: list[str]) -> int:
    if only not in speakers:
        raise UsageError(f"task.only={only}: no such speaker. Use one of {listed(speakers)}")
    return speakers.index(only)
