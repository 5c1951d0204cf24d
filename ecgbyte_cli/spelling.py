"""The nearest of some names, suggested where a command line has a slip."""

import difflib
import glob
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ecgbyte_cli.console import Toolkit

LIKE_A_NAME = 0.8  # the least similarity (difflib's ratio) with which a model's name counts as misspelt


def nearest(word: str, names: Sequence[str], similarity: float = 0.6) -> str | None:
    """Return the name that a word is most like, whatever its case and its dashes; None if it is like none."""
    bare = {_bare(name): name for name in names}
    found = difflib.get_close_matches(_bare(word), bare, n=1, cutoff=similarity)
    return bare[found[0]] if found else None


def _bare(word: str) -> str:
    return word.casefold().translate({ord(mark): None for mark in "-_. "})


def check_command(ctx: click.Context, word: str, group: "Toolkit") -> None:
    """Refuse a further argument that names no file and is nearly a command: a slip in a chain of commands."""
    near = nearest(word, group.names)
    if near and not glob.has_magic(word) and not glob.glob(glob.escape(word) + "*"):
        ctx.fail(f"There is no file {word!r}, and no such command. Did you mean {near!r}?")


def check_model(*others: str) -> Callable[[click.Context, click.Parameter, object], object]:
    """Make the callback of an option that names a model: a misspelt `ptbxl` is no folder and no model of the hub.

    Parameters
    ----------
    *others : str
        Further names that are no folders, such as `tiny`.
    """

    def check(ctx: click.Context, param: click.Parameter, value: object) -> object:
        text = str(value)
        if value is None or "/" in text or os.path.exists(text):
            return value
        from ecgbyte_cli.model.folder import SHIPPED

        names = [SHIPPED.name, *others]
        near = nearest(text, names, LIKE_A_NAME) if text not in names else None
        if near:
            raise click.BadParameter(f"there is no folder {text!r}. Did you mean {near!r}?", ctx, param)
        return value

    return check
