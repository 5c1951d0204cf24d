"""Write the command reference, docs/commands.md, from the --help of the commands.

    python docs/commands.py             # writes docs/commands.md
    python docs/commands.py --check     # exit code 1 if docs/commands.md is stale

Run it after any change to an option or a help text; tests/test_docs.py fails if the page is stale.
"""

import sys
from pathlib import Path

from click.testing import CliRunner

from ecgbyte_cli.__main__ import ALIASES, COMMANDS, main

PAGE = Path(__file__).with_name("commands.md")
COMPLETION = """## Shell completion

Add a line to the settings of your shell. Then Tab completes commands, options, their choices and file names.

| shell | file | line |
| --- | --- | --- |
| bash (4.4 or later) | `~/.bashrc` | `eval "$(_ECGBYTE_COMPLETE=bash_source ecgbyte)"` |
| zsh | `~/.zshrc`, after `compinit` | `eval "$(_ECGBYTE_COMPLETE=zsh_source ecgbyte)"` |
| fish | `~/.config/fish/completions/ecgbyte.fish` | `_ECGBYTE_COMPLETE=fish_source ecgbyte \\| source` |
"""
WIDTH = 80  # columns, whatever the terminal has


def help_of(*command: str) -> str:
    """Return the help text of `ecgbyte` or of a command, as printed in 80 columns."""
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="ecgbyte", terminal_width=WIDTH)
    if result.exit_code:
        raise SystemExit(f"ecgbyte {' '.join(command)} --help: {result.output}{result.exception or ''}")
    return result.stdout.rstrip() + "\n"


def page() -> str:
    """Return the page in Markdown."""
    parts = [
        "# Commands\n",
        "`python docs/commands.py` writes this page from the commands' `--help`: change the help texts, not the page.\n"
        "Output that all commands share: [what commands print](formats-on-disk.md#what-commands-print).\n",
        f"    ecgbyte [--work DIR] COMMAND …\n\n```text\n{help_of()}```\n",
        COMPLETION,
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
