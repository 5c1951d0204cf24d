"""ecgbyte measure: measure rate, intervals, axes, amplitudes and ST levels of recordings."""

import os
import time
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    Recordings,
    bare_file_options,
    bare_file_settings,
    check_few,
    dask_option,
    jobs_option,
    replace_option,
    table_option,
)
from ecgbyte_cli.cli.output import print_result, print_skipped, print_written, table
from ecgbyte_cli.failure import printable
from ecgbyte_cli.runtime.row_parts import (
    JoinedRows,
    TableWork,
    few_rows,
    finished_table,
    report_skipped,
    table_settings,
    write_finished,
    write_rows,
)
from ecgbyte_cli.signal.measure import SHORTEST
from ecgbyte_cli.signal.measure_table import PRELOAD, columns_of, measured_rows

SHOWN = {  # columns shown on the terminal
    "rate_bpm": "rate",
    "p_ms": "P",
    "pr_ms": "PR",
    "qrs_ms": "QRS",
    "qt_ms": "QT",
    "qtcb_ms": "QTcB",
    "qtcf_ms": "QTcF",
    "axis_qrs": "axis",
}


@click.command(
    cls=Stage,
    short_help="Measure rate, intervals, axes and amplitudes of recordings.",
    epilog="Example: ecgbyte measure data/ --out measures.csv",
)
@click.argument("paths", nargs=-1, required=True, type=Recordings(), metavar="PATH...")
@table_option
@click.option(
    "--segment",
    type=click.FloatRange(SHORTEST, 600),
    default=10.0,
    show_default=True,
    help="Length of a segment in seconds. Longer recordings get one row per segment.",
)
@bare_file_options
@jobs_option
@dask_option
@replace_option
@click.pass_obj
def command(work: Any, **options: Any) -> dict:
    """Measure rate, intervals, axes, amplitudes and ST levels.

    PATH is a folder, a RECORDS file, a pattern in quotes, or one recording. Name several if you like. Values come from
    the median beat over all leads. A value that cannot be measured is empty, and the column `quality` says why.
    Methods, accuracy and limits: docs/measure.md. Research use only: not a medical device.
    """
    result = measure(**options)
    if options["out"]:
        print_written(result, "measured")
    else:
        _show(result["rows"])
    print_skipped(result)
    return result


def measure(
    paths: tuple[str, ...],
    *,
    out: Path | None = None,
    segment: float = 10.0,
    input_fs: float | None = None,
    lead_names: str | None = None,
    units: str | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    overwrite: bool = False,
) -> dict:
    """Measure recordings.

    The parameters are the options of the command.

    Returns
    -------
    dict
        `records`, `skipped`, `skipped_reasons` (reason mapped to count), `seconds` and `out`; without `out` also
        `rows`; `done_before` if an earlier run wrote the table.

    Raises
    ------
    Failure
        If no recording can be read, or `out` exists.
    """
    started = time.perf_counter()
    asked = {"reading": bare_file_settings(input_fs, lead_names, units), "segment": segment}
    work = TableWork("measuring", measured_rows, asked, jobs or os.cpu_count() or 1, dask, PRELOAD)
    found, skipped = readers.find(paths)
    if out is None:
        check_few(found)
        rows, records = few_rows(found, skipped, work)
    else:
        out = Path(out)
        settings = table_settings(found, work)
        if done := finished_table(out, settings, overwrite, found):
            return {**done, "seconds": time.perf_counter() - started, "out": str(out)}

        def more(joined: JoinedRows) -> None:
            write_finished(out, settings, joined)

        records = write_rows(out, found, skipped, work, columns_of, overwrite, more)
    return {
        **report_skipped(skipped, records, out),
        "seconds": time.perf_counter() - started,
        "out": None if out is None else str(out),
    } | ({} if out else {"rows": rows})


def _show(rows: list[dict]) -> None:
    """Print one row per segment, with remarks about its quality below."""

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    several = any(row["segment"] for row in rows)
    header = ("record", *(("start",) if several else ()), *SHOWN.values(), "flags")
    table(
        [
            (
                printable(str(row["record"])),
                *((f"{row['start']:g}",) if several else ()),
                *(text(row[name]) for name in SHOWN),
                row["flags"],
            )
            for row in rows
        ],
        header,
    )
    if len(rows) == 1:
        leads = [name.removesuffix("_r_mv") for name in rows[0] if name.endswith("_r_mv")]
        _show_leads(rows[0], leads)
    for row in rows:
        if row["quality"]:
            where = f" at {row['start']:g} s" if several else ""
            print_result(printable(f"{row['record']}{where}: {row['quality']}"))
    print_result("Rate in beats per minute, intervals in ms, axis of the QRS complex in degrees.")
    print_result("Research use only: not a medical device.")


def _show_leads(row: dict, leads: list[str]) -> None:
    """Print the amplitudes in one recording."""

    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    if leads:
        print_result()
        names = ("r_mv", "s_mv", "st_mv", "t_mv")
        table(
            [(lead, *(text(row[f"{lead}_{name}"]) for name in names)) for lead in leads],
            ("lead", "R mV", "S mV", "ST mV", "T mV"),
        )
        if row["sokolow_mv"] is not None and row["cornell_mv"] is not None:
            print_result(f"Sokolow-Lyon {row['sokolow_mv']:.2f} mV, Cornell {row['cornell_mv']:.2f} mV")
