"""A generated text for a terminal: in colour by the expert that served each token, layer after layer, plain elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from moecli.report.terminal import visible

COLOURS = (
    39,
    208,
    41,
    199,
    226,
    99,
    51,
    203,
    118,
    177,
    220,
    33,
    214,
    49,
    205,
    154,
)  # of the 256, apart from each other


def show(found: dict[str, Any], console: Console) -> None:
    """What ``run.generated`` found; without colours the text once, and who served it is in --json."""
    if console.color_system is None:
        console.print(Text("".join(shown(token["token"]) for token in found["tokens"])), soft_wrap=True)
        return
    for layer in found["tokens"][0]["experts"]:
        console.print(Text.assemble((layer, "bold"), "  ", *legend(found, layer)), soft_wrap=True)
        console.print(Text.assemble(*coloured(found, layer)), soft_wrap=True)


def legend(found: dict[str, Any], layer: str) -> list[tuple[str, str]]:
    """Which colour stands for whom, and the share of the tokens each served."""
    served = [token["experts"][layer] for token in found["tokens"]]
    return [(f"{name(e)} {served.count(e) / len(served):.0%} ", style(e)) for e in sorted(set(served))]


def coloured(found: dict[str, Any], layer: str) -> list[tuple[str, str]]:
    """Every token in its expert's colour, the text that was given underlined."""
    return [
        (shown(token["token"]), style(token["experts"][layer]) + " underline" * (place < found["given"]))
        for place, token in enumerate(found["tokens"])
    ]


def name(expert: int) -> str:
    return "none" if expert < 0 else f"e{expert}"


def style(expert: int) -> str:
    return (
        "dim" if expert < 0 else f"color(16) on color({COLOURS[expert % len(COLOURS)]})"
    )  # so that a space is seen too


def shown(token: str) -> str:
    """The token as it is, with control characters but the end of a line written out."""
    return "\n".join(visible(part) for part in token.split("\n"))
