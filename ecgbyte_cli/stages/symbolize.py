"""ecgbyte symbolize: recordings to letters."""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal as signals
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__, preprocess, records
from ecgbyte_cli.console import Failure, Stage, note, progress, say, table
from ecgbyte_cli.workdir import (
    finished,
    new_array,
    read_json,
    read_table,
    sha256_of,
    whole,
    write_json,
    write_table,
)
from ecgbyte_kernels import quantize as kernels

PART = 64  # recordings that are done together, and lost together if the run is killed
FIXED = ("minmax", "mulaw", "trellis")  # quantizers that need not know the corpus


@click.command(
    cls=Stage,
    short_help="Turn recordings into letters.",
    epilog="Example: ecgbyte symbolize data/ --profile resample --fs 100 --leads II,V1",
)
@click.argument("data")
@click.option("--fs", default=250.0, show_default=True, help="Sampling rate to resample to, in Hz.")
@click.option(
    "--leads", default=",".join(preprocess.LEADS), show_default=True, help="Leads, in the order to keep."
)
@click.option("--segment", default=10.0, show_default=True, help="Length of a segment in seconds.")
@click.option(
    "--profile",
    type=click.Choice(["paper", "resample"]),
    default="paper",
    show_default=True,
    help="The published filters, or resampling alone.",
)
@click.option(
    "--quantizer",
    type=click.Choice(["paper", "minmax", "mulaw", "lloyd", "trellis"]),
    default="paper",
    show_default=True,
    help="Equal steps over the corpus' range or each segment's own, companded steps, fitted levels, or "
    "steps of each segment's RMS with as few changes as pay (with 43 levels the most faithful for its tokens).",
)
@click.option(
    "--levels", type=click.IntRange(2, 256), default=26, show_default=True, help="How many letters."
)
@click.option(
    "--range",
    "bounds",
    type=(float, float),
    default=None,
    metavar="LO HI",
    show_default="1st and 99th percentile of the corpus, 0.5 mV wider",
    help="Range of the quantizer `paper`, in mV.",
)
@click.option("--mu", default=20.0, show_default=True, help="Companding of the quantizer `mulaw`.")
@click.option(
    "--fill-nan",
    type=click.Choice(["linear"]),
    default=None,
    show_default="skip the recording",
    help="Interpolate missing samples, up to 40 ms in a row.",
)
@click.option(
    "--patients",
    type=click.Path(path_type=Path),
    default=None,
    show_default="as the recordings say",
    help="CSV table of records and patients, such as ptbxl_database.csv or record_list.csv.",
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
    help="Names of the leads in files that do not say them (NumPy, HDF5).",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=None, show_default="all processors", help="Processes to use."
)
@click.option(
    "--overwrite", is_flag=True, show_default=True, help="Replace letters made with other settings."
)
@click.pass_obj
def command(work, **options):
    """Turn recordings into letters: pick leads, filter, resample, cut into segments, quantize.

    DATA is a folder, a RECORDS file, a pattern in quotes, or one recording with or without its extension.
    """
    result = symbolize(work, **options)
    rate = result["records"] / max(result["seconds"], 1e-9)
    say(
        f"{result['records']} records, {result['segments']} segments of {result['leads']} leads at "
        f"{result['fs']:g} Hz, {result['symbols']} letters in {result['seconds']:.1f} s ({rate:.0f} records/s)"
    )
    if result["skipped"]:
        reasons = Counter(
            reason.partition(":")[0] for reason in read_table(work.skipped)["reason"]
        ).most_common()
        table(reasons, ("skipped because", "recordings"))
        say(f"each with its reason: {work.skipped}")
    return result


def symbolize(
    work,
    data,
    *,
    fs=250.0,
    leads="I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6",
    segment=10.0,
    profile="paper",
    quantizer="paper",
    levels=26,
    bounds=None,
    mu=20.0,
    fill_nan=None,
    patients=None,
    input_fs=None,
    lead_names=None,
    jobs=None,
    overwrite=False,
):
    """Turn recordings into letters.

    Parameters
    ----------
    work : WorkDir
    data : str or Path
        A folder, a RECORDS file, a glob pattern or one recording.
    fs : float
        Sampling rate to resample to, Hz.
    leads : str
        Lead names with commas between them.
    segment : float
        Length of a segment, s.
    profile : {"paper", "resample"}
    quantizer : {"paper", "minmax", "mulaw", "lloyd", "trellis"}
    levels : int
        2 to 256.
    bounds : tuple of float or None
        Range of the quantizer `paper` in mV; None takes the corpus' percentiles 1 and 99, 0.5 mV wider.
    mu : float
        Companding of `mulaw`, over +-5 mV.
    fill_nan : {"linear", None}
    patients : str or Path or None
        Table of records and patients; see `ecgbyte_cli.records.read_patients`.
    input_fs, lead_names : float and str, or None
        Sampling rate and lead names of files that do not say them.
    jobs : int or None
        Processes; None means one for each processor.
    overwrite : bool

    Returns
    -------
    dict
        `records`, `segments`, `skipped`, `leads` (how many), `fs`, `symbols` and `seconds`.

    Raises
    ------
    Failure
        If there is no usable recording, or other letters are there already.
    """
    started = time.perf_counter()
    names = [records.lead_name(lead) for lead in leads.split(",") if lead.strip()]
    samples = round(fs * segment) if fs > 0 and segment > 0 else 0
    if not names or len(set(names)) < len(names):
        raise click.UsageError(f"--leads {leads}: each lead once, commas between them")
    if not (0 < fs <= 100_000 and 1 < samples <= 2**24 and mu > 0):
        raise click.UsageError("--fs, --segment and --mu must be above 0 (and a segment of sensible length)")
    if bounds and not (quantizer == "paper" and -np.inf < bounds[0] < bounds[1] < np.inf):
        raise click.UsageError("--range needs --quantizer paper and two numbers, the smaller first")

    found, skipped = records.find(data, without=work.root)
    if patients:
        found = [path for path in found if path != os.path.realpath(patients)]
    known = records.read_patients(patients) if patients else {}
    asked = {
        "input": _fingerprint(found),
        "patients": sha256_of(patients) if patients else None,
        "input_fs": input_fs,
        "lead_names": [name.strip() for name in lead_names.split(",")] if lead_names else None,
        "fs": fs,
        "leads": names,
        "segment_seconds": segment,
        "samples": samples,
        "profile": profile,
        "fill_nan": fill_nan,
        "quantizer": _asked_quantizer(quantizer, levels, bounds, mu),
    }
    before = finished(work.symbol_settings, asked, overwrite, "letters")
    if before:
        note(f"{work.symbols.parent} holds these letters already (--overwrite makes them again)")
        return before
    _prepare(work, asked, overwrite)
    _make_parts(work.symbol_parts, found, asked, jobs or os.cpu_count())
    return _join(work, found, skipped, known, asked, started)


def _asked_quantizer(name, levels, bounds, mu):
    """The quantizer as far as the command line decides it; the corpus decides the rest."""
    lo, hi = bounds or (None, None)
    asked = {"name": name, "levels": levels, "lo": lo, "hi": hi}
    if name == "mulaw":
        return asked | {"mu": mu, "limit": 5.0}
    # what examples/rate_distortion.py found best
    return asked | {"mu": 2.0, "limit": 16.0, "penalty": 0.25} if name == "trellis" else asked


def _fingerprint(found):
    """A hash of the inputs' names, sizes and times, which changes when the data does."""
    base = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    digest = hashlib.sha256()
    file = stamp = None
    for path in found:
        if file != re.sub(r"#\d+$", "", path):  # the rows of an HDF5 file share one
            file = re.sub(r"#\d+$", "", path)
            try:
                stamp = f"{os.stat(file).st_size} {os.stat(file).st_mtime_ns}"
            except OSError:
                stamp = "missing"
        digest.update(f"{os.path.relpath(path, base)} {stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _prepare(work, asked, overwrite):
    """Make the folder of parts, or find the one that an interrupted run with these settings left."""
    place = work.symbol_parts / "settings.json"
    if place.exists() and read_json(place) != json.loads(json.dumps(asked)):
        if not overwrite:
            raise Failure(
                f"{work.symbol_parts} holds an interrupted run with other settings: "
                "add --overwrite, or use another --work folder"
            )
        shutil.rmtree(work.symbol_parts)
    for leftover in work.symbols.parent.glob(".*.part"):  # of a killed run
        leftover.unlink(missing_ok=True)
    if not place.exists():
        write_json(place, asked)


def _make_parts(folder, found, asked, jobs):
    """Do the recordings, `PART` at a time, each part into a file of its own; parts that are there stay."""
    todo = [n for n in range(-(-len(found) // PART)) if not _part(folder, n).exists()]
    done = len(found) - sum(len(found[n * PART : (n + 1) * PART]) for n in todo)
    if done:
        note(f"going on: {done} of {len(found)} recordings were done")
    with progress("symbolizing", len(found), "records") as bar:
        bar.update(done)
        tasks = ((folder, n, found[n * PART : (n + 1) * PART], asked) for n in todo)
        start = time.perf_counter()
        fresh = 0
        for count in _in_parallel(_make_part, tasks, min(jobs, len(todo))):
            fresh += count
            bar.update(done + fresh, f"{fresh / (time.perf_counter() - start):.0f} records/s")


def _in_parallel(function, tasks, jobs):
    """Yield the results of `function(*task)`, in any order, from `jobs` processes."""
    if jobs <= 1:
        yield from (function(*task) for task in tasks)
        return
    # not by fork: a process with threads of its own (Numba, torch) must not be copied
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__, "scipy.signal", "pywt"])
    pool = ProcessPoolExecutor(jobs, context, initializer=_ignore_interrupts)
    try:
        running = set()
        for task in tasks:
            if len(running) >= 2 * jobs:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
            running.add(pool.submit(function, *task))
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts():
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # Ctrl-C is the main process' business


def _part(folder, number):
    return Path(folder) / f"{number:07d}.part"


def _make_part(folder, number, paths, asked):
    """Do some recordings and write their part: signals or letters, counts, and a row for each segment."""
    quantizer = asked["quantizer"]
    ready = quantizer["name"] in FIXED or quantizer["lo"] is not None
    blocks, rows, skipped, remarks = [], [], [], []
    counts = np.zeros(2**16, np.int64)
    for path in paths:
        try:
            recording = records.read(path, asked["input_fs"], asked["lead_names"])
            cut = preprocess.segments(recording, asked)
        except Failure as error:
            skipped.append((path, error.message))
            continue
        patient, split = records.patient_of(recording), recording.comment("split")
        if asked["profile"] == "paper":
            remarks.append([recording.fs, preprocess.paper_filters(recording.fs)[1]])
        for start, signal in cut:
            lo = hi = 0.0
            if ready:
                block, lo, hi = kernels.quantize(signal, quantizer)
            else:
                block = signal
                kernels.count_upper(signal, counts)
            blocks.append(block)
            rows.append([recording.name, patient, split, path, start, lo, hi])
    shape = (0, len(asked["leads"]), asked["samples"])
    about = {"rows": rows, "skipped": skipped, "remarks": remarks}
    used = np.flatnonzero(counts)
    with whole(_part(folder, number)) as beside, open(beside, "wb") as file:
        np.save(file, np.frombuffer(json.dumps(about).encode(), np.uint8))
        np.save(file, np.stack([used, counts[used]]))
        np.save(file, np.array(blocks) if blocks else np.zeros(shape, np.uint8))
    return len(paths)


def _read_part(path, blocks=True):
    """What `_make_part` wrote: the rows and what else was noted, the counts, and the blocks if wanted."""
    with open(path, "rb") as file:
        about = json.loads(np.load(file, allow_pickle=False).tobytes())
        counts = np.load(file, allow_pickle=False)
        return about, counts, np.load(file, allow_pickle=False) if blocks else None


def _join(work, found, skipped, known, asked, started):
    """Make the symbols and tables of all parts, settings last, and clear the parts away."""
    parts = [_part(work.symbol_parts, n) for n in range(-(-len(found) // PART))]
    counts, segments, left_out, unlisted = np.zeros(2**16, np.int64), 0, Counter(), 0
    for path in parts:
        about, (used, times), _ = _read_part(path, blocks=False)
        counts[used] += times
        segments += len(about["rows"])
        skipped = skipped + about["skipped"]
        left_out.update((fs, ", ".join(names)) for fs, names in about["remarks"] if names)
        unlisted += len({row[0] for row in about["rows"]} - known.keys())
    if known and unlisted:
        note(f"{unlisted} recordings are not in the table of patients: taken as their own files say")
    for (fs, names), times in sorted(left_out.items()):
        note(f"{times} recordings at {fs:g} Hz: left out {names}")
    if not segments:
        shutil.rmtree(work.symbol_parts)
        if not any(work.symbols.parent.iterdir()):
            work.symbols.parent.rmdir()
        path, reason = skipped[0]
        raise Failure(f"none of {len(skipped)} recordings can be used; the first, {path}: {reason}")

    quantizer = _fit(asked["quantizer"], counts, parts)
    shape = (len(asked["leads"]), asked["samples"])
    letters = segments * shape[0] * shape[1]
    # without settings the rest counts as nothing
    work.symbol_settings.unlink(missing_ok=True)
    with (
        new_array(work.symbols, np.uint8, (letters,)) as symbols,
        _rows(work.symbol_segments) as write,
        progress("writing letters", segments, "segments") as bar,
    ):
        done = 0
        for path in parts:
            about, _, blocks = _read_part(path)
            rows = about["rows"]
            if not rows:
                continue
            for row in rows:
                row[1], row[2] = _patient_and_split(row, known)
            if blocks.dtype != np.uint8:
                blocks, lo, hi = kernels.quantize(blocks, quantizer)
                rows = [[*row[:5], lo, hi] for row in rows]
            size = shape[0] * shape[1]
            symbols[done * size : (done + len(rows)) * size] = blocks.reshape(-1)
            write(done, rows, shape)
            done += len(rows)
            bar.update(done)
    write_table(
        work.skipped, {"path": [path for path, _ in skipped], "reason": [reason for _, reason in skipped]}
    )
    result = {
        "records": len(set(found) - {path for path, _ in skipped}),
        "segments": segments,
        "skipped": len(skipped),
        "leads": len(asked["leads"]),
        "fs": asked["fs"],
        "symbols": letters,
        "seconds": time.perf_counter() - started,
    }
    about_input = ("input", "patients", "input_fs", "lead_names")
    signal = {k: v for k, v in asked.items() if k not in about_input} | {"quantizer": quantizer}
    write_json(
        work.symbol_settings,
        {"settings": asked, "result": result, "signal": signal, "ecgbyte": __version__},
        indent=1,
    )
    shutil.rmtree(work.symbol_parts)
    return result


def _patient_and_split(row, known):
    """Whose a recording is, and the side it is on: by the table, else by the file, else by the hash."""
    record, patient, split = row[:3]
    patient, listed = known.get(record, (patient, None))
    split = listed or split
    return patient, split if split in ("train", "val", "test") else records.split_of(patient)


def _fit(quantizer, counts, parts):
    """Complete the quantizer with what the corpus says."""
    if quantizer["name"] == "paper" and quantizer["lo"] is None:
        p1, p99 = _percentiles(parts, counts, (1, 99))
        return quantizer | {"lo": p1 - 0.5, "hi": p99 + 0.5}
    if quantizer["name"] == "lloyd":
        try:
            edges, centroids = kernels.fit_lloyd(counts, quantizer["levels"])
        except ValueError as error:
            raise Failure(f"--quantizer lloyd: {error}; take fewer --levels") from error
        return quantizer | {"edges": edges.tolist(), "centroids": centroids.tolist()}
    return quantizer


def _percentiles(parts, counts, percents):
    """Exact percentiles of all signals, as numpy.percentile gives them, in one more reading."""
    total, below = int(counts.sum()), np.cumsum(counts) - counts
    ranks = [kernels.ranks_of(percent, total) for percent in percents]
    uppers = {r: int(np.searchsorted(below, r, "right") - 1) for a, b, _ in ranks for r in (a, b)}
    lowers = {upper: np.zeros(2**16, np.int64) for upper in uppers.values()}
    for path in parts:
        about, _, blocks = _read_part(path)
        if about["rows"]:
            for upper, lower in lowers.items():
                kernels.count_lower(blocks, upper, lower)

    def value(rank):
        upper = uppers[rank]
        within = np.searchsorted(np.cumsum(lowers[upper]), rank - below[upper], "right")
        return float(kernels.value_of(upper, within))

    return [value(a) + (value(b) - value(a)) * part for a, b, part in ranks]


@contextmanager
def _rows(path):
    """Write the table of segments part by part, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    text, whole_number, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    schema = pyarrow.schema(
        [("segment", whole_number), ("record", text), ("patient", text), ("split", text), ("path", text)]
        + [("start", number), ("leads", whole_number), ("samples", whole_number), ("offset", whole_number)]
        + [("lo", number), ("hi", number)]
    )
    with whole(path) as beside, pyarrow.parquet.ParquetWriter(beside, schema) as file:

        def write(first, rows, shape):
            record, patient, split, paths, start, lo, hi = (
                list(column) for column in zip(*rows, strict=True)
            )
            segment = np.arange(first, first + len(rows))
            leads, samples = (np.full(len(rows), size) for size in shape)
            columns = [segment, record, patient, split, paths, start, leads, samples]
            columns += [segment * shape[0] * shape[1], lo, hi]
            file.write_table(pyarrow.table(columns, schema=schema))

        yield write
