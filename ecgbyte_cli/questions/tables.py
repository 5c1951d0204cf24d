"""What tables of yes and no say: CODE-15 %'s exams.csv (Ribeiro et al. 2021), or any CSV with a column of records.

A table says yes or no of what it has columns for, and nothing of the rest, so nobody asks for a list of all that is
to be seen.
"""

import os
import re

from ecgbyte_cli.console import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.facts import (
    Facts,
    Source,
    age,
    columns,
    known_only,
    measured,
    record_name,
    rows,
    sex,
)
from ecgbyte_cli.questions.files import SPLITS
from ecgbyte_cli.questions.findings import FINDINGS, STATEMENTS
from ecgbyte_cli.questions.wording import ALSO
from ecgbyte_cli.readers.patients import patient_and_split, read_patients

CODE15 = {
    "1dAVb": "1AVB",
    "RBBB": "CRBBB",
    "LBBB": "CLBBB",
    "SB": "SBRAD",
    "ST": "STACH",
    "AF": "AFIB",
    "normal_ecg": "NORM",
}
YES, NO = {"yes", "y", "true", "1", "1.0"}, {"no", "n", "false", "0", "0.0"}
# columns that may hold 0 and 1 and are nothing that an ECG shows
ABOUT = {"record", "patient", "split", "age", "sex", "path", "fold", "strat_fold"}
MEASURED = {"rate": "heart_rate", "pr": "pr_interval", "qrs": "qrs_duration"}


def read_code15(path: str | os.PathLike) -> Source:
    """Read CODE-15 %'s exams.csv."""
    return _read(
        path, "exam_id", "patient_id", {name: CODE15[name] for name in columns(path) if name in CODE15}, {}
    )


def read(path: str | os.PathLike) -> Source:
    """Read a table with the column `record` and columns of yes and no.

    It may also have the columns `patient`, `split`, `age` (years), `sex` (male, female), `heart_rate` (per minute),
    `pr_interval` and `qrs_duration` (s or ms).

    Raises
    ------
    Failure
        If no column holds yes and no alone, or a record has two rows.
    """
    names = columns(path)
    answers: dict[str, set[str]] = {name: set() for name in names if name.lower() not in ABOUT}
    for _, row in rows(path):
        for name, seen in answers.items():
            if len(seen) <= 2 * len(YES):  # more is no column of yes and no
                seen.add(row[name].lower())
    asked = [name for name, seen in answers.items() if seen - {""} and seen <= YES | NO | {""}]
    if not asked:
        raise Failure(f"{path} has no column of yes and no (or true and false, or 1 and 0) beside `record`")
    unused = answers.keys() - {*asked, *MEASURED.values()}
    if unused:
        note(f"{path}: not all yes or no, and so not asked about: {', '.join(sorted(unused))}")
    taken = {name: _statement(name) for name in asked}
    words = {
        key: " ".join(name.replace("_", " ").split()) for name, key in taken.items() if key not in STATEMENTS
    }
    return _read(path, "record", "patient", taken, words)


def _read(path, record_column, patient_column, taken, words):
    patients = read_patients(path) if patient_column in columns(path) else {}
    facts, lines = [], {}
    for line, row in rows(path):
        record = record_name(row[record_column])
        if not record:
            raise Failure(f"{path}, line {line}: {record_column} is empty")
        if lines.setdefault(record, line) != line:
            raise Failure(f"{path}, line {line}: record {record} was in line {lines[record]} already")
        split = SPLITS.get(row.get("split", ""))
        if split is None and row.get("split"):
            raise Failure(f"{path}, line {line}: split {row['split']!r} is none of train, val, test")
        patient, split = patient_and_split(record, record, split, patients, row[record_column])
        known = {key: answer for name, key in taken.items() if (answer := _yes(row[name])) is not None}
        said = {"age": age(row.get("age")), "sex": sex(row.get("sex"))}
        if "is_male" in row:
            said["sex"] = {True: ["male"], False: ["female"], None: None}[_yes(row["is_male"])]
        said |= {topic: measured(topic, row.get(name)) for topic, name in MEASURED.items()}
        facts.append(Facts(record, patient, split, known, known_only(said)))
    return Source(facts, words)


def _yes(text):
    """True, False, or None where the cell says neither."""
    return True if text.lower() in YES else False if text.lower() in NO else None


def _statement(column):
    """The statement that a column is called after, by its short name or in words; else the column's own name."""

    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    called = {plain(word): name for name, s in STATEMENTS.items() for word in (name, s.words)}
    called |= {
        plain(word): finding.statements[0]
        for name, finding in FINDINGS.items()
        for word in (name, finding.words, *ALSO.get(name, ()))
    }
    return (called | {"rbbb": "CRBBB"}).get(plain(column), column)
