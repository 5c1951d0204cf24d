"""The `ecgbyte` command group: stages, chaining, errors and signals."""

import errno
import importlib
import json
import keyword
import os
import signal
import sys
import threading
from pathlib import Path

import click

from ecgbyte_cli import __version__
from ecgbyte_cli.cli import spelling
from ecgbyte_cli.cli.output import reporting_closed_stdout
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import interrupts


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
    from ecgbyte_cli.storage.workdir import WorkDir

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
            if caused_by_interrupt(error):
                raise KeyboardInterrupt from None
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # who read the results has enough, and Click ends quietly
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                raise Failure(f"{os.fsdecode(error.filename)}: {error.strerror}") from error
            text = " ".join(str(error).split()) or type(error).__name__
            raise Failure(f"{ctx.info_name}: {text} ({type(error).__name__}; --debug shows where)") from error
        return ctx.info_name, result


def caused_by_interrupt(error):
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
    with reporting_closed_stdout():
        click.echo(json.dumps(value, ensure_ascii=False))
