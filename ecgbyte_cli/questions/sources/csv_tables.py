"""Tables of yes and no: CODE-15 %'s exams.csv (Ribeiro et al. 2021), or any CSV with a column of records.

A table covers only the findings of its columns, so that no question asks for a list.
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
CODE15_COLUMNS = [{"exam_id", name} for name in CODE15]
YES, NO = {"yes", "y", "true", "1", "1.0"}, {"no", "n", "false", "0", "0.0"}
# columns that may hold 0 and 1 but are not findings
ABOUT = {"record", "patient", "split", "age", "sex", "path", "fold", "strat_fold"}
LONGEST_CELL, MOST_NAMED = 30, 5  # of what a message repeats
MEASURED = {"rate": "heart_rate", "pr": "pr_interval", "qrs": "qrs_duration"}


def read_code15(path: str | os.PathLike) -> Source:
    """Read CODE-15 %'s exams.csv."""
    names = column_names(path, CODE15_COLUMNS)
    findings = {name: _names(CODE15[name]) for name in names if name in CODE15}
    return _read_table(path, "exam_id", "patient_id", findings, {})


def read_label_table(path: str | os.PathLike) -> Source:
    """Read a table with the column `record` and columns of yes and no.

    It may also have the columns `patient`, `split`, `age` (years), `sex` (male, female), `heart_rate` (per minute),
    `pr_interval` and `qrs_duration` (s or ms).

    Raises
    ------
    Failure
        If no column holds only yes and no, or a record has two rows.
    """
    names = column_names(path, [{"record"}])
    asked = [name for name in names if name.lower() not in ABOUT]
    answered: set[str] = set()
    others: dict[str, str] = {}  # the first cell of a column that is neither yes nor no
    for line, row in table_rows(path, [{"record"}]):
        for name in asked:
            if (cell := row[name].lower()) in YES | NO:
                answered.add(name)
            elif cell:
                others.setdefault(name, f"line {line}: {row[name][:LONGEST_CELL]!r}")
    usable = [name for name in asked if name in answered and name not in others]
    left_out = [f"{name} ({others[name]})" for name in sorted(others) if name not in MEASURED.values()]
    if not usable:
        raise Failure(
            f"{path} has no column of yes and no (or true and false, or 1 and 0) beside `record`"
            + (f": {', '.join(left_out[:MOST_NAMED])}" if left_out else "")
        )
    if left_out:
        note(f"{path}: columns that are not all yes or no are left out: {', '.join(left_out)}")
    known = _names_of_columns()
    first: dict[tuple[str, ...], str] = {}
    findings = {name: known.get(_plain(name), (name,)) for name in usable}
    for name, keys in findings.items():
        if (other := first.setdefault(keys, name)) != name:
            note(f"{path}: {other} and {name} are columns of one finding: where they differ, it is unknown")
    words = {name: " ".join(name.replace("_", " ").split()) for name in usable if _plain(name) not in known}
    return _read_table(path, "record", "patient", findings, words)


def _read_table(
    path: str | os.PathLike,
    record_column: str,
    patient_column: str,
    findings: dict[str, tuple[str, ...]],
    words: dict[str, str],
) -> Source:
    """Read a table: `findings` maps its columns to names in `RecordFacts.known`, `words` has their words."""
    columns = [{record_column}]
    patients = read_patients(path) if patient_column in column_names(path, columns) else {}
    facts: list[RecordFacts] = []
    lines: dict[str, int] = {}
    for line, row in table_rows(path, columns):
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
        for name, keys in findings.items():
            if (answer := _parse_yes_no(row[name])) is not None:
                # two columns of a finding that differ leave it unknown
                known |= {key: answer if known.get(key, answer) is answer else None for key in keys}
        answers = {"age": age_label(row.get("age")), "sex": sex_label(row.get("sex"))}
        if "is_male" in row:
            answers["sex"] = {True: ["male"], False: ["female"], None: None}[_parse_yes_no(row["is_male"])]
        answers |= {topic: measurement_label(topic, row.get(name)) for topic, name in MEASURED.items()}
        facts.append(RecordFacts(record, patient, split, known, drop_unknown(answers)))
    return Source(facts, words)


def _parse_yes_no(text: str) -> bool | None:
    """Return True for yes, False for no, None for any other cell."""
    return True if text.lower() in YES else False if text.lower() in NO else None


def _plain(text: str) -> str:
    """Return a name in lower case, without spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _names_of_columns() -> dict[str, tuple[str, ...]]:
    """Return possible column names, with the names in `RecordFacts.known` that they set."""
    known: dict[str, tuple[str, ...]] = {
        _plain(word): (name,) for name, s in STATEMENTS.items() for word in (name, s.words, *s.scp, *s.snomed)
    }
    for name, finding in ALL_FINDINGS.items():
        known |= {_plain(word): _names(name) for word in (name, finding.words, *ALSO.get(name, ()))}
    return known | {"rbbb": ("CRBBB",)}


def _names(finding: str) -> tuple[str, ...]:
    """Return the names in `RecordFacts.known` that a column of a finding sets: its statement and the finding itself.

    "sinus rhythm" sets only the statement: many tables deny it if the rate is not between 60 and 100.
    """
    statements = ALL_FINDINGS[finding].statements
    if len(statements) == 1:
        return statements
    whole = () if finding == "sr" else (finding,)
    return (*whole, finding.upper()) if finding.upper() in STATEMENTS else whole
