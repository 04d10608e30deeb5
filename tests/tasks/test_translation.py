"""Parallel texts in every form are the same pairs, none in two parts; what is wrong with one is one line."""

from __future__ import annotations

import gzip
import random
import sys

import pytest
import torch

from moecli.config import compose
from moecli.errors import DataError, EnvironmentFailure, MoeError, UsageError
from moecli.record.trace import TraceReader
from moecli.report.page.examples import SIGNS, Inputs
from moecli.run import Place, assemble, evaluate_loaded, load, predictions, train_built, writer
from moecli.tasks.task import SPLITS
from moecli.tasks.translation import BEGIN, END, Translation
from moecli.tasks.translation_files import read_aligned, read_table
from moecli.tasks.translation_parts import three_parts

pytest.importorskip("sacrebleu")

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs", "ten": "zehn"}
DRAW = random.Random(0)
ENGLISH = [" ".join(DRAW.choices(list(WORDS), k=DRAW.randint(1, 6))) + f" {number}" for number in range(60)]
GERMAN = [" ".join(WORDS.get(word, word) for word in line.split()) for line in ENGLISH]
FRENCH = [line.upper() for line in ENGLISH]
TEXTS = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH}


def write(file, lines, packed=False, end="\n"):
    raw = "".join(line + end for line in lines).encode()
    file.with_name(file.name + ".gz" * packed).write_bytes(gzip.compress(raw) if packed else raw)


def aligned(folder, stem="corpus", languages=("en", "de"), lines=slice(None), packed=False):
    for language in languages:
        write(folder / f"{stem}.{language}", TEXTS[language][lines], packed)
    return folder


def parted(folder):
    for stem, lines in (("train", slice(40)), ("val", slice(40, 50)), ("test_2016_flickr", slice(50, 60))):
        aligned(folder, stem, TEXTS, lines, packed=stem != "val")
    return folder


def table(folder, name="corpus.tsv", packed=False):
    write(
        folder / name,
        ["\t".join(row) for row in [("de", "en", "fr"), *zip(GERMAN, ENGLISH, FRENCH, strict=True)]],
        packed,
    )
    return folder / (name + ".gz" * packed)


def hub(folder, joint=True):
    """A data set as ``datasets`` saves it, with a column ``translation`` or one a language."""
    datasets = pytest.importorskip("datasets")
    rows = [dict(zip(TEXTS, texts, strict=True)) for texts in zip(*TEXTS.values(), strict=True)]
    table = datasets.Dataset.from_list([{"id": 1, "translation": row} for row in rows] if joint else rows)
    table.save_to_disk(str(folder / "hub"))
    return f"hub:{folder / 'hub'}"


def task(path, target="de", **options):
    return Translation(str(path), target_language=target, **{"tokens": "bytes", "max_length": 60, **options})


def every(task):
    return sorted(pair for part in task.splits.values() for pair in part.pairs)


def words(task, ids):
    return task.encoding.decode(ids.tolist())


# What a pair becomes


def test_what_is_given_stands_before_the_bar_and_what_is_said_behind_it(tmp_path):
    found = task(aligned(tmp_path))
    batch = found.batch("train", torch.arange(found.sizes["train"]))
    x, target, source = batch.x, batch.target, found.source
    assert x.dtype == target.dtype == torch.int64 and x.shape == (len(target), source + target.shape[1])
    for row, pair in enumerate(found.splits["train"].pairs):
        given, read, said = x[row, :source], x[row, source:], target[row]
        assert words(found, given) == pair.source and words(found, said) == words(found, read) == pair.target
        length = len(pair.target.encode()) + 1
        assert (
            read[0] == BEGIN and said[length - 1] == END and (said[length:] == -1).all() and (read[length:] == -1).all()
        )
        assert torch.equal(read[1:length], said[: length - 1])
        assert (given[: source - len(pair.source)] == -1).all() and (given[source - len(pair.source) :] >= 0).all()
    assert ((x < 0).sum() > 0) and batch.labels["side"][0].tolist() == [0] * source + [1] * target.shape[1]


def test_several_languages_are_told_by_a_tag_before_the_source(tmp_path):
    found = task(aligned(tmp_path, languages=TEXTS), None)
    assert found.languages == found.label_names["language"] == ["de", "fr"]
    batch = found.batch("test", torch.arange(found.sizes["test"]))
    tags = [found.encoding.symbols[x[x >= 0][0]] for x in batch.x]
    assert tags == [f"<{pair.language}>" for pair in found.splits["test"].pairs] and set(tags) == {"<de>", "<fr>"}
    assert [found.languages[i] for i in batch.labels["language"]] == [
        pair.language for pair in found.splits["test"].pairs
    ]
    alone = task(tmp_path, "fr")
    assert "language" not in alone.label_names and "<fr>" not in alone.encoding.symbols


def test_every_pair_comes_once_an_epoch_with_others_of_its_length(tmp_path):
    found = task(aligned(tmp_path))
    batches = [found.train_batch(step, 8, 0) for step in range(6)]
    rows = torch.cat([batch.row for batch in batches])
    assert len(batches[0].x) == 8 and len(rows.unique()) == 48 == found.sizes["train"]
    padding = sum((batch.target < 0).sum() for batch in batches) / sum(batch.target.numel() for batch in batches)
    drawn = found.batch("train", torch.arange(48))
    assert padding < 0.5 * (drawn.target < 0).float().mean()
    again = task(tmp_path)
    assert torch.equal(found.train_batch(9, 8, 5).x, again.train_batch(9, 8, 5).x)
    assert not torch.equal(batches[0].row, found.train_batch(0, 8, 1).row)
    assert len(found.train_batch(0, 1000, 0).x) == 48  # a batch of all and more is all


def test_long_pairs_are_left_out_of_training_and_cut_elsewhere(tmp_path):
    found = task(parted(tmp_path), max_length=24)
    fits = [len(e) <= 24 and len(g.encode()) < 24 for e, g in zip(ENGLISH, GERMAN, strict=True)]
    assert 0 < sum(fits[:40]) < 40 and found.sizes == {"train": sum(fits[:40]), "valid": 10, "test": 10}
    assert 0 < found.cut == 20 - sum(fits[40:]) and found.source <= 24
    assert all((found.splits[split].target >= 0).sum(1).max() <= 24 for split in SPLITS)
    said = {fact.name: fact.value for fact in found.facts()}
    assert f"{40 - sum(fits[:40])} of training with more than 24 tokens" in said["left out"]
    assert said["cut"].startswith(f"{found.cut} of the evaluated") and said["pairs"].startswith(
        "40 train, 10 valid, 10 test"
    )


def test_chance_is_the_unigram_of_what_is_said(tmp_path):
    found = task(aligned(tmp_path))
    train, test = (found.splits[split].target for split in ("train", "test"))
    count = train[train >= 0].long().bincount(minlength=found.out).double() + 1
    expected = -(count / count.sum()).log()[test[test >= 0].long()].mean().item()
    assert found.chance("test")["nll"] == pytest.approx(expected)


def test_new_lines_are_sources_for_every_language(tmp_path):
    found = task(aligned(tmp_path, languages=TEXTS), None)
    write(tmp_path / "new.txt", ["one two", "six"])
    x, given = found.new_rows(tmp_path / "new.txt")
    assert given == {"source": ["one two", "one two", "six", "six"], "language": ["de", "fr"] * 2}
    assert x.shape == (4, found.source) and [words(found, row) for row in x] == given["source"]


# In words


def oracle(found, split, spoil=0):
    """Writes the translations that the data has, the first ``spoil`` of them as nothing but their end."""
    rows = iter([*[[END]] * spoil, *[row[row >= 0].tolist() for row in found.splits[split].target][spoil:]])

    def write(source, begin, end, most):
        assert (begin, end) == (BEGIN, END) and source.shape[1] == found.source
        said = [next(rows) for _ in source]
        assert max(map(len, said)) <= most
        return torch.tensor([ids + [7] * (most - len(ids)) for ids in said])  # whatever stands behind an end

    return write


def test_true_translations_score_100_and_others_less(tmp_path):
    found = task(parted(tmp_path), ["de", "fr"], max_length=80)
    answers = found.answers(oracle(found, "test"), "test")
    names = {f"{score}{of}" for score in ("bleu", "chrf") for of in ("", "_de", "_fr")}
    assert answers.metrics.keys() == names and all(value == pytest.approx(100) for value in answers.metrics.values())
    assert [(a.given, a.answer, a.language) for a in answers.said] == [
        tuple(pair) for pair in found.splits["test"].pairs
    ]
    spoilt = found.answers(oracle(found, "test", spoil=10), "test").metrics  # the German half
    assert spoilt["bleu_de"] < 1 and spoilt["bleu_fr"] == pytest.approx(100) and 1 < spoilt["bleu"] < 99


def test_scores_are_those_of_sacrebleu(tmp_path):
    from sacrebleu import corpus_bleu, corpus_chrf

    found = task(parted(tmp_path))
    answers = found.answers(oracle(found, "test", spoil=3), "test")
    hypotheses, references = [each.answer for each in answers.said], [[each.reference for each in answers.said]]
    assert answers.metrics["bleu"] == pytest.approx(corpus_bleu(hypotheses, references).score)
    assert answers.metrics["chrf"] == pytest.approx(corpus_chrf(hypotheses, references).score)
    assert 0 < answers.metrics["bleu"] < 100


TINY = [
    "task=translation", "task.tokens=bytes", "task.target_language=de", "task.max_length=40", "model=seq2seq", "model.dim=8",
    "model.heads=2", "model.depth=1", "model.every=1", "model.hidden=8", "num_experts=2", "expert.hidden=8", "threads=1",
    "trainer.batch_size=8", "trainer.steps=2",
]  # fmt: skip


def fit(folder, *words):
    built = assemble(compose([*TINY, f"task.path={aligned(folder)}", *words]))
    return train_built(built, Place(folder / "runs", pictures=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return fit(folder)


def test_a_run_ends_with_its_answers_and_their_scores(trained):
    metrics = trained.summary["metrics"]
    assert {"test/bleu", "test/chrf", "test/nll", "valid/nll"} <= metrics.keys() and "valid/bleu" not in metrics
    assert trained.summary["chance"]["test/nll"] > 0 and 0 <= metrics["test/bleu"] <= 100
    given, *rows = [line.split("\t") for line in (trained.path / "answers.tsv").read_text().splitlines()]
    assert given == ["given", "answer", "reference", "language"] and {(r[0], r[2], r[3]) for r in rows} <= {
        (e, g, "de") for e, g in zip(ENGLISH, GERMAN, strict=True)
    }
    assert len(rows) == 6 and [row["layer"] for row in trained.summary["layers"]] == ["encoder0", "decoder0"]


def test_a_page_shows_each_token_in_its_own_pair(trained):
    """The trace counts sequences in the order of evaluation, and the page reads the same number from the task."""
    found, show = load(trained.path).task, Inputs().of(trained)
    tokens = TraceReader(trained.path).tokens("decoder0", "test")
    assert not isinstance(show, str) and len(tokens["id"]) > 20
    for sequence, position, index in zip(tokens["sequence"], tokens["position"], tokens["id"], strict=True):
        shown = show(int(sequence), int(position))
        assert shown.mark == SIGNS.get(found.kind.symbols[index], found.kind.symbols[index])
    ends = {sequence: position for sequence, position in zip(tokens["sequence"], tokens["position"], strict=True)}
    assert len(ends) == 6 and all(show(int(sequence), int(end)).after == "" for sequence, end in ends.items())


def test_eval_repeats_the_scores_and_shows_some_answers(trained, capsys):
    from moecli.cli import eval as command

    found = evaluate_loaded(load(trained.path), "test")
    assert found["metrics"]["bleu"] == trained.summary["metrics"]["test/bleu"]
    assert found["metrics"]["nll"] == pytest.approx(trained.summary["metrics"]["test/nll"])
    assert len(found["answers"]) == 4 and not found["no_answers"]
    command._print(found)
    shown = capsys.readouterr().out
    assert all(f" given      {each['given']}\n" in shown and each["reference"] in shown for each in found["answers"])


def test_new_lines_are_translated(trained, tmp_path):
    write(tmp_path / "new.txt", ENGLISH[:3])
    frame = predictions(load(trained.path), tmp_path / "new.txt")
    assert list(frame.columns) == ["source", "language", "answer"] and list(frame["source"]) == ENGLISH[:3]
    assert all(isinstance(answer, str) for answer in frame["answer"])


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_models_that_read_from_left_to_right_translate_too(model, tmp_path):
    plain = ["model.heads", "model.hidden"] if model == "lstm" else []
    words = [word for word in TINY if word.split("=")[0] not in plain]
    built = assemble(compose([*words, f"model={model}", "model.depth=2", f"task.path={aligned(tmp_path)}"]))
    answers = built.task.answers(writer(built.model, built.device), "test")
    assert {"bleu", "chrf"} == answers.metrics.keys() and len(answers.said) == built.task.sizes["test"] == 6


def test_any_router_may_read_the_source(tmp_path):
    words = [*TINY, "+model.layers.encoder0.router=expert_choice", f"task.path={aligned(tmp_path)}"]
    built = assemble(compose(words))
    assert built.task.answers(writer(built.model, built.device), "test").said and not built.warnings


def test_a_router_that_must_see_whole_texts_has_no_answers_and_says_so(tmp_path):
    capacity = ["k=1", "renormalize=false", "eval_capacity_factor=1.0"]
    words = [f"+model.layers.decoder0.router.{word}" for word in capacity]
    run = fit(tmp_path, *words, "trainer.steps=1")
    assert "test/bleu" not in run.summary["metrics"] and not (run.path / "answers.tsv").exists()
    assert any("decoder0" in text and "capacity" in text for text in run.info["warnings"])


# Forms


FORMS = {
    "folder": lambda f: aligned(f, languages=TEXTS),
    "folder, packed": lambda f: aligned(f, languages=TEXTS, packed=True),
    "prefix": lambda f: aligned(aligned(f, languages=TEXTS), "other", TEXTS, slice(5)) / "corpus",
    "folder with another file": lambda f: write(f / "README.md", ["A corpus."]) or aligned(f, languages=TEXTS),
    "hub, joint": hub,
    "hub, columns": lambda f: hub(f, joint=False),
    "table": table,
    "table, packed": lambda f: table(f, packed=True),
    "lines end as on Windows": lambda f: (
        [write(f / f"a.{k}", lines, end="\r\n") for k, lines in TEXTS.items()] and f / "a"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs(form, tmp_path):
    found = task(FORMS[form](tmp_path))
    assert every(found) == sorted((e, g, "de") for e, g in zip(ENGLISH, GERMAN, strict=True))
    assert found.sizes == {"train": 48, "valid": 6, "test": 6}


def test_parts_of_the_data_stay_its_parts(tmp_path):
    found = task(parted(tmp_path))
    for split, lines in (("train", slice(40)), ("valid", slice(40, 50)), ("test", slice(50, 60))):
        assert [pair.source for pair in found.splits[split].pairs] == ENGLISH[lines]
    for file in tmp_path.glob("val.*"):
        file.unlink()
    parts = three_parts(read_aligned(tmp_path, "en", ["de"]), 0, "here")
    assert [len(parts[split]) for split in SPLITS] == [36, 4, 10] and {p.source for p in parts["test"]} == {
        *ENGLISH[50:]
    }


def test_no_source_is_in_two_parts(tmp_path):
    write(tmp_path / "a.en", ENGLISH * 2), write(tmp_path / "a.de", [*GERMAN, *FRENCH])
    found, again, other = (task(tmp_path / "a", split_seed=seed) for seed in (0, 0, 1))
    sources = [{pair.source for pair in found.splits[split].pairs} for split in SPLITS]
    assert [len(each) for each in sources] == [48, 6, 6] and len(set.union(*sources)) == 60
    assert found.fingerprint == again.fingerprint != other.fingerprint
    assert found.fingerprint != task(tmp_path / "a", tokens="characters").fingerprint  # the same ids mean other things


def test_empty_lines_are_left_out_and_counted(tmp_path):
    rows = zip(["", " ", *ENGLISH[2:]], [*GERMAN[:4], "", *GERMAN[5:]], strict=True)
    source, target = zip(*rows, strict=True)
    write(tmp_path / "a.en", source), write(tmp_path / "a.de", target)
    found = task(tmp_path / "a")
    assert len(every(found)) == 57 and {fact.name: fact.value for fact in found.facts()}["left out"].startswith(
        "3 pairs"
    )


def test_at_most_so_many_of_each_language(tmp_path):
    found = task(parted(tmp_path), ["de", "fr"], max_pairs=10, eval_pairs=8, max_length=80)
    assert found.sizes == {"train": 20, "valid": 8, "test": 8} and found.counts == {
        "train": 20,
        "valid": 20,
        "test": 20,
    }
    assert {pair.language for pair in found.splits["test"].pairs} == {"de", "fr"}  # spread over all of it


def test_a_test_that_training_knows_is_said_to_be(tmp_path):
    for stem in ("train", "val", "test"):
        aligned(tmp_path, stem, lines=slice(20 if stem == "test" else 60))
    assert {fact.name: fact.value for fact in task(tmp_path).facts()}["known sources"].startswith("20 of the test's")


# CLDR's names


@pytest.fixture(scope="module")
def names():
    pytest.importorskip("babel")
    return Translation(target_language=["de", "cs", "lag"], tokens="characters")


def test_names_of_cldr(names):
    pairs = every(names)
    assert ("Switzerland", "Schweiz", "de") in pairs and ("Czech", "čeština", "cs") in pairs
    assert ("Swiss Franc", "Schweizer Franken", "de") in pairs and len(pairs) == len(set(pairs)) > 2500
    sources = [{pair.source for pair in names.splits[split].pairs} for split in SPLITS]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]


def test_a_language_with_few_names_is_low_resource(names):
    trained = {name: sum(p.language == name for p in names.splits["train"].pairs) for name in names.languages}
    assert trained["lag"] < 400 < min(trained["de"], trained["cs"])
    batch = names.batch("test", torch.arange(names.sizes["test"]))
    low = [names.label_names["resource"][i] == "low" for i in batch.labels["resource"]]
    assert low == [pair.language == "lag" for pair in names.splits["test"].pairs] and any(low) and not all(low)
    scores = names.answers(oracle(names, "test"), "test").metrics
    assert {"bleu_low", "bleu_high", "chrf_low", "chrf_lag"} <= scores.keys()


@pytest.mark.slow
def test_names_come_in_more_than_150_languages():
    pytest.importorskip("babel")
    found = Translation(tokens="bytes")
    assert len(found.languages) > 150 and found.label_names["resource"] == ["high", "low"]


# What is wrong with a text


def damaged(folder, cut=100):
    aligned(folder, packed=True)
    file = folder / "corpus.de.gz"
    file.write_bytes(file.read_bytes()[:cut])
    return folder


def changed(folder, language, raw):
    aligned(folder)
    (folder / f"corpus.{language}").write_bytes(raw)
    return folder


def crooked(folder):
    file = table(folder)
    file.write_text(file.read_text().replace("\tone", " one", 1))
    return file


FAULTS = {
    "unequal counts": (
        lambda f: (write(f / "a.en", ENGLISH), write(f / "a.de", GERMAN[:-1])) and f,
        ["a.en has 60", "a.de 59"],
    ),
    "language missing": (lambda f: aligned(f, languages=("en", "fr")), ["no corpus.de", "corpus is there in en, fr"]),
    "source missing": (lambda f: aligned(f, languages=("de", "fr")), ["no corpus.en", "de, fr"]),
    "part without language": (
        lambda f: [aligned(f, "train"), aligned(f, "test", ["en"])] and f,
        ["no test.de", "there in en"],
    ),
    "empty folder": (lambda f: f, ["no training text", "train.en"]),
    "no training text": (lambda f: [aligned(f, "a"), aligned(f, "b")] and f, ["no training text", "a, b", "PREFIX"]),
    "two tests": (
        lambda f: [aligned(f, s) for s in ("train", "test", "test_2")] and f,
        ["several texts", "test, test_2"],
    ),
    "no such path": (lambda f: f / "none", ["no parallel texts", "none", "PREFIX.en"]),
    "one file of several": (lambda f: aligned(f) / "corpus.en", ["no parallel texts", "corpus.en", "FOLDER/PREFIX"]),
    "empty file": (lambda f: changed(f, "de", b"\n"), ["corpus.de", "empty"]),
    "not UTF-8": (lambda f: changed(f, "de", b"eins\nf\xfcnf\n"), ["corpus.de", "line 2", "0xfc"]),
    "binary": (lambda f: changed(f, "en", b"a\0"), ["corpus.en", "NUL"]),
    "corrupt gzip": (damaged, ["corrupt gzip", "corpus.de.gz", "Fetch"]),
    "no gzip": (lambda f: damaged(f, cut=1), ["corrupt gzip", "corpus.de.gz"]),
    "too few": (lambda f: aligned(f, lines=slice(9)), ["too few texts", "9"]),
    "nothing but empty lines": (lambda f: changed(f, "de", b"\n" * 59 + b"x\n"), ["too few texts", "1 to train"]),
    "an empty part": (
        lambda f: [aligned(f, "train"), write(f / "test.en", ["one", ""]), write(f / "test.de", ["", "zwei"])] and f,
        ["no pairs to test with", "one side of each is empty"],
    ),
    "no column": (lambda f: (write(f / "a.tsv", ["en\tfr", "a\tb"])) or f / "a.tsv", ["no column 'de'", "'en', 'fr'"]),
    "crooked table": (crooked, ["corpus.tsv, line ", "2 fields", "header has 3"]),
    "table without rows": (lambda f: write(f / "a.tsv", ["en\tde"]) or f / "a.tsv", ["too few texts", "0 to train"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_text_is_one_line(fault, tmp_path):
    make, needles = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        task(make(tmp_path))
    message = str(caught.value)
    assert "\n" not in message and ": " in message and ". " in message
    assert [needle for needle in needles if needle not in message] == [], message


def test_faults_are_many():
    assert len(FAULTS) >= 19 and len(FORMS) >= 9


@pytest.mark.parametrize("joint", [True, False])
def test_a_data_set_without_the_language_names_those_it_has(joint, tmp_path):
    with pytest.raises(DataError, match=r"no column 'nl'.*'en', 'de', 'fr'"):
        task(hub(tmp_path, joint=joint), "nl")


def test_parts_of_a_data_set_stay_its_parts(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = {"train": slice(40), "validation": slice(40, 50), "test": slice(50, 60), "extra": slice(9)}
    parts = {n: datasets.Dataset.from_dict({k: lines[part] for k, lines in TEXTS.items()}) for n, part in names.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hub"))
    found = task(f"hub:{tmp_path / 'hub'}", max_length=80)
    assert found.sizes == {"train": 40, "valid": 10, "test": 10}


def test_a_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(EnvironmentFailure, match="cannot reach hub:nobody/none"):
        task("hub:nobody/none")


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"target_language": ["de", "en"]}, "target_language=['de', 'en']"),
        ({"target_language": []}, "each named once"),
        ({"target_language": ["de", "de"]}, "each named once"),
        ({"target_language": "xx"}, "CLDR has no names in it"),
        ({"source_language": "de"}, "come from English"),
        ({"target_language": "de", "vocab_size": 100}, "task.vocab_size=100"),
    ],
)
def test_languages_and_sizes_that_cannot_be(options, needle):
    pytest.importorskip("babel")
    with pytest.raises(UsageError) as caught:
        Translation(**options)
    assert needle in str(caught.value) and "\n" not in str(caught.value)


def test_texts_longer_than_max_length_are_no_training(tmp_path):
    write(tmp_path / "a.en", [f"{line} and much more" for line in ENGLISH]), write(tmp_path / "a.de", GERMAN)
    with pytest.raises(DataError, match=r"too long.*more than 10 tokens.*task\.max_length"):
        task(tmp_path / "a", max_length=10)


@pytest.mark.parametrize(("package", "path"), [("sacrebleu", "anywhere"), ("babel", None)])
def test_a_missing_package_names_the_extra(package, path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFailure, match=r"moecli\[translation\]") as caught:
        Translation(path)
    assert caught.value.code == 5 and package in str(caught.value) and isinstance(caught.value, MoeError)


def test_a_table_may_be_read_from_any_column(tmp_path):
    parts = read_table(table(tmp_path), "fr", None)
    assert [(p.source, p.target, p.language) for p in parts["train"]] == [
        *((f, g, "de") for f, g in zip(FRENCH, GERMAN, strict=True)),
        *((f, e, "en") for f, e in zip(FRENCH, ENGLISH, strict=True)),
    ]
