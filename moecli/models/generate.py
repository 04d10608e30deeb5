"""Token by token a model goes on with a text, or answers a source: what it has read is kept, so each costs one step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.compatibility import MEANING, routers_giving
from moecli.errors import UsageError
from moecli.models.model import Model, Past
from moecli.routing import Capacity, Router, Routing

Experts = dict[str, list[int]]  # of each token in each layer: the one with the largest weight, -1 where none served it


@dataclass
class Reader:
    """Reads a growing text and says what comes next, in windows of at most ``window`` tokens.

    What it says is what the model says of the window up to there, read at once.  A full window makes way for one that
    begins with its last half, so a text may grow longer than those that the model learned from.
    """

    model: Model
    window: int
    past: Past | None = None
    start: int = 0  # where the window begins
    read: int = 0  # tokens so far
    experts: Experts = field(default_factory=dict)

    def __call__(self, ids: Tensor) -> Tensor:
        """The text so far (T,) int64, longer than it was -> logits of the next token (V,)."""
        while self.read < len(ids):
            if self.read - self.start == self.window:
                self.past, self.start = None, self.read - self.window // 2
            end = min(len(ids), self.start + self.window)
            begin = self.start if self.past is None else self.read
            output, self.past = self.model.step(ids[None, begin:end], past=self.past)
            self._note(output.routings, end - self.read)
            self.read = end
        return output.prediction[0, -1]  # type: ignore[index]

    def _note(self, routings: dict[str, Routing], new: int) -> None:
        for name, routing in routings.items():
            weight, expert = routing.plan.weights[-new:].max(-1)  # (new,)
            self.experts.setdefault(name, []).extend(expert.masked_fill(weight <= 0, -1).tolist())


@torch.no_grad()
def generate(
    model: Model, ids: Tensor, number: int, window: int, temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, Experts]:
    """Go on from ids (T,) int64 for ``number`` tokens -> all ids (T + number,), and who served each.

    Tokens are drawn from softmax(logits / ``temperature``), at 0 the likeliest; a pure function of the seed.
    Raises UsageError for an empty text, and where a token's expert hangs on more than the token itself.
    """
    if not len(ids):
        raise UsageError("--generate '': there is no text to go on from. Write for example --generate 'The '")
    refuse_dependent(model)
    reader, random = Reader(model.eval(), window), torch.Generator().manual_seed(seed)
    for _ in range(number):
        ids = torch.cat([ids, draw(reader(ids), temperature, random).to(ids.device)])
    reader(ids)  # so that the last token has its expert too
    return ids, reader.experts


@torch.no_grad()
def decode(model: Model, source: Tensor, begin: int, end: int, most: int) -> Tensor:
    """The likeliest token after each other, until ``end``: sources (B, S) int64 -> answers (B, L) int64, L <= ``most``.

    Sources are padded at the left by -1.  An answer stands behind ``begin``, which is not part of it; what stands
    behind its ``end`` is ``end`` again.  Raises UsageError where what a router does with a token of the answer hangs on
    more than the token itself, ValueError for sources longer than those that the model was made for.
    """
    refuse_dependent(model, "answers in words")
    if model.source and source.shape[1] > model.source:
        raise ValueError(f"a source has {source.shape[1]} places, and the model reads {model.source}")
    was_training = model.training
    ids = F.pad(source, (max(model.source - source.shape[1], 0), 0), value=-1)
    ids = torch.cat([ids, ids.new_full((len(ids), 1), begin)], dim=1)
    answer, past, done = ids[:, :0], None, torch.zeros_like(ids[:, :1], dtype=torch.bool)
    model.eval()
    while answer.shape[1] < most and not bool(done.all()):
        output, past = model.step(ids, past=past)
        ids = output.prediction[:, -1:].argmax(-1).masked_fill(done, end)  # type: ignore[index]
        answer, done = torch.cat([answer, ids], dim=1), done | (ids == end)
    model.train(was_training)
    return answer


def draw(logits: Tensor, temperature: float, random: torch.Generator) -> Tensor:  # (V,) -> (1,)
    if temperature == 0:
        return logits.argmax(keepdim=True)
    below = (logits - logits.max()).double().cpu()  # at most 0, so that no temperature makes two of them infinite
    return (below / temperature).softmax(-1).multinomial(1, generator=random)


def refuse_dependent(model: Model, asked: str = "--generate") -> None:
    """Raise UsageError unless every router does with a token alone what it does with it in the whole text.

    Those that read the source alone may do as they like: they read all of it at once.
    """
    for name, layer in model.mixtures.items():
        router = layer.router
        if model.reads_source(name):
            continue
        # also where it drops without looking at what tokens hold: it still counts how many they are
        if any(isinstance(serve, Capacity) and serve.active(training=False) for serve in router.filters):
            raise UsageError(
                f"{asked} ({name}): its router has a capacity, a share of as many tokens as are read at once, and here "
                "they are read one by one. Lift it: router.eval_capacity_factor=inf"
            )
        if not router.claims(training=False).independent:
            raise UsageError(
                f"{asked} ({name}): {_why(router)}, and here tokens are read one by one. "
                f"Use a run with router={', '.join(routers_giving('independent'))}"
            )


def _why(router: Router) -> str:
    reasons = router.why_not()
    return reasons.get("independent") or reasons.get("causal") or MEANING["independent"]
