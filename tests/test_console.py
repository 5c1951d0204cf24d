"""The command line's own rules: options after arguments, JSON, exit codes, one line per error."""

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.__main__ import COMMANDS, main
from ecgbyte_cli.cli import app, output


@click.command(cls=app.Stage)
@click.argument("folder")
@click.option("--number", type=int, default=1)
@click.option("--range", "limits", type=float, nargs=2)
@click.option("--fast", is_flag=True)
def first(**options):
    output.print_result("text of first")
    return options


@click.command(cls=app.Stage)
@click.option("--fail", type=click.Choice(["failure", "bug", "memory", "stop", "compiled", "file"]))
@click.pass_obj
def second(work, fail):
    if fail == "failure":
        raise output.Failure("file x is broken: mend it")
    if fail == "bug":
        raise ZeroDivisionError("two\nlines")
    if fail == "memory":
        raise MemoryError
    if fail == "stop":
        raise KeyboardInterrupt
    if fail == "compiled":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("a function returned a result with an exception set") from error
    if fail == "file":
        open("no/such\x1b[31m file")
    return {"work": str(work.root)}


class Toy(app.Toolkit):
    def get_command(self, ctx, name):
        return {"first": first, "second": second, "several": several}.get(name)


def run(*args):
    return CliRunner().invoke(Toy({name: ("Use", "") for name in ("first", "second", "several")}, {}), args)


@pytest.mark.parametrize(
    "args",
    [
        ["first", "data/", "--number", "3", "--range", "-1", "2", "--fast"],
        ["first", "--number=3", "--fast", "data/", "--range", "-1", "2"],
        ["first", "--range", "-1", "2", "--number", "3", "--fast", "data/"],
    ],
)
def test_options_may_follow_arguments(args):
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"folder": "data/", "number": 3, "limits": [-1, 2], "fast": True}


@click.command(cls=app.Stage)
@click.argument("folders", nargs=-1, required=True)
@click.option("--number", type=int, default=1)
def several(**options):
    return {"folders": list(options["folders"]), "number": options["number"]}


@pytest.mark.parametrize(
    ("args", "folder"),
    [
        (["--", "data"], "data"),
        (["--", "-data"], "-data"),
        (["--", "--number"], "--number"),
        (["--", "--"], "--"),
        (["--", "second"], "second"),
        (["--fast", "--number", "3", "--", "-d"], "-d"),
        (["data", "--fast", "--"], "data"),
    ],
)
def test_what_follows_two_dashes_is_an_argument(args, folder):
    result = run("first", "--json", *args)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["folder"], told["fast"]) == (folder, "--fast" in args)


def test_two_dashes_in_a_chain():
    result = run("--", "first", "--json", "--", "-data", "second")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["first"]["folder"] == "-data"
    assert run("first", "--", "data", "--number", "3").exit_code == 2
    result = run("second", "--", "first", "--", "-x", "second")
    assert result.exit_code == 0, result.stderr


def test_two_dashes_before_several_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("several", "--json", "--", "a", "-b", "--number", "second")
    assert json.loads(result.stdout)["several"]["folders"] == ["a", "-b", "--number"]
    assert run("several", "--json", "--", "second").stdout == '{"folders": ["second"], "number": 1}\n'
    (tmp_path / "second").mkdir()
    told = json.loads(run("several", "--json", "--", "a", "second").stdout)
    assert told == {"folders": ["a", "second"], "number": 1}
    assert "second" in json.loads(run("several", "--json", "a", "second").stdout)


@pytest.mark.parametrize(
    ("args", "near"),
    [
        (["secnd"], "second"),
        (["Second"], "second"),
        (["first", "data/", "sec-ond"], "second"),
        (["several", "a", "fisrt", "--number", "2"], "first"),
        (["first", "data/", "--nmber", "3"], "--number"),
    ],
)
def test_a_slip_is_told_with_the_nearest_name(args, near):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(f"Did you mean {near!r}?")


def test_what_is_like_nothing_gets_no_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("xyz")
    assert result.exit_code == 2 and "Did you mean" not in result.stderr
    (tmp_path / "secnd.hea").touch()  # a recording without its extension
    told = json.loads(run("several", "--json", "a", "secnd").stdout)
    assert told["folders"] == ["a", "secnd"]
    assert json.loads(run("several", "--json", "a", "seco[n]*").stdout)["folders"] == ["a", "seco[n]*"]


def test_a_chain_is_one_json_object(tmp_path):
    result = run("--work", str(tmp_path), "first", "data/", "--number", "3", "second", "--json")
    assert json.loads(result.stdout)["second"] == {"work": str(tmp_path)}
    assert json.loads(result.stdout)["first"]["number"] == 3
    assert run("first", "data/", "second").stdout == "text of first\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["first"],
        ["first", "a", "--unknown"],
        ["first", "a", "--number", "x"],
        ["first", "a", "b"],
    ],
)
def test_a_wrong_command_line_exits_2(args):
    assert run(*args).exit_code == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("failure", "ecgbyte: file x is broken: mend it\n"),
        ("bug", "ecgbyte: second: two lines (ZeroDivisionError; --debug shows where)\n"),
        ("memory", "ecgbyte: second: MemoryError (MemoryError; --debug shows where)\n"),
        ("file", "ecgbyte: no/such\\x1b[31m file: No such file or directory\n"),
    ],
)
def test_an_error_is_one_line_and_exit_1(kind, said):
    result = run("second", "--fail", kind, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", said)
    assert "Traceback" in run("second", "--fail", kind, "--debug").stderr


@pytest.mark.parametrize("how", ["stop", "compiled"])
def test_ctrl_c_exits_1(how):
    result = run("second", "--fail", how)
    assert result.exit_code == 1 and result.stderr.startswith("ecgbyte: stopped")


def test_plain_progress_lines_go_to_standard_error(capsys, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(output.time, "perf_counter", lambda: float(next(clock)))
    with output.progress("learn", 4, "merges") as bar:
        for done in range(1, 5):
            bar.update(done, "count 7")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[0] == "learn: 2/4 merges count 7 12 s left"


def test_every_command_is_in_the_table_and_in_the_readme():
    stages = Path(main.get_command.__code__.co_filename).parents[1] / "stages"
    names = {p.stem.rstrip("_").replace("_", "-") for p in stages.glob("*.py")} - {"--init"}
    assert names == set(COMMANDS)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for name, (_, line) in COMMANDS.items():
        assert f"ecgbyte {name}" in readme
        command = main.get_command(None, name)
        assert command.short_help == line
        assert command.epilog.startswith(f"Example: ecgbyte {name}")
        assert {"--json", "--debug"} <= {o for p in command.params for o in p.opts}
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name} has no help"


@pytest.mark.parametrize("line", ["symbolize data --fs", "findings data --truth", "symbolize data --range 1"])
def test_an_option_at_the_end_needs_its_value(line):
    result = CliRunner().invoke(main, line.split())
    option = next(word for word in line.split() if word.startswith("--"))
    assert result.exit_code == 2 and f"Option '{option}' requires" in result.stderr


def imported_by(code):
    names = "{m.split('.')[0] for m in sys.modules}"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*{names})"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_help_imports_nothing_heavy():
    code = "from ecgbyte_cli.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "transformers", "matplotlib", "numpy", "numba", "rich"} & imported_by(code)


def test_tokenizer_stages_import_no_language_model():
    names = ["synth", "symbolize", "learn", "encode", "decode", "import-tokenizer", "info"]
    code = f"from ecgbyte_cli.__main__ import main\nfor n in {names}: main.get_command(None, n)"
    assert not {"torch", "transformers", "matplotlib"} & imported_by(code)


def test_transformers_imports_beside_our_kernels_folder():
    code = "import sys; sys.path.insert(0, '.'); import ecgbyte_kernels, kernels; print(kernels.__file__)\n"
    code += "from transformers import LlamaForCausalLM"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()).name == "__init__.py"


# Text from files


ANY = st.text(st.characters(exclude_categories=()), max_size=30)


@settings(max_examples=300, deadline=None)
@given(text=ANY)
def test_printable_text_commands_no_terminal(text):
    shown = output.printable(text)
    assert shown.isprintable() and not {unicodedata.category(c) for c in shown} & {
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    }
    assert output.printable(shown) == shown
    assert output.printable(text, "\n").count("\n") == text.count("\n")
    assert [c for c in text if c.isprintable()] == [c for c in text if c.isprintable() and c in shown]


def test_what_is_shown_of_it():
    assert output.printable("a\x1b[31mb\x9bc\x07") == "a\\x1b[31mb\\x9bc\\x07"
    assert output.printable("bad\udcffname") == "bad\\xffname"
    assert output.printable("\u202eabc\ufeff") == "\\u202eabc\\ufeff"
    assert output.printable("120\xa0mmHg\u2028\tÄ µV 漢") == "120 mmHg  Ä µV 漢"


@settings(max_examples=100, deadline=None)
@given(text=ANY)
def test_no_way_to_the_terminal_lets_commands_through(text):
    @click.command(cls=app.Stage)
    def shows():
        output.print_result(text)
        output.note(text)
        output.table([(text, "[/x]")], ("[red]name", text), text)
        raise output.Failure(text)

    class Shows(app.Toolkit):
        def get_command(self, ctx, name):
            return shows

    result = CliRunner().invoke(Shows({"shows": ("Use", "")}, {}), ["shows"])
    assert result.exit_code == 1
    assert all(c == "\n" or c.isprintable() for c in result.stdout.replace("\t", "") + result.stderr)


def test_brackets_are_no_markup(capsys):
    output.table([("lead [v1]", "[/x]"), ("[red]q", ":smile:")], ("[b]type", "n"), "[title]")
    out = capsys.readouterr().out
    for text in ("lead [v1]", "[/x]", "[red]q", "[b]type", "[title]"):
        assert text in out
    assert ":smile:" in out


# Endings of the program


def program(code, **options):
    """Start a program that has the toolkit's command line and two commands of its own."""
    head = (
        "import sys, os, time, signal, click; from ecgbyte_cli.cli import app, output\n"
        "@click.command(cls=app.Stage)\ndef go():\n"
    )
    tail = (
        "\nclass Toy(app.Toolkit):\n    def get_command(self, ctx, name): return go\n"
        "Toy({'go': ('Use', '')}, {})()"
    )
    body = "".join(f"    {line}\n" for line in code.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", head + body + tail, "go", *options.pop("args", [])],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("return {'a': 1}", ["--json"]),
        ("output.print_result('text')", []),
        ("output.table([('a', 'b')], ('c', 'd'))", []),
        ("output.print_result('x' * 100000)", []),
    ],
)
def test_a_full_device_is_one_line(code, args):
    with open("/dev/full", "w") as full:
        process = program(code, args=args, stdout=full)
    assert process.communicate()[1] == (
        "ecgbyte: standard output cannot be written: No space left on device\n"
    )
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("code", "args"),
    [("return {'a': 1}", ["--json"]), ("output.print_result('text')", []), ("output.table([], 'ab')", [])],
)
def test_a_closed_pipe_ends_it_quietly(code, args):
    reading, writing = os.pipe()
    os.close(reading)
    process = program(code, args=args, stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == "" and process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_notes_that_nobody_can_read_do_not_end_the_work():
    with open("/dev/full", "w") as full:
        process = program("output.note('remark')\noutput.print_result('result')", stderr=full)
    assert process.communicate()[0] == "result\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "code",
    [
        "while True: time.sleep(0.01)",
        # where Python cannot raise it
        "class A:\n    def __del__(self): print('in', flush=True); time.sleep(1)\nA()\nwhile True: time.sleep(0.01)",
        "try:\n    while True: time.sleep(0.01)\nfinally:\n    print('tidied', file=sys.stdout, flush=True)",
    ],
)
def test_signals_end_it_in_one_line(number, code):
    process = program("print('in', flush=True)\n" + code)
    assert process.stdout.readline() == "in\n"
    time.sleep(0.1)
    process.send_signal(number)
    out, said = process.communicate(timeout=120)
    assert said == STOPPED
    assert process.returncode == 1 and ("tidied" in out) == ("finally" in code)


STOPPED = "ecgbyte: stopped; finished work is kept, and the same command resumes from there\n"
# at which import after the first of ours a signal is sent; of more than there are, none
INTERRUPTED = """
import os, signal, sys
left, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
def hook(event, args):
    global left
    if event == "import" and "ecgbyte_cli.runtime.interrupts" in sys.modules:
        left -= 1
        if left == 0:
            os.write(1, b"sent ")
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
"""
AS_SCRIPT = INTERRUPTED + "from ecgbyte_cli.__main__ import main\nsys.exit(main())"
AS_MODULE = INTERRUPTED + "import runpy\nrunpy.run_module('ecgbyte_cli', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("code", [AS_SCRIPT, AS_MODULE])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [2, 10, 50, 150, 300])
def test_signals_while_modules_are_imported_end_it_in_one_line(tmp_path, code, number, at):
    """At an import, and not after a time: so each is where it should be on any machine."""
    args = [at, int(number), "--work", tmp_path / "work", "symbolize", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr, done.returncode) == ("sent ", STOPPED, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.05, 0.1, 0.2, 0.4, 0.7, 1.0])
def test_ctrl_c_soon_after_the_start_shows_nothing_of_ours(tmp_path, at):
    """Before the first of our lines Python shows its own traceback, with none of our files in it, or ends silently."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ecgbyte_cli", "--work", tmp_path / "work", "symbolize", tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    time.sleep(at)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert "Traceback" not in said or "ecgbyte_cli/" not in said
    silent = said == "" and process.returncode == -signal.SIGINT  # Python had not begun yet
    assert said.count("\n") == 1 or "Traceback" in said or silent
