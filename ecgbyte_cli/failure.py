"""The error that every part of the toolkit raises, and text made safe for a terminal."""


class Failure(Exception):  # noqa: N818 (the public name)
    """The work could not be done: one line that names the problem, the file and the remedy. Exit code 1."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


def printable(text: str, keep: str = "") -> str:
    """Replace everything in a text that a terminal would take for a command.

    Parameters
    ----------
    text : str
    keep : str
        Characters to leave as they are, such as a newline.

    Returns
    -------
    str
        With every kind of space as a space. Control characters, direction marks, bytes that are not text and all
        other unprintable characters become visible escapes such as ``\\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else " " if c.isspace() else _escape(c) for c in text)


def _escape(character: str) -> str:
    # Python holds a byte of a file name that is not UTF-8 as U+DC00 plus the byte
    code = ord(character)
    return (
        f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
    )
