"""ecgbyte symbolize: turn recordings into letters."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import Recordings, dask_option
from ecgbyte_cli.cli.output import counted, note, print_result, progress, table
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.model_names import resolve_model_folder
from ecgbyte_cli.readers.data_sets import DataSet, Paths
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.runtime.row_parts import none_usable
from ecgbyte_cli.signal import corpus, preprocess, quantizers
from ecgbyte_cli.signal.join_parts import Lots, summarize_parts, write_letters
from ecgbyte_cli.signal.symbolize import blocks_of_part, make_part, parts_on_cluster
from ecgbyte_cli.storage.files import read_table, sha256_of, write_json, write_table
from ecgbyte_cli.storage.manifest import add_checksum, describe_files
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.workdir import WorkDir

PRELOAD = ("ecgbyte_cli.signal.symbolize", "scipy.signal", "pywt")
OF_SIGNAL = (
    "fs",
    "leads",
    "any_leads",
    "segment",
    "profile",
    "quantizer",
    "levels",
    "bounds",
    "mu",
    "fill_nan",
)
OF_INPUT = (
    "input",
    "patients",
    "input_fs",
    "lead_names",
    "units",
    "keep_identity",
    "patient_salt",
    "keep_signal",
)
PART = 64  # recordings per part; a killed run loses at most one part per process


@dataclass(frozen=True)
class SymbolizeOptions:
    """Options of `ecgbyte symbolize`."""

    fs: float = 250.0  # sampling rate to resample to, in Hz
    leads: str = ",".join(preprocess.LEADS)  # leads to keep, in order, separated by commas
    any_leads: bool = False  # use recordings that have only some of the leads
    segment: float = 10.0  # length of a segment in seconds
    profile: str = "paper"  # filters and resampling: paper, elm, monitor or resample
    quantizer: str | None = (
        None  # paper, minmax, mulaw, lloyd or trellis; None: minmax for profile elm, else paper
    )
    levels: int = 26  # number of letters
    bounds: tuple[float, float] | None = None  # range of the quantizer `paper` in mV (--range)
    mu: float = 20.0  # companding of the quantizer `mulaw`
    like: Path | str | None = (
        None  # model folder or ecg_tokenizer.json that provides signal settings and merges
    )
    keep_signal: bool = False  # keep the filtered signals, for `finetune --augment`
    fill_nan: str | None = None  # linear: interpolate gaps of up to 40 ms
    patients: Sequence[
        Path
    ] = ()  # tables of records and patients: one for all data sets, or one per data set
    input_fs: float | None = None  # sampling rate of files that do not state it, in Hz
    lead_names: str | None = None  # lead names of files that do not state them, separated by commas
    units: str | None = None  # unit of files that do not state it: uV, mV or V
    keep_identity: bool = False  # keep patients' numbers, names and birth dates of hospital files
    patient_salt: str | None = (
        None  # key of the hash of patient numbers; None: a key stored in the work folder
    )
    jobs: int | None = None  # processes; None: one per processor
    dask: str | None = None  # address of a Dask cluster to work on
    overwrite: bool = False  # replace letters made with other settings


@click.command(
    cls=Stage,
    groups={
        "Data": (
            *("patients", "input_fs", "lead_names", "units"),
            *("fill_nan", "keep_identity", "patient_salt"),
        ),
        "Signal": ("fs", "leads", "any_leads", "segment", "profile", "keep_signal"),
        "Letters": ("quantizer", "levels", "bounds", "mu", "like"),
    },
    short_help="Turn recordings into letters.",
    epilog="Example: ecgbyte symbolize data/ --profile resample --fs 100 --leads II,V1",
)
@click.argument("data", nargs=-1, required=True, type=Recordings())
@click.option(
    "--fs", default=SymbolizeOptions.fs, show_default=True, help="Sampling rate to resample to, in Hz."
)
@click.option(
    "--leads", default=SymbolizeOptions.leads, show_default=True, help="Leads, in the order to keep."
)
@click.option(
    "--any-leads",
    is_flag=True,
    help="Use recordings that have only some of the leads, too. A model trained on these letters can read "
    "recordings with any leads: see `finetune --vary-leads`.",
)
@click.option(
    "--segment",
    default=SymbolizeOptions.segment,
    show_default=True,
    help="Length of a segment in seconds.",
)
@click.option(
    "--profile",
    type=click.Choice(list(preprocess.PROFILES)),
    default=SymbolizeOptions.profile,
    show_default=True,
    help=preprocess.help_text(),
)
@click.option(
    "--quantizer",
    type=click.Choice(list(quantizers.QUANTIZERS)),
    default=SymbolizeOptions.quantizer,
    show_default="paper; with --profile elm, minmax",
    help=quantizers.help_text(),
)
@click.option(
    "--levels",
    type=click.IntRange(2, 256),
    default=SymbolizeOptions.levels,
    show_default=True,
    help="Number of letters.",
)
@click.option(
    "--range",
    "bounds",
    type=(float, float),
    default=SymbolizeOptions.bounds,
    metavar="LO HI",
    show_default="1st and 99th percentile of the corpus, 0.5 mV wider",
    help="Range of the quantizer `paper`, in mV.",
)
@click.option(
    "--mu", default=SymbolizeOptions.mu, show_default=True, help="Companding of the quantizer `mulaw`."
)
@click.option(
    "--like",
    type=Model(),
    default=SymbolizeOptions.like,
    help="Use the signal settings and merges of a model (its folder, OWNER/NAME of the Hugging Face Hub, or an "
    "ecg_tokenizer.json), instead of `learn` and the options for letters.",
)
@click.option(
    "--keep-signal",
    is_flag=True,
    help="Keep the filtered signals, so that `finetune --augment` can vary them instead of the letters.",
)
@click.option(
    "--fill-nan",
    type=click.Choice(["linear"]),
    default=SymbolizeOptions.fill_nan,
    show_default="skip the recording",
    help="Interpolate missing samples, up to 40 ms in a row.",
)
@click.option(
    "--patients",
    multiple=True,
    type=click.Path(path_type=Path),
    default=SymbolizeOptions.patients,
    show_default="from the recordings",
    help="CSV table of records and patients, such as ptbxl_database.csv or record_list.csv. For several data sets: one "
    "table for all, or one per data set in the same order (`none` for a data set without).",
)
@click.option(
    "--input-fs",
    type=click.FloatRange(0, min_open=True),
    default=SymbolizeOptions.input_fs,
    show_default="from the files",
    help="Sampling rate of files that do not state it (CSV, TSV, NumPy), in Hz.",
)
@click.option(
    "--lead-names",
    default=SymbolizeOptions.lead_names,
    show_default="the 12 standard leads in their usual order",
    help="Leads of files that do not name them (NumPy, HDF5).",
)
@click.option(
    "--units",
    type=click.Choice(["uV", "mV", "V"]),
    default=SymbolizeOptions.units,
    show_default="mV",
    help="Unit of files that do not state it (CSV, TSV, NumPy, HDF5).",
)
@click.option(
    "--keep-identity",
    is_flag=True,
    help="Keep the patient numbers, names and birth dates of hospital files.",
)
@click.option(
    "--patient-salt",
    default=SymbolizeOptions.patient_salt,
    show_default="a random key for the work folder",
    help="Key of the hash that replaces patient numbers. The same key gives the same hashes.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=SymbolizeOptions.jobs,
    show_default="all processors",
    help="Number of processes.",
)
@dask_option
@click.option("--overwrite", is_flag=True, help="Replace letters made with other settings.")
@click.pass_obj
def command(work: WorkDir, data: tuple[str, ...], **options: Any) -> dict:
    """Turn recordings into letters: select leads, filter, resample, cut into segments, quantize.

    DATA is a folder, a RECORDS file, a pattern in quotes, or one recording with or without its extension. Name several
    if you like. Several folders are several data sets, and the folder's name is put before their patients.

    An imported tokenizer in the work folder defines the letters, unless an option such as --profile does.
    """
    source = click.get_current_context().get_parameter_source
    of_signal = [name for name in OF_SIGNAL if source(name) is click.core.ParameterSource.COMMANDLINE]
    if options["like"] and of_signal:
        raise click.UsageError("--like sets the signal settings: remove --fs and similar options")
    if not options["like"] and not of_signal:
        options["like"] = corpus.imported(work)
    result = symbolize(work, data, SymbolizeOptions(**options))
    rate = result["records"] / max(result["seconds"], 1e-9)
    print_result(
        f"{counted(result['records'], 'record')}, {counted(result['segments'], 'segment')} of "
        f"{counted(result['leads'], 'lead')} at {result['fs']:g} Hz, {result['symbols']} letters in "
        f"{result['seconds']:.1f} s ({rate:.0f} records/s)"
    )
    if result["skipped"]:
        reasons = Counter(
            reason.partition(":")[0] for reason in read_table(work.skipped)["reason"]
        ).most_common()
        table(reasons, ("reason for skipping", "recordings"))
        print_result(f"all skipped recordings and reasons: {work.skipped}")
    return result


def symbolize(work: WorkDir, data: Paths, options: SymbolizeOptions) -> dict:
    """Turn recordings into letters.

    A tokenizer in the work folder is used only if `options.like` names it.

    Parameters
    ----------
    work : WorkDir
    data : path, or sequence of path
        See the command.
    options : SymbolizeOptions

    Returns
    -------
    dict
        `records`, `segments`, `skipped`, `leads` (count), `fs`, `symbols` and `seconds`.

    Raises
    ------
    Failure
        If there is no usable recording, or the work folder contains other letters or merges.
    """
    started = time.perf_counter()
    signal, merges = _signal_settings(work, options)
    sets, skipped, input_settings = readers.find_data_sets(data, options.patients, without=work.root)
    lead_names, salt = options.lead_names, options.patient_salt
    settings = {
        **input_settings,
        "input_fs": options.input_fs,
        "lead_names": [name.strip() for name in lead_names.split(",")] if lead_names else None,
        "units": options.units,
        # None, as in versions without these options
        "keep_identity": options.keep_identity or None,
        "keep_signal": options.keep_signal or None,
        "patient_salt": None if salt is None else hashlib.sha256(salt.encode()).hexdigest(),
        **signal,
    }

    def run() -> dict:
        parts = PartialResults(work.symbol_parts, settings, options.overwrite)
        if len(sets) > 1:
            note(f"data sets: {', '.join(f'{each.name} ({len(each.found)} recordings)' for each in sets)}")
        # each part belongs to one data set
        lots = [(each, each.found[i : i + PART]) for each in sets for i in range(0, len(each.found), PART)]
        _make_parts(work, parts, lots, settings, options)
        return _join(work, parts, sets, lots, skipped, settings, started)

    result = work.run_once("symbols", work.symbol_settings, settings, options.overwrite, "letters", run)
    return corpus.take_merges(work, merges, result)


def _signal_settings(work: WorkDir, options: SymbolizeOptions) -> tuple[dict[str, Any], Path | None]:
    """Return the settings of the letters, and the tokenizer named by `options.like`.

    Raises
    ------
    click.UsageError
        If options contradict each other or are out of range.
    Failure
        If `options.like` is not a tokenizer, or the work folder has another one.
    """
    merges, bounds = None, options.bounds
    if options.like:
        merges, signal = corpus.as_read_by(resolve_model_folder(options.like))
        fs, segment, leads, bounds = signal["fs"], signal["segment_seconds"], ",".join(signal["leads"]), None
        others = {name: signal[name] for name in ("profile", "fill_nan", "quantizer")}
        any_leads = signal.get("any_leads")
        own = work.ecg_tokenizer
        if own.exists() and not options.overwrite and sha256_of(own) != sha256_of(merges):
            raise Failure(f"{own} is another tokenizer: use another --work, or --overwrite")
    else:
        fs, segment, leads = options.fs, options.segment, options.leads
        any_leads = options.any_leads or None
        others = {
            "profile": options.profile,
            "fill_nan": options.fill_nan,
            "quantizer": quantizers.describe(
                options.quantizer, options.levels, bounds, options.mu, options.profile
            ),
        }
    names = [readers.lead_name(lead) for lead in leads.split(",") if lead.strip()]
    samples = round(fs * segment) if fs > 0 and segment > 0 else 0
    if not names or len(set(names)) < len(names):
        raise click.UsageError(f"--leads {leads}: name each lead once, separated by commas")
    if not (0 < fs <= 100_000 and 1 < samples <= 2**24 and options.mu > 0):
        raise click.UsageError(
            "--fs, --segment and --mu must be greater than 0 (and a segment of sensible length)"
        )
    takes_range = quantizers.QUANTIZERS[others["quantizer"]["name"]].takes_range
    if bounds and not (takes_range and -np.inf < bounds[0] < bounds[1] < np.inf):
        raise click.UsageError("--range needs --quantizer paper and two numbers, the smaller first")
    others |= {"any_leads": True} if any_leads else {}
    return {"fs": fs, "leads": names, "segment_seconds": segment, "samples": samples, **others}, merges


def _make_parts(
    work: WorkDir, parts: PartialResults, lots: Lots, settings: dict, options: SymbolizeOptions
) -> None:
    """Process the recordings of every missing part."""
    todo, total = parts.missing(len(lots)), sum(len(paths) for _, paths in lots)
    done = total - sum(len(lots[n][1]) for n in todo)
    if done:
        note(f"resuming: {done} of {counted(total, 'recording')} done before")
    salt, jobs = options.patient_salt or work.salt(), min(options.jobs or os.cpu_count() or 1, len(todo))
    with progress("symbolizing", total, "records") as bar:
        bar.update(done)
        tasks = ((parts, n, lots[n][1], settings, salt) for n in todo)
        start, fresh = time.perf_counter(), 0
        if options.dask:
            counts = parts_on_cluster(options.dask, work.root, lots, tasks)
        else:
            counts = in_parallel(make_part, tasks, jobs, PRELOAD)
        with closing(counts):  # type: ignore[type-var]  # both are generators
            for count in counts:
                fresh += count
                bar.update(done + fresh, f"{fresh / (time.perf_counter() - start):.0f} records/s")


def _join(
    work: WorkDir,
    parts: PartialResults,
    sets: list[DataSet],
    lots: Lots,
    skipped: list[tuple[str, str]],
    settings: dict[str, Any],
    started: float,
) -> dict:
    """Write the letters and tables of all parts, and the settings last; then remove the parts."""
    counts, segments, skipped = summarize_parts(parts, sets, lots, skipped)
    if not segments:
        parts.remove()
        if not any(work.symbols.parent.iterdir()):
            work.symbols.parent.rmdir()
        raise none_usable(skipped)

    def blocks_of_parts() -> Any:
        return (block for number in range(len(lots)) for block in blocks_of_part(parts, number))

    quantizer = quantizers.fit(settings["quantizer"], counts, blocks_of_parts)
    letters = segments * len(settings["leads"]) * settings["samples"]
    work.symbol_settings.unlink(missing_ok=True)  # without settings, the other files are ignored
    write_letters(work, parts, lots, segments, settings, quantizer)
    write_table(
        work.skipped, {"path": [path for path, _ in skipped], "reason": [reason for _, reason in skipped]}
    )
    result = {
        "records": sum(each.used for each in sets),
        "segments": segments,
        "skipped": len(skipped),
        "leads": len(settings["leads"]),
        "fs": settings["fs"],
        "symbols": letters,
        "seconds": time.perf_counter() - started,
    }
    signals = [work.signals] if settings["keep_signal"] else []
    manifest = {
        "settings": settings,
        "result": result,
        "signal": {k: v for k, v in settings.items() if k not in OF_INPUT} | {"quantizer": quantizer},
        "files": describe_files(work.symbols, work.symbol_segments, work.skipped, *signals),
        "ecgbyte": __version__,
    }
    write_json(work.symbol_settings, add_checksum(manifest), indent=1)
    parts.remove()
    return result
