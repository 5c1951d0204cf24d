"""Time `ecgbyte learn` and the installed byte pair encoding trainers on the same letters.

    python examples/benchmarks/bench_learn.py                          # synthetic recordings
    python examples/benchmarks/bench_learn.py --real DIR               # your own recordings, varied
    python examples/benchmarks/bench_learn.py --sizes 1.5e9 --peers "" # this project only, on a large corpus

Each segment of a corpus is one of a few recordings, shifted in time by a random number of samples, scaled by 0.7 to
1.4, with noise of 0.01 mV, as letters (profile paper, 250 Hz, 12 leads, ten seconds, 26 letters). Each run is a
process of its own; the best of `--repeat` runs counts. For this project the time includes reading the letters and
learning, without compilation; for the others, training on strings in memory (gigabpe: in a file). The peers are
tokenizers, bpeasy, rustbpe and gigabpe, if the interpreter of `--python` has them. tokenizers and gigabpe have the
same rules for counts and ties, so their merges must be equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEERS = ["tokenizers", "bpeasy", "rustbpe", "gigabpe"]
SAME_RULES = ["tokenizers", "gigabpe"]
LEVELS = 26


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, help="a folder of recordings to make the corpora from")
    parser.add_argument("--sizes", default="1.5e5,1.5e6,15e6", help="letters in each corpus")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--vocab", type=int, default=5000)
    parser.add_argument("--peers", default=",".join(PEERS), help="trainers to compare with")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the peers")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the fastest counts")
    parser.add_argument("--out", type=Path, default=Path("bench-learn"), help="corpora, results and picture")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in (int(float(text)) for text in options.sizes.split(",")):
        work = options.out / f"corpus-{size}"
        if not (work / "symbols" / "settings.json").exists():
            make_corpus(work, size, options.real, options.out)
        for threads in (int(text) for text in options.threads.split(",")):
            rows += compare(work, threads, options)
    results = options.out / "results.json"
    if results.exists():  # rows of earlier runs stay, unless they were made again
        same = ("letters", "vocab", "threads", "trainer")
        rows = json.loads(results.read_text()) + rows
        rows = list({tuple(row[name] for name in same): row for row in rows}.values())
    results.write_text(json.dumps(rows, indent=1))
    print_table(sorted(rows, key=lambda row: (row["letters"], row["threads"])))
    draw(rows, options.out / "bench_learn.png")
    print(f"{results}\n{options.out / 'bench_learn.png'}")


def make_corpus(work, size, real, out):
    """Write a work folder as `ecgbyte symbolize` leaves it, with `size` letters or a few more."""
    from ecgbyte_cli import readers
    from ecgbyte_cli.signal import preprocess
    from ecgbyte_cli.storage.files import array_writer, write_json, write_table
    from ecgbyte_cli.storage.workdir import WorkDir

    started = time.perf_counter()
    if real is None:
        real = out / "synthetic"
        if not real.exists():
            run = ["ecgbyte", "synth", str(real), "--records", "64", "--fs", "500", "--seed", "1"]
            subprocess.run([sys.executable, "-m", "ecgbyte_cli", *run[1:]], check=True)
    signal = {
        "fs": 250.0,
        "leads": list(preprocess.LEADS),
        "segment_seconds": 10.0,
        "samples": 2500,
        "profile": "paper",
        "fill_nan": None,
    }
    found, _ = readers.find(real)
    base = [part for path in found for _, part in preprocess.segments(readers.read_recording(path), signal)]
    base = np.stack(base).astype(np.float32)
    low, high = np.percentile(base[:200], [1, 99]) + [-0.5, 0.5]
    signal["quantizer"] = {"name": "paper", "levels": LEVELS, "lo": low, "hi": high}

    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 1 << 22).astype(np.float32)
    each = base[0].size
    n = -(-size // each)
    paths = WorkDir(work)
    with array_writer(paths.symbols, np.uint8, n * each) as write:
        for _ in range(n):
            part = np.roll(base[rng.integers(len(base))], rng.integers(base.shape[2]), axis=1)
            part = (
                part.ravel() * rng.uniform(0.7, 1.4)
                + noise[(at := rng.integers(len(noise) - each)) : at + each]
            )
            scaled = (part - low) * (LEVELS / (high - low))
            write(np.clip(scaled, 0, LEVELS - 1))
    names = [f"s{i}" for i in range(n)]
    write_table(
        paths.symbol_segments,
        {
            "segment": np.arange(n),
            "record": names,
            "patient": names,
            "split": ["train"] * n,
            "path": names,
            "start": np.zeros(n),
            "leads": np.full(n, base.shape[1]),
            "samples": np.full(n, base.shape[2]),
            "offset": np.arange(n, dtype=np.int64) * each,
            "lo": np.full(n, low),
            "hi": np.full(n, high),
        },
    )
    write_json(paths.symbol_settings, {"settings": {}, "result": {}, "signal": signal})
    print(f"{n * each:,} letters made from {len(base)} segments in {time.perf_counter() - started:.0f} s")


def compare(work, threads, options):
    """Run this project and each peer on a corpus; a row for each."""
    letters = np.load(work / "symbols" / "symbols.npy", mmap_mode="r").size
    rows = []
    for name in ["ecgbyte", *filter(None, options.peers.split(","))]:
        python = sys.executable if name == "ecgbyte" else options.python
        best, reason = None, None
        for _ in range(options.repeat):
            row, reason = run_alone(name, python, work, threads, options)
            if row is None:
                break
            if best is None or row["seconds"] < best["seconds"]:
                best = row
        if best is None:
            print(f"{name}, {threads} threads: skipped, {reason}")
            continue
        about = {"trainer": name, "letters": letters, "vocab": options.vocab, "threads": threads}
        rows.append({**about, **best})
        if name in SAME_RULES and best["tokens"] != rows[0]["tokens"]:
            sys.exit(f"{name} made other merges than ecgbyte on {work}")
        print(f"{name}: {letters:,} letters, {threads} threads, {best['seconds']:.3f} s", flush=True)
    ours = set(rows[0]["tokens"])
    for row in rows:
        row["same"] = len(ours & set(row["tokens"])) / max(1, len(ours))
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
        del row["tokens"]
    return rows


def run_alone(name, python, work, threads, options):
    """One run in a process of its own: its result, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        task = [name, str(work), str(threads), str(options.vocab), folder]
        done = subprocess.run(
            [python, __file__, "--one", *task],
            env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), None


def one(name, work, threads, vocab, folder):
    """What the process of a run does: prints seconds, memory, and the strings of the merged tokens."""
    threads, vocab = int(threads), int(vocab)
    if name == "ecgbyte":
        result = train_ecgbyte(work, threads, vocab)
    else:
        letters = np.load(Path(work) / "symbols" / "symbols.npy")
        strings = [row.tobytes().decode() for row in letters.reshape(-1, 2500) + ord("a")]
        del letters
        train = {
            "tokenizers": train_tokenizers,
            "bpeasy": train_bpeasy,
            "rustbpe": train_rustbpe,
            "gigabpe": train_gigabpe,
        }[name]
        result = train(strings, threads, vocab, folder)
    print(json.dumps(result))


def train_ecgbyte(work, threads, vocab):
    from ecgbyte_cli.stages.learn import LearnOptions, learn
    from ecgbyte_cli.storage.files import read_table
    from ecgbyte_cli.storage.workdir import WorkDir
    from ecgbyte_kernels.merges import compile_kernels

    compile_kernels(LEVELS, vocab - LEVELS, lambda: None)
    before = resident_mb()
    paths = WorkDir(work)
    result = learn(paths, LearnOptions(vocab=vocab, max_token_length=0, threads=threads, overwrite=True))
    return {
        "seconds": result["seconds"],
        "peak_mb": result["peak_rss_mb"],
        "before_mb": before,
        "tokens": read_table(paths.merges)["letters"],
    }


def timed(train):
    """Seconds and memory of a call, and what it returned."""
    before = resident_mb()
    started = time.perf_counter()
    made = train()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resident_mb(), "before_mb": before}, made


def resident_mb():
    """The most memory this process has held, in MB."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmHWM")) / 1000
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def train_tokenizers(strings, threads, vocab, folder):
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    alphabet = [chr(ord("a") + i) for i in range(LEVELS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    result, _ = timed(lambda: tokenizer.train_from_iterator(strings, trainer))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {**result, "tokens": ["".join(pair) for pair in merges]}


def train_gigabpe(strings, threads, vocab, folder):
    import gigabpe

    path = Path(folder) / "pieces.txt"
    path.write_text("\n".join(strings))
    strings.clear()
    # letters that do not occur have no id there, so the vocabulary is smaller by them
    missing = LEVELS - len(set(path.read_text()) - {"\n"})
    result, (_, merges) = timed(
        lambda: gigabpe.train_bpe(
            [str(path)],
            vocab - missing,
            special_tokens=[],
            min_frequency=2,
            pretokenizer="whitespace",
            threads=threads,
        )
    )
    return {**result, "tokens": ["".join(pair) for pair in merges]}


def train_rustbpe(strings, threads, vocab, folder):
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    size = 256 + vocab - LEVELS  # it begins with all bytes
    result, _ = timed(lambda: tokenizer.train_from_iterator(strings, vocab_size=size, pattern="[a-z]+"))
    ranks = sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return {**result, "tokens": [bytes(token).decode("latin-1") for token, rank in ranks if rank > 255]}


def train_bpeasy(strings, threads, vocab, folder):
    import bpeasy

    result, ranks = timed(lambda: bpeasy.train_bpe(iter(strings), "[a-z]+", 100_000, vocab))
    return {**result, "tokens": [token.decode("latin-1") for token in ranks if len(token) > 1]}


def print_table(rows):
    """Print the results: a line for each run."""
    line = "{:>14} {:>8} {:>12} {:>10} {:>14} {:>9} {:>10} {:>8} {:>7}"
    head = ("letters", "threads", "trainer", "seconds", "letters/s", "peak MB", "of it new", "ratio", "same")
    print(line.format(*head))
    for row in rows:
        print(
            line.format(
                f"{row['letters']:,}",
                row["threads"],
                row["trainer"],
                f"{row['seconds']:.3f}",
                f"{row['letters'] / row['seconds']:,.0f}",
                f"{row['peak_mb']:.0f}",
                f"{row['peak_mb'] - row['before_mb']:.0f}",
                f"{row['ratio']:.2f}",
                f"{100 * row['same']:.1f}%",
            )
        )


def draw(rows, path):
    """Draw time and memory against the number of letters, on log axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    most = max(row["threads"] for row in rows)
    for name in dict.fromkeys(row["trainer"] for row in rows):
        mine = sorted(
            (row for row in rows if row["trainer"] == name and row["threads"] == most),
            key=lambda r: r["letters"],
        )
        style = {"marker": "o", "label": name, "linewidth": 2.5 if name == "ecgbyte" else 1.2}
        axes[0].loglog([r["letters"] for r in mine], [r["seconds"] for r in mine], **style)
        axes[1].loglog([r["letters"] for r in mine], [r["peak_mb"] for r in mine], **style)
    axes[0].set(xlabel="letters", ylabel="seconds", title=f"Time to learn the merges, {most} threads")
    axes[1].set(xlabel="letters", ylabel="MB", title="Peak resident memory")
    for axis in axes:
        axis.grid(which="both", alpha=0.25)
    axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
