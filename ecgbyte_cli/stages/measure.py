"""ecgbyte measure: rate, intervals, axes, amplitudes and ST levels of recordings."""

import os
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import dask_option
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.signal.measure import SHORTEST
from ecgbyte_cli.signal.measure_table import FORMATS, PRELOAD, Table, make_part, rows_of, write_skipped
from ecgbyte_cli.storage.files import read_json, write_json
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import describe_files, matches_description, used_settings
from ecgbyte_cli.storage.partial_results import PartialResults

PART = 64  # recordings that are done together, and lost together if the run is killed
MOST_SHOWN = 20  # recordings on the terminal
MOST_NOTES = 10  # skipped recordings that are named there
SHOWN = {  # of the table on the terminal
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
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="a table on the terminal, of up to 20 recordings",
    help="File to write: .csv, .parquet or .jsonl.",
)
@click.option(
    "--segment",
    type=click.FloatRange(SHORTEST, 600),
    default=10.0,
    show_default=True,
    help="Length of a segment in seconds. Longer recordings get a row for each.",
)
@click.option(
    "--input-fs",
    type=click.FloatRange(0, min_open=True),
    default=None,
    show_default="as the files say",
    help="Sampling rate of files that do not say it (CSV, TSV, NumPy), in Hz.",
)
@click.option(
    "--lead-names",
    default=None,
    show_default="the 12 in their usual order",
    help="Names of the leads in files that do not say them (NumPy, HDF5), separated by commas.",
)
@click.option(
    "--units",
    type=click.Choice(["uV", "mV", "V"]),
    default=None,
    show_default="mV",
    help="Units of files that do not say them (CSV, TSV, NumPy, HDF5).",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=None, show_default="all processors", help="Processes to use."
)
@dask_option
@click.option("--overwrite", is_flag=True, show_default=True, help="Replace a file that exists.")
@click.pass_obj
def command(work: Any, **options: Any) -> dict:
    """Measure rate, intervals, axes, amplitudes and ST levels from the signal.

    PATH is a folder, a RECORDS file, a pattern in quotes, or one recording; or several of these. Values come from the
    median beat over all leads. A value that cannot be measured is empty, and the column `quality` says why. What is
    measured, how exactly, and where it fails: docs/measure.md. Research use only: no medical device.
    """
    result = measure(**options)
    if options["out"]:
        rate = result["records"] / max(result["seconds"], 1e-9)
        print_result(
            f"{result['records']} recordings measured in {result['seconds']:.1f} s ({rate:.0f}/s): {options['out']}"
        )
    else:
        _show(result["rows"])
    if result["skipped"]:
        table(
            Counter(result["skipped_reasons"]).most_common(),
            ("skipped because", "recordings"),
        )
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

    The parameters are the options of the command, which says what they do.

    Returns
    -------
    dict
        `records`, `skipped`, `skipped_reasons` (reason to how many), `seconds` and `out`; without `out` also
        `rows`.

    Raises
    ------
    Failure
        If no recording can be read, or `out` exists.
    """
    started = time.perf_counter()
    names = [name.strip() for name in lead_names.split(",")] if lead_names else None
    asked = {"reading": {"fs": input_fs, "lead_names": names, "units": units}, "segment": segment}
    found, skipped = readers.find(paths)
    rows: list[dict] | None = None
    if out is None:
        if len(found) > MOST_SHOWN:
            raise click.UsageError(f"{len(found)} recordings are too many to show: write a file with --out")
        rows, records = _rows(found, asked, skipped)
        result = _result(records, skipped, started)
    else:
        out = Path(out)
        if out.suffix.lower() not in FORMATS:
            raise click.UsageError(f"--out {out}: the name must end in {', '.join(FORMATS)}")
        done, result = _write(
            out, found, skipped, asked, jobs or os.cpu_count() or 1, dask, overwrite, started
        )
        if done:
            note(f"{out} holds these measurements already: nothing to do")
            return result
    if not result["records"]:
        path, reason = skipped[0]
        raise Failure(f"none of {len(skipped)} recordings can be measured; the first, {path}: {reason}")
    for path, reason in skipped[:MOST_NOTES]:
        note(f"skipped {path}: {reason}")
    if len(skipped) > MOST_NOTES:
        note(
            f"skipped {len(skipped) - MOST_NOTES} more"
            + (f": {_skipped_file(out)} lists them all" if out else "")
        )
    return result if rows is None else result | {"rows": rows}


def _result(
    records: int, skipped: list[tuple[str, str]], started: float, out: Path | None = None
) -> dict[str, Any]:
    """Return the result of a run, as --json prints it."""
    return {
        "records": records,
        "skipped": len(skipped),
        "skipped_reasons": dict(Counter(reason.partition(":")[0] for _, reason in skipped)),
        "seconds": time.perf_counter() - started,
        "out": None if out is None else str(out),
    }


def _skipped_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.skipped.csv")


def _rows(found: list[str], asked: dict, skipped: list[tuple[str, str]]) -> tuple[list[dict], int]:
    """The rows of a few recordings, and how many could be read."""
    rows: list[dict] = []
    records = 0
    for path in found:
        try:
            rows += rows_of(path, asked["reading"], asked["segment"])
            records += 1
        except Failure as error:
            skipped.append((path, error.message))
    return rows, records


def _write(
    out: Path,
    found: list[str],
    skipped: list[tuple[str, str]],
    asked: dict,
    jobs: int,
    dask: str | None,
    overwrite: bool,
    started: float,
) -> tuple[bool, dict[str, Any]]:
    """Measure recordings in parts and join them in a file.

    Return whether the file was finished before, and the result. Beside the file lies another with the settings.
    """
    if out.is_dir():
        raise Failure(f"{out} is a folder: --out names a file")
    folder = out.with_name(f".{out.name}.parts")
    about = out.with_name(f"{out.name}.json")
    settings = used_settings(asked | {"input": readers.fingerprint(found), "ecgbyte": __version__})
    with lock(folder):
        clear_leftovers(folder)
        clear_leftovers(out)
        if not overwrite and (earlier := _finished(out, about, settings)):
            if folder.exists():  # the earlier run was ended before it removed its parts
                PartialResults(folder, settings, overwrite=True).remove()
            return True, earlier
        parts = PartialResults(folder, settings, overwrite, "name another file with --out")
        lots = [found[i : i + PART] for i in range(0, len(found), PART)]
        todo = parts.missing(len(lots))
        if out.exists() and not overwrite and len(todo) == len(lots):
            raise Failure(f"{out} exists: add --overwrite, or name another file with --out")
        _make_parts(parts, lots, todo, asked, jobs, dask)
        joined = Table(parts, len(lots), skipped)
        skipped[:] = joined.skipped
        if joined.records:
            if joined.left_out:
                note(
                    f"no columns for {len(joined.left_out)} leads, as there are too many: {min(joined.left_out)}, …"
                )
            write_skipped(_skipped_file(out), joined.skipped)
            joined.write(out)
        result = _result(joined.records, skipped, started, out)
        if joined.records:
            write_json(
                about, {"settings": settings, "result": result, "files": describe_files(out)}, indent=1
            )
        parts.remove()
        return False, result


def _finished(out: Path, about: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a finished run with the same settings, if its file is still there and unchanged."""
    if not (out.exists() and about.exists()):
        return None
    earlier = read_json(about)
    same = earlier.get("settings") == settings
    unchanged = same and matches_description(out, earlier.get("files", {}).get(out.name))
    return earlier.get("result") if unchanged else None


def _make_parts(
    parts: PartialResults, lots: list[list[str]], todo: list[int], asked: dict, jobs: int, dask: str | None
) -> None:
    """Measure the recordings of the parts that are missing."""
    total = sum(map(len, lots))
    done = total - sum(len(lots[number]) for number in todo)
    if done:
        note(f"going on: {done} of {total} recordings were done")
    with progress("measuring", total, "records") as bar:
        bar.update(done)
        tasks = ((parts, number, lots[number], asked) for number in todo)
        root = parts.folder.parent
        each = cluster.map_tasks(dask, root, make_part, tasks) if dask else None
        counts = each or in_parallel(make_part, tasks, min(jobs, len(todo)), PRELOAD)
        with closing(counts):  # type: ignore[type-var]  # both are generators
            for count in counts:
                bar.advance(count)


def _show(rows: list[dict]) -> None:
    """Print a row a segment, and what is remarkable about each below."""

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
    print_result("Research use only: no medical device.")


def _show_leads(row: dict, leads: list[str]) -> None:
    """Print the amplitudes of one recording."""

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
