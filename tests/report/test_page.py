"""The page says what the run folders say, whole and in few bytes; what cannot be read is named."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from moecli.errors import EnvironmentFailure, UsageError
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.report.page import gather, html, markdown, pictures, runs, write
from moecli.report.page.chart import chart, legend, log_ticks, thinned, ticks
from moecli.report.page.examples import image_side
from moecli.report.page.values import Chart, Curve, Level
from moecli.tasks.digits import Digits

from .conftest import changed, copied, run_folders
from .payloads import PAYLOADS

ROOT = Path(__file__).resolve().parents[2]


class Structure(HTMLParser):
    """Elements with their attributes' names, every address, every id, and the text of the page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "data", "poster")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def content(study):
    return gather.gather([study])


@pytest.fixture(scope="module")
def page(content):
    return html.page(content)


# -- numbers ----------------------------------------------------------------------------------


def test_the_rows_and_runs_are_those_of_the_folders(content, study):
    (found,) = content.studies
    assert found.names == ["top_k", "dense twin of top_k", "other"]
    head, table = list(found.rows.table.head), [[c.text for c in row] for row in found.rows.table.rows]
    assert [row[0] for row in table] == [*found.names, "chance"]
    column = next(n for n, name in enumerate(head) if "accuracy" in name)
    assert [row[column].split(" ")[0] for row in table] == ["0.850", "0.700", "0.550", "0.100"]
    for row, path in zip(found.table.rows, run_folders(study), strict=True):
        assert row[0].text == f"{path.parent.name}/{path.name}"
        assert row[4].key == Run(path).summary["metrics"]["test/accuracy"]
    lead = " ".join(found.lead)
    assert "top_k 0.850" in lead and "dense twin of top_k 0.700" in lead and "chance 0.100" in lead


def test_curves_hold_every_number_of_the_metrics(content, study, page):
    drawn = content.studies[0].charts[0]
    assert drawn.title == "Validation accuracy" and len(drawn.curves) == 5
    wanted = [
        (m["step"], m["value"])
        for m in Run(run_folders(study)[0]).metrics
        if (m["split"], m["name"]) == ("valid", "accuracy")
    ]
    assert wanted and [*zip(drawn.curves[0].x, drawn.curves[0].y, strict=True)] == wanted
    said = " ".join(f"{step}:{value:.4g}" for step, value in wanted)
    assert f'data-values="{said}"' in page


def test_shares_by_label_and_partners_are_counted_anew(content, trained):
    """Token by token, beside the page's tables."""
    tokens, expert = TraceReader(trained).tokens("layer0", "test"), 2
    work, seen, both = np.zeros(10), np.zeros(10), np.zeros(4)
    for chosen, weight, label in zip(tokens["expert"], tokens["weight"], tokens["label_class"], strict=True):
        kept = {int(e): float(w) for e, w in zip(chosen, weight, strict=True) if e >= 0 and w > 0}
        seen[label] += 1
        work[label] += kept.get(expert, 0.0) / sum(kept.values())
        if expert in kept:
            both[list(kept)] += 1
    shown = content.studies[0].runs[0].layers[0].experts[expert]
    serves, partners = shown.tables
    for row in serves.rows:
        label = int(row[0].text)
        assert row[1].key == pytest.approx(work[label] / work.sum())
        assert row[2].key == pytest.approx(seen[label] / seen.sum())
    for row in partners.rows:
        assert row[1].key == pytest.approx(both[int(row[0].text[1:])] / both[expert])
    assert shown.served == both[expert] and len(serves.rows) == 6 and len(partners.rows) == 3


def test_the_load_over_training_is_that_of_the_trace(content, trained):
    usage = TraceReader(trained).usage("layer0")
    share = usage["served"] / usage["served"].sum(1, keepdims=True)
    for number, expert in enumerate(content.studies[0].runs[0].layers[0].experts):
        assert expert.load.curves[0].y == pytest.approx(share[:, number].tolist())
        assert expert.load.levels[0].value == 0.25


def test_examples_are_the_inputs_that_the_expert_serves(content):
    """Every image is a digit of the test split, of the class that stands beside it."""
    split = Digits().splits["test"]
    known = {
        image.mul(16).round().byte().numpy().tobytes(): int(target)
        for image, target in zip(split.x, split.target, strict=True)
    }
    count = 0
    for expert in content.studies[0].runs[0].layers[0].experts:
        for shown in expert.examples:
            pixels = np.asarray(
                Image.open(io.BytesIO(base64.b64decode(shown.example.uri.partition(",")[2]))), dtype=float
            )
            label = known[(pixels * 16 / 255).round().astype(np.uint8).tobytes()]
            assert shown.said.startswith(f"class {label}, weight ")
            count += 1
    assert count == 4 * 8


def test_characters_are_shown_in_their_text(trained, tmp_path):
    from moecli.report.page.examples import Inputs, Show
    from moecli.tasks.text import Text
    from moecli.tasks.token_classes import CHARACTER_CLASSES, character_class

    (tmp_path / "text.txt").write_text("One line, then 2.\n\tAnother <b>line</b>.\n" * 400)
    task = Text(str(tmp_path / "text.txt"), context=32)
    path = copied(trained, tmp_path / "x" / "r", fingerprint=task.fingerprint)
    node = {"_target_": "moecli.tasks.text.Text", "path": str(tmp_path / "text.txt"), "context": 32}
    show = _inputs_of(node, path, Inputs())
    assert not isinstance(show, str), show
    batch = task.batch("test", torch.arange(2))
    for number in range(2):
        for position in range(32):
            shown = show(number, position)
            symbol = {"⏎": "\n", "⇥": "\t"}.get(shown.mark, shown.mark)
            assert CHARACTER_CLASSES.index(character_class(symbol)) == batch.labels["character"][number, position]
            assert len(shown.before) == min(position, 28)
    assert Show


def _inputs_of(node, path, inputs):
    """What shows inputs of a task that stands in the run's configuration."""
    import yaml

    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"task": node}))
    return inputs.of(Run(path))


def test_data_that_changed_shows_no_examples(trained, tmp_path):
    copied(trained, tmp_path / "x" / "r", fingerprint="other")
    expert = gather.gather([tmp_path]).studies[0].runs[0].layers[0].experts[0]
    assert not expert.examples and "no longer what the run read" in expert.note


@pytest.mark.parametrize(
    ("names", "side"),
    [
        (["pixel 0,0", "pixel 0,1"], (1, 2)),
        ([f"pixel {r},{c}" for r in range(3) for c in range(2)], (3, 2)),
        (["pixel 0,0", "pixel 1,1"], None),
        (["pixel 0,1", "pixel 0,0"], None),
        (["x", "y"], None),
        ([], None),
    ],
)
def test_an_image_is_known_by_all_its_pixels(names, side):
    assert image_side(names) == side


# -- drawing ----------------------------------------------------------------------------------


def test_ticks_are_round_and_within():
    for seed in range(300):
        draw = np.random.default_rng(seed)
        low = draw.normal() * 10.0 ** draw.integers(-6, 7)
        high = low + max(abs(low), 1e-9) * 10.0 ** draw.uniform(-5, 7)
        found = ticks(low, high)
        room = 1e-6 * (high - low)
        assert 2 <= len(found) <= 7 and all(low - room <= t <= high + room for t in found)
        assert f"{(found[1] - found[0]):.3e}"[:5] in ("1.000", "2.000", "5.000")


def test_logarithmic_ticks_are_within_and_at_least_two():
    assert log_ticks(0.001, 2.0) == [0.001, 0.01, 0.1, 1.0]
    for low, high in ((0.003, 2.4), (0.5, 20), (1.1, 40), (3e-9, 5e4)):
        found = log_ticks(low, high)
        assert len(found) >= 2 and all(low <= value <= high for value in found)


def test_a_long_curve_keeps_its_mean_and_loses_what_is_not_finite():
    draw = np.random.default_rng(0)
    y = draw.normal(size=6000)
    y[17] = np.nan
    short = thinned(Curve("a", list(range(6000)), y.tolist()))
    assert len(short.x) == 120 and short.x[-1] == 5999
    assert np.mean(short.y) == pytest.approx(np.nanmean(y), abs=1e-3)
    assert not thinned(Curve("a", [0, 1], [float("nan")] * 2)).x


def test_a_level_far_away_is_named_and_presses_nothing_flat():
    near, far = Level("near", 0.94), Level("far", 0.1)
    drawn = Chart("t", "u", [Curve("a", [0, 1], [0.95, 0.97])], ["a"], [near, far])
    assert legend(drawn) == [("even", "near"), ("", "far, off the chart")]
    assert str(chart(drawn)).count('class="level"') == 1


@pytest.mark.parametrize("y", [[0.0, 0.0], [5.0], [-2.0, -2.0], [1e-300, 1e300], []])
def test_any_curve_can_be_drawn(y):
    text = str(chart(Chart("t", "u", [Curve("a", list(range(len(y))), y)], ["a"])))
    assert "nan" not in text and "inf" not in text
    assert [*map(float, re.findall(r'y1="([^"]+)"', text))]


# -- one page ---------------------------------------------------------------------------------


def outside(text: str) -> list[str]:
    """Addresses that leave the page."""
    found = Structure(text)
    styles = re.findall(r"url\(([^)]*)\)|@import ([^;]+)", text)
    return [a for a in found.addresses if not a.startswith(("#", "data:image/"))] + [a or b for a, b in styles]


def test_nothing_leads_outside_and_every_link_arrives(page):
    found = Structure(page)
    assert not outside(page)
    assert outside(page.replace("</body>", '<img src="//evil.example/x.png"></body>')) == ["//evil.example/x.png"]
    assert outside(page.replace("</style>", "a{background:url(http://x)}</style>")) == ["http://x"]
    assert len(found.ids) == len(set(found.ids)) >= 4 * 4
    links = {a[1:] for a in found.addresses if a.startswith("#")}
    assert len(links) >= 4 * 4 and links <= set(found.ids)


def test_the_policy_lets_the_own_style_and_script_and_nothing_else(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for name in ("style", "script"):
        (text,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        assert f"{name}-src {html._hash(text)}" in policy
    names = {attribute for _, attributes in Structure(page).elements for attribute in attributes}
    assert "style" not in names and not [name for name in names if name.startswith("on")]


def test_tables_have_captions_and_scopes(page):
    elements = Structure(page).elements
    tables = [tag for tag, _ in elements if tag == "table"]
    assert len(tables) == len([tag for tag, _ in elements if tag == "caption"]) >= 20
    assert all("scope" in attributes for tag, attributes in elements if tag == "th")


def test_the_same_runs_give_the_same_bytes_wherever_they_are_read_from(study, page, tmp_path, monkeypatch):
    monkeypatch.chdir(study)
    assert html.page(gather.gather([Path("digits-top_k"), Path("digits-other")])) == page
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "moecli", "report", str(study)], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_five_broken_of_twenty_are_a_table_of_five_reasons(trained, tmp_path):
    paths = [copied(trained, tmp_path / "r" / f"20260101T0000{n:02d}-aaaa", seed=n) for n in range(20)]
    (paths[0] / "run.json").write_text("{")
    (paths[3] / "summary.json").unlink()
    (paths[5] / "metrics.jsonl").write_text("no json\n")
    (paths[7] / "routing/layer0").glob("usage-*.npz").__next__().write_bytes(b"PK")
    changed(paths[9], "summary.json", experts=[{"layer": "layer0"}])
    done = write.write([tmp_path], tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert done.runs == 15 and len(done.reasons) == 5
    assert [reason.split(":")[0] for reason in done.reasons] == [f"r/{paths[n].name}" for n in (0, 3, 5, 7, 9)]
    (broken,) = re.findall(r'<section id="broken">.*?</section>', text, re.DOTALL)
    assert broken.count("<tr>") == 6 and str(tmp_path) not in text


@pytest.mark.parametrize("copies", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_any_mutation_of_a_runs_files_is_a_reason_or_makes_no_difference(trained, tmp_path, copies):
    """Faults C12: a key lost, or a value of another kind, in one of the files of each copy."""
    draw, names = random.Random(copies), ["run.json", "summary.json", "metrics.jsonl"]
    for number in range(copies):
        path = copied(trained, tmp_path / "r" / f"20260101T{number:06d}-aaaa", seed=number)
        file = path / names[number % 3]
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(mutated(json.loads(lines[place]), draw))
        file.write_text("\n".join(lines) + "\n")
    found = gather.gather([tmp_path])
    count = sum(len(study.runs) for study in found.studies)
    assert count + len(found.broken.rows) == copies and 0.1 <= count / copies <= 0.9, count
    assert "</html>" in html.page(found) and markdown.page(found)


def mutated(value, draw):
    """The value with one key, at any depth, lost or of another kind."""
    value = dict(value)
    key = draw.choice([*value])
    if isinstance(value[key], dict) and value[key] and draw.random() < 0.5:
        return value | {key: mutated(value[key], draw)}
    if draw.random() < 0.4:
        del value[key]
        return value
    return value | {key: draw.choice([None, 7, -1.5, "word", "", [], [3], {}, {"a": 1}, True])}


def test_unfinished_runs_have_curves_and_no_experts(trained, tmp_path):
    path = copied(trained, tmp_path / "r" / "one", status="interrupted")
    (path / "summary.json").unlink()
    (found,) = gather.gather([tmp_path]).studies
    assert found.rows is None and len(found.charts) == 2 and not found.runs[0].layers
    assert "1 not finished" in found.lead[0] and "status: interrupted" in html.page(gather.gather([tmp_path]))


def test_runs_of_several_tasks_are_several_studies(study, tiny_run):
    found = gather.gather([study, tiny_run.path])
    assert [one.title for one in found.studies] == ["digits", "piecewise"] and found.title == "digits, piecewise"
    assert not outside(html.page(found))


def test_experts_beyond_the_last_page_have_no_link(study, monkeypatch):
    monkeypatch.setattr(runs, "MOST_PAGES", 5 * 3)
    found = gather.gather([study])
    layer = found.studies[0].runs[0].layers[0]
    assert len(layer.experts) == 3 and [row[0].href != "" for row in layer.table.rows] == [True] * 3 + [False]
    text = html.page(found)
    links = {a[1:] for a in Structure(text).addresses if a.startswith("#")}
    assert links <= set(Structure(text).ids) and "3 of them have a page" in text


def test_pictures_are_those_of_each_rows_first_run(study, trained, tmp_path):
    assert not list(pictures.pictures(trained))  # digits has curves, load and labels, which the page draws
    path = copied(trained, tmp_path / "r" / "one")
    Image.new("RGB", (480, 200), "white").save(path / "plots/extra.png")
    (path / "plots/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (4000, 4000)).save(path / "plots/huge.png")
    (found,) = pictures.pictures(path)
    assert (found.name, found.width) == ("extra", 200) and found.uri.startswith("data:image/png;base64,")
    copied(path, tmp_path / "r" / "two", seed=7)
    assert [len(run.pictures) for run in gather.gather([tmp_path]).studies[0].runs] == [1, 0]


def test_doctors_warnings_stand_in_the_headline_and_with_the_run(trained, tmp_path):
    copied(trained, tmp_path / "r" / "one", warnings=["layer0: one expert is dead"])
    found = gather.gather([tmp_path])
    assert "layer0: one expert is dead" in found.studies[0].runs[0].warnings
    assert found.studies[0].lead[-1].startswith("There are warnings of top_k, seed 0")


def test_only_keys_that_differ_are_side_by_side(content):
    rows = {row[0].text: [c.text for c in row[1:]] for row in content.studies[0].differing.rows}
    assert rows == {"router": ["top_k", "other", "top_k"], "model.twin": ["false", "false", "true"]}


def test_by_another_key(study):
    assert gather.gather([study], "seed").studies[0].names == ["0", "1", "dense twin of 0"]
    with pytest.raises(UsageError, match="no run has this key"):
        gather.gather([study], "rooter")


def test_a_folder_without_runs_and_one_that_is_not_there(tmp_path, trained):
    with pytest.raises(UsageError, match="no run in these folders"):
        write.write([tmp_path], tmp_path / "x.html")
    with pytest.raises(EnvironmentFailure, match="a folder that exists"):
        write.write([trained], tmp_path / "none" / "x.html")


# -- what users called things -----------------------------------------------------------------


def hostile(trained: Path, folder: Path, words: Sequence[str]) -> Path:
    """A run whose labels, keys, values, warnings, command, layer and versions are named by ten words."""
    path = copied(trained, folder / "r" / "20260101T000000-aaaa", command="moe train " + " ".join(words))
    config = {f"{word} {n}": word for n, word in enumerate(words)} | {"router": words[0], "expert": words[1]}
    changed(
        path,
        "run.json",
        warnings=list(words),
        config=config,
        label_names={"class": list(words)},
        versions={words[2]: words[3]},
        git=words[4],
        device=words[5],
        headline="accuracy",
        units={"accuracy": words[6], "loss": words[7]},
    )
    return folder


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_no_word_of_a_user_becomes_markup(trained, tmp_path, first):
    """The elements, attributes and addresses are those of a run with harmless names; and the words are there."""
    words = PAYLOADS[first : first + 10]
    harmless = gather.gather([hostile(trained, tmp_path / "a", [f"word{n}" for n in range(10)])])
    found = gather.gather([hostile(trained, tmp_path / "b", words)])
    page, plain = (Structure(html.page(content)) for content in (found, harmless))
    assert page.elements == plain.elements and page.addresses == plain.addresses
    assert len(page.elements) > 300
    for word in words:
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in word)
        assert shown in page.text, shown
    render = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render
    text, beside = (Structure(render(markdown.page(content))) for content in (found, harmless))
    assert text.elements == beside.elements and text.addresses == beside.addresses == []
    assert [tag for tag, _ in text.elements].count("table") >= 4


def test_the_check_sees_a_page_that_does_not_escape(trained, tmp_path, monkeypatch):
    words = PAYLOADS[:10]
    safe = Structure(html.page(gather.gather([hostile(trained, tmp_path / "a", words)])))
    whole = html._environment
    monkeypatch.setattr(html, "_environment", lambda: _without_escaping(whole()))
    live = Structure(html.page(gather.gather([tmp_path / "a"])))
    assert live.elements != safe.elements
    monkeypatch.setattr(markdown, "escaped", str)
    render = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render
    assert "<script>" in render(markdown.page(gather.gather([tmp_path / "a"])))


def _without_escaping(environment):
    environment.autoescape = False
    return environment


def test_markdown_has_the_pages_sentences_and_tables(content):
    text = markdown.page(content)
    rendered = Structure(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    for sentence in content.studies[0].lead:
        assert sentence in rendered.text
    assert [tag for tag, _ in rendered.elements].count("table") == 2 + 5 + 1 + 1  # rows, runs, layers, keys, machines
    assert "moe compare" in text


def test_a_sweep_is_repeated_by_its_own_command(trained, study, tmp_path):
    """Fifteen trainings are one line where a sweep made them; what is no plan of a sweep changes nothing."""
    sweep = tmp_path / "runs" / "three" / "20260101T000000-aaaa"
    for seed in (0, 1):
        copied(trained, sweep / "runs" / f"0000-seed{seed}" / "20260101T000001-aaaa", seed=seed)
    (sweep / "plan.json").write_text(json.dumps({"command": "moe sweep router=top_k seed=0,1 --name three"}))
    said = ["moe sweep router=top_k seed=0,1 --name three", "moe compare runs/three/* --by router"]
    assert gather.gather([sweep]).commands == said
    (sweep / "plan.json").write_text("[1")
    first, second, compared = gather.gather([sweep]).commands
    assert first.startswith("moe train --config") and first != second
    assert compared == "moe compare runs/0000-seed0/* runs/0000-seed1/* --by router"
    assert gather.gather([study]).commands[-1] == "moe compare runs/digits-top_k/* runs/digits-other/* --by router"
