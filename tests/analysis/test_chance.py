"""Chance permutes documents: its interval holds 95 %, and a null that permutes tokens does not."""

import numpy as np
import pytest

from moecli.analysis import chance, contingency, specialisation
from moecli.analysis.chance import DRAWS, Documents, against, num_draws, permuted_sums
from moecli.analysis.specialisation import AGREEMENT, OF_VOCABULARY, agreement

WORLDS = 400


def world(seed, num_labels=2, documents=30, tokens=20, experts=4, lengths=None):
    """(first expert, label, document): documents have their own taste for experts, labels have none."""
    draw = np.random.default_rng(seed)
    label = draw.permutation(np.arange(documents) % num_labels)
    length = np.full(documents, tokens) if lengths is None else draw.integers(*lengths, documents)
    taste = draw.dirichlet(np.full(experts, 0.3), documents).cumsum(1)
    document = np.repeat(np.arange(documents), length)
    first = (draw.random(len(document))[:, None] > taste[document]).sum(1).clip(max=experts - 1)
    return first, label[document], document


def inside(found):
    return found.chance_low - chance.TIE <= found.value <= found.chance_high + chance.TIE


def covered(measures, unit=None, worlds=WORLDS, **kind):
    """{measure: share of worlds whose value lies in the interval}; ``unit`` names what is permuted instead of documents."""
    hits = dict.fromkeys(measures, 0)
    for seed in range(worlds):
        first, label, document = world(seed, **kind)
        unit_of = document if unit is None else unit(document)
        found = agreement(first, {"domain": label}, {"domain": measures}, unit_of, seed=seed)
        for name in measures:
            hits[name] += inside(found["domain", name])
    return {name: hit / worlds for name, hit in hits.items()}


def test_the_interval_covers_where_documents_have_taste_and_domains_have_none(monkeypatch):
    monkeypatch.setattr(chance, "WORK", 199 * 200)
    measures = {name: AGREEMENT[name] for name in ("nmi", "mutual_information", "ari", "purity")}
    shares = covered(measures)
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_a_null_that_permutes_tokens_does_not_cover(monkeypatch):
    monkeypatch.setattr(chance, "WORK", 199 * 200)
    shares = covered({"nmi": contingency.nmi}, unit=lambda document: np.arange(len(document)), worlds=100)
    assert shares["nmi"] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"lengths": (5, 60)}, {"num_labels": 5, "documents": 60, "experts": 8}])
def test_the_interval_covers_in_many_worlds(kind, monkeypatch):
    monkeypatch.setattr(chance, "WORK", 199 * 500)
    shares = covered({name: AGREEMENT[name] for name in ("nmi", "ari")}, worlds=2000, **kind)
    assert all(0.94 <= share <= 0.98 for share in shares.values()), shares  # rescaled labels: at most too wide


def test_experts_that_follow_the_domain_are_above_chance():
    first, label, document = world(0)
    first = np.where(np.random.default_rng(1).random(len(first)) < 0.6, label, first)
    found = agreement(first, {"domain": label}, {"domain": AGREEMENT}, document)
    assert all(found["domain", name].p <= 0.01 for name in ("nmi", "ari", "purity", "mutual_information"))
    assert found["domain", "nmi"].value > found["domain", "nmi"].chance_high


def test_the_interval_is_of_order_statistics():
    null = np.random.default_rng(0).permutation(39) * 1.0  # 39 draws: the smallest and the largest
    found = against(38.0, null)
    assert (found.chance_low, found.chance_high, found.p) == (0.0, 38.0, 2 / 40)
    found = against(-1.0, np.arange(199.0), less=True)
    assert (found.chance_low, found.chance_high, found.p) == (4.0, 194.0, 1 / 200)
    assert np.isnan(against(1.0, np.empty(0)).p)
    assert all((draws + 1) % 40 == 0 for draws in DRAWS)
    assert num_draws(1) == DRAWS[-1] and num_draws(1e12) == DRAWS[0]


def test_sums_of_permuted_documents_are_those_of_shuffling_one_by_one():
    counts, label = np.array([[3, 0, 1], [0, 2, 2], [1, 1, 1]])[np.arange(12) % 3], np.arange(12) // 5
    fast = np.concatenate(list(permuted_sums(counts, label, 3)))
    draw = np.random.default_rng(1)
    orders = (draw.permutation(label) for _ in range(2000))
    slow = np.array([[counts[order == value].sum(0) for value in range(3)] for order in orders])
    assert (fast.sum(1) == counts.sum(0)).all() and fast.shape[1:] == slow.shape[1:]
    assert np.abs(fast.mean(0) - slow.mean(0)).max() < 0.3 and np.abs(fast.std(0) / slow.std(0) - 1).max() < 0.12
    assert np.abs(fast.std(0)[:, ::-1] / slow.std(0) - 1).max() > 0.12  # another table's spread is told apart


def test_an_exchange_gives_each_document_one_other_documents_labels_in_their_order():
    document = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
    documents = Documents.of(document)
    assert documents.length.tolist() == [4, 2, 4]
    draw = np.random.default_rng(0)
    for _ in range(50):
        index = documents.exchanged(draw)
        source = document[documents.order][index]
        for begin, length in zip(documents.begin, documents.length, strict=True):
            part, of = index[begin : begin + length], source[begin]
            assert (source[begin : begin + length] == of).all()
            step = (np.diff(part) - 1) % documents.length[of]  # on to the next place, and round the end
            assert (step == 0).all()
        assert sorted(source[documents.begin]) == [0, 1, 2]


def test_a_label_that_is_the_same_in_every_document_has_a_chance_level_too():
    """Position: exchanged documents alone would leave it where it is, were they not turned."""
    document, position = np.repeat(np.arange(40), 16), np.tile(np.arange(16) // 4, 40)
    draw = np.random.default_rng(0)
    unrelated = draw.integers(0, 4, len(position))
    for first, related in ((unrelated, False), (np.where(draw.random(640) < 0.4, position, unrelated), True)):
        found = agreement(first, {"position": position}, {"position": AGREEMENT}, document)["position", "nmi"]
        assert (found.value > found.chance_high) == related and found.chance_high > found.chance_low


def test_labels_that_are_fixed_within_documents_or_not_meet_the_same_null():
    """Equal documents: counting by document once, and exchanging token by token, give the same interval."""
    first, label, document = world(5, documents=60)
    documents, nulls = Documents.of(document), {}
    for name in ("_permuted", "_exchanged"):
        arguments = (label,) if name == "_permuted" else ({"": label},)
        sizes = (2,) if name == "_permuted" else ({"": 2},)
        stacks = getattr(chance, name)(first, *arguments, *sizes, 4, documents, 0)
        tables = np.concatenate([stack if name == "_permuted" else stack[1] for stack in stacks])
        nulls[name] = contingency.nmi(tables)
    low, high = (np.quantile(null, (0.1, 0.9)) for null in nulls.values())
    assert np.allclose(low, high, rtol=0.25)
    by_token = np.concatenate([s for s in chance._permuted(first, label, 2, 4, Documents.of(np.arange(len(first))), 0)])
    assert contingency.nmi(by_token).mean() < 0.3 * nulls["_permuted"].mean()


def test_labels_stay_as_frequent_as_they_are_where_documents_differ_in_length():
    first, label, document = world(4, lengths=(2, 90))
    found = agreement(first, {"domain": label}, {"domain": AGREEMENT}, document)["domain", "purity"]
    assert found.chance_low >= np.bincount(label).max() / len(label) - 1e-9  # no table's purity is below that


def test_padding_counts_nowhere():
    first, label, document = world(2)
    padded = [np.concatenate([a, np.full(50, fill)]) for a, fill in ((first, 1), (label, -1), (document, 3))]
    plain = agreement(first, {"domain": label}, {"domain": AGREEMENT}, document, 4)
    with_padding = agreement(padded[0], {"domain": padded[1]}, {"domain": AGREEMENT}, padded[2], 4)
    for name in AGREEMENT:
        assert with_padding["domain", name].value == plain["domain", name].value
    unserved = np.concatenate([first, np.full(50, -1)])
    assert (
        agreement(unserved, {"d": np.concatenate([label, label[:50]])}, {"d": AGREEMENT}, padded[2], 4)["d", "nmi"]
        == plain["domain", "nmi"]
    )


def test_too_few_documents_have_no_chance_level():
    first, label, document = world(0, documents=7)
    found = agreement(first, {"domain": label}, {"domain": AGREEMENT}, document)["domain", "nmi"]
    assert found.value > 0 and np.isnan([found.chance, found.chance_low, found.chance_high, found.p]).all()


def test_a_vocabulary_is_read_by_what_fits_it():
    draw = np.random.default_rng(0)
    ids, document = draw.integers(0, 20, 2000), np.repeat(np.arange(20), 100)
    found = agreement(ids % 4, {"id": ids}, {"id": OF_VOCABULARY}, document)
    assert found["id", "vocabulary_specialisation"].value == 1.0
    assert found["id", "vocabulary_specialisation"].chance_high < 0.6
    assert specialisation.nmi_against_chance(ids % 4, ids, document).value == found["id", "nmi"].value
