"""Chat in a terminal: the panel, a lead in dots, and the line editor."""

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import printable
from ecgbyte_cli.inference.conversation import ECG, origin, remembers_earlier_turns
from ecgbyte_cli.render.measured_facts import measured_facts
from ecgbyte_cli.storage.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "/help": "show this list",
    "/ecg PATH": "open another recording too; without PATH: list the open ones",
    "/segment N": "read another segment of the last recording, and start over",
    "/lead NAME": "draw a lead here",
    "/tokens FILE.png": "draw the tokens, on lead II or the model's first lead",
    "/attention FILE.png": "draw the attribution of the last answer (see ecgbyte explain)",
    "/witness": "show the model's answers to the last question without the ECG",
    "/save FILE.md": "save the conversation, with a picture of each ECG",
    "/clear": "start over, with the last recording only",
    "/quit": "leave (also Ctrl-D, or Ctrl-C twice)",
}
MOST_NOTES = 8  # header lines in the panel


def stderr_console() -> "Console":
    """Return a console on standard error, as wide as the terminal is now."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show a status line while a block runs, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    # write to the stream itself, because standard error is redirected while libraries load
    with Console(file=sys.stderr).status(Text(printable(f"{text} …"))):
        yield


@contextlib.contextmanager
def quiet_typing() -> Iterator[None]:
    """Hide keys typed while a block runs; they stay in the input, and the next prompt shows them."""
    try:
        import termios
    except ImportError:  # not available on every system
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class WordWrap:
    """Wrap text that arrives in pieces at the width of the terminal.

    Parameters
    ----------
    width : int
        Columns.
    """

    def __init__(self, width: int):
        self.width, self.column, self.word = width, 0, ""

    def add(self, piece: str) -> str:
        """Return the words that are complete after another piece."""
        return "".join(map(self._letter, piece))

    def end(self) -> str:
        """Return the last word."""
        return self._flush()

    def _letter(self, letter: str) -> str:
        if letter not in " \n":
            self.word += letter
            return ""
        shown = self._flush()
        self.column = 0 if letter == "\n" else self.column + 1
        return shown + letter

    def _flush(self) -> str:
        from rich.cells import cell_len

        length, broken = cell_len(self.word), ""
        if self.column and self.column + length > self.width:
            broken, self.column = "\n", 0
        self.column += length
        shown, self.word = broken + self.word, ""
        return shown


def print_greeting(ecg: ECG, about: dict[str, Any]) -> None:
    """Show the recording and the notice."""
    from rich.text import Text

    print_panel(ecg, about)
    stderr_console().print(Text(printable(about["notice"]), style="bold"))


def print_panel(ecg: ECG, about: dict[str, Any] | None = None) -> None:
    """Show a recording: a table of facts, its header's notes, and lead II."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in panel_facts(ecg, about).items():
        grid.add_row(name, Text(printable(text)))
    notes = [printable(text) for text in ecg.recording.comments if text.strip()]
    if notes:
        grid.add_row("header", Text("(not shown to the model)", style="italic"))
    for text in notes[:MOST_NOTES]:
        grid.add_row("", Text(text, no_wrap=True, overflow="ellipsis"))
    if len(notes) > MOST_NOTES:
        left = len(notes) - MOST_NOTES
        grid.add_row("", Text(f"and {left} more line{'s' if left > 1 else ''}", style="italic"))
    out = stderr_console()
    out.print(Panel(grid, title=Text(printable(ecg.recording.name)), title_align="left", expand=False))
    with contextlib.suppress(readers.Unusable):
        print_lead(ecg, "II")


def panel_facts(ecg: ECG, about: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the table of the panel: name to text."""
    recording, (leads, count) = ecg.recording, ecg.in_prompt
    facts = {
        "recorded": f"{len(recording.leads)} leads ({', '.join(recording.leads)}), {recording.fs:g} Hz, "
        f"{recording.seconds:g} s" + (f", {recording.start:%Y-%m-%d %H:%M}" if recording.start else ""),
        **measured_facts(ecg.recording, ecg.measurement),
        "read": f"{ecg.stretch()}; {', '.join(leads) or 'no lead'} at {ecg.signal['fs']:g} Hz: {count} ECG tokens",
    }
    if about:
        memory = "; trained on single questions, so it does not see earlier ones"
        memory = "" if remembers_earlier_turns(about) else memory
        facts["model"] = f"{origin(about)}{memory}"
    return facts


def print_lead(ecg: ECG, lead: str) -> None:
    """Draw a lead in the terminal, if it can show braille dots."""
    out = stderr_console()
    signal, (start, end) = ecg.lead(lead), ecg.seconds
    try:
        "\u28ff".encode(out.encoding)
    except UnicodeEncodeError:
        note(f"this terminal cannot show a drawing ({out.encoding})")
        return
    for line in braille_plot(signal, start, end, readers.lead_name(lead), min(out.width, 120) - 1):
        note(line)


def braille_plot(
    signal: np.ndarray, start: float, end: float, lead: str, width: int, height: int = 6
) -> list[str]:
    """Draw a signal in mV with braille dots.

    Parameters
    ----------
    signal : numpy.ndarray
        (samples,), mV; NaN samples are not drawn.
    start, end : float
        Time of the first and last sample, in s.
    lead : str
    width, height : int
        Columns and rows.

    Returns
    -------
    list of str
        The rows, and a row with the times.
    """
    known = signal[np.isfinite(signal)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    if high - low < 0.1:  # centre a flat line
        low, high = (low + high) / 2 - 0.05, (low + high) / 2 + 0.05
    margin = 9
    columns, rows = 2 * max(width - margin, 10), 4 * height
    # each column of dots goes from the lowest to the highest sample, including the first of the next column
    edges = np.linspace(0, len(signal) - 1, columns + 1)
    canvas = np.zeros((rows, columns), bool)
    for i in range(columns):
        part = signal[int(edges[i]) : int(edges[i + 1]) + 1]
        part = part[np.isfinite(part)]
        if part.size:
            top, bottom = ((high - v) / (high - low) * (rows - 1) for v in (part.max(), part.min()))
            canvas[round(top) : round(bottom) + 1, i] = True
    bits = np.array([[1, 8], [2, 16], [4, 32], [64, 128]])  # bits of Unicode's braille patterns
    cells = (canvas.reshape(height, 4, columns // 2, 2) * bits[:, None]).sum(axis=(1, 3))
    labels = [""] * height
    labels[0], labels[1], labels[-1] = f"{high:.2f} mV", printable(str(lead))[:8], f"{low:.2f} mV"
    drawn = [
        f"{label:>{margin - 1}} " + "".join(chr(0x2800 + int(cell)) for cell in row)
        for label, row in zip(labels, cells, strict=True)
    ]
    times = f"{end:g} s".rjust(columns // 2 - len(f"{start:g} s"))
    return [*drawn, " " * margin + f"{start:g} s{times}"]


@contextlib.contextmanager
def line_editor(history: Path) -> Iterator[Callable[[], str]]:
    """Yield a function that reads a line, with a shell's line editing, completion and history.

    The file `history` keeps the history if its folder, the work folder, exists.
    """
    try:
        import readline
    except ImportError:  # not available on every system
        readline = None  # type: ignore[assignment]  # a module or None
    if readline:
        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        editline = "libedit" in (readline.__doc__ or "")  # macOS
        readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
        with contextlib.suppress(OSError):
            readline.read_history_file(history)

    def read() -> str:
        try:
            if sys.stdout.isatty():
                return input("> ")
            # the answers go to standard output, and the prompt must not
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except (EOFError, KeyboardInterrupt):
            note("")  # end the current line
            raise

    try:
        yield read
    finally:
        if readline and history.parent.is_dir():
            readline.set_history_length(1000)
            with contextlib.suppress(OSError), atomic_write(history) as beside:
                readline.write_history_file(beside)


def complete(text: str, state: int) -> str | None:
    """Return the completion number `state` of a command or of its path, for readline."""
    import readline

    if not readline.get_line_buffer().startswith("/"):
        return None
    if readline.get_begidx() == 0:
        matches = [word for word in (usage.split()[0] for usage in COMMANDS) if word.startswith(text)]
    else:
        matches = glob.glob(glob.escape(os.path.expanduser(text)) + "*")
        matches = [path + "/" if os.path.isdir(path) else path for path in sorted(matches)]
    return matches[state] if state < len(matches) else None
