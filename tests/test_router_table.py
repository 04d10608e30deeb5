"""docs/routers.md says of every router what the registry says; `python -m tests.test_router_table` prints its table."""

from __future__ import annotations

from pathlib import Path

from moecli.compatibility import small_router
from moecli.config import describe, registry

PAGE = Path(__file__).resolve().parents[1] / "docs/routers.md"
HEAD = ("router", "what it does", "learns from the task", "balanced in training", "causal")


def table() -> str:
    lines = [HEAD, ("---",) * len(HEAD), *(row(name) for name in registry()["router"])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(name: str) -> tuple[str, ...]:
    router = small_router(name)
    training, evaluation = router.claims(True), router.claims(False)
    causal = "yes" if training.causal else "in evaluation" if evaluation.causal else "no"
    said = ["yes" if claim else "no" for claim in (training.trains_gate, training.balanced)]
    return (f"`{name}`", describe("router", name), *said, causal)


def test_the_page_has_every_router_as_it_is():
    assert len(registry()["router"]) >= 19
    assert table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
