"""Ctrl-C and SIGTERM before any work has begun, such as while modules are imported: one line, and the end.

This is imported first of all, and imports next to nothing itself.
"""

import os
import signal

STOPPED = "stopped; what was finished is kept, and the same command goes on from there"
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class EndingAtOnce:
    """While the block runs, or until `raise_them`, the signals end the process: there is nothing to tidy up.

    Raised as an exception they would show from wherever an import is, or be lost in a callback of it.
    """

    def __enter__(self):
        self.before = {n: signal.getsignal(n) for n in NUMBERS}
        for number, handler in self.before.items():
            if handler in (signal.default_int_handler, signal.SIG_DFL):
                _handle(number, _end)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            if signal.getsignal(number) is _end:
                _handle(number, handler)


def raise_them():
    """From here on the signals are raised as KeyboardInterrupt, so that what was begun is tidied up."""
    for number in NUMBERS:
        if signal.getsignal(number) is _end:
            _handle(number, signal.default_int_handler)


def _handle(number, handler):
    try:
        signal.signal(number, handler)
    except ValueError:  # only the main thread may, and only it is interrupted
        pass


def _end(number, frame):
    try:
        os.write(2, f"ecgbyte: {STOPPED}\n".encode())
    finally:
        os._exit(1)
