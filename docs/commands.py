"""Write the command reference, docs/commands.md, from the commands' own --help.

    python docs/commands.py             # writes docs/commands.md
    python docs/commands.py --check     # exit code 1 if docs/commands.md is not what would be written

A change to an option or a help text needs a new page; tests/test_docs.py says so where it was forgotten.
"""

import sys
from pathlib import Path

from click.testing import CliRunner

from ecgbyte_cli.__main__ import ALIASES, COMMANDS, main

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 80  # columns, whatever the terminal has


def help_of(*command):
    """The help text of `ecgbyte`, or of one of its commands, as it is printed in 80 columns."""
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="ecgbyte", terminal_width=WIDTH)
    if result.exit_code:
        raise SystemExit(f"ecgbyte {' '.join(command)} --help: {result.output}{result.exception or ''}")
    return result.stdout.rstrip() + "\n"


def page():
    """The whole page, in Markdown."""
    parts = [
        "# Commands\n",
        "This page is made by `python docs/commands.py` from what `--help` prints: change the help texts, not\n"
        "the page. What the commands have in common: [what commands print](formats-on-disk.md#what-commands-print).\n",
        f"    ecgbyte [--work DIR] COMMAND …\n\n```text\n{help_of()}```\n",
    ]
    for name in COMMANDS:
        aliases = [f"`ecgbyte {alias}`" for alias, of in ALIASES.items() if of == name]
        also = f"Also: {', '.join(aliases)}.\n\n" if aliases else ""
        parts.append(f"## ecgbyte {name}\n\n{also}```text\n{help_of(name)}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            raise SystemExit(f"{PAGE} is stale: run `python docs/commands.py`")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        PAGE.write_text(page(), encoding="utf-8")
