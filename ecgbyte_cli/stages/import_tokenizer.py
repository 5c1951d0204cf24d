"""ecgbyte import-tokenizer: import a tokenizer of ECG-Byte, ECG-Bench or ELM."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import preprocess, quantizers
from ecgbyte_cli.signal.reference_tokenizer import LETTERS, merges_of
from ecgbyte_cli.signal.tokenizer import check_signal, write_tokenizer
from ecgbyte_cli.storage.files import sha256_of
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir

LIKE = {"ecg-byte": "paper", "elm": "elm"}  # the profile whose quantizer made the letters


@dataclass(frozen=True)
class ImportOptions:
    """Options of `ecgbyte import-tokenizer`."""

    like: str = "ecg-byte"  # implementation that made the letters: ecg-byte or elm
    leads: str = ",".join(preprocess.LEADS)  # order of the leads, separated by commas
    bounds: tuple[float, float] | None = None  # range of the letters in mV (--range); None: from the file
    overwrite: bool = False  # replace another tokenizer


@click.command(
    cls=Stage,
    short_help="Import a tokenizer of ECG-Byte, ECG-Bench or ELM.",
    epilog="Example: ecgbyte import-tokenizer tokenizer.pkl --overwrite",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--like",
    type=click.Choice(list(LIKE)),
    default=ImportOptions.like,
    show_default=True,
    help="Implementation that made the letters. `ecg-byte`: the paper's code (filters, one range for all recordings). "
    "`elm`: ECG-Bench and ELM (no filters, a range for each segment).",
)
@click.option(
    "--leads",
    default=ImportOptions.leads,
    show_default=True,
    help="Order of the leads. ECG-Bench and ELM put aVL before aVR for MIMIC-IV, CODE-15 and EchoNext.",
)
@click.option(
    "--range",
    "bounds",
    type=(float, float),
    default=ImportOptions.bounds,
    metavar="LO HI",
    show_default="from the file; a pickle has none",
    help="Range of the letters in mV: the corpus' 1st percentile minus 0.5 and 99th plus 0.5. Not with --like elm.",
)
@click.option("--overwrite", is_flag=True, help="Replace another tokenizer.")
@click.pass_obj
def command(work: WorkDir, file: Path, **options: Any) -> dict:
    """Import a tokenizer of ECG-Byte, ECG-Bench or ELM: a pickle, or merges in JSON.

    The pickle is not executed: only numbers, texts and lists are read from it. Ids 97 to 122 (a to z) become 0 to 25,
    and 256 + k becomes 26 + k. Then `ecgbyte symbolize DATA` makes letters for this tokenizer.
    """
    result = import_tokenizer(work, file, ImportOptions(**options))
    print_result(f"{result['merges']} merges, vocabulary {result['vocab']}, in {work.ecg_tokenizer.parent}")
    return result


def import_tokenizer(work: WorkDir, file: Path, options: ImportOptions) -> dict:
    """Write a tokenizer of ECG-Byte, ECG-Bench or ELM as ecg_tokenizer.json and tokenizer.json.

    The reference stores the letters of each token but not the pair that was merged. The pair is found by applying the
    earlier merges to its letters. If that does not leave two tokens, any two that spell the token are used, which
    makes no difference to the segmenters `longest` (the reference's) and `fewest`.

    Parameters
    ----------
    work : WorkDir
    file : Path
        A pickle of (vocabulary, list of (bytes of the token, id)), or a JSON object whose `merges` are a list
        of [letters, id], with `percentile_1` and `percentile_99` (mV) if known.
    options : ImportOptions
        Without a range, letters can be encoded, but signals cannot.

    Returns
    -------
    dict
        vocab, merges, longest (letters of the longest token).

    Raises
    ------
    Failure
        If the file is not such a tokenizer, reading it would run code, or the work folder has another tokenizer.
    """
    file, like = Path(file), options.like
    signal = signal_like(like, options.leads, options.bounds)
    if not file.is_file():
        raise Failure(f"{file} does not exist or is not a file")
    settings = {"imported": sha256_of(file), "range": options.bounds}
    # None, as in versions without these options
    settings["like"] = None if like == "ecg-byte" else like
    settings["leads"] = None if signal["leads"] == preprocess.LEADS else signal["leads"]
    if done := completed_result(work.ecg_tokenizer, settings, options.overwrite, "a tokenizer"):
        return done
    tokens, merges, bounds = merges_of(file, options.bounds)
    result = {
        "vocab": LETTERS + len(merges),
        "merges": len(merges),
        "longest": max(map(len, tokens), default=1),
    }
    if like == "ecg-byte":
        lo, hi = bounds or (None, None)
        signal["quantizer"] |= {"lo": lo, "hi": hi}
        if bounds is None:
            note(
                "the file does not state the range of the letters in mV: use --range LO HI, or --like elm for a "
                "tokenizer of ECG-Bench or ELM"
            )
    about = {
        "settings": settings,
        "result": result,
        "signal": signal,
        "boundary": "none",
        "max_token_length": 0,
        "merges": merges,
    }
    write_tokenizer(work, about)
    return result


def signal_like(like: str, leads: str, bounds: tuple[float, float] | None) -> dict[str, Any]:
    """Return the `signal` of an ecg_tokenizer.json for an implementation: 250 Hz, 10 s, leads one after another.

    Raises
    ------
    click.UsageError
        If the options conflict.
    """
    if bounds and not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise click.UsageError("--range needs two numbers, the smaller first")
    if bounds and like == "elm":
        raise click.UsageError("--range cannot be used with --like elm: each segment has its own range")
    signal = {
        "fs": 250.0,
        "leads": [readers.lead_name(lead) for lead in leads.split(",") if lead.strip()],
        "segment_seconds": 10.0,
        "samples": 2500,
        "profile": LIKE[like],
        "fill_nan": None,
        "quantizer": quantizers.describe(None, LETTERS, profile=LIKE[like]),
    }
    try:
        check_signal(signal)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--leads: {error}") from error
    return signal
