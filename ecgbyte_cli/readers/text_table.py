"""Tables of words (CSV, TSV): patients, labels, questions."""

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.dialect import (
    COMMENT,
    NUMBER,
    SEP_LINE,
    SEPARATORS,
    THOUSANDS,
    Head,
    called,
    cells_of,
    read_head,
)
from ecgbyte_cli.readers.recording import Unusable, open_regular

# bytes that are the same character in the code pages of Western and of Central Europe: ä, é, ß, µ, °, …
_HIGH = [bytes([code]) for code in range(0x80, 0x100)]
UNAMBIGUOUS = bytes(
    b[0] for b in _HIGH if b.decode("cp1250", "replace") == b.decode("cp1252", "replace") != "\ufffd"
)


def names_of(path: str | os.PathLike, wanted: Sequence[Collection[str]]) -> list[str]:
    """The names of the columns of a table; see `read_rows`."""
    with _failing(path), open_regular(path) as file:
        lines = read_head(file).lines
        named, separator = _line_of_names(lines, wanted)
        return cells_of(lines[named], separator)


def read_rows(
    path: str | os.PathLike, wanted: Sequence[Collection[str]], numbers: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line of names of a table of text, then its rows, each with the number of its line.

    Parameters
    ----------
    path : str or Path
    wanted : sequence of collections of str
        The line of names is the first that holds all names of one of these. What stands above it (`sep=;`,
        comments, a title) is left out. It also shows the separator.
    numbers : bool
        Write decimal commas as points, where the separator is no comma.

    Raises
    ------
    Failure
        If the table cannot be read, or a row has more cells than there are names.
    """
    with _failing(path), open_regular(path) as file:
        head = read_head(file)
        encoding = _encoding_of_all(file, head)
        named, separator = _line_of_names(head.lines, wanted)
        file.seek(head.offset(named))
        text = io.TextIOWrapper(file, encoding, newline="")
        yield from _rows(text, separator, named, numbers and separator != ",")


@contextmanager
def _failing(path: str | os.PathLike) -> Iterator[None]:
    """Raise what goes wrong as a Failure that names the file."""
    try:
        yield
    except (OSError, Unusable) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise Failure(f"{path} cannot be read: {reason}") from error
    except _RowError as error:
        raise Failure(f"{path}, line {error.line}: {error.reason}") from error


class _RowError(Exception):
    def __init__(self, line: int, reason: str):
        super().__init__(line, reason)
        self.line, self.reason = line, reason


def _encoding_of_all(file: BinaryIO, head: Head) -> str:
    """The encoding of a whole file; its first lines may all be ASCII."""
    encoding = "utf-8" if head.encoding == "latin-1" else head.encoding
    decoder = codecs.getincrementaldecoder(encoding)()
    file.seek(head.mark)
    lines, bad, doubtful = 1, 0, b""
    for block in iter(lambda: file.read(2**20), b""):
        if not bad:
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                bad = lines + error.object[: error.start].count(b"\n")
        lines += block.count(b"\n")
        doubtful = doubtful or block.translate(None, bytes(range(128)) + UNAMBIGUOUS)
    if not bad and decoder.getstate()[0]:
        bad = lines
    if bad and (doubtful or encoding != "utf-8"):
        raise _RowError(bad, f"not {encoding.upper()} text: save the table as UTF-8 (in Excel: CSV UTF-8)")
    return "cp1252" if bad else encoding


def _line_of_names(lines: list[str], wanted: Sequence[Collection[str]]) -> tuple[int, str]:
    """The line of names, from 0, and the separator; if none is sure, the first line and what parts it most."""
    first = None
    forced = None
    for number, line in enumerate(lines):
        if match := SEP_LINE.fullmatch(line.rstrip("\r")):
            forced = forced or match[1]
        elif line.strip(SEPARATORS + " \r"):
            for separator in forced or SEPARATORS:
                names = set(cells_of(line, separator))
                if len(names) > 1 and any(names.issuperset(each) for each in wanted):
                    return number, separator
            if first is None and not COMMENT.match(line):
                first = number
    if first is None:
        return 0, forced or ","
    return first, forced or max(SEPARATORS, key=lambda mark: len(cells_of(lines[first], mark)))


def _rows(text: TextIO, separator: str, skipped: int, points: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows of an open table, the names first; what is behind the last name must be empty."""
    rows = csv.reader(text, delimiter=separator, strict=True)
    width = 0
    while True:
        line = skipped + rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise _RowError(
                line,
                f"not valid CSV ({error}): is a quote left open, or a cell longer than "
                f"{csv.field_size_limit()} characters?",
            ) from error
        if row is None:
            return
        if not width:
            row = [cell.strip() for cell in row]
            width = max((i for i, cell in enumerate(row, 1) if cell), default=0)
            twice = [name for name, times in Counter(filter(None, row)).items() if times > 1]
            if twice:
                raise _RowError(line, f"two columns are called {twice[0]}")
        elif any(row[width:]):
            raise _RowError(
                line, f"has more cells than the {width} names: quote cells that hold {called(separator)}"
            )
        elif points:
            row = [_with_point(cell) for cell in row]
        if any(row):
            yield line, row[:width]


def _with_point(cell: str) -> str:
    """A cell, with a point for the comma of a decimal number; what may be thousands stays."""
    bare = cell.strip()
    is_decimal = "," in bare and NUMBER[","].fullmatch(bare) and not THOUSANDS.fullmatch(bare)
    return bare.replace(",", ".") if is_decimal else cell
