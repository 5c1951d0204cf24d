"""ecgbyte learn: byte pair encoding merges from letters."""

import hashlib
import json
import os
import time
from contextlib import contextmanager

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.processes import free_memory, peak_rss_mb
from ecgbyte_cli.signal import corpus
from ecgbyte_cli.signal.origin import fingerprint, rows_learned_from
from ecgbyte_cli.signal.tokenizer import write_tokenizer
from ecgbyte_cli.storage.files import read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import add_checksum, completed_result, has_valid_checksum
from ecgbyte_kernels.tokens import MOST_TOKENS

SAVE_EVERY = 10  # seconds between saves of the merges found so far
MOST_IN_ONE_PIECE = 2**31


class Sample(click.ParamType):
    """A number of segments (`2000`), or a fraction of them (`0.1`)."""

    name = "n|fraction"

    def convert(self, value, param, ctx):
        try:
            number = float(value) if "." in str(value) else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of segments nor a fraction", param, ctx)
        if number <= 0 or (isinstance(number, float) and number > 1):
            self.fail(f"{value} is neither a number of segments (1, 2, …) nor a fraction (0.1)", param, ctx)
        return number


@click.command(
    cls=Stage,
    short_help="Learn merges from letters (also: learn-merges).",
    epilog="Example: ecgbyte learn --vocab 5000",
)
@click.option(
    "--vocab", type=click.IntRange(1, MOST_TOKENS), help="Letters and merges together.  [default: 5000]"
)
@click.option("--merges", type=click.IntRange(0, MOST_TOKENS - 256), help="Merges alone, instead of --vocab.")
@click.option(
    "--boundary",
    type=click.Choice(["lead", "segment", "none"]),
    default="lead",
    show_default=True,
    help="What no token crosses: a lead, a segment of all leads, or nothing (one long text).",
)
@click.option(
    "--min-count",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Stop when no pair is found this often.",
)
@click.option(
    "--max-token-length",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="The longest token, in samples, so that a flat lead is not one token (0: no limit).",
)
@click.option(
    "--split",
    type=click.Choice(["train", "all"]),
    default="train",
    show_default=True,
    help="The segments to learn from: those of the training split, or all.",
)
@click.option("--sample", type=Sample(), help="Learn from this many segments, or this fraction, at random.")
@click.option("--seed", default=0, show_default=True, help="The random choice of --sample.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads to work with; the merges do not depend on it.  [default: one per core]",
)
@cluster.option
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer learned with other settings.")
@click.pass_obj
def command(work, **options):
    """Learn byte pair encoding merges from the letters, and write the tokenizer.

    The next merge is always the pair found most often; ties go to the smaller ids. So the merges are one
    well-defined list, the same at any number of threads.
    """
    if options["vocab"] is not None and options["merges"] is not None:
        raise click.UsageError("--vocab and --merges are both given: one follows from the other")
    if options["vocab"] is None:
        del options["vocab"]
    result = learn(work, **options)
    print_result(
        f"{result['merges']} merges, vocabulary {result['vocab']}: {result['symbols']:,} letters in "
        f"{result['tokens']:,} tokens ({result['compression']:.2f} to 1), {result['seconds']:.1f} s"
    )
    return result


def learn(
    work,
    *,
    vocab=5000,
    merges=None,
    boundary="lead",
    min_count=2,
    max_token_length=256,
    split="train",
    sample=None,
    seed=0,
    threads=None,
    dask=None,
    overwrite=False,
):
    """Learn merges from the letters of a work folder and write the tokenizer.

    Parameters
    ----------
    work : WorkDir
    vocab : int
        Letters and merges together.
    merges : int or None
        Merges alone, instead of `vocab`.
    boundary : {"lead", "segment", "none"}
        What no token crosses.
    min_count : int
        Stop when no pair is found this often.
    max_token_length : int
        In samples; 0 for no limit.
    split : {"train", "all"}
        The segments to learn from.
    sample : int, float or None
        This many segments, or this fraction of them, chosen by `seed`.
    seed : int
    threads : int or None
        None for one per core.
    dask : str or None
        Learn on the Dask cluster at this address; the merges are the same.
    overwrite : bool
        Replace a tokenizer learned with other settings.

    Returns
    -------
    dict
        `symbols` (letters learned from), `vocab`, `merges`, `tokens` (of the same letters), `compression`
        (letters per token), `seconds`, `compile_seconds`, `peak_rss_mb`, and `sha256`: of the merges as
        pairs of little-endian int32. On a cluster also `cluster`: see `Groups.spent`.

    Raises
    ------
    Failure
        If there are no letters, or the vocabulary is smaller than the number of letters.
    """
    with work.checked("symbols"):
        signal = read_json(work.symbol_settings)["signal"]
        levels = signal["quantizer"]["levels"]
        if merges is None:
            if vocab < levels:
                raise Failure(f"--vocab {vocab} is smaller than the {levels} letters of {work.symbols}")
            merges = vocab - levels
        settings = {
            "merges": merges,
            "boundary": boundary,
            "min_count": min_count,
            "max_token_length": max_token_length,
            "split": split,
            "sample": sample,
            "seed": seed,
            "symbols": fingerprint(work),
        }
        result = completed_result(work.ecg_tokenizer, settings, overwrite, "a tokenizer")
        if result is not None:
            note(f"learn: already done, see {work.ecg_tokenizer}")
            return result
        with work.making("tokenizer"):
            completed_result(
                work.ecg_tokenizer, settings, overwrite, "a tokenizer"
            )  # another run may just have ended
            return _learn(work, settings, signal, threads, dask, overwrite)


def _learn(work, settings, signal, threads, dask, overwrite):
    """Learn, and write the tokenizer."""
    merges, min_count, levels = settings["merges"], settings["min_count"], signal["quantizer"]["levels"]
    known = half_learned(work.half_learned, settings, overwrite)
    segments, described = choose_segments(work, settings["split"], settings["sample"], settings["seed"])

    from ecgbyte_kernels import merges as kernels

    started = time.perf_counter()
    kernels.compile_kernels(
        levels,
        merges,
        lambda: note("learn: compiling the kernels, which is done once and takes about ten seconds"),
    )
    compile_seconds = time.perf_counter() - started

    started = time.perf_counter()
    symbols = int((segments["leads"] * segments["samples"]).sum())
    # arrays, not lists: thousands of small objects would set off Python's garbage collector
    rows, tokens, saved = [known], symbols, time.perf_counter()
    made = len(known)
    begun = _begun(work, settings, levels, segments, described, known, threads, dask)
    with begun as (steps, spent), progress("learning", merges, "merges") as bar:
        for fresh, tokens in steps:
            rows.append(fresh)
            made += len(fresh)
            count = f"last count {fresh[-1, 2]:,}, " if len(fresh) else ""
            bar.update(made, f"{count}{symbols / max(1, tokens):.2f} letters a token")
            if len(fresh) and time.perf_counter() - saved >= SAVE_EVERY:
                saved = time.perf_counter()
                so_far = {"settings": settings, "merges": np.concatenate(rows).tolist()}
                write_json(work.half_learned, add_checksum(so_far))
    if made < merges:
        note(f"learn: {made} of {merges} merges: no other pair is found {min_count} times or more")
    rows = np.concatenate(rows)
    result = {
        "symbols": symbols,
        "vocab": levels + len(rows),
        "merges": len(rows),
        "tokens": int(tokens),
        "compression": symbols / max(1, tokens),
        "seconds": round(time.perf_counter() - started, 3),
        "compile_seconds": round(compile_seconds, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "sha256": hashlib.sha256(rows[:, :2].astype("<i4").tobytes()).hexdigest(),
        **({"cluster": spent} if spent else {}),
    }
    about = {
        "settings": settings,
        "result": result,
        "signal": signal,
        "boundary": settings["boundary"],
        "max_token_length": settings["max_token_length"],
        "merges": rows[:, :2].tolist(),
        "counts": rows[:, 2].tolist(),
    }
    write_tokenizer(work, about)
    work.half_learned.unlink(missing_ok=True)
    return result


@contextmanager
def _begun(work, settings, levels, segments, described, known, threads, dask):
    """What yields the merges, here or on a cluster, and what the cluster spends on it (None here)."""
    names = ("merges", "boundary", "min_count", "max_token_length")
    merges, boundary, min_count, longest = (settings[name] for name in names)
    started = time.perf_counter()
    if dask:
        from ecgbyte_cli.signal import distributed_bpe

        with cluster.connected(dask, work.root, [work.symbols]) as client:
            starting = time.perf_counter() - started
            shared = cluster.share_array(work.symbols, segments, boundary, levels, merges, client.nthreads())
            needed = max(memory_needed(int((of["leads"] * of["samples"]).sum())) for _, of, *_ in shared)
            if needed > cluster.memory(client):
                raise Failure(
                    f"{described}: a worker needs about {needed / 1e9:.1f} GB of memory and may use "
                    f"{cluster.memory(client) / 1e9:.1f} GB: take more workers, or a --sample"
                )
            groups = cluster.Groups(client, shared, cluster.file_stamps([work.symbols]))
            note(f"learn: read by {len(shared)} workers in {groups.spent['reading']:.1f} s")
            groups.spent["starting"] = starting
            yield distributed_bpe.learn(groups, levels, merges, min_count, longest, known), groups.spent
        return
    from ecgbyte_kernels.merges import learn_merges

    check_memory(segments, boundary, described, free_memory())
    threads = threads or len(os.sched_getaffinity(0))
    texts = corpus.read_texts(read_array(work.symbols), segments, boundary, levels, threads, work.symbols)
    note(f"learn: read in {time.perf_counter() - started:.1f} s")
    yield learn_merges(texts, levels, merges, min_count, longest, threads, known[:, :2]), None


def half_learned(path, settings, overwrite):
    """The merges that an interrupted run with the same settings has saved: int64 (k, 3)."""
    if overwrite or not path.exists():
        return np.zeros((0, 3), np.int64)
    before = read_json(path)
    if before.get("settings") != json.loads(json.dumps(settings)):
        raise Failure(
            f"{path} is of a run with other settings that was interrupted: "
            "add --overwrite, or use another --work folder"
        )
    if not has_valid_checksum(before):
        raise Failure(f"{path} is damaged: remove it, and run the same command again")
    rows = np.array(before["merges"], np.int64).reshape(-1, 3)
    note(f"learn: goes on from merge {len(rows)}, where it was interrupted")
    return rows


def choose_segments(work, split, sample, seed):
    """The rows to learn from: those of the split, or a random part of them, in the table's order."""
    segments = read_table(work.need(work.symbol_segments, "symbolize"))
    total = len(segments["segment"])
    if total == 0:
        raise Failure(
            f"{work.symbol_segments} has no segments: run `ecgbyte symbolize` on a folder with recordings"
        )
    rows = rows_learned_from(segments, split, None, seed)
    if len(rows) == 0:
        raise Failure(
            f"none of the {total} segments of {work.symbol_segments} is in the training split: add --split all"
        )
    described = f"{len(rows)} of {total} segments (split {split})"
    if sample is not None:
        rows = rows_learned_from(segments, split, sample, seed)
        described = f"{len(rows)} of {described}, by seed {seed}"
    return {name: segments[name][rows].astype(np.int64) for name in ("offset", "leads", "samples")}, described


def check_memory(segments, boundary, described, free):
    """Print what the work will need, and refuse what cannot fit into `free` bytes."""
    symbols = int((segments["leads"] * segments["samples"]).sum())
    needed = memory_needed(symbols)

    def fitting(share):
        return max(1, int(0.95 * share * len(segments["leads"])))

    note(f"learn: {symbols:,} letters from {described}; about {needed / 1e9:.1f} GB of memory needed")
    if needed > free:
        raise Failure(
            f"{symbols:,} letters need about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            f"--sample {fitting(free / needed)} would fit"
        )
    if boundary == "none" and symbols > MOST_IN_ONE_PIECE:
        raise Failure(
            f"{symbols:,} letters are too many for one piece (--boundary none): "
            f"--sample {fitting(MOST_IN_ONE_PIECE / symbols)} would fit"
        )


def memory_needed(symbols):
    """Bytes that learning takes at most, above what Python and its libraries take: measured, and rounded up."""
    return 3e8 + min(12 * symbols, 1e9 + 3.2 * symbols)
