"""The published means of ten American vowels, and a survey of synthetic speakers drawn around them.

Nothing here is a recording: the means are those of Peterson & Barney (1952, table II), the spreads
are what their survey shows, and the speakers are invented.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

FORMANTS = ("f0", "f1", "f2", "f3")
WORDS = {
    "i": "heed",
    "I": "hid",
    "E": "head",
    "{": "had",
    "A": "hod",
    "O": "hawed",
    "U": "hood",
    "u": "who'd",
    "V": "hud",
    "3'": "heard",
}  # the vowels in X-SAMPA, and the words that the speakers read
# Table II, in Hz: for each group of speakers F0, F1, F2 and F3 of the vowels in the order of WORDS.
MEANS = {
    "m": (
        (136, 135, 130, 127, 124, 129, 137, 141, 130, 133),
        (270, 390, 530, 660, 730, 570, 440, 300, 640, 490),
        (2290, 1990, 1840, 1720, 1090, 840, 1020, 870, 1190, 1350),
        (3010, 2550, 2480, 2410, 2440, 2410, 2240, 2240, 2390, 1690),
    ),
    "w": (
        (235, 232, 223, 210, 212, 216, 232, 231, 221, 218),
        (310, 430, 610, 860, 850, 590, 470, 370, 760, 500),
        (2790, 2480, 2330, 2050, 1220, 920, 1160, 950, 1400, 1640),
        (3310, 3070, 2990, 2850, 2810, 2710, 2680, 2670, 2780, 1960),
    ),
    "c": (
        (272, 269, 260, 251, 256, 263, 276, 274, 261, 261),
        (370, 530, 690, 1010, 1030, 680, 560, 430, 850, 560),
        (3200, 2730, 2610, 2320, 1370, 1060, 1410, 1170, 1590, 1820),
        (3730, 3600, 3570, 3320, 3170, 3180, 3310, 3260, 3360, 2160),
    ),
}
SPEAKERS = {"m": 33, "w": 28, "c": 15}  # men, women and children of the survey
REPETITIONS = 2
# Standard deviations of F0 to F3 in log Hz around a group's mean, as the survey's rows have them: of a speaker's
# voice, of a vowel in that voice, of a repetition.
VOICE = np.array([0.113, 0.064, 0.052, 0.048])
VOWEL = np.array([0.024, 0.089, 0.080, 0.053])
REPETITION = np.array([0.056, 0.068, 0.048, 0.036])


def survey(seed: int) -> pd.DataFrame:
    """As many rows as the survey has, in its columns: type, speaker, vowel, repetition, f0 to f3 in whole Hz.

    The formants vary independently of each other, where a real vocal tract moves them together.
    """
    draw = np.random.default_rng([seed, 1952])
    groups = [group for group, count in SPEAKERS.items() for _ in range(count)]
    shape = (len(groups), len(WORDS), REPETITIONS, len(FORMANTS))  # (S, V, 2, 4)
    mean = np.log([np.transpose(MEANS[group]) for group in groups])[:, :, None]  # (S, V, 1, 4)
    voice = VOICE * draw.standard_normal((shape[0], 1, 1, shape[3]))
    vowel = VOWEL * draw.standard_normal((shape[0], shape[1], 1, shape[3]))
    hertz = np.exp(mean + voice + vowel + REPETITION * draw.standard_normal(shape)).round()
    speaker, spoken, repetition = (axis.ravel() for axis in np.indices(shape[:3]))
    names = list(WORDS)
    table = {
        "type": [groups[s] for s in speaker],
        "speaker": [str(s + 1) for s in speaker],
        "vowel": [names[v] for v in spoken],
        "repetition": repetition + 1.0,
    }
    return pd.DataFrame({**table, **dict(zip(FORMANTS, hertz.reshape(-1, shape[3]).T, strict=True))})
