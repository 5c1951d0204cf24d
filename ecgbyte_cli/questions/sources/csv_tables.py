"""Tables of yes and no: CODE-15 %'s exams.csv (Ribeiro et al. 2021), or any CSV with a column of records.

A table says yes or no to what it has columns for. It covers nothing else, so no question asks for a list.
"""

import os
import re

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import ALSO
from ecgbyte_cli.questions.sources.base import (
    RecordFacts,
    Source,
    age_label,
    column_names,
    drop_unknown,
    measurement_label,
    record_name,
    sex_label,
    table_rows,
)
from ecgbyte_cli.readers.patients import patient_and_split, read_patients, side_of

CODE15 = {  # column to finding
    "1dAVb": "1avb",
    "RBBB": "crbbb",
    "LBBB": "clbbb",
    "SB": "sbrad",
    "ST": "stach",
    "AF": "afib",
    "normal_ecg": "normal",
}
YES, NO = {"yes", "y", "true", "1", "1.0"}, {"no", "n", "false", "0", "0.0"}
# columns that may hold 0 and 1 and are nothing that an ECG shows
ABOUT = {"record", "patient", "split", "age", "sex", "path", "fold", "strat_fold"}
MEASURED = {"rate": "heart_rate", "pr": "pr_interval", "qrs": "qrs_duration"}


def read_code15(path: str | os.PathLike) -> Source:
    """Read CODE-15 %'s exams.csv."""
    taken = {name: _names(CODE15[name]) for name in column_names(path) if name in CODE15}
    return _read_table(path, "exam_id", "patient_id", taken, {})


def read_label_table(path: str | os.PathLike) -> Source:
    """Read a table with the column `record` and columns of yes and no.

    It may also have the columns `patient`, `split`, `age` (years), `sex` (male, female), `heart_rate` (per minute),
    `pr_interval` and `qrs_duration` (s or ms).

    Raises
    ------
    Failure
        If no column holds yes and no alone, or a record has two rows.
    """
    names = column_names(path)
    answers: dict[str, set[str]] = {name: set() for name in names if name.lower() not in ABOUT}
    for _, row in table_rows(path):
        for name, seen in answers.items():
            if len(seen) <= 2 * len(YES):  # more is no column of yes and no
                seen.add(row[name].lower())
    asked = [name for name, seen in answers.items() if seen - {""} and seen <= YES | NO | {""}]
    if not asked:
        raise Failure(f"{path} has no column of yes and no (or true and false, or 1 and 0) beside `record`")
    unused = answers.keys() - {*asked, *MEASURED.values()}
    if unused:
        note(f"{path}: not all yes or no, and so not asked about: {', '.join(sorted(unused))}")
    called = _called()
    first: dict[tuple[str, ...], str] = {}
    taken = {name: called.get(_plain(name), (name,)) for name in asked}
    for name, keys in taken.items():
        if (other := first.setdefault(keys, name)) != name:
            note(f"{path}: {other} and {name} are columns of one finding: where they differ, it is unknown")
    words = {name: " ".join(name.replace("_", " ").split()) for name in asked if _plain(name) not in called}
    return _read_table(path, "record", "patient", taken, words)


def _read_table(path, record_column, patient_column, taken, words):
    patients = read_patients(path) if patient_column in column_names(path) else {}
    facts, lines = [], {}
    for line, row in table_rows(path):
        record = record_name(row[record_column])
        if not record:
            raise Failure(f"{path}, line {line}: {record_column} is empty")
        if lines.setdefault(record, line) != line:
            raise Failure(f"{path}, line {line}: record {record} was in line {lines[record]} already")
        try:
            split = side_of(row.get("split"), row.get("strat_fold"))
        except ValueError as error:
            raise Failure(f"{path}, line {line}: {error}") from error
        patient, split = patient_and_split(record, record, split, patients, row[record_column])
        known: dict[str, bool | None] = {}
        for name, keys in taken.items():
            if (answer := _parse_yes_no(row[name])) is not None:
                # two columns of one finding that differ leave it open
                known |= {key: answer if known.get(key, answer) is answer else None for key in keys}
        said = {"age": age_label(row.get("age")), "sex": sex_label(row.get("sex"))}
        if "is_male" in row:
            said["sex"] = {True: ["male"], False: ["female"], None: None}[_parse_yes_no(row["is_male"])]
        said |= {topic: measurement_label(topic, row.get(name)) for topic, name in MEASURED.items()}
        facts.append(RecordFacts(record, patient, split, known, drop_unknown(said)))
    return Source(facts, words)


def _parse_yes_no(text):
    """True, False, or None where the cell says neither."""
    return True if text.lower() in YES else False if text.lower() in NO else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _called() -> dict[str, tuple[str, ...]]:
    """What columns may be called, to the names in `Facts.known` that they fill in."""
    called: dict[str, tuple[str, ...]] = {
        _plain(word): (name,) for name, s in STATEMENTS.items() for word in (name, s.words)
    }
    for name, finding in ALL_FINDINGS.items():
        called |= {_plain(word): _names(name) for word in (name, finding.words, *ALSO.get(name, ()))}
    return called | {"rbbb": ("CRBBB",)}


def _names(finding: str) -> tuple[str, ...]:
    """The names that a column about a finding fills in: its statement, and the finding as a whole.

    "sinus rhythm" is only the statement: many tables deny it where the rate is not between 60 and 100.
    """
    statements = ALL_FINDINGS[finding].statements
    if len(statements) == 1:
        return statements
    whole = () if finding == "sr" else (finding,)
    return (*whole, finding.upper()) if finding.upper() in STATEMENTS else whole
