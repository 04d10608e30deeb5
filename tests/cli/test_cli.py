"""The command line: help that runs, errors of one line, tables that hold up and are inert."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from moecli import cli
from tests.waiting import until

COMMANDS = sorted(
    {p.stem for p in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "app", "common", "completion"}
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def fails(result, code, *needles):
    """One line on standard error, the right exit code, no traceback, and something to do about it."""
    got, out, err = result
    assert got == code, (got, err)
    assert re.fullmatch(r"moe: error: [^\n]+\n", err), err
    assert "Traceback" not in out + err and "\x1b" not in err
    assert ". " in err, err  # what it is, then what to do
    for needle in needles:
        assert str(needle) in err, err


def subprocess_moe(*words, **env):
    return subprocess.run(
        [sys.executable, "-m", "moecli", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=60,
    )


# -- help ---------------------------------------------------------------------------------------------


def test_every_command_file_is_a_command(moe):
    assert set(COMMANDS) >= {"train", "eval", "predict", "compare", "plot", "ls", "show"}
    code, out, _ = moe("--help")
    assert code == 0 and all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_a_command(command, moe):
    code, out, _ = moe(command, "--help")
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", out).split())
    assert code == 0 and "Example:" in text
    examples = re.findall(r"`(moe [^`]*)`", text.partition("Example:")[2])
    assert examples and all(shlex.split(e)[1] == command for e in examples), examples


def test_help_examples_run(moe, tiny_run, tmp_path):
    """Each example of the help, RUN being a run, FILE a table; long trainings only composed."""
    table = tmp_path / "new_rows.csv"
    table.write_text("x\n0.5\n-0.25\n")
    shutil.copytree(tiny_run.path.parent, tmp_path / "runs" / "digits-x")
    ran = 0
    for module in (cli.train, cli.eval, cli.predict, cli.compare, cli.ls, cli.show):
        for line in re.findall(r"`moe ([^`]*)`", module.EPILOG):
            words = [str(tiny_run.path) if w == "RUN" else w for w in shlex.split(line)]
            if {"FILE", "task.path=FILE", "--matrix", "--bootstrap", "router.k", "--generate"} & set(words):
                continue  # a user's own file; what is slow; a key that the tiny run lacks; text (test_generation.py)
            words = [p for w in words for p in (sorted(map(str, tmp_path.glob(w))) if "*" in w else [w])]
            words += ["--cfg"] if words[0] == "train" else []
            words = [w for w in words if not w.startswith("router.eval_capacity")]
            code, _, err = moe(*words)
            assert code == 0, (line, err)
            ran += 1
    assert ran >= 10


def test_no_arguments_and_the_version(moe):
    code, out, _err = moe("--version")
    assert code == 0 and out.startswith("moecli ")
    assert moe()[0] in (0, 2)


# -- errors -------------------------------------------------------------------------------------------

WRONG = [
    (["train", "rooter=top_k"], 2, ["router"]),
    (["train", "router=top_kk"], 2, ["router=top_k?"]),
    (["train", "router.kk=1"], 2, ["router.k?"]),
    (["train", "router.k=eight"], 2, ["router.k=eight"]),
    (["train", "router._target_=os.system"], 2, ["_target_"]),
    (["train", "router.k=1"], 2, ["router.renormalize"]),
    (["train", "router.k=9"], 2, ["num_experts"]),
    (["train", "task=table", "task.path=none.csv", "task.target=y"], 3, ["none.csv"]),
    (["train", "--config", "none.yaml"], 4, ["none.yaml"]),
    (["train", "--plugin", "."], 2, ["conf"]),
    (["train", "task=piecewise", "--name", "../x", "trainer.steps=1"], 2, ["--name"]),
    (["train", "model=density", "router=expert_choice"], 2, ["density"]),
    (["train", "gate=mlp", "router=hash", "task=stdlib_text"], 2, ["gate"]),
    (["trian"], 2, ["trian"]),
    (["train", "--no-such-option"], 2, ["--no-such-option"]),
    (["eval"], 2, ["RUN"]),
    (["eval", "nowhere"], 4, ["nowhere", "moe ls runs"]),
    (["predict", "nowhere", "x.csv", "-o", "y.csv"], 4, ["nowhere"]),
    (["plot", "nowhere"], 4, ["nowhere"]),
    (["show", "nowhere"], 4, ["nowhere"]),
    (["show", "router"], 2, ["router=OPTION"]),
    (["show", "router=hsah"], 2, ["hash"]),
    (["ls", "routers"], 2, ["router?"]),
    (["compare", "nowhere"], 4, ["nowhere", "moe ls runs"]),
    (["compare", ".", "--csv", "--latex"], 2, ["Choose one"]),
]


@pytest.mark.parametrize(
    ("words", "code", "needles"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_a_mistake_is_one_line_and_its_exit_code(words, code, needles, moe, tmp_path):
    fails(moe(*words), code, *needles)
    assert not (tmp_path / "runs").exists()


def test_each_option_of_each_group_is_shown(moe):
    from moecli.config import registry

    shown = 0
    for group in ("gate", "expert", "model", "auxiliary", "optimizer", "trainer", "family"):
        for option in registry()[group]:
            code, out, err = moe("show", f"{group}={option}")
            assert code == 0 and out.startswith(f" {option} · "), err
            shown += 1
    assert shown >= 20
    code, out, _ = moe("show", "router=top_k")
    assert "router.k=2" in out and "causal yes" in out


def test_every_group_is_listed(moe):
    from moecli.config import registry

    code, out, _ = moe("ls")
    assert code == 0
    for group, options in registry().items():
        assert f"\n{group}\n" in out and all(f"  {o} " in out for o in options)


def test_a_full_disk_and_a_folder_without_permission_are_the_environment(moe, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["train", "task=piecewise", "trainer.steps=1", "--quiet", "--runs"]
    fails(moe(*words, tmp_path / "file"), 5, "--runs")

    from moecli.record import checkpoint

    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(checkpoint, "write_whole", full)
    fails(moe(*words, tmp_path / "r"), 5, "disk is full")
    (failed,) = (tmp_path / "r").glob("*/*/run.json")
    assert json.loads(failed.read_text())["status"] == "failed"
    assert list(failed.parent.glob("crash-*.log"))
    code, out, _ = moe("ls", "runs", "--runs", tmp_path / "r")
    assert code == 0 and "failed" in out
    fails(moe("compare", tmp_path / "r"), 2, "finished")


def test_a_loss_that_is_not_finite_is_a_numerical_failure(moe):
    fails(
        moe("train", "task=piecewise", "trainer.steps=30", "optimizer.lr=1e30", "trainer.clip=null", "--quiet"),
        6,
        "optimizer.lr",
    )


def test_an_unexpected_error_is_a_bug_and_says_how_to_see_it(moe, monkeypatch):
    from moecli import config

    def broken(*_):
        raise ZeroDivisionError("one\ntwo\x1b[31m")

    monkeypatch.setattr(config, "compose", broken)
    fails(moe("train", "--cfg"), 1, "bug", "MOE_DEBUG=1", "ZeroDivisionError")
    monkeypatch.setenv("MOE_DEBUG", "1")
    assert "Traceback" in moe("train", "--cfg")[2]


def test_an_interrupt_is_130(moe, monkeypatch):
    from moecli import config

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "compose", stop)
    assert moe("train", "--cfg")[0] == 130


# -- in a process of its own --------------------------------------------------------------------------


def test_a_refused_word_costs_no_torch_and_no_traceback():
    done = subprocess_moe("train", "router.kk=1")
    fails((done.returncode, done.stdout, done.stderr), 2, "router.k?")


def test_ascii_and_no_utf8_mode_are_no_crash(tiny_run):
    for words in (["ls", "router"], ["show", tiny_run.path]):
        done = subprocess_moe(*words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.isascii()
    done = subprocess_moe("eval", tiny_run.path, "--json", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tiny_run.path)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from moecli.cli import app\n"
        "print({'torch', 'pandas', 'hydra', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m moecli ls | head -1 >/dev/null", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


# -- what reads a run ---------------------------------------------------------------------------------


def test_train_prints_json_equal_to_the_summary(moe, tmp_path):
    code, out, _err = moe(
        "train", "task=piecewise", "task.rows=100", "trainer.steps=4", "--json", "--runs", tmp_path / "r"
    )
    printed = json.loads(out)
    (path,) = (tmp_path / "r").glob("*/*/summary.json")
    assert code == 0 and printed == json.loads(path.read_text())
    assert printed["run"] == str(path.parent) and printed["status"] == "finished"
    assert set(printed) >= {"run", "status", "seconds", "parameters", "flops", "metrics", "chance", "experts"}
    again = moe("train", "--config", path.parent / "config.yaml", "--json", "--runs", tmp_path / "r")
    assert again[0] == 0, again[2]
    assert json.loads(again[1])["metrics"] == printed["metrics"]
    other = moe("train", "--config", path.parent / "config.yaml", "seed=1", "--json", "--runs", tmp_path / "r")
    assert json.loads(other[1])["metrics"] != printed["metrics"]


def test_cfg_prints_what_is_read_back(moe, tmp_path):
    from moecli import config

    code, out, _ = moe("train", "router.k=3", "--cfg")
    (tmp_path / "c.yaml").write_text(out)
    assert code == 0 and config.read(tmp_path / "c.yaml") == config.compose(["router.k=3"]).config


def test_eval_gives_the_numbers_of_the_training(moe, tiny_run):
    for split in ("valid", "test"):
        code, out, _ = moe("eval", tiny_run.path, "--split", split, "--json")
        found = json.loads(out)
        assert code == 0 and found["split"] == split
        for name, value in found["metrics"].items():
            assert value == pytest.approx(tiny_run.summary["metrics"][f"{split}/{name}"], rel=1e-6)
    assert moe("eval", tiny_run.path)[0] == 0
    assert json.loads(moe("eval", tiny_run.path, "task.noise=0.5", "--json")[1])["metrics"] != found["metrics"]
    fails(moe("eval", tiny_run.path, "task.nois=0.5"), 2, "task.noise?")
    fails(moe("eval", tiny_run.path, "num_experts=3"), 4, "weights of another model")


def test_predict_writes_a_row_for_each_row(moe, tiny_run, tmp_path):
    (tmp_path / "new.csv").write_text("x\n0.5\n-0.25\n0.1\n")
    code, _, err = moe("predict", tiny_run.path, "new.csv", "-o", "out.csv")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == 3 and {"predicted y", "sd y", "layer0 expert", "layer0 weight"} <= set(rows[0])
    assert all(math.isfinite(float(v)) for row in rows for v in row.values())
    (tmp_path / "bad.csv").write_text("z\n1\n")
    fails(moe("predict", tiny_run.path, "bad.csv", "-o", "no.csv"), 3, "x")
    assert not (tmp_path / "no.csv").exists()


def test_show_plot_and_ls_read_the_run(moe, tiny_run, tmp_path):
    code, out, _ = moe("show", tiny_run.path)
    assert code == 0 and "NMI" in out and "chance" in out and "e0" in out
    code, out, _ = moe("plot", tiny_run.path, "curves")
    assert code == 0 and [Path(line).is_file() for line in out.splitlines()] == [True]
    fails(moe("plot", tiny_run.path, "curvs"), 2, "curves?")
    code, out, _ = moe("ls", "runs", "--runs", tiny_run.path.parent.parent)
    assert code == 0 and str(tiny_run.path) in out and "finished" in out
    assert "no runs" in moe("ls", "runs", "--runs", tmp_path / "empty")[1]


def test_a_damaged_checkpoint_is_refused(moe, tiny_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run.path, copy)
    for path in copy.glob("checkpoints/*/model.safetensors"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    fails(moe("eval", copy), 4, "model.safetensors", "damaged")
    (copy / "config.yaml").write_text(
        (copy / "config.yaml").read_text().replace("moecli.routers.dense.Dense", "os.system")
    )
    fails(moe("eval", copy), 4, "os.system")
    shutil.rmtree(copy / "checkpoints")
    shutil.copy(tiny_run.path / "config.yaml", copy / "config.yaml")
    fails(moe("eval", copy), 4, "no checkpoint")


def test_sigterm_saves_says_so_and_leaves_with_143(tmp_path):
    words = ["train", "task=spirals", "trainer.steps=1000000", "trainer.eval_every=50", "--runs", str(tmp_path)]
    running = subprocess.Popen(
        [sys.executable, "-m", "moecli", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    until(lambda: running.poll() is not None or list(tmp_path.glob("*/*/checkpoints/step-*/MANIFEST.json")), 60)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143 and err.count("\n") == 1 and "moe train --resume" in err
    (info,) = tmp_path.glob("*/*/run.json")
    assert json.loads(info.read_text())["status"] == "interrupted"


# -- compare ------------------------------------------------------------------------------------------


def fake_run(tiny_run, root, number, router="dense", value=0.5, **info):
    """A run folder with a made-up result."""
    path = root / f"20260101T{number:06d}-aaaa"
    path.mkdir(parents=True)
    given = {**tiny_run.info, "id": path.name, "seed": number, **info}
    given["config"] = {**given["config"], "router": router, "seed": number}
    summary = {**tiny_run.summary, "metrics": {**tiny_run.summary["metrics"], "test/r2": value}}
    (path / "run.json").write_text(json.dumps(given))
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_rows_are_best_first_with_nan_last_and_every_number_recomputed(moe, tiny_run, tmp_path):
    results = {"good": [0.9, 0.8, 0.85], "bad": [0.1, 0.3], "broken": [None, 0.99], "alone": [0.5]}
    number = 0
    for router, values in results.items():
        for value in values:
            number += 1
            fake_run(tiny_run, tmp_path / "r", number, router, value)
    code, out, _ = moe("compare", tmp_path / "r", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["router"] for row in rows] == ["good", "alone", "bad", "broken"]
    for row in rows:
        values = results[row["router"]]
        assert row["n"] == len(values)
        if None in values:
            assert row["test/r2"]["mean"] is None
        else:
            assert row["test/r2"]["mean"] == pytest.approx(np.mean(values))
    low, high = scipy.stats.t.interval(0.95, 2, 0.85, scipy.stats.sem(results["good"]))
    assert rows[0]["test/r2"]["half_width_95"] == pytest.approx((high - low) / 2)
    code, out, _ = moe("compare", tmp_path / "r")
    assert code == 0 and out.index("good") < out.index("alone") < out.index("bad") < out.index("broken")
    assert "0.850 ± 0.124" in out
    fails(moe("compare", tmp_path / "r", "--by", "rooter"), 2, "router?")


def test_lower_is_better_where_the_task_says_so(moe, tiny_run, tmp_path):
    for number, (router, value) in enumerate({"low": 0.1, "high": 0.9}.items()):
        fake_run(tiny_run, tmp_path / "r", number, router, value, higher_is_better=False)
    assert [row["router"] for row in json.loads(moe("compare", tmp_path / "r", "--json")[1])] == ["low", "high"]


def test_broken_runs_are_skipped_with_exit_8(moe, tiny_run, tmp_path):
    for number in range(20):
        fake_run(tiny_run, tmp_path / "r", number, value=number / 20)
    paths = sorted((tmp_path / "r").iterdir())
    (paths[0] / "run.json").write_text("{")
    (paths[1] / "run.json").write_text("[]")
    (paths[2] / "run.json").write_text("{}")
    (paths[3] / "summary.json").unlink()
    (paths[4] / "summary.json").write_text('{"metrics": 3, "layers": []}')
    code, out, err = moe("compare", tmp_path / "r", "--json")
    assert code == 8 and "5 of 20" in err and err.count("\n") == 1
    assert json.loads(out)[0]["n"] == 15
    code, out, _ = moe("compare", tmp_path / "r")
    assert code == 8 and out.count(" left out: ") == 5 and all(str(path) in out for path in paths[:5])
    code, out, _ = moe("ls", "runs", "--runs", tmp_path / "r")
    assert code == 8 and out.count("left out: ") == 5
    (tmp_path / "s").mkdir()
    shutil.copytree(paths[0], tmp_path / "s" / "x")
    assert moe("compare", tmp_path / "s")[0] == 8


def test_runs_of_several_tasks_have_no_common_scale(moe, tiny_run, tmp_path):
    fake_run(tiny_run, tmp_path / "r", 1)
    fake_run(tiny_run, tmp_path / "r", 2, config={**tiny_run.info["config"], "task": "digits"})
    fails(moe("compare", tmp_path / "r"), 2, "several tasks")


def test_runs_on_different_data_have_no_common_scale(moe, tiny_run, tmp_path):
    fake_run(tiny_run, tmp_path / "r", 1)
    fake_run(tiny_run, tmp_path / "r", 2, fingerprint="other")
    fails(moe("compare", tmp_path / "r"), 2, "different data")


def test_a_run_told_the_same_twice_counts_once_and_a_mixed_row_says_so(moe, tiny_run, tmp_path):
    fake_run(tiny_run, tmp_path / "r", 1, value=0.1)
    path = fake_run(tiny_run, tmp_path / "r", 2, value=0.9)
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "seed": 1, "config": {**info["config"], "seed": 1}}))
    (row,) = json.loads(moe("compare", tmp_path / "r", "--json")[1])
    assert row["n"] == 1 and row["test/r2"]["mean"] == 0.9  # the newest
    assert "its runs differ" not in moe("compare", tmp_path / "r")[1]
    other = {**info["config"], "seed": 1, "trainer.steps": 7}
    (path / "run.json").write_text(json.dumps({**info, "seed": 1, "config": other}))
    assert "dense: its runs differ in trainer.steps too" in moe("compare", tmp_path / "r")[1]


def test_compare_by_another_key_and_the_twin_apart(moe, tiny_run, tmp_path):
    fake_run(tiny_run, tmp_path / "r", 1, twin=True)
    fake_run(tiny_run, tmp_path / "r", 2)
    fake_run(tiny_run, tmp_path / "r", 3, leak=True)
    names = {row["name"] for row in json.loads(moe("compare", tmp_path / "r", "--json", "--by", "seed")[1])}
    assert names == {"dense twin of 1", "2", "3"}
    assert "saw the future" in moe("compare", tmp_path / "r", "--markdown")[1]


HOSTILE = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "\rx", "<script>alert(1)</script>", "\\input{/etc/passwd}", "\\write18{ls}",
           "a|b|c", "[x](javascript:1)", "`id`", "$\\frac{1$", "50% & #1_a^b~c{}", "two\nlines", 'say "hi", now', "é日本🎲", "\x1b[31mred",
           "* _ *", "![x](http://x)", "\x00", "x" * 300, "\u202eabc", "&lt;b&gt;"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: repr(n[:12]))
def test_a_terminal_gets_no_control_characters(name, moe, tiny_run, tmp_path):
    path = fake_run(tiny_run, tmp_path / "r", 1, router=name, command=f"moe train {name}")
    for words in (["compare", tmp_path / "r"], ["ls", "runs", "--runs", tmp_path / "r"], ["show", path]):
        code, out, err = moe(*words)
        assert (code, err) == (0, ""), err
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out), words


EVERY_FORM = """
import sys
from moecli.cli.compare import FORMS, _compare
from pathlib import Path
for form in ("terminal", *FORMS):
    _compare([Path(sys.argv[1])], ["router"], None, [], None, form)
    print("----")
"""


def test_the_same_runs_give_the_same_bytes_in_every_form(tiny_run, tmp_path):
    for number, (router, value) in enumerate({"b": 0.5, "a": 0.5, "c": 0.7, "d": None}.items()):
        for seed in (0, 1):
            fake_run(tiny_run, tmp_path / "r", 10 * number + seed, router, value)
    said = []
    for seed, folder in (("1", tmp_path), ("2", Path.cwd())):
        words, env = [sys.executable, "-c", EVERY_FORM, str(tmp_path / "r")], {**os.environ, "PYTHONHASHSEED": seed}
        env["PYTHONPATH"] = str(Path(cli.__file__).parents[2])
        done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=folder, timeout=60)
        said.append(done.stdout.split("----"))
    assert said[0] == said[1] and len(set(said[0])) == 7, done.stderr


def test_two_runs_side_by_side(moe, tiny_run, tmp_path):
    a = fake_run(tiny_run, tmp_path / "r", 1, "dense", 0.25)
    b = fake_run(tiny_run, tmp_path / "r", 2, "top_k", 0.75, git="other", fingerprint="other")
    code, out, _ = moe("compare", "--diff", a, b)
    assert code == 0 and re.search(r"test/r2 +0\.25 +0\.75 +0\.5\n", out) and "different data" in out
    assert re.search(r"router +dense +top_k", out) and re.search(r"git .* other", out) and "trainer.steps" not in out
    found = json.loads(moe("compare", a, b, "--diff", "--json")[1])
    assert found["settings"] == {"router": ["dense", "top_k"], "seed": ["1", "2"]} and not found["same_data"]
    assert found["numbers"]["test/r2"] == [0.25, 0.75] and found["numbers"]["FLOP"] == [tiny_run.info["flops"]] * 2
    assert "the settings are the same" in moe("compare", a, a, "--diff")[1]
    fails(moe("compare", a, "--diff"), 2, "two run folders")
    fails(moe("compare", a, tmp_path / "r", "--diff"), 4, "no run folder")
    (b / "run.json").write_text((b / "run.json").read_text().replace('"flops": ', '"flops": "x", "f": '))
    fails(moe("compare", a, b, "--diff"), 4, "none of ours")


def test_pictures_are_drawn_with_their_numbers_beside_them(moe, tiny_run, tmp_path):
    for number in range(4):
        path = fake_run(tiny_run, tmp_path / "r", number, "ab"[number % 2], number / 10)
        lines = [{"step": s, "split": "valid", "name": "r2", "value": s * number} for s in (1, 2, 3 + number)]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, out, _ = moe("compare", tmp_path / "r", "--draw", tmp_path / "drawn")
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert code == 0 and names == {"curves.png", "curves.csv", "pareto.png", "pareto.csv"}
    assert out.count(" drawn: ") == 2
    rows = list(csv.DictReader((tmp_path / "drawn" / "curves.csv").read_text().splitlines()))
    means = {(row["row"], row["step"]): float(row["mean"]) for row in rows}
    assert means == {("a", "1"): 1, ("a", "2"): 2, ("b", "1"): 2, ("b", "2"): 4}  # steps that both runs have
    (tmp_path / "file").touch()
    fails(moe("compare", tmp_path / "r", "--draw", tmp_path / "file"), 5, "--draw")
    fails(moe("compare", tmp_path / "r", "--by", ",", "--draw", "x"), 2, "--by")


def test_python_reads_the_same_table(tiny_run, tmp_path):
    import moecli

    for number in range(3):
        fake_run(tiny_run, tmp_path / "r", number, value=number / 10)
    frame = moecli.runs(tmp_path / "r")
    assert len(frame) == 3 and frame["test/r2"].tolist() == [0.0, 0.1, 0.2]
    assert set(frame["status"]) == {"finished"} and frame["router"].tolist() == ["dense"] * 3
