"""What TAB offers: groups, their options, keys of the chosen parts, values that are words, and runs.

Everything is read from the YAML files and the parts' sources: nothing heavy is imported, and
whatever goes wrong, the answer is no suggestion, never a traceback in the user's prompt.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

Suggestions = Iterable[tuple[str, str]]  # (word, what it is)

# Both scripts ask as fish does: the line up to the cursor in, one "word<TAB>what it is" a line out.  Typer's own for
# bash hands over words that bash has already broken at '='; its own for zsh answers only from the second TAB on, and
# puts a space behind "router.k=".
BASH = r"""
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    word="${line##*[[:space:]]}"
    mapfile -t COMPREPLY < <(env _TYPER_COMPLETE_ARGS="$line" _TYPER_COMPLETE_FISH_ACTION=get-args \
        %(autocomplete_var)s=complete_fish "$1" 2>/dev/null | cut -f 1)
    [[ -n "${COMPREPLY[0]}" ]] || COMPREPLY=()
    [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%%%=*}="}")
    return 0
}

complete -o default -F %(complete_func)s %(prog_name)s
"""
ZSH = r"""
#compdef %(prog_name)s

%(complete_func)s() {
    local -a whole begun
    local word note
    while IFS=$'\t' read -r word note; do
        case "$word" in
            *[=.]) begun+=("${word//:/\\:}:$note") ;;
            ?*) whole+=("${word//:/\\:}:$note") ;;
        esac
    done < <(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _TYPER_COMPLETE_FISH_ACTION=get-args \
        %(autocomplete_var)s=complete_fish %(prog_name)s 2>/dev/null)
    if (( $#whole + $#begun )); then
        _describe 'word' whole -- begun -S ''
    else
        compset -P '*='
        _files
    fi
}

if [[ "$funcstack[1]" == "_%(prog_name)s" ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


def prepare() -> None:
    """Give typer the scripts above.  Where its tables have moved its own stay, which know less."""
    if "_MOE_COMPLETE" in os.environ:
        os.environ["COLUMNS"] = "10000"  # typer folds notes at this width, and a shell reads the rest as a word
    try:
        from typer import _completion_classes, _completion_shared

        _completion_shared._completion_scripts.update(bash=BASH, zsh=ZSH)
        _completion_classes.BashComplete.source_template = BASH
        _completion_classes.ZshComplete.source_template = ZSH
    except (ImportError, AttributeError):
        pass


def quiet(complete: Callable[[typer.Context, str], Suggestions]) -> Callable[[typer.Context, str], list]:
    """Only what begins like the incomplete word; nothing at all where something fails."""

    @functools.wraps(complete)
    def completion(ctx: typer.Context, incomplete: str):
        try:
            _use_plugins(ctx)
            found = complete(ctx, incomplete)
            return [(word, note.replace("[", r"\[")) for word, note in found if word.startswith(incomplete)]
        except Exception:  # a half-typed line may be wrong in any way
            return []

    return completion


def _use_plugins(ctx: typer.Context) -> None:
    from moecli.config import use_plugins

    if ctx.params.get("plugin"):
        use_plugins(map(Path, ctx.params["plugin"]))


@quiet
def words(ctx: typer.Context, incomplete: str) -> Suggestions:
    """``KEY=VALUE`` of train and eval."""
    return _word(ctx.params.get("words") or [], incomplete)


@quiet
def what(ctx: typer.Context, incomplete: str) -> Suggestions:
    """What `moe show` explains: GROUP=OPTION or a run; of a task, keys behind it."""
    from moecli.config import describe, registry

    typed = ctx.params.get("what") or []
    if typed:
        return [found for found in _word(typed, incomplete) if found[0].startswith("task.")]
    named = [(f"{g}={o}", describe(g, o)) for g in registry() for o in registry()[g] if incomplete.startswith(f"{g}=")]
    return [*(named or [(f"{group}=", "") for group in registry()]), *_runs()]


@quiet
def groups(ctx: typer.Context, incomplete: str) -> Suggestions:
    """What `moe ls` lists."""
    from moecli.config import registry

    return [*((name, ", ".join(options)) for name, options in registry().items()), ("runs", "trainings so far")]


@quiet
def runs(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Run folders, the latest first."""
    return _runs(ctx.params.get("runs"))


def _runs(root: Path | None = None) -> list[tuple[str, str]]:
    from moecli.record.folder import find_runs, runs_root

    return [(str(run), "") for run in reversed(find_runs([runs_root(root)]))]


def _word(typed: list[str], incomplete: str) -> Suggestions:
    from moecli.config import settable
    from moecli.errors import MoeError

    try:
        keys = settable(typed)
    except MoeError:  # a word before this one is wrong; the command will say so
        keys = settable([])
    key, equals, value = incomplete.partition("=")
    if not equals:
        return _keys(keys, key)
    return ((f"{key}={word}", note) for word, note in _values(keys[key][0], value))


def _keys(keys: Mapping[str, tuple[Any, str]], begun: str) -> Iterator[tuple[str, str]]:
    """Groups and settings first, and ``group.``; a part's own keys once its group is written."""
    for key, (kind, note) in keys.items():
        group, dot, _ = key.partition(".")
        if not dot or begun.startswith(f"{group}."):
            yield f"{key}=", note or (f"which {kind}" if isinstance(kind, str) else "")
    if "." not in begun:
        yield from ((f"{group}.", "its options") for group in dict.fromkeys(k.split(".")[0] for k in keys if "." in k))


def _values(kind: Any, value: str) -> Iterator[tuple[str, str]]:
    """The options of a group, in ``[a,b`` for its last item; or the words that an option's type is made of."""
    from moecli.config import describe, registry

    if isinstance(kind, str):
        start = value[: max(value.rfind(","), 0) + 1] if value.startswith("[") else ""
        yield from ((start + option, describe(kind, option)) for option in registry()[kind])
    else:
        yield from ((word, "") for word in literals(kind.type))


def literals(kind: Any) -> list[str]:
    """The words that a type is made of: of Literal, true and false, null beside them."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    inner = [literals(part) for part in getattr(kind, "__args__", ()) if part is not type(None)]
    words = [word for found in inner for word in found]
    return [*words, "null"] if words and type(None) in kind.__args__ else words
