"""The table of measurements: a row for each recording and segment, made in parts and put together."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.readers import Recording
from ecgbyte_cli.signal.measure import measure
from ecgbyte_cli.signal.measurement import VALUES, lead_columns
from ecgbyte_cli.signal.preprocess import LEADS
from ecgbyte_cli.storage.files import atomic_write, table_writer
from ecgbyte_cli.storage.partial_results import PartialResults

PRELOAD = ("ecgbyte_cli.signal.measure_table", "scipy.signal")  # for processes that measure
Row = dict[str, str | int | float | None]
FORMATS = (".csv", ".parquet", ".jsonl")
MOST_OTHERS = 16  # leads that are no standard leads, and have columns
TEXTS, COUNTS = ("record", "path", "flags", "quality"), ("segment", "beats")


def rows_of(path: str, told: dict, seconds: float) -> list[Row]:
    """Read a recording and measure each of its segments.

    Parameters
    ----------
    path : str
    told : dict
        Arguments of `readers.read_recording` other than the path.
    seconds : float
        Length of a segment. What is left at the end is a segment if it is half as long at least.

    Returns
    -------
    list of dict
        Column to value; the columns of leads that were not measured are missing.

    Raises
    ------
    Unusable
        If it cannot be read.
    """
    recording = readers.read_recording(path, **told)
    rows = []
    for number, (start, part) in enumerate(_segments(recording, seconds)):
        row: Row = {"record": recording.name, "path": path, "segment": number, "start": start}
        rows.append(row | measure(part).values())
    return rows


def _segments(recording: Recording, seconds: float) -> Iterator[tuple[float, Recording]]:
    """The segments of a recording and where they start, in s: one at least."""
    samples = recording.signal.shape[1]
    size = max(1, round(seconds * recording.fs))
    for number in range(max(1, (samples + size // 2) // size)):
        part = recording.signal[:, number * size : (number + 1) * size]
        yield number * size / recording.fs, replace(recording, signal=part)


def make_part(parts: PartialResults, number: int, paths: list[str], asked: dict) -> int:
    """Measure some recordings and write their part: its rows, and the recordings that were skipped.

    Returns
    -------
    int
        How many recordings were done.
    """
    skipped: list[tuple[str, str]] = []
    with parts.new(number) as write:
        for path in paths:
            try:
                rows = rows_of(path, asked["reading"], asked["segment"])
            except Failure as error:
                if caused_by_interrupt(error):  # not the recording's fault
                    raise KeyboardInterrupt from None
                skipped.append((path, error.message))
                continue
            write(packed(rows))
        write(packed(skipped))
    return len(paths)


def packed(value: object) -> np.ndarray:
    """Return a JSON value as bytes, for a part."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpacked(parts: PartialResults, number: int, which: slice) -> Iterator:
    """Yield JSON values of a part."""
    for array in parts.read(number, which):
        yield json.loads(array.tobytes())


class Table:
    """Parts that are all there, put together.

    Parameters
    ----------
    parts : Parts
    count : int
        How many parts there are.
    skipped : list of tuple
        (path, reason) of what was left out before.

    Attributes
    ----------
    records : int
        How many recordings were measured.
    skipped : list of tuple
        (path, reason) of those that were not.
    columns : list of str
    left_out : set of str
        Leads without columns, as there are too many.
    """

    def __init__(self, parts: PartialResults, count: int, skipped: list[tuple[str, str]]):
        self.parts, self.count, self.records = parts, count, 0
        self.skipped = list(skipped)
        standard = ["record", "path", "segment", "start", *VALUES, *lead_columns(LEADS)]
        others: Counter[str] = Counter()
        for rows in self._recordings():
            self.records += 1
            others.update(
                {column for row in rows for column in row} - {*standard, "beats", "flags", "quality"}
            )
        for number in range(count):
            for listed in unpacked(parts, number, slice(-1, None)):
                self.skipped += [(path, reason) for path, reason in listed]
        leads = sorted({column[: -len("_r_mv")] for column in others if column.endswith("_r_mv")})
        self.left_out = set(leads[MOST_OTHERS:])
        self.columns = [*standard, *lead_columns(leads[:MOST_OTHERS]), "beats", "flags", "quality"]

    def _recordings(self) -> Iterator[list[Row]]:
        for number in range(self.count):
            yield from unpacked(self.parts, number, slice(-1))

    def write(self, out: Path) -> None:
        """Write the table as CSV, Parquet or JSON Lines, by the file's ending: whole or not at all."""
        with _writer(out, self.columns) as write:
            for rows in self._recordings():
                write(rows)


@contextmanager
def _writer(out: Path, columns: list[str]) -> Iterator[Callable[[list[Row]], object]]:
    """Yield a function that writes the rows of a recording."""
    if out.suffix.lower() == ".parquet":
        kinds = {name: str if name in TEXTS else int if name in COUNTS else float for name in columns}
        with table_writer(out, kinds) as write:
            held: list[Row] = []

            def add(rows: list[Row]) -> None:
                held.extend(rows)
                if len(held) >= 4096:
                    flush()

            def flush() -> None:
                write([[row.get(name) for row in held] for name in columns])
                held.clear()

            yield add
            if held:
                flush()
        return
    with (
        atomic_write(out) as beside,
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        if out.suffix.lower() == ".jsonl":
            yield lambda rows: file.writelines(
                json.dumps({name: row.get(name) for name in columns}, ensure_ascii=False) + "\n"
                for row in rows
            )
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(cell, columns))
            yield lambda rows: writer.writerows([cell(row.get(name)) for name in columns] for row in rows)


def cell(value: str | int | float | None) -> str | int | float | None:
    """A value as a spreadsheet may open it: a text that would be a formula there gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.strip() else text


def write_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
    """Write why recordings were skipped as CSV; remove the list of an earlier run if none were."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with (
        atomic_write(path) as beside,
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "reason"))
        writer.writerows((cell(name), cell(reason)) for name, reason in skipped)
