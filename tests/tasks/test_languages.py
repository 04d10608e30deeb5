"""Planted languages: each token is of the language it is labelled with, and each language follows its own chain."""

import math

import pytest
import torch

from moecli.errors import DataError
from moecli.tasks.languages import Languages, letters
from moecli.tasks.task import SPLITS


def whole(task):
    """All documents: ids, next ids and languages, (M, T) each."""
    parts = [task.batch(split, torch.arange(task.sizes[split])) for split in SPLITS]
    return (torch.cat([getattr(part, field) for part in parts]) for field in ("x", "target")), torch.cat(
        [part.labels["language"] for part in parts]
    )


@pytest.mark.parametrize("stretches", [1, 3, 99])
def test_no_word_belongs_to_two_languages_and_stretches_lie_where_they_should(stretches):
    task = Languages(languages=3, words=5, documents=200, context=17, stretches=stretches)
    (ids, following), language = whole(task)
    assert ids.shape == following.shape == language.shape == (200, 17)
    assert torch.equal(ids // 5, language) and torch.equal(ids[:, 1:], following[:, :-1])
    switches = (language[:, 1:] != language[:, :-1]).any(0).nonzero()[:, 0] + 1
    begins = {-(-18 * s // stretches) for s in range(stretches)}  # the least place p with p * stretches // 18 = s
    assert set(switches.tolist()) == {place for place in begins if 0 < place < 17}
    assert len(ids.unique()) == 15, "every word is used"


def test_each_language_follows_its_chain():
    task = Languages(languages=2, words=3, documents=3000, context=20)
    (ids, following), _ = whole(task)
    for word in range(6):
        seen = following[ids == word] % 3
        share = seen.bincount(minlength=3) / len(seen)
        assert (share - task.chain[word]).abs().max() < 4 * (0.25 / len(seen)) ** 0.5
    assert (task.chain - 1 / 3).abs().max() > 0.2  # and no chain is a uniform one


@pytest.mark.parametrize("stretches", [1, 4])
def test_no_guess_is_better_than_the_chain_on_average(stretches):
    task = Languages(documents=2000, stretches=stretches)
    chance = task.chance("test")["nll"]
    assert task.floor("test") < chance < math.log(task.out) + 0.05
    chain = task.chain.double()
    entropy = -(chain * chain.log()).sum(-1)
    assert entropy.min() < task.floor("test")
    if stretches == 1:
        assert task.floor("test") < entropy.max()


def test_it_is_the_same_again_and_another_with_another_seed():
    one, same, other = Languages(), Languages(), Languages(split_seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(one.train_batch(3, 8, 0).x, same.train_batch(3, 8, 0).x)
    assert not torch.equal(one.train_batch(3, 8, 0).x, one.train_batch(3, 8, 1).x)


def test_every_token_has_a_number_of_its_own():
    task = Languages(documents=50, context=7)
    rows = torch.cat([task.batch(split, torch.arange(task.sizes[split])).row for split in SPLITS])
    assert sorted((rows[:, None] + torch.arange(7)).flatten().tolist()) == list(range(50 * 7))


def test_new_documents_are_words_of_the_languages(tmp_path):
    task = Languages(languages=2, words=2, context=3)
    file = tmp_path / "a.txt"
    file.write_text("a0 a1 b0\nb1 a0 a0 b0")
    x, given = task.new_rows(file)
    assert x.tolist() == [[0, 1, 2], [3, 0, 0]] and given == {"word": ["a0", "a1", "b0", "b1", "a0", "a0"]}
    for text, needle in (("a0 a1 c0", "'c0'"), ("a0 a1", "2 words")):
        file.write_text(text)
        with pytest.raises(DataError, match=needle):
            task.new_rows(file)


def test_names_of_languages():
    assert [letters(number) for number in (0, 25, 26, 27, 701, 702)] == ["a", "z", "aa", "ab", "zz", "aaa"]
