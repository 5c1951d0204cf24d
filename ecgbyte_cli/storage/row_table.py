"""Write and read tables as CSV, Parquet or JSON Lines, and write the list of skipped recordings next to them."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.storage.files import atomic_write, check_regular_file, table_writer

Row = dict[str, str | int | float | None]
FORMATS = (".csv", ".parquet", ".jsonl")


@contextmanager
def row_writer(out: Path, columns: Mapping[str, type]) -> Iterator[Callable[[Sequence[Row]], object]]:
    """Yield a function that appends rows to a table: CSV, Parquet or JSON Lines, by the file's ending.

    The table is written completely or not at all.

    Parameters
    ----------
    out : Path
        Its name ends in one of `FORMATS`.
    columns : dict
        Name to `str`, `int` or `float`. Columns missing from a row become empty cells.
    """
    if out.suffix.lower() == ".parquet":
        with table_writer(out, columns) as write:
            held: list[Row] = []

            def add(rows: Sequence[Row]) -> None:
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
    """Make a value safe for spreadsheets: text that would be a formula gets a leading apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.strip() else text


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a table.

    Raises
    ------
    Failure
        If it cannot be read.
    """
    with _reporting(path):
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(check_regular_file(path)).names
        with open(check_regular_file(path), encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                return [*json.loads(file.readline() or "{}")]
            return [_uncelled(name) for name in next(csv.reader(file), [])]


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Read some columns of a table: numbers in CSV files as text, empty cells as None.

    Raises
    ------
    Failure
        If the table cannot be read, or lacks a column.
    """
    missing = [name for name in names if name not in column_names(path)]
    if missing:
        raise Failure(f"{path} has no column {missing[0]}: it is not a table from `ecgbyte findings`")
    with _reporting(path):
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path, columns=list(names), use_threads=False).to_pydict()
        columns: dict[str, list[Any]] = {name: [] for name in names}
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                rows: Iterator[dict[str, Any]] = map(json.loads, file)
            else:
                header = [_uncelled(name) for name in next(csv.reader(file))]
                rows = (dict(zip(header, map(_uncelled, row), strict=True)) for row in csv.reader(file))
            for row in rows:
                for name, column in columns.items():
                    value = row[name]
                    column.append(None if value == "" else value)
        return columns


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Convert read errors into a Failure that names the file."""
    if path.suffix.lower() not in FORMATS:
        raise Failure(f"{path}: the name of a table must end in {', '.join(FORMATS)}")
    try:
        yield
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError, csv.Error) as error:
        raise Failure(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error


def _uncelled(text: str) -> str:
    """Undo `cell`: return the original text."""
    return text[1:] if text[:1] == "'" and text[1:].lstrip()[:1] in ("=", "+", "-", "@") else text


def write_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
    """Write why recordings were skipped as CSV; remove an earlier run's list if none were skipped."""
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
