"""ecgbyte decode: turn token ids back into recordings, and measure the error."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage, caused_by_interrupt
from ecgbyte_cli.cli.options import dask_option
from ecgbyte_cli.cli.output import counted, note, print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.wfdb_write import file_name, write_record
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.signal import fidelity, preprocess
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import atomic_folder, read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.workdir import WorkDir

PART = 200  # segments decoded together


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `ecgbyte decode`."""

    limit: int = 1000  # largest number of segments, chosen at random
    seed: int = 0  # seed of the random choice
    dask: str | None = None  # address of a Dask cluster to decode on
    overwrite: bool = False  # replace recordings decoded with other settings


@click.command(
    cls=Stage,
    short_help="Turn token ids back into recordings, and measure the error.",
    epilog="Example: ecgbyte decode --limit 10",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=DecodeOptions.limit,
    show_default=True,
    help="Largest number of segments, chosen at random.",
)
@click.option(
    "--seed", type=int, default=DecodeOptions.seed, show_default=True, help="Random seed of the choice."
)
@dask_option
@click.option("--overwrite", is_flag=True, help="Replace recordings decoded with other settings.")
@click.pass_obj
def command(work: WorkDir, **options: Any) -> dict:
    """Decode token ids into letters and mV, write them as WFDB records, and measure the error.

    The error is measured against the recordings after filtering and resampling. They are read again from the paths
    that `ecgbyte symbolize` stored.
    """
    result = decode(work, DecodeOptions(**options))
    print_result(
        f"{counted(result['segments'], 'segment')}: RMSE {result['rmse_uv']:.1f} µV, "
        f"PRD {result['prd_percent']:.1f} %, SNR {result['snr_db']:.1f} dB, "
        f"{100 * result['clipped_fraction']:.2f} % of the samples beyond the "
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


def decode(work: WorkDir, options: DecodeOptions) -> dict:
    """Turn token ids back into recordings.

    Parameters
    ----------
    work : WorkDir
    options : DecodeOptions

    Returns
    -------
    dict
        segments; rmse_uv, the root mean square difference over all samples, in µV; prd_percent and
        snr_db, means over segments (see `fidelity.differences`); clipped_fraction, the share of samples
        outside the letters' range; beats, the number of beats of lead II compared (0 without lead II, or
        below 100 Hz), and if there are any, r_amplitude_mv, r_time_ms and st_level_mv, each with
        mean_absolute, p95_absolute and mean error (see `fidelity.beat_errors`); seconds.

    Raises
    ------
    Failure
        If there are no token ids, they do not decode to their letters, or no recording can be read.
    """
    with work.checked("tokens"):
        encoded, tokenizer = read_json(work.token_settings), ECGTokenizer.from_file(work.ecg_tokenizer)
        if tokenizer.sha256 != encoded["tokenizer_sha256"]:
            raise Failure(
                f"{work.tokens} was not encoded with {work.ecg_tokenizer}: run `ecgbyte encode` again"
            )
        settings = {"tokens": encoded["settings"], "limit": options.limit, "seed": options.seed}
        return work.run_once(
            "decoded",
            work.decode_settings,
            settings,
            options.overwrite,
            "decoded recordings",
            lambda: _decode(work, tokenizer, settings, options.dask),
        )


def _decode(work: WorkDir, tokenizer: ECGTokenizer, settings: dict[str, Any], dask: str | None) -> dict:
    """Decode the chosen segments, and compare them with the recordings."""
    start = time.perf_counter()
    count, limit = len(read_table(work.token_segments)["offset"]), settings["limit"]
    random = np.random.default_rng(settings["seed"])
    chosen = np.sort(random.choice(count, min(limit, count), replace=False))
    each = len(tokenizer.signal["leads"]) * tokenizer.signal["samples"]
    with atomic_folder(work.decoded) as folder:
        parts = _decode_parts(work, _rows(work, chosen), folder, dask)
        unread = {path: why for part in parts for path, why in part.unread.items()}
        changed = {path: why for part in parts for path, why in part.changed.items()}
        for paths, problem in (
            (unread, "cannot be read again"),
            (changed, "have changed since they were symbolized"),
        ):
            if paths:
                path, why = next(iter(paths.items()))
                note(f"{len(paths)} recordings {problem}: decoded, but not compared ({path}: {why})")
        differences = [difference for part in parts for difference in part.differences]
        if not differences:
            raise Failure(
                "all recordings have changed since `ecgbyte symbolize`: there is nothing to compare with"
            )
        squares, prds, snrs = zip(*differences, strict=True)
        samples = len(differences) * each
        result = {
            "segments": len(chosen),
            "compared": len(differences),
            "changed": len(changed),
            "rmse_uv": 1000 * float(np.sqrt(np.sum(squares) / samples)),
            # a flat segment has no relative difference
            "prd_percent": mean(prds),
            "snr_db": mean(snrs),
            "clipped_fraction": sum(part.clipped for part in parts) / samples,
            **summary(np.concatenate([np.zeros((0, 3)), *(beats for part in parts for beats in part.beats)])),
            "seconds": time.perf_counter() - start,
        }
        write_json(folder / work.decode_settings.name, {"settings": settings, "result": result}, indent=1)
    return result


def _decode_parts(work: WorkDir, rows: list["Row"], folder: Path, dask: str | None) -> list["Comparison"]:
    """Decode all segments into a folder, and return the comparisons in order."""
    parts = [rows[i : i + PART] for i in range(0, len(rows), PART)]
    tasks = ((number, part, work, folder) for number, part in enumerate(parts))
    decoded = _on_cluster(dask, work, rows, tasks) if dask else (decode_part(*task) for task in tasks)
    comparisons = {}
    with progress("decode", len(rows), "segments") as bar, closing(decoded):  # type: ignore[type-var]
        for number, comparison in decoded:
            comparisons[number] = comparison
            bar.advance(len(parts[number]))
    return [comparisons[number] for number in range(len(parts))]


def _on_cluster(dask: str, work: WorkDir, rows: list["Row"], tasks: Iterable[tuple]) -> Iterator[tuple]:
    """Decode on a cluster whose workers can read the letters, the tokens and the recordings."""
    own = [work.ecg_tokenizer, work.symbols, work.tokens]

    def files(paths: list[str]) -> list[str | os.PathLike]:
        return [*own, *readers.files_of(paths)]

    def reads(number: int, part: list[Row], *_: object) -> list[str | os.PathLike]:
        return files([row.path for row in part])

    sampled = cluster.sample(sorted({row.path for row in rows}))
    return cluster.map_tasks(dask, work.root, decode_part, tasks, files(sampled), reads)


class Row(NamedTuple):
    """A segment's values in the tables."""

    segment: int
    record: str
    path: str
    start: float
    lo: float
    hi: float
    letters: int  # offset of its letters
    tokens: int  # offset of its tokens
    length: int  # number of its tokens


class Comparison(NamedTuple):
    """The errors of several segments."""

    differences: list[tuple[float, float, float]]  # per compared segment: see `fidelity.differences`
    beats: list[np.ndarray]  # per compared segment: see `fidelity.beat_errors`
    clipped: int  # samples outside the range of the letters
    unread: dict[str, str]  # recordings that cannot be read again: path to reason
    changed: dict[str, str]  # recordings that have changed: path to reason


def _rows(work: WorkDir, chosen: np.ndarray) -> list[Row]:
    """Return the rows of segments."""
    places, segments = read_table(work.token_segments), read_table(work.symbol_segments)
    columns = [segments[name] for name in ("record", "path", "start", "lo", "hi", "offset")]
    columns += [places["offset"], places["length"]]
    return [Row(int(i), *(column[i] for column in columns)) for i in chosen]


def decode_part(number: int, rows: Sequence[Row], work: WorkDir, folder: Path) -> tuple[int, Comparison]:
    """Decode some segments into a folder, and compare them with the recordings.

    Returns
    -------
    (int, Comparison)
        `number`, and the errors.
    """
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    tokens, symbols = read_array(work.tokens), read_array(work.symbols)
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    each = len(leads) * tokenizer.signal["samples"]
    originals = Originals(tokenizer.signal, work.reading())
    lead_ii = leads.index("II") if "II" in leads and fs >= fidelity.LEAST_FS else None
    differences, beat_errors, clipped = [], [], 0
    unread, changed = dict[str, str](), dict[str, str]()
    for row in rows:
        letters = tokenizer.decode(tokens[row.tokens : row.tokens + row.length])
        if not np.array_equal(letters.ravel(), symbols[row.letters :][:each]):
            raise Failure(
                f"{work.tokens}: segment {row.segment} does not decode to its letters; encode again"
            )
        signal = tokenizer.to_mv(letters, row.lo, row.hi)
        original, comments = originals.segment(row.path, row.start)
        comments = [*comments, "Decoded from ECG tokens by ecgbyte"]
        write_record(folder, f"{file_name(row.record)}_{row.segment:06d}", signal, tokenizer.signal, comments)
        if original is None:
            unread[row.path] = originals.reason
        elif not np.array_equal(tokenizer.letters(original), letters):
            changed[row.path] = "its letters differ from the work folder's"
        else:
            differences.append(fidelity.differences(original, signal))
            if lead_ii is not None:
                beats = fidelity.beats(original[lead_ii], fs)
                beat_errors.append(fidelity.beat_errors(original[lead_ii], signal[lead_ii], fs, beats))
            clipped += int(((original < row.lo) | (original > row.hi)).sum())
    return number, Comparison(differences, beat_errors, clipped, unread, changed)


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of the finite values, or None if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def summary(errors: np.ndarray) -> dict[str, Any]:
    """Return the errors of beats, (beats, 3), as results."""
    result: dict[str, Any] = {"beats": len(errors)}
    if len(errors):
        for name, column in zip(("r_amplitude_mv", "r_time_ms", "st_level_mv"), errors.T, strict=True):
            result[name] = {
                "mean_absolute": float(np.abs(column).mean()),
                "p95_absolute": float(np.percentile(np.abs(column), 95)),
                "mean": float(column.mean()),
            }
    return result


class Originals:
    """Preprocessed segments of recordings, read again. The last recording stays in memory for its next segment.

    Parameters
    ----------
    settings : dict
        The tokenizer's `signal`.
    reading : dict
        Arguments of `readers.read_recording` besides the path.
    """

    def __init__(self, settings: dict[str, Any], reading: Mapping[str, Any]):
        self.settings, self.reading = settings, reading
        self.path: str | None = None
        self.reason = ""

    def segment(self, path: str, start: float) -> tuple[np.ndarray | None, list[str]]:
        """Return a segment in mV, float32 (leads, samples), and header comments; None and [] if it is missing.

        `reason` says why it is missing.
        """
        if path != self.path:
            self.path, self.segments, self.comments = path, dict[float, np.ndarray](), list[str]()
            self.reason = "shorter than before"
            try:
                recording = readers.read_recording(path, **self.reading)
                self.segments = dict(preprocess.segments(recording, self.settings))
                self.comments = recording.comments
            except readers.Unusable as error:
                if caused_by_interrupt(error):
                    raise KeyboardInterrupt from None
                self.reason = error.message
        return self.segments.get(start), self.comments
