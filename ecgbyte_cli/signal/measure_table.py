"""The rows and columns of the table of measurements: one row per recording and segment."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ecgbyte_cli import readers
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import Recording
from ecgbyte_cli.signal.measure import measure
from ecgbyte_cli.signal.measurement import VALUES, lead_columns
from ecgbyte_cli.signal.preprocess import LEADS
from ecgbyte_cli.storage.row_table import Row

PRELOAD = ("ecgbyte_cli.signal.measure_table", "scipy.signal")  # for processes that measure
MOST_OTHERS = 16  # non-standard leads that get columns
TEXTS, COUNTS = ("record", "path", "flags", "quality"), ("segment", "beats")


def measured_rows(paths: Sequence[str], asked: dict[str, Any]) -> Iterator[tuple[str, list[Row] | Failure]]:
    """Yield the rows of each recording, or the reason it was skipped.

    Parameters
    ----------
    paths : list of str
    asked : dict
        `reading` and `segment`: the other arguments of `rows_of`.
    """
    for path in paths:
        try:
            yield path, rows_of(path, asked["reading"], asked["segment"])
        except Failure as error:
            yield path, error


def rows_of(path: str, told: dict, seconds: float) -> list[Row]:
    """Read a recording and measure each of its segments.

    Parameters
    ----------
    path : str
    told : dict
        Arguments of `readers.read_recording` other than the path.
    seconds : float
        Length of a segment. The rest at the end is a segment if it is at least half as long.

    Returns
    -------
    list of dict
        Column mapped to value; columns of unmeasured leads are missing.

    Raises
    ------
    Unusable
        If it cannot be read.
    """
    recording = readers.read_recording(path, **told, parts=True)
    rows = []
    for number, (start, part) in enumerate(_segments(recording, seconds)):
        row: Row = {"record": recording.name, "path": path, "segment": number, "start": start}
        rows.append(row | measure(part).values())
    return rows


def _segments(recording: Recording, seconds: float) -> Iterator[tuple[float, Recording]]:
    """The segments of a recording (at least one) and their start times in s."""
    samples = recording.signal.shape[1]
    size = max(1, round(seconds * recording.fs))
    for number in range(max(1, (samples + size // 2) // size)):
        part = recording.signal[:, number * size : (number + 1) * size]
        yield number * size / recording.fs, replace(recording, signal=part)


def columns_of(recordings: Iterable[list[Row]]) -> dict[str, type]:
    """Return name and type of each column of the table, including non-standard leads."""
    standard = ["record", "path", "segment", "start", *VALUES, *lead_columns(LEADS)]
    others: Counter[str] = Counter()
    for rows in recordings:
        others.update({column for row in rows for column in row} - {*standard, "beats", "flags", "quality"})
    leads = sorted({column[: -len("_r_mv")] for column in others if column.endswith("_r_mv")})
    left_out = leads[MOST_OTHERS:]
    if left_out:
        note(f"{len(left_out)} leads have no columns, because there are too many: {left_out[0]}, …")
    names = [*standard, *lead_columns(leads[:MOST_OTHERS]), "beats", "flags", "quality"]
    return {name: str if name in TEXTS else int if name in COUNTS else float for name in names}
