"""ecgbyte symbolize: recordings to letters."""

import hashlib
import os
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.folder_checks import resolve_model_folder
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.signal import corpus, preprocess, quantizers
from ecgbyte_cli.signal.symbolize import (
    COLUMNS,
    about_part,
    blocks_of_part,
    columns,
    lost_leads,
    make_part,
    parts_on_cluster,
    say_what_is_lost,
)
from ecgbyte_cli.storage.files import (
    array_writer,
    read_table,
    sha256_of,
    table_writer,
    write_json,
    write_table,
)
from ecgbyte_cli.storage.manifest import add_checksum, completed_result, describe_files
from ecgbyte_cli.storage.partial_results import PartialResults

PRELOAD = ("ecgbyte_cli.signal.symbolize", "scipy.signal", "pywt")
OF_SIGNAL = ("fs", "leads", "segment", "profile", "quantizer", "levels", "bounds", "mu", "fill_nan")
PART = 64  # recordings that are done together, and lost together if the run is killed


@click.command(
    cls=Stage,
    short_help="Turn recordings into letters.",
    epilog="Example: ecgbyte symbolize data/ --profile resample --fs 100 --leads II,V1",
)
@click.argument("data", nargs=-1, required=True)
@click.option("--fs", default=250.0, show_default=True, help="Sampling rate to resample to, in Hz.")
@click.option(
    "--leads", default=",".join(preprocess.LEADS), show_default=True, help="Leads, in the order to keep."
)
@click.option("--segment", default=10.0, show_default=True, help="Length of a segment in seconds.")
@click.option(
    "--profile",
    type=click.Choice(list(preprocess.PROFILES)),
    default="paper",
    show_default=True,
    help=preprocess.help_text(),
)
@click.option(
    "--quantizer",
    type=click.Choice(list(quantizers.QUANTIZERS)),
    default=None,
    show_default="paper; with --profile elm, minmax",
    help=quantizers.help_text(),
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
    "--like",
    type=Model(),
    help="Read recordings as a model does (its folder, or an ecg_tokenizer.json), and take its merges: in the place "
    "of `learn` and of all options that say what the letters are.",
)
@click.option(
    "--fill-nan",
    type=click.Choice(["linear"]),
    default=None,
    show_default="skip the recording",
    help="Interpolate missing samples, up to 40 ms in a row.",
)
@click.option(
    "--patients",
    multiple=True,
    type=click.Path(path_type=Path),
    show_default="as the recordings say",
    help="CSV table of records and patients, such as ptbxl_database.csv or record_list.csv. Of several data sets: one "
    "for all, or one for each in their order, `none` for one without.",
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
    "--units",
    type=click.Choice(["uV", "mV", "V"]),
    default=None,
    show_default="mV",
    help="Units of files that do not say them (CSV, TSV, NumPy, HDF5).",
)
@click.option(
    "--keep-identity",
    is_flag=True,
    help="Keep patients' numbers, names and birth dates that hospital files hold.",
)
@click.option(
    "--patient-salt",
    show_default="one made for the work folder",
    help="Key of the hash that stands for a patient's number: the same key, the same hash.",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=None, show_default="all processors", help="Processes to use."
)
@cluster.option
@click.option(
    "--overwrite", is_flag=True, show_default=True, help="Replace letters made with other settings."
)
@click.pass_obj
def command(work, **options):
    """Turn recordings into letters: pick leads, filter, resample, cut into segments, quantize.

    DATA is a folder, a RECORDS file, a pattern in quotes, or one recording with or without its extension; or
    several of these. Several folders are several data sets, whose patients get the folder's name in front.

    An imported tokenizer in the work folder describes the letters, unless an option such as --profile does.
    """
    told = click.get_current_context().get_parameter_source
    given = [name for name in OF_SIGNAL if told(name) is click.core.ParameterSource.COMMANDLINE]
    if options["like"] and given:
        raise click.UsageError(
            "--like says all of the signal: leave the other options out that would, as --fs"
        )
    if not options["like"] and not given:
        options["like"] = corpus.imported(work)
    result = symbolize(work, **options)
    rate = result["records"] / max(result["seconds"], 1e-9)
    print_result(
        f"{result['records']} records, {result['segments']} segments of {result['leads']} leads at "
        f"{result['fs']:g} Hz, {result['symbols']} letters in {result['seconds']:.1f} s ({rate:.0f} records/s)"
    )
    if result["skipped"]:
        reasons = Counter(
            reason.partition(":")[0] for reason in read_table(work.skipped)["reason"]
        ).most_common()
        table(reasons, ("skipped because", "recordings"))
        print_result(f"each with its reason: {work.skipped}")
    return result


def symbolize(
    work,
    data,
    *,
    fs=250.0,
    leads="I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6",
    segment=10.0,
    profile="paper",
    quantizer=None,
    levels=26,
    bounds=None,
    mu=20.0,
    like=None,
    fill_nan=None,
    patients=(),
    input_fs=None,
    lead_names=None,
    units=None,
    keep_identity=False,
    patient_salt=None,
    jobs=None,
    dask=None,
    overwrite=False,
):
    """Turn recordings into letters.

    The parameters are the options of the command, which says what they do; `bounds` is its --range. A tokenizer in the
    work folder is used only if `like` names it.

    Returns
    -------
    dict
        `records`, `segments`, `skipped`, `leads` (how many), `fs`, `symbols` and `seconds`.

    Raises
    ------
    Failure
        If there is no usable recording, or other letters or merges are there already.
    """
    started = time.perf_counter()
    merges, asked_quantizer = None, quantizers.describe(quantizer, levels, bounds, mu, profile)
    if like:
        merges, signal = corpus.as_read_by(resolve_model_folder(like))
        fs, segment, profile, fill_nan = (signal[k] for k in ("fs", "segment_seconds", "profile", "fill_nan"))
        leads, bounds, asked_quantizer = ",".join(signal["leads"]), None, signal["quantizer"]
        there = work.ecg_tokenizer
        if there.exists() and not overwrite and sha256_of(there) != sha256_of(merges):
            raise Failure(f"{there} is another tokenizer: take another --work, or --overwrite")
    names = [readers.lead_name(lead) for lead in leads.split(",") if lead.strip()]
    samples = round(fs * segment) if fs > 0 and segment > 0 else 0
    if not names or len(set(names)) < len(names):
        raise click.UsageError(f"--leads {leads}: each lead once, commas between them")
    if not (0 < fs <= 100_000 and 1 < samples <= 2**24 and mu > 0):
        raise click.UsageError("--fs, --segment and --mu must be above 0 (and a segment of sensible length)")
    takes_range = quantizers.QUANTIZERS[asked_quantizer["name"]].takes_range
    if bounds and not (takes_range and -np.inf < bounds[0] < bounds[1] < np.inf):
        raise click.UsageError("--range needs --quantizer paper and two numbers, the smaller first")

    sets, skipped, told = readers.find_data_sets(data, patients, without=work.root)
    asked = {
        **told,
        "input_fs": input_fs,
        "lead_names": [name.strip() for name in lead_names.split(",")] if lead_names else None,
        "units": units,
        "keep_identity": keep_identity or None,  # as before, where there was no such option
        "patient_salt": None if patient_salt is None else hashlib.sha256(patient_salt.encode()).hexdigest(),
        "fs": fs,
        "leads": names,
        "segment_seconds": segment,
        "samples": samples,
        "profile": profile,
        "fill_nan": fill_nan,
        "quantizer": asked_quantizer,
    }
    before = completed_result(work.symbol_settings, asked, overwrite, "letters")
    if before:
        with work.checked("symbols"):
            note(f"{work.symbols.parent} holds these letters already (--overwrite makes them again)")
        return corpus.take_merges(work, merges, before)
    with work.making("symbols"):
        completed_result(work.symbol_settings, asked, overwrite, "letters")  # another run may just have ended
        parts = PartialResults(work.symbol_parts, asked, overwrite)
        if len(sets) > 1:
            note(f"data sets: {', '.join(f'{its.name} ({len(its.found)} recordings)' for its in sets)}")
        # a part is of one data set
        lots = [(its, its.found[i : i + PART]) for its in sets for i in range(0, len(its.found), PART)]
        _make_parts(work, parts, lots, asked, patient_salt or work.salt(), jobs or os.cpu_count(), dask)
        made = _join(work, parts, sets, lots, skipped, asked, started)
        return corpus.take_merges(work, merges, made)


def _make_parts(work, parts, lots, asked, salt, jobs, dask):
    """Do the recordings, each lot into a part of its own; parts that are there stay."""
    todo, total = parts.missing(len(lots)), sum(len(paths) for _, paths in lots)
    done = total - sum(len(lots[n][1]) for n in todo)
    if done:
        note(f"going on: {done} of {total} recordings were done")
    with progress("symbolizing", total, "records") as bar:
        bar.update(done)
        tasks = ((parts, n, lots[n][1], asked, salt) for n in todo)
        start, fresh = time.perf_counter(), 0
        here = min(jobs, len(todo))
        each = parts_on_cluster(dask, work.root, lots, tasks) if dask else None
        with closing(each or in_parallel(make_part, tasks, here, PRELOAD)) as counts:
            for count in counts:
                fresh += count
                bar.update(done + fresh, f"{fresh / (time.perf_counter() - start):.0f} records/s")


def _join(work, parts, sets, lots, skipped, asked, started):
    """Make the symbols and tables of all parts, settings last, and clear the parts away."""
    counts, segments, left_out = np.zeros(2**16, np.int64), 0, Counter()
    placeholders, unlisted, moved = 0, 0, 0
    for number, (its, _) in enumerate(lots):
        about, (used, times) = about_part(parts, number)
        counts[used] += times
        segments += len(about["rows"])
        skipped = skipped + about["skipped"]
        left_out.update((fs, ", ".join(names)) for fs, names in about["remarks"] if names)
        placeholders += about["placeholders"]
        for path, (name, side) in (
            {row[3]: (row[0], row[2]) for row in about["rows"]}.items() if its.known else ()
        ):
            told = readers.find_listed(name, its.known, path)
            unlisted += told is None
            placeholders += told is not None and readers.is_placeholder(told[0])
            moved += None not in (told, side) and told[1] not in (None, side)
        its.stated.update(about["stated"])
    gone = {path for path, _ in skipped}
    for its in sets:
        its.settle(gone)
    if unlisted:
        note(f"{unlisted} recordings are not in the table of patients: taken as their own files say")
    if moved:
        note(
            f"{moved} recordings are on another side of the split in the table of patients than in their own files: "
            "the table decides"
        )
    for (fs, names), times in sorted(left_out.items()):
        note(f"{times} recordings at {fs:g} Hz: left out {names}")
    if not segments:
        parts.remove()
        if not any(work.symbols.parent.iterdir()):
            work.symbols.parent.rmdir()
        path, reason = skipped[0]
        raise Failure(f"none of {len(skipped)} recordings can be used; the first, {path}: {reason}")
    if placeholders:
        note(
            f"{placeholders} recordings name a placeholder as their patient: each counts as a patient of its own"
        )
    for its in sets:
        if its.everyone:
            where = its.name and f" of {its.name}"
            note(
                f"all {its.used} recordings{where} name the patient {its.everyone}: each counts as a patient of "
                "its own"
            )

    def blocks_of_parts():
        return (block for number in range(len(lots)) for block in blocks_of_part(parts, number))

    quantizer = quantizers.fit(asked["quantizer"], counts, blocks_of_parts)
    shape = (len(asked["leads"]), asked["samples"])
    letters = segments * shape[0] * shape[1]
    # without settings the rest counts as nothing
    work.symbol_settings.unlink(missing_ok=True)
    used, lost = np.zeros(256, np.int64), []
    sides: dict[str, set[str]] = {}
    with (
        array_writer(work.symbols, np.uint8, letters) as write_letters,
        table_writer(work.symbol_segments, COLUMNS) as write_rows,
        progress("writing letters", segments, "segments") as bar,
    ):
        done = 0
        for number, (its, _) in enumerate(lots):
            about, _ = about_part(parts, number)
            rows, at = about["rows"], 0
            lost += about["lost"]
            for block in blocks_of_part(parts, number):
                here = rows[at : at + len(block)]
                for row in here:
                    row[1], row[2] = its.whose(*row[:4])
                    sides.setdefault(row[1], set()).add(row[2])
                if block.dtype != np.uint8:
                    signals = block
                    block, lo, hi = quantizers.quantize(signals, quantizer)
                    for row in here:
                        row[5:] = lo, hi
                    lost += lost_leads([row[0] for row in here], signals, block, asked["leads"])
                used += np.bincount(block[..., ::4].reshape(-1), minlength=256)  # as telling as all
                write_letters(block)
                at += len(block)
                bar.update(done + at)
            if rows:
                write_rows(columns(done, rows, shape))
            done += len(rows)
    say_what_is_lost(lost, used, quantizer)
    if line := readers.on_two_sides(sides):
        note(line)
    write_table(
        work.skipped, {"path": [path for path, _ in skipped], "reason": [reason for _, reason in skipped]}
    )
    result = {
        "records": sum(its.used for its in sets),
        "segments": segments,
        "skipped": len(skipped),
        "leads": len(asked["leads"]),
        "fs": asked["fs"],
        "symbols": letters,
        "seconds": time.perf_counter() - started,
    }
    about_input = ("input", "patients", "input_fs", "lead_names", "units", "keep_identity", "patient_salt")
    settings = {
        "settings": asked,
        "result": result,
        "signal": {k: v for k, v in asked.items() if k not in about_input} | {"quantizer": quantizer},
        "files": describe_files(work.symbols, work.symbol_segments, work.skipped),
        "ecgbyte": __version__,
    }
    write_json(work.symbol_settings, add_checksum(settings), indent=1)
    parts.remove()
    return result
