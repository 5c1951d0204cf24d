"""Detect the dialect of a CSV or TSV table: encoding, separator, decimal mark, and the lines of names and numbers.

The first lines of the file decide. A table that can be read in two ways is refused, and the message says what to
change. `text_table` uses this for tables of text, `delimited` for recordings.
"""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import BinaryIO

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import STANDARD, Unusable, lead_name, millivolts

BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
SEPARATORS = ",;\t|"
COMMENT = re.compile(r"\s*(?:#|%|//)+")
SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a first line for Excel
MISSING = frozenset(
    "- -- NaN nan NAN NA na N/A n/a #N/A NULL Null null None none".split() + [""],
)
SIGN = r"[+\-\N{MINUS SIGN}]?"
NUMBER = {  # without backtracking over digits, which would take quadratic time
    mark: re.compile(rf"{SIGN}(?:[0-9]++(?:[{mark}][0-9]*+)?|[{mark}][0-9]++)(?:[eE][+-]?[0-9]++)?")
    for mark in ".,"
}
THOUSANDS = re.compile(rf"{SIGN}[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+")  # or a number with decimal commas
# the setting of the unit, in the languages of the known exports
UNIT = re.compile(r"unit|einheit|unid|eenheid|enhe[td]|jednos?t|yksik|単位|单位|單位")
LONGEST_SETTING = 512
SAMPLE = 8  # rows at the end of the first lines, which show the columns of numbers
PROOF = 5  # rows below a line of names that should be numbers

Lines = list[tuple[int, str]]  # lines that are not empty, each with its number from 0


@dataclass(frozen=True)
class Head:
    """The first lines of a text file; each may end in a carriage return."""

    encoding: str
    lines: list[str]
    mark: int  # bytes of the byte order mark
    end: str  # the line end

    def offset(self, line: int) -> int:
        """Return the byte of the file at which a line begins."""
        before = self.end.join(self.lines[:line]) + (self.end if line else "")
        return self.mark + len(before.encode(self.encoding))


@dataclass(frozen=True)
class Layout:
    """The place and the notation of the numbers in a table.

    Attributes
    ----------
    separator, decimal : str
    names : list of str
        One per column, "" for a column without a name; empty if no line names the columns.
    units : list of str or None
        The cells of the row of units below the names.
    numeric : list of bool
        Whether each column holds numbers in the first lines.
    first : int
        The line of the first row of numbers, from 0.
    named : int
        The line of names, -1 if there is none.
    above : list of str
        The lines above, such as the settings of the device; see `settings`.
    """

    separator: str
    decimal: str
    names: list[str]
    units: list[str] | None
    numeric: list[bool]
    first: int
    named: int
    above: list[str]


# Encodings and first lines


def read_head(file: BinaryIO) -> Head:
    """Read the first lines of an open file, at most `limits.TABLE_LINE_BYTES`.

    Raises
    ------
    Unusable
        If it is not text, or its first line is longer.
    """
    file.seek(0)
    data = file.read(limits.TABLE_LINE_BYTES)
    whole = len(data) < limits.TABLE_LINE_BYTES
    encoding, mark = _encoding_of(data)
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data[mark:], whole)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise Unusable(f"not valid {encoding.upper()} text") from error
        encoding, text = "latin-1", data[mark:].decode("latin-1")
    if "\0" in text:
        raise Unusable("not a text table: it holds NUL bytes")
    end = "\n" if "\n" in text else "\r"
    lines = text.split(end)
    if not whole and len(lines) < 2:
        raise Unusable(f"too large: a first line of {limits.TABLE_LINE_BYTES} bytes and more")
    return Head(encoding, lines if whole else lines[:-1], mark, end)


def _encoding_of(data: bytes) -> tuple[str, int]:
    """Return the encoding of the first bytes, and the length of the byte order mark."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    if data.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise Unusable("not a text table: it is a spreadsheet or an archive; export it as CSV")
    for high, encoding in ((1, "utf-16-le"), (0, "utf-16-be")) if b"\0" in data else ():
        zeros, others = data[high::2].count(0), data[1 - high :: 2].count(0)
        if zeros > 4 * others and 4 * zeros > len(data):  # at least half of the characters are Latin
            return encoding, 0
    return "utf-8", 0


def cells_of(line: str, separator: str) -> list[str]:
    """Return the cells of a line, without quotes and surrounding blanks."""
    row = next(csv.reader([line.replace("\r", " ").replace("\n", " ")], delimiter=separator), [])
    return [cell.strip() for cell in row]


def settings(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Return the name and the value of each line such as `Sample Rate,512 hertz` or `# fs: 500`."""
    pairs = []
    for line in lines:
        comment = COMMENT.match(line)
        bare = line[comment.end() if comment else 0 :][:LONGEST_SETTING]
        name, *value = re.split("[,;:=\t]", bare, maxsplit=1)
        if value:
            pairs.append((name.strip(' "'), value[0].strip(' ",;\t\r')))
    return pairs


# Names and numbers


def separator_name(separator: str) -> str:
    """Return the name of a separator for messages."""
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(separator, repr(separator))


def is_number(cell: str, decimal: str) -> bool:
    """Return whether a cell is a number with the decimal mark."""
    return NUMBER[decimal].fullmatch(cell) is not None


def layout_of(head: Head) -> Layout:
    """Find the names and the numbers in the first lines of a recording.

    Raises
    ------
    Unusable
        If there are no numbers, or two ways to read them.
    """
    lines = [(i, line) for i, line in enumerate(head.lines) if line.strip(SEPARATORS + " \r")]
    forced = None
    if lines and (match := SEP_LINE.fullmatch(lines[0][1].rstrip("\r"))):
        forced, lines = match[1], lines[1:]
    for _, line in lines[:1]:
        columns = max(line.count(mark) for mark in forced or SEPARATORS)
        if columns > limits.LEADS:
            raise Unusable(f"too large: {columns} columns")
    # fewer in a short file, so that they include no settings above the table
    count = min(SAMPLE, max(len(lines) // 4, 1))
    sample = [line for _, line in lines[-count:] if not COMMENT.match(line)]
    if not sample:
        raise Unusable("no samples")
    alone = _alone(lines, sample)
    if alone and not alone.names and _is_device_export(alone.above):
        return alone
    used = [mark for mark in forced or SEPARATORS if any(mark in line for line in sample)]
    readings = [
        each for mark in used or " " if (each := _reading(lines, sample, mark)) and len(each.numeric) > 1
    ]
    readings += [alone] if alone else []
    named = [each for each in readings if each.names]
    bare = [each for each in readings if all(map(COMMENT.match, each.above))]  # for `--lead-names`
    if not named and not bare:
        raise _no_names(readings, lines)
    best, *others = sorted(named or bare, key=_rank, reverse=True)
    if others and _rank(others[0]) == _rank(best):
        both = f"{separator_name(best.separator)} or {separator_name(others[0].separator)}"
        raise Unusable(
            f"separator unclear: line {best.first + 1} can be read with {both} between the cells; use one of them"
        )
    _check_decimal_commas(best, lines)
    return best


def _rank(layout: Layout) -> tuple[bool, float, int]:
    """Rank several columns over a single one, then by the share of columns of numbers."""
    width = len(layout.numeric)
    return width > 1, sum(layout.numeric) / width, width


def _alone(lines: Lines, sample: list[str]) -> Layout | None:
    """Return the layout of a single column, or None; a setting such as `Unit,mV` is not its name."""
    unused = next(mark for mark in "\t;|\x1f" if not any(mark in line for line in sample))
    layout = _reading(lines, sample, unused)
    if layout and layout.names and UNIT.search(layout.names[0].casefold()):
        above = [line for number, line in lines if number < layout.first]
        layout = replace(layout, names=[], units=None, named=-1, above=above)
    return layout


def _is_device_export(above: list[str]) -> bool:
    """Return whether the lines above a column of numbers are a device's settings, with rate and unit."""
    stated = settings(above)
    return any(re.search(r"\d\s*k?h(z|ertz)\b", value, re.IGNORECASE) for _, value in stated) and any(
        millivolts(value) and UNIT.search(name.casefold()) for name, value in stated
    )


def _no_names(readings: list[Layout], lines: Lines) -> Unusable:
    """Return the reason why there is no line of names."""
    if not readings:
        return Unusable(
            "no table of numbers: name the leads in one line, separated by commas, semicolons or tabs, and put a row "
            "of numbers for each sample below"
        )
    layout = readings[0]
    width, mark = len(layout.numeric), separator_name(layout.separator)
    for number, line in reversed([each for each in lines if each[0] < layout.first]):
        names = len(cells_of(line, layout.separator))
        if layout.separator == "," and width == 2 * names:
            return Unusable(
                f"separator unclear: line {layout.first + 1} has {width} cells and line {number + 1} {names} names; "
                "decimal commas and commas between the cells cannot be told apart, so use semicolons or decimal points"
            )
        return Unusable(
            f"rows uneven: line {layout.first + 1} has {width} cells with {mark} between them, and line {number + 1} "
            f"{names} names"
        )
    return Unusable(f"leads unknown: no line names the {width} columns of numbers; add one")


def _check_decimal_commas(layout: Layout, lines: Lines) -> None:
    """Reject a layout whose decimal commas could separate thousands."""
    if layout.decimal == ",":
        cells = [
            (number, cell)
            for number, line in lines
            if number >= layout.first
            for cell in cells_of(line, layout.separator)
            if "," in cell and (is_number(cell, ",") or THOUSANDS.fullmatch(cell))
        ]
        if all(THOUSANDS.fullmatch(cell) for _, cell in cells):
            number, cell = cells[0]
            raise Unusable(
                f"decimal mark unclear: {cell} in line {number + 1} can be a decimal number or thousands; write it "
                "with a decimal point"
            )


def _reading(lines: Lines, sample: list[str], separator: str) -> Layout | None:
    """Return the layout with a separator, or None if there are no numbers."""
    rows = [cells_of(line, separator) for line in sample]
    width = Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == width]
    best: list[bool] = []
    decimal = "."
    for mark in ".," if any("," in cell for row in rows for cell in row) else ".":
        counts = [sum(is_number(row[i], mark) for row in rows) for i in range(width)]
        empty = [sum(row[i] in MISSING for row in rows) for i in range(width)]
        numeric = [
            count > 0 and 2 * count + none >= len(rows) for count, none in zip(counts, empty, strict=True)
        ]
        if sum(numeric) == sum(best) > 0 and numeric != best:
            raise Unusable(
                f"decimal mark unclear: line {lines[-1][0] + 1} has points and commas; use only one of them"
            )
        if sum(numeric) > sum(best):
            best, decimal = numeric, mark
    if not best:
        return None
    return _named(lines, separator, decimal, best)


def _named(lines: Lines, separator: str, decimal: str, numeric: list[bool]) -> Layout | None:
    """Return the layout with the line of names that has the most rows of numbers below it, if there is one."""
    head = lines[: limits.TABLE_HEAD_LINES]

    @cache
    def parse(place: int) -> _Line:
        return _Line(*head[place], separator, decimal, numeric)

    header: tuple[_Line, list[str] | None, _Line] | None = None  # names, units, first row of numbers
    most = 0
    for place in range(len(head)):
        line = parse(place)
        if not line.could_name:
            continue
        below = [parse(i) for i in range(place + 1, min(place + PROOF + 3, len(head)))]
        below = [each for each in below if not each.comment]
        units: list[str] | None = None
        if below and below[0].is_words and (below[0].has_units or line.leads > below[0].leads):
            units, below = below[0].cells, below[1:]
        rows = below[:PROOF]
        proof = sum(row.complete for row in rows)
        if rows and rows[0].numbers and proof > most and 2 * proof >= len(rows):
            header, most = (line, units, rows[0]), proof
            if proof >= PROOF - 1:  # a row may hold a cell that is not a number
                break
    if header:
        line, units, first = header
        above = [text for at, text in lines if at < line.number]
        names = (line.cells + [""] * len(numeric))[: len(numeric)]
        return Layout(separator, decimal, names, units, numeric, first.number, line.number, above)
    bare = next((line for line in map(parse, range(len(head))) if line.complete), None)
    if bare is None:
        return None
    above = [text for at, text in lines if at < bare.number]
    return Layout(separator, decimal, [], None, numeric, bare.number, -1, above)


class _Line:
    """A line that may be names, units, or a row of numbers."""

    def __init__(self, number: int, line: str, separator: str, decimal: str, numeric: list[bool]) -> None:
        self.number = number
        match = COMMENT.match(line)
        self.comment = match is not None
        bare = line[match.end() :] if match else line
        self.cells = cells = [cell.strip(" '\"") for cell in cells_of(bare.strip(" "), separator)]
        masked = [cell for cell, is_numeric in zip(cells, numeric, strict=False) if is_numeric]
        numbers = sum(is_number(cell, decimal) for cell in masked)
        self.numbers = not match and 2 * numbers >= sum(numeric)
        others = [cell for cell in masked if cell not in MISSING] if numbers < len(masked) else masked
        self.complete = not match and numbers == len(others) > 0
        width = len(cells)
        while len(cells) > 1 and not cells[-1]:
            cells.pop()
        fits = width == len(numeric) or len(cells) <= len(numeric) and not any(numeric[len(cells) :])
        self.is_words = not numbers and any(c.isalpha() for cell in cells for c in cell)
        self.could_name = fits and self.is_words

    @property
    def has_units(self) -> bool:
        return any(millivolts(without_brackets(cell)) for cell in self.cells)

    @property
    def leads(self) -> int:
        return sum(lead_name(cell) in STANDARD.values() for cell in self.cells)


def without_brackets(cell: str) -> str:
    """Return a cell such as "[mV]" without its brackets."""
    return re.sub(r"^[\[({](.*)[])}]$", r"\1", cell)
