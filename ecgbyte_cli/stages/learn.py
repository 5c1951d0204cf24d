"""ecgbyte learn: learn byte pair encoding merges from letters."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import dask_option
from ecgbyte_cli.cli.output import note, print_result, progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster, worker_groups
from ecgbyte_cli.runtime.processes import free_memory, peak_rss_mb
from ecgbyte_cli.signal import corpus
from ecgbyte_cli.signal.origin import fingerprint, rows_learned_from
from ecgbyte_cli.signal.tokenizer import write_tokenizer
from ecgbyte_cli.storage.files import read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import add_checksum, has_valid_checksum
from ecgbyte_cli.storage.stamps import file_stamps
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels.tokens import MOST_TOKENS

SAVE_EVERY = 10  # seconds between saves of the merges found so far
MOST_IN_ONE_PIECE = 2**31


class Sample(click.ParamType):
    """The type of an option that takes a number of segments (`2000`) or a fraction of them (`0.1`)."""

    name = "n|fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = float(value) if "." in str(value) else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of segments nor a fraction", param, ctx)
        if number <= 0 or (isinstance(number, float) and number > 1):
            self.fail(f"{value} is neither a number of segments (1, 2, …) nor a fraction (0.1)", param, ctx)
        return number


@dataclass(frozen=True)
class LearnOptions:
    """Options of `ecgbyte learn`."""

    vocab: int = 5000  # number of letters and merges together
    merges: int | None = None  # number of merges, instead of `vocab`
    boundary: str = "lead"  # the unit that no token crosses: lead, segment, or none (one long text)
    min_count: int = 2  # stop when no pair occurs at least this often
    max_token_length: int = 256  # in samples; 0 for no limit
    split: str = "train"  # segments to learn from: train or all
    sample: int | float | None = None  # learn from this many segments, or this fraction, chosen by `seed`
    seed: int = 0  # seed of `sample`
    threads: int | None = None  # None: one per core; the merges do not depend on it
    dask: str | None = None  # address of a Dask cluster to learn on; the merges are the same
    overwrite: bool = False  # replace a tokenizer learned with other settings


@click.command(
    cls=Stage,
    short_help="Learn merges from letters (also: learn-merges).",
    epilog="Example: ecgbyte learn --vocab 5000",
)
@click.option(
    "--vocab",
    type=click.IntRange(1, MOST_TOKENS),
    default=LearnOptions.vocab,
    show_default=True,
    help="Size of the vocabulary: letters and merges.",
)
@click.option(
    "--merges",
    type=click.IntRange(0, MOST_TOKENS - 256),
    default=LearnOptions.merges,
    help="Number of merges, instead of --vocab.",
)
@click.option(
    "--boundary",
    type=click.Choice(["lead", "segment", "none"]),
    default=LearnOptions.boundary,
    show_default=True,
    help="The unit that no token crosses: a lead, a segment of all leads, or none (one long text).",
)
@click.option(
    "--min-count",
    type=click.IntRange(1),
    default=LearnOptions.min_count,
    show_default=True,
    help="Stop when no pair occurs at least this often.",
)
@click.option(
    "--max-token-length",
    type=click.IntRange(0),
    default=LearnOptions.max_token_length,
    show_default=True,
    help="Longest token in samples, so that a flat lead does not become one token (0: no limit).",
)
@click.option(
    "--split",
    type=click.Choice(["train", "all"]),
    default=LearnOptions.split,
    show_default=True,
    help="Segments to learn from: the training split, or all.",
)
@click.option(
    "--sample",
    type=Sample(),
    default=LearnOptions.sample,
    help="Learn from this many segments, or this fraction, chosen at random.",
)
@click.option("--seed", default=LearnOptions.seed, show_default=True, help="Random seed of --sample.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=LearnOptions.threads,
    show_default="one per core",
    help="Number of threads. The merges do not depend on it.",
)
@dask_option
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer learned with other settings.")
@click.pass_obj
def command(work: WorkDir, **options: Any) -> dict:
    """Learn byte pair encoding merges from the letters, and write the tokenizer.

    Each merge is the most frequent pair of tokens; ties go to the smaller ids. So the list of merges is well defined
    listand does not depend on the number of threads.
    """
    source = click.get_current_context().get_parameter_source("vocab")
    if source is not click.core.ParameterSource.DEFAULT and options["merges"] is not None:
        raise click.UsageError("use --vocab or --merges, not both: each determines the other")
    result = learn(work, LearnOptions(**options))
    print_result(
        f"{result['merges']} merges, vocabulary {result['vocab']}: {result['symbols']:,} letters in "
        f"{result['tokens']:,} tokens ({result['compression']:.2f} to 1), {result['seconds']:.1f} s"
    )
    return result


def learn(work: WorkDir, options: LearnOptions) -> dict:
    """Learn merges from the letters of a work folder and write the tokenizer.

    Parameters
    ----------
    work : WorkDir
    options : LearnOptions

    Returns
    -------
    dict
        `symbols` (letters learned from), `vocab`, `merges`, `tokens` (that encode these letters), `compression`
        (letters per token), `seconds`, `compile_seconds`, `peak_rss_mb`, and `sha256` of the merges as
        pairs of little-endian int32. On a cluster also `cluster`: see `Groups.spent`.

    Raises
    ------
    Failure
        If there are no letters, or the vocabulary is smaller than the alphabet.
    """
    with work.checked("symbols"):
        signal = read_json(work.symbol_settings)["signal"]
        levels, merges = signal["quantizer"]["levels"], options.merges
        if merges is None:
            if options.vocab < levels:
                raise Failure(
                    f"--vocab {options.vocab} is smaller than the {levels} letters of {work.symbols}"
                )
            merges = options.vocab - levels
        settings = {
            "merges": merges,
            "boundary": options.boundary,
            "min_count": options.min_count,
            "max_token_length": options.max_token_length,
            "split": options.split,
            "sample": options.sample,
            "seed": options.seed,
            "symbols": fingerprint(work),
        }
        return work.run_once(
            "tokenizer",
            work.ecg_tokenizer,
            settings,
            options.overwrite,
            "a tokenizer",
            lambda: _learn(work, settings, signal, options),
        )


def _learn(work: WorkDir, settings: dict[str, Any], signal: dict[str, Any], options: LearnOptions) -> dict:
    """Learn, and write the tokenizer."""
    merges, levels = settings["merges"], signal["quantizer"]["levels"]
    known = half_learned(work.half_learned, settings, options.overwrite)
    segments, description = choose_segments(work, options.split, options.sample, options.seed)

    from ecgbyte_kernels import merges as kernels

    started = time.perf_counter()
    kernels.compile_kernels(
        levels,
        merges,
        lambda: note("learn: compiling the kernels(only once, about ten seconds)"),
    )
    compile_seconds = time.perf_counter() - started

    started = time.perf_counter()
    symbols = int((segments["leads"] * segments["samples"]).sum())
    with _merge_steps(work, merges, levels, segments, description, known, options) as (steps, spent):
        rows, tokens = _collect(work, steps, settings, known, symbols)
    if len(rows) < merges:
        note(f"learn: {len(rows)} of {merges} merges: no other pair occurs {options.min_count} times or more")
    result = {
        "symbols": symbols,
        "vocab": levels + len(rows),
        "merges": len(rows),
        "tokens": tokens,
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


def _collect(
    work: WorkDir,
    steps: Iterator[tuple[np.ndarray, int]],
    settings: dict[str, Any],
    known: np.ndarray,
    symbols: int,
) -> tuple[np.ndarray, int]:
    """Return all merges, int64 (k, 3), and the number of tokens they leave. Save the merges at intervals."""
    # arrays, because thousands of small objects would trigger Python's garbage collector
    rows, tokens, saved, count = [known], symbols, time.perf_counter(), len(known)
    with progress("learning", settings["merges"], "merges") as bar:
        for fresh, tokens in steps:
            rows.append(fresh)
            count += len(fresh)
            last = f"last count {fresh[-1, 2]:,}, " if len(fresh) else ""
            bar.update(count, f"{last}{symbols / max(1, tokens):.2f} letters per token")
            if len(fresh) and time.perf_counter() - saved >= SAVE_EVERY:
                saved = time.perf_counter()
                so_far = {"settings": settings, "merges": np.concatenate(rows).tolist()}
                write_json(work.half_learned, add_checksum(so_far))
    return np.concatenate(rows), int(tokens)


@contextmanager
def _merge_steps(
    work: WorkDir,
    merges: int,
    levels: int,
    segments: dict[str, np.ndarray],
    description: str,
    known: np.ndarray,
    options: LearnOptions,
) -> Iterator[tuple[Iterator[tuple[np.ndarray, int]], dict[str, Any] | None]]:
    """Yield an iterator over steps of learning, and the time that a cluster spends on them (None on this machine)."""
    started = time.perf_counter()
    boundary, min_count, longest = options.boundary, options.min_count, options.max_token_length
    if options.dask:
        from ecgbyte_cli.signal import distributed_bpe

        with cluster.connected(options.dask, work.root, [work.symbols]) as client:
            starting = time.perf_counter() - started
            shared = worker_groups.share_array(
                work.symbols, segments, boundary, levels, merges, client.nthreads()
            )
            needed = max(
                memory_needed(int((part["leads"] * part["samples"]).sum())) for _, part, *_ in shared
            )
            if needed > cluster.memory(client):
                raise Failure(
                    f"{description}: a worker needs about {needed / 1e9:.1f} GB of memory and may use "
                    f"{cluster.memory(client) / 1e9:.1f} GB: use more workers, or --sample"
                )
            groups = worker_groups.Groups(client, shared, file_stamps([work.symbols]))
            note(f"learn: read by {len(shared)} workers in {groups.spent['reading']:.1f} s")
            groups.spent["starting"] = starting
            yield distributed_bpe.learn(groups, levels, merges, min_count, longest, known), groups.spent
        return
    from ecgbyte_kernels.merges import learn_merges

    check_memory(segments, boundary, description, free_memory())
    threads = options.threads or len(os.sched_getaffinity(0))
    texts = corpus.read_texts(read_array(work.symbols), segments, boundary, levels, threads, work.symbols)
    note(f"learn: read in {time.perf_counter() - started:.1f} s")
    yield learn_merges(texts, levels, merges, min_count, longest, threads, known[:, :2]), None


def half_learned(path: Path, settings: dict[str, Any], overwrite: bool) -> np.ndarray:
    """Read the merges saved by an interrupted run with the same settings: int64 (k, 3)."""
    if overwrite or not path.exists():
        return np.zeros((0, 3), np.int64)
    earlier = read_json(path)
    if earlier.get("settings") != json.loads(json.dumps(settings)):
        raise Failure(
            f"{path} belongs to an interrupted run with other settings: "
            "add --overwrite, or use another --work folder"
        )
    if not has_valid_checksum(earlier):
        raise Failure(f"{path} is damaged: remove it, and run the same command again")
    rows = np.array(earlier["merges"], np.int64).reshape(-1, 3)
    note(f"learn: resuming after {len(rows)} merges")
    return rows


def choose_segments(
    work: WorkDir, split: str, sample: int | float | None, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Return the segments to learn from, `offset`, `leads` and `samples` in the table's order, and a description."""
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
    description = f"{len(rows)} of {total} segments (split {split})"
    if sample is not None:
        rows = rows_learned_from(segments, split, sample, seed)
        description = f"{len(rows)} of {description}, drawn with seed {seed}"
    return {
        name: segments[name][rows].astype(np.int64) for name in ("offset", "leads", "samples")
    }, description


def check_memory(segments: dict[str, np.ndarray], boundary: str, description: str, free: float) -> None:
    """Note how much memory learning needs, and raise a Failure if it exceeds `free` bytes."""
    symbols = int((segments["leads"] * segments["samples"]).sum())
    needed = memory_needed(symbols)

    def fitting(share: float) -> int:
        return max(1, int(0.95 * share * len(segments["leads"])))

    note(f"learn: {symbols:,} letters from {description}; about {needed / 1e9:.1f} GB of memory needed")
    if needed > free:
        raise Failure(
            f"{symbols:,} letters need about {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are free: "
            f"--sample {fitting(free / needed)} would fit"
        )
    if boundary == "none" and symbols > MOST_IN_ONE_PIECE:
        raise Failure(
            f"{symbols:,} letters are too many for one piece (--boundary none): "
            f"--sample {fitting(MOST_IN_ONE_PIECE / symbols)} would fit"
        )


def memory_needed(symbols: int) -> float:
    """Return an upper bound, from measurements, of the bytes that learning needs besides Python and its libraries."""
    return 3e8 + min(12 * symbols, 1e9 + 3.2 * symbols)
