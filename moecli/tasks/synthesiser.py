"""Six synthetic voices that say /b d g/ before five vowels: glottal pulses and noise through formant resonators.

The synthesiser is Klatt's (1980) in small: a train of pulses through a cascade of resonators, beside it
a burst of noise through one of its own.  What makes the consonant is where the formants come from
(Delattre, Liberman & Cooper, 1955): each place of articulation has a locus that they leave at the
release.  All utterances are computed at once, sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray

RATE = 8000  # samples a second
SAMPLES = 1280  # 160 ms: 15 frames of 20 ms, 10 ms apart
PHONES = ("b", "d", "g")
# F1 to F3 in Hz of the Japanese vowels a i u e o, in a male voice of scale one.
VOWELS = np.array([(750, 1200, 2500), (290, 2250, 2950), (330, 1300, 2300), (460, 1950, 2550), (480, 850, 2450)])
NEARNESS = 0.6  # how far the formants have come at the release, from the vowel to the locus
F4 = 3500.0


@dataclass(frozen=True)
class Voice:
    """A speaker, in Hz and ms.  Two voices blend by a weighted mean of all their numbers."""

    pitch: float
    scale: tuple[float, ...]  # of F1, F2, F3 against a male voice of scale one
    bandwidth: tuple[float, ...]  # of F1 to F4
    locus: tuple[float, ...]  # F2 at the release of b, d, g, then F3
    burst: tuple[float, ...]  # centre of the noise at the release of b, d, g
    tilt: float  # 0..1: how much the pulses are smoothed
    transition: float  # time constant of the formants' way to the vowel


VOICES = {
    "woman 1": Voice(
        215, (1.18, 1.17, 1.15), (70, 90, 130, 200), (1000, 2050, 2500, 2650, 3150, 2700), (900, 3600, 2500), 0.85, 16
    ),
    "woman 2": Voice(
        240, (1.25, 1.2, 1.18), (90, 110, 150, 220), (1350, 2350, 1950, 2750, 3200, 3000), (1300, 3300, 1900), 0.7, 24
    ),
    "man 1": Voice(
        105, (0.92, 0.93, 0.95), (50, 70, 110, 180), (750, 1550, 2150, 2150, 2650, 2200), (600, 2900, 1800), 0.9, 18
    ),
    "man 2": Voice(
        125, (1.0, 1.02, 1.0), (60, 90, 120, 180), (1150, 1900, 1500, 2350, 2750, 2100), (1000, 3300, 1400), 0.8, 26
    ),
    "man 3": Voice(
        145, (1.08, 1.05, 1.03), (70, 80, 140, 200), (900, 2250, 1800, 2250, 2500, 2450), (700, 2500, 2100), 0.75, 14
    ),
}
BLEND = {"man 1": 0.4, "man 2": 0.3, "man 3": 0.3}  # what the sixth speaker is made of
SIXTH = "man 4"


def blended(shares: dict[str, float]) -> Voice:
    """The convex combination of voices: each number the weighted mean of theirs."""
    weight = np.array(list(shares.values()))
    mixed = {f.name: weight @ np.array([getattr(VOICES[name], f.name) for name in shares]) for f in fields(Voice)}
    plain: dict[str, Any] = {n: tuple(v.tolist()) if np.ndim(v) else float(v) for n, v in mixed.items()}
    return Voice(**plain)


def voices() -> dict[str, Voice]:
    return {**VOICES, SIXTH: blended(BLEND)}


@dataclass(frozen=True)
class Utterances:
    """What is to be said: a row each, numbers drawn around the speaker's own."""

    phone: Array  # (N,) an index into PHONES
    speaker: Array  # (N,) an index into voices()
    release: Array  # (N,) s, when the closure ends
    pitch: Array  # (N,) Hz
    vowel: Array  # (N, 3) Hz, F1 to F3
    onset: Array  # (N, 3) Hz, where they stand at the release
    burst: Array  # (N,) Hz
    transition: Array  # (N,) s
    tilt: Array  # (N,)
    bandwidth: Array  # (N, 4) Hz


def drawn(tokens: int, spread: float, draw: np.random.Generator) -> Utterances:
    """``tokens`` of each phone by each speaker; ``spread`` is the deviation of every number, as a share of it."""
    speakers = list(voices().values())
    speaker, phone, token = (axis.ravel() for axis in np.indices((len(speakers), len(PHONES), tokens)))
    table = {f.name: np.array([getattr(v, f.name) for v in speakers])[speaker] for f in fields(Voice)}

    def around(value: Array) -> Array:
        return value * np.exp(spread * draw.standard_normal(value.shape))

    each = np.arange(len(phone))
    vowel = around(VOWELS[token % len(VOWELS)] * table["scale"])
    locus = table["locus"].reshape(-1, 2, len(PHONES))[each, :, phone]  # (N, 2) of F2 and F3
    locus = np.concatenate([np.full((len(phone), 1), 200.0), around(locus)], axis=1)  # F1 is low at every closure
    return Utterances(
        phone=phone,
        speaker=speaker,
        release=0.045 + 0.012 * draw.uniform(-1, 1, len(phone)),
        pitch=around(table["pitch"]),
        vowel=vowel,
        onset=vowel + NEARNESS * (locus - vowel),
        burst=around(table["burst"][each, phone]),
        transition=around(table["transition"]) / 1000,
        tilt=table["tilt"],
        bandwidth=around(table["bandwidth"]),
    )


def spoken(what: Utterances, draw: np.random.Generator) -> Array:
    """Utterances -> sound (N, SAMPLES), each of mean square one."""
    time = np.arange(SAMPLES) / RATE - what.release[:, None]  # (N, S), 0 at the release
    left = np.exp(-time.clip(0) / what.transition[:, None])[..., None]  # (N, S, 1) of the way to the vowel
    formants = what.vowel[:, None] + (what.onset - what.vowel)[:, None] * left  # (N, S, 3)
    formants = np.concatenate([formants, np.full((*time.shape, 1), F4)], axis=-1)
    opened = np.where(time < 0, 0.05, 0.2 + 0.8 * (time / 0.015).clip(0, 1))  # a weak voice bar, then the vowel
    sound = smoothed(pulses(what.pitch, time) * opened, what.tilt)
    for number in range(formants.shape[-1]):
        sound = resonated(sound, formants[..., number], what.bandwidth[:, number])
    noise = draw.standard_normal(time.shape) * ((time >= 0) & (time < 0.012))
    hiss = resonated(noise, np.broadcast_to(what.burst[:, None], time.shape), 0.25 * what.burst)
    hiss *= 0.25 * _size(sound) / _size(hiss)
    return (sound + hiss) / _size(sound + hiss)


def pulses(pitch: Array, time: Array) -> Array:
    """One impulse at the start of each glottal cycle; the pitch falls by a tenth along the way: (N, S)."""
    phase = (pitch[:, None] * np.linspace(1.05, 0.95, time.shape[1]) / RATE).cumsum(1)
    return np.diff(np.floor(phase), axis=1, prepend=0.0)


def smoothed(x: Array, tilt: Array) -> Array:
    """One pole at ``tilt`` (N,): the higher, the darker the voice."""
    y = np.zeros_like(x)
    y[:, 0] = x[:, 0]
    for t in range(1, x.shape[1]):
        y[:, t] = x[:, t] + tilt * y[:, t - 1]
    return y


def resonated(x: Array, frequency: Array, bandwidth: Array) -> Array:
    """Klatt's resonator: y_t = a x_t + b y_{t-1} + c y_{t-2}, gain one at 0 Hz; x, frequency (N, S), bandwidth (N,)."""
    radius = np.exp(-np.pi * bandwidth / RATE)[:, None]
    b, c = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -(radius**2)
    drive = ((1 - b - c) * x).T.copy()  # time first: each step reads one row
    b, c = b.T.copy(), c[:, 0]
    y = np.zeros_like(drive)
    y[0] = drive[0]
    y[1] = drive[1] + b[1] * y[0]
    for t in range(2, len(y)):
        y[t] = drive[t] + b[t] * y[t - 1] + c * y[t - 2]
    return y.T


def _size(sound: Array) -> Array:  # (N, S) -> (N, 1)
    return np.sqrt(np.square(sound).mean(1, keepdims=True)) + 1e-12
