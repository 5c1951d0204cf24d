"""Shell completion: the scripts of each shell, and what they get to choose from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecgbyte_cli.__main__ import COMMANDS, main
from ecgbyte_cli.signal.quantizers import QUANTIZERS

BASH = shutil.which("bash")


def asked(instruction, words="", number=0):
    """What `ecgbyte` prints for a shell."""
    environment = {"_ECGBYTE_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = CliRunner().invoke(main, [], env=environment, prog_name="ecgbyte")
    assert result.exit_code == 0 and result.stderr == "", result.stderr
    return result.stdout


def completed(words):
    """The completions of the last word of a line, as (type, value)."""
    line = asked("bash_complete", words, len(words.split(" ")) - 1)
    return [tuple(one.split(",", 1)) for one in line.splitlines() if one]


def plain(words):
    return [value for kind, value in completed(words) if kind == "plain"]


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o"), ("zsh", "#compdef ecgbyte"), ("fish", "complete --no-files")]
)
def test_each_shell_has_a_script_and_a_documented_line(shell, line):
    script = asked(f"{shell}_source")
    assert line in script and f"_ECGBYTE_COMPLETE={shell}_complete" in script
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    assert re.search(rf"`[^`]*_ECGBYTE_COMPLETE={shell}_source ecgbyte[^`]*`", page)


def test_each_shell_is_answered_in_its_form():
    assert "plain\nsymbolize" in asked("zsh_complete", "ecgbyte symb", 1)
    environment = {"_ECGBYTE_COMPLETE": "fish_complete", "COMP_WORDS": "ecgbyte symb", "COMP_CWORD": "symb"}
    assert "symbolize" in CliRunner().invoke(main, [], env=environment, prog_name="ecgbyte").stdout


def test_commands_options_choices_and_files_are_completed():
    assert plain("ecgbyte ") == list(COMMANDS)
    assert plain("ecgbyte fin") == ["finetune", "findings"]
    assert plain("ecgbyte symbolize --quantizer ") == list(QUANTIZERS)
    assert plain("ecgbyte symbolize data/ --quanti") == ["--quantizer"]
    assert plain("ecgbyte symbolize data/ lea") == ["learn", "learn-merges"]  # the next command
    assert "encode" in plain("ecgbyte learn --vocab 40 e")
    assert plain("ecgbyte reinforce --reward ex") == ["exact"]
    for files in ("symbolize da", "measure da", "findings data/ --truth da", "finetune --qa da", "chat rec"):
        assert completed(f"ecgbyte {files}") == [("file", files.split()[-1])]


@pytest.mark.parametrize(
    "words", ["symbolise da", "symbolize data/ lern x", "learn --vocab many e", "nothing "]
)
def test_a_line_with_a_mistake_is_no_error(words):
    completed(f"ecgbyte {words}")


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_completes(tmp_path):
    """With the documented line, and the function that it registers."""
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    [line] = re.findall(r'`(eval "[^`]*bash_source[^`]*)`', page)
    (tmp_path / "ecgbyte").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ecgbyte_cli "$@"\n')
    (tmp_path / "ecgbyte").chmod(0o755)
    script = f"""{line}
try() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $(complete -p ecgbyte | sed 's/.*-F \\([^ ]*\\).*/\\1/') ecgbyte
    echo "${{COMPREPLY[*]}}"
}}
try ecgbyte symb
try ecgbyte symbolize --quantizer m
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [BASH, "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert run.stdout.splitlines() == ["symbolize", "minmax mulaw"], run.stderr
