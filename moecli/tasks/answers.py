"""Sequences of which only an answer is scored: the base of tasks that give a question first.

A target of -1 is not scored, an id of -1 is no token: shorter sequences are padded behind.
"""

from __future__ import annotations

import hashlib

from torch import Tensor

from moecli.tasks.kinds import Language
from moecli.tasks.task import SPLITS, Batch, Fact, Task


class Answers(Task):
    """``adopt`` takes all sequences and where their answers stand; a batch is an index."""

    gives = frozenset({"sequence", "ids", "classes"})
    needs = frozenset({"causal"})
    dim = 0
    kind: Language

    def adopt(
        self, kind: Language, ids: Tensor, answer: Tensor, labels: dict[str, Tensor], parts: dict[str, Tensor]
    ) -> None:
        """``ids`` (M, T + 1), -1 where there are none, of which ``answer`` (M, T + 1) is asked for.

        ``labels`` are each (M,) or (M, T), an index into ``label_names``; ``parts`` says which sequences are whose.
        """
        self.kind, self.family, self.feature_names = kind, kind.family, list[str]()
        self.out = self.vocab_size = kind.out
        self.context = ids.shape[1] - 1
        self.x, self.target = ids[:, :-1], ids[:, 1:].masked_fill(~answer[:, 1:], -1)
        self.labels, self.parts = labels, parts
        self.sizes = {split: len(index) for split, index in parts.items()}
        tensors = [ids, answer, *labels.values(), *parts.values()]
        whole = repr(kind.symbols).encode() + b"".join(t.contiguous().numpy().tobytes() for t in tensors)
        self.fingerprint = hashlib.sha256(whole).hexdigest()

    def batch(self, split: str, index: Tensor) -> Batch:
        document = self.parts[split][index]
        row = (index + sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])) * self.context
        labels = {name: label[document] for name, label in self.labels.items()}
        return Batch(self.x[document], self.target[document], labels, document, row)

    def scored(self, split: str) -> Tensor:
        """Every scored target: (n,)."""
        target = self.target[self.parts[split]]
        return target[target >= 0]

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of the training answers, each symbol counted once more so that none is impossible."""
        return self.kind.smooth_chance(self.scored("train"), self.scored(split))

    def facts(self) -> list[Fact]:
        sequences = ", ".join(f"{count} {split}" for split, count in self.sizes.items())
        chance, answers = self.chance("test"), self.scored("test")
        length = f"{len(answers) / self.sizes['test']:.1f} symbols on average, nothing else is scored"
        return [
            Fact(f"sequences of {self.context} tokens", sequences),
            *(Fact(f"label {name}", ", ".join(values[:20])) for name, values in self.label_names.items()),
            Fact("answers", length),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", f"nll {chance['nll']:.3f} nats, accuracy {chance['accuracy']:.3f}"),
        ]
