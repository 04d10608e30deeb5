"""Sound as the time-delay networks of 1989 saw it: log-mel spectra of frames 10 ms apart, from samples or WAV files."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

from moecli.errors import DataError
from moecli.tasks.files import read_bytes

Array = np.ndarray

WINDOW, STEP = 0.020, 0.010  # s
TOP = 4000.0  # Hz, the highest band's upper end
FLOOR = 1e-4  # of the power in a band, where the whole sound has mean square one


def log_mel(sound: Array, rate: int, bands: int) -> Array:
    """Samples (N, S) -> log power (N, T, bands), T whole windows of 20 ms every 10 ms; loudness is taken out."""
    size, step = round(WINDOW * rate), round(STEP * rate)
    sound = sound / (np.sqrt(np.square(sound).mean(1, keepdims=True)) + 1e-12)
    frames = np.lib.stride_tricks.sliding_window_view(sound, size, axis=1)[:, ::step]  # (N, T, size)
    power = np.square(np.abs(np.fft.rfft(frames * np.hamming(size), axis=-1))) / size
    return np.log(power @ mel_filters(size, rate, bands).T + FLOOR).round(3)  # so that every machine has the same bits


def mel_filters(size: int, rate: int, bands: int) -> Array:
    """Triangles over the bins of a Fourier transform, evenly spaced in mel up to 4 kHz, each of sum one: (bands, F)."""
    edges = 700 * (10 ** (np.linspace(0, mel(TOP), bands + 2) / 2595) - 1)  # Hz
    bins = np.fft.rfftfreq(size, 1 / rate)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangle = np.minimum(rising, falling).clip(0)
    narrow = triangle.sum(1) == 0  # a band that falls between two bins takes the nearest
    triangle[narrow, np.abs(bins - middle[narrow]).argmin(1)] = 1.0
    return triangle / triangle.sum(1, keepdims=True)


def mel(hertz: float) -> float:
    return 2595 * float(np.log10(1 + hertz / 700))


def spectrum(file: Path, frames: int, bands: int) -> Array:
    """The middle of a WAV file, silence around one that is too short: (frames, bands).  Raises DataError."""
    sound, rate = read_wav(file)
    length = round(WINDOW * rate) + (frames - 1) * round(STEP * rate)
    return log_mel(middle(sound, length)[None], rate, bands)[0]


def middle(sound: Array, length: int) -> Array:
    """(S,) -> (length,): cut, or with zeros, evenly on both sides."""
    missing = max(length - len(sound), 0)
    sound = np.pad(sound, (missing // 2, missing - missing // 2))
    start = (len(sound) - length) // 2
    return sound[start : start + length]


def read_wav(file: Path) -> tuple[Array, int]:
    """Samples in -1..1 (S,), channels averaged, and their rate.  Raises DataError for what is no plain PCM sound."""
    raw = read_bytes(file)
    try:
        with wave.open(io.BytesIO(raw)) as sound:
            rate, width, channels = sound.getframerate(), sound.getsampwidth(), sound.getnchannels()
            data = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"no WAV file ({file}): {error or 'it ends early'}. Save it as PCM, 8 to 32 bits") from error
    if rate < 2 * TOP:
        why = f"{rate} samples a second hold no sound up to {TOP:g} Hz"
        raise DataError(f"sampling rate too low ({file}): {why}. Record at 8000 or more")
    samples = pcm(data, width)
    if not len(samples) or not samples.any():
        raise DataError(f"no sound ({file}): every sample is zero, or there is none. Leave the file out")
    return samples[: len(samples) // channels * channels].reshape(-1, channels).mean(1), rate


def pcm(data: bytes, width: int) -> Array:
    """Little-endian integers of ``width`` bytes -> -1..1; those of one byte have their zero at 128."""
    octets = np.frombuffer(data[: len(data) // width * width], np.uint8).reshape(-1, width)
    if width == 1:
        return (octets[:, 0] - 128.0) / 128
    wide = np.zeros((len(octets), 4), np.uint8)
    wide[:, 4 - width :] = octets  # the most significant bytes come last
    return wide.view("<i4")[:, 0] / 2.0**31
