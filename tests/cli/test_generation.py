"""moe eval RUN --generate: a text in plain words, in colour, as JSON, and what is refused in a line."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from rich.console import Console

from moecli.cli.eval import EPILOG
from moecli.config import compose
from moecli.report import passage
from moecli.run import Place, assemble, train_built


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A text run of 2 steps, whose context is shorter than what is generated."""
    root = tmp_path_factory.mktemp("runs")
    (root / "a.txt").write_text("the cat sat on the mat;\nand saw the rat.\n" * 80)
    words = ["task=text", f"task.path={root / 'a.txt'}", "task.context=16", "model.dim=16", "model.depth=2"]
    return train_built(
        assemble(compose([*words, "expert.hidden=8", "num_experts=4", "trainer.steps=2"])), Place(root, pictures=False)
    )


def test_the_text_goes_on_plainly_and_the_same_again(moe, run):
    words = ["eval", run.path, "--generate", "the cat\n", "--tokens", 30, "--temperature", 0.8, "--seed", 1]
    code, out, err = moe(*words)
    assert code == 0 and not err and "\x1b" not in out
    assert out.startswith("the cat\n") and len(out) == len("the cat\n") + 30 + 1
    assert moe(*words)[1] == out and moe(*words[:-1], 2)[1] != out


def test_the_example_of_the_help_runs(moe, run):
    (line,) = (line for line in re.findall(r"`moe ([^`]*)`", EPILOG) if "--generate" in line)
    code, out, _ = moe(*(run.path if word == "RUN" else word for word in shlex.split(line)))
    assert code == 0 and out.startswith("\N{REPLACEMENT CHARACTER}he ")  # T stands nowhere in what it learned from


def test_as_json_every_token_has_its_expert_in_every_layer(moe, run):
    code, out, _ = moe("eval", run.path, "--generate", "the ", "--tokens", 20, "--json")
    found = json.loads(out)
    assert code == 0 and found["given"] == 4 and (found["temperature"], found["seed"]) == (1.0, 0)
    assert "".join(token["token"] for token in found["tokens"]) == found["text"] and found["text"].startswith("the ")
    assert len(found["tokens"]) == 24
    assert all(set(token["experts"]) == {"block0", "block1"} for token in found["tokens"])
    assert {expert for token in found["tokens"] for expert in token["experts"].values()} <= {0, 1, 2, 3}


TOKENS = [{"token": t, "experts": {"a": e, "b": 0}} for t, e in (("x", 0), ("\n", 1), ("\x1b", 1), (" ", -1))]


def shown(**settings):
    console = Console(width=40, highlight=False, **settings)
    with console.capture() as caught:
        passage.show({"given": 1, "tokens": TOKENS}, console)
    return caught.get()


def test_in_a_terminal_the_colours_are_the_experts():
    out = shown(force_terminal=True, color_system="256", no_color=False)
    colour = [f"48;5;{c}" for c in passage.COLOURS[:2]]
    assert re.search(rf"\x1b\[4;38;5;16;{colour[0]}mx", out), "what was given is underlined"
    assert f"{colour[1]}m\\x1b" in out, "a token's own escape is written out"
    assert "e0 25%" in out and "e1 50%" in out and "none 25%" in out
    assert out.count("x") == 2 + out.count("\\x1b") and "\x1b\x1b" not in out  # once for each layer


@pytest.mark.parametrize("settings", [{"force_terminal": False}, {"force_terminal": True, "color_system": None}])
def test_elsewhere_the_text_stands_once(settings):
    assert shown(**settings) == "x\n\\x1b \n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--generate", ""], "no text to go on from"),
        (["--tokens", 5], "--tokens: nothing is generated. Add --generate TEXT"),
        (["--temperature", 0], "--temperature: nothing is generated"),
        (["--generate", "a", "--tokens", 0], "'--tokens'"),
        (["--generate", "a", "--temperature", -1], "'--temperature'"),
        (["--generate", "a", "--temperature", "nan"], "'--temperature'"),
        (["--generate", "a", "router.capacity_factor=1.0", "model.allow_leak=true"], "router.eval_capacity_factor=inf"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(moe, run, words, said):
    code, out, err = moe("eval", run.path, *words)
    assert code == 2 and not out and said in err and err.count("\n") == 1 and err.startswith("moe: error: ")


def test_a_run_without_text_says_so(moe, tiny_run):
    code, _, err = moe("eval", tiny_run.path, "--generate", "a")
    assert code == 2 and "--generate (task=piecewise): it has no text to go on from" in err
