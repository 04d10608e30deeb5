"""Faults C1-C4, C7-C9, C11, C12, C14, C15: what is damaged, foreign or misplaced is refused in one line, never loaded."""

import json
import os
import random
import shutil
import threading
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from moecli import run as engine
from moecli.errors import ArtifactError, MoeError, PartialSuccess
from moecli.record import checkpoint
from moecli.record.folder import LineFile, Run, read_lines
from moecli.record.trace import TraceReader, read_arrays
from moecli.report.compare import compare
from moecli.report.compare_table import table
from moecli.report.records import read_runs

CASES = 200
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def steps(tiny_run):
    """The checkpoints of a real run, the older first."""
    return [tiny_run.path / "checkpoints" / f"step-{step:08d}" for step in checkpoint.steps(tiny_run.path)]


@pytest.fixture
def run(tiny_run, tmp_path):
    return Run(shutil.copytree(tiny_run.path, tmp_path / "run"))


def newest(run: Run) -> Path:
    return run.path / "checkpoints" / f"step-{checkpoint.steps(run.path)[-1]:08d}"


def seal(path: Path, **contents: bytes) -> None:
    """Put other contents into a checkpoint, and a manifest that says so: what an attacker would do."""
    for stem, data in contents.items():
        (path / (f"{stem}.json" if stem == "state" else f"{stem}.safetensors")).write_bytes(data)
    files = sorted(p for p in path.iterdir() if p.name != "MANIFEST.json")
    entries = {p.name: {"size": p.stat().st_size, "sha256": sha256(p.read_bytes()).hexdigest()} for p in files}
    (path / "MANIFEST.json").write_text(json.dumps(entries))


def bits(loaded) -> tuple:
    tensors, state = loaded
    return {
        f"{s}/{n}": (t.dtype, t.shape, t.numpy().tobytes()) for s, p in tensors.items() for n, t in p.items()
    }, state


# -- C1-C3: damage ------------------------------------------------------------------------------------


def truncated(data, draw):
    return data[: draw.randrange(len(data))]


def flipped(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def zeroed(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]


def swapped(data, draw):
    size = draw.randrange(1, min(4096, len(data) // 2) + 1)
    first = draw.randrange(len(data) - 2 * size + 1)
    second = draw.randrange(first + size, len(data) - size + 1)
    there, here = data[second : second + size], data[first : first + size]
    return data[:first] + there + data[first + size : second] + here + data[second + size :]


def appended(data, draw):
    return data + draw.randbytes(draw.randrange(1, 5000))


DAMAGES = (truncated, flipped, zeroed, swapped, appended)


def damage_all(damage, source: Path, copy: Path, cases: int) -> dict[str, int]:
    """Damage random files of a checkpoint: how often that was refused, harmless (the same bits), or silent."""
    draw, counts = random.Random(damage.__name__), {"refused": 0, "harmless": 0, "silent": 0}
    shutil.copytree(source, copy)
    whole, names = bits(checkpoint.load(copy)), sorted(p.name for p in copy.iterdir())
    while sum(counts.values()) < cases:
        name = draw.choice(names)
        data = (copy / name).read_bytes()
        broken = damage(data, draw)
        if broken == data:
            continue
        (copy / name).write_bytes(broken)
        try:
            counts["harmless" if bits(checkpoint.load(copy)) == whole else "silent"] += 1
        except ArtifactError as error:
            assert copy.name in str(error) and "\n" not in str(error)
            counts["refused"] += 1
        (copy / name).write_bytes(data)
    assert bits(checkpoint.load(copy)) == whole
    print(f"{damage.__name__}: seed {damage.__name__!r}, {counts}")
    return counts


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_two_hundred_damages_none_loads_silently(damage, steps, tmp_path):
    counts = damage_all(damage, steps[-1], tmp_path / steps[-1].name, CASES)
    assert counts["silent"] == 0 and counts["refused"] >= 0.95 * CASES, counts  # a swap of white space is harmless


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_two_thousand_damages_none_loads_silently(damage, steps, tmp_path):
    counts = damage_all(damage, steps[-1], tmp_path / steps[-1].name, 10 * CASES)
    assert counts["silent"] == 0 and counts["refused"] >= 0.95 * 10 * CASES, counts


def test_without_the_manifest_many_flips_would_load(steps):
    data, draw, silent = (steps[-1] / "model.safetensors").read_bytes(), random.Random(0), 0
    for _ in range(CASES):
        with suppress(SafetensorError, UnicodeDecodeError):
            silent += bool(load_tensors(flipped(data, draw)))
    assert silent > CASES / 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trace_is_refused_or_harmless(damage, tiny_run, tmp_path):
    draw, files = random.Random(damage.__name__), sorted(tiny_run.path.glob("routing/**/*.npz"))
    assert len(files) >= 3
    copy, refused = tmp_path / "copy.npz", 0
    for number in range(60):
        whole = files[number % len(files)]
        copy.write_bytes(damage(whole.read_bytes(), draw))
        before = read_arrays(whole)
        try:
            after = read_arrays(copy)
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
        except ArtifactError:
            refused += 1
    assert refused >= 20 or damage is appended  # which leaves every array as it was


def test_files_of_two_checkpoints_do_not_mix(steps, tmp_path):
    names = sorted(p.name for p in steps[0].iterdir())
    assert len(steps) >= 2 and len(names) >= 5
    mixtures = 0
    for chosen in range(1, 2 ** len(names) - 1):  # every mixture of the two
        copy = tmp_path / str(chosen) / steps[0].name
        copy.mkdir(parents=True)
        for bit, name in enumerate(names):
            shutil.copy(steps[chosen >> bit & 1] / name, copy / name)
        if all((copy / name).read_bytes() == (steps[0] / name).read_bytes() for name in names):
            continue  # of a file that is the same in both
        mixtures += 1
        with pytest.raises(ArtifactError):
            checkpoint.load(copy)
    assert mixtures >= 20


def test_a_whole_checkpoint_in_a_wrong_place_is_refused(steps, run, tmp_path):
    renamed = shutil.copytree(steps[0], tmp_path / "step-00000099")
    with pytest.raises(ArtifactError, match="of step"):
        checkpoint.load(renamed)
    assert checkpoint.load(newest(run))[1]["run"] == run.info["id"]  # in a run folder of another name it is at home
    (run.path / "run.json").write_text(json.dumps({**run.info, "id": "another"}))
    with pytest.raises(ArtifactError, match="of run"):
        checkpoint.load(newest(run))
    assert checkpoint.load(shutil.copytree(steps[0], tmp_path / "alone" / steps[0].name))[1]["run"]  # of no run folder


# -- C1, C4: what a resumed training does with them ---------------------------------------------------


def test_the_newest_intact_one_is_taken_and_the_damaged_one_named(run):
    last = newest(run)
    flipped_bits = flipped((last / "model.safetensors").read_bytes(), random.Random(0))
    (last / "model.safetensors").write_bytes(flipped_bits)
    saved, passed = checkpoint.latest(run.path)
    assert saved.step == checkpoint.steps(run.path)[-1] < int(last.name[5:])
    assert len(passed) == 1 and last.name in passed[0] and not last.exists()


def test_where_all_are_damaged_it_says_so(run):
    total = len(checkpoint.steps(run.path))
    for file in run.path.glob("checkpoints/step-*/MANIFEST.json"):
        file.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match=f"none of its {total}"):
        checkpoint.latest(run.path)


def test_a_damaged_run_json_is_blamed_on_no_checkpoint(run):
    before = checkpoint.steps(run.path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json"):
        checkpoint.latest(run.path)
    assert checkpoint.steps(run.path) == before


def test_a_file_that_may_not_be_read_is_not_damaged(run, monkeypatch):
    before = checkpoint.steps(run.path)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "read_regular", refuse)
    with pytest.raises(PermissionError):
        checkpoint.latest(run.path)
    assert checkpoint.steps(run.path) == before


# -- C7, C8: intact, but not what it must be ----------------------------------------------------------


def mutated(tensors: dict[str, torch.Tensor], draw: random.Random) -> tuple[dict[str, torch.Tensor], str]:
    """One tensor changed in type or shape, missing, extra or renamed; and the word that the refusal must have."""
    name = draw.choice([n for n in tensors if tensors[n].ndim])
    rest = {n: t for n, t in tensors.items() if n != name}
    value = tensors[name]
    kinds = [
        ({name: value.half() if value.is_floating_point() else value.float()}, "other type"),
        ({name: torch.cat([value, value])}, "other shape"),
        ({name: value[..., None]}, "other shape"),
        ({}, "missing"),
        ({name: value, f"{name}.more": torch.ones(2)}, "unknown"),
        ({f"{name}_": value}, "missing"),
    ]
    change, word = draw.choice(kinds)
    return {**rest, **change}, word


def test_fifty_other_models_are_refused_by_the_name_of_what_differs(run):
    draw, seen = random.Random(0), set()
    model = engine.load(run.path).model
    whole = checkpoint.load(newest(run))[0]["model"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(50):
        changed, word = mutated(whole, draw)
        seal(newest(run), model=save_tensors({n: t.contiguous() for n, t in changed.items()}))
        with pytest.raises(ArtifactError, match=word):
            checkpoint.restore(model, checkpoint.load(newest(run))[0]["model"], "here")
        seen.add(word)
    assert seen == {"other type", "other shape", "missing", "unknown"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    checkpoint.restore(model, whole, "here")


OPTIMIZERS = {
    "renamed": lambda t: {f"x{n}": v for n, v in t.items()},
    "of more parameters": lambda t: {**t, "999.exp_avg": torch.ones(1)},
    "without an index": lambda t: {"exp_avg": torch.ones(1)},
    "one tensor short": lambda t: dict(list(t.items())[1:]),
    "of another shape": lambda t: {n: v[None] if v.ndim else v for n, v in t.items()},
    "of another type": lambda t: {n: v.double() for n, v in t.items()},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_another_optimizer_is_refused(name, run):
    seal(newest(run), optimizer=save_tensors(OPTIMIZERS[name](checkpoint.load(newest(run))[0]["optimizer"])))
    with pytest.raises(ArtifactError, match="optimizer"):
        engine.resume(run.path, "trainer.steps=21")


STATES = {
    "without best": lambda s: {k: v for k, v in s.items() if k != "best"},
    "with another best": lambda s: {**s, "best": 3},
    "without a position": lambda s: {**s, "position": {}},
    "with a position of text": lambda s: {**s, "position": {"metrics": "x", "timing": 1e99}},
    "with a position far away": lambda s: {**s, "position": {"metrics": 2**70, "timing": 0}},
    "with a count of text": lambda s: {**s, "since_best": "x"},
    "a list": lambda s: [s],
    "without a step": lambda s: {"version": 1},
    "with a step of text": lambda s: {**s, "step": "20"},
    "of another step": lambda s: {**s, "step": 19},
    "of another run": lambda s: {**s, "run": "another"},
}


@pytest.mark.parametrize("name", STATES)
def test_another_state_is_refused(name, run):
    for step in checkpoint.steps(run.path)[:-1]:
        shutil.rmtree(run.path / "checkpoints" / f"step-{step:08d}")
    seal(newest(run), state=json.dumps(STATES[name](checkpoint.load(newest(run))[1])).encode())
    with pytest.raises(ArtifactError):
        engine.resume(run.path, "trainer.steps=21")


def test_a_checkpoint_without_generators_is_refused(run):
    seal(newest(run), random=save_tensors({"cpu": torch.ones(3)}))
    with pytest.raises(ArtifactError, match="go on from"):
        engine.resume(run.path, "trainer.steps=21")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stem", ["model", "optimizer"])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(stem, value, run):
    tensors, tried = checkpoint.load(newest(run))[0][stem], 0
    for name in sorted(tensors)[:7]:
        wrong = {n: t.clone() for n, t in tensors.items()}
        wrong[name].view(-1)[random.Random(name).randrange(wrong[name].numel())] = value
        seal(newest(run), **{stem: save_tensors(wrong)})
        with pytest.raises(ArtifactError, match=f"NaN or infinity in {name}"):
            checkpoint.load(newest(run))
        tried += 1
    assert tried >= 4
    seal(newest(run), **{stem: save_tensors(tensors)})
    checkpoint.load(newest(run))  # the same file with its own numbers


# -- C9: versions -------------------------------------------------------------------------------------


def test_a_newer_checkpoint_is_refused_naming_the_version_and_left_in_its_place(run):
    state = checkpoint.load(newest(run))[1]
    seal(newest(run), state=json.dumps({**state, "version": checkpoint.VERSION + 1}).encode())
    before = checkpoint.steps(run.path)
    for read in (lambda: checkpoint.load(newest(run)), lambda: checkpoint.latest(run.path)):
        with pytest.raises(
            ArtifactError, match=f"version {checkpoint.VERSION + 1}.* reads version {checkpoint.VERSION}"
        ):
            read()
    assert checkpoint.steps(run.path) == before


def test_a_checkpoint_of_each_version_is_still_read():
    """``golden/`` holds one checkpoint a version, never written again."""
    versions = sorted(GOLDEN.glob("version-*/checkpoints/step-00000003"))
    assert [path.parts[-3] for path in versions] == [f"version-{v}" for v in range(1, checkpoint.VERSION + 1)]
    for path in versions:
        tensors, state = checkpoint.load(path)
        assert state["step"] == 3 and torch.equal(tensors["model"]["weight"], torch.arange(6.0).view(2, 3) / 7)


def test_what_the_first_checkpoints_lacked_is_taken_as_the_first_version(run):
    state = checkpoint.load(newest(run))[1]
    seal(newest(run), state=json.dumps({k: v for k, v in state.items() if k not in ("version", "run")}).encode())
    assert checkpoint.load(newest(run))[1]["step"] == state["step"]


# -- C11: links, pipes and folders --------------------------------------------------------------------


def within(seconds: float, call) -> BaseException | None:
    """What a call raises; a call that hangs fails the test instead of stopping the suite."""
    raised: list[BaseException | None] = []

    def work():
        try:
            call()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it hangs"
    return raised[0]


ODD = {
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "dangling link": lambda path, other: path.symlink_to(other / "none"),
    "circle": lambda path, _: path.symlink_to(path),
    "device": lambda path, _: path.symlink_to("/dev/zero"),
}
READERS = {
    "checkpoints/{step}/model.safetensors": lambda run: checkpoint.load(newest(run)),
    "checkpoints/{step}/MANIFEST.json": lambda run: checkpoint.load(newest(run)),
    "routing/surface.npz": lambda run: TraceReader(run.path).surface(),
    "config.yaml": lambda run: engine.load(run.path),
    "summary.json": lambda run: run.summary,
    "run.json": lambda run: Run(run.path).info,
    "metrics.jsonl": lambda run: run.metrics,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_and_nothing_hangs(name, odd, run, tmp_path):
    path = run.path / name.format(step=newest(run).name)
    path.unlink()
    ODD[odd](path, tmp_path)
    assert isinstance(within(20, lambda: READERS[name](run)), ArtifactError)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", ".lock", "log.txt"])
def test_nothing_is_written_through_a_link_out_of_the_run(name, link, run, tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("precious\n" * 10_000)
    (run.path / name).unlink()
    link(run.path / name, outside)
    with pytest.raises(ArtifactError, match="link"):
        engine.resume(run.path, "trainer.steps=21")
    assert outside.read_text() == "precious\n" * 10_000


def test_a_pipe_to_write_into_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert isinstance(within(20, lambda: LineFile(tmp_path / "metrics.jsonl")), ArtifactError)


# -- C12: metadata of one run of many -----------------------------------------------------------------

WRONG = [None, True, -1, 1e308, 10**400, "", "x", "\x1b[31m\x00", [], [[]], {}, {"": None}, "é" * 1000, [1, "a", None]]


def other_value(value, draw: random.Random):
    """A JSON document with one value in it replaced, or one key lost."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: other_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], other_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(WRONG)


def spoiled(data: bytes, number: int, draw: random.Random) -> bytes:
    if number % 2:
        return json.dumps(other_value(json.loads(data), draw)).encode()
    return draw.choice(DAMAGES)(data, draw)


def test_two_hundred_changes_of_one_run_s_metadata_never_stop_the_others(tiny_run, tmp_path):
    draw, left_out = random.Random(0), 0
    names = ("run.json", "summary.json")
    for number in range(2):
        folder = tmp_path / f"2026010{number}T000000-abcd"
        folder.mkdir()
        for name in names:
            shutil.copy(tiny_run.path / name, folder / name)
        info = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(
            json.dumps({**info, "seed": number, "config": {**info["config"], "seed": number}})
        )
    for number in range(CASES):
        file = tmp_path / "20260100T000000-abcd" / names[number // 2 % 2]
        whole = file.read_bytes()
        file.write_bytes(spoiled(whole, number, draw))
        records, broken = read_runs([tmp_path])
        assert len(records) + len(broken) == 2 and len(records) >= 1
        try:
            table(compare(records))
        except MoeError as error:
            assert "task" in str(error) or "data" in str(error)  # it says that it is of another task, or on other data
        left_out += len(broken)
        file.write_bytes(whole)
    print(f"seed 0: {left_out} of {CASES} left out")
    assert left_out >= CASES / 4


def test_listing_skips_the_bad_run_with_one_line_and_exit_8(tiny_run, tmp_path, capsys):
    from moecli.cli.ls import ls

    for name in ("a", "b"):
        shutil.copytree(tiny_run.path, tmp_path / name)
    (tmp_path / "b" / "summary.json").write_text('{"metrics": {"test/rmse": "x"}, "layers": []}')
    with pytest.raises(PartialSuccess, match="1 of 2 runs left out") as caught:
        ls("runs", runs=tmp_path)
    assert caught.value.code == 8 and str(tmp_path / "a") in capsys.readouterr().out


# -- C14: torn lines ----------------------------------------------------------------------------------


def test_a_line_torn_at_any_byte_poisons_neither_reading_nor_going_on(tmp_path):
    path, records = tmp_path / "metrics.jsonl", [{"step": i, "name": "ü"} for i in range(4)]
    file = LineFile(path)
    file.append(records[:2])
    seen = path.stat().st_size  # what a checkpoint would know
    file.append(records[2:])
    whole = path.read_bytes()
    for cut in range(seen, len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert read_lines(path) == records[: whole[:cut].count(b"\n")]
        again = LineFile(path)
        again.cut(seen)
        again.append(records[2:])
        again.close()
        assert path.read_bytes() == whole


# -- C15: fuzz ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["size", "sha256", "state.json", "model.safetensors", "../x", "a\0"]), inner)
    ),
    max_leaves=10,
)


def refused(path: Path, **contents: bytes) -> None:
    seal(path, **contents)
    with pytest.raises(ArtifactError) as caught:
        checkpoint.load(path)
    assert caught.value.code == 4


@given(JSON | st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_no_manifest_gives_another_error_than_ours(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp() / "fuzz" / "step-00000001"
    folder.mkdir(parents=True, exist_ok=True)
    written = value if isinstance(value, bytes) else json.dumps(value).encode(errors="replace")
    (folder / "MANIFEST.json").write_bytes(written)
    with pytest.raises(ArtifactError):
        checkpoint.load(folder)


HEADERS = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F64", "I8", "BOOL", "C64", "F4", "F8_E8M0", "F8_E4M3", "X", 3, None]),
            "shape": st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62, 2**63, -1, 1.5]), max_size=3) | st.integers(),
            "data_offsets": st.lists(st.integers(-1, 9) | st.just(2**63), max_size=3),
        },
    ),
    max_size=3,
)


@given(HEADERS | JSON, st.binary(max_size=9), st.none() | st.integers(0, 2**64 - 1))
@settings(max_examples=80, deadline=None)
def test_no_header_gives_another_error_than_ours(tmp_path_factory, header, data, length):
    """Of an intact file that somebody made up: read, where it happens to be a true one, or refused."""
    folder = tmp_path_factory.getbasetemp() / "headers" / "step-00000001"
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(header).encode(errors="replace")
    content = (len(written) if length is None else length).to_bytes(8, "little") + written + data
    seal(folder, model=content, state=b'{"step": 1}')
    try:
        tensors, _ = checkpoint.load(folder)
    except ArtifactError:
        return
    assert sum(tensor.nbytes for tensor in tensors["model"].values()) == len(data)
