"""What reading a run folder finds: damage named by its file, and experts that do not work; never without cause."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from numpy.typing import NDArray

from moecli.analysis.balance import DRIFT, ENOUGH, check_experts, examine_trace
from moecli.analysis.doctor import diagnose
from moecli.analysis.finding import Finding, damaged, from_error
from moecli.analysis.intact import CHECKS, check_intact
from moecli.errors import ArtifactError
from moecli.record.folder import Run
from moecli.record.lock import holder, locked
from moecli.training.health import DROPPED, FEW, WINDOW

SEEDS = range(20)
STEPS, TOKENS, EXPERTS = 80, 96, 8

# -- experts, on synthetic traces ----------------------------------------------------------------


def trace(bias, seed, k=1, steps=STEPS, tokens=TOKENS, kept=1.0, mass=False) -> dict[str, NDArray]:
    """Usage of a router whose logits are ``bias`` (E,), or (S, E) as it trains, plus Gumbel noise; top k of them."""
    draw = np.random.default_rng(seed)
    bias = np.broadcast_to(np.asarray(bias, float), (steps, np.shape(bias)[-1]))
    logits = bias[:, None] + draw.gumbel(size=(steps, tokens, bias.shape[1]))  # (S, N, E)
    rank = (logits[..., None, :] > logits[..., None]).sum(-1)
    asked, first = (rank < k).sum(1), (rank == 0).sum(1)  # (S, E)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    weight = (probs / probs.sum(-1, keepdims=True)).sum(1)
    asked = weight if mass else asked
    served = asked if kept == 1 else draw.binomial(asked, kept)
    entropy, count = np.ones(steps), np.full(steps, tokens)
    return {
        "step": np.arange(steps) * 4,
        "asked": asked,
        "served": served,
        "ranks": np.stack([asked, served], axis=1),
        "first": first,
        "mass": weight,
        "entropy": entropy,
        "tokens": count,
    }


def warned(usage, **options) -> list[str]:
    return [finding.what for finding in examine_trace("layer0", usage, **options) if finding.level == "warning"]


def bias_of(**logits) -> list[float]:
    """Zero for all experts but those named: e0=5."""
    return [logits.get(f"e{e}", 0.0) for e in range(EXPERTS)]


@pytest.mark.parametrize("options", [{"k": 1}, {"k": 2}, {"mass": True}])
def test_a_collapsed_run_is_found_and_a_balanced_one_is_not(options):
    collapsed = bias_of(**({"e0": 12.0, "e1": 12.0} if options.get("k") == 2 else {"e0": 12.0}))
    found = [warned(trace(collapsed, seed, **options)) for seed in SEEDS]
    assert len(found) == 20 and all("routing has collapsed" in said[0] for said in found)
    assert [warned(trace(bias_of(), seed, **options)) for seed in SEEDS] == [[]] * 20


def test_uneven_but_used_experts_are_no_warning():
    for seed in SEEDS:
        assert warned(trace(bias_of(e0=0.8, e1=0.4, e7=-0.4), seed)) == []


@pytest.mark.parametrize("options", [{"k": 1}, {"k": 2}, {"mass": True}])
def test_a_dead_expert_is_named(options):
    for seed in SEEDS:
        (said,) = warned(trace(bias_of(e3=-30.0), seed, **options))
        assert said.startswith("layer0: 1 of 8 experts get no tokens (e3)")


def test_an_expert_that_is_never_first_is_named_and_a_rare_one_is_not():
    usage = trace(bias_of(), 0, k=2)
    usage["first"][-WINDOW:, 5] = 0
    assert warned(usage) == ["layer0: 1 of 8 experts are no token's first choice (e5)"]
    usage["first"][-WINDOW, 5] = 1
    assert warned(usage) == []


def test_few_choices_prove_nothing():
    few = trace(bias_of(), 1, steps=1, tokens=FEW)
    few["first"][:, 2] = few["asked"][:, 2] = few["served"][:, 2] = 0
    assert warned(few) == []


@pytest.mark.parametrize(("logit", "said"), [(3.5, 1), (1.0, 0)])
def test_an_expert_that_most_tokens_ask(logit, said):
    for seed in SEEDS:  # with e^3.5 against 7 others it is asked by 83 %, with e^1 by 28 %
        found = warned(trace(bias_of(e6=logit), seed))
        assert len(found) == said and all("one expert is asked by 8" in text for text in found)


@pytest.mark.parametrize(("dropped", "meant", "said"), [(0.1, 0.0, 1), (0.1, 0.1, 0), (0.01, 0.0, 0), (0.3, 0.1, 1)])
def test_drops_count_above_what_is_meant(dropped, meant, said):
    assert abs(0.1 - DROPPED) > 0.02
    for seed in SEEDS:
        found = warned(trace(bias_of(), seed, kept=1 - dropped), meant=meant)
        assert len(found) == said and all("are dropped" in text for text in found)


def test_drift_is_work_that_changes_hands_late():
    early, late = bias_of(e0=2.0, e1=2.0), bias_of(e6=2.0, e7=2.0)
    settled = np.array([early] * 20 + [late] * 60)
    drifting = np.array([early] * 60 + [late] * 20)
    for seed in SEEDS:
        (said,) = warned(trace(drifting, seed))
        assert "changed hands" in said
        assert warned(trace(settled, seed)) == []


def test_the_luck_of_small_windows_is_no_drift():
    """As few choices as are judged at all: two windows of one distribution differ by far less than ``DRIFT``."""
    for seed in SEEDS:
        usage = trace(bias_of(), seed, tokens=EXPERTS * ENOUGH // WINDOW)
        halves = usage["asked"][-2 * WINDOW : -WINDOW].sum(0), usage["asked"][-WINDOW:].sum(0)
        load = [half / half.sum() for half in halves]
        assert 0 < np.abs(load[0] - load[1]).sum() / 2 < 0.75 * DRIFT
        assert warned(usage) == []


def test_an_ok_finding_has_the_numbers():
    (finding,) = examine_trace("layer0", trace(bias_of(), 0))
    assert finding.level == "ok" and finding.measured["dropped"] == 0
    assert 7.9 < finding.measured["effective_experts"] <= 8 and 1 <= finding.measured["max_over_mean"] < 1.2
    assert examine_trace("layer0", {})[0].level == "skipped"


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_run, tmp_path) -> Run:
    """A copy that may be damaged."""
    return Run(shutil.copytree(tiny_run.path, tmp_path / "run"))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of(findings, level) -> list[Finding]:
    return [finding for finding in findings if finding.level == level]


def only(findings, level) -> Finding:
    (finding,) = of(findings, level)
    return finding


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_run_is_ok_and_left_as_it_was(run):
    before = contents(run.path)
    findings = check_intact(run)
    assert [finding.level for finding in findings] == ["ok"] * len(findings) and len(findings) == 7 == len(CHECKS)
    assert contents(run.path) == before
    assert diagnose(run)[: len(findings)] == findings and {f.check for f in diagnose(run)} == {"intact", "experts"}


def test_every_flipped_bit_of_a_checkpoint_is_named(run):
    files = sorted((run.path / "checkpoints").rglob("*.*"))
    assert len(files) >= 10
    for file in files:
        whole = file.read_bytes()
        flip(file)
        (problem,) = damaged(check_intact(run))
        assert file.parent.name in problem.what and problem.do, problem
        file.write_bytes(whole)
    assert not damaged(check_intact(run))


def test_what_to_do_about_a_damaged_checkpoint_depends_on_who_needs_it(run):
    best = run.info["best_step"]
    folders = {int(p.name.removeprefix("step-")): p for p in (run.path / "checkpoints").iterdir()}
    other = next(step for step in folders if step != best)
    flip(folders[other] / "model.safetensors")
    assert "Remove it" in only(check_intact(run), "problem").do
    rewrite(run.path / "run.json", status="interrupted")
    assert "--resume" in only(check_intact(Run(run.path)), "problem").do
    rewrite(run.path / "run.json", status="finished", best_step=other)
    assert "--config" in only(check_intact(Run(run.path)), "problem").do
    shutil.rmtree(folders[other])
    assert f"best step {other} is missing" in only(check_intact(Run(run.path)), "problem").what


DAMAGE = {
    "run.json": lambda path: path.write_text("{"),
    "config.yaml": lambda path: path.write_text(path.read_text().replace("moecli.tasks", "os.path")),
    "metrics.jsonl": lambda path: path.write_bytes(b"{}\n" + path.read_bytes()),
    "timing.jsonl": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "summary.json": lambda path: path.write_text("[]"),
    "routing/layer0/usage-00000000.npz": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "routing/surface.npz": flip,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(run, name):
    DAMAGE[name](run.path / name)
    problems = damaged(diagnose(Run(run.path)))
    assert any(name in problem.what for problem in problems) and all(problem.do for problem in problems), problems


def test_lines_that_a_checkpoint_saw_and_are_gone(run):
    metrics = run.path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:3]))
    assert any("metrics.jsonl: it was cut" in problem.what for problem in damaged(check_intact(run)))


def test_a_run_whose_process_is_gone_is_interrupted(run):
    rewrite(run.path / "run.json", status="running")
    finding = only(check_intact(Run(run.path)), "warning")
    assert "interrupted" in finding.what and "process is gone" in finding.why
    assert f"moe train --resume {run.path}" in finding.do


def test_a_run_that_is_training_is_not(run):
    rewrite(run.path / "run.json", status="running")
    (run.path / ".tmp-metrics").write_text("being written")
    assert holder(run.path) is None
    with locked(run.path):
        assert holder(run.path).startswith("process ")
        findings = check_intact(Run(run.path))
    assert not of(findings, "warning") and not damaged(findings) and "is training it" in findings[0].what
    assert holder(run.path) is None


def test_a_failed_run_names_its_crash(run):
    (run.path / "crash-20260101T000000.log").write_text("...")
    rewrite(run.path / "run.json", status="failed", error="the loss is nan")
    finding = only(check_intact(Run(run.path)), "warning")
    assert finding.why == "the loss is nan" and "crash-20260101T000000.log" in finding.do and "--resume" in finding.do


def test_leftovers_and_torn_lines_of_a_killed_run_are_warnings(run):
    rewrite(run.path / "run.json", status="running")
    (run.path / "checkpoints" / ".tmp-00000030-abcd").mkdir()
    (run.path / ".tmp-run.json-abcd").write_text("{")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')
    (run.path / "checkpoints" / "step-00000020").rename(run.path / "checkpoints" / "damaged-step-00000020-abcd")
    findings = check_intact(Run(run.path))
    said = " ".join(finding.sentence for finding in of(findings, "warning"))
    assert len(of(findings, "warning")) == 4 and not damaged(findings)
    assert "2 leftovers" in said and "rm -r" in said and "last line is torn" in said and "1 set aside" in said


def test_a_run_that_has_hardly_begun(run):
    rewrite(run.path / "run.json", status="interrupted")
    for name in ("checkpoints", "routing"):
        shutil.rmtree(run.path / name)
    (run.path / "summary.json").unlink()
    findings = diagnose(Run(run.path))
    assert not damaged(findings)
    assert any("none yet" in finding.what for finding in of(findings, "warning"))
    assert any("too early" in finding.what for finding in of(findings, "skipped"))


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"no run\.json"):
        Run(tmp_path)


def test_layers_of_a_damaged_run_are_not_judged(run):
    (run.path / "run.json").write_text("{")
    assert check_experts(Run(run.path)) == []


def test_an_error_becomes_what_and_what_to_do():
    finding = from_error("problem", "intact", ArtifactError("a (b): c. Do d"))
    assert (finding.what, finding.do) == ("a (b): c", "Do d") and finding.sentence == "a (b): c. Do d"
