"""ecgbyte encode: letters to token ids."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np

from ecgbyte_cli.console import Failure, Stage, note, progress, say
from ecgbyte_cli.tokenizer import SEGMENTERS, ECGTokenizer
from ecgbyte_cli.workdir import (
    finished,
    new_array,
    read_array,
    read_json,
    read_table,
    write_json,
    write_table,
)

LETTERS = 2**22  # letters that a thread encodes at a time


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
@click.option("--overwrite", is_flag=True, show_default=True, help="Replace ids made with other settings.")
@click.pass_obj
def command(work, **options):
    """Turn the letters of all segments into token ids with the merges that `ecgbyte learn` found."""
    result = encode(work, **options)
    say(
        f"{result['segments']} segments, {result['symbols']:,} letters in {result['tokens']:,} tokens "
        f"({result['compression']:.2f} to 1, {result['tokens'] / result['segments']:.0f} a segment), "
        f"{result['seconds']:.1f} s"
    )
    return result


def encode(work, *, segmenter="longest", threads=None, overwrite=False):
    """Turn letters into token ids.

    Parameters
    ----------
    work : WorkDir
    segmenter : {"longest", "bpe", "fewest"}
    threads : int or None
        None means one for each processor. The ids do not depend on it.
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
    letters = read_array(work.need(work.symbols, "symbolize"))
    segments = read_table(work.need(work.symbol_segments, "symbolize"))
    tokenizer = ECGTokenizer.from_file(work.need(work.ecg_tokenizer, "learn"))
    symbols = read_json(work.symbol_settings)
    if symbols["signal"] != tokenizer.signal:
        raise Failure(f"{work.ecg_tokenizer} was learned from other letters than {work.symbols}: learn again")
    settings = {"segmenter": segmenter, "tokenizer": tokenizer.sha256, "symbols": symbols["settings"]}
    done = finished(work.token_settings, settings, overwrite, "token ids")
    if done:
        note(f"{work.tokens} is there already, made with these settings: nothing to do")
        return done

    start = time.perf_counter()
    count, leads, samples = (
        len(segments["offset"]),
        len(tokenizer.signal["leads"]),
        tokenizer.signal["samples"],
    )
    each = leads * samples
    step = max(1, LETTERS // each)

    def part(first):
        last = min(first + step, count)
        return tokenizer.encode_segments(
            letters[first * each : last * each], last - first, leads, samples, segmenter
        )

    parts, lengths = [], []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool, progress("encode", count, "segments") as bar:
        for ids, counts in pool.map(part, range(0, count, step)):
            parts.append(ids)
            lengths.append(counts)
            bar.advance(len(counts))
    lengths = np.concatenate(lengths)
    total = int(lengths.sum())
    with new_array(work.tokens, parts[0].dtype, total) as tokens:
        np.concatenate(parts, out=tokens)
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
    }
    write_json(work.token_settings, record, indent=1)
    return result
