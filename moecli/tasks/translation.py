"""Translation: pairs of texts -> a source that is given and a target that is learned, one sequence of ids a pair.

An example is ``padding, tag, source | begin, target, padding``: behind the bar each token predicts the next, the last
one the end.  The tag names the language to translate into where there are several (Johnson et al., 2017).
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.tasks.files import user_path
from moecli.tasks.kinds import Language
from moecli.tasks.records import HUB
from moecli.tasks.task import SPLITS, Answer, Answers, Batch, Fact, Task, Write, generator, order, spread
from moecli.tasks.token_classes import class_label
from moecli.tasks.tokens import encoding
from moecli.tasks.translation_files import Pair, Parts, read_aligned, read_hub, read_lines, read_table
from moecli.tasks.translation_names import read_names
from moecli.tasks.translation_parts import Sentences, Sides, fingerprint, first_pairs, full, three_parts
from moecli.tasks.translation_scores import refuse_without_scores, scores, signature
from moecli.types import PositiveInt, Seed, SeveralRows

BEGIN, END = 0, 1  # the first specials, before the tags
POOL = 16  # batches whose pairs are sorted by length together, so that a batch has little padding
AT_ONCE = 128  # sources that are translated together
FEW = 8  # languages, each of which is scored by itself too
SIDES, RESOURCES = ["source", "target"], ["high", "low"]


class Translation(Task):
    """Texts with their translations: the user's own, or by default the names of CLDR in every language that has some.

    ``path`` is a folder of line-aligned files (``train.en``, ``train.de.gz``, ``val.en``, ``test_2016.en``, ...), what such
    files begin with, a table (``.tsv``) whose header names the languages, or a data set (``hub:``).  Parts that it lacks
    are taken from its training part.  Pairs of training with more than ``max_length`` tokens on one side are left out,
    others are cut.  A language with fewer than ``low_resource`` pairs to train on is labelled low.

    Metrics are of the target's tokens; ``bleu`` and ``chrf`` of greedy translations.  Raises DataError for texts that are
    damaged or do not fit together, UsageError for languages that are not there, EnvironmentFailure for a missing extra.
    """

    gives = frozenset({"sequence", "ids", "source", "words", "classes"})
    needs = frozenset({"causal"})
    fitted = True
    dim = 0
    kind: Language

    def __init__(
        self,
        path: str | None = None,
        source_language: str = "en",
        target_language: str | list[str] | None = None,
        tokens: str = "bpe",
        vocab_size: PositiveInt | None = None,
        max_length: PositiveInt = 32,
        max_pairs: SeveralRows | None = None,
        eval_pairs: PositiveInt = 1024,
        low_resource: PositiveInt = 400,
        split_seed: Seed = 0,
    ):
        refuse_without_scores()
        self.origin, self.source_language = "the names of CLDR" if path is None else path, source_language
        self.max_length, self.eval_pairs = max_length, eval_pairs
        given = read(path, source_language, _several(target_language, source_language))
        parts = self._parts(given, max_pairs, split_seed)
        self._adopt_tokens(parts["train"], tokens, vocab_size)
        self._adopt_sentences(parts)
        self._adopt_labels(low_resource)
        self.fingerprint = fingerprint(parts, self.encoding)
        self._encode.cache_clear()

    def _parts(self, given: Parts, max_pairs: int | None, split_seed: int) -> Parts:
        whole = {split: full(pairs) for split, pairs in given.items()}
        self.empty = sum(len(given[split]) - len(whole[split]) for split in given)
        first = {split: first_pairs(pairs, max_pairs) for split, pairs in whole.items()}
        parts = three_parts(first, split_seed, self.origin)
        self.languages = sorted({pair.language for pairs in parts.values() for pair in pairs})
        return parts

    def _adopt_tokens(self, train: list[Pair], tokens: str, vocab_size: int | None) -> None:
        """One vocabulary for both sides, learned from each text of training once."""
        tags = [f"<{language}>" for language in self.languages] if len(self.languages) > 1 else []
        self.tags = {language: [END + 1 + number] * bool(tags) for number, language in enumerate(self.languages)}
        texts = dict.fromkeys(text for pair in train for text in (pair.source, pair.target))
        self.encoding = encoding(tokens, (f"{text}\n" for text in texts), vocab_size, ["<begin>", "<end>", *tags])
        self._encode = cache(lambda text: self.encoding.encode(text).tolist())  # a name may have 200 translations
        self.kind = Language(self.encoding.symbols, self.encoding.sizes)
        self.out = self.vocab_size = self.kind.out
        self.family, self.feature_names = self.kind.family, []

    def _adopt_sentences(self, parts: Parts) -> None:
        self.counts = {split: len(pairs) for split, pairs in parts.items()}
        kept = {
            split: [pairs[i] for i in spread(len(pairs), self.eval_pairs).tolist()] for split, pairs in parts.items()
        }
        kept["train"] = [pair for pair in parts["train"] if self._fits(pair)]
        if not kept["train"]:
            why = f"every pair has more than {self.max_length} tokens on one side"
            raise DataError(f"texts too long ({self.origin}): {why}. Raise task.max_length")
        self.cut = sum(not self._fits(pair) for split in SPLITS[1:] for pair in kept[split])
        known = {pair.source for pair in parts["train"]}
        self.repeated = sum(pair.source in known for pair in kept["test"])
        self.sizes = {split: len(pairs) for split, pairs in kept.items()}
        sides = {split: [self._sides(pair) for pair in pairs] for split, pairs in kept.items()}
        longest = [max(len(each[side]) for split in SPLITS for each in sides[split]) for side in (0, 1)]
        self.source, self.most = (min(self.max_length, length) for length in longest)
        self.splits = {split: Sentences.of(kept[split], sides[split], self.source, self.most) for split in SPLITS}

    def _fits(self, pair: Pair) -> bool:
        return max(map(len, self._sides(pair))) <= self.max_length

    def _sides(self, pair: Pair) -> Sides:
        """What is given and what is to be said, however long."""
        return [*self.tags[pair.language], *self._encode(pair.source)], [*self._encode(pair.target), END]

    def _adopt_labels(self, low_resource: int) -> None:
        trained = Counter(pair.language for pair in self.splits["train"].pairs)
        low = [trained[language] < low_resource for language in self.languages]
        name, classes, of_id = class_label(self.encoding)
        several = len(self.languages) > 1
        self.label_names = {"language": self.languages} if several else {}
        self.label_names |= {"resource": RESOURCES} if len(set(low)) > 1 else {}
        self.label_names |= {name: classes, "side": SIDES}
        self._resource_of = torch.tensor(low).long()
        self._token_label, self._class_of = name, torch.tensor(of_id)
        number = {language: index for index, language in enumerate(self.languages)}
        self._language_of = {
            split: torch.tensor([number[pair.language] for pair in part.pairs]) for split, part in self.splits.items()
        }

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """Pairs of about the same length, epoch after epoch: a pure function of (seed, step)."""
        batches = max(1, min(POOL, self.sizes["train"] // size))
        pool, place = divmod(step, batches)
        draw = generator(seed, pool, batches)
        index = order(self.sizes["train"], pool, batches * size, seed)
        index = index[torch.randperm(len(index), generator=draw)]  # so that equal lengths meet in every order
        by_length = index[self.splits["train"].length[index].argsort(stable=True)]
        turn = torch.randperm(batches, generator=draw)[place]
        return self.batch("train", by_length.tensor_split(batches)[turn])

    def batch(self, split: str, index: Tensor) -> Batch:
        """x (B, source + T) and target (B, T), where T is the longest of these targets."""
        part, language = self.splits[split], self._language_of[split][index]
        target = part.target[index, : int(part.length[index].max())].long()
        before = torch.cat([torch.full((len(target), 1), BEGIN), target[:, :-1]], dim=1)
        x = torch.cat([part.source[index].long(), before.masked_fill(target < 0, -1)], dim=1)
        document = index + sum(self.sizes[other] for other in SPLITS[: SPLITS.index(split)])
        labels = self._labels(x, language)
        return Batch(x, target, labels, document, document * (self.source + self.most))

    def _labels(self, x: Tensor, language: Tensor) -> dict[str, Tensor]:
        side = (torch.arange(x.shape[1]) >= self.source).long().expand_as(x)
        found = {"language": language, "resource": self._resource_of[language], "side": side}
        found[self._token_label] = self._class_of[x.clamp_min(0)]
        return {name: found[name] for name in self.label_names}

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of the training targets, each symbol counted once more so that none is impossible."""
        train, target = (part.target[part.target >= 0].long() for part in (self.splits["train"], self.splits[split]))
        return self.kind.smooth_chance(train, target)

    # -- in words -----------------------------------------------------------------------------

    def answers(self, write: Write, split: str) -> Answers:
        """Greedy translations of at most ``eval_pairs`` pairs of a split, and how good they are."""
        part, picked = self.splits[split], spread(self.sizes[split], self.eval_pairs)
        pairs = [part.pairs[index] for index in picked.tolist()]
        said = [
            Answer(pair.source, answer, pair.target, pair.language)
            for pair, answer in zip(pairs, self.say(write, part.source[picked]), strict=True)
        ]
        return Answers(self._scores(said), said)

    def say(self, write: Write, source: Tensor) -> list[str]:
        """What the model says to sources (B, S)."""
        written = [write(part.long(), BEGIN, END, self.most) for part in source.split(AT_ONCE)]
        return [self._text(row) for rows in written for row in rows.tolist()]

    def _text(self, ids: list[int]) -> str:
        return self.encoding.decode(ids[: ids.index(END)] if END in ids else ids).strip()

    def _scores(self, said: list[Answer]) -> dict[str, float]:
        """Of all, and of each language by itself where they are few, and of high- and low-resource ones."""
        found = scores(said)
        if 1 < len(self.languages) <= FEW:
            for language in self.languages:
                found |= scores([each for each in said if each.language == language], f"_{language}")
        for number, name in enumerate(self.label_names.get("resource", [])):
            of = {lang for lang, low in zip(self.languages, self._resource_of.tolist(), strict=True) if low == number}
            found |= scores([each for each in said if each.language in of], f"_{name}")
        return found

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """A text whose lines are sources, (B, S), each for every language that the model translates into."""
        lines = [line.strip() for line in read_lines(user_path(file))]
        asked = [Pair(line, "", language) for line in lines for language in self.languages]
        sides = [self._sides(pair) for pair in asked]
        given = {"source": [pair.source for pair in asked], "language": [pair.language for pair in asked]}
        return Sentences.of(asked, sides, self.source, 0).source.long(), given

    def facts(self) -> list[Fact]:
        chance = self.chance("test")
        guess = f"nll {chance['nll']:.3f} nats, accuracy {chance['accuracy']:.3f}"
        pairs = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        long = self.counts["train"] - self.sizes["train"]
        most = f"{self.max_length} tokens on one side"
        return [
            Fact("texts", str(self.origin)),
            Fact("pairs", f"{pairs}; {self.sizes['valid']:,} and {self.sizes['test']:,} evaluated"),
            Fact("languages", self._told_languages()),
            Fact("left out", f"{self.empty:,} pairs with an empty side, {long:,} of training with more than {most}"),
            Fact("cut", f"{self.cut:,} of the evaluated pairs, which have more than {most}"),
            Fact("known sources", f"{self.repeated:,} of the test's stand in training too"),
            Fact("vocabulary", f"{self.out:,} {self.encoding.unit} of both sides"),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", guess),
            Fact("scores", signature()),
        ]

    def _told_languages(self) -> str:
        told = ", ".join(self.languages[:12]) + (" …" if len(self.languages) > 12 else "")
        low = int(self._resource_of.sum())
        poor = f"; {low} of {len(self.languages)} are low-resource" if "resource" in self.label_names else ""
        return f"{self.source_language} to {told}{poor}"


def read(path: str | None, source: str, targets: list[str] | None) -> Parts:
    """Whatever ``path`` is.  Raises DataError."""
    if path is None:
        if source != "en":
            raise UsageError(
                f"task.source_language={source}: the names of CLDR come from English. Set task.path, or en"
            )
        return {"train": read_names(targets)}
    if path.startswith(HUB):
        return read_hub(path, source, targets)
    root = user_path(path)
    if root.name.removesuffix(".gz").endswith(".tsv"):
        return read_table(root, source, targets)
    return read_aligned(root, source, targets)


def _several(target: str | list[str] | None, source: str) -> list[str] | None:
    targets = [target] if isinstance(target, str) else target
    if targets is not None and (not targets or source in targets or len(set(targets)) < len(targets)):
        why = "a text is translated into other languages, each named once"
        raise UsageError(f"task.target_language={target} (task.source_language={source}): {why}. Change one of them")
    return targets
