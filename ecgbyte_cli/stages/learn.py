"""ecgbyte learn: byte pair encoding merges from letters."""

import hashlib
import json
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.console import Failure, Stage, note, progress, say
from ecgbyte_cli.workdir import (
    finished,
    read_array,
    read_json,
    read_table,
    sha256_of,
    write_json,
    write_table,
)


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
    "--vocab", type=click.IntRange(1), default=5000, show_default=True, help="Letters and merges together."
)
@click.option("--merges", type=click.IntRange(0), help="Merges alone, instead of --vocab.")
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
@click.option("--overwrite", is_flag=True, help="Replace a tokenizer learned with other settings.")
@click.pass_obj
def command(work, **options):
    """Learn byte pair encoding merges from the letters, and write the tokenizer.

    The next merge is always the pair found most often; ties go to the smaller ids. So the merges are one
    well-defined list, the same at any number of threads.
    """
    result = learn(work, **options)
    say(
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
    overwrite : bool
        Replace a tokenizer learned with other settings.

    Returns
    -------
    dict
        `symbols` (letters learned from), `vocab`, `merges`, `tokens` (of the same letters), `compression`
        (letters per token), `seconds`, `compile_seconds`, `peak_rss_mb`, and `sha256`: of the merges as
        pairs of little-endian int32.

    Raises
    ------
    Failure
        If there are no letters, or the vocabulary is smaller than the number of letters.
    """
    letters = read_array(work.need(work.symbols, "symbolize"))
    signal = read_json(work.need(work.symbol_settings, "symbolize"))["signal"]
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
    result = finished(work.ecg_tokenizer, settings, overwrite, "a tokenizer")
    if result is not None:
        note(f"learn: already done, see {work.ecg_tokenizer}")
        return result

    segments = choose_segments(work, split, sample, seed)
    started = time.perf_counter()
    text = pieces(letters, segments, boundary)
    compile_seconds = time.perf_counter()
    from ecgbyte_kernels.merges import learn_merges

    rows = list(learn_merges(np.array([0, 1, 9], np.int32), 9, 2, 1, 1, 0))
    compile_seconds = time.perf_counter() - compile_seconds

    symbols = int(np.count_nonzero(text >= 0))
    end = levels + merges + 1
    text[text < 0] = end
    rows, tokens = [], symbols
    with progress("learning", merges, "merges") as bar:
        for *row, tokens in learn_merges(text, end, levels, merges, min_count, max_token_length):
            rows.append(row)
            bar.update(len(rows), f"last count {row[2]:,}, {symbols / tokens:.2f} letters a token")
    if len(rows) < merges:
        note(f"learn: {len(rows)} of {merges} merges: no other pair is found {min_count} times or more")
    rows = np.array(rows, np.int64).reshape(-1, 3)
    result = {
        "symbols": symbols,
        "vocab": levels + len(rows),
        "merges": len(rows),
        "tokens": tokens,
        "compression": symbols / tokens,
        "seconds": round(time.perf_counter() - started - compile_seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "sha256": hashlib.sha256(rows[:, :2].astype("<i4").tobytes()).hexdigest(),
    }
    write_tokenizer(work, signal, boundary, max_token_length, rows, settings, result)
    return result


def fingerprint(work):
    """A short text that changes when the letters do: of their settings, their table and their number."""
    settings = read_json(work.symbol_settings)
    asked = json.dumps([settings.get("settings"), settings["signal"]], sort_keys=True)
    return hashlib.sha256(
        f"{asked} {sha256_of(work.need(work.symbol_segments, 'symbolize'))} "
        f"{Path(work.symbols).stat().st_size}".encode()
    ).hexdigest()


def choose_segments(work, split, sample, seed):
    """The rows to learn from: those of the split, or a random part of them, in the table's order."""
    segments = read_table(work.need(work.symbol_segments, "symbolize"))
    total = len(segments["segment"])
    rows = np.arange(total)
    if split == "train":
        rows = np.flatnonzero(np.array(segments["split"], dtype=object) == "train")
    if len(rows) == 0:
        raise Failure(
            f"{work.symbol_segments} has {total} segments, none of them in the training split: add --split all"
            if total
            else f"{work.symbol_segments} has no segments: run `ecgbyte symbolize` on a folder with recordings"
        )
    part = f"{len(rows)} of {total} segments (split {split})"
    if sample is not None:
        wanted = sample if isinstance(sample, int) else max(1, round(sample * len(rows)))
        # the first of one shuffled order, so that a larger sample holds the smaller one
        order = np.random.default_rng(seed).permutation(len(rows))
        rows = rows[np.sort(order[:wanted])]
        part = f"{len(rows)} of {part}, by seed {seed}"
    note(f"learn: from {part}")
    return {name: segments[name][rows] for name in ("offset", "leads", "samples")}


def pieces(letters, segments, boundary):
    """The chosen letters as one text, int32, with -1 behind every piece."""
    parts = []
    end = np.array([-1], np.int32)
    for offset, leads, samples in zip(*segments.values(), strict=True):
        if boundary == "lead":
            for lead in range(leads):
                start = offset + lead * samples
                parts += [letters[start : start + samples], end]
        else:
            parts += [letters[offset : offset + leads * samples]]
            if boundary == "segment":
                parts.append(end)
    return np.concatenate([*parts, end]).astype(np.int32)


def peak_rss_mb():
    """The most memory this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held before it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000 * 1.024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 * 1.024


def write_tokenizer(work, signal, boundary, max_token_length, rows, settings, result):
    """Write the merges: a table to read, tokenizer.json, and ecg_tokenizer.json as the last."""
    levels = signal["quantizer"]["levels"]
    names = [character(i) for i in range(levels)]
    for left, right, _ in rows:
        names.append(names[left] + names[right])
    write_table(
        work.merges,
        {
            "rank": np.arange(len(rows)),
            "id": np.arange(levels, levels + len(rows)),
            "left": rows[:, 0],
            "right": rows[:, 1],
            "count": rows[:, 2],
            "length": np.array([len(name) for name in names[levels:]], np.int64),
            "letters": names[levels:],
        },
    )
    write_json(
        work.hf_tokenizer,
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {name: i for i, name in enumerate(names)},
                "merges": [[names[left], names[right]] for left, right, _ in rows],
            },
        },
    )
    write_json(
        work.ecg_tokenizer,
        {
            "format": "ecgbyte-tokenizer",
            "format_version": 1,
            "ecgbyte": __version__,
            "settings": settings,
            "result": result,
            "signal": signal,
            "boundary": boundary,
            "max_token_length": max_token_length,
            "merges": rows[:, :2].tolist(),
            "counts": rows[:, 2].tolist(),
        },
    )


def character(letter):
    """The character of a letter in tokenizer.json: a to z, A to Z, 0 to 9, then U+0100 + letter."""
    first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return first[letter] if letter < len(first) else chr(0x100 + letter)
