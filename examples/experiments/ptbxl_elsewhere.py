"""Score the included model on recordings of other hospitals, none of which it was trained or tuned on.

    python examples/experiments/ptbxl_elsewhere.py ludb/ cinc2021/ --qa asked.jsonl --out elsewhere.json

The table of each folder is made by `ecgbyte findings`. The labels are the diagnoses in the headers of LUDB
(examples/ludb_labels.py), and the SNOMED codes in those of the PhysioNet/CinC Challenge 2021. Recordings of the
Challenge that come from PTB-XL (HR…) are left out. An answer that is not sure counts by its nearer side. The majority
answers are those of the training questions (`--qa`, from ptbxl_questions.py). Findings with at least five positive and
five negative recordings make the means. Each recording counts as a patient in the intervals, as none has two here.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ptbxl_questions import open_answers

sys.path.insert(0, str(Path(__file__).parents[1]))
import ludb_labels

from ecgbyte_cli.evaluation.metrics import confidence_interval
from ecgbyte_cli.evaluation.reliability import auroc
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.questions.labels import NO, YES, derive_labels
from ecgbyte_cli.questions.sources.wfdb_headers import read_headers
from ecgbyte_cli.readers import find
from ecgbyte_cli.storage.files import atomic_write

LEAST = 5  # positive and negative recordings of a finding
DRAWS = 2000
SINUS = "sinus rhythm"
LUDB_RHYTHMS = {
    "irregular sinus rhythm": "sinus arrhythmia",
    "atrial flutter, typical": "atrial flutter",
}
Labels = dict[str, dict[str, Any]]  # record to finding to True, False or None; `rhythm` to words or None


def ludb(folder: Path) -> Labels:
    """The diagnoses in the headers of LUDB."""
    labels: Labels = {}
    for header in sorted(folder.rglob("*.hea")):
        stated = ludb_labels.diagnoses(header)
        rhythm = next(
            (line.removeprefix("rhythm: ").rstrip(".") for line in stated if "rhythm:" in line), None
        )
        labels[header.stem] = {name: one(stated) for name, one in ludb_labels.FINDINGS.items()}
        labels[header.stem]["rhythm"] = LUDB_RHYTHMS.get(rhythm or "", rhythm)
    return labels


def challenge(folder: Path) -> Labels:
    """The codes in the headers of the Challenge."""
    facts = read_headers(
        [path for path in find(folder)[0] if not Path(path).name.startswith("HR")], folder
    ).facts
    columns, known = derive_labels(facts).findings, {YES: True, NO: False}
    return {
        each.record: {
            name: known.get(int(columns[name][i])) if name in columns else None for name in FINDINGS
        }
        | {"rhythm": open_answers(each).get("rhythm")}
        for i, each in enumerate(facts)
    }


def table_of(folder: Path, model: str) -> dict[str, dict[str, str]]:
    """The first segment of each recording in the table of findings."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "findings.csv"
        command = [
            sys.executable,
            "-m",
            "ecgbyte_cli",
            "findings",
            str(folder),
            "--model",
            model,
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True)
        with open(out, encoding="utf-8", newline="") as file:
            return {row["record"]: row for row in csv.DictReader(file) if row["segment"] == "0"}


def majorities(qa: Path) -> dict[str, bool]:
    """Whether yes is the more frequent answer of the training questions about each finding."""
    counts: Counter[tuple[str, str]] = Counter()
    with open(qa, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if line["split"] == "train":
                counts[line["question"], line["answer"]] += 1
    return {name: counts[name, "yes"] > counts[name, "no"] for name in FINDINGS}


def recall(said: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Sensitivity and specificity."""
    return float(said[truth].mean()), float((~said)[~truth].mean())


def score(
    rows: Mapping[str, Mapping[str, str]],
    labels: Labels,
    points: Mapping[str, float],
    majority: Mapping[str, bool],
) -> dict[str, Any]:
    """Score the answers about one folder."""
    records = [name for name in labels if name in rows]
    findings, right, guessed, weights = (
        {},
        np.zeros(len(records)),
        np.zeros(len(records)),
        np.zeros(len(records)),
    )
    for name in FINDINGS:
        known = np.array([labels[record][name] is not None for record in records])
        truth = np.array([bool(labels[record][name]) for record in records])
        chance = np.array([float(rows[record][f"p_{name}"]) for record in records])
        if min((known & truth).sum(), (known & ~truth).sum()) < LEAST:
            continue
        said = chance >= points[name]
        sensitivity, specificity = recall(said[known], truth[known])
        [area] = auroc(chance[known], truth[known], np.ones((1, known.sum())))
        findings[name] = {
            "recordings": int(known.sum()),
            "positives": int((known & truth).sum()),
            "auroc": float(area),
            "sensitivity": sensitivity,
            "specificity": specificity,
        }
        right += known & (said == truth)
        guessed += known & (truth == majority[name])
        weights += known
    drawn = np.random.default_rng(0).integers(len(records), size=(DRAWS, len(records)))
    asked = weights[drawn].sum(1)
    gains = 100 * (right - guessed)[drawn].sum(1) / asked
    return {
        "recordings": len(records),
        "missing": len(labels) - len(records),
        "unlike": sum(bool(rows[record]["unlike"]) for record in records),
        "findings": findings,
        "mean_auroc": float(np.mean([one["auroc"] for one in findings.values()])),
        "balanced_accuracy": float(
            np.mean([(one["sensitivity"] + one["specificity"]) / 2 for one in findings.values()])
        ),
        "questions": int(weights.sum()),
        "exact_match": float(100 * right.sum() / weights.sum()),
        "interval": confidence_interval(100 * right[drawn].sum(1) / asked),
        "majority": float(100 * guessed.sum() / weights.sum()),
        "majority_interval": confidence_interval(100 * guessed[drawn].sum(1) / asked),
        "gain": float(100 * (right - guessed).sum() / weights.sum()),
        "gain_interval": confidence_interval(gains),
        "rhythm": rhythm_scores(
            [rows[record]["rhythm"] for record in records], [labels[record]["rhythm"] for record in records]
        ),
    }


def rhythm_scores(said: Sequence[str], truth: Sequence[str | None]) -> dict[str, Any]:
    """Score the rhythm of the recordings with a single one."""
    known = [(a, b) for a, b in zip(said, truth, strict=True) if b]
    recalls = {
        one: float(np.mean([a == b for a, b in known if b == one])) for one in sorted({b for _, b in known})
    }
    return {
        "recordings": len(known),
        "accuracy": float(np.mean([a == b for a, b in known])),
        "balanced_accuracy": float(np.mean([*recalls.values()])),
        "always_sinus": float(np.mean([b == SINUS for _, b in known])),
        "recall": recalls,
        "counts": dict(Counter(b for _, b in known)),
    }


def main(folders: tuple[Path, Path], model: str, qa: Path, out: Path) -> None:
    certainty = Session.open(model).certainty
    assert certainty
    points = {name: certainty.points[name][2] if name in certainty.points else 0.5 for name in FINDINGS}
    majority, results = majorities(qa), {}
    for name, folder, read in zip(("ludb", "cinc2021"), folders, (ludb, challenge), strict=True):
        results[name] = score(table_of(folder, model), read(folder), points, majority)
        short = {key: value for key, value in results[name].items() if key != "findings"}
        print(name, json.dumps(short), flush=True)
    with atomic_write(out) as beside:
        beside.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ludb", type=Path)
    parser.add_argument("cinc2021", type=Path)
    parser.add_argument("--model", default="ptbxl", help="model folder, or ptbxl")
    parser.add_argument("--qa", type=Path, required=True, help="the questions of the training")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    options = parser.parse_args()
    main((options.ludb, options.cinc2021), options.model, options.qa, options.out)
