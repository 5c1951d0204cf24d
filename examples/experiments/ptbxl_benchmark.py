"""Score a model on the six tasks of the PTB-XL benchmark, beside the published results.

    OMP_NUM_THREADS=1 python examples/experiments/ptbxl_benchmark.py ptb-xl/ --model ptbxl --out benchmark.json

Strodthoff et al., Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL, IEEE J. Biomed. Health Inform.
25 (2021) 1519. Labels and recordings are theirs: every SCP code that the table gives a recording counts, whatever its
likelihood, and a task has the recordings with at least one of its labels. The score is the mean AUROC over the labels
of a task that occur and are missing in the fold. Fold 10 is scored with `--fold 10`, once; the default is fold 9.

A model is asked about each statement by its short name (see ptbxl_questions.py). The probability of a subclass is the
largest of its statements'.
"""

import argparse
import ast
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from ptbxl_questions import short_name
from scipy.stats import rankdata

from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.questions.findings import OF_SCP
from ecgbyte_cli.storage.files import atomic_write

PUBLISHED = {  # the best of their networks in each task
    "all": 0.925,
    "diagnostic": 0.937,
    "subdiagnostic": 0.930,
    "superdiagnostic": 0.930,
    "form": 0.899,
    "rhythm": 0.957,
}
SUPERCLASSES = {"NORM": "normal", "MI": "mi", "STTC": "sttc", "CD": "cd", "HYP": "hyp"}


def statements(path: Path) -> dict[str, dict[str, str]]:
    """The rows of scp_statements.csv by code."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        names = next(rows)
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def tasks(codes: dict[str, dict[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Task to label to the codes that it consists of."""
    found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in PUBLISHED}
    for code, row in codes.items():
        found["all"][code].append(code)
        for kind in ("diagnostic", "form", "rhythm"):
            if row[kind].startswith("1"):
                found[kind][code].append(code)
        if row["diagnostic"].startswith("1"):
            found["subdiagnostic"][row["diagnostic_subclass"]].append(code)
            found["superdiagnostic"][row["diagnostic_class"]].append(code)
    return found


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve."""
    ranks, positive = rankdata(scores), truth.sum()
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (~truth).sum()))


def probabilities(session: Session, paths: list[Path], names: list[str]) -> np.ndarray:
    """P(yes) of each name for each recording, float64 (recordings, names)."""
    rows = []
    for number, path in enumerate(paths):
        ecg = session.read(path)
        prompts = [session.prompt_ids([ecg], [(name, None)])[0] for name in names]
        rows.append([weights[1] for weights in session.weigh_prompts(prompts, ["no", "yes"], names)])
        if number % 100 == 99:
            print(f"{number + 1} of {len(paths)} recordings", flush=True)
    return np.array(rows)


def main(folder: Path, model: str, fold: int, out: Path, limit: int | None) -> None:
    with open(folder / "ptbxl_database.csv", encoding="utf-8", newline="") as file:
        table = [row for row in csv.DictReader(file) if int(row["strat_fold"]) == fold][:limit]
    codes = statements(folder / "scp_statements.csv")
    names = [*dict.fromkeys([*(short_name(OF_SCP[code]) for code in codes), *SUPERCLASSES.values()])]
    column = (
        "filename_lr" if (folder / table[0]["filename_lr"]).with_suffix(".hea").exists() else "filename_hr"
    )
    session = Session.open(model)
    given = probabilities(session, [(folder / row[column]).with_suffix(".hea") for row in table], names)
    place = {name: number for number, name in enumerate(names)}
    stated = [{*ast.literal_eval(row["scp_codes"])} for row in table]
    scores = {}
    for task, labels in tasks(codes).items():
        members = {code for group in labels.values() for code in group}
        used = np.array([bool(members & each) for each in stated])
        areas = {}
        for label, group in labels.items():
            truth = np.array([bool(each & {*group}) for each in stated])[used]
            if truth.all() or not truth.any():
                continue
            asked = [short_name(OF_SCP[code]) for code in group]
            asked = [SUPERCLASSES[label]] if task == "superdiagnostic" else asked
            areas[label] = area(given[used][:, [place[name] for name in asked]].max(axis=1), truth)
        scores[task] = {
            "auroc": float(np.mean([*areas.values()])),
            "labels": areas,
            "recordings": int(used.sum()),
        }
    with atomic_write(out) as beside:
        beside.write_text(json.dumps({"fold": fold, "model": model, "tasks": scores}, indent=1) + "\n")
    print("| task | labels | recordings | AUROC | published |\n| --- | ---: | ---: | ---: | ---: |")
    for task, found in scores.items():
        row = len(found["labels"]), found["recordings"], f"{found['auroc']:.3f}", f"{PUBLISHED[task]:.3f}"
        print(f"| {task} | {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="PTB-XL, unpacked")
    parser.add_argument("--model", default="ptbxl", help="model folder, or ptbxl")
    parser.add_argument("--fold", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    parser.add_argument("--limit", type=int, help="use the first recordings only")
    options = parser.parse_args()
    main(options.folder, options.model, options.fold, options.out, options.limit)
