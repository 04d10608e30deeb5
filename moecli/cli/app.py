"""The command `moe`: verbs, and what an error looks like.

An error is one line on standard error, ``moe: error: what (where): why. what to do``, and an exit
code; ``MOE_DEBUG=1`` prints the traceback too.  Whoever closes our output is left quietly, with 141.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import typer

from moecli.cli import (
    bench,
    compare,
    completion,
    criteria,
    doctor,
    eval,
    explain,
    ls,
    new,
    plot,
    predict,
    replicate,
    report,
    show,
    size,
    sweep,
    train,
    upcycle,
)
from moecli.errors import EnvironmentFailure, Interrupted, MoeError

STDOUT = "standard output"

app = typer.Typer(
    name="moe",
    help="Train, evaluate and compare mixture-of-experts models, and see what every expert does.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Begin with:  moe train   then   moe ls router",
)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("eval", epilog=eval.EPILOG)(eval.evaluate)
app.command("predict", epilog=predict.EPILOG)(predict.predict)
app.command("sweep", epilog=sweep.EPILOG)(sweep.sweep)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("criteria", epilog=criteria.EPILOG)(criteria.criteria)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
app.command("plot", epilog=plot.EPILOG)(plot.plot)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("replicate", epilog=replicate.EPILOG)(replicate.replicate)
app.command("ls", epilog=ls.EPILOG)(ls.ls)
app.command("size", epilog=size.EPILOG)(size.size)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.command("upcycle", epilog=upcycle.EPILOG)(upcycle.upcycle)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("new", epilog=new.EPILOG)(new.new)
completion.prepare()


@app.callback(invoke_without_command=True)
def version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from moecli import __version__

        print(f"moecli {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _terminate)  # a training notes it instead, and saves first
    codecs.register_error("moe", _as_json)
    _open_streams()
    try:
        code = app(standalone_mode=False) or 0
    except BaseException as error:
        code = _explain(error)
    sys.exit(_flushed(code))


def _open_streams() -> None:
    """Both streams take every text; one that was closed goes nowhere, and its number to no other file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="moe")


def _flushed(code: int) -> int:
    """The exit code, once what was printed is out, or has failed to go out."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the interpreter's own flush may go
        error.filename = STDOUT
        return code or _explain(error)


def _terminate(number: int, frame: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}. What was saved is in the run folder", 128 + number)


def _as_json(error: UnicodeError) -> tuple[str, int]:
    """What a terminal of another encoding cannot show is written as in JSON, so that JSON stays valid."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _explain(error: BaseException) -> int:
    if os.environ.get("MOE_DEBUG"):
        traceback.print_exc()
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):  # a SystemExit of typer
        return 141
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, OSError):
        error = _environment(error)
    if _is_out_of_memory(error):
        error = EnvironmentFailure(
            f"out of memory: {error}. Lower trainer.batch_size (of moe bench: --tokens), num_experts or the model's sizes"
        )
    if isinstance(error, MoeError):
        return _say(str(error), error.code)
    if hasattr(error, "format_message"):  # click's usage errors, wherever typer keeps them
        said = error.format_message()
        stop = "" if said.endswith(("?", ".")) else "."
        return _say(f"{said}{stop} See: moe --help", getattr(error, "exit_code", 2))
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":  # what typer makes of it
        return _say("interrupted. What was saved is in the run folder", 130)
    if type(error).__name__ == "Exit":
        return getattr(error, "exit_code", 0)
    return _say(f"internal: {type(error).__name__}: {error}. This is a bug in moecli; MOE_DEBUG=1 shows where", 1)


def _environment(error: OSError) -> MoeError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    where = error.filename or (STDOUT if full else "a file")  # what moe writes to a file carries the file's name
    if full:
        return EnvironmentFailure(
            f"{where}: the disk is full{_left(where)}. Make room, or choose another place with --runs"
        )
    if error.errno == errno.EIO:
        return EnvironmentFailure(f"{where}: the disk failed ({error.strerror}). Check it, and use another one")
    return EnvironmentFailure(f"{where}: {error.strerror or error}. Check the path and its permissions")


def _left(where: Path | str) -> str:
    """What the file system of a path still takes; files run out too."""
    with suppress(OSError):
        if where == STDOUT:
            return ""
        found = os.statvfs(next(place for place in Path(where).absolute().parents if place.is_dir()))
        return f" ({found.f_bavail * found.f_frsize / 1e6:.1f} MB and {found.f_favail} files are free)"
    return ""


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch's own, by name and message: torch is not imported for this."""
    said = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _say(text: str, code: int) -> int:
    from moecli.report.terminal import visible

    with suppress(OSError):  # nobody can be told that standard error takes no more
        print(f"moe: error: {visible(' '.join(text.split()))}", file=sys.stderr, flush=True)
    return code
