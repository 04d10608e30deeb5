"""Ctrl-C, SIGTERM and SIGHUP as a wish: the loop sees it after the step, saves, leaves; a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Which signal asked to stop, if any."""

    signal: int | None = None

    def ask(self, number: int, frame: object) -> None:
        """The handler only notes the wish; whoever asks twice does not want to wait."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


@contextmanager
def listening() -> Iterator[Stop]:
    """Note signals instead of dying of them; the handlers from before come back.  Only the main thread can."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, stop.ask) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
