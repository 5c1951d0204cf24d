"""Check the command lines in the blocks of README, CONTRIBUTING and docs; docs/run_lines.py runs them.

    python docs/command_lines.py           # checks all of them, as tests/test_docs.py does

A block is indented by four columns. Commands of ecgbyte are parsed by Click as in a real run, without running.
Scripts must exist and have the options, targets must be in the Makefile, extras in pyproject.toml.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import click
from click.testing import CliRunner

from ecgbyte_cli.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
PAGES.remove("docs/commands.md")  # written from the commands
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
LAUNCHERS = ("torchrun", "accelerate", "srun")
OTHERS = (
    ".venv/bin/pytest",
    "curl",
    "dask",
    "head",
    "hf",
    "jq",
    "scontrol",
)  # programs that are not this project's
CHECKED = ("ecgbyte", "make", "python", "sh", "pip", ".ci/run", *LAUNCHERS)


def lines_of(text: str) -> Iterator[str]:
    """Yield the command lines of a page's blocks; of a block with a prompt, only the lines after `$`."""
    for block in BLOCK.findall(FENCED.sub("", text).replace("\\\n", " ")):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        lines = [line for line in lines if not line.startswith("#")]
        if any(programs(line) for line in lines):
            yield from lines


def split(line: str) -> list[list[str]]:
    """Return the words of each command of a line, without comments, redirections and assignments."""
    inner = re.match(r"\w+=\$\((.*)\)$", line)
    if inner:
        return split(inner[1])
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split, words.commenters = True, "#"
    commands, rest = [[]], iter(words)
    for word in rest:
        if word in (">", "<", ">>"):
            next(rest)
        elif set(word) <= set("|&;"):
            commands.append([])
        elif commands[-1] or not re.match(r"\w+=", word):
            commands[-1].append(word)
    return [words for words in commands if words]


def programs(line: str) -> list[str]:
    """Return the programs of a line that can be checked."""
    try:
        return [words[0] for words in split(line) if words[0] in CHECKED]
    except ValueError:  # an open quote: prose
        return []


@contextmanager
def without_running() -> Iterator[None]:
    """Let commands parse their options and do nothing; files need not exist."""
    with mock.patch.object(click.Path, "convert", lambda self, value, param, ctx: value):
        with mock.patch("ecgbyte_cli.cli.app.Stage.invoke", lambda self, ctx: {}):
            yield


def wrong_with(words: list[str]) -> str:
    """Return what is wrong with a command, or an empty text."""
    program, rest = words[0], words[1:]
    if program in LAUNCHERS or (program == "python" and rest[:1] == ["-m"]):
        module = next((at for at, word in enumerate(rest) if word.startswith("ecgbyte_cli")), None)
        return "starts nothing of ecgbyte" if module is None else wrong_with(["ecgbyte", *rest[module + 1 :]])
    if program == "ecgbyte":
        with without_running():
            result = CliRunner().invoke(main, rest)
        return "" if result.exit_code == 0 else result.stderr.strip().splitlines()[-1]
    if program == "make":
        targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if all("=" in word or word in targets for word in rest) else "no such target"
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [name for found in re.findall(r"\[(.*?)\]", " ".join(rest)) for name in found.split(",")]
        return "" if set(named) <= set(extras) else "no such extra"
    if program in ("python", "sh", ".ci/run") and rest[:1] != ["-c"]:
        script = ROOT / (rest[0] if rest else program)
        if not script.is_file():
            return "no such script"
        text = script.read_text(encoding="utf-8")
        written = "{}" if program == "sh" else '"{}"'
        missing = [word for word in rest if word.startswith("--") and written.format(word) not in text]
        return f"no option {missing[0]}" if missing else ""
    return "" if program in (*OTHERS, *CHECKED) else "no such program"


def wrong_lines(page: str) -> list[str]:
    """Return the command lines of a page that could not run, each with the reason."""
    found = []
    for line in lines_of((ROOT / page).read_text(encoding="utf-8")):
        reasons = [reason for words in split(line) if (reason := wrong_with(words))]
        found += [f"{line}: {reasons[0]}"] if reasons else []
    return found


if __name__ == "__main__":
    wrong = {page: found for page in PAGES if (found := wrong_lines(page))}
    for page, found in wrong.items():
        print(page, *found, sep="\n    ")
    count = sum(len(list(lines_of((ROOT / page).read_text(encoding="utf-8")))) for page in PAGES)
    print(f"{count} command lines, {sum(map(len, wrong.values()))} wrong")
    raise SystemExit(bool(wrong))
