"""Run folders: claimed once, written whole, read without half a line."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import ArtifactError, EnvironmentFailure, UsageError
from moecli.record import folder as folders
from moecli.record.folder import LineFile, Run, claim, find_runs, read_lines, runs_root, to_json, write_whole


class Stopped:
    """A clock that stands still, so that only the letters tell runs apart."""

    @staticmethod
    def now(zone):
        import datetime

        return datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=zone)


def test_a_hundred_claims_at_once_are_a_hundred_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "datetime", Stopped)
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda _: claim(tmp_path, "same"), range(100)))
    assert len(set(made)) == 100 == len(list((tmp_path / "same").iterdir()))
    assert all(path.is_dir() and path.name.startswith("20260102T030405-") for path in made)


def test_a_claim_that_is_taken_is_never_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "datetime", Stopped)
    drawn = iter("aaaaaaaabbbb")
    monkeypatch.setattr(folders.secrets, "choice", lambda letters: next(drawn))
    assert [claim(tmp_path, "x").name[-4:] for _ in range(2)] == ["aaaa", "bbbb"]


def test_processes_share_no_claim(tmp_path):
    code = (
        "from pathlib import Path; from moecli.record.folder import claim\n"
        f"for _ in range(25): print(claim(Path({str(tmp_path)!r}), 'p'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = [line for process in running for line in process.communicate()[0].split()]
    assert len(made) == 100 == len(set(made))


ESCAPES = ["../../x", "/abs", "a/../../b", "~", "C:\\x", "\\\\srv\\x", "..", ".", "", "x" * 101, "a\0b", "a\nb", "a:b", "-x",
           "a b", "é", "🎲", "...", "a/b", "a\\b", "*", "$HOME", "`id`", " ", "\t", "a\u202e"]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_would_leave_the_root_are_refused(name, tmp_path):
    with pytest.raises(UsageError):
        claim(tmp_path / "root", name)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_name_escapes(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "names"
    try:
        path = claim(root, name)
    except UsageError:
        return
    assert path.resolve().parent.parent == root.resolve()


def test_ordinary_names_are_taken(tmp_path):
    assert claim(tmp_path, "digits-top_k.2").parent.name == "digits-top_k.2"


def test_a_root_that_cannot_be_written_is_an_environment_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="--runs"):
        claim(tmp_path / "file", "x")


def test_the_root_is_the_option_else_the_variable_else_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RUNS", "/elsewhere")
    assert runs_root(tmp_path) == tmp_path and runs_root() == Path("/elsewhere")
    monkeypatch.delenv("MOE_RUNS")
    assert runs_root() == Path("runs")
    assert runs_root(Path("~/x")) == Path.home() / "x"


# -- written whole ------------------------------------------------------------------------------------


def test_write_whole_replaces_a_file(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"old", b"new and longer"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(call, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    write_whole(tmp_path / "x", b"data")
    assert calls == ["fsync", "replace"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from moecli.record.folder import LineFile, read_lines, write_whole
folder = Path(sys.argv[1])
write_whole(folder / "a", b"old")
lines = LineFile(folder / "b.jsonl")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for work in (lambda: write_whole(folder / "a", b"x" * 10_000), lambda: lines.append({"i": i} for i in range(2_000))):
    try:
        work()
        print("written")
    except OSError as error:
        print(error.errno)
print((folder / "a").read_bytes(), sorted(p.name for p in folder.iterdir()), len(read_lines(folder / "b.jsonl")) > 100)
write_whole(folder / "a", b"x" * 4_000)
print(len((folder / "a").read_bytes()))
"""


def test_a_full_disk_keeps_the_old_file_and_whole_lines(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["27", "27", "b'old' ['a', 'b.jsonl'] True", "4000"], done.stderr


# -- JSON ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, float) and not math.isfinite(a):
        return b is None
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_json_is_valid_whatever_the_numbers(value):
    def refuse(constant):
        raise AssertionError(constant)

    assert same(value, json.loads(to_json(value), parse_constant=refuse))


def test_nan_and_infinity_become_null():
    assert json.loads(to_json({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)]})) == {
        "a": None,
        "b": [None, [None, 1.5]],
    }


# -- lines --------------------------------------------------------------------------------------------


def test_lines_are_appended_and_a_torn_last_one_is_left_out(tmp_path):
    path, records = (
        tmp_path / "m.jsonl",
        [{"step": i, "value": math.nan if i == 2 else i / 2, "name": "ü"} for i in range(5)],
    )
    file = LineFile(path)
    file.append(records[:3])
    file.append(iter(records[3:]))
    file.close()
    whole = [{**r, "value": None if r["step"] == 2 else r["value"]} for r in records]
    assert read_lines(path) == whole
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert read_lines(path) == whole[: data[:cut].count(b"\n")]


def test_a_reader_never_sees_half_a_line(tmp_path):
    path = tmp_path / "m.jsonl"
    file, lengths = LineFile(path), []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [file.append([{"step": i, "pad": "x" * 500}]) for i in range(500)])
        while not writing.done():
            lengths.append(len(read_lines(path)))
    assert lengths == sorted(lengths) and len(read_lines(path)) == 500


def test_changed_lines_are_an_artifact_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(ArtifactError):
        read_lines(path)
    assert read_lines(tmp_path / "none") == []


# -- reading a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff", b'{"a": 1}x', b"null"])
def test_a_changed_run_json_is_an_artifact_error(data, tmp_path):
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        _ = Run(tmp_path).info
    assert "run.json" in str(caught.value)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    with pytest.raises(ArtifactError):
        Run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        _ = Run(tmp_path).summary


def test_runs_are_found_once_in_the_order_of_their_start(tmp_path):
    for name in ("b/20260102T000000-aaaa", "a/20260103T000000-aaaa", "a/20260101T000000-aaaa"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    found = find_runs([tmp_path, tmp_path / "a", tmp_path / "a" / "20260101T000000-aaaa"])
    assert [p.name[:8] for p in found] == ["20260101", "20260102", "20260103"]
    assert find_runs([tmp_path / "none"]) == []
