"""Join the parts of `ecgbyte symbolize`: statistics over all recordings, then one array and one table."""

from collections import Counter
from contextlib import nullcontext

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.output import counted, note, progress
from ecgbyte_cli.readers.data_sets import DataSet
from ecgbyte_cli.signal import quantizers
from ecgbyte_cli.signal.symbolize import (
    COLUMNS,
    about_part,
    blocks_of_part,
    columns,
    lost_leads,
    say_what_is_lost,
)
from ecgbyte_cli.storage.files import array_writer, table_writer
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.workdir import WorkDir

Lots = list[tuple[DataSet, list[str]]]  # data set of each part, and its recordings


def summarize_parts(
    parts: PartialResults, sets: list[DataSet], lots: Lots, skipped: list[tuple[str, str]]
) -> tuple[np.ndarray, int, list[tuple[str, str]]]:
    """Return the counts of values, the number of segments and the skipped recordings, and note unusual results."""
    counts, segments = np.zeros(2**16, np.int64), 0
    dropped_filters: Counter[tuple[float, str]] = Counter()
    placeholders, unlisted, moved = 0, 0, 0
    for number, (data_set, _) in enumerate(lots):
        about, (values, times) = about_part(parts, number)
        counts[values] += times
        segments += len(about["rows"])
        skipped = skipped + about["skipped"]
        dropped_filters.update((fs, ", ".join(names)) for fs, names in about["remarks"] if names)
        placeholders += about["placeholders"]
        sides = {row[3]: (row[0], row[2]) for row in about["rows"]} if data_set.known else {}
        for path, (name, side) in sides.items():
            listed = readers.find_listed(name, data_set.known, path)
            if listed is None:
                unlisted += 1
                continue
            placeholders += readers.is_placeholder(listed[0])
            moved += side is not None and listed[1] not in (None, side)
        data_set.stated.update(about["stated"])
    skipped_paths = {path for path, _ in skipped}
    for data_set in sets:
        data_set.settle(skipped_paths)
    if unlisted:
        note(f"not in the table of patients: {counted(unlisted, 'recording')}, whose files decide")
    if moved:
        note(
            f"the table of patients decides if the files name another split: in {counted(moved, 'recording')}"
        )
    for (fs, names), times in sorted(dropped_filters.items()):
        note(f"{counted(times, 'recording')} at {fs:g} Hz: without {names}")
    if placeholders and segments:
        note(
            f"the patient is a placeholder in {counted(placeholders, 'recording')}: each counts as a separate "
            "patient"
        )
    for data_set in sets if segments else ():
        if data_set.everyone:
            where = data_set.name and f" of {data_set.name}"
            note(
                f"all {data_set.used} recordings{where} name the patient {data_set.everyone}: each counts as a "
                "separate patient"
            )
    return counts, segments, skipped


def write_letters(
    work: WorkDir, parts: PartialResults, lots: Lots, segments: int, settings: dict, quantizer: dict
) -> None:
    """Write the letters and the table of segments, and note leads and letters with little information.

    With `keep_signal` in the settings, also write the signals as float16 in mV.
    """
    shape = (len(settings["leads"]), settings["samples"])
    used, lost, first = np.zeros(256, np.int64), [], 0
    sides: dict[str, set[str]] = {}
    keep, samples = bool(settings.get("keep_signal")), segments * shape[0] * shape[1]
    if not keep:
        work.signals.unlink(missing_ok=True)
    with (
        array_writer(work.symbols, np.uint8, samples) as write,
        array_writer(work.signals, np.float16, samples) if keep else nullcontext(None) as write_signal,
        table_writer(work.symbol_segments, COLUMNS) as write_rows,
        progress("writing letters", segments, "segments") as bar,
    ):
        for number, (data_set, _) in enumerate(lots):
            about, _ = about_part(parts, number)
            rows, at = about["rows"], 0
            lost += about["lost"]
            for block in blocks_of_part(parts, number):
                here = rows[at : at + len(block)]
                for row in here:
                    row[1], row[2] = data_set.whose(*row[:4])
                    sides.setdefault(row[1], set()).add(row[2])
                if block.dtype != np.uint8:
                    signals = block
                    if write_signal is not None:
                        write_signal(signals.astype(np.float16))
                    block = np.empty(signals.shape, np.uint8)
                    for i, row in enumerate(here):
                        block[i], *row[5:] = quantizers.quantize(signals[i], quantizer)
                    lost += lost_leads([row[0] for row in here], signals, block, settings["leads"])
                # every fourth sample is enough for the statistics
                used += np.bincount(block[..., ::4].reshape(-1), minlength=256)
                write(block)
                at += len(block)
                bar.update(first + at)
            if rows:
                write_rows(columns(first, rows, shape))
            first += len(rows)
    say_what_is_lost(lost, used, quantizer)
    if line := readers.on_two_sides(sides):
        note(line)
