"""Synthetic voices are what they say, spectra show them, speakers are kept for Meta-pi, and recordings are read."""

import math
import wave
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from moecli.errors import DataError, UsageError
from moecli.tasks import synthesiser
from moecli.tasks.recordings import log_mel, mel_filters, middle, pcm, read_wav
from moecli.tasks.speakers import Speakers, expression
from moecli.tasks.synthesiser import BLEND, RATE, SIXTH, Voice, drawn, pulses, resonated, voices
from moecli.tasks.task import SPLITS


@pytest.fixture(scope="module")
def task():
    return Speakers()


@pytest.fixture(scope="module")
def few():
    return Speakers(tokens=20)


def numbers(voice):
    return np.concatenate([np.ravel(getattr(voice, f.name)) for f in fields(Voice)])


def test_two_women_four_men_and_the_sixth_is_a_convex_combination_of_the_other_men():
    named = voices()
    assert [name.split()[0] for name in named] == ["woman"] * 2 + ["man"] * 4
    assert set(BLEND) == {"man 1", "man 2", "man 3"} and sum(BLEND.values()) == pytest.approx(1)
    assert min(BLEND.values()) > 0
    mixed = sum(share * numbers(named[name]) for name, share in BLEND.items())
    assert numbers(named[SIXTH]) == pytest.approx(mixed)
    assert numbers(named["man 2"]) != pytest.approx(mixed)


@pytest.mark.parametrize("frequency", [500.0, 1200.0, 2500.0])
def test_a_resonator_peaks_at_its_frequency_and_has_gain_one_at_zero(frequency):
    impulse = np.zeros((1, 4096))
    impulse[0, 0] = 1
    answer = resonated(impulse, np.full_like(impulse, frequency), np.array([80.0]))
    power = np.abs(np.fft.rfft(answer[0]))
    assert np.fft.rfftfreq(4096, 1 / RATE)[power.argmax()] == pytest.approx(frequency, abs=5)
    assert power[0] == pytest.approx(1, abs=1e-6) and power.max() > 5


def test_pulses_come_at_the_pitch():
    time = np.zeros((3, synthesiser.SAMPLES))
    pitch = np.array([100.0, 150.0, 240.0])
    expected = pitch * synthesiser.SAMPLES / RATE
    assert pulses(pitch, time).sum(1) == pytest.approx(expected, abs=1)


def test_formants_begin_at_the_locus_and_end_at_the_vowel():
    said = drawn(5, 0.0, np.random.default_rng(0))
    vowel, near = said.vowel[:, 1], synthesiser.NEARNESS
    locus = (said.onset[:, 1] - (1 - near) * vowel) / near
    for number, voice in enumerate(voices().values()):
        for phone in range(3):
            here = (said.speaker == number) & (said.phone == phone)
            assert here.sum() == 5 and locus[here] == pytest.approx(voice.locus[phone])
    assert np.ptp(said.onset[said.phone == 1, 1]) > 100  # the place itself depends on vowel and voice


def test_a_mel_filter_answers_its_own_tone():
    filters = mel_filters(160, RATE, 16)
    assert filters.shape == (16, 81) and filters.sum(1) == pytest.approx(1)
    centres = (filters * np.fft.rfftfreq(160, 1 / RATE)).sum(1)
    assert (np.diff(centres) > 0).all()
    t = np.arange(1280) / RATE
    tones = np.stack([np.sin(2 * np.pi * f * t) for f in (300, 1000, 3000)])
    spectra = log_mel(tones, RATE, 16)
    assert spectra.shape == (3, 15, 16)
    assert [abs(centres[b] - f) < 250 for b, f in zip(spectra.mean(1).argmax(1), (300, 1000, 3000), strict=True)] == [
        True
    ] * 3
    assert log_mel(5 * tones, RATE, 16) == pytest.approx(spectra)  # loudness is taken out


def test_sizes_labels_and_words(task):
    assert task.sizes == {"train": 936, "valid": 216, "test": 288} and (task.dim, task.out) == (16, 3)
    assert task.batch("test", torch.arange(7)).x.shape == (7, 15, 16)
    assert "item rank 2" in task.gives and "vectors" not in task.gives
    for name, values in task.label_names.items():
        for part in SPLITS:  # every speaker says everything in every part
            assert task.splits[part].labels[name].unique().tolist() == list(range(len(values)))
    assert task.label_names["phone"] == ["b", "d", "g"] and len(task.label_names["speaker"]) == 6
    assert task.splits["train"].x.mean((0, 1)).abs().max() < 1e-4
    assert "synthetic" in task.facts()[0].value


def test_flat_is_the_same_in_a_row(few):
    flat = Speakers(tokens=20, flat=True)
    assert torch.equal(flat.splits["test"].x, few.splits["test"].x.flatten(1))
    assert "vectors" in flat.gives and flat.dim == 240 == len(flat.feature_names)
    assert flat.feature_names[17] == "frame 2, band 2"


def test_one_speaker_keeps_the_split_and_the_units(few):
    for number, name in enumerate(few.label_names["speaker"]):
        if number in (0, 3):
            one = Speakers(tokens=20, only=name)
            for part in SPLITS:
                mine = few.splits[part].labels["speaker"] == number
                assert torch.equal(one.splits[part].x, few.splits[part].x[mine]) and 0 < mine.sum() < len(mine)
            assert one.label_names == few.label_names
    with pytest.raises(UsageError, match=r"task\.only=man 7: no such speaker\. Use one of man 1"):
        Speakers(only="man 7", tokens=10)


def test_batches_are_a_pure_function_of_seed_and_step(few):
    same, another = Speakers(tokens=20), Speakers(tokens=20, split_seed=1)
    one, again, other = few.train_batch(9, 32, 0), same.train_batch(9, 32, 0), few.train_batch(9, 32, 1)
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)
    assert few.fingerprint == same.fingerprint != another.fingerprint


def test_other_mens_voices_serve_the_sixth_and_the_womens_do_not(task):
    """What the Meta-pi network rests on: a linear classifier of one speaker at work on another."""
    train, test = (task.splits[part] for part in ("train", "test"))

    def fit(speakers):
        mine = torch.isin(train.labels["speaker"], torch.tensor(speakers))
        return LogisticRegression(C=0.01, max_iter=300).fit(train.x[mine].flatten(1), train.target[mine])

    def score(model, speaker):
        his = test.labels["speaker"] == speaker
        return model.score(test.x[his].flatten(1), test.target[his])

    men = [task.label_names["speaker"].index(f"man {n}") for n in (1, 2, 3)]
    women = [task.label_names["speaker"].index(f"woman {n}") for n in (1, 2)]
    sixth = task.label_names["speaker"].index(SIXTH)
    assert score(fit(men), sixth) > 0.9 > 0.85 > score(fit(women), sixth)
    assert np.mean([score(fit([own]), own) for own in (*men, *women)]) > 0.9


# -- recordings ---------------------------------------------------------------------------------------


def saved(file, sound, rate=8000, width=2, channels=1):
    file.parent.mkdir(parents=True, exist_ok=True)
    octets = (np.asarray(sound) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    data = octets.view(np.uint8).reshape(-1, 4)[:, :width]
    with wave.open(str(file), "wb") as out:
        out.setparams((channels, width, rate, 0, "NONE", ""))
        out.writeframes(np.repeat(data, channels, axis=0).tobytes())
    return file


def tone(frequency, seconds=0.3, rate=8000):
    return 0.5 * np.sin(2 * math.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Low and high tones by two speakers, eight each."""
    for speaker in ("ann", "bob"):
        for phone, pitch in (("b", 400), ("d", 2000)):
            for take in range(8):
                saved(
                    tmp_path / "wav" / f"{speaker}_{phone}_{take}.wav",
                    tone(pitch + 20 * take + 10 * (speaker == "bob")),
                )
    return tmp_path / "wav"


@pytest.mark.parametrize("width", [2, 3, 4])
def test_wav_samples_come_back(width, tmp_path):
    sound = tone(440)
    for channels in (1, 2):
        read, rate = read_wav(saved(tmp_path / "a.wav", sound, 16000, width, channels))
        assert rate == 16000 and read == pytest.approx(sound, abs=1e-4)
    assert pcm(bytes([128, 255, 0]), 1) == pytest.approx([0, 127 / 128, -1])


def test_the_middle_is_cut_or_padded():
    assert middle(np.arange(10.0), 4).tolist() == [3, 4, 5, 6]
    assert middle(np.arange(1.0, 3), 5).tolist() == [0, 1, 2, 0, 0]


def test_a_folder_is_read_by_its_names_or_by_a_table(folder, tmp_path):
    by_name = Speakers(str(folder))
    assert by_name.label_names == {"phone": ["b", "d"], "speaker": ["ann", "bob"]}
    assert sum(by_name.sizes.values()) == 32 and by_name.splits["train"].x.shape[1:] == (15, 16)
    rows = "".join(f"{f.name},{f.name[4]},{f.name[:3]}\n" for f in sorted(folder.iterdir()))
    (tmp_path / "labels.csv").write_text("file,phone,speaker\n" + rows)
    assert Speakers(str(folder), labels=str(tmp_path / "labels.csv")).fingerprint == by_name.fingerprint
    row, names = by_name.new_rows(folder / "bob_d_3.wav")
    everything = torch.cat([by_name.splits[part].x for part in SPLITS])
    assert names == {"file": ["bob_d_3.wav"]} and (everything == row).all((1, 2)).sum() == 1


def test_patterns():
    match = expression("{speaker}/{phone}_*.wav").fullmatch("ann/b_12.WAV")
    assert match and match.groupdict() == {"speaker": "ann", "phone": "b"}
    assert not expression("{speaker}_{phone}.wav").fullmatch("ann_b_x.wav")
    with pytest.raises(UsageError, match=r"task\.pattern="):
        expression("{speaker}.wav")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: saved(f / "noise.wav", tone(1)), ["does not fit task.pattern"]),
        (lambda f: (f / "ann_b_9.wav").write_bytes(b"RIFF"), ["no WAV file"]),
        (lambda f: saved(f / "ann_b_9.wav", np.zeros(4000)), ["no sound"]),
        (lambda f: saved(f / "ann_b_9.wav", tone(400), rate=4000), ["sampling rate too low", "4000"]),
        (lambda f: [file.unlink() for file in f.glob("*_d_*")], ["one phone only"]),
        (lambda f: [file.unlink() for file in f.glob("*_[1-9].wav")], ["too few recordings"]),
        (lambda f: [file.unlink() for file in f.glob("*")], ["no recordings"]),
    ],
)
def test_what_is_wrong_with_recordings_is_one_line(spoil, words, folder):
    spoil(folder)
    with pytest.raises(DataError) as caught:
        Speakers(str(folder))
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in [*words, "wav"])


def test_labels_need_recordings():
    with pytest.raises(UsageError, match=r"task\.labels"):
        Speakers(labels="labels.csv")
