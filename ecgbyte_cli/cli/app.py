"""The `ecgbyte` command group: stages, chaining, errors and signals."""

import errno
import importlib
import json
import keyword
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ecgbyte_cli import __version__
from ecgbyte_cli.cli import spelling
from ecgbyte_cli.cli.output import note, reporting_closed_stdout
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import interrupts


class Toolkit(click.Group):
    """The chained command group. A command's module is imported only when the command is used.

    Parameters
    ----------
    commands : dict of str to (str, str)
        Name mapped to its group in the help and its summary.
    aliases : dict of str to str
        Alternative names of commands.
    """

    def __init__(self, commands: Mapping[str, tuple[str, str]], aliases: Mapping[str, str]):
        super().__init__(
            "ecgbyte",
            chain=True,
            help="ECGs to byte pair tokens, and one causal language model over ECG and text (ECG-Byte). "
            "Each command reads the files that earlier commands wrote to the work folder. Commands can be "
            "chained in one line. Research use only: not a medical device.",
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
                    help="Files of earlier stages to compare with their checksums: files whose size or time has "
                    "changed, all, or none.",
                ),
            ],
            result_callback=print_json,
        )
        click.version_option(__version__, prog_name="ecgbyte")(self)
        self.table, self.aliases = commands, aliases

    @property
    def names(self) -> list[str]:
        """The names and aliases of all commands."""
        return [*self.table, *self.aliases]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        near = spelling.nearest(args[0], self.names)
        unknown = args[0] not in self.names and not args[0].startswith("-")
        if near and unknown and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context | None, name: str) -> click.Command | None:  # type: ignore[override]
        name = self.aliases.get(name, name)
        if name not in self.table:
            return None
        module = name.replace("-", "_") + "_" * keyword.iskeyword(name)
        return importlib.import_module(f"ecgbyte_cli.stages.{module}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # summaries come from the table, so that --help imports no stage; all sections use the same column widths
        width = max(map(len, self.table))
        for title in dict.fromkeys(group for group, _ in self.table.values()):
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(width), line)
                        for name, (group, line) in self.table.items()
                        if group == title
                    ]
                )

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = "ecgbyte", **kwargs: Any
    ) -> Any:
        # errors="replace": a file name that is not valid text must not break an error message
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            return super().main(args, prog_name, **kwargs)
        except Failure as failure:
            note(f"ecgbyte: {failure.message}")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Failure(interrupts.STOPPED) from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program that owns its signals and streams."""
        sys.unraisablehook = _raise_again
        # otherwise Python's helper processes search the current folder for modules first
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            with interrupts.EndingAtOnce():  # until a stage starts
                return super().__call__(*args, **kwargs)
        finally:
            # a later signal would only show a traceback from Python's clean-up
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            exec("")  # clears Python's memory of a KeyboardInterrupt, which would now kill `python -m`
            for stream in filter(None, (sys.stdout, sys.stderr)):
                try:
                    stream.flush()
                except OSError:  # already reported: keep Python from reporting it again
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _raise_again(unraisable: Any) -> None:
    """Raise again an interrupt that Python could not raise, such as one in a destructor."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


@click.pass_context
def open_work(ctx: click.Context, work: Path, verify: str) -> None:
    """Make the work folder the object that `click.pass_obj` passes to the commands."""
    from ecgbyte_cli.storage.workdir import WorkDir

    ctx.obj = WorkDir(work, verify)


class Stage(click.Command):
    """A command of the chain. Adds --json and --debug, and turns errors into one line.

    The callback returns the stage's results as a dict, which `--json` prints.

    Parameters
    ----------
    groups : dict of str to sequence of str
        Sections of the help: title to the names of its parameters. All other options follow under "Running".
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.groups = groups or {}
        self.params += [
            _meta_flag("json", "Print the results as one JSON object on standard output."),
            _meta_flag("debug", "Show the traceback of an error."),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = (p for p in self.get_params(ctx) if isinstance(p, click.Option))
        lines = {p.name: record for p in options if (record := p.get_help_record(ctx))}
        for title, names in self.groups.items():
            with formatter.section(title):
                formatter.write_dl([lines.pop(name) for name in names])
        with formatter.section("Running" if self.groups else "Options"):
            formatter.write_dl(list(lines.values()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # In chain mode Click ends a command at its first argument and assigns an option after it to the next
        # command. So the options up to the next command are moved before the arguments.
        # An argument with any number of words ends at a command's name: write a folder with that name as ./learn.
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
            # after --, every word is an argument, even a command's name
            ends = -1 not in wanted or (word in commands and not (plain and os.path.exists(word)))
            if len(arguments) >= len(wanted) and ends and not is_option:
                break
            rest.pop(0)
            if word == "--" and is_option:
                plain = True
            elif is_option:
                count = values.get(word, 0)
                if (
                    len(rest) < count and not ctx.resilient_parsing
                ):  # the option would take the `--` of the arguments
                    needs = "an argument" if count == 1 else f"{count} arguments"
                    raise click.BadOptionUsage(word, f"Option {word!r} requires {needs}.", ctx)
                options += [word, *rest[:count]]
                del rest[:count]
            else:
                if arguments and -1 in wanted and not plain and not ctx.resilient_parsing:
                    spelling.check_file(ctx, word, commands)
                arguments.append(word)
        super().parse_args(ctx, [*options, *(["--"] if arguments else []), *arguments])
        ctx.args += rest
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        try:
            interrupts.raise_them()
            result = super().invoke(ctx)
        except Exception as error:
            if ctx.find_root().meta.get("debug"):
                print_traceback()
            if isinstance(error, (Failure, click.ClickException, click.exceptions.Exit, click.Abort)):
                raise
            _raise_as_failure(error, ctx.info_name)
        return ctx.info_name, result


def _meta_flag(name: str, text: str) -> click.Option:
    """Return the option `--NAME`, which sets `meta[NAME]` of the whole command line."""

    def set_meta(ctx: click.Context, _: click.Parameter, on: bool) -> None:
        if on:
            ctx.find_root().meta[name] = True

    return click.Option([f"--{name}"], is_flag=True, expose_value=False, callback=set_meta, help=text)


def _raise_as_failure(error: Exception, command: str | None) -> NoReturn:
    """Raise an unexpected error again as a one-line Failure, or as the interrupt that caused it."""
    if caused_by_interrupt(error):
        raise KeyboardInterrupt from None
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error  # the reader of the results closed the pipe; Click exits quietly
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        raise Failure(f"{os.fsdecode(error.filename)}: {error.strerror}") from error
    text = " ".join(str(error).split()) or type(error).__name__
    raise Failure(f"{command}: {text} ({type(error).__name__}; --debug shows where)") from error


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: compiled code and imports turn it into other errors."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def print_traceback() -> None:
    """Print the traceback of the exception being handled to standard error."""
    import traceback

    traceback.print_exc()


def print_json(results: Sequence[tuple[str, dict | None]], **_: Any) -> None:
    """Print the results of the stages, under --json: one object, keyed by stage if there were several."""
    if not click.get_current_context().meta.get("json"):
        return
    # in distributed training only the first process has results
    named = [(name, result) for name, result in results if result is not None]
    if not named:
        return
    value = named[0][1] if len(named) == 1 else dict(named)
    with reporting_closed_stdout():
        click.echo(json.dumps(value, ensure_ascii=False))
