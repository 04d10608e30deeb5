"""Why one token went where it went: each expert's part in a decision, and how close it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What one expert had to do with one token."""

    expert: int
    logit: float | None  # the gate's score; None where no gate scores experts
    prob: float  # the gate's belief
    asked: bool  # the router asked it
    served: bool  # it answered: nothing dropped the token on the way
    weight: float  # of its answer
    contribution: float | None  # share of the layer's answer that comes from it; they add up to one


@dataclass(frozen=True)
class Decision:
    """One token in one layer; ``parts`` are of all experts, the likeliest first."""

    layer: str
    position: int
    symbol: str | None  # of the token, in text
    parts: tuple[Part, ...]
    changes: tuple[str, ...] = ()  # what of the input would change who is asked, each tried out

    @property
    def asked(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.asked)

    @property
    def first(self) -> int:
        """The heaviest expert that served, -1 where none did."""
        served = [part for part in self.parts if part.served]
        return max(served, key=lambda part: part.weight).expert if served else -1

    @property
    def rivals(self) -> tuple[Part, Part] | None:
        """Who held its place most barely, and who was nearest to it: the weakest of the asked and the best of the rest.

        Where all are asked, the two likeliest.  None where no gate scores experts.
        """
        if len(self.parts) < 2 or self.parts[0].logit is None:
            return None
        others = [part for part in self.parts if not part.asked]
        if not others or not self.asked:
            return self.parts[0], self.parts[1]
        return self.asked[-1], others[0]

    @property
    def margin(self) -> float | None:
        """By how much the first rival's logit exceeds the second's; negative where more than the gate decided."""
        if self.rivals is None:
            return None
        held, next_best = self.rivals
        return float(held.logit or 0.0) - float(next_best.logit or 0.0)


@dataclass(frozen=True)
class Explanation:
    """All decisions on one input, layer by layer and token by token."""

    run: str
    input: str
    prediction: dict[str, object]  # as ``moe predict`` answers; of text nothing
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    def of(self, layer: str) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.layer == layer)

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(decision.layer for decision in self.decisions))
