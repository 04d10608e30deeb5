"""Compose, build, fit, draw: what ``moe train`` wraps and ``import moecli`` offers."""

from __future__ import annotations

import copy
import math
import os
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from moecli import __version__, compatibility, config
from moecli.analysis import criteria, information, specialisation
from moecli.analysis.coefficients import Coefficients, Units, bootstrapped, coefficients, quantities
from moecli.config import Composed, Config, build
from moecli.errors import ArtifactError, DataError, EnvironmentFailure, Interrupted, UsageError
from moecli.losses.objective import Objective
from moecli.mixture import Mixture, MixtureDensity
from moecli.models.generate import decode, generate, refuse_dependent
from moecli.models.model import Model
from moecli.models.size import Size, make_twin, measure, watched
from moecli.models.weightless import META, Weightless, tell
from moecli.parts import Parts
from moecli.plan import Slots
from moecli.record import checkpoint
from moecli.record.checkpoint import Saved
from moecli.record.folder import Run, claim, runs_root, to_json, write_whole
from moecli.record.lock import locked
from moecli.record.recorder import Recorder
from moecli.record.trace import TraceReader, slot_averages, write_arrays
from moecli.record.view import view
from moecli.report import terminal
from moecli.tasks.task import SPLITS, Answers, Batch, Task, Write
from moecli.training.em import Em
from moecli.training.evaluate import Evaluation, evaluate, without
from moecli.training.gradient import Best, Job
from moecli.training.health import dropped_by_rank, effective_experts
from moecli.training.rank import log_prob_rank

if TYPE_CHECKING:
    import pandas

PREDICTED_AT_ONCE = 256
MOST_ITERATIONS = 500  # of EM in a refit
ALL_THREADS = torch.get_num_threads()
SMALL_STEP = 1e8  # FLOPs of a forward pass
MOST_REMOVALS = 64  # experts taken out one by one at the end; above that only a run's own question is worth the time
COUNTED = 4096  # tokens that a model of sequences is counted on without its weights, at least one sequence
MOST_LOGITS = 2**23  # of all of them in one layer; with many experts fewer tokens do
MOST_ROWS = 5000  # whose responsibilities are kept
SHOWN = 4  # answers in words
UNITS = {
    "nll": "nats",
    "loss": "nats",
    "bits_per_byte": "bits",
    "rmse": "units of the target",
    "mae": "units of the target",
}


@dataclass
class Built:
    """All parts of one run, fitting each other."""

    config: Config
    task: Task
    model: Model
    objective: Objective
    size: Size
    device: torch.device
    warnings: list[str]


# -- build ------------------------------------------------------------------------------------


def build_task(composed: Composed) -> Task:
    """Read the task's data.  Raises DataError."""
    return build(composed.config["task"])


def assemble(composed: Composed, task: Task | None = None) -> Built:
    """Build what a configuration describes, and refuse in one sentence what does not fit.

    A classical mixture without a family takes the one that fits the task's targets; a part that
    nobody asks for leaves the configuration, and is refused where the user asked for it by name.
    """
    settings = composed.config
    device = pick_device(settings["device"])
    for run in _runs_of(settings["init"]):
        Run(run)  # refused before any work, where it is none
    task = task or build_task(composed)
    settings = _with_family(settings, task)
    _refuse_idle(settings, composed.explicit)
    _refuse_other_inputs(settings, task)
    _refuse_too_big(settings, task, device)
    torch.manual_seed(settings["seed"])
    model, terms = _matched(settings, task, composed.explicit, Parts)
    warnings, idle = check_fit(settings, task, model, terms)
    warnings += _no_answers(task, model)
    first = task.train_batch(0, settings["trainer"].get("batch_size", 128), settings["seed"])
    if model.is_twin:
        make_twin(model, first.x, first.known)
        terms = {}
    _bind(model, task, settings["seed"])
    model.to(device)
    first = first.to(device)
    size = measure(model, first.x, first.known)
    tokens = first.x.numel() if "sequence" in task.gives else len(first.x)
    torch.set_num_threads(settings["threads"] or fitting_threads(size.flops * tokens))
    return Built(settings, task, model, Objective(build(settings["objective"]), terms, idle), size, device, warnings)


def _matched(settings: Config, task: Task, explicit: frozenset[str], kind: type[Parts]) -> tuple[Model, dict[str, Any]]:
    """The model for a task, and the auxiliary terms; what no part of it asks for leaves the settings."""
    parts = kind(_reading(settings, task), feature_names=task.feature_names)
    model = build(settings["model"], parts=parts, **_sizes(task))
    _drop_unused(settings, parts.used, explicit)
    return model, {name: build(node) for name, node in settings["auxiliary"].items()}


@dataclass
class Shape:
    """What a configuration describes, without its weights: for counting, whatever its size."""

    config: Config
    task: Task
    model: Model  # on the meta device
    x: torch.Tensor  # there too: a batch to count on


def shape(composed: Composed, task: Task | None = None) -> Shape:
    """Build a model whose tensors have shapes and no memory, its routers apart; raises UsageError as ``assemble`` does."""
    task = task or build_task(composed)
    settings = _with_family(composed.config, task)
    _refuse_idle(settings, composed.explicit)
    _refuse_other_inputs(settings, task)
    torch.manual_seed(settings["seed"])
    with META:
        model, terms = _matched(settings, task, composed.explicit, Weightless)
    check_fit(settings, task, model, terms)
    batch = _counting_batch(task, settings)
    seen = batch.x if batch.x.is_floating_point() else batch.x.clamp_min(0)  # padding counts as tokens
    x = seen.to(META)
    tell(model, seen, batch.known)
    if model.is_twin:
        make_twin(model, x)
        tell(model, seen, batch.known)
    return Shape(settings, task, model, x)


def _counting_batch(task: Task, settings: Config) -> Batch:
    """As many whole examples as the trainer takes, but at least one and at most so many tokens."""
    one = task.train_batch(0, 1, settings["seed"]).x
    tokens = one.numel() if "ids" in task.gives else 1
    most = min(COUNTED, MOST_LOGITS // settings["num_experts"]) // tokens
    size = min(settings["trainer"].get("batch_size", 128), max(1, most))
    return task.train_batch(0, size, settings["seed"])


def _sizes(task: Task) -> dict[str, Any]:
    """What a model is built to, whatever the user chose."""
    sizes = {"dim": task.dim, "out": task.out, "vocab_size": task.vocab_size}
    return {**sizes, "source": task.source, "image": task.image}


def _bind(model: Model, task: Task, seed: int) -> None:
    """Experts that are fitted to rows of their own know the training rows."""
    fitted = [experts for layer in model.mixtures.values() if "part fit" in (experts := layer.experts).gives]
    for experts in fitted:
        rows = task.train_batch(0, task.sizes["train"], seed)
        cast(Any, experts).bind(rows.x, rows.target, seed)


def rounds(settings: Config) -> int:
    """How long the trainer of a configuration may go on, in its own steps."""
    return settings["trainer"].get("steps") or settings["trainer"]["rounds"]


def pick_device(name: str) -> torch.device:
    """Raises EnvironmentFailure where CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFailure(
            "device=cuda: torch sees no GPU here. Use device=cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _refuse_too_big(settings: Config, task: Task, device: torch.device) -> None:
    """Count the weights, by building the model where tensors have a shape and no memory.

    Raises EnvironmentFailure at the first weight that no longer fits.
    """
    room, needed = memory(device), 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal needed
        needed += parameter.nbytes
        if needed > room:
            raise EnvironmentFailure(
                f"num_experts={settings['num_experts']}: the weights alone need more than {needed / 1e9:.1f} GB, and "
                f"{device} has {room / 1e9:.1f} GB. Lower num_experts or the sizes of model and expert"
            )

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), suppress(RuntimeError):  # of a plugin whose constructor computes
            parts = Parts(_reading(settings, task), feature_names=task.feature_names)
            build(settings["model"], parts=parts, **_sizes(task))
    finally:
        counting.remove()


def memory(device: torch.device) -> int:
    """Bytes that this process may use of a device at most."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


def fitting_threads(flops: float) -> int:
    """One thread where a step is so small that two would mostly wait for each other, else all of torch's."""
    return 1 if flops < SMALL_STEP else ALL_THREADS


def _with_family(settings: Config, task: Task) -> Config:
    if settings["family"] is not None or "family" not in config.part_class(settings["model"]).needs:
        return settings
    choices = {**settings["choices"], "family": task.family}
    return {**settings, "family": config.option_node("family", task.family), "choices": choices}


def _reading(settings: Config, task: Task) -> Config:
    """The settings with gate and experts over the features that the task's formula gives them."""
    return {**settings, **{group: _over(group, settings[group], names, task) for group, names in task.reads.items()}}


def _over(group: str, node: Config | None, names: list[str], task: Task) -> Config | None:
    if node is None:
        return None
    if node.get("columns") is not None:
        raise UsageError(f"{group}.columns: task.formula has a bar and says what they read. Leave out one of the two")
    if not names and "vectors" in config.part_class(node).needs:
        raise UsageError(f"task.formula: the {group} has nothing to read. Use {group}=constant, or give it a feature")
    return {**node, "columns": names if names and len(names) < len(task.feature_names) else None}


def _refuse_other_inputs(settings: Config, task: Task) -> None:
    """A model for whole examples cannot read sequences, nor the other way round: say so before building it."""
    choices, inputs = settings["choices"], frozenset({"items", "sequence", "ids", "source", "image", "noisy image"})
    model = compatibility.part(f"model={choices['model']}", config.part_class(settings["model"]))
    data = compatibility.Part(f"task={choices['task']}", frozenset(), frozenset(task.gives) | (model.needs - inputs))
    compatibility.refuse([data, model])


def _refuse_idle(settings: Config, explicit: frozenset[str]) -> None:
    """A trainer that takes no optimizer, schedule, auxiliary terms or objective refuses those the user set."""
    trainer = config.part_class(settings["trainer"])
    for group in sorted(explicit & (frozenset({"optimizer", "schedule", "auxiliary", "objective"}) - trainer.uses)):
        name = settings["choices"]["trainer"]
        raise UsageError(
            f"{group} (command line): trainer={name} takes none, so nothing would use it. Leave it out, or use trainer=gradient"
        )


def _drop_unused(settings: Config, used: set[str], explicit: frozenset[str]) -> None:
    for group in config.OPTIONAL:
        if group in used:
            continue
        if group in explicit:
            choices = settings["choices"]
            owner = f"router={choices['router']}" if group == "gate" else f"model={choices['model']}"
            lacks = "takes no head" if group == "head" else f"has no {group}"  # model.head=true is a plain linear map
            raise UsageError(
                f"{group}={choices[group]} (command line): {owner} {lacks}, so nothing would use it. "
                f"Leave {group} out, or choose another {owner.split('=')[0]}: moe ls {owner.split('=')[0]}"
            )
        settings[group] = settings["choices"][group] = None


def check_fit(
    settings: Config, task: Task, model: Model, terms: dict[str, Any]
) -> tuple[list[str], dict[str, frozenset[str]]]:
    """Refuse what does not fit, layer by layer.

    Returns what is only worth a warning, and for each term the layers that it has nothing to act on in.
    """
    choices = settings["choices"]
    leaks = frozenset({"causal"}) if model.allow_leak else frozenset()
    fixed = [
        compatibility.Part(f"task={choices['task']}", frozenset(task.needs) - leaks, frozenset(task.gives) | {"known"}),
        compatibility.part(f"model={choices['model']}", model),
        compatibility.part(f"trainer={choices['trainer']}", build(settings["trainer"])),
        compatibility.part(f"objective={choices['objective']}", config.part_class(settings["objective"])),
    ]
    layers = {name: _layer_parts(settings, model, name) for name in model.mixtures}
    active = {} if model.is_twin else {n: compatibility.part(f"auxiliary={n}", term) for n, term in terms.items()}
    idle = {
        term: frozenset(n for n, parts in layers.items() if compatibility.refusals([*fixed, *parts, part], asking=part))
        for term, part in active.items()
    }
    for name, parts in layers.items():
        here = [part for term, part in active.items() if name not in idle[term] or len(idle[term]) == len(layers)]
        compatibility.refuse([*fixed, *parts, *here])
    return [text for name in layers for text in _leak_in_training(task, model, name)], idle


def _layer_parts(settings: Config, model: Model, name: str) -> list[compatibility.Part]:
    """Router, gate, experts and family of one layer."""
    choices, layer = settings["choices"], model.mixtures[name]
    label = f"router={choices['router']}" if name not in model.overrides else f"router of {name}"
    no_future = frozenset({"causal"} if model.reads_source(name) else ())  # whatever its router does there
    parts = [
        compatibility.Part(f"model={choices['model']} ({name})", frozenset(), no_future),
        compatibility.router_part(label, layer.router),
        compatibility.part(f"expert={choices['expert']}", layer.experts),
    ]
    shared = getattr(layer, "shared", None)
    parts += [compatibility.part("model.shared_mix", shared)] if shared is not None else []
    gate, family = getattr(layer.router, "gate", None), getattr(layer, "family", None)
    parts += [compatibility.part(f"gate={choices['gate']}", gate)] if gate is not None else []
    return parts + ([compatibility.part(f"family={choices['family']}", family)] if family is not None else [])


def _leak_in_training(task: Task, model: Model, name: str) -> list[str]:
    sees_no_future = model.reads_source(name) or model.mixtures[name].router.claims(training=True).causal
    if "causal" not in task.needs or sees_no_future:
        return []
    return [f"{name}: its router lets a token see the future in training"]


def _no_answers(task: Task, model: Model) -> list[str]:
    """Where answers in words are asked for, and a router does another thing with a token alone than in a whole text."""
    if "words" not in task.gives:
        return []
    try:
        refuse_dependent(model, "answers in words")
    except UsageError as error:
        return [str(error)]
    return []


# -- train ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where and how a run lands."""

    runs: Path | None = None
    name: str | None = None
    quiet: bool = True
    command: str = ""
    pictures: bool = True
    told: Callable[[int, Mapping[str, float]], None] | None = None  # of each evaluation's step and metrics
    note: str = ""  # the log's first line


def train(*words: str, runs: Path | str | None = None, name: str | None = None, quiet: bool = True) -> Run:
    """Train what ``key=value`` words describe; returns the finished run.

    >>> run = moecli.train("task=spirals", "router.k=1", "router.renormalize=false")
    >>> run.summary["metrics"]["test/accuracy"]
    """
    place = Place(Path(runs) if runs else None, name, quiet, f"moecli.train{words}")
    return train_built(assemble(config.compose(words)), place)


Fit = Callable[[Job, Saved | None], Best]
Life = Generator[tuple[Job, Saved | None], Best, Run]  # a run that says what to fit, and is sent the best evaluation


def train_built(built: Built, place: Place, fit: Fit | None = None) -> Run:
    """Fit, evaluate and draw, all into a new run folder whose ``run.json`` says how it ended.

    ``fit`` stands in for the trainer of the configuration.
    """
    return _lived(life(built, place), fit or build(built.config["trainer"]).fit)


def life(built: Built, place: Place) -> Life:
    """A new run folder, which asks for a training and makes of it what ``train_built`` does."""
    choices = built.config["choices"]
    folder = claim(runs_root(place.runs), place.name or f"{choices['task']}-{_model_name(built)}")
    write_whole(folder / "config.yaml", config.to_yaml(built.config).encode())
    with locked(folder):
        info = {"id": folder.name, "name": folder.parent.name, "seconds": 0.0}
        return (yield from _train_in(folder, built, place, info))


def _lived(life: Life, fit: Fit) -> Run:
    """A run from its beginning to its end."""
    asked = next(life)
    try:
        best: Best | BaseException = fit(*asked)
    except BaseException as error:
        best = error
    return end(life, best)


def end(life: Life, found: Best | BaseException) -> Run:
    """What a run does with its best evaluation, or with the error that ended its training, which it raises again."""
    try:
        life.throw(found) if isinstance(found, BaseException) else life.send(found)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("a run asks for one training")


def _train_in(folder: Path, built: Built, place: Place, info: dict[str, Any], saved: Saved | None = None) -> Life:
    info |= {"command": place.command, "status": "running", **describe(built)}
    write_whole(folder / "run.json", to_json(info))
    started, before = time.monotonic(), info["seconds"]
    try:
        info |= yield from _fit(built, folder, place, saved)
        info["status"] = "finished"
    except GeneratorExit:  # whoever trained it has gone
        info["status"] = "interrupted"
        raise
    except (KeyboardInterrupt, Interrupted) as error:
        info["status"] = "interrupted"
        raise Interrupted(_what_is_left(folder), getattr(error, "code", 130)) from error
    except BaseException as error:
        info |= {"status": "failed", "error": str(error) or type(error).__name__}
        with suppress(OSError):  # the disk may be what failed
            crash = folder / f"crash-{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
            crash.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        info["seconds"] = before + time.monotonic() - started
        with suppress(OSError) if info["status"] == "failed" else nullcontext():
            write_whole(folder / "run.json", to_json(info))
    _finish_summary(folder, info)
    if place.pictures:
        _draw(Run(folder))
    return Run(folder)


def _what_is_left(folder: Path) -> str:
    saved = checkpoint.steps(folder)
    found = f"its last checkpoint is of step {saved[-1]}" if saved else "before its first checkpoint"
    return f"interrupted ({folder}): {found}. Go on with: moe train --resume {folder}"


# What may change when a run goes on: none of these changes what a step computes but its learning rate.
MAY_CHANGE = (
    "trainer.steps",
    "trainer.rounds",
    "trainer.jobs",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.patience",
    "trainer.stack",
    "device",
    "threads",
)


def resume(run: Path | str, *words: str, quiet: bool = True) -> Run:
    """Go on where a run stopped, to the same bits as if it never had (same machine, torch and threads).

    A finished run is left as it is unless ``trainer.steps`` is raised.  Raises ArtifactError where the
    configuration differs or no checkpoint is intact, DataError where the data differs, ConflictError
    where another process trains it.
    """
    return resume_in(Path(run), Place(quiet=quiet), *words)


def resume_in(run: Path, place: Place, *words: str) -> Run:
    """``resume``, shown and drawn as ``place`` says."""
    found = Run(run)
    if "upcycled" in found.info:
        raise UsageError(
            f"--resume {run}: it was made from a dense model and not trained yet. Train it with: "
            f"moe train --config {run}/config.yaml init={run}"
        )
    stored = config.read(found.path / "config.yaml")
    settings = config.amend(stored, words)
    _refuse_other_run(stored, settings)
    with locked(found.path):
        saved, passed = checkpoint.latest(found.path)
        if saved and found.info["status"] == "finished" and saved.step >= rounds(settings):
            return found
        built = assemble(Composed(settings, frozenset()))
        if built.task.fingerprint != found.info["fingerprint"]:
            raise DataError(f"{found.path}: the task's data is not what it began with. Restore the data, or train anew")
        built.warnings += [*passed, *_killed(found.info), *_other_machine(built, found.info)]
        write_whole(found.path / "config.yaml", config.to_yaml(built.config).encode())
        place = replace(place, command=found.info["command"])
        going_on = _train_in(found.path, built, place, _carried(found.info, words), saved)
        return _lived(going_on, build(built.config["trainer"]).fit)


def _carried(info: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """What stays of the run's own story, with this attempt added."""
    attempts = [
        *info.get("attempts", []),
        {"status": info["status"], "seconds": info.get("seconds"), "changed": list(words)},
    ]
    return {"id": info["id"], "name": info["name"], "seconds": info.get("seconds") or 0.0, "attempts": attempts}


def _refuse_other_run(stored: Config, settings: Config) -> None:
    before, after = dict(config.flatten(stored)), dict(config.flatten(settings))
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k) and k not in MAY_CHANGE]
    if changed:
        raise ArtifactError(
            f"--resume with {', '.join(changed[:3])} changed: that is another run. Leave it as it was "
            f"(only {', '.join(MAY_CHANGE)} may change), or train anew"
        )


def _killed(info: dict[str, Any]) -> list[str]:
    """Said of a run that nobody trains and that still calls itself running."""
    said = "the attempt before was killed, by SIGKILL, a power cut or the system when memory ran out"
    return [said] if info["status"] == "running" else []


def _other_machine(built: Built, info: dict[str, Any]) -> list[str]:
    now = describe(built)
    keys = ("threads", "device", "arithmetic")
    differing = [f"{key} {info[key]} -> {now[key]}" for key in keys if info.get(key, now[key]) != now[key]]
    if info["versions"]["torch"] != now["versions"]["torch"]:
        differing.append(f"torch {info['versions']['torch']} -> {now['versions']['torch']}")
    return [f"bit-exactness is not promised: {', '.join(differing)}"] if differing else []


def _fit(
    built: Built, folder: Path, place: Place, saved: Saved | None
) -> Generator[tuple[Job, Saved | None], Best, dict[str, Any]]:
    record = Recorder(folder, view(folder / "log.txt", place.quiet), _gate_over_grid(built), place.told)
    try:
        if place.note:
            record.note(place.note)
        for text in built.warnings:
            record.warn(text)
        best = yield job(built, record, saved), saved
    finally:
        record.close()
    tensors, _ = checkpoint.load(folder / "checkpoints" / f"step-{best.step:08d}")
    checkpoint.restore(built.model, tensors["model"], str(folder))
    summary = summarise(built, record, best)
    write_whole(folder / "summary.json", to_json(summary))
    return {"best_step": best.step, "warnings": record.progress.warnings}


def job(built: Built, record: Recorder, saved: Saved | None = None) -> Job:
    settings = built.config
    if settings["init"] and saved is None:
        checkpoint.restore(built.model, first_weights(built, settings["init"]), f"init={config.text(settings['init'])}")

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return build(settings["optimizer"], params=params)

    return Job(
        built.model,
        built.task,
        built.objective,
        optimizer,
        build(settings["schedule"]),
        record,
        settings["seed"],
        built.device,
        prepared=isinstance(settings["init"], str),
    )


def _model_name(built: Built) -> str:
    return "twin" if built.model.is_twin else built.config["choices"]["router"]


def describe(built: Built) -> dict[str, Any]:
    """All that ``compare`` reads of a run, beside its summary."""
    task, kind = built.task, built.task.kind
    return {
        "config": config.flat(built.config),
        "seed": built.config["seed"],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"moecli": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "git": git_revision(),
        "device": str(built.device),
        "threads": torch.get_num_threads(),
        "arithmetic": arithmetic(),
        "parameters": {"total": built.size.total, "active": built.size.active},
        "flops": built.size.flops,
        "unit": unit(task),
        "fingerprint": task.fingerprint,
        "kind": type(kind).__name__.lower(),
        "headline": kind.headline,
        "higher_is_better": kind.higher_is_better,
        "units": UNITS,
        "label_names": label_names(built),
        "symbols": list(getattr(kind, "symbols", ())),
        "feature_names": task.feature_names,
        "layers": {
            name: {"experts": layer.experts.num_experts, "rows_per_token": built.size.rows[name]}
            for name, layer in built.model.mixtures.items()
        },
        "twin": built.model.is_twin,
        "leak": built.model.allow_leak and "causal" in task.needs,
    }  # fmt: skip


def label_names(built: Built) -> dict[str, list[str]]:
    """What specialisation is measured against: the task's labels, and positions where the model names them."""
    positions = {"position": list(built.model.positions)} if built.model.positions else {}
    return {**built.task.label_names, **positions}


def unit(task: Task) -> str:
    """What FLOPs are counted per."""
    return "token" if "sequence" in task.gives else "example"


def arithmetic() -> str:
    """The instructions that torch and its libraries choose among: others give other last bits."""
    chosen = [f"{name}={os.environ[name]}" for name in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA") if name in os.environ]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *chosen])


def git_revision() -> str | None:
    """Of the working folder, with + where it was changed; None outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# -- what came out ----------------------------------------------------------------------------


def summarise(built: Built, record: Recorder, best: Best) -> dict[str, Any]:
    """The best weights on valid and test, what each expert does, and what it is worth."""
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    for split in ("valid", "test"):
        found = evaluate(built.model, built.task, split, built.device, trace=split == "test")
        rank = log_prob_rank(built.model, built.task, split, built.device)
        metrics |= {f"{split}/{n}": v for n, v in (found.metrics | rank).items()}
        chance |= {f"{split}/{n}": v for n, v in built.task.chance(split).items() if n in found.metrics}
    for name, parts in found.tokens.items():
        record.trace.tokens(best.step, "test", name, parts)
    metrics |= _answered(built, record)
    _surface(built, record.folder)
    _responsibilities(built, record.folder)
    _slots(built, record.folder)
    _samples(built, record.folder)
    mixtures = {n: layer for n, layer in built.model.mixtures.items() if layer.experts.num_experts > 1}
    return {
        "parameters": {"total": built.size.total, "active": built.size.active},
        "flops": built.size.flops,
        "metrics": metrics,
        "chance": chance,
        "confusion": _confusion(built.task, found),
        "experts": [row for name in mixtures for row in _experts(built, found, name, record.folder)],
        "layers": [_layer(built, found, name, record.folder) for name in mixtures],
        **_criteria(built, record.folder, best.step),
    }


def _criteria(built: Built, folder: Path, step: int) -> dict[str, Any]:
    """Of a classical mixture: likelihood on the training rows, AIC, BIC and ICL; of other models nothing."""
    layer = exact_layer(built.model, folder, step)
    if layer is None:
        return {}
    found = criteria.criteria(layer, training_rows(built.task), log_scale(built.task))
    return {"criteria": found.numbers()}


def exact_layer(model: Model, folder: Path, step: int) -> MixtureDensity | None:
    """A classical mixture in float64, as EM left it where it was fitted so; None for other models."""
    found: Any = model.mixtures.get("layer0")
    if not information.is_classical(found):
        return None
    layer = copy.deepcopy(found).cpu().double().eval()
    tensors, _ = checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")
    if "em" in tensors:
        checkpoint.restore(layer, tensors["em"], str(folder))
    return layer


def training_rows(task: Task) -> information.Rows:
    batch = task.batch("train", torch.arange(task.sizes["train"]))
    return information.Rows.of(batch.x, batch.target, batch.weight)


def log_scale(task: Task) -> float:
    """What a row's log density loses when its targets go into the user's units."""
    return math.fsum(math.log(scale) for scale in getattr(task.kind, "scale", ()))


def _confusion(task: Task, found: Evaluation) -> list[list[int]] | None:
    from moecli.tasks.kinds import confusion

    if "predicted" not in found.scores:
        return None
    return confusion(found.scores["predicted"], found.scores["target"], task.out).tolist()


def _experts(built: Built, found: Evaluation, name: str, folder: Path) -> list[dict[str, Any]]:
    """One row per expert of a layer: load, first choices, entropy, what it serves, quality without it."""
    usage, tokens = found.usage[name], TraceReader(folder).tokens(name, "test")
    num_experts = len(usage.load)
    share = specialisation.shares(tokens, num_experts)
    label, names = next(iter(built.task.label_names.items()), ("", []))
    table = specialisation.by_label(share, tokens[f"label_{label}"], len(names)) if label else None
    work = np.maximum(share.sum(0), 1e-30)
    undecided = (share * tokens["entropy"][:, None]).sum(0) / work
    return [
        {
            "layer": name,
            "expert": e,
            "load": float(usage.load[e]),
            "first": float(usage.first[e] / usage.tokens),
            "entropy": float(undecided[e]),
            "label": label,
            "serves": [] if table is None else specialisation.serves(table, names, e),
            "without": _change_without(built, found, name, e),
        }
        for e in range(num_experts)
    ]


def _change_without(built: Built, found: Evaluation, name: str, expert: int) -> float | None:
    """How the headline metric on test changes when an expert is taken out."""
    if sum(layer.experts.num_experts for layer in built.model.mixtures.values()) > MOST_REMOVALS:
        return None
    with without(built.model, name, expert):
        changed = evaluate(built.model, built.task, "test", built.device)
    headline = built.task.kind.headline
    return changed.metrics[headline] - found.metrics[headline]


def _layer(built: Built, found: Evaluation, name: str, folder: Path) -> dict[str, Any]:
    usage, tokens = found.usage[name], TraceReader(folder).tokens(name, "test")
    share = usage.load.double()
    first = specialisation.first_expert(tokens)
    against = {
        label: asdict(specialisation.nmi_against_chance(first, tokens[f"label_{label}"], tokens["document"]))
        for label in label_names(built)
        if len(np.unique(tokens[f"label_{label}"])) > 1  # one value has nothing to tell
    }
    return {
        "layer": name,
        "effective_experts": effective_experts(share.tolist()),
        "balance_cv": float(share.std(unbiased=False) / share.mean()),
        "max_over_mean": float(share.max() / share.mean()),
        "dropped": usage.dropped,
        "dropped_by_choice": dropped_by_rank(usage.ranks.tolist()),
        "entropy": float(usage.entropy) / usage.tokens,
        "nmi": against,
    }


def _grid(built: Built) -> torch.Tensor | None:
    """Points over the task's line or plane; None for routers that must be told of a token what no point of a grid has."""
    grid = built.task.grid()
    return None if grid is None or _told(built) else grid.to(built.device)


def _told(built: Built) -> bool:
    """Whether some router must be told of each token what the task knows of it."""
    return any("known" in layer.router.needs for layer in built.model.mixtures.values())


@torch.no_grad()
def _surface(built: Built, folder: Path) -> None:
    """What the mixture, its gate and each expert say over the task's grid, for pictures."""
    grid = _grid(built)
    if grid is None:
        return
    built.model.eval()
    output = built.model(grid)
    probs = next(iter(output.routings.values())).probs
    alone = built.model.experts_alone(grid)
    test = built.task.batch("test", torch.arange(built.task.sizes["test"]))
    arrays = {
        "x": grid,
        "prediction": point(output.prediction, built.task),
        "gate": probs,
        "data_x": test.x,
        "data_y": test.target,
    }
    arrays |= {} if alone is None else {"experts": alone}
    if isinstance(output.prediction, Mixture) and "real" in built.task.gives:
        arrays["deviation"] = output.prediction.variance.sqrt()
    _write_arrays(folder / "routing" / "surface.npz", arrays)


def _write_arrays(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, {name: value.cpu().numpy() for name, value in arrays.items()})


@torch.no_grad()
def _responsibilities(built: Built, folder: Path) -> None:
    """Which expert made each test row, as a mixture of densities sees it; with the rows where they can be drawn."""
    if "mixture" not in built.model.gives:
        return
    test = built.task.batch("test", torch.arange(min(built.task.sizes["test"], MOST_ROWS))).to(built.device)
    prediction = built.model.eval()(test.x, test.known).prediction
    arrays = {"resp": prediction.responsibilities(test.target)}
    if test.x.ndim == 2 and test.x.shape[1] <= 2:
        arrays |= {"x": test.x, "target": test.target}
    _write_arrays(folder / "routing" / "responsibilities.npz", arrays)


@torch.no_grad()
def _slots(built: Built, folder: Path) -> None:
    """Which test rows each soft slot averages, for pictures; one group of them, of whole examples, not of their patches."""
    test = built.task.batch("test", torch.arange(min(built.task.sizes["test"], PREDICTED_AT_ONCE))).to(built.device)
    if test.x.ndim != 2 or not test.x.is_floating_point() or built.model.positions:
        return
    for name, routing in built.model.eval()(test.x, test.known).routings.items():
        if isinstance(routing.plan, Slots):
            write_arrays(folder / "routing" / name / "slots.npz", slot_averages(routing.plan, test.x))


@torch.no_grad()
def _samples(built: Built, folder: Path) -> None:
    """What the model makes up, for pictures; nothing where a router must be told what only the task's own tokens have."""
    if _told(built):
        return

    def predict(x: torch.Tensor) -> torch.Tensor:
        return point(built.model(x.to(built.device)).prediction, built.task).cpu()

    built.model.eval()
    arrays = built.task.samples(predict, built.config["seed"])
    if arrays:
        _write_arrays(folder / "routing" / "samples.npz", arrays)


def writer(model: Model, device: torch.device) -> Write:
    """The model writing, the likeliest next word each time."""

    def write(source: torch.Tensor, begin: int, end: int, most: int) -> torch.Tensor:
        return decode(model, source.to(device), begin, end, most).cpu()

    return write


def answers(model: Model, task: Task, split: str, device: torch.device) -> Answers:
    """What a model says to a split in words; nothing where the task or a router has none."""
    try:
        return task.answers(writer(model, device), split)
    except UsageError as error:  # a run was warned of it
        return Answers(why_none=str(error))


def _answered(built: Built, record: Recorder) -> dict[str, float]:
    """How good the answers to the test are, which go into ``answers.tsv``."""
    found = answers(built.model, built.task, "test", built.device)
    if found.said:
        write_whole(record.folder / "answers.tsv", found.table().encode())
    return {f"test/{name}": value for name, value in found.metrics.items()}


def _gate_over_grid(built: Built) -> Callable[[], torch.Tensor] | None:
    """What the first gate believes over a task's plane, (M, E), whenever it is called; None without a plane."""
    grid = _grid(built)
    if grid is None or grid.shape[1] != 2 or not built.model.mixtures:
        return None

    @torch.no_grad()
    def look() -> torch.Tensor:
        training = built.model.training
        probs = next(iter(built.model.eval()(grid).routings.values())).probs
        built.model.train(training)
        return probs

    return look


def point(prediction: torch.Tensor | Mixture, task: Task) -> torch.Tensor:
    """Class probabilities, or the mean: (N, Y)."""
    mean = prediction.mean if isinstance(prediction, Mixture) else prediction
    return mean.softmax(-1) if "classes" in task.gives and not isinstance(prediction, Mixture) else mean


def _finish_summary(folder: Path, info: dict[str, Any]) -> None:
    summary = {"run": str(folder), "status": info["status"], "seconds": info["seconds"], **Run(folder).summary}
    write_whole(folder / "summary.json", to_json(summary))


def _draw(run: Run) -> None:
    """A picture that fails must fail neither the training nor the other pictures: its traceback goes to the log."""
    from moecli.plots.gallery import STANDARD, draw_all

    for kind in STANDARD:
        try:
            draw_all(run, [kind])
        except Exception:
            with open(run.path / "log.txt", "a", encoding="utf-8") as log:
                log.write(f"the picture {kind} failed:\n{traceback.format_exc()}")


def dry_run(built: Built) -> list[str]:
    """Shapes, parameters, FLOPs, memory and an estimate of time, from a few steps of the real thing."""
    lines = [f" {name}: {tuple(p.shape)}" for name, p in built.model.named_parameters()]
    settings, info = built.config["trainer"], describe(built)
    state = 4 * 4 * built.size.total  # float32 weights, gradients and two moments
    size = settings.get("batch_size", built.task.sizes["train"])
    steps, seconds = rounds(built.config), _seconds_per_step(built, size)
    return [
        *terminal.header(info),
        *lines,
        f" memory: {state / 1e6:.1f} MB for weights, gradients and two moments, activations apart",
        f" time: about {steps * seconds:.0f} s for {steps} steps of {size}, evaluation and pictures apart",
        *(f" warning: {text}" for text in built.warnings),
    ]


def _seconds_per_step(built: Built, batch_size: int, steps: int = 4) -> float:
    """Of forward and backward, the first one left out."""
    times = []
    for step in range(steps):
        batch = built.task.train_batch(step, batch_size, built.config["seed"]).to(built.device)
        started = time.perf_counter()
        built.objective(built.model(batch.x, batch.known), batch.target)["total"].backward()
        times.append(time.perf_counter() - started)
    built.model.zero_grad()
    return min(times[1:])


def best_weights(run: Run) -> dict[str, torch.Tensor]:
    """Of a run's best checkpoint, or its last where it has not finished.  Raises ArtifactError."""
    steps = checkpoint.steps(run.path)
    if not steps:
        raise ArtifactError(f"{run.path}: it has no checkpoint yet. Let the run reach its first evaluation")
    tensors, _ = checkpoint.load(run.path / "checkpoints" / f"step-{run.info.get('best_step') or steps[-1]:08d}")
    return tensors["model"]


def _runs_of(init: str | list[str] | None) -> list[Path]:
    return [Path(run).expanduser() for run in ([init] if isinstance(init, str) else init or [])]


def first_weights(built: Built, init: str | list[str]) -> dict[str, torch.Tensor]:
    """Of a run; of a list of runs their experts side by side, and what routes between them as it is.

    Raises UsageError for a list where the model has weights that belong to neither, ArtifactError for a run of another
    vocabulary.
    """
    runs = [Run(run) for run in _runs_of(init)]
    for run in runs:
        _refuse_other_symbols(built.task, run)
    found = [best_weights(run) for run in runs]
    if isinstance(init, str):
        return found[0]
    own = built.model.state_dict()
    joined = [name for name in own if ".experts." in name or ".family." in name]
    left = [name for name in own if name not in joined and ".router." not in name]
    if left:
        raise UsageError(
            f"init={config.text(init)}: experts of several runs go side by side, but this model has {left[0]} too, which "
            "each run has its own of. Use model=density, or one run"
        )
    missing = [name for name in joined if any(name not in weights for weights in found)]
    if missing:
        raise ArtifactError(f"init={config.text(init)}: not every run has {missing[0]}. Name runs of the same experts")
    return own | {name: torch.cat([weights[name] for weights in found]) for name in joined}


def _refuse_other_symbols(task: Task, run: Run) -> None:
    own, theirs = list(getattr(task.kind, "symbols", ())), run.info.get("symbols")
    if own and theirs and own != theirs:
        raise ArtifactError(
            f"init={run.path}: its vocabulary of {len(theirs)} symbols is not the {len(own)} of this task. "
            "Read both in bytes (task.tokens=bytes), or by one tokenizer (task.tokens=PATH)"
        )


# -- read again -------------------------------------------------------------------------------


@dataclass
class Loaded:
    """A finished run, live again."""

    run: Run
    config: Config
    task: Task
    model: Model
    device: torch.device

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Class probabilities or means for features (N, D): (N, Y)."""
        self.model.eval()
        with torch.no_grad():
            return point(self.model(x.to(self.device)).prediction, self.task)


def load(run: Path | str, words: Sequence[str] = ()) -> Loaded:
    """The best weights of a run, with its task; ``words`` change the configuration (data, capacity).

    Raises ArtifactError where the run or its checkpoint is damaged or does not fit.
    """
    found = Run(Path(run))
    settings = config.amend(config.read(found.path / "config.yaml"), words)
    built = assemble(Composed(settings, frozenset()))
    other_data = built.task.fingerprint != found.info["fingerprint"]
    if other_data and (built.task.fitted or not any(word.startswith("task") for word in words)):
        raise ArtifactError(
            f"{found.path}: the task's data is not what the run was fitted to, so its features would mean something "
            "else. Restore the data; for new rows use: moe predict"
        )
    checkpoint.restore(built.model, best_weights(found), str(found.path))
    return Loaded(found, built.config, built.task, built.model, built.device)


def evaluate_loaded(loaded: Loaded, split: str) -> dict[str, Any]:
    """Metrics on a split beside their chance level, and what each layer dropped."""
    found = evaluate(loaded.model, loaded.task, split, loaded.device, trace=True)
    rank = log_prob_rank(loaded.model, loaded.task, split, loaded.device)
    said = answers(loaded.model, loaded.task, split, loaded.device)
    return {
        "run": str(loaded.run.path),
        "split": split,
        "metrics": found.metrics | rank | said.metrics,
        "answers": [asdict(each) for each in said.some(SHOWN)],
        "no_answers": said.why_none,
        "chance": loaded.task.chance(split),
        "dropped": {name: usage.dropped for name, usage in found.usage.items()},
    }


def generated(loaded: Loaded, text: str, tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    """A text and so many ``tokens`` that the model goes on with, each with the expert that served it in every layer.

    Raises UsageError where the run's task has no text, or a router that only knows whole texts.
    """
    task: Any = loaded.task
    if not hasattr(task, "encode"):
        name = loaded.config["choices"]["task"]
        raise UsageError(
            f"--generate (task={name}): it has no text to go on from. Use a run of task=stdlib_text or text"
        )
    given = task.encode(text)
    ids, experts = generate(loaded.model, given.to(loaded.device), tokens, task.context, temperature, seed)
    symbols = [task.kind.symbols[index] for index in ids.tolist()]
    served = [dict(zip(experts, row, strict=True)) for row in zip(*experts.values(), strict=True)]
    return {
        "run": str(loaded.run.path),
        "text": task.encoding.decode(ids.tolist()),
        "given": len(given),
        "temperature": temperature,
        "seed": seed,
        "tokens": [{"token": s, "experts": e} for s, e in zip(symbols, served, strict=True)],
    }


@torch.no_grad()
def write_plans(loaded: Loaded, file: Path) -> None:
    """Who serves every token of the task's data in evaluation, into an ``.npz`` that ``router=replay`` reads."""
    loaded.model.eval()
    number: dict[str, list[torch.Tensor]] = {name: [] for name in loaded.model.mixtures}
    weights: dict[str, list[torch.Tensor]] = {name: [] for name in number}
    for batch in (b.to(loaded.device) for split in SPLITS for b in loaded.task.batches(split, PREDICTED_AT_ONCE)):
        with watched(loaded.model) as seen:
            routings = loaded.model(batch.x, batch.known).routings
        for name, tokens in seen.items():
            number[name].append(tokens.known["row"] + tokens.position)
            weights[name].append(routings[name].plan.weights)
    write_arrays(file, _plan_tables(*([torch.cat(of[name]) for name in number] for of in (number, weights))))


def _plan_tables(number: list[torch.Tensor], weights: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Each layer's tokens' numbers (n,) and weights (n, E) -> expert and weight (L, M, K), -1 and 0 where there is none."""
    num_choices = max(int((layer > 0).sum(-1).max()) for layer in weights)
    num_tokens = max(int(layer.max()) for layer in number) + 1
    expert = torch.full((len(weights), num_tokens, num_choices), -1, dtype=torch.int16)
    weight = torch.zeros(expert.shape)
    for index, (place, layer) in enumerate(zip(number, weights, strict=True)):
        top, chosen = layer.cpu().topk(min(num_choices, layer.shape[1]), dim=-1)
        expert[index, place.cpu(), : top.shape[1]] = chosen.masked_fill(top == 0, -1).short()
        weight[index, place.cpu(), : top.shape[1]] = top.float()
    return {"expert": expert.numpy(), "weight": weight.numpy()}


def coefficient_tables(loaded: Loaded, bootstrap: int = 0) -> Coefficients | None:
    """Of a classical mixture's gate and experts, with standard errors; None for other models.

    ``bootstrap`` takes them from so many refits to resampled rows (groups of rows, where the task has groups).
    """
    layer = exact_layer(loaded.model, loaded.run.path, loaded.run.info["best_step"])
    if layer is None:
        return None
    task = loaded.task
    rows, units = training_rows(task), units_of(task)
    found = coefficients(layer, rows, units)
    if not bootstrap:
        return found
    group = task.batch("train", torch.arange(task.sizes["train"])).document
    plan = Em(steps=MOST_ITERATIONS)
    refits = [quantities(*refit, units) for refit in criteria.resampled(layer, rows, group, plan, bootstrap)]
    return bootstrapped(found, torch.stack([values for _, values in refits]), refits[0][0])


def units_of(task: Task) -> Units:
    """What leads from a task's features and targets to the user's own."""
    kind: Any = task.kind
    center, factor = (torch.tensor(values, dtype=torch.float64) for values in task.feature_units())
    targets = list(getattr(kind, "targets", getattr(kind, "classes", ())))
    one, zero = torch.ones(len(targets)).double(), torch.zeros(len(targets)).double()
    scale = torch.tensor(getattr(kind, "scale", ()), dtype=torch.float64) * one if hasattr(kind, "scale") else one
    shift = torch.tensor(kind.center, dtype=torch.float64) + zero if hasattr(kind, "center") else zero
    return Units(task.feature_names, targets, center, factor, scale, shift)


def selection(
    composed: Composed, numbers: Sequence[int], folds: int = 5, bootstrap: int = 0, restarts: int = 5
) -> list[dict[str, Any]]:
    """A row of criteria for each number of experts of a classical mixture, fitted by EM to the task's training rows.

    ``held`` is the cross-validated log-likelihood a row (in ``folds`` folds), ``p`` the bootstrap test of a number
    against one more, from ``bootstrap`` simulated data sets.  Raises UsageError for a model that is no such mixture.
    """
    task = build_task(composed)
    rows, unit_size = training_rows(task), log_scale(task)
    group = task.batch("train", torch.arange(task.sizes["train"])).document

    def make(num_experts: int) -> MixtureDensity:
        settings = copy.deepcopy(composed.config) | {"num_experts": num_experts}
        layer = assemble(Composed(settings, composed.explicit), task).model.mixtures.get("layer0")
        if not information.is_classical(layer):
            raise UsageError(
                "moe criteria: its parameters can be counted only for linear or constant experts under a linear, constant or "
                "uniform gate. Choose among those, with model=density router=dense"
            )
        return copy.deepcopy(layer).cpu().double().eval()  # type: ignore[union-attr, return-value]

    settings = composed.config["trainer"]
    steps, tolerance = max(settings["steps"], MOST_ITERATIONS), settings.get("tolerance", 1e-6)
    plan = Em(steps=steps, tolerance=tolerance, restarts=restarts)
    fits = {number: criteria.fit(make(number), rows, plan)[0] for number in numbers}
    found = []
    for number, layer in fits.items():
        row = {"num_experts": number, **criteria.criteria(layer, rows, unit_size).numbers()}
        if folds > 1:
            held = criteria.cross_validated(make, number, rows, group, plan, folds, unit_size)
            row |= {"held": held.mean, "held_error": held.error}
        if bootstrap and number + 1 in fits:
            row["p"] = criteria.likelihood_ratio_p(make, layer, fits[number + 1], rows, plan, bootstrap)
        found.append(row)
    return found


def predictions(loaded: Loaded, file: Path) -> pandas.DataFrame:
    """New rows of a file -> prediction, how sure it is, and the first expert of each layer with its weight.

    To sources of a task that answers them, the answer in words.
    A mixture density adds every expert's probability before the target is known (``gate e0``), and where the file
    has the target its density and every expert's probability after it (``responsibility e0``), else nothing.
    Raises DataError where the file does not fit the run's task.
    """
    import pandas

    x, given = loaded.task.new_rows(file)
    if loaded.task.source:
        return pandas.DataFrame({**given, "answer": loaded.task.say(writer(loaded.model, loaded.device), x)})
    loaded.model.eval()
    y = loaded.task.new_targets(file)
    targets = [None] * len(x) if y is None else y.split(PREDICTED_AT_ONCE)
    answers = [_answer(loaded, *rows) for rows in zip(x.split(PREDICTED_AT_ONCE), targets, strict=False)]
    columns = {name: [value for answer in answers for value in answer[name]] for name in answers[0]}
    return pandas.DataFrame({**given, **columns})


@torch.no_grad()
def _answer(loaded: Loaded, x: torch.Tensor, y: torch.Tensor | None) -> dict[str, list[Any]]:
    output = loaded.model(x.to(loaded.device))
    columns = loaded.task.kind.answer(output.prediction)
    for name, routing in output.routings.items():
        weights = routing.plan.weights
        if unit(loaded.task) == "example":
            weights = _of_examples(weights, routing.example, len(x))
        weight, expert = weights.max(-1)
        served = [e if w > 0 else None for e, w in zip(expert.tolist(), weight.tolist(), strict=True)]
        columns |= {f"{name} expert": served, f"{name} weight": weight.tolist()}
    return columns | (
        _evidence(output.prediction, y, log_scale(loaded.task)) if isinstance(output.prediction, Mixture) else {}
    )


def _of_examples(weights: torch.Tensor, example: torch.Tensor, batch: int) -> torch.Tensor:
    """The mean over each example's tokens: (N, E) -> (B, E)."""
    tokens = example.bincount(minlength=batch)[:, None]
    return weights.new_zeros(batch, weights.shape[1]).index_add(0, example, weights) / tokens


def _evidence(mixture: Mixture, y: torch.Tensor | None, log_scale: float) -> dict[str, list[Any]]:
    """Every expert's probability, and with targets (N, ...) their density; NaN where a row has none."""
    columns = {f"gate e{e}": p.tolist() for e, p in enumerate(mixture.routing.probs.T)}
    if y is None:
        return columns
    known = (y >= 0) if not y.is_floating_point() else y.isfinite().all(-1)
    filled = y.where(known.view(-1, *[1] * (y.ndim - 1)), 0).to(mixture.row_mean.device)
    density = (mixture.log_prob(filled) - log_scale).exp().cpu().where(known, torch.nan)
    resp = mixture.responsibilities(filled).cpu().where(known[:, None], torch.nan)
    return columns | {"density": density.tolist()} | {f"responsibility e{e}": p.tolist() for e, p in enumerate(resp.T)}
