"""Count how often the statements of PTB-XL's reports contradict measured values, by the rules of `conflicts`.

    python examples/experiments/conflicts_ptbxl.py FOLDER [--fold 9]

FOLDER holds PTB-XL's ptbxl_database.csv. Reports are no answers of a model, so a rule that contradicts many of them
would be of no use. Axes are left out, as PTB-XL does not code them.
"""

import argparse
import ast
import csv
from collections import Counter
from pathlib import Path

from ecgbyte_cli import Failure, measure, read
from ecgbyte_cli.inference.conflicts import RULES, find_conflicts
from ecgbyte_cli.questions.findings import ALL_FINDINGS, OF_SCP, STATEMENTS
from ecgbyte_cli.signal.measurement import Measurement

SEX = {"0": "male", "1": "female"}
MEMBERS = {one.words: {name} for name, one in STATEMENTS.items()} | {
    one.words: set(one.statements) for one in ALL_FINDINGS.values()
}
ASKED = [
    (finding, rule.answer)
    for rule in RULES
    for finding in rule.findings
    if "axis" not in finding and finding in MEMBERS
]


def answers_of_report(codes: str) -> dict[str, str]:
    """Return yes or no for each finding, by the SCP codes of a report."""
    stated = {OF_SCP[code] for code in ast.literal_eval(codes) if code in OF_SCP}
    return {words: "yes" if members & stated else "no" for words, members in MEMBERS.items()}


def measured(folder: Path, name: str) -> Measurement | None:
    """Measure a recording; None if it cannot be read."""
    try:
        return measure(read(folder / name))
    except Failure:
        return None


def main() -> None:
    """Count, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fold", default="9")
    parser.add_argument("--limit", type=int, default=None, help="take this many recordings")
    args = parser.parse_args()
    with open(args.folder / "ptbxl_database.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["strat_fold"] == args.fold][: args.limit]
    found: Counter[tuple[str, str]] = Counter()
    stated: Counter[tuple[str, str]] = Counter()
    for row in rows:
        values = measured(args.folder, row["filename_lr"])
        if values is None:
            continue
        answers = answers_of_report(row["scp_codes"])
        age = float(row["age"] or 300)  # 300: older than 89
        conflicts = find_conflicts(answers, values, age if age <= 120 else None, SEX.get(row["sex"][:1]))
        found.update((one.finding, one.answer) for one in conflicts)
        stated.update((finding, answer) for finding, answer in ASKED if answers[finding] == answer)
    print("| statement | reports | contradicted |\n| --- | ---: | ---: |")
    for finding, answer in ASKED:
        count, of = found[finding, answer], stated[finding, answer]
        print(f"| {finding}: {answer} | {of} | {100 * count / max(of, 1):.1f} % |")


if __name__ == "__main__":
    main()
