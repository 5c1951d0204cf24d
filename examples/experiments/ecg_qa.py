"""Train a small model on ECG-QA's questions about noise and its comparisons, and score it once beside its controls.

    OMP_NUM_THREADS=1 python examples/experiments/ecg_qa.py ptb-xl/ ecg-qa/ --out build/ecg_qa

ECG-QA (Oh et al., NeurIPS 2023) asks about recordings of PTB-XL. Its folder holds template/train, template/valid and
template/test, or template-train.json and so on; items of other types are left out.

- noise (`single-verify`): is there static noise, burst noise, baseline drift or an electrode problem, in one lead or at
  all? Yes or no.
- comparisons (`comparison_irrelevant-query`): which of six measured features (RR, P, PR, QRS, QT, QTc) of a second ECG
  became, stayed or ceased to be abnormal? The answer is a set.

Comparisons keep the split of ECG-QA. Where the items about noise are all for training, those of fold 9 choose and those
of fold 10 test, unless their patient is in a comparison of training. No patient is on two sides.

The signals are not filtered, because a filter removes the drift that the questions are about. The scores go to
OUT/answers, and a summary to results/ecg_qa.json. A rerun resumes.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
NOISE, COMPARISON = "single-verify", "comparison_irrelevant-query"
KINDS = {(NOISE, "noise"), (COMPARISON, "numeric_feature")}
SIDES = {"train": "train", "valid": "val", "test": "test"}
HELD_OUT = {9: "val", 10: "test"}  # folds of PTB-XL
CHOSEN = 300  # validation questions of each type: enough to choose and to calibrate


def items(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return ECG-QA's items about noise and its comparisons in a random order, each with its side of the split."""
    found = []
    for name, side in SIDES.items():
        files = [*folder.glob(f"template-{name}.json"), *folder.glob(f"template/{name}/*.json")]
        if not files:
            raise SystemExit(
                f"{folder} holds neither template-{name}.json nor template/{name}/: is it ECG-QA's?"
            )
        for file in sorted(files):
            for item in json.loads(file.read_text(encoding="utf-8")):
                if (item["question_type"], item["attribute_type"]) in KINDS:
                    found.append((side, item))
    random.Random(0).shuffle(found)
    return found


def convert(data: Path, folder: Path, out: Path) -> Counter[tuple[str, str]]:
    """Write a question file with a side for each item, and count the questions by type and side."""
    with open(data / "ptbxl_database.csv", encoding="utf-8", newline="") as file:
        table = {int(row["ecg_id"]): row for row in csv.DictReader(file)}
    found = items(folder)
    compared = {
        table[number]["patient_id"]
        for side, item in found
        if side == "train" and item["question_type"] == COMPARISON
        for number in item["ecg_id"]
    }
    held_out = any(side == "test" and item["question_type"] == NOISE for side, item in found)
    counts: Counter[tuple[str, str]] = Counter()
    with open(out, "w", encoding="utf-8") as file:
        for side, item in found:
            if item["question_type"] == NOISE and not held_out:
                row = table[item["ecg_id"][0]]
                side = HELD_OUT.get(int(float(row["strat_fold"])), "train")
                if side != "train" and row["patient_id"] in compared:
                    continue
            if side == "val" and counts[item["question_type"], side] == CHOSEN:
                continue
            counts[item["question_type"], side] += 1
            file.write(json.dumps(item | {"split": side}) + "\n")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, with records100")
    parser.add_argument("ecg_qa", type=Path, help="ECG-QA's folder with template-train.json")
    parser.add_argument("--out", type=Path, default=Path("build/ecg_qa"))
    parser.add_argument("--model", default="small", help="base model, as in `ecgbyte finetune`")
    parser.add_argument("--leads", default="I,II,V1,V2,V3,V4,V5,V6", help="fewer take less time")
    parser.add_argument("--steps", type=int, default=600, help="updates of 8 ECGs or pairs of ECGs")
    parser.add_argument("--limit", type=int, help="score only so many test questions, drawn by seed")
    parser.add_argument("--results", type=Path, default=RESULTS / "ecg_qa.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def run(*stage: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "ecgbyte_cli", "--work", options.out / "work", *stage, "--json"]
        made = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(made.stdout)

    asked = options.out / "asked.jsonl"
    counts = convert(options.data, options.ecg_qa, asked)
    run(
        *("symbolize", options.data / "records100", "--profile", "resample", "--fs", 100),
        *("--leads", options.leads, "--quantizer", "mulaw", "--levels", 17),
        *("--patients", options.data / "ptbxl_database.csv", "--jobs", 1, "learn", "--vocab", 2000, "encode"),
    )
    trained = run(
        *("finetune", "--qa", asked, "--model", options.model, "--positions", "time"),
        *("--batch", 8, "--ecg-loss", 0.05, "--steps", options.steps, "--every", options.steps),
    )
    limit = ["--limit", options.limit] if options.limit else []
    scores = run("generate", "--qa", asked, "--split", "test", *limit, "--out", options.out / "answers")
    summary = {
        "questions": {f"{kind}, {side}": count for (kind, side), count in sorted(counts.items())},
        "model": options.model,
        "leads": options.leads,
        "trained": trained,
        "scores": scores,
    }
    options.results.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
