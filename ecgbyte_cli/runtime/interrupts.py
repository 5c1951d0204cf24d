"""Ctrl-C and SIGTERM before the work starts, such as during imports: end the process with one line.

This module is imported first, and imports almost nothing itself.
"""

import os
import signal
from types import FrameType

STOPPED = "stopped; finished work is kept, and the same command resumes from there"
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class EndingAtOnce:
    """Let the signals end the process immediately, during the block or until `raise_them`.

    As an exception, a signal would show a traceback from inside an import, or be lost in a callback.
    """

    def __enter__(self) -> None:
        self.before = {n: signal.getsignal(n) for n in NUMBERS}
        for number, handler in self.before.items():
            if handler in (signal.default_int_handler, signal.SIG_DFL):
                _handle(number, _end)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            if signal.getsignal(number) is _end:
                _handle(number, handler)


def raise_them() -> None:
    """Raise the signals as KeyboardInterrupt from here on, so that the stage can clean up."""
    for number in NUMBERS:
        if signal.getsignal(number) is _end:
            _handle(number, signal.default_int_handler)


def _handle(number: int, handler: object) -> None:
    try:
        signal.signal(number, handler)  # type: ignore[arg-type]  # the value that getsignal returned
    except ValueError:  # only the main thread is interrupted
        pass


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"ecgbyte: {STOPPED}\n".encode())
    finally:
        os._exit(1)
