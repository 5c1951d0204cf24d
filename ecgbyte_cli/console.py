"""What every command shares on the command line: options, results, progress, tables and errors.

Results go to standard output; progress, notes and errors go to standard error.
"""

import errno
import importlib
import json
import keyword
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ecgbyte_cli import __version__, interrupts, spelling
from ecgbyte_cli.failure import Failure as Failure
from ecgbyte_cli.failure import printable as printable
from ecgbyte_cli.spelling import Model as Model


class Toolkit(click.Group):
    """The chained command group; a command's module is imported only when the command is named."""

    def __init__(self, commands, aliases):
        super().__init__(
            "ecgbyte",
            chain=True,
            help="ECGs to byte pair tokens, and one causal language model over ECG and text (ECG-Byte). "
            "Each command reads what the one before left in the work folder, and commands can be "
            "chained in one line. Research use only: no medical device.",
            epilog="Example: ecgbyte symbolize data/ learn --vocab 5000 encode",
            context_settings={"help_option_names": ["-h", "--help"]},
            callback=open_work,
            params=[
                click.Option(
                    ["--work"],
                    type=click.Path(path_type=Path),
                    default=Path("ecgbyte-work"),
                    envvar="ECGBYTE_WORK",
                    show_envvar=True,
                    show_default=True,
                    help="The work folder.",
                ),
                click.Option(
                    ["--verify"],
                    type=click.Choice(["changed", "all", "none"]),
                    default="changed",
                    show_default=True,
                    help="Which files of earlier stages are compared with their checksums: those whose size "
                    "or time has changed, all, or none.",
                ),
            ],
            result_callback=print_json,
        )
        click.version_option(__version__, prog_name="ecgbyte")(self)
        self.table, self.aliases = commands, aliases

    @property
    def names(self) -> list[str]:
        """The names of all commands, and what else they are called."""
        return [*self.table, *self.aliases]

    def list_commands(self, ctx):
        return list(self.table)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        near = spelling.nearest(args[0], self.names)
        if near and args[0] not in self.names and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx, name):
        name = self.aliases.get(name, name)
        if name not in self.table:
            return None
        module = name.replace("-", "_") + "_" * keyword.iskeyword(name)
        return importlib.import_module(f"ecgbyte_cli.stages.{module}").command

    def format_commands(self, ctx, formatter):
        # from the table, so that --help imports no stage
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def main(self, args=None, prog_name="ecgbyte", **kwargs):
        # errors="replace": a file name that is no valid text must not break the message about it
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        return super().main(args, prog_name, **kwargs)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Failure(interrupts.STOPPED) from None

    def __call__(self, *args, **kwargs):
        """Run as the program, whose signals and streams are its own."""
        sys.unraisablehook = _unraisable
        # Python's helpers, such as multiprocessing's, else look for modules in the current folder first
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            with interrupts.EndingAtOnce():  # until a stage begins
                return super().__call__(*args, **kwargs)
        finally:
            # it is over: a signal now would only show where Python cleans up
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            exec("")  # Python keeps in mind that one ended such a text, and `python -m` would die of it now
            for stream in filter(None, (sys.stdout, sys.stderr)):
                try:
                    stream.flush()
                except OSError:  # full or closed, which was said; else Python would say so once more
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unraisable(what):
    """Take up an interrupt that came where Python cannot raise it, such as in a destructor."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(what)


@click.pass_context
def open_work(ctx, work, verify):
    """Make the work folder's paths the object that `click.pass_obj` hands to the commands."""
    from ecgbyte_cli.workdir import WorkDir

    ctx.obj = WorkDir(work, verify)


class Stage(click.Command):
    """A command of the chain. Adds --json and --debug, and turns errors into one line.

    The callback returns a dict: the stage's results, which `--json` prints.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=lambda ctx, _, on: ctx.find_root().meta.__setitem__("json", True) if on else None,
                help="Print the results as one JSON object on standard output.",
            ),
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=lambda ctx, _, on: ctx.find_root().meta.__setitem__("debug", True) if on else None,
                help="Show the traceback of an error.",
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # In chain mode Click ends a command at its first argument, and would take an option behind it
        # for the next command. So the options up to the next command are put before the arguments.
        # An argument of any number of words ends at a command's name: a folder of that name is ./learn.
        values = {
            name: 0 if p.is_flag or p.count else p.nargs
            for p in self.get_params(ctx)
            if isinstance(p, click.Option)
            for name in (*p.opts, *p.secondary_opts)
        }
        wanted = [p.nargs for p in self.params if isinstance(p, click.Argument)]
        commands = ctx.find_root().command.names  # type: ignore[attr-defined]
        options, arguments, rest, plain = list[str](), list[str](), list(args), False
        while rest:
            word = rest[0]
            is_option = word.startswith("-") and word != "-" and not plain
            # behind -- words are arguments, whatever they begin with, and a folder may have a command's name
            ends = -1 not in wanted or (word in commands and not (plain and os.path.exists(word)))
            if len(arguments) >= len(wanted) and ends and not is_option:
                break
            rest.pop(0)
            if word == "--" and is_option:
                plain = True
            elif is_option:
                options += [word, *rest[: values.get(word, 0)]]
                del rest[: values.get(word, 0)]
            else:
                if arguments and -1 in wanted and not plain:
                    spelling.check_file(ctx, word, commands)
                arguments.append(word)
        super().parse_args(ctx, [*options, *(["--"] if arguments else []), *arguments])
        ctx.args += rest
        return ctx.args

    def invoke(self, ctx):
        meta = ctx.find_root().meta
        try:
            interrupts.raise_them()
            result = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            if meta.get("debug"):
                raise_with_traceback()
            raise
        except Exception as error:
            if meta.get("debug"):
                raise_with_traceback()
            if interrupted(error):
                raise KeyboardInterrupt from None
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # who read the results has enough, and Click ends quietly
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                raise Failure(f"{os.fsdecode(error.filename)}: {error.strerror}") from error
            text = " ".join(str(error).split()) or type(error).__name__
            raise Failure(f"{ctx.info_name}: {text} ({type(error).__name__}; --debug shows where)") from error
        return ctx.info_name, result


class Words(click.ParamType):
    """Words parted by commas, as a tuple."""

    name = "a,b,…"

    def convert(self, value, param, ctx):
        return (
            tuple(word.strip() for word in value.split(",") if word.strip())
            if isinstance(value, str)
            else value
        )


class Weighted(click.ParamType):
    """A name, or one of some, with a weight behind a colon; 1 where there is none: (str, float)."""

    name = "name[:weight]"

    def __init__(self, names=None):
        self.names = names

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        name, _, weight = value.rpartition(":")
        if not name or not re.fullmatch(r"\d*\.?\d+", weight):
            name, weight = value, 1
        if self.names and name not in self.names:
            self.fail(f"{name!r} is none of {', '.join(self.names)}", param, ctx)
        if float(weight) == 0:
            self.fail(f"{value!r} has no weight: leave it out", param, ctx)
        return name, float(weight)


# options that several commands have alike
model_option = click.option(
    "--model",
    type=Model(),
    default=None,
    show_default="the work folder's, or the one that comes with ecgbyte",
    help="Model folder.",
)
base_option = click.option(
    "--base", type=click.Path(path_type=Path), help="Where the model's base model is, if it has moved."
)

max_new_option = click.option(
    "--max-new",
    type=click.IntRange(1),
    default=None,
    show_default="64, or 512 of a model that reasons first",
    help="Longest answer in tokens.",
)
types_option = click.option(
    "--types",
    type=Words(),
    default="",
    help="Take questions of these types alone, parted by commas.  [default: all]",
)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="How many trainings, with as many seeds: the first in the usual place, the others in seeds/.",
)


def sampling_options(command):
    """Of commands that write ECGs: how their tokens are drawn."""
    top_p = click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Draw from the likeliest tokens that have so much of the probability together.",
    )
    temperature = click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Below 1 the likelier tokens become likelier still.",
    )
    return temperature(top_p(command))


def interrupted(error):
    """Whether an error came of Ctrl-C: compiled code and imports make other errors of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def raise_with_traceback():
    """Print the traceback of the exception being handled to standard error."""
    import traceback

    traceback.print_exc()


def print_json(results, **_):
    """Print what the stages returned, under --json: one object, keyed by stage if there were several."""
    if not click.get_current_context().meta.get("json"):
        return
    results = [(name, result) for name, result in results if result is not None]
    if not results:  # one of several processes, not the first
        return
    value = results[0][1] if len(results) == 1 else dict(results)
    with _written():
        click.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def _written():
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


def say(text=""):
    """Print a result to standard output (nothing under --json)."""
    if not wants_json():
        with _written():
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
    with _written():
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
