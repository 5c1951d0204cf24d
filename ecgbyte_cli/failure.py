"""The failure that every part of the toolkit raises, and text made safe for a terminal."""

import click


class Failure(click.ClickException):  # noqa: N818 (Click's word for it is an exception, ours a failure)
    """The work could not be done: one line saying what, which file, and what to do. Exit code 1."""

    def show(self, file=None):
        click.echo(f"ecgbyte: {printable(self.format_message())}", file=file, err=file is None)


def printable(text: str, keep: str = "") -> str:
    """A text as a file or a model has it, without what a terminal would take for a command.

    Parameters
    ----------
    text : str
    keep : str
        Characters to leave as they are, such as a newline.

    Returns
    -------
    str
        Each kind of space as a space; control characters, marks of direction, bytes that are no text and
        whatever else has no picture as an escape that can be seen, such as ``\\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else " " if c.isspace() else _seen(c) for c in text)


def _seen(character):
    # a byte of a file name that is no UTF-8 stands in Python's text as U+DC00 and the byte
    code = ord(character)
    return (
        f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
    )
