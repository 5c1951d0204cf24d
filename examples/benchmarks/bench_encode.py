"""Time the three segmenters and the `tokenizers` library on the same letters.

    python examples/benchmarks/bench_encode.py [FOLDER] [--letters 15000000] [--merges 5000] [--threads 2]

The recordings of FOLDER (500 synthetic ones without it) become letters (profile paper, 250 Hz, 26 letters). Merges are
learned from them, with a piece per lead, and the letters are repeated up to the given number. The segmenters and the
library's encode_batch get the same pieces and number of threads. The best of five rounds counts, of three for the
library. `bpe` must give the library's ids, and all must decode to the letters.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ecgbyte_cli.signal.tokenizer import SEGMENTERS, ECGTokenizer, character
from ecgbyte_cli.stages.learn import LearnOptions, learn
from ecgbyte_cli.stages.symbolize import SymbolizeOptions, symbolize
from ecgbyte_cli.stages.synth import SynthOptions, synth
from ecgbyte_cli.storage.files import read_array
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels.tokens import expand, spell


def best(rounds, function):
    """Least seconds of several rounds, and what the function returned."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--letters", type=int, default=15_000_000)
    parser.add_argument("--merges", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # before the library starts its threads
    os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"] = str(args.threads), "true"
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        work = WorkDir(Path(folder) / "work")
        if not args.folder:
            synth(Path(folder) / "data", SynthOptions(records=500))
        symbolize(work, args.folder or Path(folder) / "data", SymbolizeOptions())
        learn(work, LearnOptions(merges=args.merges, split="all"))
        tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
        library = Tokenizer.from_file(str(work.hf_tokenizer))
        letters = np.array(read_array(work.symbols))
    leads, samples = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
    segments = -(-args.letters // (leads * samples))
    own = letters.size // (leads * samples)
    letters = np.resize(letters, segments * leads * samples)
    names = np.array([character(i) for i in range(tokenizer.levels)])
    texts = ["".join(names[piece]) for piece in letters.reshape(-1, samples)]
    print(
        f"{letters.size:,} letters ({own} recordings, repeated), {len(texts):,} pieces, "
        f"{len(tokenizer.merges):,} merges, {args.threads} threads"
    )

    slow, encoded = best(3, lambda: library.encode_batch(texts, add_special_tokens=False))
    library_ids = np.concatenate([np.array(piece.ids) for piece in encoded])
    rows = [("tokenizers encode_batch", slow, library_ids.size)]
    step = -(-segments // (4 * args.threads))
    text, starts = spell(tokenizer.merges, tokenizer.levels)
    for name in SEGMENTERS:

        def part(first, name=name):
            last = min(first + step, segments)
            size = leads * samples
            return tokenizer.encode_segments(
                letters[first * size : last * size], last - first, leads, samples, name
            )[0]

        part(0)  # compiled, and the tables made
        with ThreadPoolExecutor(args.threads) as pool:
            seconds, parts = best(5, lambda: list(pool.map(part, range(0, segments, step))))
        ids = np.concatenate(parts)
        assert np.array_equal(expand(ids, text, starts), letters)
        assert name != "bpe" or np.array_equal(ids, library_ids)
        rows.append((name, seconds, ids.size))
    print(f"{'':24} {'s':>7} {'letters/s':>13} {'times':>7} {'tokens a record':>16}")
    for name, seconds, tokens in rows:
        print(
            f"{name:24} {seconds:7.3f} {letters.size / seconds:13,.0f} {slow / seconds:7.1f} {tokens / segments:16.0f}"
        )

    one = letters[: leads * samples].reshape(leads, samples)
    signal = tokenizer.to_mv(one)
    for name in SEGMENTERS:
        seconds, _ = best(50, lambda name=name: tokenizer.encode(signal, name))
        print(f"one record from mV, {name}: {1000 * seconds:.2f} ms")


if __name__ == "__main__":
    main()
