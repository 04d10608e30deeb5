"""Compose, check, build: the only module that knows Hydra.

``compose`` turns ``key=value`` words into one complete, plain dictionary, and refuses what it does
not know in one line, without importing torch: option types are read from the source of each part's
constructor.  ``build`` turns a node of that dictionary into the part.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from moecli import types
from moecli.errors import ArtifactError, UsageError

Config = dict[str, Any]
REQUIRED = object()
# Constructor arguments that the surrounding model fills in; no user sets them.
CONTEXT = ("parts", "gate", "dim", "out", "num_experts", "layer", "num_layers", "vocab_size", "source", "image")
OPEN = "???"  # the value of a key that the user must give
FULL = "full"  # the scale of an experiment as its file says; its ``scales`` holds others
FREE = ("model.layers",)  # keys below these are checked by the model, which knows its layers
_plugins: list[Path] = []


# -- where parts are found ---------------------------------------------------------------------


@cache
def conf_root() -> Path:
    """conf/ lies in the package in a wheel, and beside it in a checkout."""
    packaged = Path(str(files("moecli"))) / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "conf"


def use_plugins(folders: Iterable[Path]) -> None:
    """Let these folders (each with Python files and a ``conf/`` of the same shape as ours) add parts.

    Raises UsageError for a folder without ``conf/``.
    """
    for folder in (f.expanduser().resolve() for f in folders):
        if not (folder / "conf").is_dir():
            raise UsageError(
                f"--plugin {folder}: it has no folder conf/. Put one option a file there: conf/router/NAME.yaml"
            )
        if folder not in _plugins:
            _plugins.append(folder)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    registry.cache_clear()


def plugin_roots() -> list[Path]:
    """The conf/ of every plugin: those named now, and installed packages with an entry point ``moecli.plugins``."""
    found = [importlib.util.find_spec(point.value) for point in entry_points(group="moecli.plugins")]
    installed = [Path(spec.origin).parent for spec in found if spec and spec.origin]
    return [folder / "conf" for folder in [*_plugins, *installed]]


@cache
def registry() -> dict[str, dict[str, Path]]:
    """{group: {option: its YAML file}}, straight from the files; names with a leading _ are shared pieces."""
    found: dict[str, dict[str, Path]] = {}
    for root in (conf_root(), *plugin_roots()):
        for file in sorted(root.glob("*/*.yaml")):
            if not file.name.startswith("_"):
                found.setdefault(file.parent.name, {})[file.stem] = file
    return found


def describe(group: str, option: str) -> str:
    """The first comment line of an option's file that is not for Hydra."""
    lines = find(group, option).read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def option_help(group: str, option: str) -> dict[str, str]:
    """{key: the comment behind it}, also of the shared pieces that the file takes in."""
    text = find(group, option).read_text(encoding="utf-8", errors="replace")
    for piece in re.findall(r"^  - (?!_self_$)(_\w+)$", text, re.MULTILINE):
        text += (conf_root() / group / f"{piece}.yaml").read_text(encoding="utf-8")
    return _comments(text)


def _comments(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):[^#\n]*# (.*)$", text, re.MULTILINE))


def find(group: str, option: str) -> Path:
    """An option's file.  Raises UsageError with the nearest name."""
    if group not in registry():
        raise UsageError(
            f"{group}={option}: no such group.{nearest(group, registry())} Choose from: {', '.join(registry())}"
        )
    options = registry()[group]
    if option not in options:
        raise UsageError(
            f"{group}={shown(option)} (command line): no such {group}.{nearest(option, options, f'{group}=')} "
            f"Choose from: {', '.join(options)}"
        )
    return options[option]


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """`` Did you mean WORD?`` where one is near, else nothing."""
    close = difflib.get_close_matches(word, list(words), 1, cutoff=0.4)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


# -- what a part's options are, read from its source -------------------------------------------


@dataclass(frozen=True)
class Option:
    """One constructor argument: its type where the source tells it, and its default."""

    type: Any
    default: Any


TYPES: dict[str, Any] = {
    **{name: value for name, value in vars(types).items() if not name.startswith("_")},
    **{kind.__name__: kind for kind in (int, float, str, bool, list, dict)},
    "types": types, "Literal": Literal, "Any": Any, "Annotated": Annotated, "None": None,
}  # fmt: skip


@cache
def signature(target: str) -> dict[str, Option]:
    """Every constructor argument of ``module.Class``, those that **keywords pass on to its base included.

    Raises UsageError where there is no such class.
    """
    module, _, name = target.rpartition(".")
    tree, cls = _class(module, name)
    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    options = _arguments(init) if init else {}
    if (init is None or init.args.kwarg) and cls.bases:
        base = ast.unparse(cls.bases[0])
        home = _imported(tree, base) or f"{module}.{base}"
        if home.startswith(("moecli.", module)):
            options = {**signature(home), **options}
    return options


def _class(module: str, name: str) -> tuple[ast.Module, ast.ClassDef]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UsageError(f"_target_ {module}.{name}: no such module. Check the _target_ of the part's YAML file")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return tree, node
    raise UsageError(f"_target_ {module}.{name}: the module has no class {name}. Check the part's YAML file")


def _arguments(init: ast.FunctionDef) -> dict[str, Option]:
    args = init.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(args) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = [*zip(args, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    return {
        arg.arg: Option(_type(arg.annotation), REQUIRED if default is None else ast.literal_eval(default))
        for arg, default in pairs
    }


def _type(annotation: ast.expr | None) -> Any:
    """The annotation as a type; Any where it names something that only the part's own module knows."""
    try:
        return Any if annotation is None else eval(ast.unparse(annotation), {"__builtins__": {}}, TYPES)
    except NameError:
        return Any


def _imported(tree: ast.Module, name: str) -> str | None:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return f"{node.module}.{name}"
    return None


# -- compose: words -> one complete dictionary --------------------------------------------------


class Settings:
    """The keys that belong to no part; ``conf/config.yaml`` holds their defaults."""

    def __init__(
        self,
        seed: types.Seed = 0,
        num_experts: types.PositiveInt = 8,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: types.Threads | None = None,
        init: str | list[str] | None = None,
    ):
        raise NotImplementedError("only its signature is read")


@dataclass(frozen=True)
class Word:
    """One ``key=value`` of the command line."""

    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Word:
        """Raises UsageError for what is no ``key=value``, and for keys that no user sets."""
        key, equals, value = text.partition("=")
        key = key.lstrip("+")
        if not equals or not re.fullmatch(r"[A-Za-z][\w.]*", key):
            raise UsageError(f"{shown(text)!r} (command line): not of the form key=value. Write for example router.k=2")
        made_up = value[:1] in ("{", "[") and "_target_" in value
        if made_up or "_target_" in key.split(".") or key.split(".")[0] in ("hydra", "choices"):
            raise UsageError(f"{key} (command line): no key that can be set. Parts are chosen by name: router=top_k")
        if "${" in value:
            raise UsageError(
                f"{key} (command line): values are taken as they are, without ${{...}}. Write the value itself"
            )
        return cls(key, value)


@dataclass(frozen=True)
class Composed:
    """A complete configuration, and the groups that the user chose or changed by hand."""

    config: Config
    explicit: frozenset[str]


def compose(words: Sequence[str]) -> Composed:
    """``key=value`` words over the defaults -> the complete configuration, checked.

    What the chosen experiment sets comes before the user's words; what task and router recommend
    comes before both.  Raises UsageError with the nearest right name.
    """
    user = [Word.parse(word) for word in words]
    experiment, smaller = _experiment(user)
    chosen, advice = _chosen(user, experiment)
    picked = {word.key: word.value for word in user if "." in word.key}
    nested, known = _nested(chosen, picked), _known(chosen, picked)
    for word in user:
        if word.key != "scale":
            _check_word(word, known, nested, chosen)
    fitting = {
        k: v for k, v in {**advice, **smaller}.items() if k in registry() or k in known or _free(k)
    }  # for the parts that were chosen
    lines = [_line(Word(key, text(value)), nested, known) for key, value in fitting.items()]
    lines += [_line(word, nested, known) for word in user if word.key != "scale"]
    config: Config = {"family": None, "auxiliary": {}} | _hydra(lines, " ".join(words))
    given = {word.key for word in user}
    for key, value in experiment.items():
        if value == OPEN and key in known and key not in given:  # Hydra would keep the part's own default
            raise _lacking(key)
    taken = given | set(experiment)
    for key in set(experiment) - {*known, *registry()}:
        if key.split(".")[0] in taken:  # the user chose another part than the experiment, which has no such option
            _drop(config, key)
    config["model"]["layers"] = _whole_layers(config)
    config["choices"] = {group: option for group, option in chosen.items() if group != "experiment"}
    return Composed(check(config), frozenset(word.key.split(".")[0] for word in user))


def settable(words: Sequence[str]) -> dict[str, tuple[Option | str, str]]:
    """Every key that may stand beside these words: {key: (its Option, or the group whose options it takes; its help)}.

    Raises UsageError as ``compose`` does; nothing heavy is imported.
    """
    user = [Word.parse(word) for word in words]
    chosen, _ = _chosen(user, _experiment(user)[0])
    picked = {word.key: word.value for word in user if "." in word.key}
    groups = {group: group for group in registry()}
    helps = _comments((conf_root() / "config.yaml").read_text(encoding="utf-8"))
    for key, group, option in _parts(chosen, picked):
        helps |= {f"{key}.{name}": note for name, note in option_help(group, option).items()}
    kinds: dict[str, Any] = {**_known(chosen, picked), **_nested(chosen, picked), **groups}
    return {key: (kind, helps.get(key, "")) for key, kind in kinds.items()}


def _chosen(user: Sequence[Word], experiment: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """{group: option} of the whole configuration, and what task and router recommend that nobody has set."""
    taken = {word.key for word in user} | set(experiment)
    defaults = _defaults()
    chosen = {**defaults, **{g: v for g, v in experiment.items() if g in registry()}, **_choices(user)}
    for group in (g for g, default in defaults.items() if isinstance(default, str)):
        _one(chosen[group], group)
    advice: dict[str, Any] = {}
    for group in ("task", "router"):
        for key, value in raw_node(group, _one(chosen[group], group)).get("recommends", {}).items():
            if key not in taken and key not in advice:
                advice[key] = value
                if key in registry():
                    chosen[key] = value
    return chosen, advice


def _drop(config: Config, key: str) -> None:
    *path, last = key.split(".")
    node: Any = config
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(last, None)
        if not node and len(path) > 1:  # nothing is left of an auxiliary term that was not chosen
            _drop(config, ".".join(path))


def _whole_layers(config: Config) -> Config:
    """``{block3: {router: hash}}`` with each part whole: an option's name, or options over the part of all layers."""
    whole: Config = {}
    layers = config["model"].get("layers") or {}
    if not isinstance(layers, dict):
        raise UsageError(f"model.layers={shown(layers)}: no layer is named. Write model.layers.LAYER.router=hash")
    for layer, changes in layers.items():
        whole[layer] = {}
        if not isinstance(changes, dict):
            raise UsageError(
                f"model.layers.{layer}={shown(changes)}: say of what. Write model.layers.{layer}.router=hash"
            )
        for group, value in changes.items():
            if group not in ("router", "gate", "expert", "family", "num_experts"):
                raise UsageError(
                    f"model.layers.{layer}.{group}: no such key. A layer may change router, gate, expert, num_experts"
                )
            if group == "num_experts":
                value = _value(f"model.layers.{layer}.{group}", value, _settings()[group], "configuration")
            named = isinstance(value, str)
            merged = {**(config[group] or {}), **value} if isinstance(value, dict) else value
            whole[layer][group] = option_node(group, value) if named else merged
    return whole


def _experiment(user: Sequence[Word]) -> tuple[Config, Config]:
    """What the chosen experiment sets, and what ``scale`` makes smaller in it: {group: option} and {dotted key: value}.

    Raises UsageError for a scale that the experiment does not have.
    """
    name = _choices(user).get("experiment")
    raw = {} if name is None else raw_node("experiment", _one(name, "experiment"))
    choices = [entry for entry in raw.pop("defaults", []) if isinstance(entry, dict)]
    smaller = _scaled(raw.pop("scales", {}), user, name)
    parts = {key.split("/")[-1]: value for entry in choices for key, value in entry.items()}
    return {**parts, **dict(flatten(raw))}, smaller


def _scaled(scales: Config, user: Sequence[Word], experiment: str | None) -> Config:
    """The keys of the scale that the user chose, but for those that they set themselves."""
    given = {word.key: word.value for word in user}
    scale = given.get("scale", FULL)
    if scale != FULL and scale not in scales:
        where = f"experiment={experiment}" if experiment else "no experiment is chosen"
        hint = nearest(scale, [FULL, *scales], "scale=")
        raise UsageError(f"scale={scale} ({where}): no such scale.{hint} Choose from: {', '.join([FULL, *scales])}")
    return {key: value for key, value in scales.get(scale, {}).items() if key not in given}


def _defaults() -> dict[str, Any]:
    entries = _yaml(conf_root() / "config.yaml")["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _choices(user: Sequence[Word]) -> dict[str, Any]:
    """{group: option} of the words that choose one; ``[a,b]`` chooses several."""
    chosen: dict[str, Any] = {}
    for word in user:
        if word.key == "sweep":
            raise UsageError(
                f"sweep={shown(word.value)} (command line): a sweep is many runs. Begin it with: moe sweep"
            )
        if word.key not in registry():
            continue
        if "," in word.value and not word.value.startswith("["):
            raise UsageError(
                f"{word.key}={shown(word.value)} (command line): a run has one. Train each of them with: moe sweep"
            )
        several = word.value.startswith("[")
        options = [v.strip() for v in word.value.strip("[]").split(",") if v.strip()]
        for option in options:
            if option != "null":
                find(word.key, option)
            elif isinstance(_defaults().get(word.key), list):
                raise UsageError(f"{word.key}={word.value} (command line): null is none of them. Write {word.key}=[]")
            else:
                _one(None, word.key)
        chosen[word.key] = options if several else word.value
    return chosen


def _one(option: Any, group: str) -> str:
    if isinstance(option, str):
        return option
    raise UsageError(
        f"{group}={shown(option)} (command line): one {group} is needed. Choose from: {', '.join(registry()[group])}"
    )


def _yaml(file: Path) -> Config:
    """A file of conf/, parsed once as long as it stays the same.  Raises ArtifactError where it is none, as a plugin's may be."""
    try:
        stat = file.stat()
    except OSError as error:
        raise ArtifactError(f"{file}: {error}. Mend this file of a part") from error
    return copy.deepcopy(_parsed(file, stat.st_mtime_ns, stat.st_size, stat.st_ino))


@cache
def _parsed(file: Path, *stamp: int) -> Config:
    import yaml

    try:
        found = load_yaml(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise ValueError("it holds no keys")
        if not isinstance(found.get("defaults", []), list) or not isinstance(found.get("recommends", {}), dict):
            raise ValueError("defaults is a list, recommends holds keys")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ArtifactError(f"{file}: {' '.join(str(error).split())}. Mend this file of a part") from error
    return found


def load_yaml(written: str) -> Any:
    """What a YAML text says.

    Raises ValueError for aliases, which may swell without end; for depth, which overruns libyaml's stack; and
    for a key given twice, of which one would silently win.
    """
    import yaml

    loader, depth = _loader(), 0
    for event in yaml.parse(written, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1} has an alias. Write what it stands for")
        if depth > MOST_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1} lies more than {MOST_DEPTH} levels deep")
    try:
        return yaml.load(written, Loader=loader)
    except AttributeError as error:  # what PyYAML raises for `!!timestamp x`
        raise ValueError(f"a value is not of the type that its tag names ({error})") from error


@cache
def _loader() -> Any:
    import yaml

    class Once(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            again = [key for key, count in Counter(str(key.value) for key, _ in node.value).items() if count > 1]
            if again:
                raise ValueError(f"line {node.start_mark.line + 1} begins a mapping with {again[0]!r:.60} twice")
            return super().construct_mapping(node, deep)

    return Once


def raw_node(group: str, option: str) -> Config:
    """An option's file with the shared pieces it takes in; nested parts stay under ``defaults``."""
    file = find(group, option)
    raw = _yaml(file)
    pieces = [p for p in raw.get("defaults", []) if isinstance(p, str) and p.startswith("_") and p != "_self_"]
    for piece in pieces:
        raw = {**_yaml(conf_root() / group / f"{piece}.yaml"), **raw}
    return raw


def option_node(group: str, option: str) -> Config:
    """An option's node with its defaults, nested parts in their places: what composing it alone would give."""
    raw = raw_node(group, option)
    node = {key: value for key, value in raw.items() if key not in ("defaults", "recommends")}
    for inner_group, place, inner in _inner(raw):
        *path, last = place.split(".")
        at = node
        for step in path:
            at = at.setdefault(step, {})
        at[last] = option_node(inner_group, inner)
    return node


def _inner(raw: Config) -> Iterable[tuple[str, str, str]]:
    """(group, key, option) of the parts within a part."""
    for entry in raw.get("defaults", []):
        for where, option in entry.items() if isinstance(entry, dict) else ():
            group, _, place = where.strip("/").partition("@")
            yield group, place, option


def _parts(chosen: Mapping[str, Any], picked: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """(key, group, option) of every part in the configuration, nested ones included; ``picked`` chooses those."""
    for group, options in chosen.items():
        for option in options if isinstance(options, list) else [options]:
            if option is not None and group != "experiment":
                yield from _with_nested(f"{group}.{option}" if group == "auxiliary" else group, group, option, picked)


def _with_nested(key: str, group: str, option: str, picked: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    yield key, group, option
    for inner_group, place, default in _inner(raw_node(group, option)):
        inner = picked.get(f"{key}.{place}", default)
        if inner not in registry()[inner_group]:
            hint = nearest(inner, registry()[inner_group], f"{key}.{place}=")
            names = ", ".join(registry()[inner_group])
            raise UsageError(
                f"{key}.{place}={shown(inner)} (command line): no such {inner_group}.{hint} Choose from: {names}"
            )
        yield from _with_nested(f"{key}.{place}", inner_group, inner, picked)


def _nested(chosen: Mapping[str, Any], picked: Mapping[str, str]) -> dict[str, str]:
    """{key of a part within a part: its group}: such a key takes an option's name."""
    return {key: group for key, group, _ in _parts(chosen, picked) if key.count(".") > (group == "auxiliary")}


def _known(chosen: Mapping[str, Any], picked: Mapping[str, str]) -> dict[str, Option]:
    """Every key that may be set, with its type."""
    known = dict(_settings())
    for key, group, option in _parts(chosen, picked):
        raw = raw_node(group, option)
        if "_target_" in raw:
            known |= {f"{key}.{name}": value for name, value in part_options(raw).items()}
    return known


def _settings() -> dict[str, Option]:
    return signature("moecli.config.Settings")


def part_options(raw: Mapping[str, Any]) -> dict[str, Option]:
    """What a user may set of a part: its constructor's arguments, or the YAML's keys for torch's optimizers.

    A part whose YAML takes in ``_columns`` has ``columns`` too, which ``build`` reads in its place.
    Raises ArtifactError for a ``_target_`` that no part may have, before anything of it is imported.
    """
    target = raw["_target_"]
    allowed(target)
    if target.startswith("torch."):
        return {name: Option(_type_of(value), value) for name, value in _listed(target).items()}
    own = {n: o for n, o in signature(target).items() if n not in CONTEXT or n in raw}
    return {"columns": Option(types.Columns | str | None, None), **own} if "columns" in raw else own


def _listed(target: str) -> Config:
    """The options that the YAML file of a torch optimizer lists, with their defaults."""
    for option in registry()["optimizer"]:
        raw = raw_node("optimizer", option)
        if raw["_target_"] == target:
            return {name: value for name, value in raw.items() if name not in ("_target_", "recommends", "defaults")}
    raise ArtifactError(f"_target_ {target}: no optimizer is made of it. Choose from: moe ls optimizer")


def _type_of(value: Any) -> Any:
    """Of a torch optimizer's option: all their numbers are at least 0."""
    if isinstance(value, list):
        return list[types.NonNegativeFloat]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return types.NonNegativeFloat if number else type(value)


def _check_word(word: Word, known: Mapping[str, Option], nested: Mapping[str, str], chosen: Mapping[str, Any]) -> None:
    """Refuse a key that is not there and a value that is none of its type, before Hydra sees either."""
    key = word.key
    if key in nested or key in registry():
        return
    if _free(key):
        _typed(word, Any)
        return
    group, _, option = key.partition(".")
    where = f"{group}={chosen[group]}" if option and isinstance(chosen.get(group), str) else "command line"
    if key in known:
        _value(key, _typed(word, known[key].type), known[key], where)
        return
    names = [*known, *nested]
    own = [name for name in names if name.startswith(f"{group}.")] if option else []
    hint = _owners(key) or nearest(key, own) or nearest(key, [*names, *registry()]) or " See: moe ls"
    raise UsageError(f"{shown(key)} ({where}): no such key.{hint}")


def _free(key: str) -> bool:
    return key.startswith(tuple(f"{free}." for free in FREE))


def _owners(key: str) -> str:
    """`` It belongs to ...`` where other options of the key's group have it, else nothing."""
    group = key.partition(".")[0]
    owners = [option for option in registry().get(group, ()) if key in _known({group: [option]}, {})]
    return f" It belongs to {group}={', '.join(owners)}" if owners else ""


def _line(word: Word, nested: Mapping[str, str], known: Mapping[str, Option]) -> str:
    """The word as Hydra's grammar wants it: text quoted, so that any path is ordinary input."""
    if word.key in nested:
        return f"{nested[word.key]}@{word.key}={word.value}"
    if word.key in registry():
        return f"{word.key}={word.value}"
    kind = known[word.key].type if word.key in known else Any
    return f"++{word.key}={_quoted(word.value, kind) if _takes(kind, str) else word.value}"


def _takes(kind: Any, wanted: type) -> bool:
    """Whether a value of this type is one that the option may have."""
    return any(wanted in (k, getattr(k, "__origin__", None)) for k in (kind, *getattr(kind, "__args__", ())))


def _quoted(value: str, kind: Any) -> str:
    """Text as it is, unless it says null or a list where the option takes one, or came in quotes."""
    if value == "null" and _takes(kind, type(None)):
        return value
    if value[:1] == "[" and value[-1:] == "]" and _takes(kind, list):
        plain = not re.search(r"""['"\[\]]""", value[1:-1])
        items = [item.strip() for item in value[1:-1].split(",") if item.strip()]
        return f"[{','.join(_escaped(item) for item in items)}]" if plain else value
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0] and value[0] not in value[1:-1]:
        return value
    return _escaped(value)


def _escaped(value: str) -> str:
    value = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", value)
    value = re.sub(r"(\\+)$", lambda m: m[1] * 2, value)
    return f"'{value}'"


def text(value: Any) -> str:
    """A value in the form a user would type."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def shown(value: Any) -> str:
    """The same for a message: cut where it is long."""
    typed = text(value)
    return typed if len(typed) <= 80 else f"{typed[:80]}…"


def _hydra(lines: list[str], words: str) -> Config:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = ",".join(f"'file://{root}'" for root in plugin_roots())
    try:
        with initialize_config_dir(str(conf_root()), version_base="1.3"):
            composed = hydra_compose("config", [*([f"hydra.searchpath=[{search}]"] if search else []), *lines])
            config: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError, RecursionError) as error:
        said = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if said.startswith("Ambiguous value"):
            raise UsageError(
                f"{shown(words)} (command line): a run has one value of each key. Write a list in [brackets]"
            ) from error
        raise UsageError(
            f"{shown(words)} (command line): {shown(said)}. Check the spelling and quoting of these words"
        ) from error
    return {str(group): _without_advice(node) for group, node in config.items() if group != "scales"}


def _without_advice(node: Any) -> Any:
    return {k: _without_advice(v) for k, v in node.items() if k != "recommends"} if isinstance(node, dict) else node


# -- check ------------------------------------------------------------------------------------


def check(config: Config) -> Config:
    """The same configuration with every value in its declared type.

    Raises UsageError for an unknown key, a wrong type and a missing value, ArtifactError for a
    ``_target_`` that no part may have.
    """
    settings = _settings()
    groups = {g: v for g, v in config.items() if g not in settings and g != "choices"}
    for name in groups:
        if name not in registry():
            hint = nearest(name, [*settings, *registry()]) or " See: moe ls"
            raise UsageError(f"{name} (configuration): no such key.{hint}")
    checked = {name: _value(name, config[name], option, "configuration") for name, option in settings.items()}
    return {**{g: _check_node(g, node) for g, node in groups.items()}, **checked, "choices": config.get("choices", {})}


def _check_node(key: str, node: Any) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        return {k: _check_node(f"{key}.{k}", v) for k, v in node.items()} if isinstance(node, dict) else node
    allowed(node["_target_"])
    options = part_options(node)
    checked = {"_target_": node["_target_"]}
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in options:
            raise UsageError(
                f"{key}.{name} (configuration): no such key.{nearest(name, options, f'{key}.') or ' See: moe show'}"
            )
        nested = _holds_part(value)
        at = f"{key}.{name}"
        checked[name] = _check_node(at, value) if nested else _value(at, value, options[name], node["_target_"])
    return checked


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _holds_part(value: Any) -> bool:
    return _is_part(value) or (isinstance(value, dict) and any(map(_holds_part, value.values())))


def _lacking(key: str) -> UsageError:
    return UsageError(f"{key}: a value is needed. Add {key}=...")


def _value(key: str, value: Any, option: Option, where: str) -> Any:
    if value == OPEN:
        raise _lacking(key)
    try:
        if isinstance(value, bool) and option.type is not bool and bool not in getattr(option.type, "__args__", ()):
            _adapter(option.type).validate_python(str(value))
        return _adapter(option.type).validate_python(value)
    except ValidationError as error:
        said = _said(error.errors()[-1])
        default = "" if option.default is REQUIRED else f" (default {option.default})"
        raise UsageError(
            f"{key}={shown(value)} ({where.rsplit('.', 1)[-1]}): {said}. Give another value{default}"
        ) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Making one takes ten times what it then takes to check a value."""
    return TypeAdapter(kind)


def _said(error: Any) -> str:
    """What is wrong with a value, in a user's words."""
    kind, context = error["type"], error.get("ctx", {})
    for start, words in (
        ("int", "it must be a whole number"),
        ("float", "it must be a number"),
        ("bool", "it must be true or false"),
    ):
        if kind.startswith(start):
            return words
    if kind == "literal_error":
        return f"choose from {context['expected']}"
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "more than"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        return f"it must be {words} {context[key]}"
    return str(error["msg"])


PART_PACKAGES = tuple(
    f"moecli.{package}."
    for package in ("tasks", "models", "gates", "routers", "experts", "families", "heads", "losses", "training")
)


def allowed(target: str) -> None:
    """Raise ArtifactError unless ``target`` is a part of ours, of a plugin named now, or an optimizer of torch."""
    if isinstance(target, str) and target.startswith((*PART_PACKAGES, "torch.optim.")):
        return
    top = str(target).split(".")[0]
    installed = {point.value.split(".")[0] for point in entry_points(group="moecli.plugins")}
    if top in installed or any((home / f"{top}.py").is_file() or (home / top).is_dir() for home in _plugins):
        return
    raise ArtifactError(
        f"_target_ {target}: not a part of moecli or of a plugin. If it is a plugin's, install it or name it with --plugin"
    )


# -- build ------------------------------------------------------------------------------------


def build(node: Mapping[str, Any], **context: Any) -> Any:
    """The part that ``node`` describes; ``context`` fills the constructor arguments that it asks for.

    A part within the part arrives as a factory of its number of experts, so that no two share weights;
    only a model's ``layers`` stay as they are, for it to build each layer from its own copy.  A part with
    ``columns`` is built for so many features, and then reads those.
    Raises UsageError where the constructor refuses its options.
    """
    cls = part_class(node)
    wanted = context if node["_target_"].startswith("torch.") else signature(node["_target_"])
    if "columns" in node and "columns" not in wanted and hasattr(cls, "reading"):
        return _over_columns(node, context)
    given = {k: v if k == "layers" else _factories(v, context) for k, v in node.items() if k != "_target_"}
    filled = {key: value for key, value in context.items() if key in wanted and key not in given}
    try:
        return cls(**filled, **given)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{cls.__name__}: {error}. Check its options with: moe show") from error


def part_class(node: Mapping[str, Any]) -> Any:
    """The class behind ``_target_``, imported once it is known to be allowed.  Raises ArtifactError."""
    allowed(node["_target_"])
    module, _, name = node["_target_"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ArtifactError(f"_target_ {node['_target_']}: {error}. Check the part's YAML file") from error
    if not inspect.isclass(cls) or not (cls.__module__ == module or module.startswith("torch.optim")):
        raise ArtifactError(f"_target_ {node['_target_']}: no such class in {module}. Check the part's YAML file")
    return cls


def build_with(node: Mapping[str, Any], context: Mapping[str, Any], num_experts: int = 0) -> Any:
    return build(node, **{**context, "num_experts": num_experts})


def _over_columns(node: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """The part over the features that its ``columns`` names: built for so many, then told which they are."""
    rest = {key: value for key, value in node.items() if key != "columns"}
    if node["columns"] is None:
        return build(rest, **context)
    index, names = _indices(node, context), context.get("feature_names", [])
    chosen = {"dim": len(index), "feature_names": [names[i] for i in index] if names else []}
    return build(rest, **{**context, **chosen}).reading(index)


def _indices(node: Mapping[str, Any], context: Mapping[str, Any]) -> list[int]:
    """Features by index or by name -> their indices.  Raises UsageError for one that is not there."""
    columns, names, dim = node["columns"], list(context.get("feature_names", [])), context["dim"]
    asked = [columns] if isinstance(columns, str) else columns or ["none"]
    index = [names.index(c) if c in names else int(c) if str(c).isdecimal() else -1 for c in asked]
    for column, found in zip(asked, index, strict=True):
        if not 0 <= found < dim:
            group = next((g for g in ("gate", "expert") if node["_target_"] in _targets(g)), "part")
            known = f", or by name: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else ""
            raise UsageError(
                f"{group}.columns={text(columns)}: no feature {column}.{nearest(str(column), names)} "
                f"Choose from 0 to {dim - 1}{known}"
            )
    return index


def _targets(group: str) -> set[str]:
    return {raw_node(group, option).get("_target_", "") for option in registry()[group]}


def _factories(value: Any, context: Mapping[str, Any]) -> Any:
    if _is_part(value):
        return partial(build_with, value, context)
    if isinstance(value, dict):
        return {key: _factories(item, context) for key, item in value.items()}
    return value


# -- read again, change, flatten --------------------------------------------------------------


def read(file: Path) -> Config:
    """A composed configuration that a run stored, checked like any other.

    Raises ArtifactError where the file is missing, no configuration, or has a value that is none.
    """
    import yaml

    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no regular file")
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        config = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ArtifactError(f"{file}: cannot be read as a configuration ({said}). {GIVE}") from error
    if not isinstance(config, dict) or not _whole(config):
        raise ArtifactError(f"{file}: no configuration that moe train wrote. {GIVE}")
    try:
        return check(config)
    except UsageError as error:
        raise ArtifactError(f"{file}: {error}") from error


MOST_BYTES = 200_000  # of a stored configuration; ours have about 3,000
MOST_DEPTH = 50  # of its mappings and lists; ours have up to 7
GIVE = "Give the config.yaml of a run folder"
OPTIONAL = ("gate", "family", "head")  # what no part of a combination may ask for


def _whole(config: Config) -> bool:
    """Whether every group has a part where it needs one, and a name for it."""
    choices = config.get("choices")
    if not isinstance(choices, dict) or not all(isinstance(key, str) for key in config):
        return False
    terms = config.get("auxiliary")
    groups = [group for group, option in _defaults().items() if isinstance(option, str) and group not in OPTIONAL]
    parts = [config.get(group) for group in groups]
    optional = [part for part in map(config.get, OPTIONAL) if part is not None]
    return (
        isinstance(terms, dict)
        and all(name in config for name in _settings())
        and all(_is_part(part) and isinstance(part["_target_"], str) for part in [*parts, *optional, *terms.values()])
    )


def to_yaml(config: Config) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        """Writes what two keys share twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_str(self, data: str) -> Any:
            """In double quotes where Unicode ends a line: yaml would read that back as a space."""
            style = '"' if set(data) & set("\x85\u2028\u2029") else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    Plain.add_representer(str, Plain.represent_str)
    return yaml.dump(config, Dumper=Plain, sort_keys=False, allow_unicode=True)


def amend(config: Config, words: Sequence[str]) -> Config:
    """A stored configuration with ``key=value`` words laid over it.

    A group's name replaces the whole part.  Raises UsageError for a key that it does not have.
    """
    config = check(config)
    parsed = [Word.parse(word) for word in words]
    fresh = [word.key for word in parsed if word.key in registry()]
    for group in fresh:
        composed = compose([f"{w.key}={w.value}" for w in parsed if w.key.split(".")[0] == group]).config
        config = {**config, group: composed[group], "choices": {**config["choices"], group: composed["choices"][group]}}
    for word in parsed:
        if word.key.split(".")[0] not in fresh:
            _set(config, word)
    return check(config)


def _set(config: Config, word: Word) -> None:
    *path, last = word.key.split(".")
    node: Any = config
    options: Mapping[str, Option] = _settings()
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
        options = part_options(node) if _is_part(node) else {}
    if not isinstance(node, dict) or last not in node:
        raise UsageError(f"{word.key} (command line): no such key.{nearest(word.key, dict(flatten(config)))}")
    if _holds_part(node[last]):
        raise UsageError(f"{word.key} (command line): a part within a part. Choose the whole: {path[0]}=...")
    kind = options[last].type if last in options else Any
    node[last] = _typed(word, kind)


def _typed(word: Word, kind: Any) -> Any:
    """The value as Hydra's grammar reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    value = _quoted(word.value, kind) if _takes(kind, str) else word.value
    try:
        override = OverridesParser.create().parse_override(f"{word.key}={value}")
        if override.is_sweep_override():
            raise UsageError(
                f"{word.key}={shown(word.value)} (command line): a run has one value of each key. Write a list in [brackets]"
            )
        return override.value()
    except HydraException as error:
        why = "cannot be read as a value. Check its quotes and brackets"
        raise UsageError(f"{word.key}={shown(word.value)} (command line): {why}") from error


def flatten(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """{"a": {"b": 1}} -> ("a.b", 1); lists stay whole."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat(config: Config) -> Config:
    """What run.json holds: {group: option} and {dotted key: value}, without module paths."""
    named = {g: "+".join(o) if isinstance(o, list) else o for g, o in config["choices"].items()}
    leaves = flatten({key: value for key, value in config.items() if key != "choices"})
    return {**named, **{k: v for k, v in leaves if not k.endswith("_target_") and k not in named}}
