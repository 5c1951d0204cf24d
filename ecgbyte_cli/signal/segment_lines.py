"""The lines of measured values of a work folder's segments: measured once, and stored."""

import json
import os
import time
from contextlib import closing
from typing import Any

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.cli.output import counted, note, progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.runtime.row_parts import packed, unpacked
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measure_table import PRELOAD
from ecgbyte_cli.signal.measured_lines import measured_line
from ecgbyte_cli.storage.files import read_json, read_table, write_json, write_table
from ecgbyte_cli.storage.manifest import describe_files, matches_description
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.workdir import WorkDir

VERSION = 1  # increases when the same measurement would have another line
PART = 64  # recordings that are measured together


def segment_lines(work: WorkDir) -> list[str]:
    """Return the line of each segment of a work folder. The first call measures the recordings and stores the lines.

    Raises
    ------
    Failure
        If a recording is no longer where `ecgbyte symbolize` found it.
    """
    settings = {
        "symbols": read_json(work.need(work.symbol_settings, "symbolize"))["settings"],
        "version": VERSION,
        "ecgbyte": __version__,
    }
    if os.environ.get("RANK", "0") != "0":  # the first process of a training measures for all
        while not _are_stored(work, settings):
            time.sleep(0.5)
    elif not _are_stored(work, settings):
        with work.making("measured"):
            _measure(work, settings)
    return read_table(work.measured_lines)["line"]


def _are_stored(work: WorkDir, settings: dict[str, Any]) -> bool:
    """Return whether the lines of these letters are stored."""
    if not (work.measured_settings.exists() and work.measured_lines.exists()):
        return False
    about = read_json(work.measured_settings)
    described = about.get("files", {}).get(work.measured_lines.name)
    # JSON turns tuples into lists
    same = about.get("settings") == json.loads(json.dumps(settings))
    return same and matches_description(work.measured_lines, described)


def _measure(work: WorkDir, settings: dict[str, Any]) -> None:
    """Measure the recordings of a work folder and store the lines of their segments."""
    table = read_table(work.symbol_segments)
    starts: dict[str, list[float]] = {}
    for path, start in zip(table["path"], table["start"], strict=True):
        starts.setdefault(path, []).append(float(start))
    recordings = list(starts.items())
    parts = PartialResults(work.measured_parts, settings, overwrite=True)
    lots = [recordings[i : i + PART] for i in range(0, len(recordings), PART)]
    todo, seconds = parts.missing(len(lots)), settings["symbols"]["segment_seconds"]
    done = len(recordings) - sum(len(lots[number]) for number in todo)
    if done:
        note(f"resuming: {done} of {counted(len(recordings), 'recording')} measured before")
    with progress("measuring", len(recordings), "records") as bar:
        bar.update(done)
        tasks = ((parts, number, lots[number], work.reading(), seconds) for number in todo)
        counts = in_parallel(make_part, tasks, min(os.cpu_count() or 1, len(todo)), PRELOAD)
        with closing(counts):  # type: ignore[type-var]  # it is a generator
            for count in counts:
                bar.advance(count)
    lines = {
        path: iter(some) for number in range(len(lots)) for path, some in unpacked(parts, number, slice(None))
    }
    write_table(work.measured_lines, {"line": [next(lines[path]) for path in table["path"]]})
    about = {"settings": settings, "files": describe_files(work.measured_lines)}
    write_json(work.measured_settings, about, indent=1)
    parts.remove()


def make_part(
    parts: PartialResults,
    number: int,
    recordings: list[tuple[str, list[float]]],
    reading: dict[str, Any],
    seconds: float,
) -> int:
    """Measure the segments of some recordings, and write their lines as a part.

    Parameters
    ----------
    parts : PartialResults
    number : int
        Of the part.
    recordings : list of (str, list of float)
        Path, and the start of each segment in s.
    reading : dict
        Arguments of `readers.read_recording` other than the path.
    seconds : float
        Length of a segment.

    Returns
    -------
    int
        Number of recordings.

    Raises
    ------
    Failure
        If one cannot be read.
    """
    with parts.new(number) as write:
        for path, starts in recordings:
            try:
                recording = readers.read_recording(path, **reading)
            except readers.Unusable as error:
                if caused_by_interrupt(error):
                    raise KeyboardInterrupt from None
                raise Failure(
                    f"{path}: {error.message}: --measured reads the recordings again, put them back where "
                    "`ecgbyte symbolize` found them"
                ) from error
            lines = [measured_line(measure_stretch(recording, start, start + seconds)) for start in starts]
            write(packed((path, lines)))
    return len(recordings)
