"""Compute a table of recordings in parts, on several processes or a cluster, and join the parts.

An interrupted run resumes with the missing parts.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.cli.output import counted, note, progress
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.storage.files import read_json, write_json
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import describe_files, matches_description, used_settings
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.row_table import Row, column_names, read_columns, row_writer, write_skipped

PART = 64  # recordings per part; a killed run loses at most one part per process
MOST_NOTES = 10  # skipped recordings named on the terminal
# A path with its rows, or with the reason to skip it
Given = Iterator[tuple[str, list[Row] | Failure]]


@dataclass(frozen=True)
class TableWork:
    """How to compute the rows of a table.

    Attributes
    ----------
    name : str
        Name of the work, for the progress text, such as `measuring`.
    rows_of : callable
        Takes paths and `asked`, and yields the rows of each, in order; a module's own function, so that other
        processes can import it.
    asked : dict
        All settings that the rows depend on, in JSON types.
    jobs : int
    dask : str or None
        Address of a cluster.
    preload : sequence of str
        Modules that each process imports once.
    files : sequence of Path
        Files that a cluster's workers must be able to read.
    """

    name: str
    rows_of: Callable[[Sequence[str], dict[str, Any]], Given]
    asked: dict[str, Any]
    jobs: int = 1
    dask: str | None = None
    preload: Sequence[str] = ()
    files: Sequence[Path] = ()


class JoinedRows:
    """Finished parts.

    Parameters
    ----------
    parts : PartialResults
    count : int
        Number of parts.
    skipped : list of tuple
        (path, reason) of the recordings in no part.

    Attributes
    ----------
    records : int
        Number of recordings with rows.
    skipped : list of tuple
        (path, reason) of all other recordings.
    """

    def __init__(self, parts: PartialResults, count: int, skipped: Sequence[tuple[str, str]]):
        self.parts, self.count = parts, count
        self.records = sum(1 for _ in self)
        self.skipped = list(skipped)
        for number in range(count):
            for listed in unpacked(parts, number, slice(-1, None)):
                self.skipped += [(path, reason) for path, reason in listed]

    def __iter__(self) -> Iterator[list[Row]]:
        """Yield the rows of each recording."""
        for number in range(self.count):
            yield from unpacked(self.parts, number, slice(-1))


def write_rows(
    out: Path,
    found: Sequence[str],
    skipped: list[tuple[str, str]],
    work: TableWork,
    columns: Callable[[JoinedRows], Mapping[str, type]],
    overwrite: bool,
    more: Callable[[JoinedRows], object] = lambda rows: None,
) -> int:
    """Compute the rows of recordings in parts, and write a table, with the list of skipped recordings next to it.

    Parameters
    ----------
    out : Path
    found : list of str
        Paths of the recordings.
    skipped : list of tuple
        (path, reason) of files that are not recordings; unusable recordings are added.
    work : TableWork
    columns : callable
        Takes the rows, and returns the name and type of each column.
    overwrite : bool
    more : callable
        Called with the rows before their parts are removed, to write further files.

    Returns
    -------
    int
        Number of recordings with rows; if it is 0, no table is written.

    Raises
    ------
    Failure
        If `out` exists or cannot be written.
    """
    if out.is_dir():
        raise Failure(f"{out} is a folder: --out must name a file")
    folder, settings = parts_folder(out), table_settings(found, work)
    with lock(folder):
        clear_leftovers(folder)
        clear_leftovers(out)
        parts = PartialResults(folder, settings, overwrite, "choose another --out")
        lots = [list(found[i : i + PART]) for i in range(0, len(found), PART)]
        todo = parts.missing(len(lots))
        if out.exists() and not overwrite and len(todo) == len(lots):
            raise Failure(f"{out} exists: add --overwrite, or choose another --out")
        _make_parts(parts, lots, todo, work)
        joined = JoinedRows(parts, len(lots), skipped)
        skipped[:] = joined.skipped
        if joined.records:
            with row_writer(out, columns(joined)) as write:
                for rows in joined:
                    write(rows)
            write_skipped(skipped_file(out), joined.skipped)
            more(joined)
        parts.remove()
        return joined.records


def table_settings(found: Sequence[str], work: TableWork) -> dict[str, Any]:
    """Return all settings that a table depends on."""
    return work.asked | {"input": readers.fingerprint(list(found)), "ecgbyte": __version__}


def parts_folder(out: Path) -> Path:
    """Return the path of the parts of an unfinished table."""
    return out.with_name(f".{out.name}.parts")


def settings_file(out: Path) -> Path:
    """Return the path of the settings next to a table."""
    return out.with_name(f"{out.name}.settings.json")


def finished_table(
    out: Path, settings: Mapping[str, Any], overwrite: bool, found: Sequence[str]
) -> dict[str, Any] | None:
    """Return the result of an earlier run that wrote the same table, with `done_before`, and note it.

    None if there is work to do. `found` are the paths of the recordings, to name what has changed.

    Raises
    ------
    Failure
        If the table was made with other settings or from other files, and `overwrite` is false.
    """
    path = settings_file(out)
    if overwrite or not out.exists() or not path.exists():
        return None
    earlier = read_json(path)
    wanted, used = used_settings(settings), used_settings(earlier.get("settings", {}))
    changed = sorted(key for key in wanted | used if wanted.get(key) != used.get(key))
    changed = [key for key in changed if key != "salt"]  # follows from the input
    if changed == ["input"]:
        raise Failure(
            f"{out} was made from other files ({_difference(out, found)}): add --overwrite to make it again, or "
            "choose another --out"
        )
    if changed:
        named = ", ".join("input files" if key == "input" else key for key in changed)
        raise Failure(
            f"{out} was made with other settings ({named}): add --overwrite, or choose another --out"
        )
    if not matches_description(out, earlier.get("files", {}).get(out.name)):
        return None
    folder = parts_folder(out)
    if folder.exists():  # the earlier run was killed before it removed its parts
        PartialResults(folder, dict(settings), overwrite=True).remove()
    note(f"{out} already holds these rows: nothing to do")
    return earlier["result"] | {"done_before": True}


def _difference(out: Path, found: Sequence[str]) -> str:
    """Return in words how the recordings differ from a finished table's: how many more and fewer, or changed."""
    if "path" not in column_names(out):  # a table without recordings
        return "their names, sizes or times have changed"
    listed = skipped_file(out)
    used, now = {*map(printable, read_columns(out, ["path"])["path"])}, {*map(printable, found)}
    skipped = {*read_columns(listed, ["path"])["path"]} if listed.exists() else set()
    more, fewer = len(now - used - skipped), len(used - now)
    return f"{more} more, {fewer} fewer" if more or fewer else "some have changed"


def write_finished(
    out: Path, settings: Mapping[str, Any], joined: JoinedRows, counts: Mapping[str, Any] | None = None
) -> None:
    """Write the settings and counts of a table, plus optional `counts`, next to it, for `finished_table`."""
    counted = {**count_skipped(joined.skipped, joined.records), **(counts or {})}
    about = {"settings": settings, "result": counted, "files": describe_files(out)}
    write_json(settings_file(out), about, indent=1)


def few_rows(found: Sequence[str], skipped: list[tuple[str, str]], work: TableWork) -> tuple[list[Row], int]:
    """Return the rows of a few recordings, and the number that could be read."""
    rows: list[Row] = []
    records = 0
    for path, given in work.rows_of(found, work.asked):
        if isinstance(given, Failure):
            skipped.append((path, given.message))
        else:
            rows += given
            records += 1
    return rows, records


def skipped_file(out: Path) -> Path:
    """Return the path of the list of skipped recordings next to a table."""
    return out.with_name(f"{out.name}.skipped.csv")


def report_skipped(skipped: Sequence[tuple[str, str]], records: int, out: Path | None) -> dict[str, Any]:
    """Note which recordings were skipped, and return `count_skipped`.

    Raises
    ------
    Failure
        If no recording could be used.
    """
    if not records:
        raise none_usable(skipped)
    for path, reason in skipped[:MOST_NOTES]:
        note(f"skipped {path}: {reason}")
    if len(skipped) > MOST_NOTES:
        note(
            f"skipped {len(skipped) - MOST_NOTES} more"
            + (f": {skipped_file(out)} lists them all" if out else "")
        )
    return count_skipped(skipped, records)


def none_usable(skipped: Sequence[tuple[str, str]]) -> Failure:
    """Return the error that no recording can be used; `skipped` are (path, reason)."""
    path, reason = skipped[0]
    if len(skipped) == 1:
        return Failure(readers.Unusable(reason).about(path))
    return Failure(f"none of the {len(skipped)} recordings can be used. The first is {path}: {reason}")


def count_skipped(skipped: Sequence[tuple[str, str]], records: int) -> dict[str, Any]:
    """Return `records`, `skipped` and `skipped_reasons` of a result."""
    reasons = Counter(reason.partition(":")[0] for _, reason in skipped)
    return {"records": records, "skipped": len(skipped), "skipped_reasons": dict(reasons)}


def _make_parts(parts: PartialResults, lots: list[list[str]], todo: list[int], work: TableWork) -> None:
    """Compute the missing parts."""
    total = sum(map(len, lots))
    done = total - sum(len(lots[number]) for number in todo)
    if done:
        note(f"resuming: {done} of {counted(total, 'recording')} done before")
    with progress(work.name, total, "records") as bar:
        bar.update(done)
        tasks: Iterable[tuple] = ((parts, number, lots[number], work.rows_of, work.asked) for number in todo)
        counts: Any
        if work.dask:
            counts = cluster.map_tasks(work.dask, parts.folder.parent, make_part, tasks, work.files)
        else:
            counts = in_parallel(make_part, tasks, min(work.jobs, len(todo)), work.preload)
        with closing(counts):
            for count in counts:
                bar.advance(count)


def make_part(
    parts: PartialResults, number: int, paths: list[str], rows_of: Callable[..., Given], asked: dict[str, Any]
) -> int:
    """Write a part: the rows of some recordings, and the skipped recordings; return the number of recordings."""
    skipped: list[tuple[str, str]] = []
    with parts.new(number) as write:
        for path, given in rows_of(paths, asked):
            if isinstance(given, Failure):
                if caused_by_interrupt(given):  # not the recording's fault
                    raise KeyboardInterrupt from None
                skipped.append((path, given.message))
            else:
                write(packed(given))
        write(packed(skipped))
    return len(paths)


def packed(value: object) -> np.ndarray:
    """Return a JSON value as bytes, for a part."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpacked(parts: PartialResults, number: int, which: slice) -> Iterator[Any]:
    """Yield JSON values of a part."""
    for array in parts.read(number, which):
        yield json.loads(array.tobytes())
