"""Read tables of text (CSV, TSV): patients, labels, questions."""

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
    cells_of,
    read_head,
    separator_name,
)
from ecgbyte_cli.readers.recording import Unusable, open_regular

# bytes of the same character in the code pages of Western and Central Europe: ä, é, ß, µ, °, …
_HIGH = [bytes([code]) for code in range(0x80, 0x100)]
UNAMBIGUOUS = bytes(
    b[0] for b in _HIGH if b.decode("cp1250", "replace") == b.decode("cp1252", "replace") != "\ufffd"
)


def names_of(path: str | os.PathLike, wanted: Sequence[Collection[str]]) -> list[str]:
    """Return the names of the columns of a table; see `read_rows`."""
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
        The line of names is the first with all names of one of these; it also shows the separator. Lines above it
        (`sep=;`, comments, a title) are left out.
    numbers : bool
        Replace decimal commas by points, unless the separator is a comma.

    Raises
    ------
    Failure
        If the table cannot be read, or a row has more cells than names.
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
    """Turn errors into a Failure that names the file."""
    try:
        yield
    except (OSError, Unusable) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise Failure(f"{path} cannot be read: {reason}") from error
    except _RowError as error:
        raise Failure(f"{path}, line {error.line}: {error.reason}") from error


class _RowError(Exception):
    """A line that cannot be read, and the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line, self.reason = line, reason


def _encoding_of_all(file: BinaryIO, head: Head) -> str:
    """Return the encoding of a whole file; its first lines may be plain ASCII."""
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
    """Return the line of names, from 0, and the separator; by default the first line and its most frequent one."""
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
    """Yield the rows of an open table, names first; cells beyond the last name must be empty."""
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
                line,
                f"has more cells than the {width} names: quote cells that contain {separator_name(separator)}",
            )
        elif points:
            row = [_with_point(cell) for cell in row]
        if any(row):
            yield line, row[:width]


def _with_point(cell: str) -> str:
    """Return a cell with a decimal point for a decimal comma, unless the comma may separate thousands."""
    bare = cell.strip()
    is_decimal = "," in bare and NUMBER[","].fullmatch(bare) and not THOUSANDS.fullmatch(bare)
    return bare.replace(",", ".") if is_decimal else cell
