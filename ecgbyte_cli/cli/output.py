"""Print results, tables, progress and notes.

Results go to standard output; progress, notes and errors go to standard error.
"""

import errno
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click

from ecgbyte_cli.failure import Failure, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.text import Text


@contextmanager
def reporting_closed_stdout() -> Iterator[None]:
    """Raise a Failure if standard output cannot be written. Click handles a closed pipe."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise Failure(f"standard output cannot be written: {error.strerror}") from error


def wants_json() -> bool:
    """Return whether standard output is reserved for the JSON object."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().meta.get("json"))


def print_result(text: str = "") -> None:
    """Print a result to standard output (nothing under --json)."""
    if not wants_json():
        with reporting_closed_stdout():
            click.echo(printable(text, "\n\t"))


def note(text: str) -> None:
    """Print a line to standard error; on a terminal long lines are wrapped."""
    text = printable(text)
    with suppress(OSError):  # continue even if standard error cannot be written
        if sys.stderr.isatty() and len(text) > (width := shutil.get_terminal_size().columns):
            text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        click.echo(text, err=True)


def table(rows: Sequence[Sequence[object]], header: Sequence[str], title: str | None = None) -> None:
    """Print a table to standard output (nothing under --json)."""
    if wants_json():
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def literal(cell: object) -> "Text":
        return Text(printable(str(cell)))  # brackets in a name are not markup

    grid = Table(
        title=literal(title) if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for i, name in enumerate(header):
        grid.add_column(literal(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(literal, row))
    with reporting_closed_stdout():
        Console(highlight=False).print(grid)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 recording", "2 recordings"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_written(result: dict[str, Any], done: str) -> None:
    """Print the number of recordings and the time taken; `done` is a verb such as "measured"."""
    count, out = counted(result["records"], "recording"), result["out"]
    if result.pop("done_before", False):
        print_result(f"{count} {done} in an earlier run: {out}")
        return
    rate = result["records"] / max(result["seconds"], 1e-9)
    print_result(f"{count} {done} in {result['seconds']:.1f} s ({rate:.0f}/s): {out}")


def print_skipped(result: dict[str, Any]) -> None:
    """Print why recordings were skipped, the most frequent reason first."""
    if result["skipped"]:
        reasons = sorted(result["skipped_reasons"].items(), key=lambda item: -item[1])
        table(reasons, ("reason for skipping", "recordings"))


class _Progress:
    """A count of finished work: a progress bar in a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, work: str, total: int | None, unit: str):
        self.work, self.total, self.unit, self.done, self.extra = work, total, unit, 0, ""
        self.start = self.reported = time.perf_counter()
        self.bar: Bar | None = None
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
            self.task = self.bar.add_task(work, total=total, extra="")

    def update(self, done: int, extra: str = "") -> None:
        """Set the count; `extra` is text shown after it."""
        self.done, self.extra = done, printable(extra)
        if self.bar:
            self.bar.update(self.task, completed=done, extra=self.extra)
            return
        now = time.perf_counter()
        if now - self.reported >= 10:
            self.reported = now
            left = (now - self.start) / max(done, 1) * ((self.total or done) - done)
            of = f"/{self.total}" if self.total else ""
            note(f"{self.work}: {done}{of} {self.unit} {extra} {left:.0f} s left")

    def advance(self, n: int = 1, extra: str = "") -> None:
        """Add `n` to the count."""
        self.update(self.done + n, extra or self.extra)


@contextmanager
def progress(work: str, total: int | None = None, unit: str = "") -> Iterator[_Progress]:
    """Show the progress of the `with` block on standard error.

    Parameters
    ----------
    work : str
        Name of the work, one or two words.
    total : int or None
        Number of units.
    unit : str
        Name of the units.

    Yields
    ------
    _Progress
        Has the methods `update(done, extra)` and `advance(n, extra)`.
    """
    count = _Progress(work, total, unit)
    with count.bar or nullcontext():
        yield count
