"""Time `ecgbyte learn` on a Dask cluster of processes on this machine, and on two threads without Dask.

    python examples/benchmarks/bench_cluster.py --size 1.5e8 --workers 1,2

The letters are from bench_learn.py. Each run is a process of its own; the best of `--repeat` counts. The time includes
reading the letters and learning, without the start of the cluster and without compilation. `computing` is the slowest
worker of each call, `waiting` the rest of the calls (messages and wake-ups), `here` the work between the calls.
`calls` are round trips; bytes are of arrays, over all workers. The last table extrapolates to more workers: see
docs/cluster.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench_learn import make_corpus

LATENCY, BANDWIDTH = (0.0001, 0.001), 1.25e9  # seconds one way; bytes a second of ten gigabits
WORKERS = (2, 16, 256)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1.5e8, help="letters")
    parser.add_argument("--vocab", type=int, default=5000)
    parser.add_argument("--workers", default="1,2", help="numbers of worker processes")
    parser.add_argument("--gathered", type=int, help="tokens at which the text is brought to one machine")
    parser.add_argument("--real", type=Path, help="a folder of recordings to make the corpus from")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-cluster"))
    options = parser.parse_args()
    size = int(options.size)
    work = options.out / f"corpus-{size}"
    options.out.mkdir(parents=True, exist_ok=True)
    if not (work / "symbols" / "settings.json").exists():
        make_corpus(work, size, options.real, options.out)
    alone = best(work, options, "--threads", "2")
    print(
        "\n| | seconds | computing | waiting | here | calls | sent, MB | received, MB | bytes a letter | same |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    print(f"| 2 threads, no Dask | {alone['seconds']:.2f} | | | | | | | | |")
    for workers in map(int, options.workers.split(",")):
        row = best(work, options, "--dask", f"local:{workers}")
        spent, same = row["cluster"], row["sha256"] == alone["sha256"]
        here = row["seconds"] - spent["reading"] - spent["computing"] - spent["waiting"]
        sent, received = spent["sent"] / 1e6, spent["received"] / 1e6
        print(
            f"| {workers} workers | {row['seconds']:.2f} | {spent['computing']:.2f} | {spent['waiting']:.2f} | "
            f"{here:.2f} | {spent['calls']} | {sent:.1f} | {received:.1f} | "
            f"{(sent + received) * 1e6 / row['symbols']:.3f} | {'yes' if same else 'NO'} |"
        )
    foretell(row, workers)


def best(work, options, *more):
    """The result of the fastest run of `ecgbyte learn`, in a process of its own."""
    code = "import sys; from ecgbyte_cli.signal import distributed_bpe\n"
    if options.gathered is not None:
        code += f"distributed_bpe.learn.__defaults__ = (distributed_bpe.NO_ROWS, {options.gathered})\n"
    code += "from ecgbyte_cli.__main__ import main; main()"
    rows = []
    for _ in range(options.repeat):
        command = [
            sys.executable,
            "-c",
            code,
            "--work",
            str(work),
            "learn",
            "--json",
            "--vocab",
            str(options.vocab),
        ]
        run = subprocess.run([*command, "--overwrite", *more], capture_output=True, text=True, check=True)
        row = json.loads(run.stdout)
        row["seconds"] -= row.get("cluster", {}).get("starting", 0)
        rows.append(row)
    return min(rows, key=lambda row: row["seconds"])


def foretell(row, workers):
    """Print what the same work would take on more workers, from what was measured on these."""
    spent = row["cluster"]
    here = row["seconds"] - spent["reading"] - spent["computing"] - spent["waiting"]
    overhead = spent["waiting"] / spent["calls"]  # of a call here, where the network takes nothing
    print("\n| workers | latency, ms | computing | here | round trips | messages | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in WORKERS:
        for latency in LATENCY:
            computing = spent["computing"] * workers / count
            trips = spent["calls"] * (overhead + 2 * latency)
            messages = (spent["sent"] + spent["received"]) / workers * count / BANDWIDTH
            total = computing + here + trips + messages
            print(
                f"| {count} | {1000 * latency:g} | {computing:.2f} | {here:.2f} | {trips:.2f} | {messages:.2f} | "
                f"{total:.2f} |"
            )


if __name__ == "__main__":
    main()
