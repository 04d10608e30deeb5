"""moe show: each part with its formula and its papers, and options a user can type."""

import re

import pytest

from moecli import config
from moecli.analysis import explain
from moecli.cli import show
from moecli.errors import UsageError
from moecli.types import PositiveInt, Seed

NO_PARTS = ("experiment", "sweep")
PARTS = [(group, option) for group in config.registry() if group not in NO_PARTS for option in config.registry()[group]]
WITH_FORMULA = ("router", "gate", "family", "auxiliary")
ENTRY = re.compile(
    r"@(article|inproceedings|misc|book|phdthesis|techreport|incollection)\{[a-z0-9]+,\n(  \w+ = \{.+\},\n)+\}"
)


def formula_or_reason(doc):
    return re.search(r"\S+ = \S", doc) or re.search(r"No formula: \w.+\.", doc)


def test_every_router_gate_family_and_term_has_its_formula_or_says_why_not():
    checked = [(group, option) for group, option in PARTS if group in WITH_FORMULA]
    docs = {part: config.part_class(config.option_node(*part)).__doc__ or "" for part in checked}
    assert not [part for part, doc in docs.items() if not formula_or_reason(doc)]
    assert len(checked) >= 18
    assert not formula_or_reason("Sends each token somewhere.") and formula_or_reason("y = C f(D x)")


def test_every_paper_that_a_part_names_is_in_the_bibliography():
    named = {part: explain.paper_keys(*part) for part in PARTS}
    known = explain.bibliography()
    assert not [(part, key) for part, keys in named.items() for key in keys if key not in known]
    assert sum(map(bool, named.values())) >= 25
    for part, keys in named.items():  # papers in words above, by key below
        years = set(re.findall(r"\((?:[^()]*?)(?:19|20)\d\d(?:[^()]*?)\)", config.describe(*part)))
        assert part[0] == "task" or bool(years) == bool(keys), (part, keys, config.describe(*part))


def test_the_bibliography_is_bibtex_in_the_order_of_its_keys():
    text = (config.conf_root() / "references.bib").read_text(encoding="utf-8")
    entries = explain.bibliography()
    assert len(entries) == text.count("\n@") >= 50, "a key given twice, or an entry that does not begin a line"
    assert list(entries) == sorted(entries)
    for key, entry in entries.items():
        assert ENTRY.fullmatch(entry), entry
        assert entry.count("{") == entry.count("}")
        year = re.search(r"year = \{(\d{4})\}", entry)
        assert year and re.fullmatch(r"[a-z]+\d{4}[a-z0-9]+", key)
        assert {"author", "title"} <= set(re.findall(r"^  (\w+) = ", entry, re.MULTILINE))
    assert not ENTRY.fullmatch("@misc{key,\n  title = {x\n}")


def test_what_is_shown_of_a_router():
    lines = explain.part_lines("router", "expert_choice")
    text = "\n".join(lines)
    assert lines[0] == " expert_choice · Each expert chooses its best tokens (Zhou et al., 2022)"
    assert "y_n = sum_e p_ne f_e(x_n)" in text and "``" not in text
    assert "causal no" in text and "           not causal: each expert picks its tokens from the whole text" in text
    assert re.search(r"router\.group=auto +auto\|position\|batch +tokens that compete", text)
    assert " @inproceedings{zhou2022expert," in lines
    assert " gives     gate, logits" in lines and " source    moecli.routers.expert_choice" in lines
    top = explain.part_lines("router", "top_k")
    assert any(line.startswith(" advises   auxiliary=[switch_balance]") for line in top)
    assert re.search(r"router\.k=2 +whole number ≥ 1 +experts a token chooses", "\n".join(top))


def test_what_a_term_needs_and_what_to_do_without():
    text = "\n".join(explain.part_lines("auxiliary", "load"))
    assert " needs     gate, noise" in text and "without noise: " in text and "noisy_top_k" in text
    assert "auxiliary.load.weight=0.1" in text, "the key as it is typed"


def test_options_are_shown_by_the_keys_and_values_that_compose():
    tried = 0
    for group, option in PARTS:
        word = f"{group}=[{option}]" if group == "auxiliary" else f"{group}={option}"
        shown = re.findall(r"^ (?:options|       )   (\S+)=(\S+)", "\n".join(explain.part_lines(group, option)), re.M)
        pairs = [f"{key}={value}" for key, value in shown if value not in ("???", "{}")]
        node = config.settable([word])
        assert {pair.partition("=")[0] for pair in pairs} <= set(node) | {f"{group}.kinds"}, (group, option)
        tried += len(pairs)
    assert tried >= 100


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (PositiveInt, "whole number ≥ 1"),
        (PositiveInt | None, "whole number ≥ 1 or null"),
        (Seed, "whole number ≥ 0"),
        (bool, "true|false"),
        (list[str] | str, "list of texts or text"),
        (dict[str, int], ""),
    ],
)
def test_types_in_words(of, words):
    assert explain.kind(of) == words


def test_a_torch_optimizer_is_explained_in_a_line():
    lines = explain.part_lines("optimizer", "adamw")
    assert not [line for line in lines if "math::" in line or "Args:" in line] and len(lines) < 25


def test_a_paper_that_is_nowhere_is_named(tmp_path, monkeypatch):
    file = tmp_path / "lone.yaml"
    file.write_text("# Lone\n# paper: nobody1900nothing\n")
    monkeypatch.setitem(config.registry()["gate"], "lone", file)
    assert explain._papers("gate", "lone") == ["", " nobody1900nothing: in no references.bib"]


def test_one_thing_is_explained():
    with pytest.raises(UsageError, match=r"router\.k=1"):
        show.show(["router=top_k", "router.k=1"])
