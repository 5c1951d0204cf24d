"""Write tables row by row as CSV, Parquet or JSON Lines, and the list of skipped recordings beside them."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ecgbyte_cli.failure import printable
from ecgbyte_cli.storage.files import atomic_write, table_writer

Row = dict[str, str | int | float | None]
FORMATS = (".csv", ".parquet", ".jsonl")


@contextmanager
def row_writer(out: Path, columns: Mapping[str, type]) -> Iterator[Callable[[Sequence[Row]], object]]:
    """Yield a function that appends rows to a table: CSV, Parquet or JSON Lines, by the file's ending.

    The table is written whole or not at all.

    Parameters
    ----------
    out : Path
        Its name ends in one of `FORMATS`.
    columns : dict
        Name to `str`, `int` or `float`. A row may lack some; then the cell is empty.
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
