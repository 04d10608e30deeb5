"""The command `moe`: verbs, and what an error looks like.

An error is one line on standard error, ``moe: error: what (where): why. what to do``, and an exit
code; ``MOE_DEBUG=1`` prints the traceback too.
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
from typing import NoReturn

import typer

from moecli.cli import compare, eval, ls, plot, predict, show, train
from moecli.errors import EnvironmentFailure, Interrupted, MoeError

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
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("plot", epilog=plot.EPILOG)(plot.plot)
app.command("ls", epilog=ls.EPILOG)(ls.ls)
app.command("show", epilog=show.EPILOG)(show.show)


@app.callback(invoke_without_command=True)
def version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from moecli import __version__

        print(f"moecli {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)  # a training notes it instead, and saves first
    codecs.register_error("moe", _as_json)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="moe")
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has closed: quietly leave
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (KeyboardInterrupt, Exception) as error:
        code = _explain(error)
    sys.exit(code)


def _terminate(number: int, frame: object) -> None:
    raise Interrupted("stopped by SIGTERM", 128 + number)


def _as_json(error: UnicodeError) -> tuple[str, int]:
    """What a terminal of another encoding cannot show is written as in JSON, so that JSON stays valid."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _explain(error: BaseException) -> int:
    if os.environ.get("MOE_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OSError):
        error = _environment(error)
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
    where = error.filename or "the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EnvironmentFailure(f"{where}: the disk is full. Make room, or choose another place with --runs")
    return EnvironmentFailure(f"{where}: {error.strerror}. Check the path and its permissions")


def _say(text: str, code: int) -> int:
    from moecli.report.terminal import visible

    print(f"moe: error: {visible(' '.join(text.split()))}", file=sys.stderr)
    return code
