"""Train with and without the measured values before the ECG, on real recordings.

    OMP_NUM_THREADS=1 python examples/experiments/measured_ptbxl.py ptb-xl/ --out measured/

Both rows train `--model tiny` on the same recordings (some of folds 1 to 8) for the same number of updates, from the
same seed. The questions are the eighteen findings of findings.csv, one letter each to save time. The score is the AUROC
of P(yes) of each finding with five or more recordings in the part of fold 9. `values alone` asks the trained model with
the measured values and without the ECG: the part that needs no ECG. Finished rows are kept in OUT/rows.jsonl.
"""

import argparse
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
from ablation_ptbxl import MODEL, TOKENS, ask, scores, tokens

from ecgbyte_cli.signal.segment_lines import segment_lines
from ecgbyte_cli.stages.finetune import FinetuneOptions, finetune

ROWS = (("without", False), ("--measured", True))


def part_of(data, folder, training, held_out):
    """Copy some recordings of PTB-XL, spread evenly over folds 1 to 8 and over fold 9, and the tables."""
    if folder.exists():
        return folder
    with open(data / "ptbxl_database.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for folds, count in ((range(1, 9), training), ((9,), held_out)):
        names = [row["filename_lr"] for row in rows if int(float(row["strat_fold"])) in folds]
        for name in names[:: max(1, len(names) // count)][:count]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            for ending in (".hea", ".dat"):
                shutil.copy(data / f"{name}{ending}", folder / f"{name}{ending}")
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copy(data / name, folder / name)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("measured"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--training", type=int, default=2000, help="recordings of folds 1 to 8")
    parser.add_argument("--held-out", type=int, default=1000, help="recordings of fold 9")
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, qa = options.out / "rows.jsonl", ask(options.out, options.data)
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    part = part_of(options.data, options.out / "part", options.training, options.held_out)
    work = tokens(options.out, part, **TOKENS)
    segment_lines(work)  # not part of the time of a training
    for seed in map(int, options.seeds.split(",")):
        for name, measured in ROWS:
            if any((row["name"], row["seed"], row["steps"]) == (name, seed, options.steps) for row in done):
                continue
            start = time.process_time()
            settings = {"steps": options.steps, "every": options.steps, "seed": seed, "overwrite": True}
            trained = FinetuneOptions(qa=((qa, 1.0),), model="tiny", measured=measured, **MODEL, **settings)
            result = finetune(work, trained)
            each = scores(work, qa)
            row = {"name": name, "seed": seed, "steps": options.steps}
            row |= {"auroc": float(np.mean([*each.values()])), "val_loss": result["val_loss"]}
            if measured:
                alone = scores(work, qa, without_ecg=True)
                row["alone"] = float(np.mean([*alone.values()]))
                row["alone_each"] = alone
            row |= {"each": each, "cpu_seconds": time.process_time() - start}
            done.append(row)
            with open(kept, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({**row, "each": None, "alone_each": None}), flush=True)
    print("\n| finding | " + " | ".join(name for name, _ in ROWS) + " | values alone |")
    print("| --- | ---: | ---: | ---: |")
    rows = {name: [row for row in done if row["name"] == name] for name, _ in ROWS}
    for finding in done[0]["each"]:
        values = [np.mean([row["each"][finding] for row in rows[name]]) for name, _ in ROWS]
        values.append(np.mean([row["alone_each"][finding] for row in rows["--measured"]]))
        print(f"| {finding} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
