"""The command line's own rules: options after arguments, JSON, exit codes, one line per error."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ecgbyte_cli import console
from ecgbyte_cli.__main__ import COMMANDS, main


@click.command(cls=console.Stage)
@click.argument("folder")
@click.option("--number", type=int, default=1)
@click.option("--range", "limits", type=float, nargs=2)
@click.option("--fast", is_flag=True)
def first(**options):
    console.say("text of first")
    return options


@click.command(cls=console.Stage)
@click.option("--fail", type=click.Choice(["failure", "bug", "memory", "stop"]))
@click.pass_obj
def second(work, fail):
    if fail == "failure":
        raise console.Failure("file x is broken: mend it")
    if fail == "bug":
        raise ZeroDivisionError("two\nlines")
    if fail == "memory":
        raise MemoryError
    if fail == "stop":
        raise KeyboardInterrupt
    return {"work": str(work.root)}


class Toy(console.Toolkit):
    def get_command(self, ctx, name):
        return {"first": first, "second": second}.get(name)


def run(*args):
    return CliRunner().invoke(Toy({"first": "", "second": ""}, {}), args)


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
    ],
)
def test_an_error_is_one_line_and_exit_1(kind, said):
    result = run("second", "--fail", kind, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", said)
    assert "Traceback" in run("second", "--fail", kind, "--debug").stderr


def test_ctrl_c_exits_1():
    result = run("second", "--fail", "stop")
    assert result.exit_code == 1 and result.stderr.startswith("ecgbyte: stopped")


def test_plain_progress_lines_go_to_standard_error(capsys, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(console.time, "perf_counter", lambda: float(next(clock)))
    with console.progress("learn", 4, "merges") as bar:
        for done in range(1, 5):
            bar.update(done, "count 7")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[0] == "learn: 2/4 merges count 7 12 s left"


def test_every_command_is_in_the_table_and_in_the_readme():
    stages = Path(main.get_command.__code__.co_filename).parent / "stages"
    names = {p.stem.replace("_", "-") for p in stages.glob("*.py")} - {"--init--"}
    assert names == set(COMMANDS)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for name, line in COMMANDS.items():
        assert f"ecgbyte {name}" in readme
        command = main.get_command(None, name)
        assert command.short_help == line
        assert command.epilog.startswith(f"Example: ecgbyte {name}")
        assert {"--json", "--debug"} <= {o for p in command.params for o in p.opts}
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name} has no help"


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
