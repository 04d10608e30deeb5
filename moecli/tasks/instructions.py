"""Instruction and response as one text, of which the response alone is scored: what instruction tuning trains on.

Without a file the examples are generated; each is of a sub-task, and some sub-tasks may be held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.tasks.answers import Answers
from moecli.tasks.files import shown, user_path
from moecli.tasks.instruction_tasks import SUB_TASKS, drawn
from moecli.tasks.kinds import Language
from moecli.tasks.records import MAX_LABELS, json_rows, require
from moecli.tasks.task import SPLITS, Fact, three_way
from moecli.tasks.tokens import Encoding, encoding
from moecli.types import PositiveInt, Seed, SeveralRows

FEWEST = 10  # examples


@dataclass(frozen=True)
class Example:
    """What is asked, ``prompt``, and what is answered, ``response``."""

    sub_task: str
    prompt: str
    response: str


class Instructions(Answers):
    """``Instruction: ...``, ``Input: ...`` and ``Response: ...`` on lines of their own; the response's line is scored.

    Sub-tasks that are held out are the test, and nothing else is; without any, each part has some of all.
    """

    fitted = True

    def __init__(
        self,
        path: str | None = None,
        examples: SeveralRows = 1500,
        hold_out: list[str] | None = None,
        context: PositiveInt = 96,
        tokens: str = "bytes",
        vocab_size: PositiveInt | None = None,
        instruction_column: str = "instruction",
        input_column: str = "input",
        response_column: str = "response",
        label_column: str | None = None,
        split_seed: Seed = 0,
    ):
        columns = (instruction_column, input_column, response_column, label_column)
        given = read_examples(path, *columns) if path is not None else generated(examples, split_seed)
        names, source = sorted({example.sub_task for example in given}), path or "the generated ones"
        parts = _parts(given, names, hold_out or [], split_seed)
        training = [given[i].prompt + given[i].response for i in parts["train"].tolist()]
        self.encoding = encoding(tokens, training, vocab_size)
        ids, answer = _rows(given, self.encoding, context)
        fits = (ids >= 0).sum(1) > 0
        parts = {split: index[fits[index]] for split, index in parts.items()}
        _refuse_long(parts, given, source, context, self.encoding)
        self.left_out = int((~fits).sum())
        sub_task = torch.tensor([names.index(example.sub_task) for example in given])
        self.label_names = {"sub-task": names}
        self.adopt(Language(self.encoding.symbols, self.encoding.sizes), ids, answer, {"sub-task": sub_task}, parts)

    def encode(self, text: str) -> Tensor:  # -> (L,) int64
        return torch.from_numpy(self.encoding.encode(text)).long()

    def facts(self) -> list[Fact]:
        left_out = f"{self.left_out} examples of more than {self.context} {self.encoding.unit}"
        return [*super().facts(), Fact("left out", left_out)]


def prompt(instruction: str, given: str) -> str:
    """What a response is put behind."""
    line = f"Input: {given}\n" if given else ""
    return f"Instruction: {instruction}\n{line}Response: "


def generated(number: int, seed: int) -> list[Example]:
    """Of every sub-task as many, where it has so many different inputs."""
    each = -(-number // len(SUB_TASKS))
    found = [Example(name, prompt(i, x), f"{y}\n") for name in SUB_TASKS for i, x, y in drawn(name, each, seed)]
    return found[:number] if number < len(SUB_TASKS) else found


def read_examples(
    path: str, instruction_column: str, input_column: str, response_column: str, label_column: str | None
) -> list[Example]:
    """The rows of a jsonl file; ``input_column`` may be missing in a row, or empty.  Raises DataError."""
    wanted = [instruction_column, response_column, *([label_column] if label_column is not None else [])]
    found, seen = [], set[str]()
    for place, row in json_rows(user_path(path), wanted):
        seen.update(row)
        asked, given, response = (
            _text(row.get(name), name, place) for name in (instruction_column, input_column, response_column)
        )
        label = "all" if label_column is None else str(row[label_column])
        found.append(Example(label, prompt(asked, given), f"{response}\n"))
    if len(found) < FEWEST:
        raise DataError(f"too few examples ({path}): it has {len(found)}, and it takes {FEWEST}. Add rows")
    if input_column != "input":
        require([input_column], sorted(seen), path)
    if len({example.sub_task for example in found}) > MAX_LABELS:
        why = f"it has more than {MAX_LABELS} different values"
        raise DataError(f"no sub-tasks ({path}, column {shown(label_column)}): {why}. Name a column of fewer")
    return found


def _text(cell: Any, column: str, place: str) -> str:
    if cell is not None and not isinstance(cell, str):
        raise DataError(f"bad column {shown(column)} ({place}): it holds {shown(cell)}, no text. Write it as a string")
    return (cell or "").strip().replace("\r\n", "\n")


def _parts(given: Sequence[Example], names: list[str], hold_out: list[str], seed: int) -> dict[str, Tensor]:
    """Which examples train, validate and test."""
    strange = next((name for name in hold_out if name not in names), None)
    if strange is not None:
        raise UsageError(f"task.hold_out={shown(strange)}: no such sub-task. There are: {', '.join(names)}")
    if len(set(hold_out)) == len(names):
        raise UsageError(f"task.hold_out={','.join(hold_out)}: no sub-task is left to train on. Hold out fewer")
    held = torch.tensor([example.sub_task in hold_out for example in given])
    left = torch.arange(len(given))[~held]
    parts = {split: left[index] for split, index in three_way(len(left), seed, valid=0.1, test=0.1).items()}
    if not hold_out:
        return parts
    return {**parts, "train": torch.cat([parts["train"], parts["test"]]).sort().values, "test": held.nonzero()[:, 0]}


def _rows(given: Sequence[Example], read_as: Encoding, context: int) -> tuple[Tensor, Tensor]:
    """Ids (M, T + 1), all -1 of an example that is too long, and where its answer stands."""
    ids = torch.full((len(given), context + 1), -1)
    answer = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(given):
        asked, said = (torch.from_numpy(read_as.encode(text)).long() for text in (example.prompt, example.response))
        if len(asked) + len(said) <= context + 1:
            ids[row, : len(asked) + len(said)] = torch.cat([asked, said])
            answer[row, len(asked) : len(asked) + len(said)] = True
    return ids, answer


def _refuse_long(
    parts: dict[str, Tensor], given: Sequence[Example], source: str, context: int, read_as: Encoding
) -> None:
    empty = next((split for split in SPLITS if not len(parts[split])), None)
    if empty is not None:
        lengths = sorted(len(read_as.encode(example.prompt + example.response)) for example in given)
        why = (
            f"no example of the {empty} part fits into {context}; half of all have {lengths[len(lengths) // 2]} or less"
        )
        raise DataError(f"examples too long ({source}): {why} {read_as.unit}. Raise task.context")
