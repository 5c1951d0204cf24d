"""ecgbyte encode: turn letters into token ids."""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import dask_option
from ecgbyte_cli.cli.output import counted, note, print_result, progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import threads as pool_of_threads
from ecgbyte_cli.signal import quantizers
from ecgbyte_cli.signal.tokenizer import SEGMENTERS, ECGTokenizer
from ecgbyte_cli.storage.files import array_writer, read_array, read_json, read_table, write_json, write_table
from ecgbyte_cli.storage.manifest import add_checksum, describe_files
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.workdir import WorkDir

LETTERS = 2**22  # letters per part; a killed run loses at most one part per thread


@dataclass(frozen=True)
class EncodeOptions:
    """Options of `ecgbyte encode`."""

    segmenter: str = "longest"  # longest, bpe or fewest
    threads: int | None = None  # None: one per processor; the ids do not depend on it
    dask: str | None = None  # address of a Dask cluster to encode on
    overwrite: bool = False  # replace ids made with other settings


@click.command(cls=Stage, short_help="Turn letters into token ids.", epilog="Example: ecgbyte encode")
@click.option(
    "--segmenter",
    type=click.Choice(list(SEGMENTERS)),
    default=EncodeOptions.segmenter,
    show_default=True,
    help="Longest match from the left, merges in the order learned, or the fewest tokens.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=EncodeOptions.threads,
    show_default="all processors",
    help="Number of threads.",
)
@dask_option
@click.option("--overwrite", is_flag=True, help="Replace ids made with other settings.")
@click.pass_obj
def command(work: WorkDir, **options: Any) -> dict:
    """Turn the letters of all segments into token ids with the merges from `ecgbyte learn`."""
    result = encode(work, EncodeOptions(**options))
    print_result(
        f"{counted(result['segments'], 'segment')}, {result['symbols']:,} letters in {result['tokens']:,} tokens "
        f"({result['compression']:.2f} to 1, {result['tokens'] / result['segments']:.0f} per segment), "
        f"{result['seconds']:.1f} s"
    )
    return result


def encode(work: WorkDir, options: EncodeOptions) -> dict:
    """Turn letters into token ids.

    Each thread writes the ids of its segments to separate files, which are joined at the end. An interrupted run
    resumes with the missing files. Memory use does not depend on the number of letters.

    Parameters
    ----------
    work : WorkDir
    options : EncodeOptions

    Returns
    -------
    dict
        segments, symbols, tokens, compression (letters per token), segmenter, seconds.

    Raises
    ------
    Failure
        If letters or merges are missing or do not fit together, or the work folder holds other ids.
    """
    with work.checked("symbols"):
        tokenizer = ECGTokenizer.from_file(work.need(work.ecg_tokenizer, "learn"))
        symbols = read_json(work.symbol_settings)
        if symbols["signal"] != tokenizer.signal:
            raise Failure(_other_letters(work, tokenizer.signal, symbols["signal"]))
        settings = {
            "segmenter": options.segmenter,
            "tokenizer": tokenizer.sha256,
            "symbols": symbols["settings"],
        }
        return work.run_once(
            "tokens",
            work.token_settings,
            settings,
            options.overwrite,
            "token ids",
            lambda: _encode(work, tokenizer, settings, options),
        )


def _other_letters(work: WorkDir, needed: dict[str, Any], present: dict[str, Any]) -> str:
    """Describe how the letters differ from those that a tokenizer needs, and how to fix it."""
    differ = ", ".join(key for key in needed if needed[key] != present.get(key))
    problem = f"{work.ecg_tokenizer} needs other letters than {work.symbols} ({differ})"
    if not quantizers.is_complete(needed["quantizer"]):
        return f"{problem}: it has no range in mV; import it again with --range LO HI or --like elm"
    return f"{problem}: learn again, or `ecgbyte symbolize DATA --like {work.ecg_tokenizer} --overwrite`"


def make_part(
    parts: PartialResults, number: int, files: tuple[Path, str, Path], first: int, last: int, segmenter: str
) -> int:
    """Encode the segments from `first` up to but not including `last` into a part; return their number.

    `files` holds the path and SHA-256 of the tokenizer, and the path of the letters.
    """
    status = os.stat(files[2])
    tokenizer, letters = _opened(*files, status.st_ino, status.st_mtime_ns)
    leads, samples = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
    here = letters[first * leads * samples : last * leads * samples]
    ids, lengths = tokenizer.encode_segments(here, last - first, leads, samples, segmenter)
    with parts.new(number) as write:
        write(lengths)
        write(ids)
    return last - first


@lru_cache(1)
def _opened(path: Path, sha256: str, letters: Path, *_version: int) -> tuple[ECGTokenizer, np.ndarray]:
    """Open the tokenizer and the letters, once per process and version of the letters."""
    tokenizer = ECGTokenizer.from_file(path)
    if tokenizer.sha256 != sha256:
        raise Failure(f"{path} was replaced during the run: run `ecgbyte encode` again")
    return tokenizer, read_array(letters)


def _encode(work: WorkDir, tokenizer: ECGTokenizer, settings: dict[str, Any], options: EncodeOptions) -> dict:
    """Encode, and write the ids."""
    letters, segments = read_array(work.symbols), read_table(work.symbol_segments)
    start = time.perf_counter()
    count, each = len(segments["offset"]), len(tokenizer.signal["leads"]) * tokenizer.signal["samples"]
    if letters.size != count * each:
        raise Failure(
            f"{work.symbols} lacks some of the {count} segments of its table: run `ecgbyte symbolize` again"
        )
    step = max(1, LETTERS // each)
    parts = PartialResults(work.token_parts, settings | {"segments_a_part": step}, options.overwrite)
    firsts = range(0, count, step)
    _make_parts(work, parts, tokenizer, firsts, count, options)

    lengths = np.concatenate([array for k in range(len(firsts)) for array in parts.read(k, slice(1))])
    total = int(lengths.sum())
    dtype = next(parts.read(0, slice(1, 2))).dtype
    work.token_settings.unlink(missing_ok=True)  # without settings, the other files are ignored
    with array_writer(work.tokens, dtype, total) as write:
        for k in range(len(firsts)):
            for ids in parts.read(k, slice(1, 2)):
                write(ids)
    offsets = np.cumsum(lengths) - lengths
    write_table(work.token_segments, {"segment": np.arange(count), "offset": offsets, "length": lengths})
    result = {
        "segments": count,
        "symbols": letters.size,
        "tokens": total,
        "compression": letters.size / total,
        "segmenter": options.segmenter,
        "seconds": time.perf_counter() - start,
    }
    manifest = {
        "settings": settings,
        "result": result,
        "segmenter": options.segmenter,
        "tokenizer_sha256": tokenizer.sha256,
        "files": describe_files(work.tokens, work.token_segments),
    }
    write_json(work.token_settings, add_checksum(manifest), indent=1)
    parts.remove()
    return result


def _make_parts(
    work: WorkDir,
    parts: PartialResults,
    tokenizer: ECGTokenizer,
    firsts: range,
    count: int,
    options: EncodeOptions,
) -> None:
    """Encode the segments of every missing part; a part starts at one of `firsts`, and the last ends at `count`."""
    todo, step = parts.missing(len(firsts)), firsts.step
    done = count - sum(min(step, count - firsts[k]) for k in todo)
    if done:
        note(f"encode: resuming after {done} of {counted(count, 'segment')}")
    files = work.ecg_tokenizer, tokenizer.sha256, work.symbols
    tasks = ((parts, k, files, firsts[k], min(firsts[k] + step, count), options.segmenter) for k in todo)
    with pool_of_threads(options.threads) as pool, progress("encode", count, "segments") as bar:
        bar.update(done)
        if options.dask:
            inputs = [work.ecg_tokenizer, work.symbols]
            counts = cluster.map_tasks(options.dask, work.root, make_part, tasks, inputs)
        else:
            counts = pool.map(lambda task: make_part(*task), tasks)
        with closing(counts):  # type: ignore[type-var]  # both are generators
            for encoded in counts:
                bar.advance(encoded)
