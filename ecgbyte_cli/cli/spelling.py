"""Suggestions for misspelt names on the command line."""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import click

SHIPPED = "ptbxl"  # the included model
HUB_MODEL = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?", re.ASCII)  # OWNER/NAME[@REVISION]
LIKE_A_NAME = 0.8  # lowest similarity (difflib's ratio) at which a word counts as a misspelt model name


def nearest(word: str, names: Sequence[str], similarity: float = 0.6) -> str | None:
    """Return the most similar name, ignoring case and dashes; None if no name is similar."""
    bare = {_bare(name): name for name in names}
    found = difflib.get_close_matches(_bare(word), bare, n=1, cutoff=similarity)
    return bare[found[0]] if found else None


def _bare(word: str) -> str:
    return word.casefold().translate({ord(mark): None for mark in "-_. "})


def check_file(ctx: click.Context, word: str, commands: Sequence[str]) -> None:
    """Reject an argument that is not a file but resembles a command."""
    near = nearest(word, commands)
    if near and not glob.has_magic(word) and not glob.glob(glob.escape(word) + "*"):
        ctx.fail(f"{word}: no such folder or recording, and no such command. Did you mean {near!r}?")


class Model(click.Path):
    """The type of an option that names a model. Rejects a misspelt `ptbxl`.

    The value is a Path for a folder, and a str for OWNER/NAME or OWNER/NAME@REVISION if no such file exists, for a
    model on the Hugging Face Hub.

    Parameters
    ----------
    *names : str
        Additional names, such as `tiny`. If there are any, the value is always a str.
    """

    def __init__(self, *names: str):
        super().__init__(path_type=str if names else Path)
        self.names = [SHIPPED, *names]
        self.name = "text" if names else self.name

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        text = str(value)
        if "/" not in text and text not in self.names and not os.path.exists(text):
            if near := nearest(text, self.names, LIKE_A_NAME):
                self.fail(f"there is no folder {text!r}. Did you mean {near!r}?", param, ctx)
        if HUB_MODEL.fullmatch(text) and not os.path.exists(text):
            return text
        return super().convert(value, param, ctx)
