"""ecgbyte decode: token ids to recordings, and how faithful they are."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from itertools import starmap
from typing import NamedTuple

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage, caused_by_interrupt
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.wfdb_write import file_name, write_record
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.signal import fidelity, preprocess
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import atomic_folder, read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir

PART = 200  # segments that are decoded at a time


@click.command(
    cls=Stage,
    short_help="Turn token ids back into recordings, and say how faithful they are.",
    epilog="Example: ecgbyte decode --limit 10",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="At most so many segments, drawn by seed.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@cluster.option
@click.option(
    "--overwrite", is_flag=True, show_default=True, help="Replace recordings decoded with other settings."
)
@click.pass_obj
def command(work, **options):
    """Turn token ids back into letters and into mV, write them as WFDB records, and measure what was lost.

    The comparison is with the same recordings after filtering and resampling, which are read again from where
    `ecgbyte symbolize` found them.
    """
    result = decode(work, **options)
    print_result(
        f"{result['segments']} segments: RMSE {result['rmse_uv']:.1f} µV, PRD {result['prd_percent']:.1f} %, "
        f"SNR {result['snr_db']:.1f} dB, {100 * result['clipped_fraction']:.2f} % of the samples beyond the "
        f"letters' range; in {work.decoded}"
    )
    if result["beats"]:
        rows = [
            [
                name,
                *(
                    f"{result[key][column]:.{digits}f}"
                    for column in ("mean_absolute", "p95_absolute", "mean")
                ),
            ]
            for name, key, digits in (
                ("R amplitude, mV", "r_amplitude_mv", 3),
                ("R time, ms", "r_time_ms", 1),
                ("ST level at J + 60 ms, mV", "st_level_mv", 3),
            )
        ]
        title = f"Errors on {result['beats']} beats of lead II"
        table(rows, ("", "mean absolute", "95th percentile", "bias"), title)
    return result


def decode(work, *, limit=1000, seed=0, dask=None, overwrite=False):
    """Turn token ids back into recordings.

    Parameters
    ----------
    work : WorkDir
    limit : int
        At most so many segments.
    seed : int
        Of the draw.
    dask : str or None
        Decode on the Dask cluster at this address.
    overwrite : bool

    Returns
    -------
    dict
        segments; rmse_uv, the root of the mean squared difference over all samples, in µV; prd_percent and
        snr_db, means over segments (see `fidelity.differences`); clipped_fraction, the share of samples
        outside the range that the letters stand for; beats, how many of lead II were compared (0 without
        lead II, or below 100 Hz), and if there are any, r_amplitude_mv, r_time_ms and st_level_mv, each with
        the mean_absolute, p95_absolute and mean error (see `fidelity.beat_errors`); seconds.

    Raises
    ------
    Failure
        If there are no token ids, they do not give the letters they were made of, or no recording can be
        read again.
    """
    with work.checked("tokens"):
        about, tokenizer = read_json(work.token_settings), ECGTokenizer.from_file(work.ecg_tokenizer)
        if tokenizer.sha256 != about["tokenizer_sha256"]:
            raise Failure(
                f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: encode again"
            )
        settings = {"tokens": about["settings"], "limit": limit, "seed": seed}
        done = completed_result(work.decode_settings, settings, overwrite, "decoded recordings")
        if done:
            note(f"{work.decoded} is there already, made with these settings: nothing to do")
            return done
        with work.making("decoded"):
            completed_result(
                work.decode_settings, settings, overwrite, "decoded recordings"
            )  # another run may just have ended
            return _decode(work, tokenizer, settings, dask)


def _decode(work, tokenizer, settings, dask):
    """Decode the segments drawn, and compare them with the recordings."""
    start = time.perf_counter()
    count, limit = len(read_table(work.token_segments)["offset"]), settings["limit"]
    draw = np.random.default_rng(settings["seed"])
    chosen = np.sort(draw.choice(count, min(limit, count), replace=False))
    each = len(tokenizer.signal["leads"]) * tokenizer.signal["samples"]
    with atomic_folder(work.decoded) as folder, progress("decode", len(chosen), "segments") as bar:
        rows = _rows(work, chosen)
        parts = [rows[i : i + PART] for i in range(0, len(rows), PART)]
        tasks = ((number, part, work, folder) for number, part in enumerate(parts))
        made = _on_cluster(dask, work, rows, tasks) if dask else starmap(decode_part, tasks)
        found = {}
        with closing(made) if dask else nullcontext():
            for number, *told in made:
                found[number] = told
                bar.advance(len(parts[number]))
        measured, beats, clipped, unread, changed = [], [np.zeros((0, 3))], 0, {}, {}
        for number in range(len(parts)):
            compared, errors, beyond, not_read, other = found[number]
            measured, beats, clipped = measured + compared, beats + errors, clipped + beyond
            unread, changed = unread | not_read, changed | other
        for paths, what in (
            (unread, "cannot be read again"),
            (changed, "have changed since they were symbolized"),
        ):
            if paths:
                path, why = next(iter(paths.items()))
                note(f"{len(paths)} recordings {what}: decoded, but not compared ({path}: {why})")
        if not measured:
            raise Failure("no recording is as `ecgbyte symbolize` found it: nothing to compare with")
        squares, prds, snrs = zip(*measured, strict=True)
        result = {
            "segments": len(chosen),
            "compared": len(measured),
            "changed": len(changed),
            "rmse_uv": 1000 * float(np.sqrt(np.sum(squares) / (len(measured) * each))),
            # a flat segment has no difference in percent
            "prd_percent": mean(prds),
            "snr_db": mean(snrs),
            "clipped_fraction": clipped / (len(measured) * each),
            **summary(np.concatenate(beats)),
            "seconds": time.perf_counter() - start,
        }
        write_json(folder / work.decode_settings.name, {"settings": settings, "result": result}, indent=1)
    return result


def _on_cluster(dask: str, work: WorkDir, rows: list["Row"], tasks: Iterable[tuple]) -> Iterator[tuple]:
    """Do the tasks on a cluster whose workers see the letters, the tokens and the recordings."""
    own = [work.ecg_tokenizer, work.symbols, work.tokens]

    def files(paths: list[str]) -> list[str | os.PathLike]:
        return [*own, *readers.files_of(paths)]

    def reads(number: int, part: list[Row], *_: object) -> list[str | os.PathLike]:
        return files([row.path for row in part])

    sampled = cluster.sample(sorted({row.path for row in rows}))
    return cluster.map_tasks(dask, work.root, decode_part, tasks, files(sampled), reads)


class Row(NamedTuple):
    """What decoding a segment needs of the tables."""

    segment: int
    record: str
    path: str
    start: float
    lo: float
    hi: float
    letters: int  # where its letters begin, and its tokens, and how many these are
    tokens: int
    length: int


def _rows(work, chosen):
    """The rows of segments."""
    places, segments = read_table(work.token_segments), read_table(work.symbol_segments)
    columns = [segments[name] for name in ("record", "path", "start", "lo", "hi", "offset")]
    columns += [places["offset"], places["length"]]
    return [Row(int(i), *(column[i] for column in columns)) for i in chosen]


def decode_part(number, rows, work, folder):
    """Decode some segments into a folder, and compare them with the recordings.

    Returns
    -------
    (int, list, list, int, dict, dict)
        The number given; of each segment that could be compared what `fidelity.differences` and
        `fidelity.beat_errors` return, and how many of their samples lie beyond the letters' range; paths that cannot
        be read again, and that have changed, with why.
    """
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    tokens, symbols = read_array(work.tokens), read_array(work.symbols)
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    each = len(leads) * tokenizer.signal["samples"]
    original = Originals(tokenizer.signal, work.reading())
    two = leads.index("II") if "II" in leads and fs >= fidelity.LEAST_FS else None
    measured, beats, clipped, unread, changed = [], [], 0, {}, {}
    for row in rows:
        letters = tokenizer.decode(tokens[row.tokens : row.tokens + row.length])
        if not np.array_equal(letters.ravel(), symbols[row.letters :][:each]):
            raise Failure(
                f"{work.tokens}: segment {row.segment} does not decode to its letters; encode again"
            )
        signal = tokenizer.to_mv(letters, row.lo, row.hi)
        x, comments = original.of(row.path, row.start)
        comments = [*comments, "Decoded from ECG tokens by ecgbyte"]
        write_record(folder, f"{file_name(row.record)}_{row.segment:06d}", signal, tokenizer.signal, comments)
        if x is None:
            unread[row.path] = original.why
        elif not np.array_equal(tokenizer.letters(x), letters):
            changed[row.path] = "other letters than those that were kept"
        else:
            measured.append(fidelity.differences(x, signal))
            if two is not None:
                found = fidelity.beats(x[two], fs)
                beats.append(fidelity.beat_errors(x[two], signal[two], fs, found))
            clipped += int(((x < row.lo) | (x > row.hi)).sum())
    return number, measured, beats, clipped, unread, changed


def mean(values):
    """The mean of those that are there, or None."""
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else None


def summary(errors):
    """The errors of beats, (beats, 3), as results."""
    result = {"beats": len(errors)}
    if len(errors):
        for name, column in zip(("r_amplitude_mv", "r_time_ms", "st_level_mv"), errors.T, strict=True):
            result[name] = {
                "mean_absolute": float(np.abs(column).mean()),
                "p95_absolute": float(np.percentile(np.abs(column), 95)),
                "mean": float(column.mean()),
            }
    return result


class Originals:
    """Preprocessed segments of recordings, read again; the last recording is kept, for its next segment.

    Parameters
    ----------
    settings : dict
        The tokenizer's `signal`.
    reading : dict
        What `readers.read_recording` needs beside the path.
    """

    def __init__(self, settings, reading):
        self.settings, self.reading, self.path, self.why = settings, reading, None, ""

    def of(self, path, start):
        """Signal in mV, float32 (leads, samples), and header comments; (None, []) if there is none: see `why`."""
        if path != self.path:
            self.path, self.parts, self.comments = path, {}, []
            self.why = "shorter than it was"
            try:
                recording = readers.read_recording(path, **self.reading)
                self.parts = dict(preprocess.segments(recording, self.settings))
                self.comments = recording.comments
            except readers.Unusable as error:
                if caused_by_interrupt(error):
                    raise KeyboardInterrupt from None
                self.why = error.message
        return self.parts.get(start), self.comments
