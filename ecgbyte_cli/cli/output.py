"""What every command shares on the command line: options, results, progress, tables and errors.

Results go to standard output; progress, notes and errors go to standard error.
"""

import errno
import sys
import time
from contextlib import contextmanager, suppress

import click

from ecgbyte_cli.failure import Failure, printable


@contextmanager
def reporting_closed_stdout():
    """Say it in one line if standard output cannot be written; a closed one is Click's business."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise Failure(f"standard output cannot be written: {error.strerror}") from error


def wants_json():
    """True if standard output belongs to the JSON object."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().meta.get("json"))


def print_result(text=""):
    """Print a result to standard output (nothing under --json)."""
    if not wants_json():
        with reporting_closed_stdout():
            click.echo(printable(text, "\n\t"))


def note(text):
    """Print a remark to standard error: a line."""
    with suppress(OSError):  # the work goes on where nobody can be told
        click.echo(printable(text), err=True)


def table(rows, header, title=None):
    """Print a table to standard output (nothing under --json): rows of strings under a header."""
    if wants_json():
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def shown(cell):
        return Text(printable(str(cell)))  # as it is: brackets in a name are no markup

    grid = Table(
        title=title and shown(title), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for i, name in enumerate(header):
        grid.add_column(shown(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(shown, row))
    with reporting_closed_stdout():
        Console(highlight=False).print(grid)


class _Progress:
    """A count that reports itself: a bar in a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, what, total, unit):
        self.what, self.total, self.unit, self.done, self.extra = what, total, unit, 0, ""
        self.start = self.reported = time.perf_counter()
        self.bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit + " {task.fields[extra]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task(what, total=total, extra="")

    def update(self, done, extra=""):
        """Say that `done` of the total are done; `extra` is shown behind the count."""
        self.done, self.extra = done, printable(extra)
        if self.bar:
            self.bar.update(self.task, completed=done, extra=self.extra)
            return
        now = time.perf_counter()
        if now - self.reported >= 10:
            self.reported = now
            left = (now - self.start) / max(done, 1) * ((self.total or done) - done)
            of = f"/{self.total}" if self.total else ""
            note(f"{self.what}: {done}{of} {self.unit} {extra} {left:.0f} s left")

    def advance(self, n=1, extra=""):
        """Say that `n` more are done."""
        self.update(self.done + n, extra or self.extra)


@contextmanager
def progress(what, total=None, unit=""):
    """Show the progress of the work inside the `with` block on standard error.

    Parameters
    ----------
    what : str
        The work, in a word or two.
    total : int or None
        How many units there are.
    unit : str
        What is counted.

    Yields
    ------
    _Progress
        With `update(done, extra)` and `advance(n, extra)`.
    """
    shown = _Progress(what, total, unit)
    if shown.bar is None:
        yield shown
        return
    with shown.bar:
        yield shown
