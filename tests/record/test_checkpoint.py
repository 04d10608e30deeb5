"""A checkpoint is intact or refused, and nothing is pruned before its successor was read back."""

import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import moecli
from moecli.errors import ArtifactError
from moecli.record import checkpoint, folder


def tensors(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "model": {"a.weight": torch.randn(40, 60, generator=draw), "b": torch.arange(7)},
        "optimizer": {"0.exp_avg": torch.randn(40, 60, generator=draw), "0.step": torch.tensor(3.0)},
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[stem][n], b[stem][n]) for stem in a for n in a[stem])


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path, 20, tensors(), {"best_step": 10, "loss": float("nan")})
    loaded, state = checkpoint.load(path)
    head = {"version": checkpoint.VERSION, "run": None, "step": 20}
    assert path.name == "step-00000020" and state == {**head, "best_step": 10, "loss": None}
    assert equal(loaded, tensors()) and not equal(loaded, tensors(1))
    assert sorted(p.name for p in path.iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    manifest = json.loads((path / "MANIFEST.json").read_text())
    for name, entry in manifest.items():
        data = (path / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_tensors_that_share_or_are_transposed_are_saved(tmp_path):
    base = torch.randn(4, 6)
    path = checkpoint.save(tmp_path, 1, {"model": {"a": base, "b": base.T, "c": base[:, ::2]}}, {})
    assert torch.equal(checkpoint.load(path)[0]["model"]["b"], base.T)


# -- damage -------------------------------------------------------------------------------------------

CASES = 100


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [checkpoint.save(root, step, tensors(step), {"best_step": 1}) for step in (1, 2)]


def truncate(data, other, draw):
    return data[: draw.randrange(len(data))]


def flip(data, other, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def zero(data, other, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]


def append(data, other, draw):
    return data + draw.randbytes(draw.randrange(1, 5000))


def swap(data, other, draw):
    return other


@pytest.mark.parametrize("damage", [truncate, flip, zero, append, swap])
def test_every_damage_is_refused(damage, two, tmp_path):
    draw, refused, tried = random.Random(damage.__name__), 0, 0
    names = sorted(p.name for p in two[0].iterdir() if p.name != "MANIFEST.json")
    copy = tmp_path / "step-00000001"
    shutil.copytree(two[0], copy)
    while tried < CASES:
        name = draw.choice(names)
        whole = (two[0] / name).read_bytes()
        damaged = damage(whole, (two[1] / name).read_bytes(), draw)
        if damaged == whole:
            continue
        tried += 1
        (copy / name).write_bytes(damaged)
        try:
            checkpoint.load(copy)
        except ArtifactError as error:
            refused += name in str(error)
        (copy / name).write_bytes(whole)
    assert refused == tried == CASES
    assert equal(checkpoint.load(copy)[0], tensors(1))  # undamaged, the same folder loads


@pytest.mark.parametrize("damage", [truncate, flip, zero, swap])
def test_a_damaged_manifest_is_refused_or_harmless(damage, two, tmp_path):
    draw, refused = random.Random(1), 0
    copy = tmp_path / "step-00000001"
    shutil.copytree(two[0], copy)
    whole = (copy / "MANIFEST.json").read_bytes()
    for _ in range(CASES):
        (copy / "MANIFEST.json").write_bytes(damage(whole, (two[1] / "MANIFEST.json").read_bytes(), draw))
        try:
            assert equal(checkpoint.load(copy)[0], tensors(1))  # white space, say
        except ArtifactError:
            refused += 1
    assert refused >= 0.8 * CASES


HOSTILE = [b"[]", b"3", b"null", b'"x"', b"{}", b'{"../../etc/passwd": 1}', b'{"/etc/hostname": {"size": 1}}', b'{"model.safetensors": 3}',
           b'{"a": null}', b"[1]", b'["model.safetensors"]', b"[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("manifest", HOSTILE, ids=lambda m: repr(m[:16]))
def test_a_made_up_manifest_is_refused(manifest, two, tmp_path):
    copy = tmp_path / "step-00000001"
    shutil.copytree(two[0], copy)
    (copy / "MANIFEST.json").write_bytes(manifest)
    with pytest.raises(ArtifactError):
        checkpoint.load(copy)


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "state.json"])
def test_a_missing_file_is_refused(name, two, tmp_path):
    copy = tmp_path / "step-00000001"
    shutil.copytree(two[0], copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError):
        checkpoint.load(copy)
    with pytest.raises(ArtifactError):
        checkpoint.load(tmp_path / "none")


# -- the order of a save ------------------------------------------------------------------------------


def watch(monkeypatch):
    """Every flush, rename and removal, in order, by the name of what it was done to."""
    events, opened = [], {}
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "open")}

    def open_(path, *args, **kwargs):
        descriptor = real["open"](path, *args, **kwargs)
        opened[descriptor] = Path(path).name
        return descriptor

    def fsync(descriptor):
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real["fsync"](descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, lambda a, b, n=name: (events.append((n, Path(b).name)), real[n](a, b))[1])
    verify = checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda path: (events.append(("verify", path.name)), verify(path))[1])
    return events


def kind(name):
    return re.sub(r"\.tmp-(.*)-[0-9a-f]{8}", r"tmp \1", name)


def test_files_are_flushed_then_the_folder_renamed_then_read_back(tmp_path, monkeypatch):
    events = watch(monkeypatch)
    checkpoint.save(tmp_path, 3, tensors(), {})
    done = [(what, kind(name)) for what, name in events]
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]
    written = [pair for name in files for pair in (("fsync", f"tmp {name}"), ("replace", name))]
    assert done == [
        *written,
        ("fsync", "tmp 00000003"),
        ("rename", "step-00000003"),
        ("fsync", "checkpoints"),
        ("verify", "step-00000003"),
    ]


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_save_that_fails_at_any_point_leaves_the_old_ones_and_no_rubbish(nth, tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), {})
    count = 0

    def failing(real):
        def call(*args):
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(28, "No space left on device")
            return real(*args)

        return call

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    failed = False
    try:
        checkpoint.save(tmp_path, 3, tensors(3), {})
    except OSError:
        failed = True
    monkeypatch.undo()
    assert failed == (nth <= 11)
    assert {1, 2} <= set(checkpoint.steps(tmp_path)) <= {1, 2, 3}
    for step in checkpoint.steps(tmp_path):
        assert equal(checkpoint.load(tmp_path / "checkpoints" / f"step-{step:08d}")[0], tensors(step))
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".tmp")]
    assert equal(checkpoint.load(checkpoint.save(tmp_path, 4, tensors(4), {}))[0], tensors(4))


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(1), {})
    assert equal(checkpoint.load(checkpoint.save(tmp_path, 1, tensors(2), {}))[0], tensors(1))


@pytest.mark.parametrize("best", [None, 1, 3, 5, 6, 99])
def test_pruning_keeps_the_latest_two_and_the_best(best, tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, {"model": {"a": torch.ones(1)}}, {})
        checkpoint.prune(tmp_path, best if best and best <= step else None)
    assert set(checkpoint.steps(tmp_path)) == {5, 6} | ({best} if best in range(1, 7) else set())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pruning_never_goes_below_two(count, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in range(count):
        checkpoint.save(tmp_path, step, {"model": {"a": torch.ones(1)}}, {})
    checkpoint.prune(tmp_path, None)
    assert len(checkpoint.steps(tmp_path)) == count


def test_what_is_left_of_a_killed_save_is_no_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), {})
    (tmp_path / "checkpoints" / ".tmp-00000002-0123abcd").mkdir()
    (tmp_path / "checkpoints" / "step-what").mkdir()
    assert checkpoint.steps(tmp_path) == [1]


# -- restoring ----------------------------------------------------------------------------------------


def test_restoring_copies_into_the_models_own_memory():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    before = {n: t.data_ptr() for n, t in model.state_dict().items()}
    given = {n: t.clone() for n, t in other.state_dict().items()}
    checkpoint.restore(model, given, "here")
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == before
    given["weight"].add_(1)
    assert torch.equal(model.weight, other.weight) and not torch.equal(model.weight, given["weight"])


@pytest.mark.parametrize(
    "change", [{"weight": None}, {"weight": torch.ones(3, 2)}, {"more": torch.ones(1)}, {"weight": torch.ones(2, 3, 1)}]
)
def test_other_weights_are_refused_and_nothing_is_changed(change):
    model = nn.Linear(3, 2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    given = {n: torch.zeros_like(t) for n, t in before.items()} | change
    with pytest.raises(ArtifactError, match="here"):
        checkpoint.restore(model, {n: t for n, t in given.items() if t is not None}, "here")
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_optimizers_state_is_named_tensors(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    named = checkpoint.optimizer_tensors(optimizer)
    assert set(named) == {f"{i}.{k}" for i in (0, 1) for k in ("step", "exp_avg", "exp_avg_sq")}
    path = checkpoint.save(tmp_path, 1, {"model": {}, "optimizer": named}, {})
    assert torch.equal(checkpoint.load(path)[0]["optimizer"]["0.exp_avg"], optimizer.state[model.weight]["exp_avg"])


def test_no_pickle_anywhere():
    # workers.py talks in pickles with processes of its own, over a pipe that no file enters
    sources = sorted(file for file in Path(moecli.__file__).parent.rglob("*.py") if file.name != "workers.py")
    pattern = re.compile(
        r"torch\.(load|save)\(|\bimport pickle|\bpickle\.|joblib|allow_pickle=True|read_pickle|yaml\.(unsafe_load|full_load)\("
    )
    assert len(sources) >= 60
    assert not [str(s) for s in sources if pattern.search(s.read_text())]
    assert pattern.search("x = torch.load(path)")  # the pattern finds what it looks for


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    mask = os.umask(0o022)
    try:
        path = checkpoint.save(tmp_path, 1, tensors(), {})
        folder.write_whole(tmp_path / "x", b"")
    finally:
        os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in [*path.iterdir(), tmp_path / "x"]} == {0o644}
