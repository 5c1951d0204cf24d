"""ecgbyte encode: letters to token ids."""

import os
import time
from contextlib import closing
from functools import lru_cache

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import threads as pool_of_threads
from ecgbyte_cli.signal import quantizers
from ecgbyte_cli.signal.tokenizer import SEGMENTERS, ECGTokenizer
from ecgbyte_cli.storage.files import array_writer, read_array, read_json, read_table, write_json, write_table
from ecgbyte_cli.storage.manifest import add_checksum, completed_result, describe_files
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_cli.storage.workdir import WorkDir

LETTERS = 2**22  # letters that a thread encodes at a time, and that are lost if the run is killed


@click.command(cls=Stage, short_help="Turn letters into token ids.", epilog="Example: ecgbyte encode")
@click.option(
    "--segmenter",
    type=click.Choice(list(SEGMENTERS)),
    default="longest",
    show_default=True,
    help="Longest match from the left, the merges in their order, or the fewest tokens.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=None, show_default="all processors", help="Threads to use."
)
@cluster.option
@click.option("--overwrite", is_flag=True, show_default=True, help="Replace ids made with other settings.")
@click.pass_obj
def command(work, **options):
    """Turn the letters of all segments into token ids with the merges that `ecgbyte learn` found."""
    result = encode(work, **options)
    print_result(
        f"{result['segments']} segments, {result['symbols']:,} letters in {result['tokens']:,} tokens "
        f"({result['compression']:.2f} to 1, {result['tokens'] / result['segments']:.0f} a segment), "
        f"{result['seconds']:.1f} s"
    )
    return result


def encode(work, *, segmenter="longest", threads=None, dask=None, overwrite=False):
    """Turn letters into token ids.

    Every thread writes the ids of its segments to a file of their own; a run that was interrupted goes on
    with those that are missing, and at the end they are put together. Memory does not grow with the letters.

    Parameters
    ----------
    work : WorkDir
    segmenter : {"longest", "bpe", "fewest"}
    threads : int or None
        None means one for each processor. The ids do not depend on it.
    dask : str or None
        Encode on the Dask cluster at this address.
    overwrite : bool

    Returns
    -------
    dict
        segments, symbols, tokens, compression (letters per token), segmenter, seconds.

    Raises
    ------
    Failure
        If letters or merges are missing or do not fit together, or other ids are there already.
    """
    with work.checked("symbols"):
        tokenizer = ECGTokenizer.from_file(work.need(work.ecg_tokenizer, "learn"))
        symbols = read_json(work.symbol_settings)
        if symbols["signal"] != tokenizer.signal:
            raise Failure(_other_letters(work, tokenizer.signal, symbols["signal"]))
        settings = {"segmenter": segmenter, "tokenizer": tokenizer.sha256, "symbols": symbols["settings"]}
        done = completed_result(work.token_settings, settings, overwrite, "token ids")
        if done:
            with work.checked("tokens"):
                note(f"{work.tokens} is there already, made with these settings: nothing to do")
            return done
        with work.making("tokens"):
            completed_result(
                work.token_settings, settings, overwrite, "token ids"
            )  # another run may just have ended
            return _encode(work, tokenizer, settings, segmenter, threads, dask, overwrite)


def _other_letters(work: WorkDir, needed: dict, there: dict) -> str:
    """Say that a tokenizer needs other letters than there are, in what they differ, and what to do."""
    differ = ", ".join(key for key in needed if needed[key] != there.get(key))
    said = f"{work.ecg_tokenizer} needs other letters than {work.symbols} ({differ})"
    if not quantizers.is_complete(needed["quantizer"]):
        return f"{said}: it does not know their range in mV, import it again with --range LO HI, or with --like elm"
    return f"{said}: learn again, or `ecgbyte symbolize DATA --like {work.ecg_tokenizer} --overwrite`"


def make_part(parts, number, files, first, last, segmenter):
    """Encode the segments from `first` to before `last` into a part, and return how many these are."""
    path, sha256, letters = files
    about = os.stat(letters)
    tokenizer, letters = _opened(path, sha256, letters, about.st_ino, about.st_mtime_ns)
    leads, samples = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
    here = letters[first * leads * samples : last * leads * samples]
    ids, lengths = tokenizer.encode_segments(here, last - first, leads, samples, segmenter)
    with parts.new(number) as write:
        write(lengths)
        write(ids)
    return last - first


@lru_cache(1)
def _opened(path, sha256, letters, *_which):
    """The tokenizer and the letters, opened once in a process."""
    tokenizer = ECGTokenizer.from_file(path)
    if tokenizer.sha256 != sha256:
        raise Failure(f"{path} was replaced while it was used: run `ecgbyte encode` again")
    return tokenizer, read_array(letters)


def _encode(work, tokenizer, settings, segmenter, threads, dask, overwrite):
    """Encode, and write the ids."""
    letters, segments = read_array(work.symbols), read_table(work.symbol_segments)
    start = time.perf_counter()
    count, each = len(segments["offset"]), len(tokenizer.signal["leads"]) * tokenizer.signal["samples"]
    if letters.size != count * each:
        raise Failure(f"{work.symbols} does not hold the {count} segments of its table: symbolize again")
    step = max(1, LETTERS // each)
    firsts = range(0, count, step)
    parts = PartialResults(work.token_parts, settings | {"segments_a_part": step}, overwrite)
    todo = parts.missing(len(firsts))
    done = count - sum(min(step, count - firsts[k]) for k in todo)
    if done:
        note(f"encode: goes on after {done} of {count} segments")

    files = work.ecg_tokenizer, tokenizer.sha256, work.symbols
    tasks = ((parts, k, files, firsts[k], min(firsts[k] + step, count), segmenter) for k in todo)
    with pool_of_threads(threads) as pool, progress("encode", count, "segments") as bar:
        bar.update(done)
        made = (
            cluster.map_tasks(dask, work.root, make_part, tasks, [work.ecg_tokenizer, work.symbols])
            if dask
            else pool.map(lambda task: make_part(*task), tasks)
        )
        with closing(made) as counts:
            for segments_made in counts:
                bar.advance(segments_made)

    lengths = np.concatenate([array for k in range(len(firsts)) for array in parts.read(k, slice(1))])
    total = int(lengths.sum())
    kind = next(parts.read(0, slice(1, 2))).dtype
    work.token_settings.unlink(missing_ok=True)  # without it the rest counts as nothing
    with array_writer(work.tokens, kind, total) as write:
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
        "segmenter": segmenter,
        "seconds": time.perf_counter() - start,
    }
    record = {
        "settings": settings,
        "result": result,
        "segmenter": segmenter,
        "tokenizer_sha256": tokenizer.sha256,
        "files": describe_files(work.tokens, work.token_segments),
    }
    write_json(work.token_settings, add_checksum(record), indent=1)
    parts.remove()
    return result
