"""Vowels: the published means, speakers kept apart, and the survey's file read as it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moecli.errors import DataError
from moecli.tasks.formants import FORMANTS, MEANS, REPETITION, SPEAKERS, VOICE, VOWEL, WORDS, survey
from moecli.tasks.task import SPLITS, three_way
from moecli.tasks.vowels import Vowels

SURVEY = Path(__file__).resolve().parents[3] / "shared/data/peterson_barney_1952.csv"
real = pytest.mark.skipif(not SURVEY.exists(), reason=f"{SURVEY} is not here: the survey itself is no part of moecli")


@pytest.fixture
def file(tmp_path):
    """A survey as the published file has it, as csv."""
    path = tmp_path / "survey.csv"
    survey(3).to_csv(path, index=False)
    return str(path)


@real
def test_the_means_are_those_of_the_survey():
    frame = pd.read_csv(SURVEY)
    found = frame.groupby(["type", "vowel"])[list(FORMANTS)].mean()
    compared = 0
    for group, table in MEANS.items():
        for vowel, means in zip(WORDS, np.transpose(table), strict=True):
            assert found.loc[(group, vowel)].to_numpy() == pytest.approx(means, rel=0.035), (group, vowel)
            compared += 1
    assert compared == 30
    assert found.loc[("m", "i"), "f1"] != pytest.approx(MEANS["m"][1][1], rel=0.035)  # another vowel's mean


def spreads(frame):
    """Deviations of log Hz, each (4,): of speakers, of vowels within a speaker, of repetitions (nested variances)."""
    log = np.log(frame[list(FORMANTS)])
    centred = log - log.groupby([frame.type, frame.vowel]).transform("mean")
    vowel = centred.groupby([frame.speaker, frame.vowel]).mean()  # (760, 4) of two repetitions each
    voice = vowel.groupby(level=0).mean()  # (76, 4) of ten vowels each
    token = 2 * (centred - centred.groupby([frame.speaker, frame.vowel]).transform("mean")).pow(2).mean()
    interaction = (vowel - voice.reindex(vowel.index, level=0)).pow(2).mean() * 10 / 9 - token / 2
    between = voice.pow(2).mean() * 76 / 73 - interaction / 10 - token / 20
    return tuple(np.sqrt(part.to_numpy()) for part in (between, interaction, token))


@real
def test_the_spreads_are_those_of_the_survey():
    for found, planted in zip(spreads(pd.read_csv(SURVEY)), (VOICE, VOWEL, REPETITION), strict=True):
        assert found == pytest.approx(planted, rel=0.1)


def test_the_synthetic_survey_has_the_planted_statistics():
    frame = survey(0)
    assert len(frame) == 1520 and frame.groupby("type").speaker.nunique().to_dict() == SPEAKERS
    several = np.mean([spreads(survey(seed)) for seed in range(6)], axis=0)
    for found, planted in zip(several, (VOICE, VOWEL, REPETITION), strict=True):
        assert found == pytest.approx(planted, rel=0.15)
    means = np.exp(np.log(frame[frame.type == "m"][list(FORMANTS)]).groupby(frame.vowel).mean())
    expected = pd.DataFrame(np.transpose(MEANS["m"]), index=list(WORDS), columns=list(FORMANTS))
    assert means.to_numpy() == pytest.approx(expected.loc[means.index].to_numpy(), rel=0.1)
    assert not frame.equals(survey(1)) and frame.equals(survey(0))


@pytest.mark.parametrize("seed", [0, 1])
def test_no_speaker_is_in_two_parts_and_1991_has_its_sizes(seed):
    task = Vowels(valid_speakers=1, split_seed=seed)
    speakers = [set(task.splits[name].labels["speaker"].tolist()) for name in SPLITS]
    assert [len(part) for part in speakers] == [50, 1, 25]
    assert not set.intersection(*speakers) and len(set.union(*speakers)) == 76
    assert task.sizes == {"train": 400, "valid": 8, "test": 200}  # four vowels, twice each
    everyone = torch.cat([task.splits[name].labels["speaker"] for name in SPLITS])
    rows = three_way(len(everyone), seed)  # a split of rows would put nearly everyone on both sides
    assert len(set(everyone[rows["train"]].tolist()) & set(everyone[rows["test"]].tolist())) > 50


@pytest.mark.parametrize(
    ("vowels", "formants", "classes", "dim"), [("four", "f1_f2", 4, 2), ("ten", "f0_to_f3", 10, 4)]
)
def test_labels_sizes_and_scale(vowels, formants, classes, dim):
    task = Vowels(vowels=vowels, formants=formants)
    train = task.splits["train"]
    assert (task.out, task.dim) == (classes, dim) and len(task.feature_names) == dim
    assert {name: len(values) for name, values in task.label_names.items()} == {
        "vowel": classes, "speaker": 76, "group": 3
    }  # fmt: skip
    for name, values in task.label_names.items():
        used = torch.cat([task.splits[part].labels[name] for part in SPLITS]).unique()
        assert used.tolist() == list(range(len(values)))
    assert torch.equal(train.target, train.labels["vowel"])
    assert train.x.mean(0).abs().max() < 1e-5 and train.x.std(0, correction=0) == pytest.approx(1, abs=1e-5)
    assert task.chance("test")["accuracy"] == pytest.approx(1 / classes)
    facts = {fact.name: fact.value for fact in task.facts()}
    assert "synthetic" in facts["data"]


def test_labels_agree_with_the_rows_they_came_from(file):
    """A man's F2 in 'heed' is far above his 'hod', and children's are above men's."""
    task = Vowels(file, formants="f0_to_f3")
    part = task.splits["train"]
    heed, man = (task.label_names[n].index(v) for n, v in (("vowel", "heed"), ("group", "man")))
    f2, men = part.x[:, 2], part.labels["group"] == man
    assert (
        f2[men & (part.target == heed)].min() > f2[men & (part.target == task.label_names["vowel"].index("hod"))].max()
    )
    child = part.labels["group"] == task.label_names["group"].index("child")
    assert f2[child & (part.target == heed)].mean() > f2[men & (part.target == heed)].mean() + 0.5
    assert (part.x[child, 0].mean() > part.x[men, 0].mean() + 1.5).item()


def test_a_file_and_new_rows_are_read_in_the_same_units(file):
    task, frame = Vowels(file), pd.read_csv(file)
    rows, _ = task.new_rows(Path(file))
    kept = torch.from_numpy(frame["vowel"].isin(["i", "I", "A", "V"]).to_numpy(copy=True))
    both = torch.cat([task.splits[name].x for name in SPLITS])
    assert sorted(rows[kept].tolist()) == sorted(both.tolist())
    assert "synthetic" not in {fact.value for fact in task.facts()}
    assert task.fingerprint == Vowels(file).fingerprint != Vowels(file, split_seed=1).fingerprint


@real
def test_the_survey_itself_is_read():
    task = Vowels(str(SURVEY), vowels="ten", formants="f0_to_f3", valid_speakers=1)
    assert task.sizes == {"train": 1000, "valid": 20, "test": 500}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="speaker"), ["no such column", "'speaker'"]),
        (lambda f: f.assign(f1="x"), ["text among numbers", "column 'f1'"]),
        (lambda f: f.assign(f1=[None, *f.f1[1:]]), ["missing values", "row 1"]),
        (lambda f: f.assign(vowel="a"), ["no rows", "task.vowels=ten"]),
        (lambda f: f[f.speaker.isin(["1", "2", "3"])], ["too few speakers", "3 speakers"]),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(change, words, tmp_path):
    path = tmp_path / "bad.csv"
    change(survey(0)).to_csv(path, index=False)
    with pytest.raises(DataError) as caught:
        Vowels(str(path))
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in [*words, "bad.csv"])
