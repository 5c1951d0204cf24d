"""Measure what a recording costs in each stage, and compute what large data sets take.

    python examples/benchmarks/bench_scale.py FOLDER [--records 100,600]    # writes bench_scale.json beside the script
    python examples/benchmarks/bench_scale.py                               # prints the tables of docs/scale.md

FOLDER holds 12-lead recordings of 10 s at 500 Hz, as PTB-XL's records500. The first ones are written as WFDB format 16.
Each command runs on both numbers of recordings in a process of its own, with one worker. The difference of the
processor times is the cost of the recordings between, without the start-up; a busy machine does not change it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STORED = Path(__file__).with_suffix(".json")
LETTERS = 12 * 2500  # of a recording of 10 s at 250 Hz
FILTERED = 4 * LETTERS  # bytes that symbolize stores of a recording until it knows the range of the letters
TRAINING = 0.8  # share of the recordings in the training split
SAMPLE = 20_000  # recordings that merges are learned from: `learn --sample 20000`

# From docs/benchmarks.md and docs/cluster.md, measured on two quiet cores
LEARN = (22.0, 1.5e9), (86.9, 6e9)  # seconds, letters: `learn` without Dask
LEARN_BYTES, LEARN_BASE = 3.2, 1e9  # memory of `learn` with more than 3e8 letters: bytes a letter, and bytes
COMPUTING = 2 * 4.33 / 1.5e8  # seconds a letter and worker: `learn --dask`
AT_ONCE, MESSAGES = 1.16 + 1.71, 23e6 * 8 / 1e10  # `learn --dask`: seconds; seconds a worker at 10 Gbit/s
TRAINED, ANSWERED = 31.95, 1158.0  # questions a second, small decoder, two cores
QUESTIONS, WAYS = 19, 5  # questions an ECG; the signal and four controls


STAGES = ("symbolize", "encode", "decode", "measure", "findings")  # recordings are divided among the workers
CORES = 2, 16, 64


class DataSet(NamedTuple):
    """A public data set."""

    name: str
    recordings: int
    gigabytes: float  # unpacked


SETS = (
    DataSet("PTB-XL", 21_799, 3),
    DataSet("CODE-15 %", 345_779, 68),
    DataSet("MIMIC-IV-ECG", 800_035, 90),
)


def run(*words: object) -> dict[str, float]:
    """Run ecgbyte; return `cpu` (s, with its children) and `mb` (the largest process)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ecgbyte_cli", *map(str, words)]
    child = os.posix_spawn(sys.executable, command, environment)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss * 1.024 / 1000}


def prepare(folder: str, out: Path, count: int) -> None:
    """Write the first recordings of a folder as WFDB format 16."""
    import numpy as np

    from ecgbyte_cli import read
    from ecgbyte_cli.readers import find
    from ecgbyte_cli.readers.wfdb_write import write_record

    out.mkdir()
    for path in find([folder])[0][:count]:
        recording = read(path)
        signal = dict(zip(recording.leads, np.nan_to_num(recording.signal), strict=True))
        one, two = signal["I"], signal["II"]
        signal |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
        settings = {"fs": recording.fs, "leads": list(signal)}
        write_record(out, Path(path).stem, np.array(list(signal.values())), settings, [])


MADE_TABLE = """
import sys
from ecgbyte_cli.storage.files import write_table
import numpy as np
count = int(sys.argv[2])
names = [f"files/p1000/p{i:08d}/s{i:08d}/{i:08d}" for i in range(count)]
columns = {"record": names, "patient": [name[-8:] for name in names], "split": ["train"] * count, "path": names}
columns |= {name: np.arange(count) for name in ("segment", "start", "leads", "samples", "offset", "lo", "hi")}
write_table(sys.argv[1], columns)
"""
READ_TABLE = """
import sys
import pyarrow.parquet
from ecgbyte_cli.storage.files import read_table
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
table = read_table(sys.argv[1])
print((peak() - before) / int(sys.argv[2]))
"""


def table_bytes(rows: int) -> float:
    """Return the bytes of memory that a row of a table of segments takes, with names as long as MIMIC-IV-ECG's."""
    with tempfile.TemporaryDirectory() as made:
        words = [f"{made}/table.parquet", str(rows)]
        subprocess.run([sys.executable, "-c", MADE_TABLE, *words], check=True)
        run = [sys.executable, "-c", READ_TABLE, *words]
        return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def measure(folder: str, counts: list[int]) -> dict[str, Any]:
    """Return the rates of each stage."""
    found: dict[str, Any] = {"records": counts}
    with tempfile.TemporaryDirectory() as made:
        results: dict[str, list[dict[str, float]]] = {}
        for count in counts:
            data, work = Path(made) / f"data{count}", Path(made) / f"work{count}"
            prepare(folder, data, count)
            stages = {
                "symbolize": ("symbolize", data, "--jobs", 1),
                "learn": ("learn", "--vocab", 5000),
                "encode": ("encode",),
                "decode": ("decode",),
                "measure": ("measure", data, "--out", work / "measures.csv", "--jobs", 1),
                "findings": (
                    "findings",
                    data,
                    "--out",
                    work / "findings.csv",
                    "--model",
                    "ptbxl",
                    "--jobs",
                    1,
                ),
            }
            for stage, words in stages.items():
                results.setdefault(stage, []).append(run("--work", work, *words))
        few, many = counts
        for stage, (first, second) in results.items():
            found[stage] = {
                "ms": 1000 * (second["cpu"] - first["cpu"]) / (many - few),
                "start": first["cpu"] - few * (second["cpu"] - first["cpu"]) / (many - few),
                "mb": max(first["mb"], second["mb"]),
            }
        found["token_bytes"] = (work / "tokens" / "tokens.npy").stat().st_size / many
        found["decoded_bytes"] = (
            sum(p.stat().st_size for p in (work / "decoded").rglob("*") if p.is_file()) / many
        )
    found["table_bytes"] = table_bytes(400_000)
    return found


def hours(seconds: float) -> str:
    """Return a duration in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(gigabytes: float) -> str:
    """Return a size in the unit that fits."""
    if gigabytes < 0.1:
        return f"{1000 * gigabytes:.0f} MB"
    return f"{gigabytes:.1f} GB" if gigabytes < 10 else f"{gigabytes:,.0f} GB"


def learn_seconds(letters: float) -> float:
    """Return the time of `learn` on two cores, on the line through the two measurements."""
    (few, less), (many, more) = LEARN
    return few + (letters - less) * (many - few) / (more - less) if letters > less else few * letters / less


def table(header: str, rows: list[list[str]]) -> str:
    lines = [header, "| --- |" + " ---: |" * (header.count("|") - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


Column = Callable[[DataSet], str]


def rows_of(label: str, text: Column) -> list[str]:
    """Return a row of a table with a column for each data set."""
    return [label, *(text(one) for one in SETS)]


def learned(one: DataSet) -> float:
    """Return the letters that merges are learned from."""
    return one.recordings * TRAINING * LETTERS


def sampled(one: DataSet) -> float:
    return min(SAMPLE * LETTERS, learned(one))


def divided(rates: dict[str, Any], stage: str, workers: int) -> Column:
    """Return the time of a stage whose recordings are divided among workers, start-up included."""
    cost = rates[stage]
    return lambda one: hours(cost["start"] + one.recordings * cost["ms"] / 1000 / workers)


def clustered(workers: int) -> Column:
    """Return the time of `learn` on a cluster."""
    return lambda one: hours(COMPUTING * learned(one) / workers + AT_ONCE + MESSAGES * workers)


def learn_memory(letters: float) -> str:
    return size((LEARN_BASE + LEARN_BYTES * letters) / 1e9)


def times(rates: dict[str, Any]) -> list[list[str]]:
    """Return the rows of one machine and of a cluster."""
    trained = QUESTIONS / TRAINED
    return [
        rows_of("recordings", lambda one: f"{one.recordings:,}"),
        *(rows_of(f"`{stage}`, {n} cores", divided(rates, stage, n)) for stage in STAGES for n in CORES),
        rows_of("`learn`, 2 cores", lambda one: hours(learn_seconds(learned(one)))),
        rows_of("`learn`, 64 workers", clustered(64)),
        rows_of(f"`learn --sample {SAMPLE}`, 2 cores", lambda one: hours(learn_seconds(sampled(one)))),
        rows_of("`finetune`, an epoch, 2 cores", lambda one: hours(one.recordings * TRAINING * trained)),
        rows_of(
            "`generate`, a tenth, 2 cores",
            lambda one: hours(one.recordings / 10 * QUESTIONS * WAYS / ANSWERED),
        ),
    ]


def tables(rates: dict[str, Any]) -> str:
    """Return the tables of docs/scale.md."""
    names = "| | " + " | ".join(one.name for one in SETS) + " |"
    costs = [
        [
            f"`{stage}`",
            f"{rates[stage]['ms']:.1f} ms",
            f"{rates[stage]['start']:.1f} s",
            f"{rates[stage]['mb']:.0f} MB",
        ]
        for stage in STAGES
    ]
    memory = [
        rows_of("table of segments", lambda one: size(one.recordings * rates["table_bytes"] / 1e9)),
        rows_of("`learn`", lambda one: learn_memory(learned(one))),
        rows_of(f"`learn --sample {SAMPLE}`", lambda one: learn_memory(sampled(one))),
    ]
    disk = [
        rows_of("recordings, unpacked", lambda one: size(one.gigabytes)),
        rows_of("filtered signals, without `--range`", lambda one: size(one.recordings * FILTERED / 1e9)),
        rows_of("letters (twice while they are joined)", lambda one: size(one.recordings * LETTERS / 1e9)),
        rows_of("tokens", lambda one: size(one.recordings * rates["token_bytes"] / 1e9)),
        rows_of("recordings of `decode`", lambda one: size(one.recordings * rates["decoded_bytes"] / 1e9)),
    ]
    parts = [("One recording", table("| | processor time | start-up | largest process |", costs))]
    parts += [
        ("Time", table(names, times(rates))),
        ("Memory", table(names, memory)),
        ("Disk", table(names, disk)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts)


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="recordings to measure with")
    parser.add_argument("--records", default="100,600", help="two numbers of recordings")
    options = parser.parse_args()
    if options.folder:
        rates = measure(options.folder, [int(n) for n in options.records.split(",")])
        STORED.write_text(json.dumps(rates, indent=1) + "\n")
    print(tables(json.loads(STORED.read_text())))


if __name__ == "__main__":
    main()
