"""Measure `ecgbyte findings`: recordings a second, start-up, and memory.

    python examples/benchmarks/bench_findings.py PTBXL100/records100 [--records 2000] [--jobs 2] [--memory 20000]

Each run is a process of its own. Start-up is the time of a run on one recording; the rate leaves it out. With
`--jobs 1` the rate is also given by the processor's time, which a busy machine does not change. `--memory N` compares
the peak memory of the command with 1,000 and with N recordings, without its worker processes.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ecgbyte_cli import readers

FEW = 1000  # recordings that the memory is compared with


def run(paths: list[str], out: Path, jobs: int, more: list[str]) -> dict[str, float]:
    """Make a table; return `seconds`, `cpu` (s, without workers), `records` and `peak_mb`."""
    code = (
        "import sys; from ecgbyte_cli.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(open('/proc/self/status').read(), file=sys.stderr)"
    )
    words = [
        "--work",
        str(out.with_name("none")),
        "findings",
        *paths,
        "--model",
        "ptbxl",
        "--out",
        str(out),
    ]
    words += ["--jobs", str(jobs), "--overwrite", "--json", *more]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(re.findall(r"VmHWM:\s+(\d+)", done.stderr)[-1]) * 1.024 / 1000
    return {"seconds": seconds, "cpu": cpu, "records": json.loads(done.stdout)["records"], "peak_mb": peak}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="recordings")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--questions", action="append", default=[], help="ask these instead of all")
    options = parser.parse_args()
    found, _ = readers.find([options.folder])
    more = [word for text in options.questions for word in ("--questions", text)]
    with tempfile.TemporaryDirectory() as made:

        def made_of(count: int) -> dict[str, float]:
            return run(found[:count], Path(made) / "table.csv", options.jobs, more)

        first = made_of(1)
        whole = made_of(options.records)
        count = whole["records"] - 1
        print(f"start-up {first['seconds']:.1f} s ({first['cpu']:.1f} s of processor time)")
        print(f"{whole['records']:.0f} recordings, {options.jobs} processes: {whole['seconds']:.1f} s")
        print(
            f"without start-up {count / max(whole['seconds'] - first['seconds'], 1e-9):.1f} recordings a second"
        )
        if options.jobs == 1:  # else the workers' time is not seen
            print(f"{count / (whole['cpu'] - first['cpu']):.1f} recordings a second of processor time")
        if options.memory:
            few, many = made_of(FEW), made_of(options.memory)
            print(
                f"peak memory {few['peak_mb']:.0f} MB with {FEW} recordings, {many['peak_mb']:.0f} MB with "
                f"{many['records']:.0f}"
            )


if __name__ == "__main__":
    main()
