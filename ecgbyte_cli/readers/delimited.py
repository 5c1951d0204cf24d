"""CSV and TSV: a column per lead under its name, a row per sample."""

import csv
import io
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, NamedTuple

import numpy as np

from ecgbyte_cli.readers import limits, timing
from ecgbyte_cli.readers.dialect import (
    COMMENT,
    MISSING,
    NUMBER,
    SEPARATORS,
    UNIT,
    Head,
    Layout,
    cells_of,
    is_number,
    layout_of,
    read_head,
    settings,
    without_brackets,
)
from ecgbyte_cli.readers.recording import (
    STANDARD,
    Recording,
    Unusable,
    check_promise,
    lead_name,
    millivolts,
    need_fs,
    open_regular,
    record_name,
)

BRACKETS = re.compile(r"(.+)[\[({]([^\[\](){}]*)[\])}]")
# words in brackets after a lead's name that are not units
NO_UNIT = set("einthoven goldberger wilson limb augmented precordial chest lead ecg ekg".split())
FIRST_ROWS = 20  # rows that show which columns hold numbers

# settings above the table, in the languages of the known exports
RATE = re.compile(r"sampl|abtast|messrate|chantillon|muestr|campion|amostr|bemonster|vzork|próbk|^fs$|^hz$")
FREQUENCY = re.compile(r"rate|fr[eé]q|fre[kc]|frekv|hz|fs|tax|tasso|vitesse")
HERTZ = re.compile(
    r"([0-9]+(?:[.,][0-9]+)?)\s*((k?)(?:hz|hertz|hercios|hertzios)|sps|samples ?(?:/|per) ?s(?:ec(?:ond)?)?)?\W*",
    re.IGNORECASE,
)
LEAD = re.compile(r"lead|ableitung|d[eé]riva|afleiding|avledning|odprowadz|channel|kanal|canal")


class Column(NamedTuple):
    """A column that is read: a lead or the times."""

    place: int
    name: str
    scale: float  # mV of its unit
    text: bool = False  # times such as 0:00.004


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read a CSV or TSV file.

    Parameters
    ----------
    path : str
    fs : float or None
        Sampling rate, Hz, if neither a column of times nor a line above the names states it.
    lead_names : list of str or None
        If no line names the columns.
    units : str or None
        Of columns that state none; mV by default.

    Returns
    -------
    Recording
        NaN for empty cells and for samples missing from the column of times.

    Raises
    ------
    Unusable
        If a cell is not a number, or the table or its times can be read in two ways.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.TABLE_BYTES:
            raise Unusable(f"too large: {size} bytes")
        if not size:
            raise Unusable("no samples")
        head = read_head(file)
        layout = layout_of(head)
        rate, unit, lead = _stated(layout)
        if not layout.names:
            layout = _named_otherwise(head, layout, lead, lead_names)
        leads, times = _columns(head, layout, unit or units)
        if times is None:
            fs = need_fs(rate or fs)
        if not leads:
            raise Unusable("no leads in volts")
        rows, blank = _rows_of(file, size, head)
        if rows * len(layout.names) > limits.TABLE_CELLS:
            raise Unusable(f"too large: {rows} lines of {len(layout.names)} columns")
        if times and times.text and rows > limits.TABLE_CLOCKS:
            raise Unusable(f"too large: {rows} times, which are not plain numbers")
        columns = [*leads, *([times] if times else [])]
        data = _numbers(file, head, layout, columns, rows)
        data = [column[: len(column) - blank] for column in data]
        if not len(data[0]):
            raise Unusable("no samples")
        places = None
        if times:
            fs, places = _placed(file, head, layout, times, data.pop(), rate or fs)
    samples = len(data[0]) if places is None else int(places[-1]) + 1
    check_promise(len(leads), samples)
    signal = np.empty((len(leads), samples), np.float32)
    if places is not None:
        signal[:] = np.nan
    for row, lead_column, values in zip(signal, leads, data, strict=True):
        row[slice(None) if places is None else places] = values * lead_column.scale
    return Recording(signal, need_fs(fs), [column.name for column in leads], record_name(path), path)


def is_list(path: str) -> bool:
    """Return whether a table is a list, such as records with labels, and not a recording.

    A recording has a column of a lead, or columns of numbers alone beside its times. Of any other table, and of a
    file that cannot be read, the reader says what is missing.
    """
    try:
        with open_regular(path) as file:
            head = read_head(file)
        layout = layout_of(head)
        exported = any(stated is not None for stated in _stated(layout))
    except (Unusable, OSError):
        return False
    above = [cell for line in layout.above for cell in cells_of(line, layout.separator)]
    names = [_unit(without_brackets(name), None)[0] for name in [*layout.names, *above]]
    if exported or not layout.names or any(lead_name(name) in STANDARD.values() for name in names):
        return False
    rows = [cells_of(line, layout.separator) for line in head.lines[layout.first : layout.first + FIRST_ROWS]]
    words = 0
    for place, name in enumerate(layout.names):
        cells = [row[place] for row in rows if place < len(row) and row[place] not in MISSING]
        numbers = sum(is_number(cell, layout.decimal) for cell in cells)
        if numbers and (timing.is_time(name) or timing.is_count(name)):
            return False
        words += bool(cells) and not numbers
    return words > 0


# The head of the table


def _stated(layout: Layout) -> tuple[float | None, str | None, str | None]:
    """Return the rate, the unit and the lead in the lines above the table; None for each that is missing."""
    rate = unit = lead = None
    export = not layout.names  # of a device, in any language
    for name, value in settings(layout.above):
        key = name.casefold()
        hertz = HERTZ.fullmatch(value)
        if hertz and RATE.search(key) and (hertz[2] or FREQUENCY.search(key)):
            rate = _hertz(hertz[1], 1000 if hertz[3] else 1)
        elif hertz and export and hertz[2] and rate is None:
            rate = _hertz(hertz[1], 1)
        if millivolts(value) and UNIT.search(key):
            unit = value
        repeated = value.casefold().startswith(key + " ")  # "Ableitung,Ableitung I"
        bare = value[len(name) :].strip() if repeated else value
        if (repeated or LEAD.search(key)) and lead_name(bare) in STANDARD.values():
            lead = lead_name(bare)
    return rate, unit, lead


def _hertz(text: str, factor: int) -> float:
    """Return a rate in Hz. "511,562" is not 511562 and "1,000" is not 1: no ECG has such a rate."""
    marks = [".", ""] if re.search(r",[0-9]{3}$", text) else ["."]
    readings = [factor * float(text.replace(",", mark)) for mark in marks]
    possible = [rate for rate in readings if 25 <= rate <= 100_000]
    if len(possible) > 1:
        raise Unusable(
            f"sampling rate unclear: {text} can be read in two ways; write it with a decimal point"
        )
    return (possible or readings)[0]


def _named_otherwise(head: Head, layout: Layout, lead: str | None, lead_names: list[str] | None) -> Layout:
    """Return the layout of a table without names, with the lead of the settings or the `lead_names`."""
    width = len(layout.numeric)
    names = [lead] if lead and width == 1 else lead_names or []
    if len(names) != width:
        raise Unusable(
            f"leads unknown: no line names the {width} columns of numbers; add one, or name them with --lead-names"
        )
    # data frames without names are written with column numbers
    counted = [[str(i + start) for i in range(width)] for start in (0, 1)]
    is_counted = width > 1 and cells_of(head.lines[layout.first], layout.separator) in counted
    return replace(layout, names=names, first=layout.first + is_counted)


def _columns(head: Head, layout: Layout, units: str | None) -> tuple[list[Column], Column | None]:
    """Return the columns of leads, and the column of times or of sample numbers if there is one."""
    rows = [cells_of(line, layout.separator) for line in head.lines[layout.first : layout.first + FIRST_ROWS]]
    names = [without_brackets(name) for name in layout.names]
    below = None if layout.units is None else [*map(without_brackets, layout.units), *[""] * len(names)]
    standard: list[Column] = []
    others: list[tuple[Column, bool]] = []
    times: list[Column] = []
    counts: list[Column] = []
    for place, name in enumerate(names):
        cells = [row[place].strip("'") for row in rows if place < len(row)]
        numbers = sum(is_number(cell, layout.decimal) for cell in cells)
        pure = (
            numbers == len(cells) > 0
            or numbers > 0
            and all(is_number(cell, layout.decimal) or cell in MISSING for cell in cells)
        )
        if timing.is_time(name) or (name and timing.is_count(name)) or (not name and _counts(cells, place)):
            (times if timing.is_time(name) else counts).append(Column(place, name, 1.0, not numbers))
            continue
        bare, scale = _unit(name, units)
        if below is not None:
            bare, scale = name, millivolts(below[place])
        if not name or scale is None:
            continue
        if lead_name(bare) in STANDARD.values():
            standard.append(Column(place, bare, scale))
        elif numbers:
            others.append((Column(place, bare, scale), pure))
    twice = [
        a.name
        for a in standard
        for b in standard
        if a.place < b.place and lead_name(a.name) == lead_name(b.name)
    ]
    if twice:
        raise Unusable(f"leads unclear: two columns are lead {twice[0]}; leave one out")
    # a column of both numbers and words is a note if there are other leads
    leads = standard + [column for column, pure in others if pure or not standard]
    return sorted(leads), next(iter([*times, *counts]), None)


def _counts(cells: list[str], place: int) -> bool:
    """Return whether a column without a name holds row numbers, as in files written from data frames."""
    return place == 0 and len(cells) > 1 and all(map(str.isdecimal, cells)) and int(cells[1]) > int(cells[0])


def _unit(name: str, units: str | None) -> tuple[str, float | None]:
    """Return a column's name without its unit, and the unit in mV, None if it is not one of voltage.

    "I (uV)", "I [µV]", "I/mV", "I_uV" and "I uV" state a unit; the unit of other names is `units`.
    """
    name = name[: limits.NAME]
    inside = BRACKETS.fullmatch(name)
    if inside and inside[2].strip().lower() not in NO_UNIT:
        return inside[1].strip(" _"), millivolts(inside[2])
    bare, slash, unit = name.rpartition("/")
    if slash:
        return bare.strip(), millivolts(unit)
    bare, _, unit = re.sub(r"[\s_,.:;-]+", " ", name).rpartition(" ")
    # "ECG V" is a lead, not a unit
    if millivolts(unit) and (unit.lower() != "v" or lead_name(bare) in STANDARD.values()):
        return bare, millivolts(unit)
    return name, millivolts(units or "mV")


# The numbers


def _rows_of(file: BinaryIO, size: int, head: Head) -> tuple[int, int]:
    """Return the number of lines, and the number of lines at the end that hold only separators."""
    file.seek(0)
    mark = head.end.encode()
    rows = sum(block.count(mark) for block in iter(lambda: file.read(2**20), b""))
    file.seek(max(size - limits.TABLE_LINE_BYTES, 0) // 2 * 2)
    tail = file.read().decode(head.encoding, "replace").rstrip("\r\n \0")
    blank = 0
    for line in reversed(tail.split(head.end)):
        if line.strip(SEPARATORS + '\r "'):
            break
        blank += bool(line.strip("\r "))
    return rows, blank


def _numbers(file: BinaryIO, head: Head, layout: Layout, columns: list[Column], rows: int) -> list:
    """Return the values of columns, float64 or texts; row by row if a cell is not a plain number."""
    import pyarrow
    import pyarrow.csv

    file.seek(head.offset(layout.first))
    kinds = {str(c.place): pyarrow.string() if c.text else pyarrow.float64() for c in columns}
    reading = pyarrow.csv.ReadOptions(
        use_threads=False,  # with threads, Python sometimes aborts when it exits soon after
        column_names=[str(i) for i in range(len(layout.names))],
        encoding="utf8" if head.encoding in ("utf-8", "latin-1") else head.encoding,
    )
    options = pyarrow.csv.ConvertOptions(
        column_types=kinds,
        include_columns=list(kinds),
        null_values=sorted(MISSING),
        decimal_point=layout.decimal,
    )
    lines = pyarrow.csv.ParseOptions(delimiter=layout.separator)
    try:
        table = pyarrow.csv.read_csv(file, reading, lines, options)
    except pyarrow.ArrowInvalid as error:
        if rows * (len(columns) + 2) > limits.TABLE_CELLS_ONE_BY_ONE:
            raise Unusable(f"not a plain table of numbers: {' '.join(str(error).split())[:200]}") from error
        return _one_by_one(file, head, layout, columns)
    return [
        data.to_pylist() if column.text else data.to_numpy()
        for column, data in zip(columns, table.columns, strict=True)
    ]


def _one_by_one(file: BinaryIO, head: Head, layout: Layout, columns: list[Column]) -> list:
    """Return the values of columns; an error names the first cell that is not a number.

    Unlike pyarrow, this accepts lines of spaces, comments, trailing separators in some rows, and the Unicode minus
    sign.
    """
    width = len(layout.names)
    values: list = [[] if column.text else array("d") for column in columns]
    for line, row in _rows(file, head, layout):
        while len(row) > width and not row[-1].strip():
            row.pop()
        if len(row) != width:
            expected = (
                f"line {layout.named + 1} names {width}"
                if layout.named >= 0
                else f"there are {width} columns"
            )
            raise Unusable(
                f"rows uneven: line {line} has {len(row)} cells, but {expected}; is the file whole?"
            )
        for column, store in zip(columns, values, strict=True):
            cell = row[column.place].strip()
            if column.text:
                store.append(cell)
            elif NUMBER[layout.decimal].fullmatch(cell):
                store.append(float(cell.replace(",", ".").replace("\N{MINUS SIGN}", "-")))
            elif cell in MISSING:
                store.append(np.nan)
            else:
                name = column.name or str(column.place + 1)
                raise Unusable(f"not a number: {cell[:80]!r} in line {line}, column {name}")
    return [store if column.text else np.array(store) for column, store in zip(columns, values, strict=True)]


def _rows(file: BinaryIO, head: Head, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row of numbers."""
    file.seek(head.offset(layout.first))
    text = io.TextIOWrapper(file, head.encoding, "replace", newline="")
    try:
        rows = csv.reader(text, delimiter=layout.separator)
        for row in rows:
            if row and not (len(row) == 1 and (row[0].isspace() or COMMENT.match(row[0]))):
                yield layout.first + rows.line_num, row
    finally:
        text.detach()


# The times


def _placed(
    file: BinaryIO, head: Head, layout: Layout, column: Column, values: list | np.ndarray, fs: float | None
) -> tuple[float, np.ndarray | None]:
    """Return the sampling rate and the place of each row, None if no sample is missing."""
    if len(values) == 1:
        return need_fs(fs), None
    try:
        if column.text:
            times, resolution = timing.seconds_of_clocks([cell and cell.strip("'\" ") for cell in values])
            unit: float | None = 1.0
        else:
            lines = head.lines[layout.first : layout.first + FIRST_ROWS]
            rows = [cells_of(line, layout.separator) for line in lines]
            written = [row[column.place] for row in rows if column.place < len(row)]
            numbers = [cell for cell in written if is_number(cell, layout.decimal)]
            resolution = timing.resolution_of(numbers, layout.decimal)
            below = layout.units or []
            unit = timing.unit_of(column.name, below[column.place] if column.place < len(below) else "")
            times = np.asarray(values)
        rate, places = timing.grid(times, resolution, unit, fs, not timing.is_time(column.name))
    except timing.TimeError as error:
        line = next((line for i, (line, _) in enumerate(_rows(file, head, layout)) if i == error.row), 0)
        raise Unusable(f"times unclear: line {line}, column {column.name}: {error.reason}") from error
    return rate, None if int(places[-1]) == len(places) - 1 else places
