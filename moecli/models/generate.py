"""Text that a model goes on with, token by token: what it has read is kept, so that each new token costs one step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
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


def draw(logits: Tensor, temperature: float, random: torch.Generator) -> Tensor:  # (V,) -> (1,)
    if temperature == 0:
        return logits.argmax(keepdim=True)
    below = (logits - logits.max()).double().cpu()  # at most 0, so that no temperature makes two of them infinite
    return (below / temperature).softmax(-1).multinomial(1, generator=random)


def refuse_dependent(model: Model) -> None:
    """Raise UsageError unless every router does with a token alone what it does with it in the whole text."""
    for name, layer in model.mixtures.items():
        router = layer.router
        # also where it drops without looking at what tokens hold: it still counts how many they are
        if any(isinstance(serve, Capacity) and serve.active(training=False) for serve in router.filters):
            raise UsageError(
                f"--generate ({name}): its router has a capacity, a share of as many tokens as are read at once, and here "
                "they are read one by one. Lift it: router.eval_capacity_factor=inf"
            )
        if not router.claims(training=False).independent:
            raise UsageError(
                f"--generate ({name}): {_why(router)}, and here tokens are read one by one. "
                f"Use a run with router={', '.join(routers_giving('independent'))}"
            )


def _why(router: Router) -> str:
    reasons = router.why_not()
    return reasons.get("independent") or reasons.get("causal") or MEANING["independent"]
