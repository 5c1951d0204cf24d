"""Compare measured values with PTB-XL's statements, and with ECG-QA's comparisons of measured features.

    python examples/experiments/measure_ptbxl.py PTBXL [--ecgqa FOLDER] [--fold 9] [--jobs 2]

PTBXL is a folder in PTB-XL's own layout (ptbxl_database.csv, and records100 or records500). A rule is a statement of
the report beside what was measured: sensitivity is the share of recordings with the statement for which the rule
holds, specificity the share of the others for which it does not. A value that was not measured fulfils no rule.

ECG-QA (its folder with template-train.json and template-test.json) says which features of a second ECG became, stayed
or ceased to be abnormal. That makes each of them normal or abnormal for one ECG. ECG-QA's normal ranges are not in its
files: they are fitted on its training items, and the agreement is that on its test items.
"""

import argparse
import ast
import csv
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ecgbyte_cli import Failure, measure, read

RULES = {  # name: (codes, what must have been measured)
    "sinus bradycardia, rate < 60": (("SBRAD",), lambda m: m["rate_bpm"] is not None and m["rate_bpm"] < 60),
    "sinus tachycardia, rate > 100": (
        ("STACH",),
        lambda m: m["rate_bpm"] is not None and m["rate_bpm"] > 100,
    ),
    "first-degree AV block, PR > 200 ms": (("1AVB",), lambda m: m["pr_ms"] is not None and m["pr_ms"] > 200),
    "complete bundle branch block, QRS >= 120 ms": (
        ("CLBBB", "CRBBB"),
        lambda m: m["qrs_ms"] is not None and m["qrs_ms"] >= 120,
    ),
    "atrial fibrillation, no P and irregular": (
        ("AFIB",),
        lambda m: m["rate_bpm"] is not None and m["pr_ms"] is None and "irregular" in m["flags"],
    ),
}
FEATURES = {
    "rr interval": "rr_ms",
    "p duration": "p_ms",
    "pr interval": "pr_ms",
    "qrs duration": "qrs_ms",
    "qt interval": "qt_ms",
    "qt corrected": "qtcb_ms",
}


def values_of(path):
    try:
        return measure(read(path)).values()
    except Failure:
        return None


def table_of(folder):
    """By number: the codes, the fold and the path of each recording."""
    folder = Path(folder)
    with open(folder / "ptbxl_database.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = "filename_lr" if (folder / "records100").is_dir() else "filename_hr"
    return {
        int(row["ecg_id"]): (
            set(ast.literal_eval(row["scp_codes"])),
            int(row["strat_fold"]),
            str(folder / row[column]),
        )
        for row in rows
    }


def show_rules(recordings):
    print("| statement and rule | with it | sensitivity | specificity |\n| --- | ---: | ---: | ---: |")
    for name, (codes, holds) in RULES.items():
        told = np.array([bool(set(codes) & its) for its, _ in recordings])
        held = np.array([holds(found) for _, found in recordings])
        print(f"| {name} | {told.sum()} | {held[told].mean():.3f} | {1 - held[~told].mean():.3f} |")


def labels(path):
    """By feature, whether it is abnormal: {feature: {ECG: True or False}}; ECGs that items disagree on are left out."""
    said = defaultdict(lambda: defaultdict(set))
    for item in json.loads(Path(path).read_text(encoding="utf-8")):
        question = item["question"]
        if (
            not item["question_type"].startswith("comparison_irrelevant")
            or "numeric features" not in question
        ):
            continue
        first, second = item["ecg_id"]
        before = "still abnormal" in question or "become normal" in question
        after = "still abnormal" in question or "now considered abnormal" in question
        for feature in item["answer"]:
            if feature in FEATURES:
                said[feature][first].add(before)
                said[feature][second].add(after)
    return {
        feature: {ecg: its.copy().pop() for ecg, its in found.items() if len(its) == 1}
        for feature, found in said.items()
    }


def balanced(values, abnormal, low, high):
    outside = (values < low) | (values > high)
    return (outside[abnormal].mean() + (~outside[~abnormal]).mean()) / 2


def fitted(values, abnormal):
    """The normal range of the highest balanced accuracy, of bounds in steps of 10 ms (or none)."""
    steps = np.arange(np.floor(values.min() / 10) * 10, values.max() + 10, 10)
    steps = steps[:: max(1, len(steps) // 80)]
    pairs = [(low, high) for low in [-np.inf, *steps] for high in [*steps, np.inf] if low < high]
    return max(pairs, key=lambda pair: balanced(values, abnormal, *pair))


def show_ecgqa(folder, measured):
    sides = [labels(Path(folder) / f"template-{side}.json") for side in ("train", "test")]
    print(
        "\n| feature | normal range, fitted | ECGs tested | abnormal | sensitivity | specificity | agreement |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for feature, name in FEATURES.items():
        arrays = []
        for side in sides:
            pairs = [
                (measured[e][name], is_so) for e, is_so in side.get(feature, {}).items() if measured.get(e)
            ]
            pairs = [pair for pair in pairs if pair[0] is not None]
            arrays.append((np.array([v for v, _ in pairs]), np.array([s for _, s in pairs], bool)))
        (values, abnormal), (tested, truth) = arrays
        if not (abnormal.any() and not abnormal.all() and truth.any() and not truth.all()):
            print(f"| {feature} | too few items | {len(truth)} | {int(truth.sum())} | | | |")
            continue
        low, high = fitted(values, abnormal)
        outside = (tested < low) | (tested > high)
        print(
            f"| {feature} | {low:g} to {high:g} ms | {len(truth)} | {truth.sum()} | {outside[truth].mean():.3f} | "
            f"{(~outside[~truth]).mean():.3f} | {(outside == truth).mean():.3f} |"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--ecgqa")
    parser.add_argument("--fold", type=int, default=9)
    parser.add_argument("--jobs", type=int, default=2)
    told = parser.parse_args()
    table = table_of(told.folder)
    with ProcessPoolExecutor(told.jobs) as pool:

        def measured(numbers):
            found = pool.map(values_of, [table[number][2] for number in numbers], chunksize=64)
            return {number: its for number, its in zip(numbers, found, strict=True) if its is not None}

        fold = [number for number, (_, its, _) in table.items() if its == told.fold]
        found = measured(fold)
        print(f"fold {told.fold}: {len(found)} of {len(fold)} recordings\n")
        show_rules([(table[number][0], its) for number, its in found.items()])
        if told.ecgqa:
            asked = set()
            for side in ("train", "test"):
                for its in labels(Path(told.ecgqa) / f"template-{side}.json").values():
                    asked |= its.keys()
            show_ecgqa(told.ecgqa, measured(sorted(asked & table.keys())))


if __name__ == "__main__":
    main()
